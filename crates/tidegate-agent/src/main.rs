//! `tidegate-agent`, the agent without the edge: small enough for small boards.

use std::process::ExitCode;

use clap::Parser;
use tidegate_agent::cli::AgentArgs;

// The allocator of a static program is slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serve through a Tidegate edge what only this machine can reach.
#[derive(Debug, Parser)]
#[command(name = "tidegate-agent", version, max_term_width = 100)]
struct Program {
    #[command(flatten)]
    agent: AgentArgs,
}

fn main() -> ExitCode {
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Program::parse().agent.run()
}
