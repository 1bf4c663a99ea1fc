//! What an agent asks for by itself: which wishes become routes, and what it is told of each.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{AgentTarget, HostPattern, ProxyProtocolVersion, RequestedMapping};

use super::super::Severity;
use super::super::ports::WantedPort;
use super::routes::{TARGET_HINT, is_allowed, is_name};
use super::{Outcome, ReadAgent};
use crate::api::conditions::Reason;
use crate::api::{AgentMapping, MappingTls, RequestedMappingStatus};

/// What an agent may ask for at most.
const REQUESTS: usize = 256;

impl ReadAgent {
    /// Makes routes of what the agent asks for.
    pub(super) fn ask(&mut self) {
        let mut names: BTreeSet<String> = BTreeSet::new();
        for (index, wish) in self.requested.clone().into_iter().enumerate() {
            if let Err(verdict) = self.judge(index, &wish, &mut names) {
                self.refused.insert(index, verdict);
                continue;
            }
            let mapping = AgentMapping {
                name: wish.name,
                hostname: wish.port.is_none().then_some(wish.hostname),
                port: wish.port.map(i32::from),
                target: wish.target,
                proxy_protocol: wish.proxy_protocol.map(|version| match version {
                    ProxyProtocolVersion::V1 => "v1".to_owned(),
                    ProxyProtocolVersion::V2 => "v2".to_owned(),
                }),
                tls: wish.insecure_skip_verify.then(|| MappingTls {
                    insecure_skip_verify: Some(true),
                    ..MappingTls::default()
                }),
                description: wish.description,
                ..AgentMapping::default()
            };
            if mapping.port.is_some() {
                self.ports.push(WantedPort::asked(mapping, index));
                continue;
            }
            let mapped = self.mapped(&mapping, index);
            self.asked.push(mapped);
        }
    }

    /// Why there is no route for a wish.
    fn judge(
        &self,
        index: usize,
        wish: &RequestedMapping,
        names: &mut BTreeSet<String>,
    ) -> Result<(), (Reason, String)> {
        let invalid = |message: String| Err((Reason::Invalid, message));
        if index >= REQUESTS {
            return invalid(format!("an agent may ask for {REQUESTS} mappings at most"));
        }
        if !is_name(&wish.name) {
            return invalid(
                "its name is not of lower-case letters, digits and hyphens, such as nas".to_owned(),
            );
        }
        if !names.insert(wish.name.clone()) {
            return invalid("the agent asks for another mapping of the same name".to_owned());
        }
        let mut mappings = self.wire.spec.mappings.iter();
        if mappings.any(|mapping| mapping.name == wish.name) {
            return Err((
                Reason::DefinedByObject,
                format!(
                    "TunnelAgent {} has a mapping of that name, which counts; give one of the two another name",
                    self.id
                ),
            ));
        }
        if wish.port.is_some() {
            return if wish.hostname.is_empty() {
                Ok(())
            } else {
                invalid("it has a hostname and a port; ask for one of them".to_owned())
            };
        }
        let host = match HostPattern::parse(&wish.hostname) {
            Ok(host) => host,
            Err(error) => {
                return invalid(format!("{error}; ask for a name such as nas.example.com"));
            }
        };
        if !is_allowed(&self.allowed, &host) {
            return Err((
                Reason::HostnameNotAllowed,
                format!(
                    "{host} is not covered by spec.allowedHostnames of TunnelAgent {}; add the hostname or its wildcard there",
                    self.id
                ),
            ));
        }
        match AgentTarget::parse(&wish.target) {
            Err(error) => invalid(format!("{error}; {TARGET_HINT}")),
            Ok(target @ AgentTarget::Udp { .. }) => invalid(format!(
                "datagrams to {target} have no hostname; ask for a port instead"
            )),
            Ok(AgentTarget::Tcp { .. }) if wish.insecure_skip_verify => {
                invalid("what is sent to a target with tcp:// is not opened".to_owned())
            }
            Ok(_) => Ok(()),
        }
    }

    /// What became of each wish; what is wrong with one is reported.
    pub(super) fn verdicts(
        &mut self,
        asked: &BTreeMap<usize, Outcome>,
    ) -> Vec<RequestedMappingStatus> {
        let mut all = Vec::new();
        for (index, wish) in self.requested.iter().enumerate().take(REQUESTS) {
            let refused = self.refused.get(&index);
            let (accepted, reason, message) = match (refused, self.port_verdicts.get(&index)) {
                (Some((reason, message)), _) => (false, *reason, message.clone()),
                (None, Some(verdict)) => verdict.clone(),
                (None, None) => verdict(asked.get(&index), &wish.hostname),
            };
            if !accepted {
                self.wrong.add(
                    format!("status.requestedMappings[{index}]"),
                    reason,
                    format!("the agent asks for {:?}: {message}", cut(&wish.name, 63)),
                    "",
                );
            }
            all.push(RequestedMappingStatus {
                name: cut(&wish.name, 63),
                hostname: wish.port.is_none().then(|| cut(&wish.hostname, 253)),
                port: wish.port.map(i32::from),
                target: cut(&wish.target, 512),
                description: wish.description.as_ref().map(|text| cut(text, 1024)),
                accepted,
                reason: reason.to_string(),
                message: cut(&message, 4096),
            });
        }
        all
    }
}

/// What is said to an agent of a wish that has a route.
fn verdict(outcome: Option<&Outcome>, hostname: &str) -> (bool, Reason, String) {
    let served = outcome.is_some_and(|outcome| !outcome.served.is_empty());
    let problems = outcome.map_or(&[][..], |outcome| &outcome.problems);
    let first = problems
        .iter()
        .find(|problem| problem.severity() != Severity::Warning);
    match first {
        Some(problem) => (served, problem.reason, problem.words()),
        None if served => (true, Reason::Accepted, format!("https://{hostname}/")),
        None => (
            false,
            Reason::NothingToServe,
            "the hostname cannot be served".to_owned(),
        ),
    }
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
