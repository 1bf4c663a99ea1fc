//! People are told: once for each stage of danger, once when it is over, and nobody else learns the token.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use super::authority::{Authority, Behaviour};
use super::wait_for;
use crate::support::{Edge, Origin, eventually, route_of, secret};

const TOKEN: &str = "tk_not-to-be-shown-to-anybody";
const TOPIC: &str = "topic-that-only-the-owner-knows";
const PATIENCE: Duration = Duration::from_mins(3);

/// A way to the authority that can be cut.
struct Way {
    port: u16,
    open: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Way {
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(AtomicBool::new(true));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (is_open, all) = (Arc::clone(&open), Arc::clone(&streams));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !is_open.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                all.lock().unwrap().push(client.try_clone().unwrap());
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ] {
                    std::thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Self {
            port,
            open,
            streams,
        }
    }

    fn cut(&self) {
        self.open.store(false, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

/// What a phone gets: titles and bodies of what was accepted.
struct Phone {
    origin: Origin,
    status: Arc<AtomicU16>,
    heard: Arc<Mutex<Vec<(String, String)>>>,
}

impl Phone {
    fn on() -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (answer, all) = (Arc::clone(&status), Arc::clone(&heard));
        let origin = Origin::serve(move |request| {
            let (answer, all) = (Arc::clone(&answer), Arc::clone(&all));
            async move {
                let field = |name: &str| {
                    let value = request.headers().get(name);
                    value
                        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                        .unwrap_or_default()
                };
                assert_eq!(request.uri().path(), format!("/{TOPIC}"));
                assert_eq!(field("authorization"), format!("Bearer {TOKEN}"));
                let title = field("title");
                let status = StatusCode::from_u16(answer.load(Ordering::SeqCst)).unwrap();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body = String::from_utf8(body.to_vec()).unwrap();
                if status.is_success() {
                    all.lock().unwrap().push((title, body));
                }
                let mut response = Response::new(Full::new(Bytes::from(TOKEN)));
                *response.status_mut() = status;
                response
            }
        });
        Self {
            origin,
            status,
            heard,
        }
    }

    /// How often something with these words in its title was heard.
    fn heard(&self, words: &str) -> usize {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .filter(|(title, _)| title.contains(words))
            .count()
    }

    #[track_caller]
    fn wait_for(&self, words: &str, edge: &Edge) {
        eventually(words, PATIENCE, || {
            if self.heard(words) > 0 {
                Ok(())
            } else {
                let heard = self.heard.lock().unwrap();
                Err(format!("{heard:?}; log:\n{}", edge.log()))
            }
        });
    }
}

fn edge_with(authority: &Authority, port: u16, phone: &Phone) -> Edge {
    let url = format!("http://{}/{TOPIC}", phone.origin.address());
    // Without a profile Pebble takes any.
    let receiver = "  profile: default\n  notifications:\n  - name: phone\n    webhook:\n      template: ntfy\n      \
                    urlSecretRef: {name: phone, key: url}\n      \
                    authorizationSecretRef: {name: phone, key: token}\n";
    authority
        .edge()
        .object(Authority::issuer_at("any", port, receiver))
        .object(secret(
            "phone",
            "Opaque",
            &[("url", &url), ("token", TOKEN)],
        ))
        .object(route_of(
            "app",
            "
            hostnames: [app.example.com]
            tls: {issuerRef: {name: any}}
            rules:
            - backends: [{address: \"127.0.0.1:9\"}]
            ",
        ))
        .start()
}

/// Asks a command of the edge: whether it succeeded, and what it said.
fn ask(edge: &Edge, command: &[&str]) -> (bool, String) {
    let output = Edge::command()
        .args(command)
        .arg("--state-dir")
        .arg(edge.folder().join("state"))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

#[test]
fn danger_is_told_once_for_each_stage_and_so_is_its_end() {
    let behaviour = Behaviour {
        lifetime: 30,
        ..Behaviour::default()
    };
    let Some(authority) = Authority::start(&behaviour) else {
        return;
    };
    let (way, phone) = (Way::to(authority.port), Phone::on());
    let mut edge = edge_with(&authority, way.port, &phone);
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    way.cut();
    phone.wait_for("has expired", &edge);
    let body = {
        let heard = phone.heard.lock().unwrap();
        let expired = heard.iter().find(|(title, _)| title.contains("expired"));
        expired.unwrap().1.clone()
    };
    for words in [
        "Route: default/app",
        "Issuer: any",
        "CaUnreachable",
        "tidegate doctor app.example.com",
    ] {
        assert!(body.contains(words), "{words} in {body}");
    }
    // It is in the store.
    let memory = edge.folder().join("state/acme/notices/told.json");
    let memory = std::fs::read_to_string(memory).unwrap();
    assert!(memory.contains("\"stage\": \"expired\""), "{memory}");
    let samples = [
        "tidegate_acme_order_failures_total{issuer=\"any\",reason=\"CaUnreachable\"}",
        "tidegate_certificate_renewal_timestamp_seconds{route=\"default/app\",issuer=\"any\"}",
        "tidegate_acme_next_attempt_timestamp_seconds{route=\"default/app\",issuer=\"any\"}",
        "tidegate_acme_orders_total{issuer=\"any\",result=\"issued\"} 1",
        "tidegate_acme_client_requests_total{issuer=\"any\",status=\"201\"}",
        "tidegate_acme_client_requests_total{issuer=\"any\",status=\"0\"}",
        "tidegate_notices_total{issuer=\"any\",target=\"phone\",result=\"delivered\"}",
    ];
    // There is no time of the next attempt while one is made.
    eventually("the metrics tell it", PATIENCE, || {
        let metrics = edge.admin("/metrics").unwrap();
        match samples.iter().find(|sample| !metrics.contains(**sample)) {
            None => Ok(()),
            Some(sample) => Err(format!("{sample} in {metrics}")),
        }
    });
    // Another process knows what was told: it tells nothing again, but that it is over.
    edge.program().signal("USR2");
    let status = edge.program().wait(PATIENCE);
    assert!(status.success(), "{status}: {}", edge.log());
    way.mend();
    eventually("the new process takes commands", PATIENCE, || {
        let (ok, said) = ask(&edge, &["renew", "app"]);
        ok.then_some(()).ok_or(said)
    });
    phone.wait_for("New certificate for app.example.com", &edge);
    for (words, most) in [
        ("has expired", 1),
        ("expires in", 1),
        ("keeps failing", 1),
        ("New certificate", 1),
    ] {
        let times = phone.heard(words);
        let heard = phone.heard.lock().unwrap();
        assert!(times <= most, "{words} {times} times: {heard:?}");
    }
    // A route that is gone has no gauges, and nobody hears of it any more.
    edge.remove("object-3.yaml");
    eventually("the gauges vanish", PATIENCE, || {
        let metrics = edge.admin("/metrics").unwrap();
        if metrics.contains("default/app") {
            Err(metrics)
        } else {
            Ok(())
        }
    });
    nothing_secret(&edge);
}

#[test]
fn what_nobody_took_is_told_after_a_restart() {
    let behaviour = Behaviour {
        lifetime: 30,
        ..Behaviour::default()
    };
    let Some(authority) = Authority::start(&behaviour) else {
        return;
    };
    let (way, phone) = (Way::to(authority.port), Phone::on());
    let mut edge = edge_with(&authority, way.port, &phone);
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    phone.status.store(503, Ordering::SeqCst);
    way.cut();
    let memory = edge.folder().join("state/acme/notices/told.json");
    let pending = || -> Vec<String> {
        let text = std::fs::read_to_string(&memory).unwrap_or_default();
        let memory: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let all = memory["pending"].as_array().cloned().unwrap_or_default();
        let titles = all.iter().map(|one| one["notice"]["title"].to_string());
        titles.collect()
    };
    let waits = |pending: &[String]| pending.iter().any(|title| title.contains("has expired"));
    eventually("a notice that waits", PATIENCE, || {
        let pending = pending();
        waits(&pending).then_some(()).ok_or(pending.join(", "))
    });
    edge.program().signal("KILL");
    edge.program().wait(PATIENCE);
    assert!(waits(&pending()));
    phone.status.store(200, Ordering::SeqCst);
    edge.start_again();
    phone.wait_for("has expired", &edge);
    eventually("nothing waits", PATIENCE, || {
        let pending = pending();
        pending.is_empty().then_some(()).ok_or(pending.join(", "))
    });
    assert_eq!(phone.heard("has expired"), 1);
    nothing_secret(&edge);
}

#[test]
fn a_test_notice_shows_whether_anybody_hears() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let phone = Phone::on();
    let edge = edge_with(&authority, authority.port, &phone);
    let problem = || {
        let status = edge.admin("/api/v1/status").unwrap();
        status.contains("NoticesNotDelivered")
    };
    let (ok, said) = ask(&edge, &["notify-test"]);
    assert!(ok && said.contains("any phone: it arrived"), "{said}");
    assert_eq!(phone.heard("Test notice of"), 1);
    phone.status.store(500, Ordering::SeqCst);
    let (ok, said) = ask(&edge, &["notify-test", "any"]);
    assert!(!ok && said.contains("TargetRefused"), "{said}");
    assert!(!said.contains(TOKEN) && !said.contains(TOPIC), "{said}");
    eventually("the failure is on the issuer", PATIENCE, || {
        problem().then_some(()).ok_or_else(|| edge.log())
    });
    let metrics = edge.admin("/metrics").unwrap();
    let failing = "tidegate_notices_failing{issuer=\"any\",target=\"phone\"} 1";
    assert!(metrics.contains(failing), "{metrics}");
    phone.status.store(200, Ordering::SeqCst);
    let (ok, said) = ask(&edge, &["notify-test"]);
    assert!(ok, "{said}");
    eventually("the failure is forgotten", PATIENCE, || {
        (!problem()).then_some(()).ok_or_else(|| edge.log())
    });
    let (ok, said) = ask(&edge, &["notify-test", "nobody"]);
    assert!(!ok && said.contains("nobody does not exist"), "{said}");
    nothing_secret(&edge);
}

#[track_caller]
fn nothing_secret(edge: &Edge) {
    let shown = [
        edge.log(),
        edge.admin("/metrics").unwrap(),
        edge.admin("/api/v1/status").unwrap(),
        std::fs::read_to_string(edge.folder().join("state/status.json")).unwrap(),
    ];
    for text in shown {
        assert!(!text.contains(TOKEN) && !text.contains(TOPIC), "{text}");
    }
}
