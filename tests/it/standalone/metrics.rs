//! The metrics page of a running edge is OpenMetrics, and every family on it is documented.

use std::collections::BTreeSet;
use std::time::Duration;

use regex::Regex;

use crate::support::{Edge, Origin, eventually, ports, route, route_of};

/// A family as its metadata tells it.
#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: String,
}

/// Checks a page against the text format (OpenMetrics 1.0 §"ABNF" and the rules of each type) as far as an
/// edge can break it; the names of its families.
#[track_caller]
fn conforming(page: &str) -> BTreeSet<String> {
    let sample = Regex::new(
        r#"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"(?:,[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*")*\})? (-?[0-9][0-9.e+-]*|[+-]Inf|NaN)$"#,
    )
    .unwrap();
    let (body, rest) = page.split_once("# EOF\n").expect("no # EOF");
    assert_eq!(rest, "", "something after # EOF");
    let mut families = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut family = Family::default();
    for line in body.lines() {
        if let Some(told) = line.strip_prefix("# ") {
            let [word, name, rest] = told.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            if name != family.name {
                assert!(families.insert(name.to_owned()), "{name} comes twice");
                assert!(!name.ends_with("_total"), "{line}");
                family = Family {
                    name: name.to_owned(),
                    kind: String::new(),
                };
            }
            match word {
                "TYPE" => {
                    let known = ["gauge", "counter", "histogram", "info", "unknown"];
                    assert!(known.contains(&rest), "{line}");
                    assert_eq!(family.kind, "", "{line}");
                    rest.clone_into(&mut family.kind);
                }
                "HELP" => {}
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let parts = sample.captures(line).unwrap_or_else(|| panic!("{line}"));
        let suffix = parts[1].strip_prefix(family.name.as_str());
        let right = match family.kind.as_str() {
            "counter" => ["_total", "_created"].as_slice(),
            "info" => ["_info"].as_slice(),
            "histogram" => ["_bucket", "_count", "_sum", "_created"].as_slice(),
            _ => [""].as_slice(),
        };
        let fits = suffix.is_some_and(|suffix| right.contains(&suffix));
        assert!(fits, "{line} below {family:?}");
        let labels = parts.get(2).map_or("", |labels| labels.as_str());
        let once = series.insert(format!("{}{labels}", &parts[1]));
        assert!(once, "{line} comes twice");
        if family.kind == "counter" {
            assert!(!parts[3].starts_with('-'), "{line}");
        }
    }
    families
}

fn page(edge: &Edge) -> String {
    let reply = edge.admin("/metrics").unwrap();
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    body.to_owned()
}

#[test]
fn the_page_is_openmetrics_and_documented() {
    let origin = Origin::text("x");
    let issuer = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: AcmeIssuer\nmetadata: {{name: nobody}}\nspec:\n  \
         directory: https://127.0.0.1:{}/dir\n  termsOfServiceAgreed: true\n  notifications:\n  \
         - {{name: \"a \\\"phone\\\"\", webhook: {{template: json, url: \"http://127.0.0.1:{}/\"}}}}\n",
        ports::free(),
        ports::free()
    );
    let ordered = "
        hostnames: [b.test]
        tls: {issuerRef: {name: nobody}}
        rules:
        - backends: [{address: \"127.0.0.1:9\"}]
        ";
    let edge = Edge::builder()
        .object(route("a", "a.test", origin.address()))
        .object(issuer)
        .object(route_of("b", ordered))
        .start();
    edge.wait_for_status("a.test", "/", 200);
    let attempts = "tidegate_acme_failed_attempts{route=\"default/b\",issuer=\"nobody\"} ";
    let none = "tidegate_acme_failed_attempts{route=\"default/b\",issuer=\"nobody\"} 0\n";
    let failure = "tidegate_acme_order_failures_total{issuer=\"nobody\",reason=";
    let page = eventually("a failed attempt", Duration::from_mins(2), || {
        let page = page(&edge);
        // The engine counts first and publishes its state then.
        if page.contains(failure) && page.contains(attempts) && !page.contains(none) {
            Ok(page)
        } else {
            Err(format!("{page}\n{}", edge.log()))
        }
    });
    let families = conforming(&page);
    let documented = include_str!("../../../docs/reference/metrics.md");
    let missing: Vec<_> = families
        .iter()
        .filter(|family| {
            ["", "_total"]
                .iter()
                .all(|suffix| !documented.contains(&format!("`{family}{suffix}`")))
        })
        .collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
    for sample in [
        "tidegate_certificate_ready_status{route=\"default/a\",condition=\"True\"} 1",
        "tidegate_certificate_ready_status{route=\"default/b\",condition=\"True\"} 0",
        "tidegate_notices_failing{issuer=\"nobody\",target=\"a \\\"phone\\\"\"} 0",
        "tidegate_certificate_not_before_timestamp_seconds{name=\"a.test\",origin=\"internalCa\"",
    ] {
        assert!(page.contains(sample), "{sample} in {page}");
    }
}

#[test]
fn what_does_not_conform_is_found() {
    for page in [
        "# TYPE a gauge\na 1\n",
        "# TYPE a counter\na 1\n# EOF\n",
        "# TYPE a gauge\na 1\na 2\n# EOF\n",
        "# TYPE a gauge\na{b=\"c\nd\"} 1\n# EOF\n",
        "# TYPE a gauge\n# TYPE b gauge\na 1\n# EOF\n",
        "a 1\n# EOF\n",
    ] {
        let found = std::panic::catch_unwind(|| conforming(page));
        assert!(found.is_err(), "{page}");
    }
}
