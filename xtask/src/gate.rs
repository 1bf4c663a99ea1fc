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
    })?;
    phase("clippy of the DNS providers", || {
        run(shell::cargo(&["clippy", "--all-targets"])
            .args(PROVIDERS)
            .args(["--", "-D", "warnings"]))
    })
}

/// The one crate with a feature that is off by default. Alone, because it shares fewer dependencies with
/// the workspace than all packages with the feature do: what is built twice is least.
const PROVIDERS: [&str; 4] = ["-p", "tidegate-acme", "--features", "dns-providers"];
/// The tests that the feature adds or changes.
const PROVIDER_TESTS: &str = "dns::tests::p";

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
    phase("test", || run(&mut command))?;
    if filter.is_empty() || filter.iter().any(|part| part.contains("dns")) {
        phase("test of the DNS providers", providers)?;
    }
    Ok(())
}

/// The feature's tests, against a real `PowerDNS`.
fn providers() -> Result<()> {
    let missing = tools::missing_for_providers();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        if shell::in_ci() {
            bail!("{missing} could not be installed, and nothing may be skipped here");
        }
        eprintln!("SKIPPED: {missing} is not installed");
        return Ok(());
    }
    run(shell::cargo(&["test", "--lib"])
        .args(PROVIDERS)
        .args(["--", PROVIDER_TESTS]))
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
