//! Where the passphrase of an export comes from: a file, the environment, or a person at a terminal.
//!
//! Never an argument: those of a process can be read by every user of the machine.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tidegate_model::Secret;

const VARIABLE: &str = "TIDEGATE_PASSPHRASE";
const TERMINAL: &str = "/dev/tty";
/// Bytes of a passphrase.
const LONGEST: u64 = 4096;

/// The option that commands with a passphrase share.
#[derive(Debug, Args)]
pub(super) struct PassphraseArgs {
    /// File whose first line is the passphrase; without it TIDEGATE_PASSPHRASE, else the terminal is asked.
    #[arg(long, env = "TIDEGATE_PASSPHRASE_FILE", value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Whether the passphrase is being made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is typed twice.
    New,
    /// It is typed once.
    Known,
}

impl PassphraseArgs {
    /// Finds it.
    pub(super) fn find(&self, purpose: Purpose) -> anyhow::Result<Secret<String>> {
        if let Some(path) = &self.passphrase_file {
            let mut text = String::new();
            File::open(path)
                .and_then(|file| file.take(LONGEST).read_to_string(&mut text))
                .with_context(|| format!("read the passphrase from {}", path.display()))?;
            return Ok(Secret::new(first_line(&text)));
        }
        if let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) {
            let text = text.into_string();
            let text = text.map_err(|_| anyhow::anyhow!("read {VARIABLE}: it is not UTF-8"))?;
            return Ok(Secret::new(text));
        }
        let first = ask("Passphrase of the export: ")?;
        if purpose == Purpose::New && ask("The same again: ")? != first {
            anyhow::bail!("use the passphrase: the two are not the same");
        }
        Ok(first)
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Asks at the terminal, twice, for a password that is being made up.
pub(super) fn ask_new_password() -> anyhow::Result<Secret<String>> {
    let first = ask("Password: ")?;
    if ask("The same again: ")? != first {
        anyhow::bail!("use the password: the two are not the same");
    }
    Ok(first)
}

/// Asks at the terminal, without showing what is typed.
fn ask(prompt: &str) -> anyhow::Result<Secret<String>> {
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open(TERMINAL)
        .map_err(|_| {
            anyhow::anyhow!(
                "ask for the passphrase: there is no terminal; give it in a file with --passphrase-file or in {VARIABLE}"
            )
        })?;
    let mut read = || -> io::Result<String> {
        terminal.write_all(prompt.as_bytes())?;
        let quiet = Quiet::new(terminal.try_clone()?)?;
        let mut text = String::new();
        BufReader::new((&terminal).take(LONGEST)).read_line(&mut text)?;
        drop(quiet);
        terminal.write_all(b"\n")?;
        Ok(text)
    };
    let text = read().context("read the passphrase from the terminal")?;
    Ok(Secret::new(first_line(&text)))
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet {
    terminal: File,
    before: Termios,
}

impl Quiet {
    fn new(terminal: File) -> io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Nothing can be done about it, and shells mend it.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
