//! The gate: lint, test, generated files.
//!
//! Area edges, file sizes and module docs are checked by `tests/it/tidy.rs`, so a plain `cargo test`
//! tells of them too.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

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
    if filter.is_empty() {
        std::thread::scope(|threads| {
            let long = threads.spawn(long_tests);
            let tested = phase("test", || run(&mut command));
            let long = phase("test of what lasts", || match long.join() {
                Ok(outcome) => outcome.map(|said| eprint!("{said}")),
                Err(_) => bail!("the thread that waits for it ended"),
            });
            tested.and(long)
        })?;
    } else {
        command.arg("--").args(filter);
        phase("test", || run(&mut command))?;
    }
    if filter.is_empty() || filter.iter().any(|part| part.contains("dns")) {
        phase("test of the DNS providers", providers)?;
    }
    Ok(())
}

/// Tests that do little but wait for minutes, in a process of their own beside the others.
fn long_tests() -> Result<String> {
    let mut command = shell::cargo(&["test", "--workspace", "--test", "it"]);
    command.args(["--", "--ignored", "five_minutes"]);
    let output = command.output().context("start the tests of what lasts")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // A filter that finds nothing is no success.
    if !output.status.success() || said.contains(" 0 passed") {
        bail!("{said}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(said.into_owned())
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
