//! The command line: one file per command, each of which asks `app` and prints.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 well, 1 something is wrong,
//! 2 the command line is.

#![allow(clippy::doc_markdown, reason = "doc comments are help text here")]

mod account;
mod agent;
mod ca;
mod certs;
mod check;
mod completions;
mod crds;
mod doctor;
mod edge;
mod explain;
mod export;
mod import;
mod notify_test;
mod operator;
mod passphrase;
mod probe;
mod ready;
mod reference;
mod renew;
mod run;
mod status;
mod terminal;
mod values;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use terminal::Terminal;

const LONG_ABOUT: &str = "\
Tidegate terminates TLS in front of the services you host, and keeps their certificates.

You write one object per service in a folder of YAML files:

    apiVersion: edge.tidegate.dev/v1alpha1
    kind: TlsRoute
    metadata:
      name: blog
    spec:
      hostnames: [blog.example.com]
      rules:
        - backends:
            - address: 127.0.0.1:3000

and start the edge on that folder. It watches the folder and applies every change without touching a \
connection that has nothing to do with it.";

const EXAMPLES: &str = "\
Examples:
  tidegate run ./edge                          serve the objects in ./edge on ports 80 and 443
  tidegate run --to 127.0.0.1:3000 --host app.localhost --http [::]:8080 --https [::]:8443
                                               no files at all: one service, one name
  tidegate check ./edge                        is everything right? (exit code 0 or 1)
  tidegate explain https://blog.example.com/x --dir ./edge
                                               which certificate, which rule, which backend, and why
  tidegate certs ./edge                        every certificate, its end and what went wrong
  tidegate doctor blog.example.com ./edge      what stands in the way of its certificate, and the fix
  tidegate import --from certbot /etc/letsencrypt --dir ./edge --dry-run
                                               what could be taken over
  tidegate import torrust envs/demo.json --dir ./edge
                                               objects for a tracker that torrust-tracker-deployer made
  tidegate ca                                  how to trust the internal CA on your machines

Every option can be set in the environment as TIDEGATE_OPTION, such as TIDEGATE_HTTPS.";

/// The TLS edge for people who host their own services.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, long_about = LONG_ABOUT, after_long_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Operator(Box<operator::OperatorArgs>),
    Agent(Box<agent::AgentArgs>),
    Check(check::CheckArgs),
    Explain(explain::ExplainArgs),
    Status(status::StatusArgs),
    Ready(ready::ReadyArgs),
    Certs(certs::CertsArgs),
    Doctor(doctor::DoctorArgs),
    Renew(renew::RenewArgs),
    Rollback(renew::RollbackArgs),
    Revoke(renew::RevokeArgs),
    NotifyTest(notify_test::NotifyTestArgs),
    Probe(probe::ProbeArgs),
    Export(export::ExportArgs),
    Import(export::ImportArgs),
    Ca(ca::CaArgs),
    Account(account::AccountArgs),
    Crds(crds::CrdsArgs),
    Completions(completions::CompletionsArgs),
}

/// The command line as a page of documentation, `docs/reference/cli.md`.
pub fn reference() -> String {
    reference::page()
}

impl Cli {
    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        let mut terminal = Terminal::standard();
        let outcome = match self.command {
            Command::Run(args) => args.run(&mut terminal),
            Command::Operator(args) => args.run(),
            Command::Agent(args) => Ok(args.run()),
            Command::Check(args) => args.run(&mut terminal),
            Command::Explain(args) => args.run(&mut terminal),
            Command::Status(args) => args.run(&mut terminal),
            Command::Ready(args) => args.run(&mut terminal),
            Command::Certs(args) => args.run(&mut terminal),
            Command::Doctor(args) => args.run(&mut terminal),
            Command::Renew(args) => args.run(&mut terminal),
            Command::Rollback(args) => args.run(&mut terminal),
            Command::Revoke(args) => args.run(&mut terminal),
            Command::NotifyTest(args) => args.run(&mut terminal),
            Command::Probe(args) => args.run(&mut terminal),
            Command::Export(args) => args.run(&mut terminal),
            Command::Import(args) => args.run(&mut terminal),
            Command::Ca(args) => args.run(&mut terminal),
            Command::Account(args) => args.run(&mut terminal),
            Command::Crds(args) => args.run(&mut terminal),
            Command::Completions(args) => args.run(&mut terminal),
        };
        match outcome {
            Ok(code) => code,
            // Whoever read our output has read enough.
            Err(error) if terminal::is_closed_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                terminal.complain(&error);
                ExitCode::FAILURE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
