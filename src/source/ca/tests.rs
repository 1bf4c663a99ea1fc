//! The internal CA against a real folder and real verification by rustls.

use std::fs;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{ServerName, UnixTime};

use super::*;

fn names(names: &[&str]) -> Vec<HostPattern> {
    names
        .iter()
        .map(|name| HostPattern::parse(name).unwrap())
        .collect()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn accepts(root_pem: &str, leaf: &Leaf, name: &str, at: SystemTime) -> bool {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    verifier
        .verify_server_cert(
            &CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap(),
            &[],
            &ServerName::try_from(name.to_owned()).unwrap(),
            &[],
            UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap()),
        )
        .is_ok()
}

#[test]
fn a_client_that_trusts_the_root_accepts_the_leaf_for_its_names_and_time() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    let leaf = ca
        .leaf(
            &state,
            "default/app",
            &names(&["app.test", "*.w.test", "127.0.0.1", "::1"]),
            now(),
        )
        .unwrap();
    for (name, expected) in [
        ("app.test", true),
        ("x.w.test", true),
        ("127.0.0.1", true),
        ("::1", true),
        ("w.test", false),
        ("other.test", false),
    ] {
        assert_eq!(
            accepts(ca.root_pem(), &leaf, name, now()),
            expected,
            "{name}"
        );
    }
    assert!(!accepts(
        ca.root_pem(),
        &leaf,
        "app.test",
        now() + DEFAULT_LIFETIME + Duration::from_secs(1)
    ));
    assert_eq!(
        leaf.renew_at.duration_since(now()).unwrap(),
        DEFAULT_LIFETIME * 2 / 3
    );
}

#[test]
fn a_leaf_survives_a_restart_and_is_issued_again_when_it_must_be() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let wanted = names(&["b.test", "a.test"]);
    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    let first = ca.leaf(&state, "x/y", &wanted, now()).unwrap();
    let root = ca.root_pem().to_owned();

    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    assert_eq!(ca.root_pem(), root);
    let again = ca.leaf(&state, "x/y", &wanted, now()).unwrap();
    assert_eq!(again.cert_pem, first.cert_pem);

    let later = now() + DEFAULT_LIFETIME * 2 / 3;
    let renewed = ca.leaf(&state, "x/y", &wanted, later).unwrap();
    assert_ne!(renewed.cert_pem, first.cert_pem);
    assert_ne!(renewed.key_pem.expose(), first.key_pem.expose());

    let more = names(&["a.test", "b.test", "c.test"]);
    let changed = ca.leaf(&state, "x/y", &more, later).unwrap();
    assert!(accepts(ca.root_pem(), &changed, "c.test", later));
}

#[test]
fn damaged_files_are_set_aside_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let wanted = names(&["a.test"]);
    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    ca.leaf(&state, "x/y", &wanted, now()).unwrap();
    let leaf_path = state.path().join(leaf_file("x/y"));
    fs::write(&leaf_path, "-----BEGIN nothing").unwrap();
    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    ca.leaf(&state, "x/y", &wanted, now()).unwrap();
    assert!(leaf_path.with_extension("pem.corrupt-1").exists());

    let old_root = ca.root_pem().to_owned();
    assert_eq!(state.read("ca/ca.crt").unwrap().as_ref(), Some(&old_root));
    fs::write(state.path().join(ROOT), [0xff, 0xfe, 0x00]).unwrap();
    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    assert_ne!(ca.root_pem(), old_root);
    assert!(state.path().join("ca/ca.pem.corrupt-1").exists());
    // A leaf of the old root is of no use to clients of the new one.
    let leaf = ca.leaf(&state, "x/y", &wanted, now()).unwrap();
    assert!(accepts(ca.root_pem(), &leaf, "a.test", now()));
}

#[test]
fn unused_leaves_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    ca.leaf(&state, "x/y", &names(&["a.test"]), now()).unwrap();
    assert!(ca.next_renewal().is_some());
    ca.retain(&state, &BTreeSet::new());
    assert!(!state.path().join(leaf_file("x/y")).exists());
    assert_eq!(ca.next_renewal(), None);

    // What another process left behind goes too, what is wanted stays.
    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    ca.leaf(&state, "x/kept", &names(&["b.test"]), now())
        .unwrap();
    ca.leaf(&state, "x/left", &names(&["c.test"]), now())
        .unwrap();
    let mut ca = InternalCa::open(&state, DEFAULT_LIFETIME, now()).unwrap();
    ca.retain(&state, &BTreeSet::from(["x/kept".to_owned()]));
    assert!(state.path().join(leaf_file("x/kept")).exists());
    assert!(!state.path().join(leaf_file("x/left")).exists());
}
