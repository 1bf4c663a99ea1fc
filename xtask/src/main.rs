//! `cargo xtask`: every chore of this repository, in one place that needs nothing but Rust.
//!
//! ```text
//! ci = lint + test        the one gate, and what `.ci/run` calls
//! ```
//!
//! Never links the product: it builds, starts and measures it from outside, so that a broken product
//! does not take the tools with it. Talks to a terminal, hence the prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's tool talks to its terminal"
)]

mod bench;
mod gate;
mod image;
mod quickstart;
mod shell;
mod tools;

use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask COMMAND [OPTIONS]

  ci                    lint, then test: what has to pass before a merge
  lint                  formatting, clippy with warnings as errors, cargo-deny
  test [FILTER…]        installs what the tests need, then `cargo test --workspace`
  codegen               rewrites generated and golden files from their sources
  tools [test|bench]    installs programs the tests or the benchmark use
  image [OPTIONS]       builds the container image; `image --help`
  quickstart [--check]  serves examples/quickstart at https://localhost:8443
  bench [OPTIONS]       measures Tidegate beside other proxies; `bench --help`
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    let done = match command {
        "ci" => gate::lint().and_then(|()| gate::test(&[])),
        "lint" => gate::lint(),
        "test" => gate::test(rest),
        "codegen" => gate::codegen(),
        "tools" => tools::install(rest.first().map_or("test", String::as_str)),
        "quickstart" => quickstart::run(rest),
        "bench" => bench::run(rest),
        "image" => image::build(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("no command {other:?}\n\n{HELP}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
