//! `tidegate certs`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use tidegate_acme::plan::moment::{between, span};

use super::terminal::{Look, Output, OutputArgs, Terminal};
use super::values::StateArgs;
use crate::app::certs::{Cert, CertState, Certs, certs};

/// Names of a certificate that the table shows.
const NAMES_SHOWN: usize = 3;

/// List the certificates of an edge: names, issuer, end, renewal, and what went wrong last.
///
/// Works while the edge runs and while it does not; then the time of renewal is what is known without the
/// authority. Exit code 0 when every certificate is well, 1 otherwise.
#[derive(Debug, Args)]
pub(super) struct CertsArgs {
    /// Folder of objects, whose state folder is asked.
    #[arg(env = "TIDEGATE_DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    output: OutputArgs,
}

impl CertsArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let now = SystemTime::now();
        let found = certs(&self.state.find(self.dir.as_deref())?, now)?;
        match self.output.output {
            Output::Json => terminal.line(serde_json::to_string_pretty(&found)?)?,
            Output::Human => print(terminal, &found, now)?,
        }
        let bad = found.certificates.iter().any(|cert| cert.state.is_bad());
        Ok(if bad {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn print(terminal: &mut Terminal, found: &Certs, now: SystemTime) -> std::io::Result<()> {
    if found.certificates.is_empty() {
        return terminal.line("no certificates: no route has one yet");
    }
    let heads = [
        "ROUTE",
        "NAMES",
        "ISSUER",
        "EXPIRES IN",
        "RENEWS IN",
        "STATE",
    ];
    let rows: Vec<[String; 6]> = found
        .certificates
        .iter()
        .map(|cert| row(cert, now))
        .collect();
    let mut widths = heads.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    // The last column needs no padding, and its colour must not count.
    let line = |cells: &[String; 6]| {
        cells
            .iter()
            .zip(widths)
            .take(5)
            .fold(String::new(), |line, (cell, width)| {
                line + &format!("{cell:<width$}  ")
            })
    };
    let heads = heads.map(str::to_owned);
    terminal.line(terminal.paint(Look::Strong, format!("{}{}", line(&heads), heads[5])))?;
    for (row, cert) in rows.iter().zip(&found.certificates) {
        let look = match cert.state {
            CertState::Ok => Look::Good,
            state if state.is_bad() => Look::Bad,
            _ => Look::Hint,
        };
        terminal.line(format_args!(
            "{}{}",
            line(row),
            terminal.paint(look, &row[5])
        ))?;
        if let Some(at) = &cert.rolled_back_at {
            terminal.line(format_args!(
                "    rolled back at {at}; a newer one comes with the renewal, or by `tidegate renew`"
            ))?;
        }
        if let Some(message) = &cert.message {
            for line in message.lines() {
                terminal.line(format_args!("    {line}"))?;
            }
        }
    }
    if !found.running {
        terminal.line(terminal.paint(Look::Faint, "no edge runs: nothing is renewed"))?;
    }
    Ok(())
}

fn row(cert: &Cert, now: SystemTime) -> [String; 6] {
    let mut names = cert
        .names
        .iter()
        .take(NAMES_SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ");
    if cert.names.len() > NAMES_SHOWN {
        names = format!("{names} +{}", cert.names.len() - NAMES_SHOWN);
    }
    let until = |time: Option<SystemTime>, over: &str| match time {
        None => "-".to_owned(),
        Some(time) if time <= now => over.to_owned(),
        Some(time) => span(between(now, time)),
    };
    let state = match &cert.next_attempt {
        Some(next) if cert.state == CertState::Failing => {
            let attempts = super::check::plural(cert.attempts as usize, "attempt");
            format!("failing: {attempts}, next at {next}")
        }
        _ => cert.state.as_str().to_owned(),
    };
    [
        cert.id.clone(),
        names,
        cert.issuer.clone().unwrap_or_else(|| "-".to_owned()),
        until(cert.ends, "over"),
        until(cert.renews, "now"),
        state,
    ]
}
