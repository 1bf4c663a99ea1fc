//! A folder that changes under a running edge.

use std::fs;
use std::os::unix::fs::symlink;

use rcgen::{CertificateParams, KeyPair};

use crate::support::edge::PATIENCE;
use crate::support::program::run;
use crate::support::{Edge, Origin, eventually, route};

#[track_caller]
fn wait_for_text(edge: &Edge, host: &str, text: &str) {
    let client = edge.client();
    eventually(
        &format!("{text:?} from {host}"),
        PATIENCE,
        || match client.try_get(host, "/") {
            Ok(reply) if reply.text() == text => Ok(()),
            Ok(reply) => Err(format!("{} {}", reply.status, reply.text())),
            Err(error) => Err(error),
        },
    );
}

#[track_caller]
fn wait_for_status_output(edge: &Edge, expected: &[&str]) -> String {
    eventually("status", PATIENCE, || {
        let (_, output) = run(Edge::command()
            .arg("status")
            .arg(edge.objects())
            .arg("--state-dir")
            .arg(edge.folder().join("state")));
        if expected.iter().all(|text| output.contains(text)) {
            Ok(output)
        } else {
            Err(output)
        }
    })
}

#[test]
fn edits_apply_and_a_mistake_keeps_the_last_good_version() {
    let (one, two) = (Origin::text("one"), Origin::text("two"));
    let edge = Edge::builder().start();
    eventually("the log says that there is nothing", PATIENCE, || {
        let log = edge.log();
        let told = log.contains("the folder holds no objects");
        told.then_some(()).ok_or(log)
    });
    edge.write("a.yaml", &route("a", "a.test", one.address()));
    wait_for_text(&edge, "a.test", "one");
    edge.write("a.yaml", &route("a", "a.test", two.address()));
    wait_for_text(&edge, "a.test", "two");

    edge.write(
        "a.yaml",
        &route("a", "a.test", one.address()).replace("rules", "ruels"),
    );
    edge.write("b.yaml", &route("b", "b.test", one.address()));
    wait_for_text(&edge, "b.test", "one");
    wait_for_text(&edge, "a.test", "two");
    wait_for_status_output(
        &edge,
        &[
            "spec.ruels",
            "did you mean \"rules\"?",
            "its last good version stays in use",
        ],
    );

    // Wrong in what it says rather than in how it is written.
    edge.write("a.yaml", &route("a", "a.test", "no-port"));
    wait_for_status_output(
        &edge,
        &["has no port", "its last good version stays in use"],
    );
    wait_for_text(&edge, "a.test", "two");

    edge.write("a.yaml", &route("a", "a.test", one.address()));
    wait_for_text(&edge, "a.test", "one");
    eventually("the log says that it is mended", PATIENCE, || {
        let log = edge.log();
        if log.contains("mended") {
            Ok(())
        } else {
            Err(log)
        }
    });
    edge.remove("b.yaml");
    let client = edge.client();
    eventually("b.test to be gone", PATIENCE, || {
        match client.try_get("b.test", "/") {
            Ok(reply) if reply.status == 200 => Err("still there".to_owned()),
            _ => Ok(()),
        }
    });
    wait_for_text(&edge, "a.test", "one");
}

#[test]
fn a_lost_folder_and_bytes_that_are_no_text_empty_nothing() {
    let one = Origin::text("one");
    let edge = Edge::start(&[route("a", "a.test", one.address())]);
    wait_for_text(&edge, "a.test", "one");
    let away = edge.folder().join("away");
    fs::rename(edge.objects(), &away).unwrap();
    eventually("the loss is told", PATIENCE, || {
        let log = edge.log();
        if log.contains("FolderUnreadable") {
            Ok(())
        } else {
            Err(log)
        }
    });
    wait_for_text(&edge, "a.test", "one");
    fs::rename(&away, edge.objects()).unwrap();
    fs::write(edge.objects().join("object-0.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    eventually("the bytes are told", PATIENCE, || {
        let log = edge.log();
        if log.contains("is not UTF-8") {
            Ok(())
        } else {
            Err(log)
        }
    });
    wait_for_text(&edge, "a.test", "one");
}

#[test]
fn a_mounted_config_map_is_followed_when_its_link_is_swapped() {
    let (one, two) = (Origin::text("one"), Origin::text("two"));
    let edge = Edge::builder().start();
    let objects = edge.objects();
    for (version, origin) in [("..1", &one), ("..2", &two)] {
        fs::create_dir(objects.join(version)).unwrap();
        let yaml = route("a", "a.test", origin.address());
        fs::write(objects.join(version).join("a.yaml"), yaml).unwrap();
    }
    symlink("..1", objects.join("..data")).unwrap();
    symlink("..data/a.yaml", objects.join("a.yaml")).unwrap();
    wait_for_text(&edge, "a.test", "one");
    symlink("..2", objects.join("..next")).unwrap();
    fs::rename(objects.join("..next"), objects.join("..data")).unwrap();
    wait_for_text(&edge, "a.test", "two");
}

#[test]
fn a_certificate_from_files_is_served_and_reloaded() {
    let origin = Origin::text("one");
    let edge = Edge::builder().start();
    let write = |not_after_year: i32| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(not_after_year, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        let folder = edge.objects().join("secrets/default/web");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
        fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    };
    let serves = |year: i32| {
        eventually("the certificate", PATIENCE, || {
            let reply = edge
                .admin("/api/v1/certificates")
                .map_err(|error| error.to_string())?;
            let found = reply.contains(&format!("\"notAfter\":\"{year}-01-01T00:00:00Z\""))
                && reply.contains("\"secret\":\"default/web\"");
            if found { Ok(()) } else { Err(reply) }
        });
    };
    write(2050);
    let yaml = route("a", "a.test", origin.address())
        .replace("spec:\n", "spec:\n  tls: {secretName: web}\n");
    edge.write("a.yaml", &yaml);
    serves(2050);
    write(2051);
    serves(2051);
}

#[test]
fn one_service_is_served_without_any_file() {
    let origin = Origin::text("hello");
    let edge = Edge::builder()
        .without_folder()
        .arg("--to")
        .arg(&origin.address().to_string())
        .arg("--host")
        .arg("app.localhost")
        .start();
    wait_for_text(&edge, "app.localhost", "hello");
    let log = edge.log();
    assert!(
        log.contains(&format!("https://app.localhost:{}/", edge.https)),
        "{log}"
    );
    assert!(log.contains("curl --cacert"), "{log}");
}

#[test]
fn a_backend_whose_name_does_not_exist_is_told() {
    let edge = Edge::start(&[route("a", "a.test", "nothing.invalid:80")]);
    let reply = edge.wait_for_status("a.test", "/", 503);
    assert!(
        reply.text().contains("BackendUnresolved"),
        "{}",
        reply.text()
    );
    let view = edge.admin("/api/v1/backends").unwrap();
    assert!(view.contains("nothing.invalid:80"), "{view}");
    assert!(!view.contains("\"resolveError\":null"), "{view}");
}
