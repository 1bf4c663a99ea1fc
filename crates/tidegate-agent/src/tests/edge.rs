//! The edge's end of links: everything but what the edge does with them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use tidegate_model::{AgentId, Carrier, Secret};
use tidegate_tunnel::credential::{Claims, Proof, Token};
use tidegate_tunnel::handshake::{self, Authorization, Refusal, Upgrade};
use tidegate_tunnel::link::edge::{self as link, EdgeControl, EdgeLink, LinkFacts, LinkIncoming};
use tidegate_tunnel::websocket::{Role, WebSocketStream};
use tidegate_tunnel::wire::{FromAgent, FromEdge, Mapping, Mappings, Welcome};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::within;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What an edge does that is not like all others.
#[derive(Clone, Default)]
pub(super) struct Ways {
    /// It knows no ALPN of links, as one behind something that opens TLS.
    pub(super) only_websocket: bool,
    /// Answers to the first handshakes instead of 101.
    pub(super) refusals: Arc<Mutex<Vec<(StatusCode, &'static str)>>>,
    /// Its clock goes ahead.
    pub(super) ahead: Duration,
    /// Replicas that links reach, in turns; the last one for all that follow.
    pub(super) replicas: Vec<&'static str>,
    /// How many it says there are; two if None and any are named.
    pub(super) count: Option<u32>,
}

/// An edge that listens.
pub(super) struct Edge {
    pub(super) address: SocketAddr,
    token: Token,
    folder: tempfile::TempDir,
    sessions: mpsc::Receiver<Session>,
    serving: tokio::task::JoinHandle<()>,
}

/// A link of an agent.
pub(super) struct Session {
    pub(super) link: EdgeLink<Body>,
    pub(super) control: EdgeControl,
    pub(super) carrier: Carrier,
    pub(super) authorization: Authorization,
}

/// A CA, and the TLS of a server for `localhost` and 127.0.0.1 that it has certified.
pub(super) fn authority() -> (String, Vec<u8>, ServerConfig) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (issuer.pem(), issuer.der().to_vec(), config)
}

impl Edge {
    pub(super) async fn start(ways: Ways) -> Self {
        let (pem, _, mut tls) = authority();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), pem).unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        if !ways.only_websocket {
            tls.alpn_protocols.push(handshake::ALPN.to_vec());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = Token::generate().unwrap();
        let (sender, sessions) = mpsc::channel(16);
        let serving = tokio::spawn(serve(listener, tls, token.clone(), ways, sender));
        Self {
            address,
            token,
            folder,
            sessions,
            serving,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(super) fn token(&self) -> Secret<String> {
        self.token.text()
    }

    pub(super) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(super) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The next link.
    pub(super) async fn session(&mut self) -> Session {
        within("a link", self.sessions.recv())
            .await
            .expect("the edge serves")
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    token: Token,
    ways: Ways,
    sessions: mpsc::Sender<Session>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let count = Arc::new(Mutex::new(0));
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, token, ways) = (acceptor.clone(), token.clone(), ways.clone());
        let (sessions, count) = (sessions.clone(), Arc::clone(&count));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else {
                return;
            };
            let session = stream.get_ref().1;
            let direct = session.alpn_protocol() == Some(handshake::ALPN);
            let mut binding = [0; handshake::EXPORTER_LENGTH];
            let label = handshake::EXPORTER_LABEL;
            session
                .export_keying_material(&mut binding, label, None)
                .unwrap();
            let service = service_fn(move |mut request: Request<Incoming>| {
                let bound = if direct { binding.to_vec() } else { Vec::new() };
                let judged = judge(&request, &token, &bound, &ways);
                let (sessions, ways) = (sessions.clone(), ways.clone());
                let count = Arc::clone(&count);
                async move {
                    let (upgrade, authorization) = match judged {
                        Ok(judged) => judged,
                        Err(refused) => return Ok::<_, Infallible>(*refused),
                    };
                    let carrier = match upgrade {
                        Upgrade::Direct => Carrier::Direct,
                        Upgrade::WebSocket { .. } => Carrier::WebSocket,
                    };
                    assert_eq!(direct, carrier == Carrier::Direct);
                    let upgraded = hyper::upgrade::on(&mut request);
                    tokio::spawn(async move {
                        let bytes = TokioIo::new(upgraded.await.unwrap());
                        let number = {
                            let mut count = count.lock().unwrap();
                            *count += 1;
                            *count - 1
                        };
                        if carrier == Carrier::WebSocket {
                            let bytes = WebSocketStream::new(bytes, Role::Server);
                            open(bytes, carrier, authorization, number, &ways, sessions).await;
                        } else {
                            open(bytes, carrier, authorization, number, &ways, sessions).await;
                        }
                    });
                    Ok(handshake::accepted(&upgrade, 1).map(|()| Full::default()))
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        });
    }
}

fn judge(
    request: &Request<Incoming>,
    token: &Token,
    binding: &[u8],
    ways: &Ways,
) -> Result<(Upgrade, Authorization), Box<Response<Full<Bytes>>>> {
    let now = SystemTime::now() + ways.ahead;
    let refuse = |status, reason: &str| {
        let refusal = Refusal {
            reason: reason.to_owned(),
            message: "no".to_owned(),
        };
        let mut response = Response::new(Full::from(refusal.body()));
        *response.status_mut() = status;
        let date = HeaderValue::try_from(httpdate::fmt_http_date(now)).unwrap();
        response.headers_mut().insert(header::DATE, date);
        Box::new(response)
    };
    let Some(upgrade) = Upgrade::of(request) else {
        return Err(refuse(StatusCode::NOT_FOUND, "NotFound"));
    };
    let value = request.headers().get(header::AUTHORIZATION).unwrap();
    let authorization = Authorization::parse(value).unwrap().unwrap();
    let claims = Claims {
        version: 1,
        edge: &authorization.edge,
        agent: &authorization.agent,
        instance: &authorization.instance,
        link: authorization.link,
        time: authorization.time,
        nonce: &authorization.nonce,
        binding,
    };
    let proof = Proof::parse(authorization.proof.expose()).unwrap();
    if proof.made_with(&[token.stored_key()], &claims).is_none() {
        return Err(refuse(StatusCode::UNAUTHORIZED, "CredentialRefused"));
    }
    let time = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    if time.abs_diff(authorization.time) > 60 {
        return Err(refuse(StatusCode::UNAUTHORIZED, "ClockSkew"));
    }
    let refusal = ways.refusals.lock().unwrap().pop();
    match refusal {
        Some((status, reason)) => Err(refuse(status, reason)),
        None => Ok((upgrade, authorization)),
    }
}

async fn open<I>(
    io: I,
    carrier: Carrier,
    authorization: Authorization,
    number: usize,
    ways: &Ways,
    sessions: mpsc::Sender<Session>,
) where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let facts = LinkFacts {
        session: format!("session-{number}"),
        agent: AgentId::new("default", "homelab"),
        instance: authorization.instance.clone(),
        link: authorization.link,
    };
    let (link, control, driver) = link::open(io, facts).await.unwrap();
    tokio::spawn(driver);
    let replica = ways
        .replicas
        .get(number)
        .or(ways.replicas.last())
        .copied()
        .unwrap_or("a");
    let welcome = Welcome {
        protocol: 1,
        edge_version: "test".to_owned(),
        replica: replica.to_owned(),
        replicas: ways
            .count
            .unwrap_or(if ways.replicas.is_empty() { 1 } else { 2 }),
        session: format!("session-{number}"),
    };
    control.to_agent.send(welcome.into()).await.unwrap();
    let _ = sessions
        .send(Session {
            link,
            control,
            carrier,
            authorization,
        })
        .await;
}

/// An id made of a number.
pub(super) fn id(number: u64) -> String {
    format!("{number:016x}")
}

pub(super) fn mapping(number: u64, target: &str) -> Mapping {
    Mapping {
        id: id(number),
        target: target.to_owned(),
        ..Mapping::default()
    }
}

pub(super) fn empty() -> Body {
    Full::default().boxed_unsync()
}

pub(super) fn full(text: &'static str) -> Body {
    Full::from(text).boxed_unsync()
}

impl Session {
    /// Tells of the mappings and waits until the agent has taken them over; returns what it refuses.
    pub(super) async fn map(&mut self, mappings: Vec<Mapping>) -> Vec<String> {
        let told = Mappings {
            version: 7,
            mappings,
        };
        self.tell(told).await;
        let ready = self
            .hears(|message| match message {
                FromAgent::MappingsReady(ready) if ready.version == 7 => Some(ready),
                _ => None,
            })
            .await;
        ready
            .refused
            .into_iter()
            .map(|refused| refused.reason)
            .collect()
    }

    pub(super) async fn tell(&self, message: impl Into<FromEdge>) {
        self.control.to_agent.send(message.into()).await.unwrap();
    }

    /// The first message that fits; others are passed over.
    pub(super) async fn hears<T>(&mut self, fits: impl Fn(FromAgent) -> Option<T>) -> T {
        within("a message of the agent", async {
            loop {
                let message = self
                    .control
                    .from_agent
                    .recv()
                    .await
                    .expect("the link lives");
                if let Some(found) = fits(message) {
                    return found;
                }
            }
        })
        .await
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Response<LinkIncoming> {
        let sent = within("an answer", self.link.try_send(request)).await;
        sent.unwrap_or_else(|failed| panic!("{failed:?}"))
    }

    /// A GET of a visitor; status, error of the tunnel, text.
    pub(super) async fn get(&self, number: u64, path: &str) -> (u16, String, String) {
        let uri = format!("https://nas.example.com{path}");
        let request = Request::builder()
            .uri(uri)
            .header(handshake::MAPPING, id(number));
        text(self.send(request.body(empty()).unwrap()).await).await
    }
}

pub(super) async fn text(response: Response<LinkIncoming>) -> (u16, String, String) {
    let error = response.headers().get(handshake::ERROR);
    let error = error
        .map(|error| error.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let status = response.status().as_u16();
    let body = within("a body", response.into_body().collect())
        .await
        .unwrap();
    (
        status,
        error,
        String::from_utf8(body.to_bytes().to_vec()).unwrap(),
    )
}
