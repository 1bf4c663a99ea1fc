//! An issuer one of whose solvers is broken: the names of the others get their certificates.

use super::authority::{Authority, Behaviour};
use super::{route_view, wait_for, wait_for_trust};
use crate::support::program::run;
use crate::support::{Edge, route_of, secret};

fn route(name: &str, host: &str) -> String {
    route_of(
        name,
        &format!(
            "
            hostnames: [\"{host}\"]
            tls: {{issuerRef: {{name: some}}}}
            rules:
            - backends: [{{address: \"127.0.0.1:9\"}}]
            "
        ),
    )
}

#[test]
fn a_broken_solver_harms_only_the_names_that_it_alone_is_for() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let solvers = format!(
        "  solvers:
  - name: zone
    selector: {{dnsZones: [zone.example.com]}}
    dns01:
      rfc2136:
        server: 127.0.0.1:{}
        tsig: {{keyName: edge, secretRef: {{name: tsig, key: secret}}}}
  - {{name: web, http01: {{}}}}
",
        authority.dns
    );
    let edge = authority
        .edge()
        .object(authority.issuer("some", &solvers))
        .object(route("app", "app.example.com"))
        .object(route("host", "host.zone.example.com"))
        .object(route("wild", "*.zone.example.com"))
        .start();
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example.com");
    wait_for_trust(&edge, &root, "host.zone.example.com");
    let message = wait_for(&edge, "wild", "CertificateReady", "False", "OrderFailed");
    for words in [
        "solver \"zone\" cannot be used",
        "spec.solvers[0].dns01.rfc2136.tsig.secretRef",
        "Secret default/tsig does not exist",
    ] {
        assert!(message.contains(words), "{words} in {message}");
    }
    let view = route_view(&edge, "wild").unwrap();
    let finding = &view["preflight"][0];
    assert_eq!(finding["check"], "Challenge", "{view:#}");
    assert_eq!(finding["state"], "Blocking");
    assert_eq!(finding["name"], "*.zone.example.com");
    let fix = finding["fix"].as_str().unwrap();
    assert!(fix.contains("create it"), "{fix}");
    let command = |name: &str| {
        let mut command = Edge::command();
        command.arg(name).arg("--state-dir");
        command.arg(edge.folder().join("state"));
        command
    };
    let (_, text) = run(&mut command("status"));
    assert!(text.contains("solver \"zone\" is left out: "), "{text}");
    // Mending it starts an attempt at once, which gets as far as the name server.
    edge.write(
        "tsig.yaml",
        &secret("tsig", "Opaque", &[("secret", "dGlkZWdhdGUtdGVzdC1rZXk=")]),
    );
    crate::support::eventually("the solver is tried", super::ORDER, || {
        let message = super::condition(&edge, "wild", "CertificateReady");
        let message = message.map(|(_, _, message)| message).unwrap_or_default();
        if message.contains("cannot be used") || !message.contains("zone.example.com") {
            Err(message)
        } else {
            Ok(())
        }
    });
}
