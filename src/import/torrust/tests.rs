//! Golden files: `testdata/NAME.json` in, what is written and said out as `testdata/NAME[.VARIANT].txt`.
//!
//! `UPDATE_GOLDEN=1 cargo test import` rewrites the outputs.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/import/torrust/testdata")
}

fn input(name: &str) -> String {
    fs::read_to_string(testdata().join(format!("{name}.json"))).unwrap()
}

fn options() -> Options {
    Options {
        home: Home::Folder,
        name: "torrust".to_owned(),
        namespace: "torrust".to_owned(),
        tracker_service: "tracker".to_owned(),
        grafana_service: "grafana".to_owned(),
        addresses: Vec::new(),
        mixed_as: None,
    }
}

fn addressed() -> Options {
    Options {
        addresses: vec![
            "203.0.113.7".parse().unwrap(),
            "2001:db8::7".parse().unwrap(),
        ],
        ..options()
    }
}

/// Every golden file: its input, its variant and the options.
fn cases() -> Vec<(&'static str, &'static str, Options)> {
    let kubernetes = |options| Options {
        home: Home::Kubernetes,
        ..options
    };
    let mixed_as = |way| Options {
        mixed_as: Some(way),
        ..addressed()
    };
    vec![
        ("demo", "", addressed()),
        ("demo", "kubernetes", kubernetes(options())),
        ("mixed", "", options()),
        ("mixed", "http", mixed_as(MixedAs::Http)),
        ("mixed", "direct", mixed_as(MixedAs::Direct)),
        (
            "mixed",
            "kubernetes-http",
            kubernetes(mixed_as(MixedAs::Http)),
        ),
        ("plain", "", options()),
        ("plain", "kubernetes", kubernetes(addressed())),
        ("udp-only", "", options()),
        ("private", "", options()),
        ("private", "kubernetes", kubernetes(options())),
        ("local", "", options()),
    ]
}

fn rendered(plan: &Plan) -> String {
    if let Some(mixed) = &plan.mixed {
        return mixed.ways.clone();
    }
    let mut text = plan.explanation.clone();
    for file in &plan.files {
        text = format!("{text}\n==> {}\n{}", file.name, file.text);
    }
    text
}

#[test]
fn golden_files() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut different = Vec::new();
    for (name, variant, options) in cases() {
        let environment = parse(&input(name)).unwrap();
        let actual = rendered(&plan(&environment, &options).unwrap());
        let dot = if variant.is_empty() { "" } else { "." };
        let golden = testdata().join(format!("{name}{dot}{variant}.txt"));
        if fs::read_to_string(&golden).unwrap_or_default() == actual {
            continue;
        }
        if update {
            fs::write(&golden, actual).unwrap();
        } else {
            different.push(golden.display().to_string());
        }
    }
    assert!(
        different.is_empty(),
        "golden files differ; look at the differences after UPDATE_GOLDEN=1 cargo test import: {different:?}"
    );
}

#[test]
fn secrets_are_nowhere() {
    for (name, variant, options) in cases() {
        let text = input(name);
        assert!(text.contains("SECRET-"), "{name} has no secret to lose");
        let environment = parse(&text).unwrap();
        let plan = plan(&environment, &options).unwrap();
        let everything = format!("{environment:?} {plan:?} {options:?}");
        assert!(!everything.contains("SECRET-"), "{name} {variant}");
    }
}

/// The mistakes of the demo with one part of its text replaced.
#[track_caller]
fn refused(from: &str, to: &str) -> String {
    let text = input("demo");
    assert!(text.contains(from), "{from:?} is not in the demo");
    let mistakes = parse(&text.replacen(from, to, 1)).unwrap_err();
    let said: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let said = said.join("\n");
    assert!(!said.contains("SECRET-"), "{said}");
    said
}

#[test]
fn mistakes_say_where_what_and_how_to_mend_it() {
    for (from, to, said) in [
        (
            "\"admin_email\": \"admin@example.com\", ",
            "",
            "https.admin_email: is missing; write an address that the certificate authority may write to",
        ),
        (
            "  \"https\": { \"admin_email\": \"admin@example.com\", \"use_staging\": false },\n",
            "",
            "https.admin_email: is missing although tracker.http_trackers[0].use_tls_proxy is true; add \"https\": {\"admin_email\": \"admin@example.com\"}",
        ),
        (
            "admin@example.com",
            "admin\\\"]\\n@example.com",
            "https.admin_email: \"admin\\\"]\\n@example.com\" is not an e-mail address; write one such as \"admin@example.com\"",
        ),
        (
            "        \"domain\": \"http2.tracker-demo.example.com\",\n",
            "",
            "tracker.http_trackers[1].domain: is missing although use_tls_proxy is true; write the hostname that clients ask for, or take use_tls_proxy out",
        ),
        (
            "[::]:7071",
            "127.0.0.1:7071",
            "tracker.http_trackers[1].bind_address: 127.0.0.1:7071 can only be reached from inside the tracker's container, and use_tls_proxy is true; bind 0.0.0.0:7071, and publish it on the machine's loopback address only",
        ),
        (
            "[::]:1212",
            "[::]:0",
            "tracker.http_api.bind_address: \"[::]:0\" lets the system choose a port, which nobody can be sent to; write the port, such as 7070",
        ),
        (
            "[::]:6969",
            "6969",
            "tracker.udp_trackers[0].bind_address: \"6969\" is not an address with a port; write one such as \"0.0.0.0:7070\" or \"[::]:7070\"",
        ),
        (
            "\"domain\": \"http1.tracker-demo.example.com\"",
            "\"domain\": \"https://http1.example.com/\"",
            "tracker.http_trackers[0].domain: \"https://http1.example.com/\" has the character ':', which no hostname may have; write a hostname such as \"http1.tracker.example.com\", without scheme, port and path",
        ),
        (
            "\"domain\": \"http1.tracker-demo.example.com\"",
            "\"domain\": \"203.0.113.7\"",
            "tracker.http_trackers[0].domain: \"203.0.113.7\" is an address; write a hostname such as \"http1.tracker.example.com\", without scheme, port and path",
        ),
        (
            "grafana.tracker-demo.example.com",
            "API.tracker-demo.example.com",
            "grafana.domain: \"api.tracker-demo.example.com\" is also that of tracker.http_api; give each its own hostname, or write the route by hand: one hostname may lead to several services by path",
        ),
        (
            "[::]:7071",
            "0.0.0.0:7070",
            "tracker.http_trackers[1].bind_address: port 7070 is also that of tracker.http_trackers[0]; give each its own port",
        ),
        (
            "\"use_tls_proxy\": true",
            "\"use_tls_proxy\": \"yes\"",
            "tracker.http_trackers[0].use_tls_proxy: is text; write true or false, without quotes",
        ),
        (
            "\"tracker\": {",
            "\"tracker\": [], \"x\": {",
            "tracker: is a list; write an object in braces",
        ),
        (
            "\"environment\": {",
            "\"environment\": ",
            "the file is not JSON: expected `,` or `}` at line 4 column 11; mend it at or above this place",
        ),
    ] {
        assert_eq!(refused(from, to), said);
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = input("demo")
        .replace("[::]:7071", "[::]:0")
        .replace("api.tracker-demo.example.com", "api tracker");
    let paths: Vec<String> = parse(&text)
        .unwrap_err()
        .into_iter()
        .map(|mistake| mistake.path)
        .collect();
    assert_eq!(
        paths,
        [
            "tracker.http_trackers[1].bind_address",
            "tracker.http_api.domain"
        ]
    );
}

#[test]
fn the_deployers_own_state_is_recognised() {
    let said = |text| parse(text).unwrap_err()[0].to_string();
    assert!(said("{\"Running\": {\"context\": {}}}").contains("below data/"));
    assert!(said("{}").starts_with("tracker: is missing; give the file"));
    assert_eq!(said("[]"), "is a list; write an object in braces");
}

#[test]
fn all_over_tls_needs_a_name_for_each() {
    let environment = parse(&input("mixed")).unwrap();
    let way = Options {
        mixed_as: Some(MixedAs::Https),
        ..addressed()
    };
    let mistakes = plan(&environment, &way).unwrap_err();
    assert_eq!(
        mistakes[0].to_string(),
        "tracker.http_trackers[2].domain: is missing, and the tracker is to be reached over HTTPS; write the hostname that its certificate is to be for"
    );
    let way = Options {
        mixed_as: Some(MixedAs::Http),
        ..options()
    };
    let mistakes = plan(&environment, &way).unwrap_err();
    assert!(mistakes[0].fix.contains("--public-address"), "{mistakes:?}");
    let named = input("mixed").replace(
        "\"0.0.0.0:7072\"",
        "\"0.0.0.0:7072\", \"domain\": \"http3.example.com\"",
    );
    let way = Options {
        mixed_as: Some(MixedAs::Https),
        ..options()
    };
    let plan = plan(&parse(&named).unwrap(), &way).unwrap();
    assert_eq!(plan.mixed, None);
    let trackers = &plan.files[1].text;
    assert_eq!(trackers.matches("exposure: HTTPS").count(), 3, "{trackers}");
}

#[test]
fn names_of_environments_stay_on_their_line() {
    let text = input("demo").replace("\"tracker-demo\"", "\"x\\nkind: Secret\"");
    let plan = plan(&parse(&text).unwrap(), &options()).unwrap();
    assert!(!rendered(&plan).contains("Secret\n"), "{}", rendered(&plan));
}
