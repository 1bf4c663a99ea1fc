//! `tidegate notify-test`: does anybody hear us?

use std::process::ExitCode;

use clap::Args;

use super::renew::EdgeArgs;
use super::terminal::{Look, Terminal};
use crate::app::control::TestNotice;

/// Send a test notice to the receivers that AcmeIssuers name.
///
/// Asks the running edge, which sends it as it would send a real one. Exit code 0 when it arrived everywhere, 1
/// otherwise.
#[derive(Debug, Args)]
pub(super) struct NotifyTestArgs {
    /// The AcmeIssuer whose receivers are told; all of them if left out.
    issuer: Option<String>,

    #[command(flatten)]
    edge: EdgeArgs,
}

impl NotifyTestArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let asked = TestNotice {
            issuer: self.issuer,
        };
        let sent = self.edge.control()?.test_notice(&asked)?;
        let mut code = ExitCode::SUCCESS;
        for one in &sent.receivers {
            let what = match &one.error {
                None => terminal.paint(Look::Good, "it arrived"),
                Some(error) => {
                    code = ExitCode::FAILURE;
                    terminal.paint(Look::Bad, format!("{} [{}]", error.message, error.reason))
                }
            };
            terminal.line(format_args!("{} {}: {what}", one.issuer, one.name))?;
        }
        Ok(code)
    }
}
