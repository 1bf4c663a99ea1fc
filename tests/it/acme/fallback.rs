//! The authority goes away: another one is asked before anything expires, and the first again afterwards.

use super::authority::{Authority, Behaviour, StepCa};
use super::{condition, wait_for, wait_for_trust};
use crate::support::{Edge, eventually, route};

#[test]
fn another_authority_is_asked_while_the_first_is_down() {
    let behaviour = Behaviour {
        // Renewed after half of it, so that a minute shows the whole story.
        lifetime: 60,
        ..Behaviour::default()
    };
    let Some(mut authority) = Authority::start(&behaviour) else {
        return;
    };
    let Some(second) = StepCa::start(&authority) else {
        return;
    };
    let more = "  default: true\n  fallbackIssuer: second\n";
    let edge = authority
        .edge()
        .object(authority.issuer("first", more))
        .object(second.issuer("second"))
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .start();
    let ready = |reason: &str| wait_for(&edge, "app", "CertificateReady", "True", reason);
    let mut story = vec![("issued", ready("CertificateReady"))];
    wait_for_trust(&edge, &authority.root(), "app.example.com");
    authority.stop();
    eventually("a failed renewal", super::ORDER, || {
        match condition(&edge, "app", "CertificateReady") {
            Some((status, _, message)) if message.contains("renewal failed") => {
                // What is served is still good.
                assert_eq!(status, "True", "{message}");
                story.push(("first authority down", message));
                Ok(())
            }
            other => Err(format!("{other:?}; log:\n{}", edge.log())),
        }
    });
    wait_for_trust(&edge, &second.root(), "app.example.com");
    story.push(("second authority stands in", ready("CertificateReady")));
    authority.start_again();
    let state = edge.folder().join("state");
    Edge::run(&[
        "renew",
        "app",
        "--state-dir",
        state.to_str().unwrap_or_default(),
    ]);
    wait_for_trust(&edge, &authority.root(), "app.example.com");
    story.push(("first authority back", ready("CertificateReady")));
    for (what, message) in &story {
        eprintln!("{what}: {message}");
    }
    assert_eq!(
        story.first().map(|(_, message)| message.as_str()),
        Some("valid and served")
    );
    assert_eq!(
        story.last().map(|(_, message)| message.as_str()),
        Some("valid and served")
    );
}
