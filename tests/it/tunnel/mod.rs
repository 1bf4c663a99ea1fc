//! The tunnel from end to end: the real edge, the real agent, real programs in front, behind and in between.
//!
//! ```text
//! visitor ─► [nginx, HAProxy] ─► edge ═══ [router, proxy] ═══ agent ─► service
//! ```
//!
//! What one part does alone is tested in its crate; here is what people are promised of the whole.

mod bodies;
mod flood;
mod fronts;
mod life;
mod nat;
mod programs;
mod proxies;
mod service;
mod threats;
mod units;
mod upgrades;

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::edge::{Builder, PATIENCE};
use crate::support::{Edge, Program, eventually, secret};

/// What visitors ask for.
const APP: &str = "app.home.example.com";

/// A mapping of `NAME.home.example.com`, as a line of YAML; `more` are further fields.
fn mapping(name: &str, target: &str, more: &str) -> String {
    format!("  - {{name: {name}, hostname: {name}.home.example.com, target: '{target}'{more}}}\n")
}

/// The agent `default/NAME` with these mappings, and its Secret.
fn agent_object(name: &str, mappings: &str, hash: &str) -> [String; 2] {
    let mappings = match mappings {
        "" => String::new(),
        lines => format!("  mappings:\n{lines}"),
    };
    let agent = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TunnelAgent\nmetadata: {{name: {name}}}\nspec:\n  \
         credential: {{secretName: {name}-agent}}\n  allowedHostnames: ['*.home.example.com']\n{mappings}"
    );
    let kept = format!("{name}-agent");
    [agent, secret(&kept, "Opaque", &[("tokenHash", hash)])]
}

/// The agent `default/homelab`, which leads [`APP`] to the target.
fn homelab(target: &str, hash: &str) -> [String; 2] {
    agent_object("homelab", &mapping("app", target, ""), hash)
}

/// An edge and an agent on loopback.
struct Pair {
    edge: Edge,
    agent: Program,
    token: String,
}

impl Pair {
    /// An edge whose agent leads to the target.
    #[track_caller]
    fn start(target: &str) -> Self {
        Self::with(target, |edge| edge)
    }

    #[track_caller]
    fn with(target: &str, change: impl FnOnce(Builder) -> Builder) -> Self {
        Self::made(&mapping("app", target, ""), change, |agent| agent)
    }

    /// With these mappings, one of which is of [`APP`].
    #[track_caller]
    fn mapping(mappings: &[String]) -> Self {
        Self::made(&mappings.concat(), |edge| edge, |agent| agent)
    }

    /// Both are told by the system to open no more than so many files unless they ask for more.
    #[track_caller]
    fn limited(target: &str, files: u32) -> Self {
        let limit = format!("--nofile={files}:");
        Self::made(
            &mapping("app", target, ""),
            |edge| edge.under(&["prlimit", &limit]),
            |agent| {
                let mut limited = Command::new("prlimit");
                limited.arg(&limit).arg(agent.get_program());
                limited.args(agent.get_args());
                for (name, value) in agent.get_envs() {
                    if let Some(value) = value {
                        limited.env(name, value);
                    }
                }
                limited
            },
        )
    }

    #[track_caller]
    fn made(
        mappings: &str,
        change: impl FnOnce(Builder) -> Builder,
        run: impl FnOnce(Command) -> Command,
    ) -> Self {
        let (token, hash) = Edge::agent_token();
        let [agent, kept] = agent_object("homelab", mappings, &hash);
        // Any hostname of the edge will do for the agent to dial.
        let dial = crate::support::route("dial", "localhost", "127.0.0.1:9");
        let builder = Edge::builder().object(agent).object(kept).object(dial);
        let edge = change(builder).start();
        let url = format!("https://localhost:{}", edge.https);
        let agent = Program::start(&mut run(agent_at(&url, &edge.ca_file(), &token)));
        let pair = Self { edge, agent, token };
        pair.wait_for_links();
        pair
    }

    /// Waits until both links are up and serve.
    #[track_caller]
    fn wait_for_links(&self) {
        eventually("two links", PATIENCE, || match links(&self.edge) {
            all if all.len() == 2 => Ok(()),
            all => Err(format!("{all:?}\n{}", self.agent.log())),
        });
        // A mapping is served once its agent has said that it is ready.
        eventually("an answer", PATIENCE, || {
            let reply = self.edge.client().try_get(APP, "/page")?;
            if matches!(reply.status, 502..=504) {
                return Err(format!("{} {}", reply.status, reply.text()));
            }
            Ok(())
        });
    }
}

/// The agent's command line on this machine, without any proxy.
fn agent_at(url: &str, ca: &Path, token: &str) -> Command {
    agent_does(None, "homelab", url, ca, token)
}

/// The same of that name, with one of its subcommands.
fn agent_does(what: Option<&str>, name: &str, url: &str, ca: &Path, token: &str) -> Command {
    let mut command = Edge::command();
    command
        .arg("agent")
        .args(what)
        .args(["--edge", url, "--agent", &format!("default/{name}")])
        .args(["--proxy", "none", "--status", "off"])
        .arg("--ca-file")
        .arg(ca)
        .env("TIDEGATE_AGENT_TOKEN", token);
    command
}

/// Live links as the edge has them.
fn links(edge: &Edge) -> Vec<Value> {
    edge.api("/api/v1/links")
        .ok()
        .and_then(|all| all.as_array().cloned())
        .unwrap_or_default()
}
