//! Standard output and error, with colours only where a person looks.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Where commands print.
#[derive(Debug)]
pub(super) struct Terminal {
    colours: bool,
}

/// Whom a report is written for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Output {
    Human,
    Json,
}

/// The choice of whom a report is written for.
#[derive(Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// For people or for programs; the JSON of `check` is described in docs/reference/check-output.md.
    #[arg(
        long,
        short,
        value_name = "FORMAT",
        value_enum,
        default_value = "human"
    )]
    pub(super) output: Output,
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Look {
    Strong,
    Good,
    Bad,
    Warn,
    Hint,
    Faint,
}

impl Terminal {
    /// The process's own; colours unless piped or `NO_COLOR` is set (no-color.org).
    pub(super) fn standard() -> Self {
        Self {
            colours: io::stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// The text in its look.
    pub(super) fn paint(&self, look: Look, text: impl fmt::Display) -> String {
        let code = match look {
            Look::Strong => "1",
            Look::Good => "32",
            Look::Bad => "31",
            Look::Warn => "33",
            Look::Hint => "36",
            Look::Faint => "2",
        };
        if self.colours {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_string()
        }
    }

    /// Prints a line.
    #[allow(clippy::unused_self, reason = "printing is the terminal's")]
    pub(super) fn line(&mut self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// Prints text that ends its own lines.
    #[allow(clippy::unused_self, reason = "printing is the terminal's")]
    pub(super) fn text(&mut self, text: impl fmt::Display) -> io::Result<()> {
        let mut out = io::stdout().lock();
        write!(out, "{text}")?;
        out.flush()
    }

    /// Prints text beside the results, to standard error; it ends its own lines.
    #[allow(clippy::unused_self, reason = "printing is the terminal's")]
    pub(super) fn tell(&mut self, text: impl fmt::Display) -> io::Result<()> {
        write!(io::stderr().lock(), "{text}")
    }

    /// Prints an error with its causes to standard error.
    #[allow(clippy::unused_self, reason = "printing is the terminal's")]
    pub(super) fn complain(&mut self, error: &anyhow::Error) {
        let chain = tidegate_telemetry::chain(error.as_ref()).to_string();
        let _ = writeln!(io::stderr().lock(), "tidegate: cannot {chain}");
    }
}

/// Whether the reader of our output went away.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
