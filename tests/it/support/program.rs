//! A real program run by a test: started with its output kept, ended by its pid.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::eventually;

/// How long a program may take to listen on a busy machine.
const START: Duration = Duration::from_mins(1);

/// A running program. Dropping ends it.
pub(crate) struct Program {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Program {
    /// Starts it. Its stdout and stderr are collected.
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::spawn(command.stdin(Stdio::null()))
    }

    /// Starts a program that ends when its stdin does: it will not outlive this process, however that ends.
    #[track_caller]
    pub(crate) fn start_held(command: &mut Command) -> Self {
        Self::spawn(command.stdin(Stdio::piped()))
    }

    #[track_caller]
    fn spawn(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        // A group of its own, so that what the program starts ends with it too.
        let mut child = command
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().unwrap(), Arc::clone(&log));
        collect(child.stderr.take().unwrap(), Arc::clone(&log));
        Self { name, child, log }
    }

    /// Ends a program that was started held and waits until it has tidied up.
    #[track_caller]
    pub(crate) fn release(&mut self, patience: Duration) -> std::process::ExitStatus {
        drop(self.child.stdin.take());
        self.wait(patience)
    }

    /// Writes a line to a program that was started held.
    #[track_caller]
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
    }

    /// Waits until somebody listens on the port.
    #[track_caller]
    pub(crate) fn wait_for_port(mut self, port: u16) -> Self {
        let what = format!("{} listening on {port}", self.name);
        eventually(&what, START, || {
            if let Some(status) = self.ended() {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            TcpStream::connect(("127.0.0.1", port))
                .map(drop)
                .map_err(|error| error.to_string())
        });
        self
    }

    /// Everything printed so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory that it held at most so far.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Bytes of memory that it holds.
    pub(crate) fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap();
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes * 1024
    }

    /// CPU time that it took so far, its threads included.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name in parentheses may hold anything; utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum();
        // USER_HZ, which Linux fixes at 100 for programs.
        Duration::from_millis(ticks * 10)
    }

    /// The exit status, if it is over.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends a signal by name, such as `TERM`.
    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success(), "kill -{signal} {}", self.pid());
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn wait(&mut self, patience: Duration) -> std::process::ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, patience, || {
            self.child
                .try_wait()
                .unwrap()
                .ok_or_else(|| "still running".to_owned())
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The group outlives its leader where the program started others, as an upgrade in place does.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill")
            .args(["-KILL", "--", &group])
            .stderr(Stdio::null())
            .status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stream: impl Read + Send + 'static, log: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            log.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
}

/// Says that the test of this thread is skipped, and why. Not by `eprintln`: the harness swallows what
/// passing tests print.
pub(crate) fn skipped(why: impl std::fmt::Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// Whether the tests may do what only root may; says so loudly if not.
pub(crate) fn not_root(what: &str) -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|it| it.uid() == 0);
    if !root {
        skipped(format_args!("{what} needs root"));
    }
    !root
}

/// Runs to the end and returns stdout and stderr together; panics with them unless the status is 0.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let (ok, text) = run(command);
    assert!(ok, "{command:?} failed:\n{text}");
    text
}

/// Runs to the end: whether the status was 0, and stdout and stderr together.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> (bool, String) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// The program on the search path, with the folders that unprivileged shells often lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Where `cargo xtask tools` puts what it installs.
pub(crate) fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools")
}

/// A program of the tests' Python environment.
pub(crate) fn python(program: &str) -> PathBuf {
    tools().join("python-test/bin").join(program)
}

/// A file beside the real-program tests.
pub(crate) fn real_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/real")
        .join(name)
}

/// Whether a program the test needs is missing. Says so loudly; under `CI` it is a failure.
#[track_caller]
pub(crate) fn missing<S: AsRef<OsStr>>(programs: &[S]) -> bool {
    for program in programs {
        let path = Path::new(program.as_ref());
        let found = if path.is_absolute() {
            path.exists()
        } else {
            find(&path.to_string_lossy()).is_some()
        };
        if !found {
            let name = path.display();
            assert!(
                std::env::var_os("CI").is_none(),
                "{name} is not installed, and nothing may be skipped under CI: `cargo xtask tools`"
            );
            skipped(format_args!(
                "{name} is not installed; `cargo xtask tools` does it"
            ));
            return true;
        }
    }
    false
}
