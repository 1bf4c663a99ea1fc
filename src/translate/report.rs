//! Collects everything that is wrong with one object, each entry with the path of its field.

use std::collections::BTreeSet;
use std::fmt;

use tidegate_model::{AgentId, Mapping, ObjectName};

use super::{ObjectRef, Problem, Reference, ReferenceKind, Translation};
use crate::api::conditions::{ConditionType, Reason};

/// The path of a field, built while walking down and only written out when something is wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    part: Part<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Name(&'a str),
    Index(usize),
}

// === impl Field ===

impl<'a> Field<'a> {
    pub(super) const SPEC: Field<'static> = Field {
        parent: None,
        part: Part::Name("spec"),
    };

    pub(super) fn at(&'a self, name: &'a str) -> Field<'a> {
        Field {
            parent: Some(self),
            part: Part::Name(name),
        }
    }

    pub(super) fn index(&'a self, index: usize) -> Field<'a> {
        Field {
            parent: Some(self),
            part: Part::Index(index),
        }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.part {
            Part::Name(name) if self.parent.is_some() => write!(f, ".{name}"),
            Part::Name(name) => f.write_str(name),
            Part::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The problems of one object.
#[derive(Debug)]
pub(super) struct Report {
    object: ObjectRef,
    problems: Vec<Problem>,
    references: BTreeSet<Reference>,
    mappings: Vec<(AgentId, Mapping)>,
}

// === impl Report ===

impl Report {
    pub(super) fn new(object: ObjectRef) -> Self {
        Self {
            object,
            problems: Vec::new(),
            references: BTreeSet::new(),
            mappings: Vec::new(),
        }
    }

    /// Notes the definition of a backend behind an agent.
    pub(super) fn maps(&mut self, agent: AgentId, mapping: Mapping) {
        self.mappings.push((agent, mapping));
    }

    /// The definitions noted so far.
    pub(super) fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().map(|(_, mapping)| mapping)
    }

    /// Everything that was noted.
    pub(super) fn all(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// Notes that the object names something, whether it exists or not.
    pub(super) fn names(&mut self, kind: ReferenceKind, name: ObjectName) {
        self.references.insert(Reference { kind, name });
    }

    /// Notes a problem: what was found and how to mend it.
    pub(super) fn add(
        &mut self,
        field: impl fmt::Display,
        reason: Reason,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let hint = hint.into();
        self.problems.push(Problem {
            object: self.object.clone(),
            field: field.to_string(),
            reason,
            message: message.into(),
            hint: (!hint.is_empty()).then_some(hint),
        });
    }

    /// Gives what was noted for one reason another.
    pub(super) fn rename(&mut self, from: Reason, to: Reason) {
        for problem in &mut self.problems {
            if problem.reason == from {
                problem.reason = to;
            }
        }
    }

    /// Notes a value that cannot be used.
    pub(super) fn invalid(
        &mut self,
        field: impl fmt::Display,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(field, Reason::Invalid, message, hint);
    }

    /// Notes those of the members that are set, although they mean nothing there.
    pub(super) fn forbid(
        &mut self,
        field: &Field<'_>,
        members: &[(&str, bool)],
        message: &str,
        hint: &str,
    ) {
        for (member, _) in members.iter().filter(|(_, set)| *set) {
            self.invalid(field.at(member), message, hint);
        }
    }

    /// The value, or a problem in its place.
    pub(super) fn keep<T, E: fmt::Display>(
        &mut self,
        field: impl fmt::Display,
        result: Result<T, E>,
        hint: &str,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.invalid(field, error.to_string(), hint);
                None
            }
        }
    }

    pub(super) fn of(&self, condition: ConditionType) -> impl Iterator<Item = &Problem> {
        self.problems
            .iter()
            .filter(move |problem| condition_of(problem.reason) == condition)
    }

    pub(super) fn has(&self, condition: ConditionType) -> bool {
        self.of(condition).next().is_some()
    }

    /// How many problems there are so far.
    pub(super) fn count(&self) -> usize {
        self.problems.len()
    }

    /// What was noted after there were so many.
    pub(super) fn since(&mut self, count: usize) -> &mut [Problem] {
        self.problems.get_mut(count..).unwrap_or_default()
    }

    pub(super) fn append(&mut self, other: Report) {
        self.problems.extend(other.problems);
        self.references.extend(other.references);
        self.mappings.extend(other.mappings);
    }

    /// Keeps those problems only; what the object names and maps stays.
    pub(super) fn retain(&mut self, keep: impl Fn(&Problem) -> bool) {
        self.problems.retain(keep);
    }

    /// Drops what speaks of one condition.
    pub(super) fn forget(&mut self, condition: ConditionType) {
        self.problems
            .retain(|problem| condition_of(problem.reason) != condition);
    }

    /// Hands over what was found.
    pub(super) fn close(self, into: &mut Translation) {
        into.problems.extend(self.problems);
        into.references.extend(self.references);
        let mappings = self.mappings.into_iter();
        let mappings = mappings.map(|(agent, mapping)| ((agent, mapping.id.clone()), mapping));
        into.mappings.extend(mappings);
    }
}

/// The condition that a problem makes false.
pub(super) fn condition_of(reason: Reason) -> ConditionType {
    match reason {
        Reason::SecretNotFound
        | Reason::InvalidSecret
        | Reason::ConfigMapNotFound
        | Reason::AgentNotFound
        | Reason::IssuerNotFound
        | Reason::BackendNotFound
        | Reason::BackendNotAllowed => ConditionType::ResolvedRefs,
        Reason::InvalidCertificate
        | Reason::NameMismatch
        | Reason::Expired
        | Reason::Revoked
        | Reason::NotYetValid
        | Reason::Issuing
        | Reason::OrderFailed => ConditionType::CertificateReady,
        Reason::NoticesNotDelivered => ConditionType::NotificationsDelivered,
        Reason::AddressLost
        | Reason::RelayNotPermitted
        | Reason::RelayNoWayBack
        | Reason::RelayAddressReplaced
        | Reason::ProxyHeaderNotRead
        | Reason::TrackerSilent
        | Reason::SourceAddressReplaced
        | Reason::ServiceNotManaged
        | Reason::ServiceForeign
        | Reason::ServiceWithoutSelector
        | Reason::LoadBalancerPending
        | Reason::TrackerNotReady => ConditionType::ClientAddressPreserved,
        Reason::NoReadyEndpoints | Reason::AgentNotConnected => ConditionType::BackendsReady,
        Reason::Suspended
        | Reason::NothingToServe
        | Reason::PlainListenerMissing
        | Reason::UdpPortUnavailable
        | Reason::PortUnavailable => ConditionType::Programmed,
        _ => ConditionType::Accepted,
    }
}
