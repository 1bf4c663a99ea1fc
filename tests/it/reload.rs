//! Edits under traffic, and the end: nothing that is not meant is touched.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::client::block_on;
use crate::support::edge::PATIENCE;
use crate::support::{Edge, Origin, eventually, route};

#[test]
fn hosts_come_and_go_with_their_files() {
    let origin = Origin::text("x");
    let edge = Edge::start(&[route("one", "one.test", origin.address())]);
    edge.wait_for_status("one.test", "/", 200);
    assert!(edge.client().try_get("two.test", "/").is_err());
    edge.write("two.yaml", &route("two", "two.test", origin.address()));
    edge.wait_for_status("two.test", "/", 200);
    edge.remove("two.yaml");
    eventually("the end of two.test", PATIENCE, || {
        match edge.client().try_get("two.test", "/") {
            Ok(reply) if reply.status == 200 => Err("still served".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(edge.get("one.test", "/").status, 200);
}

#[test]
fn an_object_that_turns_bad_keeps_its_last_good_state() {
    let origin = Origin::text("x");
    let edge = Edge::start(&[route("one", "one.test", origin.address())]);
    edge.wait_for_status("one.test", "/", 200);
    let bad = route("one", "one.test", origin.address()).replace("backends", "backend");
    for (name, text) in [
        ("unknown field", bad.as_str()),
        ("no YAML", "a: [b\n"),
        ("no text", "\u{0}\u{1}"),
    ] {
        edge.write("object-0.yaml", text);
        // A second object proves that the first edit has been read.
        let marker = format!("{}.test", name.replace(' ', "-"));
        edge.write("marker.yaml", &route("marker", &marker, origin.address()));
        edge.wait_for_status(&marker, "/", 200);
        assert_eq!(edge.get("one.test", "/").status, 200, "{name}");
    }
    let log = edge.log();
    assert!(log.contains("backend"), "the mistake is not told: {log}");
}

#[test]
fn no_request_is_lost_while_routes_change() {
    let origin = Origin::text("x");
    let edge = Edge::start(&[route("one", "one.test", origin.address())]);
    edge.wait_for_status("one.test", "/", 200);
    let client = edge.client();
    let editing = std::sync::atomic::AtomicBool::new(true);
    let editing = &editing;
    let (sent, lost) = std::thread::scope(|scope| {
        let requests = scope.spawn(move || {
            block_on(async {
                let stream = client.connect("one.test", &["h2"]).await.unwrap();
                let (mut sender, connection) = hyper::client::conn::http2::handshake(
                    TokioExecutor::new(),
                    TokioIo::new(stream),
                )
                .await
                .unwrap();
                let driver = tokio::spawn(connection);
                let (mut sent, mut lost) = (0, Vec::new());
                while editing.load(std::sync::atomic::Ordering::Relaxed) {
                    let request = Request::get("https://one.test/")
                        .body(Full::<Bytes>::default())
                        .unwrap();
                    sent += 1;
                    match sender.send_request(request).await {
                        Ok(response) if response.status() == 200 => {
                            if let Err(error) = response.into_body().collect().await {
                                lost.push(error.to_string());
                            }
                        }
                        other => lost.push(format!("{other:?}")),
                    }
                }
                driver.abort();
                (sent, lost)
            })
        });
        for edit in 0..20 {
            let host = format!("edit-{edit}.test");
            edge.write("other.yaml", &route("other", &host, origin.address()));
            edge.wait_for_status(&host, "/", 200);
        }
        editing.store(false, std::sync::atomic::Ordering::Relaxed);
        requests.join().unwrap()
    });
    // All of it on one connection: an edit of another route did not end it.
    assert!(sent > 20, "only {sent} requests");
    assert!(
        lost.is_empty(),
        "{} of {sent} lost, first: {:?}",
        lost.len(),
        lost.first()
    );
}

#[test]
fn a_second_claim_of_a_host_changes_nothing_and_is_told() {
    let (owner, thief) = (Origin::text("owner"), Origin::text("thief"));
    let edge = Edge::start(&[route("owner", "one.test", owner.address())]);
    edge.wait_for_status("one.test", "/", 200);
    edge.write("thief.yaml", &route("thief", "one.test", thief.address()));
    edge.write(
        "marker.yaml",
        &route("zz-marker", "marker.test", owner.address()),
    );
    edge.wait_for_status("marker.test", "/", 200);
    assert_eq!(edge.get("one.test", "/").text(), "owner");
    assert!(edge.log().contains("thief"), "{}", edge.log());
}

#[test]
fn the_end_waits_for_what_runs() {
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = Origin::serve(move |request| {
        let mut released = released.clone();
        async move {
            if request.uri().path() == "/slow" {
                let _ = released.wait_for(|released| *released).await;
            }
            http::Response::new(Full::new(Bytes::from_static(b"done")))
        }
    });
    let mut edge = Edge::start(&[route("one", "one.test", origin.address())]);
    edge.wait_for_status("one.test", "/", 200);
    let before = origin.requests();
    let client = edge.client();
    let running = std::thread::spawn(move || client.try_get("one.test", "/slow"));
    eventually("the slow request at the origin", PATIENCE, || {
        if origin.requests() > before {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    });
    edge.program().signal("TERM");
    let port = edge.https;
    eventually(
        "new connections are refused",
        PATIENCE,
        || match std::net::TcpStream::connect(("127.0.0.1", port)) {
            Ok(_) => Err("accepted".to_owned()),
            Err(_) => Ok(()),
        },
    );
    assert!(
        edge.program().ended().is_none(),
        "ended while a request was running"
    );
    release.send(true).unwrap();
    let reply = running.join().unwrap().unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    let status = edge.program().wait(Duration::from_secs(20));
    assert!(status.success(), "{status}");
}
