//! What the data plane serves: complete, validated, immutable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rustls::RootCertStore;

use crate::{
    Agent, AgentId, Certificate, ChallengeAnswers, Cluster, Fingerprint, HostName, HostPattern,
    MappedPort, PortId, Reach, RouteEntry, RouteId, TicketKeys, UdpRelay,
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
    /// Whom HTTP/1.0 requests without Host mean that come over plain HTTP.
    pub hostless: Hostless,
    /// Keys of session tickets that other edges have too; without them each process has its own.
    pub ticket_keys: Option<Arc<TicketKeys>>,
    /// UDP trackers whose datagrams pass through, sorted by rule.
    pub udp_relays: Vec<Arc<UdpRelay>>,
    /// Agents that may connect, and what is asked of them.
    pub agents: BTreeMap<AgentId, Arc<Agent>>,
    /// Ports that lead to agents, beside those of the listeners.
    pub ports: BTreeMap<PortId, Arc<MappedPort>>,
}

impl Snapshot {
    /// Every distinct cluster, which is what health checks and name resolution follow.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let mut by_key = HashMap::new();
        for port in self.ports.values() {
            let cluster = Arc::clone(&port.cluster);
            by_key.insert(cluster.key.clone(), cluster);
        }
        for host in self.hosts.values() {
            if let TlsMode::Passthrough(cluster) = &host.tls {
                by_key
                    .entry(cluster.key.clone())
                    .or_insert_with(|| Arc::clone(cluster));
            }
            for entry in host.all_entries() {
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
    /// The rules on listeners for plain HTTP, where some answer there whatever [`VirtualHost::plain_http`] says.
    pub plain: Vec<PlainRules>,
}

impl VirtualHost {
    /// The rules on the listener for plain HTTP with that port, if [`VirtualHost::plain_http`] does not decide alone.
    pub fn plain_rules(&self, port: u16) -> Option<&PlainRules> {
        if self.plain.is_empty() {
            return None;
        }
        let of = |port| self.plain.iter().find(|rules| rules.port == port);
        of(Some(port)).or_else(|| of(None))
    }

    /// Every entry, over TLS or not; some more than once.
    pub fn all_entries(&self) -> impl Iterator<Item = &RouteEntry> {
        let plain = self.plain.iter().flat_map(|rules| &rules.entries);
        self.entries.iter().chain(plain)
    }
}

/// The rules of a host on a listener for plain HTTP. Entries whose rule is not [`Rule::plain`](crate::Rule::plain)
/// stand for what [`VirtualHost::plain_http`] says.
#[derive(Debug, Clone, PartialEq)]
pub struct PlainRules {
    /// The listener's port; None: every one that has no rules of its own.
    pub port: Option<u16>,
    /// Matches in order of precedence: the first that matches wins.
    pub entries: Vec<RouteEntry>,
    /// Whether any entry decides by path, so that an ambiguous path must be refused.
    pub guards_by_path: bool,
}

/// The hosts that HTTP/1.0 requests without Host mean, by the port of the listener for plain HTTP: the only one
/// that has rules of its own there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hostless {
    by_port: BTreeMap<u16, Option<String>>,
    others: Option<String>,
}

impl Hostless {
    /// Who is meant among these hosts.
    pub fn of(hosts: &HostMap<Arc<VirtualHost>>) -> Self {
        let rules = || {
            let hosts = hosts.values().filter(|host| !host.plain.is_empty());
            hosts.flat_map(|host| host.plain.iter().map(|rules| (&host.pattern, rules.port)))
        };
        let only = |port: Option<u16>| {
            let named = rules().filter(|(_, of)| of.is_none() || *of == port);
            let mut named = named.map(|(pattern, _)| pattern);
            match (named.next()?, named.next()) {
                (HostPattern::Exact(name), None) => Some(name.in_url()),
                _ => None,
            }
        };
        let ports: BTreeSet<u16> = rules().filter_map(|(_, port)| port).collect();
        Self {
            by_port: ports
                .into_iter()
                .map(|port| (port, only(Some(port))))
                .collect(),
            others: only(None),
        }
    }

    /// The host as Host would name it.
    pub fn on(&self, port: u16) -> Option<&str> {
        let known = self.by_port.get(&port).unwrap_or(&self.others);
        known.as_deref()
    }
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
