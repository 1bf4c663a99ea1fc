//! `tidegate status`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::check;
use super::terminal::{Look, Output, OutputArgs, Terminal};
use super::values::StateArgs;
use crate::app::status::{Found, status};
use crate::app::{ControlView, FindingView, SeverityView};

/// Tell how the edge of a folder is doing.
///
/// Asks the running edge; when none runs, tells what the last one wrote down. Exit code 0 when an edge runs and
/// nothing must be mended, 1 otherwise.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Folder of objects.
    #[arg(env = "TIDEGATE_DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    state: StateArgs,

    /// Print the DNS records of every route; without, only those of trackers.
    #[arg(long)]
    dns: bool,

    #[command(flatten)]
    output: OutputArgs,
}

impl StatusArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let found = status(&self.state.find(self.dir.as_deref())?)?;
        match self.output.output {
            Output::Json => terminal.line(serde_json::to_string_pretty(&found)?)?,
            Output::Human => print(terminal, &found, self.dns)?,
        }
        let wrong = found
            .last
            .problems
            .iter()
            .any(|problem| problem.severity == SeverityView::Error);
        Ok(if found.running && !wrong {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn print(terminal: &mut Terminal, found: &Found, dns: bool) -> std::io::Result<()> {
    let last = &found.last;
    if found.running {
        terminal.line(format_args!(
            "{}: tidegate {} runs as process {} since {}, revision {}",
            terminal.paint(Look::Good, "running"),
            last.version,
            last.pid,
            last.started_at,
            last.revision
        ))?;
    } else {
        terminal.line(format_args!(
            "{}: no edge runs; this was so at {}",
            terminal.paint(Look::Bad, "stopped"),
            last.updated_at
        ))?;
    }
    for listener in &last.listeners {
        terminal.line(format_args!("  {:<6} {}", listener.name, listener.address))?;
    }
    if let Some(admin) = &last.admin {
        terminal.line(format_args!("  {:<6} {admin}", "admin"))?;
    }
    routes(terminal, last)?;
    agents(terminal, last)?;
    records(terminal, last, dns)?;
    if !last.problems.is_empty() {
        terminal.line("")?;
        check::problems(terminal, &last.problems)?;
        terminal.line(check::count(terminal, &last.problems))?;
    }
    Ok(())
}

fn routes(terminal: &mut Terminal, last: &ControlView) -> std::io::Result<()> {
    if last.routes.is_empty() {
        // What agents map is told by them.
        if last.agents.is_empty() {
            terminal.line("no routes")?;
        }
        return Ok(());
    }
    terminal.line("")?;
    for route in &last.routes {
        let ready = route
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Ready");
        let (look, state) = match ready {
            Some(condition) if condition.status == "True" => (Look::Good, "ready"),
            Some(condition) => (Look::Bad, condition.reason.as_str()),
            None => (Look::Faint, "unknown"),
        };
        terminal.line(format_args!(
            "TlsRoute {}/{}  {}  {}",
            route.namespace,
            route.name,
            terminal.paint(look, state),
            route.hostnames.join(", ")
        ))?;
        if let Some(condition) = ready
            && condition.status != "True"
        {
            terminal.line(format_args!("    {}", condition.message))?;
        }
        // Of UDP trackers there is more to say than whether all is well.
        let addresses = route
            .conditions
            .iter()
            .find(|it| it.type_ == "ClientAddressPreserved")
            .filter(|it| matches!(&*it.reason, "NotRelayed" | "TransparentRelay"));
        for line in addresses.iter().flat_map(|it| it.message.lines()) {
            terminal.line(format_args!("    {}", terminal.paint(Look::Faint, line)))?;
        }
        for finding in &route.preflight {
            if finding.state == "Blocking" {
                blocking(terminal, finding)?;
            }
        }
    }
    Ok(())
}

fn agents(terminal: &mut Terminal, last: &ControlView) -> std::io::Result<()> {
    if !last.agents.is_empty() {
        terminal.line("")?;
    }
    for agent in &last.agents {
        let of = |type_: &str| agent.conditions.iter().find(|it| it.type_ == type_);
        let ready = of("Ready");
        let (look, state) = match ready {
            Some(condition) if condition.status == "True" => (Look::Good, "ready"),
            Some(condition) => (Look::Bad, condition.reason.as_str()),
            None => (Look::Faint, "unknown"),
        };
        terminal.line(format_args!(
            "TunnelAgent {}/{}  {}  {}",
            agent.namespace,
            agent.name,
            terminal.paint(look, state),
            agent.hostnames.join(", ")
        ))?;
        for line in ready
            .iter()
            .filter(|it| it.status != "True")
            .flat_map(|it| it.message.lines())
        {
            terminal.line(format_args!("    {line}"))?;
        }
        // No part of Ready, and what visitors see all the same.
        let broken = of("DataPathHealthy").filter(|it| it.reason != "AgentNotConnected");
        if let Some(broken) = broken.filter(|it| it.status == "False") {
            let line = terminal.paint(Look::Bad, &broken.message);
            terminal.line(format_args!("    {line}"))?;
        }
        for port in &agent.ports {
            terminal.line(format_args!("    port {port}"))?;
        }
        for session in &agent.sessions {
            let text = |part: &Option<String>| part.clone().unwrap_or_default();
            let mut line = format!(
                "link from {} over {} since {}",
                text(&session.address),
                text(&session.carrier),
                text(&session.since)
            );
            for (before, part) in [
                (", round trip ", &session.rtt),
                (", version ", &session.version),
                (", at ", &session.replica),
            ] {
                if let Some(part) = part {
                    line.push_str(before);
                    line.push_str(part);
                }
            }
            if session.draining {
                line.push_str(", about to end");
            }
            terminal.line(format_args!("    {}", terminal.paint(Look::Faint, line)))?;
        }
        if let Some(seen) = &agent.last_seen {
            let line = format!("last connected at {seen}");
            terminal.line(format_args!("    {}", terminal.paint(Look::Faint, line)))?;
        }
    }
    Ok(())
}

/// What belongs into the DNS: of every route, or of those that have trackers.
fn records(terminal: &mut Terminal, last: &ControlView, all: bool) -> std::io::Result<()> {
    let wanted = |lines: &[String]| {
        let tracker = lines.iter().any(|line| line.contains(" IN TXT "));
        tracker || (all && !lines.is_empty())
    };
    for route in last.routes.iter().filter(|it| wanted(&it.dns_records)) {
        let title = format!("; DNS of TlsRoute {}/{}", route.namespace, route.name);
        terminal.line("")?;
        terminal.line(terminal.paint(Look::Faint, title))?;
        check::dns_records(terminal, &route.dns_records)?;
    }
    Ok(())
}

/// What keeps a certificate from being ordered.
fn blocking(terminal: &mut Terminal, finding: &FindingView) -> std::io::Result<()> {
    let mut about = finding.check.clone();
    if let Some(name) = &finding.name {
        about = format!("{about} {name}");
    }
    let word = terminal.paint(Look::Bad, "blocking");
    terminal.line(format_args!("    {word} {about}: {}", finding.message))?;
    if let Some(fix) = &finding.fix {
        let fix = terminal.paint(Look::Hint, format!("→ {fix}"));
        terminal.line(format_args!("        {fix}"))?;
    }
    Ok(())
}
