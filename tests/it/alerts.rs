//! The alert rules ask for metrics that exist, name commands that exist, and do what their tests say.

use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use serde_json::Value;

use crate::support::program;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus")
}

fn rules() -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join("tidegate.rules.yaml")).unwrap();
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    let rules = file["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() >= 5);
    rules
}

#[test]
fn alerts_use_what_is_documented() {
    let metrics = include_str!("../../docs/reference/metrics.md");
    let commands = include_str!("../../docs/reference/cli.md");
    let metric = Regex::new(r"\b(?:tidegate|process)_[a-z0-9_]+").unwrap();
    let command = Regex::new("`tidegate ([a-z-]+)").unwrap();
    let tests = std::fs::read_to_string(folder().join("tidegate.rules.test.yaml")).unwrap();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(name.starts_with("Tidegate"), "{name}");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["warning", "critical"].contains(&severity), "{name}");
        for used in metric.find_iter(rule["expr"].as_str().unwrap()) {
            let used = used.as_str();
            assert!(metrics.contains(&format!("`{used}`")), "{name}: {used}");
        }
        assert!(rule["annotations"]["summary"].is_string(), "{name}");
        let runbook = rule["annotations"]["runbook"].as_str().unwrap();
        for used in command.captures_iter(runbook) {
            let heading = format!("## `tidegate {}`", &used[1]);
            assert!(commands.contains(&heading), "{name}: {heading}");
        }
        let tested = format!("alertname: {name}\n");
        assert!(tests.contains(&tested), "{name} has no test");
    }
}

#[test]
fn prometheus_takes_the_rules_and_their_tests_pass() {
    let promtool = program::tools().join("bin/promtool");
    if program::missing(&[&promtool]) {
        return;
    }
    for args in [
        ["check", "rules", "tidegate.rules.yaml"],
        ["test", "rules", "tidegate.rules.test.yaml"],
    ] {
        program::succeed(Command::new(&promtool).args(args).current_dir(folder()));
    }
}
