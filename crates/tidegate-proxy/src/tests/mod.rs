//! The data plane against scripted peers on loopback: clients and origins are raw sockets, so that each
//! test says byte for byte what the other side does.

mod abuse;
mod agents;
mod bodies;
mod endpoints;
mod extended_connect;
mod filters;
mod h2_peers;
mod http1_upstream;
mod lifecycle;
mod messages;
mod peers;
mod plain;
mod resumption;
mod retries;
mod streams;
mod tls;
mod upgrades;
mod versions;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use tidegate_model::{
    Action, BackendGroup, Certificate, CertificateOrigin, CircuitLimits, Cluster, ClusterKey,
    Filters, Fingerprint, HostPattern, Hostless, Limits, LoadBalancing, PassiveHealthCheck,
    PlainHttp, RequestMatch, RouteEntry, RouteId, Rule, Snapshot, SnapshotStore, Target, Timeouts,
    TlsMode, TlsPolicy, TlsVersion, UpstreamProtocol, VirtualHost, WeightedBackend,
};

use crate::{Edge, RunningEdge, Settings};

/// Longer than anything a test waits for on purpose.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const HOST: &str = "app.test";

/// A running edge that serves [`HOST`].
pub(super) struct TestEdge {
    pub(super) edge: RunningEdge,
    pub(super) store: Arc<SnapshotStore>,
    pub(super) http: SocketAddr,
    pub(super) https: SocketAddr,
    pub(super) runtime: tokio::runtime::Runtime,
}

impl TestEdge {
    pub(super) fn start(rule: Rule) -> Self {
        Self::start_with(rule, |_| {})
    }

    pub(super) fn start_with(rule: Rule, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_hosts(
            vec![virtual_host(HOST, rule, policy(certificate(&[HOST])))],
            change,
        )
    }

    pub(super) fn start_hosts(hosts: Vec<VirtualHost>, change: impl FnOnce(&mut Settings)) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut settings = Settings {
            http: vec![any],
            https: vec![any],
            workers: std::num::NonZeroUsize::MIN,
            ..Settings::default()
        };
        settings.access_log.enabled = false;
        change(&mut settings);
        let store = Arc::new(SnapshotStore::new());
        store.publish(snapshot(hosts));
        let edge = Edge::bind(settings, Arc::clone(&store)).unwrap();
        let addresses = edge.addresses();
        let find = |wanted| {
            addresses
                .iter()
                .find(|(name, _)| *name == wanted)
                .unwrap()
                .1
        };
        let (http, https) = (find("http"), find("https"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            edge: edge.start().unwrap(),
            store,
            http,
            https,
            runtime,
        }
    }

    pub(super) fn connect(&self) -> TcpStream {
        connect(self.http)
    }

    /// Sends the bytes on a fresh connection and reads until the edge closes.
    pub(super) fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_to_end(&mut stream)
    }

    pub(super) fn metric(&self, line_start: &str) -> u64 {
        let text = self.edge.metrics();
        let lines = text.lines().filter(|line| line.starts_with(line_start));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}

impl Drop for TestEdge {
    fn drop(&mut self) {
        self.runtime
            .block_on(self.edge.drain(Duration::from_millis(50)));
    }
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything until the end; a reset counts as the end.
pub(super) fn read_to_end(stream: &mut impl Read) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => panic!("read: {error}; so far {:?}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads a head, up to and including the empty line.
pub(super) fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")
}

/// An origin that runs the script for each connection, with the connection's number.
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
}

impl Origin {
    pub(super) fn scripted(script: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let script = Arc::clone(&script);
                thread::spawn(move || script(number, stream));
            }
        });
        Self {
            address,
            connections,
        }
    }

    /// Answers every request on every connection with its own head as the body.
    pub(super) fn echo() -> Self {
        Self::scripted(|_, mut stream| {
            loop {
                let head = read_head(&mut stream);
                if head.is_empty() {
                    return;
                }
                let length = head.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{head}");
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        })
    }
}

pub(super) fn cluster(address: SocketAddr) -> Arc<Cluster> {
    Arc::new(Cluster {
        key: ClusterKey(address.to_string().into()),
        name: address.to_string(),
        target: Target::Addresses(vec![address]),
        protocol: UpstreamProtocol::Auto,
        tls: None,
        proxy_protocol: None,
        load_balancing: LoadBalancing::LeastRequest,
        active_health: None,
        passive_health: PassiveHealthCheck {
            consecutive_failures: 5,
            ejection_time: Duration::from_secs(10),
        },
        circuit: CircuitLimits { max_requests: None },
        connect_timeout: Duration::from_secs(5),
    })
}

pub(super) fn forward_to(clusters: &[Arc<Cluster>]) -> Rule {
    let backends = clusters
        .iter()
        .map(|cluster| WeightedBackend {
            weight: 1,
            cluster: Arc::clone(cluster),
        })
        .collect();
    rule(Action::Forward(BackendGroup { backends }))
}

pub(super) fn rule(action: Action) -> Rule {
    Rule {
        route: RouteId::new("default", "test"),
        name: "rules[0]".to_owned(),
        filters: Filters::default(),
        action,
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        tracker: None,
        plain: false,
    }
}

pub(super) fn certificate(names: &[&str]) -> Arc<Certificate> {
    let made = rcgen::generate_simple_self_signed(
        names.iter().map(ToString::to_string).collect::<Vec<_>>(),
    )
    .unwrap();
    let der = made.cert.der().clone();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let mut fingerprint = [0; 32];
    fastrand::fill(&mut fingerprint);
    Arc::new(Certificate {
        key: Arc::new(rustls::sign::CertifiedKey::new(vec![der], key)),
        fingerprint: Fingerprint(fingerprint),
        names: names
            .iter()
            .map(|name| HostPattern::parse(name).unwrap())
            .collect(),
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::UNIX_EPOCH,
        serial: "1".to_owned(),
        issuer: "test".to_owned(),
        origin: CertificateOrigin::SelfSigned,
    })
}

pub(super) fn policy(certificate: Arc<Certificate>) -> TlsMode {
    TlsMode::Terminate(TlsPolicy {
        certificate: Some(certificate),
        min_version: TlsVersion::Tls12,
        client_auth: None,
    })
}

pub(super) fn virtual_host(name: &str, rule: Rule, tls: TlsMode) -> VirtualHost {
    VirtualHost {
        pattern: HostPattern::parse(name).unwrap(),
        route: rule.route.clone(),
        tls,
        plain_http: PlainHttp::Serve,
        hsts: None,
        entries: vec![RouteEntry {
            request: RequestMatch::default(),
            rule: Arc::new(rule),
        }],
        guards_by_path: false,
        plain: Vec::new(),
    }
}

pub(super) fn snapshot(hosts: Vec<VirtualHost>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for host in hosts {
        snapshot.hosts.insert(host.pattern.clone(), Arc::new(host));
    }
    snapshot.hostless = Hostless::of(&snapshot.hosts);
    snapshot
}

#[track_caller]
pub(super) fn status_of(response: &str) -> u16 {
    match response
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
    {
        Some(status) => status,
        None => panic!("no status in {response:?}"),
    }
}
