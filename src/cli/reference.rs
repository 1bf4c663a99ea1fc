//! The command line as a page of documentation, made from the same definitions as the help.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use super::Cli;

/// `docs/reference/cli.md`.
pub(super) fn page() -> String {
    let mut command = Cli::command();
    command.build();
    let mut page = String::from(
        "# Command line\n\n\
         <!-- Generated, do not edit: `cargo xtask codegen`. -->\n\n\
         Results go to standard output, everything else to standard error.\n\
         Exit codes: 0 well, 1 something is wrong, 2 the command line is.\n",
    );
    for subcommand in command.get_subcommands() {
        if subcommand.get_name() != "help" {
            section(&mut page, "tidegate", subcommand);
        }
    }
    page
}

fn section(page: &mut String, parent: &str, command: &Command) {
    let name = format!("{parent} {}", command.get_name());
    let _ = writeln!(page, "\n## `{name}`\n");
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        let about = about.to_string();
        // Lines that the help keeps apart stay apart.
        if about.contains("  ") {
            let (first, rest) = about.split_once('\n').unwrap_or((&about, ""));
            let _ = writeln!(page, "{first}\n\n```text\n{}\n```\n", rest.trim());
        } else {
            let _ = writeln!(page, "{}\n", about.trim());
        }
    }
    let shown = |arg: &&Arg| !arg.is_hide_set() && arg.get_id() != "help";
    let mut heading = None;
    for arg in command.get_arguments().filter(shown) {
        let of = arg.get_help_heading().unwrap_or(if arg.is_positional() {
            "Arguments"
        } else {
            "Options"
        });
        if heading != Some(of) {
            let gap = if heading.is_some() { "\n" } else { "" };
            let _ = writeln!(
                page,
                "{gap}{of}:\n\n| option | environment | default | meaning |\n| --- | --- | --- | --- |"
            );
            heading = Some(of);
        }
        row(page, arg);
    }
    for subcommand in command.get_subcommands() {
        if subcommand.get_name() != "help" {
            section(page, &name, subcommand);
        }
    }
}

fn row(page: &mut String, arg: &Arg) {
    let value = arg
        .get_value_names()
        .filter(|_| arg.get_action().takes_values())
        .map(|names| names.join(" "))
        .unwrap_or_default();
    let name = match (arg.get_long(), arg.get_short()) {
        (Some(long), Some(short)) => format!("`-{short}`, `--{long} {value}`"),
        (Some(long), None) => format!("`--{long} {value}`"),
        _ => format!("`{value}`"),
    };
    let name = name.replace(" `", "`");
    let env = arg
        .get_env()
        .map(|env| format!("`{}`", env.to_string_lossy()))
        .unwrap_or_default();
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let help = arg
        .get_long_help()
        .or_else(|| arg.get_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    let choices: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| arg.get_action().takes_values())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let choices = if choices.is_empty() {
        String::new()
    } else {
        format!(" One of {}.", choices.join(", "))
    };
    let help = help
        .replace('\n', " ")
        .replace("  ", " ")
        .replace('|', "\\|");
    let help = help.trim_end_matches('.');
    let _ = writeln!(
        page,
        "| {name} | {env} | {} | {help}.{choices} |",
        defaults.join(", ")
    );
}
