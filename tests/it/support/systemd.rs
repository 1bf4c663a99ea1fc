//! A real systemd as the first process of namespaces of its own, with nothing to do but the units of a test.
//!
//! Its root is this machine's, with changes in memory; its network is that of whoever boots it. The folder of the
//! test is `/run/test` there, and gets a file `NAME.log` for each service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::program::{Program, not_root, run, succeed};
use super::{breathe, eventually, missing};

/// The manager itself.
const SYSTEMD: &str = "/lib/systemd/systemd";
/// A boot takes a second.
const START: Duration = Duration::from_mins(1);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running systemd. Dropping ends it with everything that it has started.
pub(crate) struct Systemd {
    /// Taken by `drop`, before the control group, which must be empty to be removed.
    boot: Option<Program>,
    first: String,
    group: PathBuf,
}

impl Systemd {
    /// Whether it cannot be had; says so loudly.
    #[track_caller]
    pub(crate) fn is_missing() -> bool {
        not_root("a systemd of the test's own") || missing(&[SYSTEMD, "unshare", "nsenter"])
    }

    /// Its version, such as 252.
    #[track_caller]
    pub(crate) fn version() -> u32 {
        let said = succeed(Command::new(SYSTEMD).arg("--version"));
        let number = said.split_whitespace().nth(1);
        number.and_then(|it| it.parse().ok()).unwrap()
    }

    /// Boots it in the thread's network.
    #[track_caller]
    pub(crate) fn boot(folder: &Path) -> Self {
        fs::create_dir(folder.join("room")).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = control_groups().join(format!("tidegate-it-{}-{number}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/testdata/boot-systemd.sh");
        let mut command = Command::new("sh");
        // Into the group first: it is the root of the namespace that is made then.
        command
            .args([
                "-ec",
                "echo $$ >\"$1/cgroup.procs\"; shift; exec \"$@\"",
                "sh",
            ])
            .arg(&group)
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child"])
            .args(["--uts", "--ipc", "--cgroup", "sh"])
            .arg(script)
            .arg(folder);
        let mut boot = Program::start(&mut command);
        let first = eventually("the first process", START, || {
            if let Some(status) = boot.ended() {
                panic!("the boot ended with {status}: {}", boot.log());
            }
            let pid = boot.pid();
            let children = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(children).map_err(|error| error.to_string())?;
            let first = children.split_whitespace().next();
            first.map(str::to_owned).ok_or_else(|| boot.log())
        });
        let systemd = Self {
            boot: Some(boot),
            first,
            group,
        };
        eventually("systemd", START, || {
            let (_, said) = run(systemd
                .command("systemctl")
                .arg("is-active")
                .arg("default.target"));
            if said.trim() == "active" {
                Ok(())
            } else {
                let log = systemd.boot.as_ref().map(Program::log);
                Err(format!("{said} {log:?}"))
            }
        });
        systemd
    }

    /// A command inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first])
            .args(["--mount", "--pid", "--uts", "--ipc", "--cgroup"])
            .arg(program);
        command
    }

    /// Runs a command inside; panics unless it succeeds.
    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> String {
        succeed(self.command(words[0]).args(&words[1..]))
    }

    /// Runs lines of shell inside, in the folder that is `/run/test/NAME` there.
    #[track_caller]
    pub(crate) fn shell(&self, folder: &str, lines: &str) -> String {
        let lines = format!("cd /run/test/{folder}\n{lines}");
        self.run(&["sh", "-ec", &lines])
    }

    /// A property of a unit, such as `ActiveState`.
    #[track_caller]
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        let said = self.run(&["systemctl", "show", unit, "--value", "--property", name]);
        said.trim().to_owned()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        drop(self.boot.take());
        // The kernel ends what was in the namespace in its own time.
        let patience = std::time::Instant::now() + START;
        while !remove(&self.group) && std::time::Instant::now() < patience {
            breathe();
        }
    }
}

/// Removes the control group with those in it, if they are empty.
fn remove(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

/// Where this machine has the hierarchy that systemd uses.
#[track_caller]
fn control_groups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let place = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let place = words.nth(1)?;
        (words.next()? == "cgroup2").then(|| place.to_owned())
    });
    place
        .expect("control groups of version 2 are mounted nowhere")
        .into()
}
