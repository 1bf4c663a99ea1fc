//! `tidegate certs`, `renew`, `revoke`, `export` and `import`, and the socket that some of them use.
//!
//! The state folders are made by the tests: the authority that the objects name cannot be reached, so that
//! any order would be seen as a failure.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use tidegate_acme::record::{AccountRecord, CertificateRecord, Issued};
use tidegate_acme::store::{Key, Kind, save};
use tidegate_model::Secret;

use crate::support::edge::PATIENCE;
use crate::support::program::{run, skipped, succeed};
use crate::support::{Edge, eventually, route_of};

const DAY: Duration = Duration::from_hours(24);
/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// Nobody listens there.
const DIRECTORY: &str = "https://127.0.0.1:9/directory";

fn issuer() -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\n\
         kind: AcmeIssuer\n\
         metadata: {{name: le}}\n\
         spec:\n\
         \x20 directory: {DIRECTORY}\n\
         \x20 termsOfServiceAgreed: true\n\
         \x20 default: true\n\
         \x20 solvers: [{{name: web, http01: {{}}}}]\n"
    )
}

fn route(name: &str, host: &str) -> String {
    route_of(
        name,
        &format!("hostnames: [{host}]\nrules:\n- backends: [{{address: \"127.0.0.1:9\"}}]\n"),
    )
}

/// Chain and key, valid from `days` ago for 90 days.
fn pair(name: &str, days: u32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let begin = SystemTime::now() - DAY * days;
    params.not_before = begin.into();
    params.not_after = (begin + DAY * 90).into();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn issued(name: &str, days: u32) -> Issued {
    let (chain_pem, key_pem) = pair(name, days);
    let mut issued = tidegate_acme::issued::inspect(&chain_pem, &Secret::new(key_pem)).unwrap();
    issued.issuer = Some("le".to_owned());
    issued.directory = Some(DIRECTORY.to_owned());
    issued
}

fn keep<T: serde::Serialize + Sync>(state: &Path, kind: Kind, name: &str, document: &T) {
    use tidegate::source::{AcmeStore, state::StateFolder};
    let folder = StateFolder::open(state).unwrap();
    let store = AcmeStore::new(std::sync::Arc::new(folder));
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(save(&store, &Key::new(kind, name), document))
        .unwrap();
}

fn keep_certificate(state: &Path, id: &str, current: Option<Issued>) {
    let mut record = CertificateRecord::new(id);
    record.current = current;
    keep(state, Kind::Certificate, id, &record);
}

/// A command with its state folder.
fn tidegate(command: &str, state: &Path) -> Command {
    let mut built = Edge::command();
    built.arg(command).arg("--state-dir").arg(state);
    built
}

/// The certificates that an edge serves, as the admin listener tells them.
fn served(edge: &Edge) -> Vec<serde_json::Value> {
    let reply = edge.admin("/api/v1/certificates").unwrap();
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

fn origin_of(edge: &Edge, host: &str) -> String {
    let of_host = |view: &&serde_json::Value| view["servedFor"][0] == host;
    served(edge)
        .iter()
        .find(of_host)
        .map(|view| view["origin"].as_str().unwrap().to_owned())
        .unwrap_or_default()
}

#[test]
fn certificates_are_listed_while_the_edge_runs_and_when_it_does_not() {
    let mut edge = Edge::builder()
        .object(issuer())
        .object(route("blog", "blog.example.com"))
        .object(route("wiki", "wiki.example.com"))
        .object(route_of(
            "nas",
            "hostnames: [nas.lan]\ntls: {issuerRef: {kind: InternalCA}}\nrules:\n- backends: [{address: \"127.0.0.1:9\"}]\n",
        ))
        .prepare(|folder| {
            let state = folder.join("state");
            keep_certificate(&state, "default/blog", Some(issued("blog.example.com", 10)));
            keep_certificate(&state, "default/gone", Some(issued("gone.example.com", 10)));
            keep_certificate(&state, "imported:later.example.com", Some(issued("later.example.com", 10)));
            fs::write(state.join("acme/certificate/default%2Fbad.json"), "{\"version\":").unwrap();
            let (ok, text) = run(&mut tidegate("certs", &state));
            assert!(!ok && text.contains("damaged at line 1"), "{text}");
        })
        .start();
    let state = edge.folder().join("state");
    let list = || -> serde_json::Value {
        let (_, text) = run(tidegate("certs", &state).args(["--output", "json"]));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let find = |all: &serde_json::Value, id: &str| {
        let found = all["certificates"]
            .as_array()
            .unwrap()
            .iter()
            .find(|cert| cert["id"] == id);
        found.unwrap_or_else(|| panic!("{id} in {all}")).clone()
    };
    let all = eventually("a failed order", PATIENCE, || {
        let all = list();
        let wiki = find(&all, "default/wiki");
        if wiki["state"] == "failing" && wiki["nextAttempt"].is_string() {
            Ok(all)
        } else {
            Err(all.to_string())
        }
    });
    assert_eq!(all["running"], true);
    let blog = find(&all, "default/blog");
    assert_eq!(
        (&blog["state"], &blog["issuer"]),
        (&"ok".into(), &"le".into())
    );
    assert_eq!(blog["names"], serde_json::json!(["blog.example.com"]));
    assert!(blog["renewAt"].is_string() && blog["notAfter"].is_string());
    let nas = find(&all, "default/nas");
    assert_eq!(
        (&nas["state"], &nas["issuer"]),
        (&"ok".into(), &"internal CA".into())
    );
    assert_eq!(find(&all, "default/gone")["state"], "unused");
    assert_eq!(find(&all, "imported:later.example.com")["state"], "waiting");
    let text = all.to_string();
    assert!(!text.contains("PRIVATE"), "{text}");

    let (ok, table) = run(&mut tidegate("certs", &state));
    assert!(!ok, "something is failing: {table}");
    for expected in [
        "ROUTE",
        "blog.example.com",
        "failing: 1 attempt",
        "internal CA",
        "79 days",
        "waiting for a route",
    ] {
        assert!(table.contains(expected), "{expected} in {table}");
    }
    assert!(!table.contains('\u{1b}'), "no colours where nobody looks");

    edge.program().signal("TERM");
    edge.program().wait(PATIENCE);
    let all = list();
    assert_eq!(all["running"], false);
    assert_eq!(find(&all, "default/blog")["state"], "ok");
    assert_eq!(find(&all, "default/wiki")["state"], "failing");
    let (_, table) = run(&mut tidegate("certs", &state));
    assert!(table.contains("no edge runs"), "{table}");

    let nowhere = edge.folder().join("nowhere");
    let (ok, text) = run(&mut tidegate("certs", &nowhere));
    assert!(!ok && text.contains("tidegate run"), "{text}");
}

/// Asks the control socket anything.
fn ask(state: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(state.join("control.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    // Refused early, the rest of a body makes the kernel reset the connection after the answer.
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

#[test]
fn a_running_edge_renews_and_revokes_when_asked() {
    let mut edge = Edge::builder()
        .object(issuer())
        .object(route("blog", "blog.example.com"))
        .object(route("wiki", "wiki.example.com"))
        .prepare(|folder| {
            let state = folder.join("state");
            keep_certificate(&state, "default/blog", Some(issued("blog.example.com", 10)));
            keep_certificate(&state, "default/wiki", Some(issued("wiki.example.com", 10)));
        })
        .start();
    let state = edge.folder().join("state");
    let socket = state.join("control.sock");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let forced = |id: &str| {
        let file = format!("acme/certificate/default%2F{id}.json");
        let text = fs::read_to_string(state.join(file)).unwrap();
        let record: CertificateRecord = serde_json::from_str(&text).unwrap();
        record.forced.is_some()
    };

    let (ok, text) = run(tidegate("revoke", &state).args(["blog", "--reason", "keyCompromise"]));
    assert!(
        !ok && text.contains("NotRevoked"),
        "the authority cannot be reached: {text}"
    );
    let (ok, text) = run(tidegate("revoke", &state).args(["blog", "--reason", "boredom"]));
    assert!(!ok && text.contains("keyCompromise"), "{text}");
    let (ok, text) = run(tidegate("renew", &state).arg("nothing"));
    assert!(
        !ok && text.contains("there are default/blog, default/wiki"),
        "{text}"
    );
    let text = succeed(tidegate("renew", &state).arg("blog.example.com"));
    assert!(text.contains("default/blog: will be renewed now"), "{text}");
    assert!(forced("blog") && !forced("wiki"));

    for (request, expected) in [
        ("GET /v1/renew HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("GET /v2/everything HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (
            "POST /v1/renew HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
            "400",
        ),
        (
            "POST /v1/renew HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n!",
            "400",
        ),
        (
            "POST /v1/renew HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
            "413",
        ),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let reply = ask(&state, request);
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {expected}")),
            "{request}: {reply}"
        );
    }

    // Whoever cleans the folder up does not make the edge unreachable.
    let answers = || match UnixStream::connect(&socket) {
        Ok(_) => {
            let reply = ask(&state, "GET /v1/certificates HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(reply.contains("default/wiki"), "{reply}");
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    };
    fs::remove_file(&socket).unwrap();
    eventually("a new socket", PATIENCE, answers);

    // The new process has the socket.
    edge.program().signal("USR2");
    let old = edge.program().wait(PATIENCE);
    assert!(old.success());
    eventually("an answer of the new process", PATIENCE, answers);
}

#[test]
fn every_certificate_is_renewed_when_asked() {
    let edge = Edge::builder()
        .object(issuer())
        .object(route("blog", "blog.example.com"))
        .prepare(|folder| {
            let state = folder.join("state");
            keep_certificate(&state, "default/blog", Some(issued("blog.example.com", 10)));
            keep_certificate(
                &state,
                "imported:later.example.com",
                Some(issued("later.example.com", 10)),
            );
        })
        .start();
    let text = succeed(tidegate("renew", &edge.folder().join("state")).arg("--all"));
    assert_eq!(text, "default/blog: will be renewed now\n");
    let without = Edge::start(&[]);
    let text = succeed(tidegate("renew", &without.folder().join("state")).arg("--all"));
    assert!(text.contains("nothing to renew"), "{text}");
}

#[test]
fn without_an_edge_the_commands_say_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    keep_certificate(&state, "default/blog", Some(issued("blog.example.com", 10)));
    // What an edge that was killed leaves.
    drop(std::os::unix::net::UnixListener::bind(state.join("control.sock")).unwrap());
    for command in ["renew", "revoke"] {
        let (ok, text) = run(tidegate(command, &state).arg("blog"));
        assert!(
            !ok && text.contains("none runs on the state folder"),
            "{text}"
        );
        assert!(text.contains("tidegate run"), "{text}");
    }
}

#[test]
fn a_name_that_is_added_later_takes_its_import_without_a_restart() {
    let (chain_pem, key_pem) = {
        let key = KeyPair::generate().unwrap();
        let names = ["blog.example.com", "www.example.com", "shop.example.com"];
        let mut params = CertificateParams::new(names.map(str::to_owned).to_vec()).unwrap();
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + DAY * 89).into();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let of_many = tidegate_acme::issued::inspect(&chain_pem, &Secret::new(key_pem)).unwrap();
    let imported = of_many.clone();
    let edge = Edge::builder()
        .object(issuer())
        .object(route("blog", "blog.example.com"))
        .prepare(move |folder| {
            let state = folder.join("state");
            keep_certificate(&state, "default/blog", Some(issued("blog.example.com", 10)));
            keep_certificate(&state, "imported:many", Some(imported));
            keep_certificate(
                &state,
                "imported:over",
                Some(issued("over.example.com", 100)),
            );
        })
        .start();
    let file = |name: &str| edge.folder().join("state/acme/certificate").join(name);
    assert!(
        !file("imported%3Aover.json").exists(),
        "nobody could use it any more"
    );
    let record = |name: &str| -> Option<CertificateRecord> {
        serde_json::from_slice(&fs::read(file(name)).ok()?).ok()
    };
    let wait_for_chain = |name: &str| {
        eventually("the imported chain", PATIENCE, || match record(name) {
            Some(record) if record.current.as_ref() == Some(&of_many) => Ok(record),
            other => Err(format!("{other:?}; log:\n{}", edge.log())),
        })
    };
    edge.write(
        "object-1.yaml",
        &route("blog", "blog.example.com, www.example.com"),
    );
    let taken = wait_for_chain("default%2Fblog.json");
    assert!(
        taken.previous.is_some(),
        "the one of before is kept for a rollback"
    );
    assert!(file("imported%3Amany.json").exists(), "shop may come");
    edge.write("shop.yaml", &route("shop", "shop.example.com"));
    wait_for_chain("default%2Fshop.json");
    eventually("the import to be gone", PATIENCE, || {
        match record("imported%3Amany.json") {
            None => Ok(()),
            Some(record) => Err(format!("{:?}", record.taken)),
        }
    });
    let log = edge.log();
    assert!(!log.contains("ordering a certificate"), "{log}");
}

#[test]
fn an_export_moves_an_edge_to_another_machine_without_an_order() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("old");
    let current = issued("blog.example.com", 10);
    let chain_pem = current.chain_pem.clone();
    keep_certificate(&state, "default/blog", Some(current));
    let account = AccountRecord {
        version: 1,
        directory: DIRECTORY.to_owned(),
        key_pem: Secret::new(KeyPair::generate().unwrap().serialize_pem()),
        url: Some("https://127.0.0.1:9/account/1".to_owned()),
        contact: Vec::new(),
        external_key_id: None,
        created_at: SystemTime::now(),
    };
    keep(&state, Kind::Account, "le 127.0.0.1:9/directory", &account);
    let file = folder.path().join("edge.tidegate");
    let passphrase = folder.path().join("passphrase");
    fs::write(&passphrase, "correct horse\n").unwrap();

    let export = |state: &Path| {
        let mut command = tidegate("export", state);
        command.arg(&file).env_remove("TIDEGATE_PASSPHRASE");
        command
    };
    let (ok, text) = run(export(&state).env("TIDEGATE_PASSPHRASE", "short"));
    assert!(!ok && text.contains("fewer than 8 characters"), "{text}");
    assert!(!file.exists());
    let text = succeed(export(&state).arg("--passphrase-file").arg(&passphrase));
    assert!(text.contains("2 documents"), "{text}");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (ok, text) = run(export(&state).arg("--passphrase-file").arg(&passphrase));
    assert!(!ok && text.contains("it exists"), "{text}");
    let (ok, text) =
        run(tidegate("export", &folder.path().join("new")).arg(folder.path().join("x")));
    assert!(!ok && text.contains("--state-dir"), "{text}");

    let import = |state: &Path, passphrase: &str| {
        let mut command = tidegate("import", state);
        command.arg(&file).env("TIDEGATE_PASSPHRASE", passphrase);
        command
    };
    let new = folder.path().join("new");
    let (ok, text) = run(&mut import(&new, "wrong horse"));
    assert!(!ok && text.contains("the passphrase is wrong"), "{text}");
    let text = succeed(import(&new, "correct horse").arg("--dry-run"));
    assert!(text.contains("would change 2 documents"), "{text}");
    assert!(!new.join("acme").exists());
    let text = succeed(&mut import(&new, "correct horse"));
    assert!(text.contains("added   certificate default/blog"), "{text}");
    let text = succeed(&mut import(&new, "correct horse"));
    assert!(text.contains("changed 0 documents"), "{text}");

    // An edge that starts on it serves the certificate and orders nothing.
    let edge = Edge::builder()
        .object(issuer())
        .object(route("blog", "blog.example.com"))
        .prepare(move |folder| fs::rename(&new, folder.join("state")).unwrap())
        .start();
    assert_eq!(origin_of(&edge, "blog.example.com"), "acme");
    let state = edge.folder().join("state");
    succeed(&mut tidegate("certs", &state));
    let (ok, text) = run(&mut import(&state, "correct horse"));
    assert!(
        !ok && text.contains("stop it, import, and start it again"),
        "{text}"
    );
    succeed(import(&state, "correct horse").arg("--dry-run"));
    let record = fs::read_to_string(state.join("acme/certificate/default%2Fblog.json")).unwrap();
    let record: CertificateRecord = serde_json::from_str(&record).unwrap();
    assert_eq!(record.current.unwrap().chain_pem, chain_pem);
    assert!(record.pending.is_none() && record.attempts.count == 0);

    let mut changed = fs::read(&file).unwrap();
    changed.truncate(changed.len() - 10);
    fs::write(&file, &changed).unwrap();
    let (ok, text) = run(import(&state, "correct horse").arg("--dry-run"));
    assert!(!ok && text.contains("it was cut"), "{text}");
}

#[test]
fn without_a_terminal_a_missing_passphrase_is_asked_for_in_words() {
    let folder = tempfile::tempdir().unwrap();
    keep_certificate(
        folder.path(),
        "default/blog",
        Some(issued("blog.example.com", 10)),
    );
    // A session of its own has no terminal, wherever the tests run.
    let mut command = Command::new("setsid");
    command
        .args([
            "--wait",
            env!("CARGO_BIN_EXE_tidegate"),
            "export",
            "--state-dir",
        ])
        .arg(folder.path())
        .arg(folder.path().join("file"))
        .env_remove("TIDEGATE_PASSPHRASE");
    let (ok, text) = run(&mut command);
    assert!(!ok && text.contains("--passphrase-file"), "{text}");
}

#[test]
fn an_import_by_root_writes_as_the_owner_of_the_state_folder() {
    use std::os::unix::fs::{MetadataExt as _, chown};
    let outside = tempfile::tempdir().unwrap();
    let state = outside.path().join("state");
    fs::create_dir(&state).unwrap();
    if chown(&state, Some(NOBODY), Some(NOBODY)).is_err() {
        skipped("only root has a user to become");
        return;
    }
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (chain_pem, key_pem) = pair("blog.example.com", 10);
    let live = outside.path().join("letsencrypt/live/blog.example.com");
    fs::create_dir_all(&live).unwrap();
    fs::write(live.join("fullchain.pem"), chain_pem).unwrap();
    fs::write(live.join("privkey.pem"), key_pem).unwrap();
    fs::set_permissions(&live, fs::Permissions::from_mode(0o700)).unwrap();
    // A link that the edge's user made leads root nowhere.
    let elsewhere = outside.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let import = || {
        let mut command = tidegate("import", &state);
        command
            .args(["--from", "certbot"])
            .arg(outside.path().join("letsencrypt"));
        command
    };
    fs::create_dir(state.join("acme")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, state.join("acme/certificate")).unwrap();
    let (ok, text) = run(&mut import());
    assert!(!ok && text.contains("not permitted"), "{text}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    fs::remove_dir_all(state.join("acme")).unwrap();

    succeed(&mut import());
    let file = state.join("acme/certificate/imported%3Ablog.example.com.json");
    assert_eq!(fs::metadata(file).unwrap().uid(), NOBODY);
}

#[test]
fn what_certbot_left_is_served_without_an_order() {
    let outside = tempfile::tempdir().unwrap();
    let letsencrypt = outside.path().join("letsencrypt");
    for (name, days) in [
        ("blog.example.com", 10),
        ("later.example.com", 10),
        ("old.example.com", 100),
    ] {
        let (chain_pem, key_pem) = pair(name, days);
        let live = letsencrypt.join("live").join(name);
        fs::create_dir_all(&live).unwrap();
        fs::write(live.join("fullchain.pem"), chain_pem).unwrap();
        fs::write(live.join("privkey.pem"), key_pem).unwrap();
    }
    let take_over = move |folder: &Path| {
        let import = |more: &[&str]| {
            let mut command = tidegate("import", &folder.join("state"));
            command
                .args(["--from", "certbot"])
                .arg(&letsencrypt)
                .arg("--dir")
                .arg(folder.join("objects"))
                .args(more);
            command
        };
        let told = succeed(&mut import(&["--dry-run"]));
        assert!(!folder.join("state").exists());
        let done = succeed(&mut import(&[]));
        for text in [told, done] {
            for expected in [
                "added   certificate default/blog: blog.example.com, valid until",
                "added   certificate imported:later.example.com",
                "skipped certificate old.example.com: it expired on",
            ] {
                assert!(text.contains(expected), "{expected} in {text}");
            }
        }
        let (ok, text) = run(tidegate("import", &folder.join("state"))
            .args(["--from", "caddy"])
            .arg(&letsencrypt));
        assert!(!ok && text.contains("/var/lib/caddy"), "{text}");
    };
    let edge = Edge::builder()
        .object(issuer())
        .object(route("blog", "blog.example.com"))
        .prepare(take_over)
        .start();
    assert_eq!(origin_of(&edge, "blog.example.com"), "acme");
    // A route that is written later finds its certificate too.
    edge.write("later.yaml", &route("later", "later.example.com"));
    eventually("the waiting certificate", PATIENCE, || {
        match origin_of(&edge, "later.example.com") {
            origin if origin == "acme" => Ok(()),
            origin => Err(origin),
        }
    });
    let log = edge.log();
    assert!(!log.contains("ordering a certificate"), "{log}");
    assert!(log.contains("an imported certificate is used"), "{log}");
    // It waits no longer.
    let import = "state/acme/certificate/imported%3Alater.example.com.json";
    eventually("the import to be gone", PATIENCE, || {
        let there = edge.folder().join(import).exists();
        (!there).then_some(()).ok_or_else(|| edge.log())
    });
    let (_, table) = run(&mut tidegate("certs", &edge.folder().join("state")));
    assert!(table.contains("imported"), "{table}");
}
