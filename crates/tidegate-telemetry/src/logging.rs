//! Sets up logging to standard error, for people or for machines.
//!
//! Standard output stays free for what a command prints. `RUST_LOG` is not read: one flag and one
//! environment variable (`TIDEGATE_LOG_LEVEL`) decide, so that what runs is what the help says.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

use crate::access::AccessTap;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One readable line per event, coloured on a terminal.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// What is logged and how.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The look of a line.
    pub format: LogFormat,
    /// A level (`info`) or filter directives (`info,tidegate_proxy=debug`).
    pub level: String,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            level: "info".to_owned(),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter cannot be parsed.
    #[error(
        "parse the log level {level:?}: a level such as \"info\", or \"info,tidegate_proxy=debug\""
    )]
    Level {
        /// What was given.
        level: String,
        /// What the parser said.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something else set up logging first.
    #[error("set up logging a second time")]
    Twice,
}

/// Sets up logging for the whole process. Call it once, first.
pub fn init(options: &LogOptions) -> Result<(), InitError> {
    let filter = EnvFilter::from_str(&options.level).map_err(|source| InitError::Level {
        level: options.level.clone(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match options.format {
        LogFormat::Human => builder
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_target(false)
            .finish()
            .with(AccessTap)
            .try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .finish()
            .with(AccessTap)
            .try_init(),
    }
    .map_err(|_| InitError::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_named() {
        let error = init(&LogOptions {
            level: "tidegate=loud".to_owned(),
            ..LogOptions::default()
        })
        .unwrap_err();
        assert!(error.to_string().contains("tidegate=loud"), "{error}");
    }
}
