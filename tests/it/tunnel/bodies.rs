//! Bodies of any length and visitors of any patience: memory stays what it was.
//!
//! `TIDEGATE_TEST_BODY_MIB` says how long a body is; by hand, with a release build, 10 GiB is a matter of a minute.

use std::fs;
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::life::Load;
use super::service::Service;
use super::{APP, Pair};
use crate::support::client::block_on;
use crate::support::edge::PATIENCE;
use crate::support::program::run;
use crate::support::{eventually, missing};

const MIB: u64 = 1 << 20;
/// What edge and agent may each grow by, whatever passes through them.
const MOST: u64 = 64 * MIB;

/// How much edge and agent have grown at most since this was begun.
struct Memory {
    edge: u64,
    agent: u64,
}

impl Memory {
    fn of(pair: &mut Pair) -> Self {
        let (edge, agent) = (pair.edge.program().peak_memory(), pair.agent.peak_memory());
        Self { edge, agent }
    }

    #[track_caller]
    fn grew_at_most(&self, now: &Self, most: u64, what: &str) {
        let (edge, agent) = (now.edge - self.edge, now.agent - self.agent);
        eprintln!(
            "{what}: the edge grew from {} by {} MiB, the agent from {} by {} MiB",
            self.edge / MIB,
            edge / MIB,
            self.agent / MIB,
            agent / MIB
        );
        assert!(edge < most && agent < most, "{edge} and {agent} bytes");
    }
}

#[test]
fn bodies_of_any_length_pass_both_ways_in_the_same_memory() {
    if missing(&["curl"]) {
        return;
    }
    let length = std::env::var("TIDEGATE_TEST_BODY_MIB").ok();
    let length = MIB * length.map_or(512, |mib| mib.parse().unwrap());
    let service = Service::start();
    let mut pair = Pair::start(&service.url());
    let before = Memory::of(&mut pair);
    let curl = || {
        let mut curl = pair_curl(&pair);
        curl.args(["--fail", "-w", " %{time_total}"]);
        curl
    };
    let speed = |said: &str| {
        let seconds: f64 = said.rsplit_once(' ').unwrap().1.parse().unwrap();
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let mib = length as f64 / f64::from(1 << 20);
        format!("{mib} MiB at {:.0} MiB/s", mib / seconds)
    };

    let mut down = curl();
    down.args(["-o", "/dev/null", "-w", "%{size_download} %{time_total}"])
        .arg(pair.edge.url(APP, &format!("/bytes/{length}")));
    let (well, said) = run(&mut down);
    assert!(well && said.starts_with(&format!("{length} ")), "{said}");
    println!("down: {}", speed(&said));

    // A file of nothing but holes, of known length and of unknown one.
    let file = pair.edge.folder().join("upload");
    fs::File::create(&file).unwrap().set_len(length).unwrap();
    let mut up = curl();
    up.arg("-T").arg(&file).arg(pair.edge.url(APP, "/count"));
    let (well, said) = run(&mut up);
    assert!(well && said.starts_with(&format!("{length} ")), "{said}");
    println!("up: {}", speed(&said));
    before.grew_at_most(&Memory::of(&mut pair), MOST, "after both");
}

fn pair_curl(pair: &Pair) -> Command {
    let mut curl = pair.edge.curl(&[APP]);
    // In place of the time that a request of the other tests may take.
    curl.args(["--max-time", "600"]);
    curl
}

#[test]
fn visitors_who_do_not_read_slow_nobody_down() {
    const SLOW: usize = 48;
    let service = Service::start();
    let mut pair = Pair::with(&service.url(), |edge| edge.arg("--write-timeout").arg("5m"));
    let before = Memory::of(&mut pair);
    let client = pair.edge.client();
    let held: Vec<_> = block_on(async {
        let mut held = Vec::new();
        for _ in 0..SLOW {
            let mut stream = client.connect(APP, &["http/1.1"]).await.unwrap();
            let request = format!("GET /bytes/{} HTTP/1.1\r\nHost: {APP}\r\n\r\n", 64 * MIB);
            stream.write_all(request.as_bytes()).await.unwrap();
            // The answer has begun, and that is all that is ever read of it.
            let mut first = [0; 16];
            stream.read_exact(&mut first).await.unwrap();
            assert!(first.starts_with(b"HTTP/1.1 200"), "{first:?}");
            held.push(stream.into_inner().0.into_std().unwrap());
        }
        held
    });
    // Until everything between here and there is full.
    let mut sent = 0;
    let mut still = Instant::now();
    eventually("nothing moves any more", PATIENCE, || {
        let now = service.sent();
        if now != sent {
            (sent, still) = (now, Instant::now());
        }
        if still.elapsed().as_millis() > 500 {
            Ok(())
        } else {
            Err(format!("{now} bytes"))
        }
    });
    let mut load = Load::start(&client);
    load.some(100);
    let slowest = load.slowest();
    let (count, failed) = load.end();
    println!(
        "beside {SLOW} downloads that nobody reads, {} MiB of which were sent: {count} requests, {} failed, the \
         slowest took {slowest:?}",
        sent / MIB,
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}");
    // A window of 1 MiB on the link for each, at most.
    let most = MOST + SLOW as u64 * 2 * MIB;
    before.grew_at_most(&Memory::of(&mut pair), most, "meanwhile");
    drop(held);
}

#[test]
fn two_thousand_requests_are_under_way_at_once() {
    const CONNECTIONS: usize = 20;
    const EACH: usize = 100;
    let service = Service::start();
    // As many as systems let a program open that does not ask for more.
    let mut pair = Pair::limited(&service.url(), 1024);
    let before = Memory::of(&mut pair);
    let client = pair.edge.client();
    let (answers, now) = std::thread::scope(|scope| {
        let _released = service.released_at_the_end();
        let asking = scope.spawn(|| {
            block_on(async {
                let mut drivers = Vec::new();
                let mut waiting = tokio::task::JoinSet::new();
                for _ in 0..CONNECTIONS {
                    let tls = client.connect(APP, &["h2"]).await.unwrap();
                    let io = TokioIo::new(tls);
                    let begun = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
                    let (sender, driver) = begun.await.unwrap();
                    drivers.push(tokio::spawn(driver));
                    for _ in 0..EACH {
                        let mut sender = sender.clone();
                        waiting.spawn(async move {
                            let request = Request::get(format!("https://{APP}/hold"));
                            let request = request.body(Empty::<Bytes>::new()).unwrap();
                            sender.ready().await.unwrap();
                            let response = sender.send_request(request).await.unwrap();
                            let status = response.status().as_u16();
                            let body = response.into_body().collect().await.unwrap();
                            (status, body.to_bytes())
                        });
                    }
                }
                waiting.join_all().await
            })
        });
        let all = CONNECTIONS * EACH;
        eventually("all of them", PATIENCE, || {
            if service.waiting() == all || asking.is_finished() {
                Ok(())
            } else {
                Err(format!("{} wait", service.waiting()))
            }
        });
        println!("{} requests wait at the service", service.waiting());
        let now = Memory::of(&mut pair);
        service.release();
        (asking.join().unwrap(), now)
    });
    // Buffers and a connection to the service for each.
    let most = MOST + (CONNECTIONS * EACH) as u64 * 64 * 1024;
    before.grew_at_most(&now, most, "for them");
    let wrong: Vec<_> = answers
        .iter()
        .filter(|(status, body)| *status != 200 || body != "released")
        .collect();
    assert!(wrong.is_empty(), "{} of them: {:?}", wrong.len(), wrong[0]);
}
