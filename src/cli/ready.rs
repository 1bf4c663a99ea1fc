//! `tidegate ready`.

use std::process::ExitCode;

use clap::Args;

use super::terminal::Terminal;
use super::values::StateArgs;
use crate::app::status::why_not_ready;

/// Tell whether the running edge is ready for traffic.
///
/// Asks the process that holds the state folder, by a socket in it where there is one, and so always the one in the
/// same container: an edge in a node's own network shares its ports with the one that it takes over from. For exec
/// probes. Exit code 0 when it is ready, 1 otherwise.
#[derive(Debug, Args)]
pub(super) struct ReadyArgs {
    #[command(flatten)]
    state: StateArgs,
}

impl ReadyArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        Ok(match why_not_ready(&self.state.find(None)?)? {
            None => {
                terminal.line("ready")?;
                ExitCode::SUCCESS
            }
            Some(reason) => {
                terminal.line(reason)?;
                ExitCode::FAILURE
            }
        })
    }
}
