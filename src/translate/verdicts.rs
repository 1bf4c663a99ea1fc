//! What the conditions of a route say: of what was chosen to be served, and of what was found on the way.

use std::sync::Arc;

use tidegate_model::Certificate;

use super::report::Report;
use super::routes::{CompiledRoute, CompiledTls};
use super::status::{Conditions, joined};
use super::udp::Verdict;
use crate::api::TlsRouteSpec;
use crate::api::conditions::{ConditionType, Reason, timestamp};

/// The specification that is served, and whether it is the current one.
pub(super) struct Chosen {
    pub(super) spec: Arc<TlsRouteSpec>,
    pub(super) compiled: CompiledRoute,
    /// Set when an earlier version stays in use.
    pub(super) kept: Option<Kept>,
}

/// An earlier version that stays in use.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) generation: Option<i64>,
}

/// What certificate a route gets.
#[derive(Default)]
pub(super) struct Served {
    pub(super) certificate: Option<Arc<Certificate>>,
    /// It was served before and stands in for what is wrong now.
    pub(super) kept: bool,
    /// It stands in until the first one exists.
    pub(super) placeholder: bool,
    /// What is said of a renewal that fails while the certificate is good.
    pub(super) note: Option<String>,
}

/// The conditions that Ready sums up.
pub(super) const SUMMARY: [ConditionType; 4] = [
    ConditionType::Accepted,
    ConditionType::ResolvedRefs,
    ConditionType::CertificateReady,
    ConditionType::Programmed,
];

pub(super) fn backends_ready(conditions: &mut Conditions, report: &Report, agents: bool) {
    let known = report.of(ConditionType::BackendsReady).next().is_some();
    let mut refs = report.of(ConditionType::ResolvedRefs);
    if !known && refs.any(|it| it.reason == Reason::BackendNotFound) {
        conditions.set(
            ConditionType::BackendsReady,
            false,
            Reason::BackendNotFound,
            "not all of them exist: see ResolvedRefs",
        );
        return;
    }
    conditions.judge(
        report,
        ConditionType::BackendsReady,
        Reason::BackendsReady,
        if agents {
            "every Service has an endpoint that is ready, and every agent is connected"
        } else {
            "every Service has an endpoint that is ready"
        },
    );
}

pub(super) fn resolved_refs(conditions: &mut Conditions, report: &Report) {
    conditions.judge(
        report,
        ConditionType::ResolvedRefs,
        Reason::ResolvedRefs,
        "everything named here exists",
    );
}

pub(super) fn certificate_ready(
    conditions: &mut Conditions,
    report: &Report,
    chosen: &Chosen,
    served: &Served,
) {
    let type_ = ConditionType::CertificateReady;
    let issuing = report
        .of(type_)
        .any(|problem| matches!(problem.reason, Reason::Issuing | Reason::OrderFailed));
    if !issuing {
        conditions.remove(ConditionType::Reconciling);
    }
    if matches!(chosen.compiled.tls, CompiledTls::Passthrough) {
        conditions.set(type_, true, Reason::NotNeeded, "the backend speaks TLS");
        return;
    }
    if !chosen.compiled.needs_certificate() {
        let message = "no hostname needs a certificate";
        conditions.set(type_, true, Reason::NotNeeded, message);
        return;
    }
    let stays = served
        .certificate
        .as_ref()
        .filter(|_| served.kept)
        .map(|kept| {
            let until = timestamp(kept.not_after).0;
            format!("the last good certificate (valid until {until}) stays in use")
        });
    match (report.of(type_).next(), stays, &served.certificate) {
        (Some(first), stays, _) => {
            let mut message = joined(report.of(type_));
            if let Some(stays) = stays {
                message = format!("{message}\n{stays}");
            }
            let reason = first.reason;
            conditions.set(type_, false, reason, message.clone());
            if issuing {
                conditions.set(ConditionType::Reconciling, true, Reason::Issuing, message);
            }
        }
        (None, Some(stays), _) => conditions.set(type_, true, Reason::LastGoodKept, stays),
        (None, None, Some(_)) if !served.placeholder => {
            let message = match &served.note {
                Some(note) => format!("valid and served\n{note}"),
                None => "valid and served".to_owned(),
            };
            conditions.set(type_, true, Reason::CertificateReady, message);
        }
        (None, None, _) => {
            let missing = report.of(ConditionType::ResolvedRefs).next();
            match missing {
                Some(problem) => conditions.set(type_, false, problem.reason, problem.summary()),
                None => conditions.set(
                    type_,
                    false,
                    Reason::NothingToServe,
                    "no hostname of the route is served",
                ),
            }
        }
    }
}

/// Whether whoever is behind the route learns the addresses of clients: backends of requests, then UDP trackers.
pub(super) fn address_preserved(
    conditions: &mut Conditions,
    report: &Report,
    chosen: &Chosen,
    udp: &[Verdict],
) {
    let type_ = ConditionType::ClientAddressPreserved;
    let compiled = &chosen.compiled;
    let mut reason = None;
    let mut lines = Vec::new();
    let mut pending = Vec::new();
    if !compiled.hosts.is_empty() || udp.is_empty() {
        let (how, words) = match compiled.tls {
            CompiledTls::Passthrough => (Reason::ProxyProtocol, "sent in a PROXY protocol header"),
            CompiledTls::Terminate { .. } if compiled.hosts.is_empty() => (
                Reason::NotProxied,
                "clients reach every tracker of the route without this edge",
            ),
            CompiledTls::Terminate { .. } => (
                Reason::ForwardedHeaders,
                "sent in X-Forwarded-For and X-Real-IP",
            ),
        };
        reason = Some(how);
        lines.push(words);
    }
    for verdict in udp {
        match verdict {
            Verdict::Good(how, words) => {
                reason = reason.or(Some(*how));
                lines.push(words);
            }
            Verdict::Pending(words) => pending.push(words.as_str()),
            Verdict::Bad => {}
        }
    }
    if pending.is_empty() || report.has(type_) {
        let good = reason.unwrap_or(Reason::ForwardedHeaders);
        conditions.judge(report, type_, good, &lines.join("\n"));
    } else {
        lines.extend(pending);
        conditions.set(type_, false, Reason::Pending, lines.join("\n"));
    }
}
