//! From ClientHello to a decision: terminate with this configuration, or pass the bytes through.
//!
//! One [`ServerConfig`] per distinct policy (lowest version, client authentication); the certificate is
//! looked up in the current snapshot at each handshake, so a changed certificate rebuilds nothing and
//! closes nothing.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use rustls::server::{Accepted, Acceptor, ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tidegate_model::{
    Certificate, ClientAuth, ClientAuthMode, Fingerprint, HostName, Snapshot, SnapshotStore,
    TlsMode, TlsPolicy, TlsVersion, VirtualHost,
};
use tidegate_tunnel::handshake;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::challenge;
use crate::tickets::{self, Ticketer};

/// A ClientHello fits in one record of 16 KiB and a bit; post-quantum ones are below 2 KiB.
const MAX_CLIENT_HELLO: usize = 18 * 1024;

/// Why no TLS session came about. Nothing here is the edge's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("read the ClientHello")]
    Read(#[source] io::Error),
    #[error("the client closed before its ClientHello was complete")]
    Closed,
    #[error("the ClientHello is longer than 18 KiB")]
    TooLong,
    #[error("parse the ClientHello")]
    Hello(#[source] rustls::Error),
    #[error("the connection begins with a PROXY header, which is not read from this peer")]
    ProxyHeader,
    #[error("no route has the server name {0:?}")]
    UnknownName(String),
    #[error("no certificate for {0:?} yet")]
    NoCertificate(String),
    #[error("no tls-alpn-01 challenge is under way for {0:?}")]
    NoChallenge(String),
    #[error("build the TLS configuration")]
    Config(#[source] rustls::Error),
    #[error("finish the handshake")]
    Handshake(#[source] io::Error),
    #[error("the handshake took longer than {0:?}")]
    Timeout(std::time::Duration),
}

impl TlsError {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Read(_) => "ReadClientHello",
            Self::Closed => "ClosedBeforeHello",
            Self::TooLong => "ClientHelloTooLong",
            Self::Hello(_) => "BadClientHello",
            Self::ProxyHeader => "UnexpectedProxyHeader",
            Self::UnknownName(_) => "UnknownServerName",
            Self::NoCertificate(_) => "NoCertificate",
            Self::NoChallenge(_) => "NoChallenge",
            Self::Config(_) => "TlsConfig",
            Self::Handshake(_) => "HandshakeFailed",
            Self::Timeout(_) => "HandshakeTimeout",
        }
    }
}

/// What is known of a TLS connection once it stands; what 421 is decided by.
#[derive(Debug)]
pub(crate) struct TlsFacts {
    /// The name the client asked for.
    pub(crate) server_name: Option<HostName>,
    /// The certificate it was shown.
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// The client-authentication policy it passed.
    pub(crate) client_auth: Option<(Fingerprint, ClientAuthMode)>,
    /// The version that was negotiated.
    pub(crate) version: TlsVersion,
}

impl TlsFacts {
    /// Whether a request for this host may use the connection: the certificate shown covers it, and the
    /// host asks for no other client authentication or newer TLS than the connection has.
    pub(crate) fn may_serve(&self, host: &HostName, virtual_host: &VirtualHost) -> bool {
        let TlsMode::Terminate(policy) = &virtual_host.tls else {
            return false;
        };
        if self.server_name.as_ref() == Some(host) {
            // The handshake itself was made by this host's policy; a policy that changed since counts.
            return self.satisfies(policy);
        }
        let covered = match (&self.server_name, &self.certificate) {
            // Without a server name nothing was claimed that could be contradicted.
            (None, _) => true,
            (Some(_), Some(certificate)) => certificate.covers(host),
            (Some(_), None) => false,
        };
        covered && self.satisfies(policy)
    }

    fn satisfies(&self, policy: &TlsPolicy) -> bool {
        identity(policy.client_auth.as_deref()) == self.client_auth
            && policy.min_version <= self.version
    }
}

fn identity(auth: Option<&ClientAuth>) -> Option<(Fingerprint, ClientAuthMode)> {
    auth.map(|auth| (auth.fingerprint, auth.mode))
}

/// A parsed ClientHello with the bytes it came in.
pub(crate) struct Hello {
    pub(crate) accepted: Accepted,
    /// Everything read so far, for passthrough.
    pub(crate) raw: Bytes,
}

/// Reads until the ClientHello is complete. The caller holds the clock.
pub(crate) async fn read_hello(tcp: &mut TcpStream, ahead: Bytes) -> Result<Hello, TlsError> {
    let mut acceptor = Acceptor::default();
    let mut raw = BytesMut::from(&ahead[..]);
    raw.reserve(2048);
    let mut fed = 0;
    loop {
        while fed < raw.len() {
            fed += acceptor
                .read_tls(&mut &raw[fed..])
                .map_err(TlsError::Read)?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    return Ok(Hello {
                        accepted,
                        raw: raw.freeze(),
                    });
                }
                Err(_) if crate::proxy_protocol::begins(&raw) => return Err(TlsError::ProxyHeader),
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    if alert.write_all(&mut bytes).is_ok() {
                        // The peer may be gone already; the error below is what counts.
                        let _ = tcp.write_all(&bytes).await;
                    }
                    return Err(TlsError::Hello(error));
                }
            }
        }
        if raw.len() >= MAX_CLIENT_HELLO {
            return Err(TlsError::TooLong);
        }
        if tcp.read_buf(&mut raw).await.map_err(TlsError::Read)? == 0 {
            return Err(TlsError::Closed);
        }
    }
}

/// What to do with a connection.
pub(crate) enum Decision {
    Terminate {
        config: Arc<ServerConfig>,
        facts: PendingFacts,
    },
    Passthrough(Arc<tidegate_model::Cluster>),
    /// A certification authority looks: the handshake is all it wants.
    Challenge(Arc<ServerConfig>),
}

/// [`TlsFacts`] before the version is negotiated.
pub(crate) struct PendingFacts {
    server_name: Option<HostName>,
    certificate: Option<Arc<Certificate>>,
    client_auth: Option<(Fingerprint, ClientAuthMode)>,
}

impl PendingFacts {
    pub(crate) fn negotiated(self, version: Option<rustls::ProtocolVersion>) -> TlsFacts {
        TlsFacts {
            server_name: self.server_name,
            certificate: self.certificate,
            client_auth: self.client_auth,
            version: match version {
                Some(rustls::ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
                _ => TlsVersion::Tls12,
            },
        }
    }
}

/// Chooses by server name, from the snapshot of this moment. `local` is the address that was connected to.
pub(crate) fn decide(
    configs: &TlsConfigs,
    snapshot: &Snapshot,
    hello: &ClientHello<'_>,
    local: IpAddr,
) -> Result<Decision, TlsError> {
    let Some(asked) = hello.server_name() else {
        return without_name(configs, snapshot, local);
    };
    let Ok(name) = HostName::parse(asked) else {
        return Err(TlsError::UnknownName(asked.to_owned()));
    };
    let host = snapshot.hosts.lookup(&name);
    if challenge::is_tls_alpn01(hello) {
        if let Some(config) = challenge::tls_alpn01(&snapshot.challenges, &name) {
            let config = config.map_err(TlsError::Config)?;
            return Ok(Decision::Challenge(Arc::new(config)));
        }
        if !host.is_some_and(|host| matches!(host.tls, TlsMode::Passthrough(_))) {
            return Err(TlsError::NoChallenge(asked.to_owned()));
        }
    }
    let Some(host) = host else {
        return Err(TlsError::UnknownName(asked.to_owned()));
    };
    match &host.tls {
        TlsMode::Passthrough(cluster) => Ok(Decision::Passthrough(Arc::clone(cluster))),
        TlsMode::Terminate(policy) => {
            if policy.certificate.is_none() {
                return Err(TlsError::NoCertificate(asked.to_owned()));
            }
            let agents = !snapshot.agents.is_empty();
            let config = configs.config(policy.min_version, policy.client_auth.as_ref(), agents)?;
            let facts = PendingFacts {
                server_name: Some(name),
                certificate: policy.certificate.clone(),
                client_auth: identity(policy.client_auth.as_deref()),
            };
            Ok(Decision::Terminate { config, facts })
        }
    }
}

/// Clients that mean an address send no name (RFC 6066 §3): they mean the one they connected to.
fn without_name(
    configs: &TlsConfigs,
    snapshot: &Snapshot,
    local: IpAddr,
) -> Result<Decision, TlsError> {
    let name = HostName::parse(&local.to_canonical().to_string()).ok();
    let host = name.and_then(|name| snapshot.hosts.lookup(&name));
    if let Some(host) = host
        && let TlsMode::Terminate(policy) = &host.tls
        && let Some(certificate) = &policy.certificate
    {
        let agents = !snapshot.agents.is_empty();
        let config = configs.config(policy.min_version, policy.client_auth.as_ref(), agents)?;
        let mut config = ServerConfig::clone(&config);
        config.cert_resolver = Arc::new(challenge::Single(Arc::clone(&certificate.key)));
        let facts = PendingFacts {
            server_name: None,
            certificate: Some(Arc::clone(certificate)),
            client_auth: identity(policy.client_auth.as_deref()),
        };
        let config = Arc::new(config);
        return Ok(Decision::Terminate { config, facts });
    }
    let certificate = snapshot.default_certificate.clone();
    if certificate.is_none() {
        return Err(TlsError::NoCertificate(String::new()));
    }
    let config = configs.config(TlsVersion::Tls12, None, !snapshot.agents.is_empty())?;
    let facts = PendingFacts {
        server_name: None,
        certificate,
        client_auth: None,
    };
    Ok(Decision::Terminate { config, facts })
}

/// The last says whether agents may connect.
type PolicyKey = (TlsVersion, Option<(Fingerprint, ClientAuthMode)>, bool);

/// The server configurations in use, by policy. Session tickets are shared by all workers and by all
/// hosts of one policy, and where the snapshot has keys by all edges that have them too; never across two
/// policies: a ticket must not carry a client past a check it has not made.
pub(crate) struct TlsConfigs {
    resolver: Arc<SnapshotResolver>,
    configs: Mutex<HashMap<PolicyKey, Arc<ServerConfig>>>,
}

/// Policies come and go with objects; this many are kept before the table is begun anew.
const MAX_POLICIES: usize = 256;

impl TlsConfigs {
    pub(crate) fn new(store: Arc<SnapshotStore>) -> Self {
        Self {
            resolver: Arc::new(SnapshotResolver { store }),
            configs: Mutex::new(HashMap::new()),
        }
    }

    fn config(
        &self,
        min_version: TlsVersion,
        client_auth: Option<&Arc<ClientAuth>>,
        agents: bool,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let identity = identity(client_auth.map(|auth| &**auth));
        let key = (min_version, identity, agents);
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(&key) {
            return Ok(Arc::clone(config));
        }
        if configs.len() >= MAX_POLICIES {
            configs.clear();
        }
        let mut config = self
            .build(min_version, client_auth)
            .map_err(TlsError::Config)?;
        if agents {
            config.alpn_protocols.push(handshake::ALPN.to_vec());
        }
        let config = Arc::new(config);
        configs.insert(key, Arc::clone(&config));
        Ok(config)
    }

    fn build(
        &self,
        min_version: TlsVersion,
        client_auth: Option<&Arc<ClientAuth>>,
    ) -> Result<ServerConfig, rustls::Error> {
        const FROM_12: &[&SupportedProtocolVersion] =
            &[&rustls::version::TLS13, &rustls::version::TLS12];
        const FROM_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = match min_version {
            TlsVersion::Tls12 => FROM_12,
            TlsVersion::Tls13 => FROM_13,
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?;
        let builder = match client_auth {
            None => builder.with_no_client_auth(),
            Some(auth) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::clone(&auth.roots), provider);
                let verifier = match auth.mode {
                    ClientAuthMode::Required => verifier,
                    ClientAuthMode::Optional => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(
                    verifier
                        .build()
                        .map_err(|error| rustls::Error::General(error.to_string()))?,
                )
            }
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&self.resolver) as _);
        // `curl --http1.0` offers nothing but http/1.0.
        config.alpn_protocols = [&b"h2"[..], b"http/1.1", b"http/1.0"]
            .map(<[u8]>::to_vec)
            .to_vec();
        let policy = tickets::policy(min_version, identity(client_auth.map(|auth| &**auth)));
        config.ticketer = Arc::new(Ticketer::new(Arc::clone(&self.resolver.store), policy)?);
        config.ignore_client_order = true;
        // 0-RTT stays off: early data can be replayed.
        config.max_early_data_size = 0;
        Ok(config)
    }
}

impl fmt::Debug for TlsConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfigs").finish_non_exhaustive()
    }
}

/// Looks certificates up in the current snapshot.
#[derive(Debug)]
struct SnapshotResolver {
    store: Arc<SnapshotStore>,
}

impl ResolvesServerCert for SnapshotResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let published = self.store.load();
        let snapshot = &published.snapshot;
        let Some(asked) = hello.server_name() else {
            return snapshot
                .default_certificate
                .as_ref()
                .map(|certificate| Arc::clone(&certificate.key));
        };
        let host = snapshot.hosts.lookup(&HostName::parse(asked).ok()?)?;
        match &host.tls {
            TlsMode::Terminate(policy) => policy
                .certificate
                .as_ref()
                .map(|certificate| Arc::clone(&certificate.key)),
            TlsMode::Passthrough(_) => None,
        }
    }
}
