//! Golden files: `testdata/NAME.in.yaml` in, statuses and snapshot out as `testdata/NAME.out.yaml`.
//!
//! `UPDATE_GOLDEN=1 cargo test translate` rewrites the outputs. Inputs are ordinary documents plus four
//! kinds that exist only here: `TestCertificate` makes a Secret, an issued or a default certificate,
//! `TestService` a Service with its endpoints, `TestEnvironment` says what is true of the edge, and `Next` begins a further translation that knows what
//! the one before it returned (only the last is rendered).

mod input;
mod isolation;
mod nasty;
mod render;
mod samples;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_acme::settings::{DnsMethod, Method};
use tidegate_model::{ObjectName, ObservedPeers};

use super::{Exposure, Inputs, Translation, translate};
use crate::api::conditions::{ConditionType, find_condition};
use crate::api::validate_cel;

/// 2026-01-01T00:00:00Z.
pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/translate/testdata")
}

/// Translates each step of an input with what the step before returned.
fn run(text: &str) -> (Inputs, Translation) {
    let mut last = None;
    for (step, mut inputs) in input::steps(text).into_iter().enumerate() {
        if let Some((_, previous)) = last {
            let previous: Translation = previous;
            inputs.last_good = Arc::new(previous.last_good);
        }
        let at = now() + Duration::from_secs(60) * u32::try_from(step).unwrap();
        let translation = translate(&inputs, at);
        last = Some((inputs, translation));
    }
    last.expect("an input has at least one step")
}

#[test]
fn golden_files() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut inputs: Vec<PathBuf> = fs::read_dir(testdata())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".in.yaml"))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 25, "golden inputs are missing");
    let mut failures = String::new();
    for path in inputs {
        let (_, translation) = run(&fs::read_to_string(&path).unwrap());
        let actual = render::render(&translation);
        let golden = PathBuf::from(path.to_string_lossy().replace(".in.yaml", ".out.yaml"));
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if actual == expected {
            continue;
        }
        if update {
            fs::write(&golden, actual).unwrap();
            continue;
        }
        writeln!(failures, "{}:", golden.display()).unwrap();
        failures.push_str(&difference(&expected, &actual));
    }
    assert!(
        failures.is_empty(),
        "golden files differ; look at the differences and run UPDATE_GOLDEN=1 cargo test translate\n{failures}"
    );
}

/// Lines that are only on one side, around the first difference.
fn difference(expected: &str, actual: &str) -> String {
    let mut out = String::new();
    let expected: Vec<_> = expected.lines().collect();
    let actual: Vec<_> = actual.lines().collect();
    let same = expected
        .iter()
        .zip(&actual)
        .take_while(|(a, b)| a == b)
        .count();
    for line in expected.iter().skip(same).take(8) {
        writeln!(out, "  - {line}").unwrap();
    }
    for line in actual.iter().skip(same).take(8) {
        writeln!(out, "  + {line}").unwrap();
    }
    out
}

/// `check` relies on `translate` alone, so it must refuse whatever the API server would refuse by CEL.
#[test]
fn translate_is_at_least_as_strict_as_the_schema() {
    let mut refused_by_cel = 0;
    for entry in fs::read_dir(testdata()).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".in.yaml") {
            continue;
        }
        let (inputs, translation) = run(&fs::read_to_string(&path).unwrap());
        let refused = |name: &Option<String>| {
            translation.problems.iter().any(|problem| {
                super::report::condition_of(problem.reason) == ConditionType::Accepted
                    && Some(&problem.object.name) == name.as_ref()
            })
        };
        let ours = |class: &Option<String>| *class == inputs.environment.class_name;
        for route in inputs.routes.iter().filter(|r| ours(&r.spec.class_name)) {
            let cel = validate_cel(&**route);
            refused_by_cel += cel.len();
            assert!(
                cel.is_empty() || refused(&route.metadata.name),
                "{}: TlsRoute {:?}: {cel:?}",
                path.display(),
                route.metadata.name
            );
        }
        for agent in &inputs.agents {
            let cel = validate_cel(&**agent);
            assert!(cel.is_empty() || refused(&agent.metadata.name), "{cel:?}");
        }
        for issuer in inputs.own_issuers() {
            let cel = validate_cel(&**issuer);
            assert!(cel.is_empty() || refused(&issuer.metadata.name), "{cel:?}");
        }
    }
    assert!(
        refused_by_cel > 20,
        "the schema's rules refuse nothing: {refused_by_cel}"
    );
}

#[test]
fn the_same_inputs_give_the_same_snapshot() {
    let text = fs::read_to_string(testdata().join("filters.in.yaml")).unwrap();
    let inputs = input::steps(&text).remove(0);
    let first = translate(&inputs, now());
    let mut again = inputs.clone();
    again.last_good = Arc::new(first.last_good);
    let second = translate(&again, now() + Duration::from_secs(10));
    assert_eq!(first.snapshot, second.snapshot);
    assert_eq!(first.statuses, second.statuses);
}

#[test]
fn ten_thousand_routes_are_translated_without_fuss() {
    let text = fs::read_to_string(testdata().join("minimal.in.yaml")).unwrap();
    let mut inputs = input::steps(&text).remove(0);
    let route = Arc::clone(&inputs.routes[0]);
    inputs.routes = (0..10_000)
        .map(|number| {
            let mut route = (*route).clone();
            route.metadata.name = Some(format!("route-{number}"));
            route.spec.hostnames = vec![format!("h{number}.example.com")];
            Arc::new(route)
        })
        .collect();
    let translation = translate(&inputs, now());
    assert_eq!(translation.snapshot.hosts.len(), 10_000);
    assert_eq!(translation.wanted_certificates.len(), 10_000);
}

/// The writer of an issuer's records and the fingerprint of its settings.
fn dns_method(translation: &Translation) -> DnsMethod {
    let issuer = translation.issuers.get("good").expect("it can be used");
    match &issuer.solvers[0].method {
        Method::Dns01(with) => with.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_writer_of_records_is_made_again_only_when_its_settings_change() {
    let text = fs::read_to_string(testdata().join("solvers.in.yaml")).unwrap();
    let inputs = input::steps(&text).remove(0);
    let first = translate(&inputs, now());
    let before = dns_method(&first);
    let mut again = inputs.clone();
    again.last_good = Arc::new(first.last_good);
    let second = translate(&again, now());
    let same = dns_method(&second);
    assert!(Arc::ptr_eq(&before.solver, &same.solver));
    assert_eq!(before.fingerprint, same.fingerprint);
    again.last_good = Arc::new(second.last_good);
    let key = ObjectName::new("default", "tsig");
    let secret = again.secrets.get_mut(&key).unwrap();
    Arc::make_mut(secret)
        .data
        .insert("secret".to_owned(), b"YW5vdGhlciBrZXk=".to_vec());
    let third = translate(&again, now());
    let changed = dns_method(&third);
    assert!(!Arc::ptr_eq(&before.solver, &changed.solver));
    assert_ne!(before.fingerprint, changed.fingerprint);
    // What is not used any more is not kept.
    assert_eq!(third.last_good.dns_solvers.len(), 4);
    let shown = format!("{third:?}");
    for credential in ["YW5vdGhlciBrZXk", "hunter2"] {
        assert!(!shown.contains(credential), "{credential} is shown");
    }
}

/// In a build with the feature the same issuer can be used.
#[cfg(not(feature = "dns-providers"))]
#[test]
fn a_provider_that_this_build_does_not_have_names_the_feature() {
    let text = "
        apiVersion: edge.tidegate.dev/v1alpha1
        kind: AcmeIssuer
        metadata: {name: hoster}
        spec:
          directory: https://acme.example/directory
          termsOfServiceAgreed: true
          solvers:
          - name: zone
            dns01: {provider: {name: hetzner, credentials: {secretName: dns, keys: {apiToken: token}}}}
---
        apiVersion: v1
        kind: Secret
        metadata: {name: dns}
        stringData: {token: s3cr3t}
    ";
    let inputs = input::steps(text).remove(0);
    let translation = translate(&inputs, now());
    let problems: Vec<String> = translation
        .problems
        .iter()
        .map(|problem| format!("{} {problem}", problem.reason))
        .collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let problem = &problems[0];
    let expected = "UnsupportedValue AcmeIssuer hoster spec.solvers[0].dns01.provider: ";
    assert!(problem.starts_with(expected), "{problem}");
    assert!(problem.contains("--features dns-providers"), "{problem}");
    assert!(!problem.contains("s3cr3t"), "{problem}");
}

#[test]
fn addresses_that_are_lost_before_the_edge_are_told_by_every_route() {
    let text = fs::read_to_string(testdata().join("services.in.yaml")).unwrap();
    let mut inputs = input::steps(&text).remove(0);
    let of = |inputs: &Inputs| {
        let translation = translate(inputs, now());
        let statuses = translation.statuses.routes.values();
        statuses
            .map(|status| {
                let type_ = ConditionType::ClientAddressPreserved;
                let found = find_condition(&status.conditions, type_).unwrap();
                (found.reason.clone(), found.message.clone())
            })
            .collect::<Vec<_>>()
    };
    let fine = of(&inputs);
    inputs.exposure = Some(Exposure::default());
    assert_eq!(of(&inputs), fine);
    inputs.exposure = Some(Exposure {
        peers: ObservedPeers {
            private: 100,
            private_addresses: vec!["10.42.0.1".parse().unwrap()],
            ..ObservedPeers::default()
        },
        own_addresses: vec!["10.42.0.9".parse().unwrap()],
        ..Exposure::default()
    });
    let lost = of(&inputs);
    assert_eq!(lost.len(), fine.len());
    for (reason, message) in lost {
        assert_eq!(reason, "SourceAddressReplaced", "{message}");
        assert!(
            message.contains("(10.42.0.1)") && message.contains("externalTrafficPolicy: Local"),
            "{message}"
        );
    }
}
