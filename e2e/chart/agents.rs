//! An edge with two replicas is rolled while agents serve through it: short requests do not fail, and what lasts longer
//! has the time to end.
//!
//! ```text
//! visitors ─► the Service's port of the node ─► old and new replicas ─┐
//! "localhost" here ─ relay ─► the same port ◄─ agents of this machine ┴─► services of this machine
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::release::import_image;
use super::updates::{self, Installed};
use crate::support::chart::{self, folder, helm};
use crate::support::operator::{agent, agent_token};
use crate::support::program;
use crate::support::{Client, Kubectl, Load, Node, Origin, Program, eventually};

const PATIENCE: Duration = Duration::from_mins(2);
/// Of an agent with two links, as agents have them.
const APP: &str = "app.home.example.com";
const FILE: &str = "file.home.example.com";
const TALK: &str = "talk.home.example.com";
/// Of an agent with one link: at one of the replicas each request is passed on to the other.
const CELLAR: &str = "cellar.example.com";
/// Bytes of a download in each turn.
const PIECE: usize = 4096;

/// The services at home, and the way to the edge.
struct Home {
    runtime: Runtime,
    app: Origin,
    file: SocketAddr,
    talk: SocketAddr,
    /// Bytes of downloads that were sent.
    sent: Arc<AtomicU64>,
    /// Ends downloads.
    enough: CancellationToken,
}

impl Home {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let bind = || runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (file, talk) = (bind(), bind());
        let (sent, enough) = (Arc::<AtomicU64>::default(), CancellationToken::new());
        let home = Self {
            app: Origin::text("at home"),
            file: file.local_addr().unwrap(),
            talk: talk.local_addr().unwrap(),
            sent: Arc::clone(&sent),
            enough: enough.clone(),
            runtime,
        };
        home.runtime.spawn(async move {
            while let Ok((stream, _)) = file.accept().await {
                tokio::spawn(send_file(stream, Arc::clone(&sent), enough.clone()));
            }
        });
        home.runtime.spawn(async move {
            while let Ok((stream, _)) = talk.accept().await {
                tokio::spawn(async move {
                    // The edge looks now and then whether somebody is there.
                    let Ok(mut talk) = tokio_tungstenite::accept_async(stream).await else {
                        return;
                    };
                    while let Some(Ok(message)) = talk.next().await {
                        if message.is_text() && talk.send(message).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        home
    }

    /// A port of this machine's loopback that leads there.
    fn relay(&self, to: SocketAddr) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0");
        let listener = self.runtime.block_on(listener).unwrap();
        let port = listener.local_addr().unwrap().port();
        self.runtime.spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(mut there) = TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    }
                });
            }
        });
        port
    }
}

/// Answers with pieces until it is enough. In chunks, so that whoever reads knows whether it has all.
async fn send_file(mut stream: TcpStream, sent: Arc<AtomicU64>, enough: CancellationToken) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    // The edge looks now and then whether somebody is there.
    if !head.starts_with(b"GET /long ") {
        let nothing = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(nothing).await;
        return;
    }
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(answer).await.unwrap();
    let mut chunk = format!("{PIECE:x}\r\n").into_bytes();
    chunk.resize(chunk.len() + PIECE, b'x');
    chunk.extend_from_slice(b"\r\n");
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    while enough.run_until_cancelled(pace.tick()).await.is_some() {
        if stream.write_all(&chunk).await.is_err() {
            return;
        }
        sent.fetch_add(PIECE as u64, Ordering::SeqCst);
    }
    let _ = stream.write_all(b"0\r\n\r\n").await;
}

/// Somebody outside.
struct Visitor {
    edge: SocketAddr,
    connector: TlsConnector,
}

impl Visitor {
    fn new(edge: SocketAddr, root: &str) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Client::roots(root.as_bytes()))
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        Self { edge, connector }
    }

    async fn connect(&self, host: &str) -> Result<TlsStream<TcpStream>, String> {
        let stream = TcpStream::connect(self.edge).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let connected = self.connector.connect(name, stream).await;
        connected.map_err(|error| error.to_string())
    }

    async fn get(&self, host: &str, path: &str) -> Result<http::Response<Incoming>, String> {
        let stream = TokioIo::new(self.connect(host).await?);
        let said = |error: hyper::Error| error.to_string();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(said)?;
        tokio::spawn(connection);
        let request = Request::get(path).header("host", host);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.map_err(said)?;
        if answer.status() == 200 {
            Ok(answer)
        } else {
            Err(answer.status().to_string())
        }
    }

    async fn page(&self, host: &str) -> Result<(), String> {
        let answer = self.get(host, "/").await?.into_body().collect().await;
        let body = answer.map_err(|error| error.to_string())?.to_bytes();
        if body == "at home" {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&body).into_owned())
        }
    }

    /// How many bytes a download has brought when it was over; counts while it goes on.
    async fn download(&self, arrived: Arc<AtomicU64>) -> Result<u64, String> {
        let mut body = self.get(FILE, "/long").await?.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| format!("{error}; {arrived:?} bytes had come"))?;
            let length = frame.data_ref().map_or(0, Bytes::len);
            arrived.fetch_add(length as u64, Ordering::SeqCst);
        }
        Ok(arrived.load(Ordering::SeqCst))
    }

    async fn talk(&self) -> WebSocketStream<TlsStream<TcpStream>> {
        let stream = self.connect(TALK).await.unwrap();
        let (talk, _) = tokio_tungstenite::client_async(format!("wss://{TALK}/"), stream)
            .await
            .unwrap();
        talk
    }
}

async fn says_back(talk: &mut WebSocketStream<TlsStream<TcpStream>>, text: &str) {
    talk.send(Message::text(text)).await.unwrap();
    let said = talk.next().await.unwrap().unwrap();
    assert_eq!(said.into_text().unwrap().as_str(), text);
}

fn tunnel_agents(home: &Home) -> String {
    let (app, file, talk) = (home.app.address(), home.file, home.talk);
    format!(
        "\
apiVersion: edge.tidegate.dev/v1alpha1
kind: TunnelAgent
metadata: {{name: homelab}}
spec:
  credential: {{secretName: homelab-agent}}
  allowedHostnames: [\"*.home.example.com\", localhost]
  mappings:
  - {{name: app, hostname: {APP}, target: \"http://{app}\"}}
  - {{name: file, hostname: {FILE}, target: \"http://{file}\"}}
  - {{name: talk, hostname: {TALK}, target: \"http://{talk}\"}}
  - {{name: dial, hostname: localhost, target: \"http://{app}\"}}
---
apiVersion: edge.tidegate.dev/v1alpha1
kind: TunnelAgent
metadata: {{name: cellar}}
spec:
  credential: {{secretName: cellar-agent}}
  allowedHostnames: [{CELLAR}]
  mappings: [{{name: app, hostname: {CELLAR}, target: \"http://{app}\"}}]
"
    )
}

/// The release's pods: name, address, whether it is about to end.
fn pods(kubectl: &Kubectl, namespace: &str) -> Vec<(String, String, bool)> {
    let list = ["get", "pods", "-n", namespace, "-o", "json"];
    let list: Value = serde_json::from_str(&kubectl.run(&list)).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().unwrap().iter().map(|pod| {
        (
            text(&pod["metadata"]["name"]),
            text(&pod["status"]["podIP"]),
            pod["metadata"]["deletionTimestamp"].is_string(),
        )
    });
    pods.collect()
}

/// What the pod says of itself.
fn ask(node: &Node, address: &str, path: &str) -> String {
    let mut curl = node.command("curl");
    let url = format!("http://{address}:9180{path}");
    program::run(curl.args(["-s", "--max-time", "5", &url])).1
}

/// Links of each agent that end at the pod.
fn links(node: &Node, address: &str, agent: &str) -> usize {
    let all = ask(node, address, "/api/v1/links");
    let all: Value = serde_json::from_str(&all).unwrap_or_default();
    let all = all.as_array().cloned().unwrap_or_default();
    let of = |link: &&Value| link["agent"].as_str().is_some_and(|it| it.ends_with(agent));
    all.iter().filter(of).count()
}

/// Requests that the pod has passed on to another one.
fn passed_on(node: &Node, address: &str) -> u64 {
    let metrics = ask(node, address, "/metrics");
    let lines = metrics.lines();
    let lines = lines.filter(|line| line.starts_with("tidegate_replica_forwarded_requests_total{"));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn an_edge_is_rolled_under_agents_and_no_request_fails() {
    let (Some(node), Some(helm)) = (Node::shared(), helm()) else {
        return;
    };
    import_image(node);
    let kubectl = node.cluster().kubectl();
    let (release, served) = (node.cluster().namespace(), node.cluster().namespace());
    let (release, served) = (release.name(), served.name());
    let run = |args: &[&str]| chart::run(&helm, node.cluster(), release, args);
    run(&[
        "install",
        "edge",
        folder().to_str().unwrap(),
        "--set=image.repository=tidegate.test/tidegate,image.tag=test,image.pullPolicy=Never",
        "--set=crds.enabled=false,policy.crossObject=false,service.type=NodePort",
        "--set=preStopSeconds=3,drainSeconds=60",
        &format!("--set=watchNamespaces={{{served}}}"),
        "--wait",
        "--timeout=180s",
    ]);
    let edge = Installed {
        node,
        home: release,
        routes: served,
        upgrade: &|_| {},
    };
    let root = edge.root();
    let path = r#"jsonpath={.spec.ports[?(@.name=="https")].nodePort}"#;
    let service = ["get", "service/edge-tidegate", "-n", release, "-o", path];
    let service = SocketAddr::new(node.address(), kubectl.run(&service).parse().unwrap());

    let home = Home::new();
    kubectl.apply(served, &tunnel_agents(&home));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &root).unwrap();
    let dialled = format!("https://localhost:{}", home.relay(service));
    let start = |name: &str, links: &str| {
        let token = agent_token(kubectl, served, name);
        let name = format!("{served}/{name}");
        let mut command = agent(&dialled, &name, &token, file.path());
        Program::start(command.args(["--links", links]))
    };
    let (homelab, cellar) = (start("homelab", "2"), start("cellar", "1"));
    let logs = || format!("homelab:\n{}\ncellar:\n{}", homelab.log(), cellar.log());
    let visitor = Visitor::new(service, &root);
    for host in [APP, CELLAR] {
        eventually(host, PATIENCE, || {
            let page = home.runtime.block_on(visitor.page(host));
            page.map_err(|why| format!("{why}; {}", logs()))
        });
    }

    let _alone = updates::alone();
    let load = Load::start(service, APP, &root);
    let gentle = Load::start_gently(service, CELLAR, &root);
    let old = pods(kubectl, release);
    eventually("requests that are passed on", PATIENCE, || {
        let counts: Vec<u64> = old.iter().map(|pod| passed_on(node, &pod.1)).collect();
        if counts.iter().sum::<u64>() > 3 {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    });
    let arrived = Arc::<AtomicU64>::default();
    let (downloading, mut talk) = home.runtime.block_on(async {
        let mut talk = visitor.talk().await;
        says_back(&mut talk, "before").await;
        let other = Visitor::new(service, &root);
        let counted = Arc::clone(&arrived);
        let downloading = tokio::spawn(async move { other.download(counted).await });
        (downloading, talk)
    });
    let more = || {
        let so_far = arrived.load(Ordering::SeqCst);
        eventually("more of the download", PATIENCE, || {
            let now = arrived.load(Ordering::SeqCst);
            if now > so_far + 10 * PIECE as u64 {
                Ok(())
            } else {
                let over = downloading.is_finished();
                Err(format!("{now} bytes, over: {over}; {}", logs()))
            }
        });
    };
    more();
    let deployment = "deployment/edge-tidegate";
    kubectl.run(&["rollout", "restart", deployment, "-n", release]);
    kubectl.run(&[
        "rollout",
        "status",
        deployment,
        "-n",
        release,
        "--timeout=120s",
    ]);
    // Every replica that was there is about to end, the two with the download and the WebSocket too.
    eventually("the end of the old pods begins", PATIENCE, || {
        let now = pods(kubectl, release);
        let stays = |it: &&(String, String, bool)| !it.2 && old.iter().any(|old| old.0 == it.0);
        match now.iter().find(stays) {
            None => Ok(()),
            Some(pod) => Err(format!("{pod:?}")),
        }
    });
    more();
    home.runtime.block_on(says_back(&mut talk, "while it ends"));
    let ending = pods(kubectl, release).iter().filter(|it| it.2).count();
    home.enough.cancel();
    let downloaded = home.runtime.block_on(downloading).unwrap();
    let downloaded = downloaded.unwrap_or_else(|why| panic!("the download: {why}"));
    assert_eq!(downloaded, home.sent.load(Ordering::SeqCst));
    home.runtime.block_on(async {
        says_back(&mut talk, "and after the download").await;
        talk.close(None).await.unwrap();
        while let Some(Ok(_)) = talk.next().await {}
        drop(talk);
    });
    eventually("the end of the old pods", PATIENCE, || {
        let left = pods(kubectl, release);
        let gone = |it: &(String, String, bool)| old.iter().all(|old| old.0 != it.0);
        if left.iter().all(gone) {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    let (report, gentle) = (load.stop(), gentle.stop());
    let new: u64 = pods(kubectl, release)
        .iter()
        .map(|pod| passed_on(node, &pod.1))
        .sum();
    eprintln!(
        "{downloaded} bytes downloaded and a WebSocket kept while {ending} old replicas ended; the new ones have passed {new} requests on"
    );
    report.assert_well("an agent with two links");
    gentle.assert_well("an agent with one link");
    assert!(ending > 0);
    assert!(report.told > 0 && report.went_away > 0, "{report:?}");
    assert!(new > 0, "{}", logs());
    // By chance, again and again, until each has one.
    eventually("a link of the agent at each replica", PATIENCE, || {
        let pods = pods(kubectl, release);
        let links: Vec<usize> = pods
            .iter()
            .map(|(_, address, _)| links(node, address, "homelab"))
            .collect();
        if links.len() == 2 && !links.contains(&0) {
            Ok(())
        } else {
            Err(format!("{links:?}; {}", logs()))
        }
    });
}
