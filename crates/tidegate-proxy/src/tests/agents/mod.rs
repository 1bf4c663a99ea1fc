//! Agents over real sockets: handshakes are written as bytes, links are served by the crate's own agent end, and what
//! answers on them is the test's.

mod handshakes;
mod lives;
mod ports;
mod replica_lives;
mod replicas;
mod requests;
mod streams;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::mpsc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use tidegate_model::{Agent, AgentId, AgentTarget, Mapping, MappingId, ObservedAgent, StoredKey};
use tidegate_tunnel::credential::{Claims, Token};
use tidegate_tunnel::handshake::{self, Authorization, Upgrade};
use tidegate_tunnel::link::agent::{self as link, AgentLink, Incoming};
use tidegate_tunnel::websocket::{Role, WebSocketStream};
use tidegate_tunnel::wire::{DrainDone, FromAgent, FromEdge, Hello, MappingsReady};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc::Sender;

use super::tls::roots;
use super::*;

pub(super) type AgentBody = UnsyncBoxBody<Bytes, Infallible>;
type Io = Box<dyn Stream>;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How an agent dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// TLS with its own ALPN.
    Direct,
    /// WebSocket in TLS.
    WebSocket,
    /// WebSocket in plain HTTP.
    Plain,
}

/// An edge with one agent, which has one mapping.
struct Rig {
    edge: TestEdge,
    certificate: Arc<Certificate>,
    token: Token,
    /// The process of agents that connect from now on.
    instance: String,
    /// Of agents; they must answer while the test's thread waits.
    runtime: tokio::runtime::Runtime,
}

/// A connected agent.
struct TestAgent {
    link: AgentLink,
    to_edge: Sender<FromAgent>,
    /// What the edge said, but for what is answered here: mappings and drains.
    said: mpsc::Receiver<FromEdge>,
    ended: tokio::task::JoinHandle<tidegate_tunnel::link::LinkError>,
}

fn agent_id() -> AgentId {
    AgentId::new("default", "homelab")
}

fn mapping_id() -> MappingId {
    MappingId::from_hash([7; 8])
}

fn mapping() -> Arc<Mapping> {
    Arc::new(Mapping {
        id: mapping_id(),
        target: AgentTarget::parse("http://192.168.1.20:8123").unwrap(),
        protocol: UpstreamProtocol::Auto,
        tls: None,
        proxy_protocol: None,
        connect_timeout: Duration::from_secs(5),
        names: vec!["default/app".to_owned()],
    })
}

fn agent_with(keys: Vec<StoredKey>) -> Agent {
    Agent {
        id: agent_id(),
        keys,
        suspended: false,
        mappings: vec![mapping()],
        verdicts: Vec::new(),
        hold: PATIENCE,
        probe_interval: None,
    }
}

fn behind_agent() -> Arc<Cluster> {
    let mut cluster = Cluster::clone(&cluster(([127, 0, 0, 1], 1).into()));
    cluster.key = ClusterKey("agent".into());
    cluster.name = "homelab".to_owned();
    cluster.target = Target::Agent {
        agent: agent_id(),
        mapping: mapping_id(),
    };
    Arc::new(cluster)
}

impl Rig {
    fn new() -> Self {
        Self::with(forward_to(&[behind_agent()]), |_| {})
    }

    fn with(rule: Rule, change: impl FnOnce(&mut Settings)) -> Self {
        let certificate = certificate(&[HOST]);
        let tls = policy(Arc::clone(&certificate));
        // Longer than any test: who waits is to see the agent come.
        let hosts = vec![virtual_host(HOST, rule, tls)];
        Self::hosts(hosts, certificate, PATIENCE, change)
    }

    /// Visitors wait so long for the agent.
    fn holding(hold: Duration) -> Self {
        let certificate = certificate(&[HOST]);
        let tls = policy(Arc::clone(&certificate));
        let rule = forward_to(&[behind_agent()]);
        Self::hosts(
            vec![virtual_host(HOST, rule, tls)],
            certificate,
            hold,
            |_| {},
        )
    }

    fn hosts(
        hosts: Vec<VirtualHost>,
        certificate: Arc<Certificate>,
        hold: Duration,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let rig = Self {
            edge: TestEdge::start_hosts(hosts, |settings| {
                // Whose link ends on which worker must not matter.
                settings.workers = std::num::NonZeroUsize::new(2).unwrap();
                change(settings);
            }),
            certificate,
            token: Token::generate().unwrap(),
            instance: "ab".repeat(16),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
        };
        rig.publish(Some(Agent {
            hold,
            ..agent_with(vec![rig.token.stored_key()])
        }));
        rig
    }

    /// The same hosts with another agent.
    fn publish(&self, agent: Option<Agent>) {
        let before = self.edge.store.load_full();
        let mut next = Snapshot {
            hosts: before.snapshot.hosts.clone(),
            ..Snapshot::default()
        };
        let agents = agent.into_iter().map(|it| (it.id.clone(), Arc::new(it)));
        next.agents = agents.collect::<BTreeMap<_, _>>();
        self.edge.store.publish(next);
    }

    async fn dial(&self, way: Way) -> Io {
        let to = match way {
            Way::Plain => self.edge.http,
            _ => self.edge.https,
        };
        let tcp = tokio::net::TcpStream::connect(to).await.unwrap();
        if way == Way::Plain {
            return Box::new(tcp);
        }
        let mut config = rustls::ClientConfig::clone(&tls::client(roots(&[&self.certificate])));
        config.alpn_protocols = match way {
            Way::Direct => vec![handshake::ALPN.to_vec()],
            _ => vec![b"http/1.1".to_vec()],
        };
        let name = HOST.try_into().unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        Box::new(connector.connect(name, tcp).await.unwrap())
    }

    /// Dials; TLS tells the binding.
    async fn dial_bound(&self, way: Way) -> (Io, Vec<u8>) {
        if way != Way::Direct {
            return (self.dial(way).await, Vec::new());
        }
        let tcp = tokio::net::TcpStream::connect(self.edge.https)
            .await
            .unwrap();
        let mut config = rustls::ClientConfig::clone(&tls::client(roots(&[&self.certificate])));
        config.alpn_protocols = vec![handshake::ALPN.to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tls = connector
            .connect(HOST.try_into().unwrap(), tcp)
            .await
            .unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(handshake::ALPN));
        let binding = tls
            .get_ref()
            .1
            .export_keying_material(
                [0; handshake::EXPORTER_LENGTH],
                handshake::EXPORTER_LABEL,
                Some(&[]),
            )
            .unwrap();
        (Box::new(tls), binding.to_vec())
    }

    fn authorization(&self, binding: &[u8]) -> Authorization {
        let mut authorization = Authorization {
            edge: HOST.to_owned(),
            agent: agent_id().to_string(),
            instance: self.instance.clone(),
            link: 0,
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs(),
            nonce: format!("{:032x}", fastrand::u128(..)),
            proof: tidegate_model::Secret::new(String::new()),
        };
        sign(&mut authorization, &self.token, binding);
        authorization
    }

    /// Connects an agent whose requests the function answers.
    fn connect<F, R>(&self, way: Way, answer: F) -> TestAgent
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<AgentBody>> + Send + 'static,
    {
        let agent = self.runtime.block_on(async {
            let (mut io, binding) = self.dial_bound(way).await;
            let authorization = self.authorization(&binding);
            let upgrade = match way {
                Way::Direct => Upgrade::Direct,
                _ => Upgrade::websocket(),
            };
            let request = handshake::request(HOST, &upgrade, &authorization).unwrap();
            let answered = shake(&mut io, &request).await;
            assert_eq!(handshake::check_answer(&upgrade, &answered), Ok(1));
            let instance = authorization.instance;
            match way {
                Way::Direct => serve(io, instance, answer),
                _ => serve(WebSocketStream::new(io, Role::Client), instance, answer),
            }
        });
        eventually("the link is in use", || {
            let mine = |it: &ObservedAgent| it.sessions.iter().any(|it| !it.draining);
            let clusters = self.edge.edge.observe().clusters;
            self.agents().iter().any(mine) && clusters.iter().any(|it| !it.endpoints.is_empty())
        });
        agent
    }

    /// Waits until requests have a way to the agent.
    fn sees_a_link(&self) {
        eventually("there is a link", || {
            let clusters = self.edge.edge.observe().clusters;
            clusters.iter().any(|it| !it.endpoints.is_empty())
        });
    }

    fn agents(&self) -> Vec<ObservedAgent> {
        self.edge.edge.observe().agents
    }

    fn sessions(&self) -> usize {
        self.agents().iter().map(|it| it.sessions.len()).sum()
    }
}

/// The proof over what the authorization says.
fn sign(authorization: &mut Authorization, token: &Token, binding: &[u8]) {
    let proof = token.prove(&Claims {
        version: 1,
        edge: &authorization.edge,
        agent: &authorization.agent,
        instance: &authorization.instance,
        link: authorization.link,
        time: authorization.time,
        nonce: &authorization.nonce,
        binding,
    });
    authorization.proof = proof.text();
}

/// Writes a request and reads the head of the answer.
async fn shake(io: &mut Io, request: &Request<()>) -> Response<()> {
    let mut text = format!("GET {} HTTP/1.1\r\n", request.uri());
    for (name, value) in request.headers() {
        write!(text, "{name}: {}\r\n", value.to_str().unwrap()).unwrap();
    }
    io.write_all(format!("{text}\r\n").as_bytes())
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut fields);
    parsed.parse(&head).unwrap();
    let mut response = Response::builder().status(parsed.code.unwrap());
    for field in &*parsed.headers {
        response = response.header(field.name, field.value);
    }
    response.body(()).unwrap()
}

fn serve<S, F, R>(io: S, instance: String, answer: F) -> TestAgent
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<AgentBody>> + Send + 'static,
{
    let hello = Hello {
        version: "0.9.0".to_owned(),
        instance,
        ..Hello::default()
    };
    let (mut control, driver) = link::serve(io, hello, answer);
    let ended = tokio::spawn(driver);
    let (tell, said) = mpsc::channel();
    let to_edge = control.to_edge.clone();
    tokio::spawn(async move {
        while let Some(message) = control.from_edge.recv().await {
            let answer: Option<FromAgent> = match &message {
                FromEdge::Mappings(mappings) => Some(
                    MappingsReady {
                        version: mappings.version,
                        refused: Vec::new(),
                    }
                    .into(),
                ),
                FromEdge::Drain(_) => Some(DrainDone {}.into()),
                _ => None,
            };
            // The test may be over.
            let _ = tell.send(message);
            if let Some(answer) = answer {
                let _ = to_edge.send(answer).await;
            }
        }
    });
    TestAgent {
        link: control.link,
        to_edge: control.to_edge,
        said,
        ended,
    }
}

impl TestAgent {
    /// Waits for something that the edge says.
    #[track_caller]
    fn hears<T>(&self, wanted: impl Fn(FromEdge) -> Option<T>) -> T {
        loop {
            let said = self.said.recv_timeout(PATIENCE).expect("the edge says it");
            if let Some(found) = wanted(said) {
                return found;
            }
        }
    }
}

/// Answers with what was asked.
async fn describe(request: Request<Incoming>) -> Response<AgentBody> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        writeln!(text, "{name}: {}", value.to_str().unwrap()).unwrap();
    }
    write!(text, "\n{}", String::from_utf8_lossy(&body)).unwrap();
    Response::new(full(text))
}

fn full(text: impl Into<Bytes>) -> AgentBody {
    Full::new(text.into()).boxed_unsync()
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}
