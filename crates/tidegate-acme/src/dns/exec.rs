//! A program that writes the record: `PROGRAM present|cleanup FQDN VALUE`, as lego's `exec` provider calls it.
//!
//! Scripts written for lego, Traefik or Caddy's lego bridge work unchanged. Credentials reach the program by
//! the environment it is given in the settings, never by its arguments, which every user of the machine can
//! read. Nothing else of the edge's environment is passed on but PATH, HOME, LANG and TZ.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tidegate_model::Secret;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::task::JoinHandle;

use super::{DnsSolver, SolverError, TxtRecord};

/// Time for one call when nothing else is set.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_mins(2);

/// What is read of a program's output; the rest is thrown away.
const OUTPUT_LIMIT: u64 = 64 * 1024;

/// Time to read what is left in the pipes after the program's end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How much of it an error repeats.
const SHOWN: usize = 400;

const PASSED_ON: &[&str] = &["PATH", "HOME", "LANG", "TZ"];

/// What is run, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Arguments before the action; no credentials.
    pub args: Vec<String>,
    /// Environment for the program, credentials included.
    pub env: BTreeMap<String, Secret<String>>,
    /// Time for one call; then it is killed.
    pub timeout: Duration,
}

/// Calls a program.
#[derive(Debug)]
pub struct Exec {
    settings: Settings,
}

impl Exec {
    /// Checks the settings; runs nothing yet.
    pub fn new(settings: Settings) -> Result<Self, SolverError> {
        if settings.program.is_absolute() {
            Ok(Self { settings })
        } else {
            Err(SolverError::Settings {
                what: format!(
                    "program {} has no absolute path",
                    settings.program.display()
                ),
                fix: "give the whole path, beginning with /".to_owned(),
            })
        }
    }

    async fn run(&self, action: &'static str, record: &TxtRecord) -> Result<(), SolverError> {
        let failed = |problem: String| SolverError::Program {
            program: self.settings.program.display().to_string(),
            action,
            problem,
        };
        let mut command = Command::new(&self.settings.program);
        command
            .args(&self.settings.args)
            .args([action, &record.fqdn, &record.value])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("EXEC_ACTION", action)
            .env("EXEC_FQDN", &record.fqdn)
            .env("EXEC_VALUE", &record.value)
            .env("EXEC_TTL", record.ttl_seconds().to_string());
        for (name, value) in &self.settings.env {
            command.env(name, value.expose());
        }
        let mut child = command
            .spawn()
            .map_err(|error| failed(format!("cannot be started: {error}")))?;
        let stdout = tokio::spawn(drain(child.stdout.take()));
        let stderr = tokio::spawn(drain(child.stderr.take()));
        let status = tokio::time::timeout(self.settings.timeout, child.wait())
            .await
            .map_err(|_| {
                failed(format!(
                    "no end after {} s, killed",
                    self.settings.timeout.as_secs_f32()
                ))
            })?
            .map_err(|error| failed(format!("cannot be waited for: {error}")))?;
        if status.success() {
            return Ok(());
        }
        // A process that it left behind may hold the pipes open; its end is what counts.
        let (stdout, stderr) = tokio::join!(told(stdout), told(stderr));
        let said = if stderr.trim().is_empty() {
            stdout
        } else {
            stderr
        };
        Err(failed(format!("{status}{}", self.quoted(&said))))
    }

    /// The end of what the program said, credentials that it echoed taken out.
    fn quoted(&self, said: &str) -> String {
        let mut said = said.trim().to_owned();
        for secret in self.settings.env.values() {
            let secret = secret.expose();
            if secret.len() >= 4 {
                said = said.replace(secret.as_str(), "[redacted]");
            }
        }
        if said.is_empty() {
            return String::new();
        }
        let skip = said.chars().count().saturating_sub(SHOWN);
        let tail: String = said.chars().skip(skip).collect();
        let dots = if skip > 0 { "…" } else { "" };
        format!(": {dots}{}", tail.replace('\n', " | "))
    }
}

async fn told(mut output: JoinHandle<String>) -> String {
    let text = match tokio::time::timeout(LAST_WORDS, &mut output).await {
        Ok(text) => text.unwrap_or_default(),
        Err(_) => String::new(),
    };
    output.abort();
    text
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else {
        return String::new();
    };
    let mut kept = Vec::new();
    let read = (&mut pipe).take(OUTPUT_LIMIT).read_to_end(&mut kept).await;
    if read.is_ok() {
        // A program that is not listened to stops at a full pipe.
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[async_trait]
impl DnsSolver for Exec {
    fn name(&self) -> String {
        format!("program {}", self.settings.program.display())
    }

    async fn present(&self, record: &TxtRecord, _now: SystemTime) -> Result<(), SolverError> {
        self.run("present", record).await
    }

    async fn remove(&self, record: &TxtRecord, _now: SystemTime) -> Result<(), SolverError> {
        self.run("cleanup", record).await
    }
}
