//! `tidegate agent`: the same command line as the program `tidegate-agent`, which is the agent alone.

pub(super) use tidegate_agent::cli::AgentArgs;
