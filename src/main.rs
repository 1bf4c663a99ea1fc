//! The `tidegate` binary: allocator, crypto provider, command line.

use std::process::ExitCode;

use clap::Parser;
use tidegate::cli::Cli;

// Requests allocate small and short-lived; this allocator is faster at that than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Cli::parse().run()
}
