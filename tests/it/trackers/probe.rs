//! Trackers that are asked which addresses they take: three real ones, each set up right and wrong.

use std::time::Duration;

use serde_json::Value;

use crate::support::trackers::{Opentracker, PeerTube, Settings, Torrust};
use crate::support::{Edge, eventually, ports};

const PATIENCE: Duration = Duration::from_mins(1);

fn tracker(name: &str, address: impl std::fmt::Display, more: &str) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\n\
         kind: TlsRoute\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 hostnames: [{name}.test]\n\
         \x20 rules:\n\
         \x20 - name: http1\n\
         \x20   tracker: {{probe: {{interval: 1m}}{more}}}\n\
         \x20   backends: [{{address: '{address}'}}]\n"
    )
}

/// Status, reason and message of the condition, once the tracker was asked.
fn told(edge: &Edge, name: &str) -> (String, String, String) {
    eventually(&format!("what {name} told"), PATIENCE, || {
        let reply = edge.admin("/api/v1/routes").map_err(|it| it.to_string())?;
        let body = reply.split_once("\r\n\r\n").map_or("", |it| it.1);
        let all: Value = serde_json::from_str(body).map_err(|it| it.to_string())?;
        let condition = find(&all, name).ok_or_else(|| reply.clone())?;
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        if text("reason").starts_with("Tracker") {
            Ok((text("status"), text("reason"), text("message")))
        } else {
            Err(format!("{condition}\n{}", edge.log()))
        }
    })
}

fn find<'a>(all: &'a Value, name: &str) -> Option<&'a Value> {
    let routes = all.as_array().or_else(|| all["routes"].as_array())?;
    let route = routes.iter().find(|it| it["name"] == name)?;
    let conditions = route["conditions"].as_array()?;
    conditions
        .iter()
        .find(|it| it["type"] == "ClientAddressPreserved")
}

#[test]
fn each_tracker_tells_whether_it_reads_the_header_and_keeps_nothing_of_the_question() {
    let torrust = |on_reverse_proxy| {
        Torrust::start(Settings {
            on_reverse_proxy,
            http: vec![([127, 0, 0, 1], ports::free()).into()],
            ..Settings::default()
        })
    };
    let (Some(right), Some(wrong)) = (torrust(true), torrust(false)) else {
        return;
    };
    let trackers = (
        PeerTube::start_with(true),
        PeerTube::start_with(false),
        Opentracker::start(&["00".repeat(20)]),
    );
    let (Some(trusting), Some(careful), Some(opentracker)) = trackers else {
        return;
    };
    let edge = Edge::start(&[
        tracker("right", right.http[0], ""),
        tracker("wrong", wrong.http[0], ""),
        tracker("trusting", trusting.address, ""),
        tracker("careful", careful.address, ""),
        tracker("closed", opentracker.address, ""),
        tracker("gone", format!("127.0.0.1:{}", ports::free()), ""),
    ]);
    let line = "set on_reverse_proxy = true under [core.net] in its tracker.toml and restart it";
    // Loopback, which it takes for nobody.
    let nobody = "every peer with the address 0.0.0.0;";
    for (name, status, reason, words) in [
        (
            "right",
            "True",
            "TrackerReadsHeader",
            "http1 (right.test) reads it",
        ),
        ("wrong", "False", "TrackerIgnoresHeader", line),
        ("wrong", "False", "TrackerIgnoresHeader", nobody),
        ("trusting", "True", "TrackerReadsHeader", "reads it"),
        (
            "careful",
            "False",
            "TrackerIgnoresHeader",
            "the address 127.0.0.1;",
        ),
        (
            "closed",
            "Unknown",
            "TrackerProbeFailed",
            "Requested download is not authorized for use with this tracker",
        ),
        (
            "gone",
            "Unknown",
            "TrackerProbeFailed",
            "could not be asked",
        ),
    ] {
        let told = told(&edge, name);
        assert_eq!((&*told.0, &*told.1), (status, reason), "{name}: {told:?}");
        assert!(told.2.contains(words), "{name}: {told:?}");
    }
    // The made-up peers have said that they stop.
    for tracker in [&right, &wrong] {
        let stats = tracker.ask("/api/v1/stats");
        assert_eq!(stats["seeders"], 0, "{stats}");
        assert_eq!(stats["leechers"], 0, "{stats}");
        assert_eq!(tracker.counter("tcp4_announces_handled"), 4);
    }
    drop(edge);

    // Reached without the edge it has to be the other way round.
    let edge = Edge::start(&[
        tracker("right", wrong.http[0], ", exposure: Direct"),
        tracker("wrong", right.http[0], ", exposure: Direct"),
    ]);
    let found = told(&edge, "right");
    assert_eq!(
        (&*found.0, &*found.1),
        ("True", "TrackerIgnoresHeader"),
        "{found:?}"
    );
    let found = told(&edge, "wrong");
    assert_eq!(
        (&*found.0, &*found.1),
        ("False", "TrackerReadsHeader"),
        "{found:?}"
    );
    assert!(found.2.contains("on_reverse_proxy = false"), "{found:?}");
    for tracker in [right, wrong] {
        assert!(tracker.interrupt().success());
    }
}
