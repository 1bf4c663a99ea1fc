//! `tidegate renew`, `tidegate rollback` and `tidegate revoke`: what is asked of a running edge.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::PossibleValuesParser;
use tidegate_acme::revocation::RevocationReason;

use super::terminal::{Look, Terminal};
use super::values::StateArgs;
use crate::app::control::{Control, Done, Renew, Revoke, Rollback};

/// Renew a certificate now, whatever the plan says.
///
/// Asks the running edge, which then orders by itself; `tidegate certs` shows how it goes. Limits of the authority
/// still hold. Exit code 0 when the edge took the order, 1 otherwise.
#[derive(Debug, Args)]
pub(super) struct RenewArgs {
    /// Route as NAMESPACE/NAME or NAME, or a hostname of the certificate.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,

    /// Every certificate that an AcmeIssuer issues.
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    edge: EdgeArgs,
}

/// Serve the certificate that was served before the last one again.
///
/// For when a new certificate makes trouble: another issuer that clients do not trust, another key type or chain.
/// Asks the running edge, which keeps one earlier certificate of each route, and refuses one that is expired,
/// revoked or for other names. What is restored is renewed at its usual time; where that has passed, after half of
/// what is left of its life; or at once by `tidegate renew`. A second rollback undoes the first. Exit code 0 when
/// it is served, 1 otherwise.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Route as NAMESPACE/NAME or NAME, or a hostname of the certificate.
    name: String,

    #[command(flatten)]
    edge: EdgeArgs,
}

/// Revoke a certificate at its authority, and order another.
///
/// Asks the running edge. Do this when somebody else may have the private key. Exit code 0 when it is revoked, 1
/// otherwise.
#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// Route as NAMESPACE/NAME or NAME, or a hostname of the certificate.
    name: String,

    /// Why, as the authority is told (RFC 5280).
    #[arg(long, default_value = "unspecified", ignore_case = true, value_parser = reasons())]
    reason: String,

    #[command(flatten)]
    edge: EdgeArgs,
}

/// Which edge is asked.
#[derive(Debug, Args)]
pub(super) struct EdgeArgs {
    /// Folder of objects, whose edge is asked.
    #[arg(long, env = "TIDEGATE_DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    state: StateArgs,
}

impl EdgeArgs {
    pub(super) fn control(&self) -> anyhow::Result<Control> {
        Ok(Control::of(&self.state.find(self.dir.as_deref())?))
    }
}

fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(RevocationReason::ALL.iter().map(|(word, _)| *word))
}

impl RenewArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let asked = Renew {
            id: self.name,
            all: self.all,
        };
        let done = self.edge.control()?.renew(&asked)?;
        if done.certificates.is_empty() && done.refused.is_empty() {
            terminal.line("nothing to renew: no route gets its certificate from an AcmeIssuer")?;
        }
        tell(terminal, &done, "will be renewed now")
    }
}

impl RollbackArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let done = self
            .edge
            .control()?
            .roll_back(&Rollback { id: self.name })?;
        tell(terminal, &done, "the certificate of before is served again")
    }
}

impl RevokeArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let asked = Revoke {
            id: self.name,
            reason: self.reason,
        };
        let done = self.edge.control()?.revoke(&asked)?;
        tell(terminal, &done, "is revoked, another is ordered")
    }
}

fn tell(terminal: &mut Terminal, done: &Done, what: &str) -> anyhow::Result<ExitCode> {
    for id in &done.certificates {
        terminal.line(format_args!("{id}: {}", terminal.paint(Look::Good, what)))?;
    }
    for refusal in &done.refused {
        let id = refusal.id.as_deref().unwrap_or_default();
        let what = terminal.paint(Look::Bad, &refusal.message);
        terminal.line(format_args!("{id}: {what} [{}]", refusal.reason))?;
    }
    Ok(if done.refused.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
