//! State folders without room and such that became read-only: nothing is ordered that could not be kept, what
//! is there is served, and it goes on by itself.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::authority::{Authority, Behaviour};
use super::tap::{Tap, When};
use super::{condition, finding, wait_for, wait_for_trust};
use crate::support::edge::PATIENCE;
use crate::support::program::{not_root, run, skipped, succeed};
use crate::support::{Edge, Program, eventually, missing, route};

/// A mount namespace that outlives the edge. Dropping ends it.
struct Mounts {
    holder: Program,
}

impl Mounts {
    /// None, said loudly, where there can be none.
    fn start() -> Option<Self> {
        if not_root("a file system of the test's own") || missing(&["unshare", "nsenter"]) {
            return None;
        }
        if !run(Command::new("unshare").args(["--mount", "true"])).0 {
            skipped("there are no mount namespaces here");
            return None;
        }
        // Does nothing for as long as it is let.
        let holder = Program::start(Command::new("unshare").args([
            "--mount",
            "tail",
            "--follow",
            "/dev/null",
        ]));
        let mounts = Self { holder };
        let ours = fs::read_link("/proc/self/ns/mnt").unwrap();
        eventually("a mount namespace", PATIENCE, || {
            let theirs = fs::read_link(mounts.namespace());
            match theirs {
                Ok(theirs) if theirs != ours => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        Some(mounts)
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/mnt", self.holder.pid())
    }

    /// What a command has to begin with to be run inside.
    fn enter(&self) -> Vec<String> {
        let namespace = format!("--mount={}", self.namespace());
        vec!["nsenter".to_owned(), namespace]
    }

    /// Runs a command inside, with one path.
    fn run(&self, command: &[&str], path: &Path) {
        inside(&self.enter(), command, path);
    }

    /// The path of a file inside, as seen from here.
    fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        root.join(path.strip_prefix("/").unwrap())
    }
}

fn inside(enter: &[String], command: &[&str], path: &Path) {
    let (program, args) = enter.split_first().unwrap();
    succeed(Command::new(program).args(args).args(command).arg(path));
}

/// An edge whose state folder is a file system of its own, with room for little.
fn edge(authority: &Authority, tap: &Tap, mounts: &Mounts) -> Edge {
    let enter = mounts.enter();
    let words: Vec<&str> = enter.iter().map(String::as_str).collect();
    let enter = enter.clone();
    authority
        .edge()
        .under(&words)
        .prepare(move |folder| {
            let state = folder.join("state");
            fs::create_dir(&state).unwrap();
            let tmpfs = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tidegate"];
            inside(&enter, &tmpfs, &state);
        })
        .object(Authority::issuer_at("any", tap.port, "  default: true\n"))
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .start()
}

/// Takes all room that is left; returns what has to be removed.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = File::create(&path).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

/// Waits until the status says that the store cannot be written, and why.
#[track_caller]
fn wait_until_told(edge: &Edge, name: &str, why: &str) {
    let message = wait_for(edge, name, "CertificateReady", "False", "OrderFailed");
    assert!(message.contains("StoreUnwritable"), "{message}");
    assert!(message.contains(why), "{message}");
    let (state, found) = finding(edge, name, "Store").unwrap();
    assert_eq!(state, "Blocking", "{found}");
    assert!(found.contains(why), "{found}");
}

#[test]
fn a_full_state_folder_costs_no_order() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let Some(mounts) = Mounts::start() else {
        return;
    };
    let tap = Tap::start(&authority);
    let mut edge = edge(&authority, &tap, &mounts);
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example.com");
    let state = edge.folder().join("state");
    let filler = fill(&mounts.seen(&state));
    edge.write(
        "late.yaml",
        &route("late", "late.example.com", "127.0.0.1:9"),
    );
    wait_until_told(&edge, "late", "No space left");
    wait_for_trust(&edge, &root, "app.example.com");
    // Nor is an edge that starts then without the certificates that it has.
    edge.start_again();
    wait_for_trust(&edge, &root, "app.example.com");
    wait_until_told(&edge, "late", "No space left");
    assert_eq!(tap.count("order-plz", 201), 1, "{:?}", tap.exchanges());
    fs::remove_file(filler).unwrap();
    wait_for_trust(&edge, &root, "late.example.com");
    // Not because the time of the next attempt had come.
    let log = edge.log();
    assert!(log.contains("the store can be written again"), "{log}");
    assert_eq!(tap.count("order-plz", 201), 2, "{:?}", tap.exchanges());
}

#[test]
fn a_read_only_state_folder_costs_no_order() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let Some(mounts) = Mounts::start() else {
        return;
    };
    let tap = Tap::start(&authority);
    let mut edge = edge(&authority, &tap, &mounts);
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example.com");
    let state = edge.folder().join("state");
    // The lock is open for writing, so that the system refuses this for the whole folder.
    let records = state.join("acme");
    let text = records.to_str().unwrap();
    mounts.run(&["mount", "--bind", text], &records);
    mounts.run(&["mount", "-o", "remount,bind,ro"], &records);
    edge.write(
        "late.yaml",
        &route("late", "late.example.com", "127.0.0.1:9"),
    );
    wait_until_told(&edge, "late", "Read-only file system");
    wait_for_trust(&edge, &root, "app.example.com");
    // An edge that starts on a file system that is read-only as a whole serves what is there.
    edge.program().signal("KILL");
    edge.program().wait(PATIENCE);
    mounts.run(&["umount"], &records);
    mounts.run(&["mount", "-o", "remount,ro"], &state);
    edge.start_again();
    wait_for_trust(&edge, &root, "app.example.com");
    wait_until_told(&edge, "late", "Read-only file system");
    assert_eq!(tap.count("order-plz", 201), 1, "{:?}", tap.exchanges());
    mounts.run(&["mount", "-o", "remount,rw"], &state);
    wait_for_trust(&edge, &root, "late.example.com");
    assert_eq!(tap.count("order-plz", 201), 2, "{:?}", tap.exchanges());
}

#[test]
fn a_certificate_that_could_not_be_kept_is_served_and_kept_later() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let Some(mounts) = Mounts::start() else {
        return;
    };
    let tap = Tap::start(&authority);
    let edge = edge(&authority, &tap, &mounts);
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example.com");
    let state = mounts.seen(&edge.folder().join("state"));
    let folder = state.clone();
    tap.act_on("certZ", When::Before, move || {
        fill(&folder);
    });
    edge.write(
        "late.yaml",
        &route("late", "late.example.com", "127.0.0.1:9"),
    );
    wait_for_trust(&edge, &root, "late.example.com");
    eventually("what is wrong", PATIENCE, || {
        match condition(&edge, "late", "CertificateReady") {
            Some((status, _, message)) if message.contains("No space left") => {
                assert_eq!(status, "True", "{message}");
                Ok(())
            }
            other => Err(format!("{other:?}; log:\n{}", edge.log())),
        }
    });
    fs::remove_file(state.join("filler")).unwrap();
    let record = state.join("acme/certificate/default%2Flate.json");
    eventually("a kept certificate", PATIENCE, || {
        let text = fs::read_to_string(&record).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        if record["current"].is_object() {
            Ok(())
        } else {
            Err(edge.log())
        }
    });
    eventually("a good status", PATIENCE, || {
        match condition(&edge, "late", "CertificateReady") {
            Some((_, _, message)) if message == "valid and served" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(tap.count("order-plz", 201), 2, "{:?}", tap.exchanges());
}
