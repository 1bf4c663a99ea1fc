//! Wildcards by TXT records: written by dynamic update, by a program, by a web service, and once by a person.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::authority::{Authority, Behaviour};
use super::named::{KEY, KEY_NAME, Named};
use super::{ORDER, condition, route_view, wait_for, wait_for_trust};
use crate::support::{Origin, eventually, route_of, secret};

fn route(name: &str, domain: &str, issuer: &str) -> String {
    route_of(
        name,
        &format!(
            "
            hostnames: [\"{domain}\", \"*.{domain}\"]
            tls: {{issuerRef: {{name: {issuer}}}}}
            rules:
            - backends: [{{address: \"127.0.0.1:9\"}}]
            "
        ),
    )
}

#[test]
fn a_wildcard_and_its_apex_by_dynamic_update() {
    let Some(named) = Named::start("example") else {
        return;
    };
    let behaviour = Behaviour {
        name_server: Some(named.port),
        ..Behaviour::default()
    };
    let Some(authority) = Authority::start(&behaviour) else {
        return;
    };
    let port = named.port;
    let solver = format!(
        "  solvers:\n  - name: zone\n    dns01:\n      rfc2136: {{server: \"127.0.0.1:{port}\", \
         tsig: {{keyName: {KEY_NAME}, secretRef: {{name: tsig, key: secret}}}}}}\n      \
         nameServers: [\"127.0.0.1:{port}\"]\n      propagationTimeout: 30s\n"
    );
    let edge = authority
        .edge()
        .object(authority.issuer("zone", &solver))
        .object(route("all", "app.example", "zone"))
        .start();
    // Without the Secret its only solver cannot be used; with another key the server refuses.
    let message = wait_for(&edge, "all", "CertificateReady", "False", "OrderFailed");
    assert!(
        message.contains("solver \"zone\" cannot be used"),
        "{message}"
    );
    let problems = edge.admin("/api/v1/status").unwrap();
    assert!(
        problems.contains("Secret default/tsig does not exist"),
        "{problems}"
    );
    let wrong = KEY.replace("dGlk", "d3Jv");
    edge.write(
        "tsig.yaml",
        &secret("tsig", "Opaque", &[("secret", &wrong)]),
    );
    eventually("the refusal on the object", ORDER, || {
        match condition(&edge, "all", "CertificateReady") {
            Some((_, reason, message))
                if reason == "OrderFailed"
                    && message.contains("BADSIG")
                    && message.contains("copy the secret of key edge") =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}\n{}\n{}", edge.log(), named.log())),
        }
    });
    // The right key takes effect at once.
    edge.write("tsig.yaml", &secret("tsig", "Opaque", &[("secret", KEY)]));
    wait_for(&edge, "all", "CertificateReady", "True", "CertificateReady");
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example");
    wait_for_trust(&edge, &root, "any.app.example");
    for key in [KEY, wrong.as_str()] {
        assert!(!edge.log().contains(key), "the key is in the log");
    }
    // Each value that was written was taken away again.
    let count = |what: &str| {
        let lines = named.log();
        let of = |line: &&str| line.contains(what) && line.contains("_acme-challenge.app.example");
        lines.lines().filter(of).count()
    };
    eventually("the records to be removed", ORDER, || {
        let (added, removed) = (count("adding an RR"), count("deleting an RR"));
        if added >= 2 && removed >= added {
            Ok(())
        } else {
            Err(format!(
                "{added} added, {removed} removed:\n{}",
                named.log()
            ))
        }
    });
}

#[test]
fn a_wildcard_by_a_program() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("dns-update");
    let management = authority.dns_management;
    fs::write(
        &script,
        format!(
            "#!/bin/sh\n\
             [ \"$1\" = --zone ] && [ \"$TOKEN\" = s3cr3t-of-a-test ] || {{ echo denied >&2; exit 3; }}\n\
             case $2 in present) path=set-txt ;; *) path=clear-txt ;; esac\n\
             echo \"$2 $3\" >> {}/calls\n\
             curl -sS --fail -d \"{{\\\"host\\\":\\\"$3\\\",\\\"value\\\":\\\"$4\\\"}}\" \
             http://127.0.0.1:{management}/$path\n",
            folder.path().display()
        ),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let solver = format!(
        "  solvers:\n  - name: program\n    dns01:\n      exec: {{command: {}, args: [--zone], \
         environmentSecretName: environment}}\n      nameServers: [\"127.0.0.1:{}\"]\n",
        script.display(),
        authority.dns
    );
    let edge = authority
        .edge()
        .object(secret(
            "environment",
            "Opaque",
            &[("TOKEN", "s3cr3t-of-a-test")],
        ))
        .object(authority.issuer("program", &solver))
        .object(route("all", "exec.example.com", "program"))
        .start();
    wait_for(&edge, "all", "CertificateReady", "True", "CertificateReady");
    wait_for_trust(&edge, &authority.root(), "any.exec.example.com");
    let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
    for action in ["present", "cleanup"] {
        let line = format!("{action} _acme-challenge.exec.example.com.");
        assert!(calls.contains(&line), "{calls}");
    }
    assert!(!edge.log().contains("s3cr3t-of-a-test"));
}

#[test]
fn a_wildcard_by_a_web_service() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let management = authority.dns_management;
    let service = Origin::serve(move |request| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let answer = |status: StatusCode| {
            let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
            *response.status_mut() = status;
            response
        };
        let path = match head.uri.path() {
            "/acme/present" => "set-txt",
            "/acme/cleanup" => "clear-txt",
            _ => return answer(StatusCode::NOT_FOUND),
        };
        // edge:hunter2-of-a-test
        if head
            .headers
            .get("authorization")
            .map(http::HeaderValue::as_bytes)
            != Some(b"Basic ZWRnZTpodW50ZXIyLW9mLWEtdGVzdA==")
        {
            return answer(StatusCode::UNAUTHORIZED);
        }
        let asked: Value = serde_json::from_slice(&body).unwrap();
        let told = json!({"host": asked["fqdn"], "value": asked["value"]}).to_string();
        let url = format!("http://127.0.0.1:{management}/{path}");
        let done = Command::new("curl")
            .args(["-sS", "--fail", "-d", &told, &url])
            .status();
        answer(match done {
            Ok(status) if status.success() => StatusCode::OK,
            _ => StatusCode::BAD_GATEWAY,
        })
    });
    let solver = format!(
        "  solvers:\n  - name: service\n    dns01:\n      webhook: {{url: \"http://{}/acme\", \
         auth: {{basic: {{secretName: service}}}}}}\n      nameServers: [\"127.0.0.1:{}\"]\n",
        service.address(),
        authority.dns
    );
    let credentials = [("username", "edge"), ("password", "hunter2-of-a-test")];
    let edge = authority
        .edge()
        .object(secret("service", "kubernetes.io/basic-auth", &credentials))
        .object(authority.issuer("service", &solver))
        .object(route("all", "web.example.com", "service"))
        .start();
    wait_for(&edge, "all", "CertificateReady", "True", "CertificateReady");
    wait_for_trust(&edge, &authority.root(), "any.web.example.com");
    assert!(!edge.log().contains("hunter2-of-a-test"));
}

#[test]
fn a_wildcard_by_a_record_that_stays() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let solver = "  solvers: [{name: lasting, dnsPersist01: {}}]\n";
    let edge = authority
        .edge()
        .object(authority.issuer("lasting", solver))
        .object(route("all", "lasting.example.com", "lasting"))
        .start();
    // What must be published is said before anything is ordered.
    wait_for(&edge, "all", "CertificateReady", "False", "OrderFailed");
    let view = route_view(&edge, "all").unwrap();
    let wildcard = view["preflight"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| {
            finding["name"] == "*.lasting.example.com" && finding["check"] == "DnsRecord"
        })
        .unwrap_or_else(|| panic!("{view:#}"));
    assert_eq!(wildcard["state"], "Blocking", "{view:#}");
    let fix = wildcard["fix"].as_str().unwrap();
    let (_, line) = fix.split_once('`').unwrap();
    let (line, _) = line.split_once('`').unwrap();
    let (host, value) = line.split_once(" IN TXT ").unwrap();
    assert_eq!(host, "_validation-persist.lasting.example.com.");
    assert!(value.contains("; accounturi=https://localhost:"), "{value}");
    assert!(value.contains("; policy=wildcard"), "{value}");
    let ledgers = edge.folder().join("state/acme/ledger");
    let orders = fs::read_dir(ledgers).map_or(0, Iterator::count);
    assert_eq!(orders, 0, "{}", edge.log());
    // Published, it is noticed by itself.
    authority.dns(
        "set-txt",
        &json!({"host": host, "value": value.trim_matches('"')}),
    );
    wait_for(&edge, "all", "CertificateReady", "True", "CertificateReady");
    wait_for_trust(&edge, &authority.root(), "any.lasting.example.com");
}
