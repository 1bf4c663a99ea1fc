//! What goes on while something happens to edge or agent: fifty requests a second, a download, a conversation.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::APP;
use crate::support::client::block_on;
use crate::support::edge::PATIENCE;
use crate::support::{Client, Edge, Program, eventually};

/// Visitors who take turns: together they make fifty requests a second.
const VISITORS: usize = 5;
const EACH: Duration = Duration::from_millis(100);

/// Everything that goes on at once. Dropping ends it.
pub(super) struct Life {
    load: Load,
    download: Download,
    chat: Chat,
}

impl Life {
    /// Begins, and waits until all of it is under way.
    #[track_caller]
    pub(super) fn begin(edge: &Edge) -> Self {
        let life = Self {
            load: Load::start(&edge.client()),
            download: Download::start(edge),
            chat: Chat::start(&edge.client(), edge.https),
        };
        life.goes_on();
        life
    }

    /// Waits until some more of everything has happened.
    #[track_caller]
    pub(super) fn goes_on(&self) {
        self.load.some(25);
        self.download.grows();
        self.chat.goes_on();
    }

    /// Ends the download and the conversation; both must have been whole.
    #[track_caller]
    pub(super) fn finish_long_ones(&mut self, release: impl FnOnce()) {
        release();
        let lines = self.download.finish();
        let echoes = self.chat.finish();
        eprintln!("meanwhile a download of {lines} lines and a WebSocket of {echoes} echoes");
    }

    /// Ends the short requests, none of which may have failed.
    #[track_caller]
    pub(super) fn end(mut self, what: &str) {
        let (sent, failed) = self.load.end();
        eprintln!(
            "{sent} requests while {what}, {} failed; the slowest took {:?}",
            failed.len(),
            self.load.slowest()
        );
        assert!(failed.is_empty(), "{failed:?}");
    }
}

/// Short requests, each on a connection of its own.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    slowest: Arc<AtomicU64>,
    visitors: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    pub(super) fn start(client: &Client) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            slowest: Arc::default(),
            visitors: Vec::new(),
        };
        load.visitors = (0..VISITORS)
            .map(|_| {
                let (client, stop) = (client.clone(), Arc::clone(&load.stop));
                let (sent, slowest) = (Arc::clone(&load.sent), Arc::clone(&load.slowest));
                std::thread::spawn(move || {
                    let mut failed = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let begin = Instant::now();
                        match client.try_get(APP, "/page") {
                            // And it is the service's own page.
                            Ok(reply) if reply.status == 200 && reply.body.starts_with(b"{") => {}
                            Ok(reply) => failed.push(format!("{} {}", reply.status, reply.text())),
                            Err(error) => failed.push(error),
                        }
                        let took = u64::try_from(begin.elapsed().as_millis()).unwrap();
                        slowest.fetch_max(took, Ordering::Relaxed);
                        sent.fetch_add(1, Ordering::Relaxed);
                        std::thread::park_timeout(EACH.saturating_sub(begin.elapsed()));
                    }
                    failed
                })
            })
            .collect();
        load
    }

    /// Waits for so many more answers.
    #[track_caller]
    pub(super) fn some(&self, more: usize) {
        at_least(
            "answers",
            &self.sent,
            self.sent.load(Ordering::Relaxed) + more,
        );
    }

    /// How long the slowest took so far.
    pub(super) fn slowest(&self) -> Duration {
        Duration::from_millis(self.slowest.load(Ordering::Relaxed))
    }

    /// How many were sent, and which failed.
    pub(super) fn end(&mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let visitors = std::mem::take(&mut self.visitors);
        let failed = visitors.into_iter().flat_map(|it| it.join().unwrap());
        let failed = failed.collect();
        (self.sent.load(Ordering::Relaxed), failed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn at_least(what: &str, count: &AtomicUsize, wanted: usize) {
    eventually(what, PATIENCE, || {
        let now = count.load(Ordering::Relaxed);
        if now >= wanted {
            Ok(())
        } else {
            Err(format!("{now} of {wanted}"))
        }
    });
}

/// A download that ends when the service is released.
struct Download {
    curl: Program,
    file: PathBuf,
}

impl Download {
    fn start(edge: &Edge) -> Self {
        let file = edge.folder().join("download");
        let mut curl = Command::new("curl");
        curl.args(["-sSN", "--fail", "--max-time", "300"])
            .arg("--cacert")
            .arg(edge.ca_file())
            .args(["--resolve", &format!("{APP}:{}:127.0.0.1", edge.https)])
            .arg("-o")
            .arg(&file)
            .arg(edge.url(APP, "/trickle"));
        let curl = Program::start(&mut curl);
        Self { curl, file }
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |it| it.len())
    }

    #[track_caller]
    fn grows(&self) {
        let before = self.length();
        eventually("more of the download", PATIENCE, || {
            let now = self.length();
            if now > before {
                Ok(())
            } else {
                Err(format!("{now} bytes; {}", self.curl.log()))
            }
        });
    }

    /// How many lines came, all of them in their order.
    #[track_caller]
    fn finish(&mut self) -> u64 {
        let status = self.curl.wait(PATIENCE);
        assert!(status.success(), "{status}: {}", self.curl.log());
        let text = fs::read_to_string(&self.file).unwrap();
        let (lines, end) = text.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(end, "end");
        let mut count = 0;
        for line in lines.lines() {
            count += 1;
            assert_eq!(line, count.to_string());
        }
        count
    }
}

/// A WebSocket on which something is said all the time.
struct Chat {
    stop: Arc<AtomicBool>,
    echoes: Arc<AtomicUsize>,
    talking: Option<JoinHandle<Result<(), String>>>,
}

impl Chat {
    fn start(client: &Client, port: u16) -> Self {
        let (stop, echoes) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (client, until, count) = (client.clone(), Arc::clone(&stop), Arc::clone(&echoes));
        let talking = std::thread::spawn(move || block_on(talk(&client, port, &until, &count)));
        Self {
            stop,
            echoes,
            talking: Some(talking),
        }
    }

    #[track_caller]
    fn goes_on(&self) {
        at_least(
            "echoes",
            &self.echoes,
            self.echoes.load(Ordering::Relaxed) + 5,
        );
    }

    #[track_caller]
    fn finish(&mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.talking.take().unwrap().join().unwrap();
        assert_eq!(outcome, Ok(()));
        self.echoes.load(Ordering::Relaxed)
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Says something and waits for the echo, until it is stopped; then says goodbye.
pub(super) async fn talk(
    client: &Client,
    port: u16,
    stop: &AtomicBool,
    echoes: &AtomicUsize,
) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let tls = client.connect(APP, &["http/1.1"]).await;
    let tls = tls.map_err(|error| failed(&error))?;
    let url = format!("wss://{APP}:{port}/ws");
    let opened = tokio_tungstenite::client_async(url, tls).await;
    let (mut socket, _) = opened.map_err(|error| failed(&error))?;
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let count = echoes.load(Ordering::Relaxed);
        let said = Message::text(format!("{count}"));
        let sending = socket.send(said.clone()).await;
        sending.map_err(|error| failed(&error))?;
        match tokio::time::timeout(PATIENCE, socket.next()).await {
            Ok(Some(Ok(heard))) if heard == said => {}
            other => return Err(format!("said {said:?}, heard {other:?}")),
        }
        echoes.fetch_add(1, Ordering::Relaxed);
    }
    socket.close(None).await.map_err(|error| failed(&error))
}
