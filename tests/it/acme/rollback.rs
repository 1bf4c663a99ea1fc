//! Going back to the certificate of before, and staying there.

use std::process::Command;

use super::authority::{Authority, Behaviour};
use super::{ORDER, wait_for_trust};
use crate::support::client::block_on;
use crate::support::program::{run, succeed};
use crate::support::{Client, Edge, eventually, route};

/// Serial number of what is served to a client that trusts the root.
fn serial(edge: &Edge, root: &str) -> Option<String> {
    let client = Client::new(edge.https, root.as_bytes());
    let stream = block_on(client.connect("app.example.com", &[])).ok()?;
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.raw_serial_as_string())
}

#[track_caller]
fn wait_for_serial(edge: &Edge, root: &str, fits: impl Fn(&str) -> bool) -> String {
    eventually("the certificate", ORDER, || match serial(edge, root) {
        Some(serial) if fits(&serial) => Ok(serial),
        other => Err(format!("{other:?}; log:\n{}", edge.log())),
    })
}

#[test]
fn the_certificate_of_before_is_served_until_a_renewal_is_due_or_asked_for() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let mut edge = authority
        .edge()
        .object(authority.issuer("any", "  default: true\n"))
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .start();
    let state = edge.folder().join("state");
    let command = |args: &[&str]| -> Command {
        let mut command = Edge::command();
        command.args(args).arg("--state-dir").arg(&state);
        command
    };
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example.com");
    let first = wait_for_serial(&edge, &root, |_| true);
    let (ok, text) = run(&mut command(&["rollback", "app"]));
    assert!(!ok && text.contains("[NoPrevious]"), "{text}");
    assert!(text.contains("no earlier certificate is kept"), "{text}");

    succeed(&mut command(&["renew", "app"]));
    let second = wait_for_serial(&edge, &root, |serial| serial != first);
    let text = succeed(&mut command(&["rollback", "app.example.com"]));
    assert!(
        text.contains("default/app: the certificate of before is served again"),
        "{text}"
    );
    wait_for_serial(&edge, &root, |serial| serial == first);
    let text = succeed(&mut command(&["certs"]));
    assert!(text.contains("rolled back at 20"), "{text}");

    // A restart neither forgets it nor orders.
    edge.program().signal("KILL");
    edge.program().wait(ORDER);
    edge.start_again();
    wait_for_trust(&edge, &root, "app.example.com");
    assert_eq!(serial(&edge, &root).as_ref(), Some(&first));
    assert!(
        !edge.log().contains("ordering a certificate"),
        "{}",
        edge.log()
    );

    // Twice is undone.
    succeed(&mut command(&["rollback", "app"]));
    wait_for_serial(&edge, &root, |serial| serial == second);
    succeed(&mut command(&["rollback", "app"]));
    wait_for_serial(&edge, &root, |serial| serial == first);
    succeed(&mut command(&["renew", "app"]));
    wait_for_serial(&edge, &root, |serial| serial != first && serial != second);
    let text = succeed(&mut command(&["certs"]));
    assert!(!text.contains("rolled back"), "{text}");
}
