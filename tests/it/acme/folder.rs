//! State folders in a bad state: nothing is lost, nothing is ordered in vain.

use std::fs;

use super::authority::{Authority, Behaviour};
use super::tap::Tap;
use super::{wait_for, wait_for_trust};
use crate::support::{Edge, eventually, program, route};

#[test]
fn a_record_that_cannot_be_read_is_kept_aside() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let mut edge = authority
        .edge()
        .object(authority.issuer("any", "  default: true\n"))
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .object(route("other", "other.example.com", "127.0.0.1:9"))
        .start();
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example.com");
    wait_for_trust(&edge, &root, "other.example.com");
    edge.program().signal("KILL");
    edge.program().wait(super::ORDER);
    let records = edge.folder().join("state/acme/certificate");
    let other = fs::read(records.join("default%2Fother.json")).unwrap();
    fs::write(
        records.join("default%2Fapp.json"),
        &other[..other.len() / 2],
    )
    .unwrap();
    edge.start_again();
    wait_for_trust(&edge, &root, "app.example.com");
    wait_for_trust(&edge, &root, "other.example.com");
    let log = edge.log();
    assert!(log.contains("default%2Fapp.json.corrupt-1"), "{log}");
    assert!(records.join("default%2Fapp.json.corrupt-1").is_file());
    // The other one was not touched.
    assert_eq!(
        fs::read(records.join("default%2Fother.json")).unwrap(),
        other
    );
    assert!(!log.contains("PRIVATE KEY"));
}

#[test]
fn nothing_is_ordered_that_could_not_be_kept() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let tap = Tap::start(&authority);
    let edge = authority
        .edge()
        .object(Authority::issuer_at("any", tap.port, "  default: true\n"))
        .start();
    // A file where the folder must be: as unwritable for root as for anybody.
    let records = edge.folder().join("state/acme");
    fs::create_dir_all(&records).unwrap();
    fs::write(records.join("certificate"), "").unwrap();
    edge.write("app.yaml", &route("app", "app.example.com", "127.0.0.1:9"));
    let message = wait_for(&edge, "app", "CertificateReady", "False", "OrderFailed");
    assert!(message.contains("StoreUn"), "{message}");
    assert!(message.contains("state folder"), "{message}");
    assert_eq!(tap.count("order-plz", 201), 0, "{:?}", tap.exchanges());
    fs::remove_file(records.join("certificate")).unwrap();
    wait_for_trust(&edge, &authority.root(), "app.example.com");
}

#[test]
fn a_second_edge_is_refused_the_folder() {
    let edge = Edge::start(&[route("app", "app.example.com", "127.0.0.1:9")]);
    let state = edge.folder().join("state");
    eventually("the lock", super::ORDER, || {
        let (ok, text) = program::run(
            Edge::command()
                .args(["run", "--http=off", "--https=127.0.0.1:0", "--admin=off"])
                .arg(edge.objects())
                .arg("--state-dir")
                .arg(&state),
        );
        assert!(!ok, "{text}");
        if text.contains("another tidegate uses it (process") && text.contains("--state-dir") {
            Ok(())
        } else {
            Err(text)
        }
    });
}
