//! Reports for people.

use std::io::{self, Write};

use crate::board::{Phase, StatusView};
use crate::config::{Config, Edge, Proxies, TokenSource};
use crate::doctor::{Examined, StepState};

pub(super) fn check(out: &mut impl Write, config: &Config) -> io::Result<()> {
    let edges: Vec<String> = config.edges.iter().map(Edge::url).collect();
    writeln!(out, "agent     {}", config.agent)?;
    writeln!(out, "edges     {}", edges.join(", "))?;
    let token = match &config.token {
        TokenSource::File(path) => format!("in {}", path.display()),
        TokenSource::Environment(_) => "in TIDEGATE_AGENT_TOKEN".to_owned(),
    };
    writeln!(out, "token     {token}")?;
    let proxy = match &config.proxy {
        Proxies::None => "none".to_owned(),
        proxies => {
            let of = |edge| {
                proxies
                    .to(edge)
                    .map(|proxy| crate::dial::proxy::shown(proxy.uri()))
            };
            config
                .edges
                .first()
                .and_then(of)
                .unwrap_or_else(|| "none".to_owned())
        }
    };
    writeln!(out, "proxy     {proxy}")?;
    writeln!(out, "links     {}", config.links)?;
    let status = config
        .status
        .map_or_else(|| "off".to_owned(), |address| address.to_string());
    writeln!(out, "status    {status}")?;
    if !config.allow_targets.is_empty() {
        let rules: Vec<String> = config
            .allow_targets
            .iter()
            .map(ToString::to_string)
            .collect();
        writeln!(out, "targets   {} only", rules.join(", "))?;
    }
    for mapping in &config.mappings {
        writeln!(
            out,
            "asks for  {} → {} ({})",
            mapping.public(),
            mapping.target,
            mapping.name
        )?;
    }
    writeln!(
        out,
        "the configuration can be used; `tidegate agent doctor` tries the way to the edge"
    )
}

pub(super) fn status(out: &mut impl Write, view: &StatusView) -> io::Result<()> {
    let state = if view.connected {
        "connected"
    } else {
        "not connected"
    };
    writeln!(
        out,
        "{state}: agent {}, version {}, process {} since {}",
        view.agent, view.version, view.pid, view.started_at
    )?;
    for link in &view.links {
        if let Some(up) = &link.up {
            writeln!(
                out,
                "  link {}  {} to {} since {}, replica {} of {}, {} requests, {} in flight",
                link.link,
                up.carrier,
                up.edge,
                up.since,
                up.replica,
                up.replicas,
                up.requests,
                up.in_flight
            )?;
            continue;
        }
        let phase = match link.phase {
            Phase::Connecting => "connecting",
            Phase::Stopping | Phase::Stopped => "stopping",
            Phase::Connected | Phase::Waiting => "waiting for the next try",
        };
        writeln!(out, "  link {}  {phase}", link.link)?;
        if let Some(error) = &link.last_error {
            let (edge, reason, at) = (&error.edge, &error.reason, &error.at);
            writeln!(out, "          {at} {edge}: {reason}: {}", error.message)?;
        }
    }
    for mapping in &view.mappings {
        let (names, target) = (mapping.names.join(", "), &mapping.target);
        let (requests, failed) = (mapping.requests, mapping.failed);
        writeln!(
            out,
            "  serves {names} → {target}, {requests} requests, {failed} not answered"
        )?;
    }
    for refused in &view.refused {
        writeln!(
            out,
            "  does not serve {}: {}: {}",
            refused.id, refused.reason, refused.message
        )?;
    }
    for wish in &view.requested {
        let (name, hostname) = (&wish.name, &wish.hostname);
        match wish.accepted {
            Some(true) => {}
            Some(false) => {
                writeln!(
                    out,
                    "  the edge does not serve {hostname} ({name}): {}: {}",
                    wish.reason, wish.message
                )?;
            }
            None => writeln!(
                out,
                "  the edge has not said whether it serves {hostname} ({name})"
            )?,
        }
    }
    Ok(())
}

pub(super) fn doctor(out: &mut impl Write, all: &[Examined]) -> io::Result<()> {
    for examined in all {
        writeln!(out, "{}", examined.edge)?;
        for step in &examined.steps {
            let state = match step.state {
                StepState::Good => "ok  ",
                StepState::Notable => "note",
                StepState::Bad => "FAIL",
            };
            writeln!(out, "  {state}  {:<18} {}", step.name, step.found)?;
            if let Some(fix) = &step.fix {
                writeln!(out, "        {:<18} → {fix}", "")?;
            }
        }
        writeln!(out, "  {}", examined.verdict)?;
    }
    Ok(())
}

pub(super) fn token(out: &mut impl Write, token: Option<&str>, hash: &str) -> io::Result<()> {
    if let Some(token) = token {
        writeln!(out, "token      {token}")?;
    }
    writeln!(out, "tokenHash  {hash}")
}
