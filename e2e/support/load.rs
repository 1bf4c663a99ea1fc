//! A steady load on one host while what serves it changes: everything asked is counted, every failure kept.
//!
//! ```text
//! let load = Load::start(address, "blog.example.com", root);
//! update();
//! let report = load.stop();       // report.failures, report.told
//! ```
//!
//! Most requests come on connections of their own with a full handshake and a verified certificate, as a page's first
//! one does; a few clients keep their connections and have to be told to go before these end. A gentle load has the former
//! alone, and fewer of them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::Client;

/// Between two new connections.
const FRESH: Duration = Duration::from_millis(33);
/// Between two requests of a client that keeps its connection.
const KEPT: Duration = Duration::from_millis(50);
/// The same of a gentle load.
const GENTLE: Duration = Duration::from_millis(100);
/// Clients that keep their HTTP/1.1 connection.
const KEEPERS: usize = 2;
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

type Body = Empty<Bytes>;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Requests on connections of their own.
    pub(crate) fresh: u32,
    /// Requests on kept connections, by both protocols.
    pub(crate) kept: u32,
    /// HTTP/1.1 connections whose last answer said so.
    pub(crate) told: u32,
    /// HTTP/1.1 connections that ended while nothing was asked.
    pub(crate) ended: u32,
    /// HTTP/2 connections that ended with GOAWAY.
    pub(crate) went_away: u32,
    /// The slowest request.
    pub(crate) slowest: Duration,
    /// When, since the start, and why.
    pub(crate) failures: Vec<(Duration, String)>,
}

/// A running load.
pub(crate) struct Load {
    stop: CancellationToken,
    thread: JoinHandle<Report>,
}

/// Whom to ask.
struct Target {
    address: SocketAddr,
    host: String,
    connector: [TlsConnector; 2],
    since: Instant,
    report: Mutex<Report>,
}

impl Load {
    /// Begins; `root` is what the host's certificate is verified with, in PEM.
    pub(crate) fn start(address: SocketAddr, host: &str, root: &str) -> Self {
        Self::run(address, host, root, false)
    }

    /// The same for a host that is not the only one.
    pub(crate) fn start_gently(address: SocketAddr, host: &str, root: &str) -> Self {
        Self::run(address, host, root, true)
    }

    fn run(address: SocketAddr, host: &str, root: &str, gentle: bool) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let connector = ["http/1.1", "h2"].map(|protocol| {
            let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(Client::roots(root.as_bytes()))
                .with_no_client_auth();
            config.resumption = rustls::client::Resumption::disabled();
            config.alpn_protocols = vec![protocol.into()];
            TlsConnector::from(Arc::new(config))
        });
        let target = Arc::new(Target {
            address,
            host: host.to_owned(),
            connector,
            since: Instant::now(),
            report: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(run(&target, gentle, until));
            let mut report = target.report();
            std::mem::take(&mut *report)
        });
        Self { stop, thread }
    }

    /// Ends when everything asked is answered.
    pub(crate) fn stop(self) -> Report {
        self.stop.cancel();
        self.thread.join().unwrap()
    }
}

impl Report {
    /// Nothing failed, and enough was asked to tell.
    #[track_caller]
    pub(crate) fn assert_well(&self, when: &str) {
        let mut failures = String::new();
        for (at, why) in &self.failures {
            let _ = write!(failures, "\n  {at:?}: {why}");
        }
        let summary = format!(
            "{when}: {} requests on new connections, {} on kept ones ({} told to close, {} ended idle, {} sent GOAWAY), slowest {:?}, {} failed",
            self.fresh,
            self.kept,
            self.told,
            self.ended,
            self.went_away,
            self.slowest,
            self.failures.len()
        );
        eprintln!("{summary}");
        assert!(self.failures.is_empty(), "{summary}:{failures}");
        assert!(self.fresh > 50, "{summary}");
    }
}

async fn run(target: &Arc<Target>, gentle: bool, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    if !gentle {
        for _ in 0..KEEPERS {
            tasks.spawn(keep(Arc::clone(target), stop.clone()));
        }
        tasks.spawn(keep_h2(Arc::clone(target), stop.clone()));
    }
    let mut pace = interval(if gentle { GENTLE } else { FRESH });
    while stop.run_until_cancelled(pace.tick()).await.is_some() {
        let target = Arc::clone(target);
        tasks.spawn(async move {
            let outcome = target.timed(target.once()).await;
            target.report().fresh += 1;
            target.note(outcome);
        });
    }
    tasks.close();
    tasks.wait().await;
}

/// A clock that a slow machine does not make run faster afterwards.
fn interval(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// One HTTP/1.1 client after the other.
async fn keep(target: Arc<Target>, stop: CancellationToken) {
    let mut pace = interval(KEPT);
    while !stop.is_cancelled() {
        let opened = target.timed(target.open()).await;
        let Ok(mut sender) = opened else {
            target.note(opened.map(drop));
            continue;
        };
        while stop.run_until_cancelled(pace.tick()).await.is_some() {
            if sender.ready().await.is_err() {
                target.report().ended += 1;
                break;
            }
            let answered = async {
                let answer = sender.send_request(target.request(Version::HTTP_11)).await;
                read(answer).await
            };
            let outcome = target.timed(answered).await;
            target.report().kept += 1;
            match outcome {
                Ok(head) if says_close(&head) => {
                    target.report().told += 1;
                    break;
                }
                Ok(_) => {}
                Err(why) => {
                    target.note(Err(why));
                    break;
                }
            }
        }
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONNECTION)
        .is_some_and(|value| value == "close")
}

/// One HTTP/2 client after the other. What a GOAWAY overtakes was not taken, and is asked again as browsers do.
async fn keep_h2(target: Arc<Target>, stop: CancellationToken) {
    let mut pace = interval(KEPT);
    let mut again = false;
    while !stop.is_cancelled() {
        let opened = target.timed(target.open_h2()).await;
        let Ok(mut sender) = opened else {
            target.note(opened.map(drop));
            continue;
        };
        loop {
            if !again && stop.run_until_cancelled(pace.tick()).await.is_none() {
                return;
            }
            if sender.ready().await.is_err() {
                target.report().went_away += 1;
                break;
            }
            let answered = async {
                let answer = sender.send_request(target.request(Version::HTTP_2)).await;
                read(answer).await
            };
            let outcome = target.timed(answered).await;
            if outcome.is_err() && !again && sender.is_closed() {
                again = true;
                target.report().went_away += 1;
                break;
            }
            again = false;
            target.report().kept += 1;
            target.note(outcome.map(drop));
        }
    }
}

impl Target {
    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            let at = self.since.elapsed();
            self.report().failures.push((at, why));
        }
    }

    async fn timed<T>(&self, asking: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let begun = Instant::now();
        let outcome = tokio::time::timeout(PATIENCE, asking).await;
        let mut report = self.report();
        report.slowest = report.slowest.max(begun.elapsed());
        drop(report);
        outcome.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }

    async fn connect(&self, h2: bool) -> Result<TlsStream<TcpStream>, String> {
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.map_err(|error| format!("connect: {error}"))?;
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(self.host.clone()).unwrap();
        let connected = self.connector[usize::from(h2)].connect(name, stream).await;
        connected.map_err(|error| format!("handshake: {error}"))
    }

    fn request(&self, version: Version) -> Request<Body> {
        let request = Request::get(format!("https://{}/", self.host)).version(version);
        let request = request.header(http::header::HOST, &self.host);
        let mut request = request.body(Empty::new()).unwrap();
        if version == Version::HTTP_11 {
            *request.uri_mut() = "/".parse().unwrap();
        } else {
            request.headers_mut().clear();
        }
        request
    }

    async fn open(&self) -> Result<http1::SendRequest<Body>, String> {
        let stream = TokioIo::new(self.connect(false).await?);
        let (sender, connection) = http1::handshake(stream)
            .await
            .map_err(|error| said(&error))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn open_h2(&self) -> Result<http2::SendRequest<Body>, String> {
        let stream = TokioIo::new(self.connect(true).await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(|error| said(&error))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// A request on a connection of its own.
    async fn once(&self) -> Result<(), String> {
        let mut sender = self.open().await?;
        let mut request = self.request(Version::HTTP_11);
        let close = http::HeaderValue::from_static("close");
        request
            .headers_mut()
            .insert(http::header::CONNECTION, close);
        read(sender.send_request(request).await).await.map(drop)
    }
}

/// Reads an answer to its end and returns its header.
async fn read(
    answer: Result<http::Response<hyper::body::Incoming>, hyper::Error>,
) -> Result<HeaderMap, String> {
    let (head, body) = answer.map_err(|error| said(&error))?.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|error| said(&error))?
        .to_bytes();
    if head.status == 200 {
        Ok(head.headers)
    } else {
        let body = String::from_utf8_lossy(&body);
        Err(format!("{} {body}", head.status))
    }
}

fn said(error: &hyper::Error) -> String {
    tidegate_telemetry::chain(error).to_string()
}
