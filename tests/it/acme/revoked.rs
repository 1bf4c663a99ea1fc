//! Somebody else revokes a certificate: the authority's list tells, people are told, another is got, once.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::authority::{Authority, Behaviour, StepCa};
use super::{ORDER, wait_for, wait_for_trust};
use crate::support::{Edge, Origin, eventually, route};

/// What the edge keeps of the certificate.
fn record(edge: &Edge) -> Value {
    let path = "state/acme/certificate/default%2Fapp.json";
    let text = std::fs::read(edge.folder().join(path)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn serial(issued: &Value) -> String {
    let pem = issued["chainPem"].as_str().unwrap();
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    parsed.tbs_certificate.serial.to_string()
}

/// Titles of the notices that arrived.
fn receiver() -> (Origin, Arc<Mutex<Vec<String>>>) {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let all = Arc::clone(&heard);
    let origin = Origin::serve(move |request| {
        let all = Arc::clone(&all);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let notice: Value = serde_json::from_slice(&body).unwrap();
            let title = notice["title"].as_str().unwrap().to_owned();
            all.lock().unwrap().push(title);
            Response::new(Full::new(Bytes::new()))
        }
    });
    (origin, heard)
}

#[test]
fn what_others_revoke_is_noticed_and_replaced_once() {
    // For its name server.
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let Some(step) = StepCa::start(&authority) else {
        return;
    };
    let (phone, heard) = receiver();
    let spec = format!(
        "  default: true\n  notifications:\n  - name: phone\n    webhook: {{template: json, url: \"http://{}/\"}}\n",
        phone.address()
    );
    let edge = authority
        .edge()
        .arg("--revocation-check")
        .arg("2s")
        .arg("--log-level=info,tidegate_acme=debug")
        .object(format!("{}{spec}", step.issuer("any")))
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .start();
    wait_for_trust(&edge, &step.root(), "app.example.com");
    let first = record(&edge)["current"].clone();
    eventually("a look at a list that names nobody", ORDER, || {
        let log = edge.log();
        log.contains("standing=Good").then_some(()).ok_or(log)
    });
    // Nothing can be ordered at first, so that there is time to see it.
    let name = json!({"host": "app.example.com."});
    authority.dns("set-servfail", &name);
    let text = |field: &str| first[field].as_str().unwrap();
    step.revoke(text("chainPem"), text("keyPem"), &serial(&first));
    let message = wait_for(&edge, "app", "CertificateReady", "False", "Revoked");
    assert!(message.contains("keyCompromise"), "{message}");
    assert_eq!(record(&edge)["current"]["revokedBecause"], "keyCompromise");
    let state = edge.folder().join("state");
    let certs = Edge::command()
        .args(["certs", "--state-dir"])
        .arg(state)
        .arg(edge.objects())
        .output()
        .unwrap();
    let certs = String::from_utf8(certs.stdout).unwrap();
    assert!(certs.contains("revoked"), "{certs}");
    authority.dns("clear-servfail", &name);
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    let after = record(&edge);
    assert_eq!(after["previous"], {
        let mut first = first.clone();
        first["revoked"] = after["previous"]["revoked"].clone();
        first["revokedBecause"] = json!("keyCompromise");
        first
    });
    assert_ne!(after["current"]["keyPem"], first["keyPem"]);
    wait_for_trust(&edge, &step.root(), "app.example.com");
    // The list still names the first, and is read again.
    let looks = edge.log().matches("standing=Good").count();
    eventually("further looks", ORDER, || {
        let log = edge.log();
        let more = log.matches("standing=Good").count() > looks + 1;
        more.then_some(()).ok_or(log)
    });
    assert_eq!(record(&edge)["current"], after["current"]);
    let log = edge.log();
    assert_eq!(log.matches("certificate issued").count(), 2, "{log}");
    let heard = heard.lock().unwrap();
    let told = heard.iter().filter(|title| title.contains("is revoked"));
    let told: Vec<&String> = told.collect();
    assert_eq!(
        told,
        ["Certificate for app.example.com is revoked (keyCompromise)"]
    );
}
