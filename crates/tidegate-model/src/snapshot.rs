//! What the data plane serves: complete, validated, immutable.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::RootCertStore;

use crate::{
    Certificate, ChallengeAnswers, Cluster, Fingerprint, HostName, HostPattern, Reach, RouteEntry,
    RouteId, TicketKeys, UdpRelay,
};

/// One complete configuration of the data plane. A request or connection uses one from start to end.
#[derive(Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Virtual hosts by name.
    pub hosts: HostMap<Arc<VirtualHost>>,
    /// Served to clients that send no SNI, and for names nobody claims when set.
    pub default_certificate: Option<Arc<Certificate>>,
    /// What certification authorities may ask for.
    pub challenges: Arc<ChallengeAnswers>,
    /// Where the addresses that names turn out to have may lead.
    pub reach: Arc<Reach>,
    /// Keys of session tickets that other edges have too; without them each process has its own.
    pub ticket_keys: Option<Arc<TicketKeys>>,
    /// UDP trackers whose datagrams pass through, sorted by rule.
    pub udp_relays: Vec<Arc<UdpRelay>>,
}

impl Snapshot {
    /// Every distinct cluster, which is what health checks and name resolution follow.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let mut by_key = HashMap::new();
        for host in self.hosts.values() {
            if let TlsMode::Passthrough(cluster) = &host.tls {
                by_key
                    .entry(cluster.key.clone())
                    .or_insert_with(|| Arc::clone(cluster));
            }
            for entry in &host.entries {
                for cluster in entry.rule.clusters() {
                    by_key
                        .entry(cluster.key.clone())
                        .or_insert_with(|| Arc::clone(cluster));
                }
            }
        }
        let mut all: Vec<_> = by_key.into_values().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }
}

/// Exact names first, then the wildcard of the parent.
#[derive(Debug, Clone, PartialEq)]
pub struct HostMap<T> {
    exact: HashMap<HostName, T>,
    wildcard: HashMap<HostName, T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
        }
    }
}

impl<T> HostMap<T> {
    /// Inserts; returns what the pattern held before.
    pub fn insert(&mut self, pattern: HostPattern, value: T) -> Option<T> {
        match pattern {
            HostPattern::Exact(name) => self.exact.insert(name, value),
            HostPattern::Wildcard(parent) => self.wildcard.insert(parent, value),
        }
    }

    /// The value for the host: exact, else one-label wildcard.
    pub fn lookup(&self, host: &HostName) -> Option<&T> {
        self.exact.get(host).or_else(|| {
            if self.wildcard.is_empty() {
                None
            } else {
                self.wildcard.get(host.parent()?)
            }
        })
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.wildcard.values())
    }

    /// Number of patterns.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// Whether no pattern is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One hostname of one route.
#[derive(Debug, PartialEq)]
pub struct VirtualHost {
    /// The hostname as claimed.
    pub pattern: HostPattern,
    /// The route that owns it.
    pub route: RouteId,
    /// Termination or passthrough.
    pub tls: TlsMode,
    /// What plain HTTP gets.
    pub plain_http: PlainHttp,
    /// Value of Strict-Transport-Security, if the route asks for it (RFC 6797).
    pub hsts: Option<http::HeaderValue>,
    /// Matches in order of precedence: the first that matches wins.
    pub entries: Vec<RouteEntry>,
    /// Whether any entry decides by path, so that an ambiguous path must be refused.
    pub guards_by_path: bool,
}

/// What happens to a TLS connection for this host.
#[derive(Debug, Clone, PartialEq)]
pub enum TlsMode {
    /// TLS ends here.
    Terminate(TlsPolicy),
    /// The bytes go to the backend unopened.
    Passthrough(Arc<Cluster>),
}

/// How TLS is terminated for a host.
#[derive(Debug, Clone, PartialEq)]
pub struct TlsPolicy {
    /// None while no certificate exists: the handshake is refused.
    pub certificate: Option<Arc<Certificate>>,
    /// Lowest version accepted.
    pub min_version: TlsVersion,
    /// Client certificates, if asked for.
    pub client_auth: Option<Arc<ClientAuth>>,
}

/// TLS protocol versions that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// Which clients may connect.
#[derive(Debug, Clone)]
pub struct ClientAuth {
    /// The CAs whose certificates are accepted.
    pub roots: Arc<RootCertStore>,
    /// Whether a client without a certificate is let in.
    pub mode: ClientAuthMode,
    /// SHA-256 over the CAs; identity of the policy together with `mode`.
    pub fingerprint: Fingerprint,
}

impl PartialEq for ClientAuth {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && self.mode == other.mode
    }
}

/// Whether a client certificate is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAuthMode {
    /// No certificate, no connection.
    Required,
    /// Verified if sent.
    Optional,
}

/// What a request over plain HTTP gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlainHttp {
    /// A redirect to HTTPS with this status (308 keeps the method, 301 is what old clients know).
    Redirect(http::StatusCode),
    /// The same rules as over HTTPS.
    Serve,
    /// 404.
    Refuse,
}
