//! curl over every HTTP version, and h2load.

use std::process::Command;

use crate::support::program::{run, succeed};
use crate::support::{Edge, Origin, missing, route};

#[test]
fn curl_speaks_every_http_version() {
    if missing(&["curl"]) {
        return;
    }
    let origin = Origin::echo();
    let edge = Edge::start(&[route("app", "app.test", origin.address())]);
    edge.wait_for_status("app.test", "/", 200);
    for (option, version) in [("--http1.0", "1"), ("--http1.1", "1.1"), ("--http2", "2")] {
        let text = succeed(
            edge.curl(&["app.test"])
                .args([option, "-w", "\n%{http_code} %{http_version}"])
                .arg(edge.url("app.test", "/a?b=%2F+c")),
        );
        let (body, end) = text.rsplit_once('\n').unwrap();
        // A server may answer HTTP/1.0 with its own minor version; curl writes 1.0 as "1".
        let same = end == format!("200 {version}");
        assert!(
            same || (version == "1" && end == "200 1.1"),
            "{option}: {end}"
        );
        let seen: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(seen["target"], "/a?b=%2F+c", "{option}");
    }
}

#[test]
fn curl_uploads_with_and_without_a_length() {
    if missing(&["curl"]) {
        return;
    }
    let origin = Origin::echo();
    let edge = Edge::start(&[route("app", "app.test", origin.address())]);
    edge.wait_for_status("app.test", "/", 200);
    let file = edge.folder().join("upload");
    std::fs::write(&file, vec![b'x'; 5 << 20]).unwrap();
    let at = format!("@{}", file.display());
    for options in [
        &["--http1.1"][..],
        &["--http1.1", "-H", "Transfer-Encoding: chunked"],
        &["--http1.1", "-H", "Expect: 100-continue"],
        &["--http2"],
    ] {
        let text = succeed(
            edge.curl(&["app.test"])
                .args(options)
                .args(["--data-binary", &at])
                .arg(edge.url("app.test", "/upload")),
        );
        let seen: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(seen["body_bytes"], 5 << 20, "{options:?}");
    }
}

#[test]
fn plain_http_is_redirected() {
    if missing(&["curl"]) {
        return;
    }
    let origin = Origin::echo();
    let edge = Edge::start(&[route("app", "app.test", origin.address())]);
    edge.wait_for_status("app.test", "/", 200);
    let text = succeed(
        edge.curl(&["app.test"])
            .args(["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"])
            .arg(format!("http://app.test:{}/a?b=c", edge.http)),
    );
    assert!(text.starts_with("308 https://app.test"), "{text}");
    assert!(text.ends_with("/a?b=c"), "{text}");
}

#[test]
fn h2load_loses_none_of_twenty_thousand() {
    if missing(&["h2load"]) {
        return;
    }
    let origin = Origin::text("hello");
    let edge = Edge::start(&[route("app", "app.test", origin.address())]);
    edge.wait_for_status("app.test", "/", 200);
    for h1 in [false, true] {
        let mut h2load = Command::new("h2load");
        h2load.args(["-t", "1", "-n", "20000", "-c", "32"]);
        h2load.args(if h1 {
            &["--h1", "-m", "1"][..]
        } else {
            &["-m", "10"]
        });
        h2load
            .arg(format!("--connect-to=127.0.0.1:{}", edge.https))
            .arg(edge.url("app.test", "/"));
        let (_, text) = run(&mut h2load);
        assert!(
            text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout")
                && text.contains("status codes: 20000 2xx"),
            "h1 {h1}: {text}"
        );
    }
}
