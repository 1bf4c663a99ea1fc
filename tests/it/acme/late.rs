//! A machine that was off while its certificate fell due, or expired.

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;
use tidegate_acme::plan::moment::{jitter_of, rfc3339_text};

use super::authority::{Authority, Behaviour};
use super::tap::{Tap, When};
use super::{cert, condition, time, wait_for, wait_for_trust};
use crate::support::edge::PATIENCE;
use crate::support::{eventually, route};

const DAY: Duration = Duration::from_hours(24);

#[test]
fn a_certificate_that_expired_meanwhile_is_replaced_at_once() {
    let behaviour = Behaviour {
        lifetime: 5,
        ..Behaviour::calm()
    };
    let Some(authority) = Authority::start(&behaviour) else {
        return;
    };
    let tap = Tap::start(&authority);
    let mut edge = authority
        .edge()
        .object(Authority::issuer_at("any", tap.port, "  default: true\n"))
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .start();
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example.com");
    edge.program().signal("KILL");
    edge.program().wait(PATIENCE);
    let ends = time(&cert(&edge, "app")["notAfter"]);
    eventually("the end of its life", PATIENCE, || {
        // The last second of a certificate is part of its life.
        match SystemTime::now().duration_since(ends + Duration::from_secs(1)) {
            Ok(_) => Ok(()),
            Err(left) => Err(format!("{:?} are left", left.duration())),
        }
    });
    // Held up at the first question, to see what is said until then.
    let (go_on, wait) = mpsc::channel::<()>();
    tap.act_on("dir", When::Before, move || {
        let _ = wait.recv_timeout(PATIENCE);
    });
    edge.start_again();
    let message = eventually("what is said", PATIENCE, || {
        match condition(&edge, "app", "CertificateReady") {
            Some((status, _, message)) if message.contains("expired") => {
                assert_eq!(status, "False", "{message}");
                Ok(message)
            }
            other => Err(format!("{other:?}; log:\n{}", edge.log())),
        }
    });
    assert!(message.contains("is asked for one"), "{message}");
    assert_eq!(cert(&edge, "app")["state"], "expired");
    go_on.send(()).unwrap();
    // What is trusted now can only be another one.
    wait_for_trust(&edge, &root, "app.example.com");
}

/// The record of a certificate of ninety days that are over but for a few, and its root.
fn overdue(directory: &str) -> (String, String) {
    let now = SystemTime::now();
    let (begin, end) = (now - 65 * DAY, now + 25 * DAY);
    loop {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["app.example.com".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "old");
        params.not_before = begin.into();
        params.not_after = end.into();
        let chain = params.self_signed(&key).unwrap().pem();
        // Many that fell due meanwhile are spread over five minutes; this one is among the first.
        if jitter_of(chain.as_bytes()) > 0.005 {
            continue;
        }
        let record = json!({"version": 1, "id": "default/app", "current": {
            "chainPem": chain,
            "keyPem": key.serialize_pem(),
            "names": ["app.example.com"],
            "issuer": "any",
            "directory": directory,
            "profile": "default",
            "notBefore": rfc3339_text(begin),
            "notAfter": rfc3339_text(end),
            "ariId": "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE",
        }});
        return (record.to_string(), chain);
    }
}

#[test]
fn a_certificate_that_fell_due_meanwhile_is_served_until_it_is_renewed() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let tap = Tap::start(&authority);
    let (record, root) = overdue(&format!("https://localhost:{}/dir", tap.port));
    let (go_on, wait) = mpsc::channel::<()>();
    tap.act_on("order-plz", When::Before, move || {
        let _ = wait.recv_timeout(PATIENCE);
    });
    let edge = authority
        .edge()
        .prepare(|folder| {
            let records = folder.join("state/acme/certificate");
            fs::create_dir_all(&records).unwrap();
            fs::write(records.join("default%2Fapp.json"), record).unwrap();
        })
        .object(Authority::issuer_at("any", tap.port, "  default: true\n"))
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .start();
    wait_for_trust(&edge, &root, "app.example.com");
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    let renew_at = time(&cert(&edge, "app")["renewAt"]);
    assert!(renew_at <= SystemTime::now() + Duration::from_secs(5));
    go_on.send(()).unwrap();
    wait_for_trust(&edge, &authority.root(), "app.example.com");
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    // The authority does not know what it is to replace: that costs a question, not an order.
    assert_eq!(tap.count("order-plz", 201), 1, "{:?}", tap.exchanges());
}
