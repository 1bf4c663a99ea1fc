//! `tidegate crds`.

use std::process::ExitCode;

use clap::Args;

use super::terminal::Terminal;
use crate::api::{all_crds, all_policies};

/// Print the CustomResourceDefinitions, for `kubectl apply --server-side -f -`.
#[derive(Debug, Args)]
pub(super) struct CrdsArgs {
    /// Print policies of admission too: the API server then refuses a hostname or a tracker that clashes
    /// with another route of the namespace.
    #[arg(long)]
    policies: bool,
}

impl CrdsArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        for crd in all_crds() {
            terminal.line("---")?;
            terminal.text(serde_saphyr::to_string(&crd)?)?;
        }
        if self.policies {
            for policy in all_policies() {
                terminal.line("---")?;
                terminal.text(serde_saphyr::to_string(&policy)?)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
