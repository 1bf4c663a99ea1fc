//! Converts what the control side knows into the views that people and programs read.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tidegate_model::{HostPattern, RouteId};

use crate::admin::{
    AgentView, BoundView, ConditionView, ControlView, FindingView, ObjectCount, ProblemView,
    RouteView, SessionView, SeverityView, rfc3339,
};
use crate::api::{AgentPort, Condition};
use crate::source::{Finding, Refreshed};
use crate::translate::Severity;

/// What does not change while the process runs.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) started_at: SystemTime,
    pub(super) folder: Option<String>,
    pub(super) admin: Option<String>,
    pub(super) listeners: Vec<(&'static str, std::net::SocketAddr)>,
}

/// The view of a refresh.
pub(super) fn control_view(
    process: &Process,
    refreshed: &Refreshed,
    revision: u64,
    now: SystemTime,
) -> ControlView {
    ControlView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: rfc3339(process.started_at),
        updated_at: rfc3339(now),
        folder: process.folder.clone(),
        admin: process.admin.clone(),
        listeners: process
            .listeners
            .iter()
            .map(|(name, address)| BoundView {
                name: (*name).to_owned(),
                address: address.to_string(),
            })
            .collect(),
        revision,
        objects: refreshed
            .counts
            .iter()
            .map(|(kind, count)| ObjectCount {
                kind: (*kind).to_owned(),
                count: *count,
                kept: refreshed.kept.get(kind).copied().unwrap_or_default(),
            })
            .collect(),
        problems: refreshed.findings.iter().map(problem_view).collect(),
        routes: routes(refreshed),
        agents: agents(refreshed),
    }
}

/// The view of a finding.
pub(super) fn problem_view(finding: &Finding) -> ProblemView {
    ProblemView {
        file: finding
            .file
            .as_ref()
            .filter(|file| !file.as_os_str().is_empty())
            .map(|file| file.display().to_string()),
        line: finding.line,
        column: finding.column,
        document: finding.document,
        object: finding.object.clone(),
        field: Some(finding.field.clone()).filter(|field| !field.is_empty()),
        severity: match finding.severity {
            Severity::Error => SeverityView::Error,
            Severity::Warning => SeverityView::Warning,
            Severity::Progress => SeverityView::Progress,
        },
        reason: finding.reason.clone(),
        message: finding.message.clone(),
        hint: finding.hint.clone(),
        kept: finding.kept,
    }
}

fn conditions(all: &[Condition]) -> Vec<ConditionView> {
    all.iter()
        .map(|condition| ConditionView {
            type_: condition.type_.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        })
        .collect()
}

fn agents(refreshed: &Refreshed) -> Vec<AgentView> {
    let all = refreshed.translation.statuses.agents.iter();
    all.map(|(id, status)| AgentView {
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
        hostnames: status.hostnames.clone(),
        ports: status.ports.iter().map(port).collect(),
        conditions: conditions(&status.conditions),
        sessions: status
            .sessions
            .iter()
            .map(|session| SessionView {
                id: session.id.clone(),
                replica: session.replica.clone(),
                carrier: session.carrier.clone(),
                address: session.address.clone(),
                since: session.since.as_ref().map(|since| since.0.to_string()),
                rtt: session.rtt.clone(),
                version: session.version.clone(),
                draining: session.draining == Some(true),
            })
            .collect(),
        last_seen: status.last_seen.as_ref().map(|seen| seen.0.to_string()),
        dns_records: status.dns_records.clone(),
    })
    .collect()
}

fn port(port: &AgentPort) -> String {
    let line = format!("{} {} ({})", port.protocol, port.port, port.name);
    match port.addresses.join(", ") {
        places if places.is_empty() => line,
        places => format!("{line} at {places}"),
    }
}

fn routes(refreshed: &Refreshed) -> Vec<RouteView> {
    let mut hostnames = BTreeMap::<&RouteId, Vec<&HostPattern>>::new();
    for host in refreshed.translation.snapshot.hosts.values() {
        hostnames
            .entry(&host.route)
            .or_default()
            .push(&host.pattern);
    }
    refreshed
        .translation
        .statuses
        .routes
        .iter()
        .map(|(id, status)| {
            let mut served = hostnames.get(id).cloned().unwrap_or_default();
            served.sort();
            RouteView {
                namespace: id.namespace.to_string(),
                name: id.name.to_string(),
                hostnames: served.iter().map(ToString::to_string).collect(),
                conditions: conditions(&status.conditions),
                preflight: status
                    .preflight
                    .iter()
                    .map(|finding| FindingView {
                        check: finding.check.clone(),
                        name: finding.name.clone(),
                        state: finding.state.clone(),
                        message: finding.message.clone(),
                        fix: finding.fix.clone(),
                    })
                    .collect(),
                dns_records: status.dns_records.clone(),
            }
        })
        .collect()
}
