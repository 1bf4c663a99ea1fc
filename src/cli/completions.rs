//! `tidegate completions`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::terminal::Terminal;

/// Print the completion script of a shell.
///
/// bash:  tidegate completions bash | sudo tee /usr/share/bash-completion/completions/tidegate
/// zsh:   tidegate completions zsh > "${fpath[1]}/_tidegate"
/// fish:  tidegate completions fish > ~/.config/fish/completions/tidegate.fish
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "tidegate", &mut script);
        terminal.text(String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
