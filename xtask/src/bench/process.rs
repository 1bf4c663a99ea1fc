//! What a running program costs: CPU time and memory of it and all its children, from /proc.

use std::collections::HashMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A started program. Dropping ends it by its pid.
pub(super) struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts it on the given core, if there is one to choose; its output goes to a file.
    pub(super) fn start(
        command: &mut Command,
        core: Option<usize>,
        log: &std::path::Path,
    ) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut pinned = pin(command, core);
        pinned
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = pinned.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name, child })
    }

    /// Waits until somebody listens on the port.
    pub(super) fn wait_for_port(&mut self, port: u16, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("look after a program")? {
                bail!("{} ended with {status}", self.name);
            }
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(());
            }
            if start.elapsed() > patience {
                bail!("{} does not listen on {port} after {patience:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// CPU time used so far by it and its children.
    pub(super) fn cpu(&self) -> Duration {
        tree(self.child.id()).into_iter().map(cpu_of).sum()
    }

    /// Resident memory of it and its children, in KiB.
    pub(super) fn rss_kib(&self) -> u64 {
        tree(self.child.id()).into_iter().map(rss_of).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // The children of a master process end with it only when it is asked, not when it is killed.
        let asked = Command::new("kill")
            .arg("-TERM")
            .arg(self.child.id().to_string())
            .status();
        let deadline = Instant::now() + Duration::from_secs(if asked.is_ok() { 5 } else { 0 });
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for pid in tree(self.child.id()) {
            let _ = Command::new("kill")
                .arg("-KILL")
                .arg(pid.to_string())
                .status();
        }
        let _ = self.child.wait();
    }
}

/// The same command bound to one core.
pub(super) fn pin(command: &Command, core: Option<usize>) -> Command {
    let mut pinned = match core {
        Some(core) => {
            let mut taskset = Command::new("taskset");
            taskset
                .args(["-c", &core.to_string()])
                .arg(command.get_program());
            taskset
        }
        None => Command::new(command.get_program()),
    };
    pinned.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => pinned.env(name, value),
            None => pinned.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        pinned.current_dir(folder);
    }
    pinned
}

/// A process and everything below it.
fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if let Some(parent) =
            stat_fields(&format!("/proc/{pid}/stat")).and_then(|fields| fields.get(1)?.parse().ok())
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        all.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    all
}

/// Fields of a stat file behind the name, which may hold spaces: state, parent, …
fn stat_fields(path: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Time on a core, in nanoseconds, summed over its threads; clock ticks where the kernel has no more.
fn cpu_of(pid: u32) -> Duration {
    let mut exact = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let text = fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
        exact += text
            .split(' ')
            .next()
            .and_then(|ns| ns.parse::<u64>().ok())
            .unwrap_or(0);
    }
    if exact > 0 {
        return Duration::from_nanos(exact);
    }
    let ticks = stat_fields(&format!("/proc/{pid}/stat"))
        .and_then(|fields| {
            Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
        })
        .unwrap_or(0);
    Duration::from_millis(ticks * 10)
}

fn rss_of(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
