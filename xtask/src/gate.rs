//! The gate: lint, test, generated files.
//!
//! Area edges, file sizes and module docs are checked by `tests/it/tidy.rs`, so a plain `cargo test`
//! tells of them too.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{self, phase, run};
use crate::tools;

/// Formatting, clippy, dependencies.
pub(crate) fn lint() -> Result<()> {
    phase("format", || {
        run(&mut shell::cargo(&["fmt", "--all", "--check"]))
    })?;
    phase("dependencies", deny)?;
    phase("clippy", || {
        run(&mut shell::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    })
}

fn deny() -> Result<()> {
    let Some(program) = tools::cargo_deny()? else {
        if shell::in_ci() {
            bail!("cargo-deny could not be installed, and nothing may be skipped here");
        }
        eprintln!("SKIPPED: cargo-deny is not installed (`cargo install --locked cargo-deny`)");
        return Ok(());
    };
    run(Command::new(program).current_dir(shell::root()).args([
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// Installs what the tests use, then runs them all; `filter` goes to the test binaries.
pub(crate) fn test(filter: &[String]) -> Result<()> {
    phase("test tools", || tools::install("test"))?;
    phase("build", || {
        run(&mut shell::cargo(&["test", "--workspace", "--no-run"]))
    })?;
    let mut command = shell::cargo(&["test", "--workspace"]);
    if !filter.is_empty() {
        command.arg("--").args(filter);
    }
    phase("test", || run(&mut command))
}

/// Runs the tests that compare generated files, told to write instead.
pub(crate) fn codegen() -> Result<()> {
    let mut command = shell::cargo(&[
        "test",
        "--workspace",
        "--quiet",
        "--",
        "generated",
        "golden",
    ]);
    command
        .env("UPDATE_GENERATED", "1")
        .env("UPDATE_GOLDEN", "1")
        .env("INSTA_UPDATE", "always");
    phase("codegen", || run(&mut command))?;
    run(Command::new("git")
        .current_dir(shell::root())
        .args(["status", "--short"]))
}
