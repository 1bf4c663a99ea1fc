//! Trackers of one process: refused when they are mixed, and made alike by the edge's listener for plain HTTP.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use crate::support::netns::{Machine, Network};
use crate::support::program::run;
use crate::support::trackers::{Settings, Torrust};
use crate::support::{Edge, eventually, ports};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
const INFO_HASH: &str = "%86%7a%73%4c%0e%74%27%7e%00%01%02%03%04%05%06%07%08%09%0a%0b";
const INFO_HASH_HEX: &str = "867a734c0e74277e000102030405060708090a0b";

fn object(name: &str, namespace: &str, rules: &str) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{rules: [{rules}]}}\n"
    )
}

fn rule(name: &str, tracker: &str, address: &str) -> String {
    format!(
        "{{name: {name}, hostnames: [{name}.test], tracker: {{{tracker}}}, backends: [{{address: '{address}'}}]}}"
    )
}

fn sentence(through: &str, direct: &str) -> [String; 2] {
    [
        format!(
            "HTTP trackers of one process are mixed: {through} through the edge, {direct} directly; the process has one switch for all of them (on_reverse_proxy in a Torrust tracker.toml), so the peers of one side would get wrong addresses or none"
        ),
        format!(
            "take tracker.exposure: Direct out of {direct}, or set it in {through} as well, or lead {direct} through the edge without TLS by tracker.exposure: HTTP; trackers of different processes belong in routes with different trackerGroup"
        ),
    ]
}

/// Folded lines of an output, as one.
fn unfolded(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn check(folder: &Path) -> (bool, String) {
    let (ok, output) = run(Edge::command().arg("check").arg(folder));
    (ok, unfolded(&output))
}

#[test]
fn check_and_the_running_folder_refuse_a_mixed_set_with_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let mixed = object(
        "torrust",
        "default",
        &[
            rule("http1", "", "127.0.0.1:7070"),
            rule("http2", "exposure: Direct", "127.0.0.1:7071"),
        ]
        .join(", "),
    );
    let [found, mend] = sentence("http1 (http1.test)", "http2 (http2.test)");
    write("torrust.yaml", &mixed);
    let (ok, said) = check(folder.path());
    assert!(
        !ok && said.contains(&found) && said.contains(&mend),
        "{said}"
    );

    // Two files of two namespaces that meet in one port of one host.
    let first = object("first", "one", &rule("http1", "", "localhost:7070"));
    let second = object(
        "second",
        "two",
        &rule("http2", "exposure: Direct", "127.0.0.1:7070"),
    );
    write("torrust.yaml", &first);
    write("second.yaml", &second);
    let (ok, said) = check(folder.path());
    let [found, mend] = sentence(
        "http1 (http1.test) of one/first",
        "http2 (http2.test) of two/second",
    );
    assert!(
        !ok && said.contains(&found) && said.contains(&mend),
        "{said}"
    );
    // Uniform by the listener for plain HTTP, which nobody can miss in a check.
    write("second.yaml", &second.replace("Direct", "HTTP, port: 7070"));
    let (ok, said) = check(folder.path());
    assert!(ok, "{said}");

    // The running edge keeps what was good, and takes what is good again.
    let origin = crate::support::Origin::echo();
    let address = origin.address().to_string();
    let good = object("torrust", "default", &rule("http1", "", &address));
    let edge = Edge::builder().prepare(move |folder| {
        fs::write(folder.join("objects/torrust.yaml"), good).unwrap();
    });
    let edge = edge.start();
    let announce = "/announce?info_hash=%0e";
    edge.wait_for_status("http1.test", announce, 200);
    edge.write("torrust.yaml", &mixed.replace("127.0.0.1:7070", &address));
    let [found, _] = sentence("http1 (http1.test)", "http2 (http2.test)");
    let logged = |sentence: &str| {
        eventually("the refusal in the log", PATIENCE, || {
            let log = unfolded(&edge.log());
            let told = log.contains(sentence) && log.contains("kept=true");
            told.then_some(()).ok_or(log)
        });
    };
    logged(&found);
    edge.wait_for_status("http1.test", announce, 200);
    // Another file that leads to the same port is refused; nothing happens to the first.
    let good = object("torrust", "default", &rule("http1", "", &address));
    edge.write("torrust.yaml", &good);
    edge.write(
        "another.yaml",
        &object(
            "another",
            "other",
            &rule("http3", "exposure: Direct", &address),
        ),
    );
    let [found, _] = sentence(
        "http1 (http1.test) of default/torrust",
        "http3 (http3.test) of other/another",
    );
    eventually("the refusal in the log", PATIENCE, || {
        let log = unfolded(&edge.log());
        log.contains(&found).then_some(()).ok_or(log)
    });
    edge.wait_for_status("http1.test", announce, 200);
    // So is a change of the first, once the other is there in the right way.
    edge.write(
        "another.yaml",
        &object("another", "other", &rule("http3", "", &address)),
    );
    edge.wait_for_status("http3.test", announce, 200);
    edge.write(
        "torrust.yaml",
        &good.replace("tracker: {}", "tracker: {exposure: Direct}"),
    );
    let [found, _] = sentence(
        "http3 (http3.test) of other/another",
        "http1 (http1.test) of default/torrust",
    );
    logged(&found);
    edge.wait_for_status("http1.test", announce, 200);
    edge.wait_for_status("http3.test", announce, 200);
}

/// One announce over plain HTTP from another machine.
fn announce(machine: &Machine, port: u16, version: &str, host: &str, peer: u16) -> String {
    machine.inside(|| {
        let mut stream = TcpStream::connect(SocketAddr::from((Network::V4, port))).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let target = format!(
            "/announce?info_hash={INFO_HASH}&peer_id=-TG0001-{peer:0>12}&port={peer}&uploaded=0&downloaded=0&left=0&compact=1"
        );
        let request = format!("GET {target} HTTP/{version}\r\n{host}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    })
}

#[test]
fn a_tracker_without_tls_is_served_by_the_listener_for_plain_http_and_lists_true_addresses() {
    Network::run(|network| {
        let Some(torrust) = Torrust::start(Settings {
            on_reverse_proxy: true,
            http: vec![
                ([127, 0, 0, 1], ports::free()).into(),
                ([127, 0, 0, 1], ports::free()).into(),
            ],
            ..Settings::default()
        }) else {
            return;
        };
        let client = network.machine("client");
        let rules = [
            rule("secure", "", &torrust.http[0].to_string()),
            rule(
                "plain",
                "exposure: HTTP, port: 7070",
                &torrust.http[0].to_string(),
            ),
            rule(
                "other",
                "exposure: HTTP, port: 7071",
                &torrust.http[1].to_string(),
            )
            .replace("other.test", "plain.test"),
            rule(
                "nowhere",
                "exposure: HTTP, port: 7072",
                &torrust.http[1].to_string(),
            ),
        ];
        let edge = Edge::builder()
            .object(object("torrust", "default", &rules.join(", ")))
            .arg("--http=0.0.0.0:80,0.0.0.0:7070,0.0.0.0:7071")
            .arg("--https=0.0.0.0:443")
            .start();
        let served = |answer: &str| {
            assert!(
                answer.contains(" 200 ") && answer.contains("8:interval"),
                "{answer}"
            );
        };
        let host = "Host: plain.test:7070\r\n";
        served(&announce(&client, 7070, "1.1", host, 7001));
        served(&announce(
            &client,
            7071,
            "1.1",
            "Host: plain.test:7071\r\n",
            7002,
        ));
        // The only host of its port is meant.
        served(&announce(&client, 7070, "1.0", "", 7003));
        let lie = format!("{host}X-Forwarded-For: 198.51.100.9\r\n");
        served(&announce(&client, 7070, "1.1", &lie, 7004));
        for (port, host, status) in [
            (80, "Host: plain.test\r\n", " 404 "),
            (7070, "Host: secure.test\r\n", " 308 "),
            (80, "Host: secure.test\r\n", " 308 "),
        ] {
            let answer = announce(&client, port, "1.1", host, 7005);
            assert!(
                answer.lines().next().unwrap().contains(status),
                "{port} {host}{answer}"
            );
        }
        let mut listed: Vec<_> = (torrust.peers(INFO_HASH_HEX).into_iter())
            .map(|peer| peer.address)
            .collect();
        listed.sort();
        let expected = [7001, 7002, 7003, 7004];
        assert_eq!(
            listed,
            expected.map(|port| SocketAddr::new(client.v4.into(), port))
        );

        // No certificate is wanted for what has no TLS, and the missing listener is told with its option.
        let status = edge.admin("/api/v1/routes").unwrap();
        for words in [
            "no listener of this edge for plain HTTP has port 7072",
            "--http 80,7070,7071,7072",
        ] {
            assert!(status.contains(words), "{words}: {status}");
        }
        let certificates = edge.admin("/api/v1/certificates").unwrap();
        assert!(certificates.contains("secure.test"), "{certificates}");
        assert!(!certificates.contains("plain.test"), "{certificates}");
        let explain = |url: &str| {
            let objects = edge.objects();
            run(Edge::command().args(["explain", url, "--dir"]).arg(objects)).1
        };
        let told = explain("http://plain.test:7071/announce");
        assert!(told.contains("→ default/torrust other"), "{told}");
        let told = explain("http://secure.test:7070/announce");
        assert!(told.contains("308"), "{told}");
        let told = explain("https://plain.test/announce");
        assert!(told.contains("over plain HTTP only"), "{told}");
        assert!(torrust.interrupt().success());
    });
}
