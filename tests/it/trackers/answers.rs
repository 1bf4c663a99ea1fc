//! Answers of a tracker: they come to the client as the tracker sent them, and what they say is counted and
//! logged though their status is always 200.

use std::fmt::Write as _;

use crate::support::edge::PATIENCE;
use crate::support::raw::RawOrigin;
use crate::support::{Edge, eventually, route_of};

const HOST: &str = "http1.tracker.test";
const KEY: &str = "YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ";

/// A rule that leads to a tracker.
pub(super) fn tracker(host: &str, address: impl std::fmt::Display, more: &str) -> String {
    route_of(
        host.split('.').next().unwrap_or(host),
        &format!(
            "hostnames: [{host}]\nhttp: {{plain: Serve}}\nrules:\n- name: announces\n  tracker: {{type: HTTP{more}}}\n  backends: [{{address: \"{address}\"}}]\n"
        ),
    )
}

fn answering(body: &str, field: &str) -> &'static [u8] {
    let mut answer = String::from("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n");
    let _ = write!(
        answer,
        "{field}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    answer.into_bytes().leak()
}

/// A value of `/metrics`.
fn metric(text: &str, name: &str, label: &str) -> u64 {
    text.lines()
        .filter(|line| line.starts_with(name) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn failures_are_counted_by_reason_and_logged_without_keys() {
    let reason = format!("The supplied key: Key(\"{KEY}\"), is not valid");
    let refusing = format!("d14:failure reason{}:{reason}e", reason.len());
    let refusing = RawOrigin::answering(answering(&refusing, ""));
    let good = RawOrigin::answering(answering(
        "d8:intervali120e5:peers0:15:warning message4:busye",
        "",
    ));
    let page = RawOrigin::answering(answering("<html>It works!</html>", ""));
    let zipped = RawOrigin::answering(answering("\x1f\x08\0\0", "Content-Encoding: gzip\r\n"));
    let edge = Edge::start(&[
        tracker(HOST, refusing.address(), ""),
        tracker("good.tracker.test", good.address(), ""),
        tracker("page.tracker.test", page.address(), ""),
        tracker("zipped.tracker.test", zipped.address(), ""),
    ]);
    let reply = edge.get(
        HOST,
        &format!("/announce/{KEY}?info_hash=%86z&event=started&key=1"),
    );
    assert_eq!(reply.status, 200);
    assert!(
        reply.text().contains(KEY),
        "the client is told as the tracker said it: {reply:?}"
    );
    for event in ["started", "stopped", "completed", "paused"] {
        edge.get(
            "good.tracker.test",
            &format!("/announce?info_hash=%86z&event={event}"),
        );
    }
    edge.get("good.tracker.test", "/announce?info_hash=%86z");
    edge.get("good.tracker.test", "/scrape?info_hash=%86z");
    edge.get("good.tracker.test", "/health_check");
    edge.get("page.tracker.test", "/announce?info_hash=%86z");
    let reply = edge.get("zipped.tracker.test", "/announce?info_hash=%86z");
    assert_eq!(&reply.body[..], b"\x1f\x08\0\0");
    assert_eq!(reply.header("content-encoding"), "gzip");
    assert_eq!(reply.header("content-length"), "4");

    let count = |name: &str, label: &str| {
        let text = edge.admin("/metrics").unwrap();
        metric(&text, name, label)
    };
    // The last answer is counted when its body has ended, which may be after the client has it.
    eventually("the last answer's count", PATIENCE, || {
        match count(
            "tidegate_tracker_answers_total",
            "route=\"default/zipped\",rule=\"announces\",result=\"encoded\"",
        ) {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    for (name, label, expected) in [
        (
            "announces",
            "route=\"default/http1\",rule=\"announces\",event=\"started\"",
            1,
        ),
        (
            "announces",
            "route=\"default/good\",rule=\"announces\",event=\"started\"",
            1,
        ),
        (
            "announces",
            "route=\"default/good\",rule=\"announces\",event=\"stopped\"",
            1,
        ),
        (
            "announces",
            "route=\"default/good\",rule=\"announces\",event=\"completed\"",
            1,
        ),
        (
            "announces",
            "route=\"default/good\",rule=\"announces\",event=\"none\"",
            2,
        ),
        ("scrapes", "route=\"default/good\"", 1),
        (
            "answers",
            "route=\"default/good\",rule=\"announces\",result=\"ok\"",
            6,
        ),
        ("answers", "route=\"default/good\"", 6),
        (
            "answers",
            "route=\"default/page\",rule=\"announces\",result=\"other\"",
            1,
        ),
        (
            "answers",
            "route=\"default/http1\",rule=\"announces\",result=\"failure\"",
            1,
        ),
        (
            "failures",
            "route=\"default/http1\",rule=\"announces\",reason=\"InvalidKey\"",
            1,
        ),
        ("failures", "rule", 1),
    ] {
        assert_eq!(
            count(&format!("tidegate_tracker_{name}_total"), label),
            expected,
            "{name} {label}"
        );
    }

    let log = edge.log();
    assert!(
        log.contains("tracker_failure=\"The supplied key: Key(\\\"[redacted]\\\"), is not valid\""),
        "{log}"
    );
    assert!(log.contains("tracker_warning=\"busy\""), "{log}");
    assert!(log.contains("/announce/[redacted]"), "{log}");
}

/// Wherever a request with a key in its path ends, the key is in no line of the log and in no page.
#[test]
fn keys_of_private_trackers_are_nowhere() {
    let origin = RawOrigin::answering(answering("d5:peers0:e", ""));
    let gone = crate::support::ports::free();
    let edge = Edge::builder()
        .object(tracker("key.tracker.test", origin.address(), ""))
        .object(tracker("gone.tracker.test", format!("127.0.0.1:{gone}"), ""))
        .object(route_of(
            "redirecting",
            &format!("hostnames: [redirecting.tracker.test]\nrules:\n- tracker: {{}}\n  backends: [{{address: \"{}\"}}]\n", origin.address()),
        ))
        .arg("--log-level")
        .arg("debug")
        .start();
    let mut pages = String::new();
    for host in ["key.tracker.test", "gone.tracker.test"] {
        for path in [
            "/announce/KEY?info_hash=%86z",
            "/KEY/announce",
            "/scrape/KEY",
            "/announce/sh0rt-KEY",
            "/announce/KEY/x",
        ] {
            let path = path.replace("KEY", KEY);
            let reply = edge.request(
                host,
                "GET",
                &path,
                &[("Referer", &format!("https://{host}{path}"))],
            );
            pages.push_str(&reply.text());
        }
    }
    let refused = edge.request(
        "key.tracker.test",
        "GET",
        &format!("/announce/{KEY}"),
        &[("a_b", "1")],
    );
    assert_eq!(refused.status, 400);
    pages.push_str(&refused.text());
    for admin in [
        "/status",
        "/hosts",
        "/routes",
        "/connections",
        "/metrics",
        "/",
    ] {
        pages.push_str(&edge.admin(admin).unwrap_or_default());
    }
    // Redirected before any rule is looked at, and for a name that nobody serves.
    for host in ["redirecting.tracker.test", "unknown.tracker.test"] {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", edge.http)).unwrap();
        std::io::Write::write_all(
            &mut stream,
            format!("GET /announce/{KEY} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .unwrap();
        let mut reply = String::new();
        std::io::Read::read_to_string(&mut stream, &mut reply).unwrap();
        // The client's own key in a Location is for the client.
        pages.push_str(reply.split("\r\n\r\n").nth(1).unwrap_or_default());
    }
    let lines = eventually("the last line of the log", PATIENCE, || {
        let log = edge.log();
        if log.contains("host=\"unknown.tracker.test\"") || log.contains("UnknownHost") {
            Ok(log)
        } else {
            Err(log)
        }
    });
    for (what, text) in [("log", &lines), ("pages", &pages)] {
        let found: Vec<&str> = text.lines().filter(|line| line.contains(KEY)).collect();
        assert!(found.is_empty(), "{what}: {found:#?}");
    }
    assert!(lines.contains("[redacted]"), "{lines}");
}
