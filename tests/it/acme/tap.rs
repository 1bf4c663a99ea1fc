//! A tap on the way to the authority: sees every exchange, and can act before or after one of them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::Authority;
use crate::support::Client;

/// One exchange: when the request came, method, path, status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) at: SystemTime,
    pub(crate) method: String,
    pub(crate) path: String,
    /// None while it is under way.
    pub(crate) status: Option<u16>,
}

/// When to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Before the authority sees the request.
    Before,
    /// After the authority has answered, before the client sees it.
    After,
}

type Action = Box<dyn FnOnce() + Send>;

/// What the tap does to every exchange whose path contains a text.
#[derive(Clone)]
enum Meddling {
    /// Answers in place of the authority.
    Answer {
        status: u16,
        retry_after: Option<String>,
        body: String,
    },
    /// Replaces a header field of the authority's answer.
    Header(&'static str, String),
}

#[derive(Default)]
struct State {
    exchanges: Vec<Exchange>,
    actions: Vec<(At, When, Action)>,
    /// What paths contain that the authority does not offer here.
    missing: Option<&'static str>,
    meddlings: Vec<(String, Meddling)>,
}

/// At which exchange to act.
enum At {
    /// The one of this number.
    Index(usize),
    /// The first whose path contains this.
    Path(&'static str),
}

impl State {
    fn act(&mut self, index: usize, when: When) {
        let Some(exchange) = self.exchanges.get(index) else {
            return;
        };
        let due = self.actions.iter().position(|(at, wanted, _)| {
            let here = match at {
                At::Index(at) => *at == index,
                At::Path(path) => exchange.path.contains(path),
            };
            here && *wanted == when
        });
        if let Some(due) = due {
            let (_, _, action) = self.actions.swap_remove(due);
            action();
        }
    }
}

/// A running tap. Ends with the test.
#[derive(Clone)]
pub(crate) struct Tap {
    state: Arc<Mutex<State>>,
    pub(crate) port: u16,
}

impl Tap {
    /// Listens on a port of its own, with the authority's certificate.
    pub(crate) fn start(authority: &Authority) -> Self {
        let chain = CertificateDer::pem_file_iter(authority.file("server.pem"))
            .unwrap()
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_file(authority.file("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let roots = Client::roots(&fs::read(authority.file("ca.pem")).unwrap());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let tap = Self {
            port: listener.local_addr().unwrap().port(),
            state: Arc::default(),
        };
        let (state, target) = (Arc::clone(&tap.state), authority.port);
        std::thread::spawn(move || {
            crate::support::client::block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let acceptor = TlsAcceptor::from(Arc::new(server));
                let connector = TlsConnector::from(Arc::new(client));
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, connector) = (acceptor.clone(), connector.clone());
                    let state = Arc::clone(&state);
                    tokio::spawn(async move {
                        let Ok(stream) = acceptor.accept(stream).await else {
                            return;
                        };
                        let service = service_fn(move |request| {
                            pass(request, target, connector.clone(), Arc::clone(&state))
                        });
                        // A client that was killed is no failure of the tap.
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
            });
        });
        tap
    }

    /// Acts once, at the exchange of this number since it last forgot.
    pub(crate) fn act_at(&self, index: usize, when: When, action: impl FnOnce() + Send + 'static) {
        self.add(At::Index(index), when, Box::new(action));
    }

    /// Acts once, at the next exchange whose path contains this. Nothing can be asked of the tap meanwhile.
    pub(crate) fn act_on(
        &self,
        path: &'static str,
        when: When,
        action: impl FnOnce() + Send + 'static,
    ) {
        self.add(At::Path(path), when, Box::new(action));
    }

    fn add(&self, at: At, when: When, action: Action) {
        self.state.lock().unwrap().actions.push((at, when, action));
    }

    /// Answers 404 to everything whose path contains this, as authorities do that do not offer it.
    pub(crate) fn hide(&self, path: &'static str) {
        self.state.lock().unwrap().missing = Some(path);
    }

    /// Answers in place of the authority wherever the path contains the text.
    pub(crate) fn answer(&self, path: &str, status: u16, retry_after: Option<&str>, body: &str) {
        let answer = Meddling::Answer {
            status,
            retry_after: retry_after.map(str::to_owned),
            body: body.to_owned(),
        };
        self.meddle(path, answer);
    }

    /// Replaces a header field of the authority's answers wherever the path contains the text.
    pub(crate) fn set_header(&self, path: &str, name: &'static str, value: &str) {
        self.meddle(path, Meddling::Header(name, value.to_owned()));
    }

    fn meddle(&self, path: &str, meddling: Meddling) {
        let mut state = self.state.lock().unwrap();
        state.meddlings.push((path.to_owned(), meddling));
    }

    /// Meddles with nothing any more.
    pub(crate) fn let_through(&self) {
        self.state.lock().unwrap().meddlings.clear();
    }

    /// Forgets what it saw.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock().unwrap();
        *state = State {
            missing: state.missing,
            ..State::default()
        };
    }

    /// What it saw.
    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.state.lock().unwrap().exchanges.clone()
    }

    /// How many different paths that contain the text were answered with this status.
    pub(crate) fn distinct(&self, path: &str, status: u16) -> usize {
        let paths: BTreeSet<String> = self
            .exchanges()
            .into_iter()
            .filter(|exchange| exchange.path.contains(path) && exchange.status == Some(status))
            .map(|exchange| exchange.path)
            .collect();
        paths.len()
    }

    /// How many exchanges of this method whose path contains the text were answered with this status.
    pub(crate) fn count(&self, path: &str, status: u16) -> usize {
        self.exchanges()
            .iter()
            .filter(|exchange| exchange.path.contains(path) && exchange.status == Some(status))
            .count()
    }
}

async fn pass(
    request: Request<Incoming>,
    target: u16,
    connector: TlsConnector,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let (index, missing, meddlings) = {
        let mut state = state.lock().unwrap();
        state.exchanges.push(Exchange {
            at: SystemTime::now(),
            method: request.method().to_string(),
            path: path.clone(),
            status: None,
        });
        let index = state.exchanges.len() - 1;
        state.act(index, When::Before);
        let missing = state.missing.is_some_and(|missing| path.contains(missing));
        let mut meddlings = state.meddlings.clone();
        meddlings.retain(|(part, _)| path.contains(part));
        (index, missing, meddlings)
    };
    let refused = |status: u16, why: String| {
        let builder = Response::builder().status(status);
        builder.body(Full::from(why)).unwrap()
    };
    let own = meddlings.iter().find_map(|(_, meddling)| own(meddling));
    let mut response = match own {
        Some(own) => own,
        None if missing => refused(404, "not here".to_owned()),
        None => forward(request, target, connector)
            .await
            .unwrap_or_else(|error| refused(502, error)),
    };
    for (_, meddling) in meddlings {
        if let Meddling::Header(name, value) = meddling {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    let mut state = state.lock().unwrap();
    if let Some(exchange) = state.exchanges.get_mut(index) {
        exchange.status = Some(response.status().as_u16());
    }
    state.act(index, When::After);
    Ok(response)
}

/// The answer in place of the authority's, if that is what is done.
fn own(meddling: &Meddling) -> Option<Response<Full<Bytes>>> {
    let Meddling::Answer {
        status,
        retry_after,
        body,
    } = meddling
    else {
        return None;
    };
    let kind = if body.starts_with('{') {
        "application/problem+json"
    } else {
        "text/html"
    };
    let mut response = Response::builder()
        .status(*status)
        .header("content-type", kind);
    if let Some(value) = retry_after {
        response = response.header("retry-after", value);
    }
    Some(response.body(Full::from(body.clone())).unwrap())
}

/// The URLs in the authority's answers follow the Host field, so they lead here again.
async fn forward(
    request: Request<Incoming>,
    target: u16,
    connector: TlsConnector,
) -> Result<Response<Full<Bytes>>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect(("127.0.0.1", target))
        .await
        .map_err(|error| text(&error))?;
    let name = ServerName::try_from("localhost").map_err(|error| text(&error))?;
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| text(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| text(&error))?;
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse::<Uri>().map_err(|error| text(&error))?;
    let body = body.collect().await.map_err(|error| text(&error))?;
    let request = Request::from_parts(parts, Full::new(body.to_bytes()));
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| text(&error))?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| text(&error))?;
    Ok(Response::from_parts(parts, Full::new(body.to_bytes())))
}
