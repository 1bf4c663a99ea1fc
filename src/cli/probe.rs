//! `tidegate probe`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::terminal::{Look, Terminal};
use super::values;
use crate::app::probe::{Target, probe};

/// Tell whether something answers, without a shell or curl.
///
/// Asks at every address of the name and again until all of them answer: an HTTP request with any answer but 5xx,
/// or a TCP connection. `helm test` runs it in a pod of its own. Exit code 0 when everything answers, 1 otherwise.
#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    /// What to ask: http://HOST:PORT/PATH or tcp://HOST:PORT.
    #[arg(required = true, value_name = "URL")]
    targets: Vec<Target>,

    /// Time after which what does not answer is taken for broken.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = values::duration)]
    timeout: Duration,
}

impl ProbeArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let deadline = Instant::now() + self.timeout;
        let mut code = ExitCode::SUCCESS;
        for target in &self.targets {
            match probe(target, deadline) {
                Ok(answers) => {
                    let look = terminal.paint(Look::Good, "ok");
                    for answer in answers {
                        let (address, said) = (answer.address, answer.said);
                        terminal.line(format_args!("{look:<7} {target} at {address}: {said}"))?;
                    }
                }
                Err(error) => {
                    let look = terminal.paint(Look::Bad, "failed");
                    let error = tidegate_telemetry::chain(&error);
                    terminal.line(format_args!("{look:<7} {target}: cannot {error}"))?;
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}
