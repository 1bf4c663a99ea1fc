//! Limits that the authority publishes are kept before it has to say so.

use std::fs;
use std::io::{Read as _, Write as _, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, SystemTime};

use super::authority::{Authority, Behaviour, LETS_ENCRYPT};
use super::tap::Tap;
use super::{cert, finding, time, wait_for, wait_for_trust};
use crate::support::edge::PATIENCE;
use crate::support::program::run;
use crate::support::{Edge, route};

/// An HTTP proxy that leads every CONNECT to one port of loopback; returns its own.
fn proxy_to(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    if client.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.extend_from_slice(&byte);
                }
                assert!(head.starts_with(b"CONNECT "));
                let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                let _ = copy(&mut server, &mut client);
                let _ = client.shutdown(Shutdown::Write);
            });
        }
    });
    own
}

#[test]
fn an_order_that_would_break_a_limit_is_not_placed() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let tap = Tap::start(&authority);
    let proxy = format!("http://127.0.0.1:{}", proxy_to(tap.port));
    let issuer = Authority::issuer_at("any", tap.port, "  default: true\n");
    let issuer = issuer.replace(&format!("localhost:{}", tap.port), LETS_ENCRYPT);
    let mut edge = authority
        .edge()
        .env("HTTPS_PROXY", &proxy)
        .env("NO_PROXY", "")
        .object(issuer)
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .start();
    let root = authority.root();
    let record = edge
        .folder()
        .join("state/acme/certificate/default%2Fapp.json");
    // A mistake in a loop: the certificate is lost again and again, and the ledger is not.
    for round in 1..=5 {
        wait_for_trust(&edge, &root, "app.example.com");
        assert_eq!(tap.count("order-plz", 201), round);
        edge.program().signal("KILL");
        edge.program().wait(PATIENCE);
        fs::remove_file(&record).unwrap();
        edge.start_again();
    }
    let message = wait_for(&edge, "app", "CertificateReady", "False", "OrderFailed");
    assert!(message.contains("RateLimited"), "{message}");
    let used = "5 of 5 certificates";
    assert!(message.contains(used), "{message}");
    assert!(message.contains("the next is allowed at "), "{message}");
    let (state, found) = finding(&edge, "app", "Budget").unwrap();
    assert_eq!(state, "Blocking", "{found}");
    assert!(found.contains(used), "{found}");
    // One of five comes back after a fifth of a week.
    let next = time(&cert(&edge, "app")["nextAttempt"]);
    let wait = next.duration_since(SystemTime::now()).unwrap();
    let fifth = Duration::from_hours(7 * 24) / 5;
    assert!(
        wait <= fifth && wait + Duration::from_mins(5) > fifth,
        "{wait:?}"
    );
    let (ok, doctor) = run(Edge::command()
        .args(["doctor", "app.example.com"])
        .arg(edge.objects())
        .arg("--state-dir")
        .arg(edge.folder().join("state")));
    assert!(!ok, "{doctor}");
    assert!(doctor.contains(used), "{doctor}");
    assert!(doctor.contains("the next is allowed at "), "{doctor}");
    // Other names are not held back, and by then nothing was asked for this one.
    edge.write(
        "other.yaml",
        &route("other", "other.example.com", "127.0.0.1:9"),
    );
    wait_for_trust(&edge, &root, "other.example.com");
    assert_eq!(tap.count("order-plz", 201), 6, "{:?}", tap.exchanges());
}
