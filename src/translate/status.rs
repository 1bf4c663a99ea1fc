//! Conditions from problems.

use std::time::SystemTime;

use tidegate_model::{Certificate, CertificateOrigin};

use super::Problem;
use super::report::Report;
use crate::api::CertificateStatus;
use crate::api::conditions::{
    Condition, ConditionType, Reason, find_condition, remove_condition, set_condition, set_unknown,
    timestamp,
};

/// The conditions of one object while they are being worked out.
pub(super) struct Conditions {
    all: Vec<Condition>,
    generation: Option<i64>,
    now: SystemTime,
}

// === impl Conditions ===

impl Conditions {
    /// Starts from the last ones, so that times of transitions are kept.
    pub(super) fn new(previous: &[Condition], generation: Option<i64>, now: SystemTime) -> Self {
        Self {
            all: previous.to_vec(),
            generation,
            now,
        }
    }

    pub(super) fn set(
        &mut self,
        type_: ConditionType,
        status: bool,
        reason: Reason,
        message: impl Into<String>,
    ) {
        set_condition(
            &mut self.all,
            type_,
            status,
            reason,
            message,
            self.generation,
            self.now,
        );
    }

    /// The same where nobody knows whether it holds.
    pub(super) fn set_unknown(
        &mut self,
        type_: ConditionType,
        reason: Reason,
        message: impl Into<String>,
    ) {
        let (generation, now) = (self.generation, self.now);
        set_unknown(&mut self.all, type_, reason, message, generation, now);
    }

    pub(super) fn remove(&mut self, type_: ConditionType) {
        remove_condition(&mut self.all, type_);
    }

    /// True with the given words, or False with all problems that speak of this condition.
    pub(super) fn judge(
        &mut self,
        report: &Report,
        type_: ConditionType,
        good: Reason,
        message: &str,
    ) {
        match report.of(type_).next() {
            None => self.set(type_, true, good, message),
            Some(first) => self.set(type_, false, first.reason, joined(report.of(type_))),
        }
    }

    /// Sets Ready to the first of the conditions that is not true, and Stalled when that can only be mended
    /// by a person.
    pub(super) fn summarize(&mut self, over: &[ConditionType]) {
        let mut failing = over
            .iter()
            .filter_map(|type_| find_condition(&self.all, *type_))
            .filter(|condition| condition.status != "True");
        let first = failing.next().cloned().map(|mut first| {
            // It has nothing to do with the first, and would be found only after that is mended.
            if failing.any(|other| other.reason == Reason::OrderFailed.as_str()) {
                first.message += "; also no certificate: see CertificateReady (OrderFailed)";
            }
            first
        });
        match first {
            None => self.set(ConditionType::Ready, true, Reason::Ready, "all is well"),
            Some(condition) => {
                let reason = Reason::ALL
                    .iter()
                    .copied()
                    .find(|reason| reason.as_str() == condition.reason)
                    .unwrap_or(Reason::Invalid);
                self.set(ConditionType::Ready, false, reason, condition.message);
            }
        }
        match find_condition(&self.all, ConditionType::Accepted).cloned() {
            Some(accepted) if accepted.status != "True" => {
                let reason = Reason::ALL
                    .iter()
                    .copied()
                    .find(|reason| reason.as_str() == accepted.reason)
                    .unwrap_or(Reason::Invalid);
                self.set(ConditionType::Stalled, true, reason, accepted.message);
            }
            _ => self.remove(ConditionType::Stalled),
        }
    }

    pub(super) fn into_inner(self) -> Vec<Condition> {
        self.all
    }
}

/// All problems, one a line.
pub(super) fn joined<'a>(problems: impl Iterator<Item = &'a Problem>) -> String {
    problems
        .map(Problem::summary)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Hostnames as a column of a table, in the way that kubectl lists those of an Ingress.
pub(super) fn in_one_line(hostnames: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    let first = hostnames.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    let first = first.join(",");
    match hostnames.len() {
        0 => None,
        all if all > SHOWN => Some(format!("{first} + {} more...", all - SHOWN)),
        _ => Some(first),
    }
}

/// What a status says about a certificate.
pub(super) fn certificate_status(certificate: &Certificate) -> CertificateStatus {
    CertificateStatus {
        secret_name: match &certificate.origin {
            CertificateOrigin::Secret(name) => {
                Some(name.rsplit('/').next().unwrap_or(name).to_owned())
            }
            CertificateOrigin::InternalCa
            | CertificateOrigin::Acme(_)
            | CertificateOrigin::SelfSigned => None,
        },
        serial: Some(certificate.serial.clone()),
        issuer: Some(certificate.issuer.clone()),
        fingerprint: Some(certificate.fingerprint.to_string()),
        not_before: Some(timestamp(certificate.not_before)),
        not_after: Some(timestamp(certificate.not_after)),
        renew_at: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_hostnames_fit_in_one_line() {
        let names = |count: usize| {
            (0..count)
                .map(|it| format!("{it}.test"))
                .collect::<Vec<_>>()
        };
        for (count, line) in [
            (0, None),
            (1, Some("0.test")),
            (3, Some("0.test,1.test,2.test")),
            (5, Some("0.test,1.test,2.test + 2 more...")),
        ] {
            assert_eq!(in_one_line(&names(count)).as_deref(), line);
        }
    }
}
