//! `tidegate crds`.

use std::process::ExitCode;

use clap::Args;

use super::terminal::Terminal;
use crate::api::all_crds;

/// Print the CustomResourceDefinitions, for `kubectl apply --server-side -f -`.
#[derive(Debug, Args)]
pub(super) struct CrdsArgs {}

impl CrdsArgs {
    #[allow(clippy::unused_self, reason = "every command has the same shape")]
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        for crd in all_crds() {
            terminal.line("---")?;
            terminal.text(serde_saphyr::to_string(&crd)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
