//! `tidegate account`: entries for the file of `--accounts`.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tidegate_model::Secret;

use super::passphrase;
use super::terminal::Terminal;
use crate::app::accounts::{Scope, hash_password, new_token};

/// Characters of a password at least.
const SHORTEST: usize = 10;
/// Bytes of a password at most.
const LONGEST: u64 = 1024;

/// Make entries for the file of accounts that may use the API.
///
/// The file has hashes only. Give it to `tidegate run` with --accounts; changes count within seconds.
#[derive(Debug, Args)]
pub(super) struct AccountArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Password(PasswordArgs),
    Token(TokenArgs),
}

/// Ask for a password and print the entry of `users` for it.
#[derive(Debug, Args)]
struct PasswordArgs {
    /// Name to log in with.
    name: String,

    /// File with the password, or `-` for standard input, instead of the terminal.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// What the account may do; everything if left out.
    #[arg(long, value_delimiter = ',', value_parser = scope)]
    scopes: Vec<Scope>,
}

/// Make a token, print it once to standard error, and the entry of `tokens` for it to standard output.
#[derive(Debug, Args)]
struct TokenArgs {
    /// Name of the token, for the log.
    name: String,

    /// What it may do: read, logs:read, mappings:write, agents:write.
    #[arg(long, required = true, value_delimiter = ',', value_parser = scope)]
    scopes: Vec<Scope>,

    /// When it ends, such as 2027-01-01T00:00:00Z; never if left out.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
}

impl AccountArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        match self.what {
            What::Password(args) => args.run(terminal),
            What::Token(args) => args.run(terminal),
        }
    }
}

impl PasswordArgs {
    fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let password = match &self.password_file {
            None => passphrase::ask_new_password()?,
            Some(path) => read(path)?,
        };
        if password.expose().chars().count() < SHORTEST {
            anyhow::bail!("use the password: it has less than {SHORTEST} characters");
        }
        let hash = hash_password(&password).context("hash the password")?;
        terminal.line(format_args!(
            "- name: {}\n  passwordHash: {hash}",
            self.name
        ))?;
        if !self.scopes.is_empty() {
            terminal.line(format_args!("  scopes: [{}]", list(&self.scopes)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl TokenArgs {
    fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let (token, hash) = new_token().context("get random numbers from the system")?;
        terminal.line(format_args!(
            "- name: {}\n  hash: {hash}\n  scopes: [{}]",
            self.name,
            list(&self.scopes)
        ))?;
        if let Some(expires) = &self.expires {
            terminal.line(format_args!("  expires: {expires}"))?;
        }
        terminal.tell(format_args!(
            "The token, which is shown this once:\n{}\n",
            token.expose()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn read(path: &std::path::Path) -> anyhow::Result<Secret<String>> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(LONGEST).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text))
    };
    read.with_context(|| format!("read the password from {}", path.display()))?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| {
        let all = list(&Scope::ALL);
        format!("{text:?} is no scope; there are {all}")
    })
}

fn list(scopes: &[Scope]) -> String {
    let words: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
    words.join(", ")
}
