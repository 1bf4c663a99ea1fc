//! The same mistake gets the same sentence from the API server and from `tidegate check`.
//!
//! One row per rule of the definitions. A rule that no row breaks is found by
//! [`every_rule_of_the_definitions_has_a_row`], so a rule cannot come without being tried on a real server.

use std::fmt::Write as _;
use std::process::Command;

use crate::support::program;
use crate::support::{Cluster, kubectl::Kubectl};

/// A wrong object: kind, its spec as YAML in flow style, and what is said of it.
type Row = (&'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    (
        "TlsRoute",
        "rules: [{backends: [{service: {name: a, port: 80}}]}]",
        "give hostnames, or give every rule its own hostnames",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{name: a, match: {pathPrefix: /a}, tracker: {type: HTTP}, backends: [{service: {name: a, port: 80}}]}, {name: b, tracker: {type: HTTP, exposure: Direct}, backends: [{service: {name: a, port: 80}}]}]",
        "HTTP trackers of one process are mixed: a (a.example.com) through the edge, b (a.example.com) directly; the process has one switch for all of them (on_reverse_proxy in a Torrust tracker.toml), so the peers of one side would get wrong addresses or none; take tracker.exposure: Direct out of b (a.example.com), or set it in a (a.example.com) as well, or lead b (a.example.com) through the edge without TLS by tracker.exposure: HTTP; trackers of different processes belong in routes with different trackerGroup",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{tracker: {port: 7070}, backends: [{service: {name: a, port: 80}}]}]",
        "port belongs to exposure HTTP",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{tracker: {udp: {mode: Direct}}, backends: [{service: {name: a, port: 80}}]}]",
        "tracker.udp is for tracker.type UDP",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{tracker: {type: UDP}, match: {pathPrefix: /a}, backends: [{service: {name: a, port: 80}}]}]",
        "the rule of a UDP tracker has exactly one backend, a plain service or address, and nothing that speaks of requests",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{tracker: {type: UDP, probe: {}}, backends: [{service: {name: a, port: 80}}]}]",
        "the rule of a UDP tracker has exactly one backend, a plain service or address, and nothing that speaks of requests",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], tls: {mode: Passthrough}, rules: [{match: {pathPrefix: /a}, backends: [{service: {name: a, port: 80}}]}]",
        "with tls.mode Passthrough every rule has exactly one backend and neither match nor filters, because requests are not opened",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], tls: {secretName: a, issuerRef: {name: b}}, rules: [{backends: [{service: {name: a, port: 80}}]}]",
        "set at most one of issuerRef and secretName",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], tls: {mode: Passthrough, secretName: a}, rules: [{backends: [{service: {name: a, port: 80}}]}]",
        "with mode Passthrough the backend speaks TLS: leave out issuerRef, secretName, minVersion and clientAuth",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], tls: {issuerRef: {kind: AcmeIssuer}}, rules: [{backends: [{service: {name: a, port: 80}}]}]",
        "an AcmeIssuer needs a name; kind InternalCA has none",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], tls: {secretName: a, clientAuth: {caSecretName: a, caConfigMapName: b}}, rules: [{backends: [{service: {name: a, port: 80}}]}]",
        "set exactly one of caSecretName and caConfigMapName",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{match: {pathPrefix: /a}, matches: [{pathPrefix: /b}], backends: [{service: {name: a, port: 80}}]}]",
        "set at most one of match and matches",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{match: {pathPrefix: /a, path: {value: /b}}, backends: [{service: {name: a, port: 80}}]}]",
        "set at most one of path and pathPrefix",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{name: a}]",
        "a rule needs backends, or else a filter of type RequestRedirect or FixedResponse, and not both",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{backends: [{service: {name: a, port: 80}, address: 'b:1'}]}]",
        "set exactly one of service, address, agent and static",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{backends: [{static: {path: /srv}, weight: 2}]}]",
        "a static backend has neither weight, protocol, tls nor proxyProtocol",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{backends: [{static: {path: /srv}}, {address: 'b:1'}]}]",
        "a static backend must be the only backend of its rule",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{backends: [{address: 'b:1', tls: {caSecretName: a, insecureSkipVerify: true}}]}]",
        "set at most one of caSecretName, caConfigMapName and insecureSkipVerify",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{loadBalancing: {policy: RoundRobin, hash: {key: ClientIP}}, backends: [{service: {name: a, port: 80}}]}]",
        "hash belongs to policy ConsistentHash",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{loadBalancing: {policy: RoundRobin, cookie: {name: a}}, backends: [{service: {name: a, port: 80}}]}]",
        "cookie belongs to policy StickyCookie",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{loadBalancing: {policy: ConsistentHash, hash: {key: Header}}, backends: [{service: {name: a, port: 80}}]}]",
        "header belongs to key Header, which needs it",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{filters: [{type: CORS, compression: {}}], backends: [{service: {name: a, port: 80}}]}]",
        "the member that belongs to type must be set and no other",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /a}}}], backends: [{service: {name: a, port: 80}}]}]",
        "the member that belongs to type must be set and no other",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{filters: [{type: RateLimit, rateLimit: {requestsPerSecond: 1, requests: 1, period: 1m}}], backends: [{service: {name: a, port: 80}}]}]",
        "set exactly one of requestsPerSecond and requests (with period)",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{filters: [{type: RateLimit, rateLimit: {requests: 1}}], backends: [{service: {name: a, port: 80}}]}]",
        "requests and period belong together",
    ),
    (
        "TlsRoute",
        "hostnames: [a.example.com], rules: [{filters: [{type: IPAccess, ipAccess: {}}], backends: [{service: {name: a, port: 80}}]}]",
        "set allow, deny or both",
    ),
    (
        "TunnelAgent",
        "credential: {secretName: a}, mappings: [{name: a, hostname: a.example.com, target: 'http://127.0.0.1:80'}]",
        "mappings with a hostname need allowedHostnames: an agent may only serve hostnames it was given",
    ),
    (
        "TunnelAgent",
        "credential: {secretName: a}, allowedHostnames: [a.example.com], mappings: [{name: a, hostname: a.example.com, target: 'https://127.0.0.1', tls: {caSecretName: a, insecureSkipVerify: true}}]",
        "set at most one of caSecretName, caConfigMapName and insecureSkipVerify",
    ),
    (
        "TunnelAgent",
        "credential: {secretName: a}, mappings: [{name: a, target: 'tcp://127.0.0.1:80'}]",
        "set exactly one of hostname and port",
    ),
    (
        "TunnelAgent",
        "credential: {secretName: a}, allowedHostnames: [a.example.com], mappings: [{name: a, hostname: a.example.com, port: 80, target: 'tcp://127.0.0.1:80'}]",
        "set exactly one of hostname and port",
    ),
    (
        "TunnelAgent",
        "credential: {secretName: a}, mappings: [{name: a, port: 80, target: 'http://127.0.0.1:80'}]",
        "a port leads to a target with tcp:// or udp://; for HTTP set hostname",
    ),
    (
        "TunnelAgent",
        "credential: {secretName: a}, allowedHostnames: [a.example.com], mappings: [{name: a, hostname: a.example.com, target: 'udp://127.0.0.1:80'}]",
        "datagrams have no hostname: a target with udp:// needs port",
    ),
    (
        "TunnelAgent",
        "credential: {secretName: a}, mappings: [{name: a, port: 80, target: 'tcp://127.0.0.1:80', protocol: HTTP2}]",
        "what a port carries is not opened here: leave out protocol, tls, limits and rateLimit",
    ),
    (
        "TunnelAgent",
        "credential: {secretName: a}, mappings: [{name: a, port: 80, target: 'udp://127.0.0.1:80', proxyProtocol: v1}]",
        "datagrams can have a PROXY protocol header of version v2 only",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir'",
        "read the authority's terms of service and set termsOfServiceAgreed: true",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir', termsOfServiceAgreed: true, solvers: [{name: a, http01: {}, tlsAlpn01: {}}]",
        "set exactly one of http01, tlsAlpn01, dns01 and dnsPersist01",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir', termsOfServiceAgreed: true, solvers: [{name: a, dns01: {}}]",
        "set exactly one of rfc2136, webhook, exec and provider",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir', termsOfServiceAgreed: true, solvers: [{name: a, dns01: {webhook: {url: 'https://dns.example.com', auth: {}}}}]",
        "set exactly one of basic and bearer",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir', termsOfServiceAgreed: true, notifications: [{name: a, events: [Failing]}]",
        "set exactly one of webhook and smtp",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir', termsOfServiceAgreed: true, notifications: [{name: a, events: [Fire], webhook: {template: json, url: 'https://a.example.com'}}]",
        "events are Expiring, Failing and Recovered",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir', termsOfServiceAgreed: true, notifications: [{name: a, webhook: {template: json}}]",
        "set exactly one of url and urlSecretRef",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir', termsOfServiceAgreed: true, notifications: [{name: a, webhook: {template: matrix, url: 'https://a.example.com'}}]",
        "matrixRoom belongs to template matrix, which needs it",
    ),
    (
        "AcmeIssuer",
        "directory: 'https://ca.example.com/dir', termsOfServiceAgreed: true, notifications: [{name: a, smtp: {host: a, from: a@b.c, to: [a@b.c], username: a}}]",
        "username and passwordSecretRef belong together",
    ),
];

fn object((kind, spec, _): &Row) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: wrong}}\nspec: {{{spec}}}\n"
    )
}

/// What the API server says.
fn admitted(kubectl: &Kubectl, text: &str) -> (bool, String) {
    let args = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    kubectl.attempt_with(&args, text)
}

/// What `tidegate check` says.
fn checked(text: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("wrong.yaml"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("check").arg(folder.path());
    program::run(&mut command)
}

#[test]
fn the_api_server_and_check_refuse_with_the_same_sentence() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let mut wrong = String::new();
    for row in ROWS {
        let text = object(row);
        for (who, (ok, said)) in [
            ("API server", admitted(cluster.kubectl(), &text)),
            ("tidegate check", checked(&text)),
        ] {
            if ok || !said.contains(row.2) {
                writeln!(wrong, "{who} does not say {:?}:\n{text}{said}", row.2).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What a rule cannot be read from: the object itself is of another shape.
#[test]
fn unknown_fields_and_wrong_types_are_refused_by_both() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    for (spec, named) in [
        ("hostnames: [a.example.com], rules: [], rool: 1", "rool"),
        ("hostnames: a.example.com, rules: []", "hostnames"),
        (
            "hostnames: [a.example.com], rules: [{backends: [{service: {name: a, port: '80'}}]}]",
            "port",
        ),
        (
            "hostnames: [a.example.com], rules: [{backends: [{service: {name: a, port: 65536}}]}]",
            "port",
        ),
        (
            "hostnames: [a.example.com], rules: [{filters: [{type: Unheard}]}]",
            "type",
        ),
    ] {
        let text = object(&("TlsRoute", spec, named));
        for (ok, said) in [admitted(cluster.kubectl(), &text), checked(&text)] {
            assert!(!ok && said.contains(named), "{text}{said}");
        }
    }
}

#[test]
fn every_rule_of_the_definitions_has_a_row() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let definition: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let mut messages = Vec::new();
        collect(&definition, &mut messages);
        for message in &messages {
            assert!(
                (ROWS.iter()).any(|row| row.2 == message || dynamic(message, row.2)),
                "no row breaks the rule {message:?}"
            );
        }
        count += messages.len();
    }
    assert!(count > 30, "only {count} rules were found");
}

/// Whether the sentence is one that the expression may come to: what stands in front of its first list is there.
fn dynamic(expression: &str, sentence: &str) -> bool {
    let text = expression.strip_prefix('\'').unwrap_or_default();
    let (before, _) = text.split_once("%s").unwrap_or_default();
    !before.is_empty() && sentence.starts_with(before)
}

fn collect(value: &serde_json::Value, messages: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, inner) in map {
                if key == "x-kubernetes-validations" {
                    for rule in inner.as_array().unwrap() {
                        let said = rule["message"]
                            .as_str()
                            .or(rule["messageExpression"].as_str());
                        messages.push(said.unwrap().to_owned());
                    }
                }
                collect(inner, messages);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, messages)),
        _ => {}
    }
}
