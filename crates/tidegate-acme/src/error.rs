//! Why an order came to nothing.

use std::fmt::Write as _;
use std::time::SystemTime;

use instant_acme::Problem;
use tidegate_telemetry::chain;

use crate::client::{ClientError, is_untrusted};
use crate::plan::ledger::Refusal;
use crate::plan::retry::FailureKind;
use crate::preflight::{Check, Finding, State};
use crate::store::StoreError;

/// What an attempt failed at. The texts say what was done; the authority's own words are in them.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The store failed, so that nothing was asked of the authority.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The authority refused.
    #[error("{action}: {}", words(problem))]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// What it answered.
        problem: Problem,
    },
    /// The authority answered what cannot be understood, or not at all.
    #[error("{action}")]
    Protocol {
        /// What was asked for.
        action: &'static str,
        /// What is wrong with the answer.
        #[source]
        source: instant_acme::Error,
    },
    /// Checks before the order found what would make it fail; nothing was asked of the authority.
    #[error("{}", blocking(findings))]
    Preflight {
        /// Everything that was found.
        findings: Vec<Finding>,
    },
    /// An order now would break a limit of the authority; nothing was asked of it.
    #[error("{}", refusal.sentence)]
    Budget {
        /// Which, and until when.
        refusal: Refusal,
    },
    /// No solver of the issuer can prove control of a name.
    #[error("no way to prove control of {name}: {why}; {fix}")]
    NoSolver {
        /// The name.
        name: String,
        /// For each solver, why not.
        why: String,
        /// How to mend it.
        fix: String,
    },
    /// The authority looked for the answer to a challenge and did not like what it found.
    #[error("prove control of {name} by {challenge}: {detail}")]
    Challenge {
        /// The name.
        name: String,
        /// Type of the challenge.
        challenge: String,
        /// Type of the problem without its prefix, such as `connection`.
        kind: String,
        /// The authority's words.
        detail: String,
    },
    /// The answer could not be put where the authority looks for it.
    #[error("present the answer for {name} by {challenge}: {detail}")]
    Present {
        /// The name.
        name: String,
        /// Type of the challenge.
        challenge: &'static str,
        /// What went wrong.
        detail: String,
    },
    /// The order is invalid and nothing says why.
    #[error("the authority made the order invalid: {0}")]
    Invalid(String),
    /// The authority is not ready yet; the order is kept and looked at again.
    #[error("the authority is still {0}")]
    Unfinished(&'static str),
    /// No key or signing request can be made.
    #[error("make the {0}")]
    Key(&'static str, #[source] rcgen::Error),
    /// A certificate came that cannot be used.
    #[error("the certificate that was issued cannot be used: {0}")]
    Certificate(String),
}

impl OrderError {
    /// The reason for conditions and metrics, in `PascalCase`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason(),
            Self::Client(error) => error.reason(),
            Self::Refused { problem, .. } => refusal(kind(problem)),
            Self::Protocol { source, .. } => match client_error(source) {
                Some(error) => error.reason(),
                None if is_untrusted(source) => "CaUntrusted",
                None => "ProtocolError",
            },
            Self::Preflight { findings } => preflight_reason(findings),
            Self::Budget { .. } => "RateLimited",
            Self::NoSolver { .. } => "NoUsableSolver",
            Self::Challenge { kind, .. } => refusal(kind),
            Self::Present { .. } => "ChallengeNotPresented",
            Self::Invalid(_) => "OrderInvalid",
            Self::Unfinished(_) => "OrderProcessing",
            Self::Key(..) => "KeyGeneration",
            Self::Certificate(_) => "UnusableCertificate",
        }
    }

    /// Whether the authority could not be reached or used at all, so that another one may help.
    pub fn is_outage(&self) -> bool {
        matches!(
            self.reason(),
            "CaUnreachable" | "CaUntrusted" | "ServerInternal" | "NotADirectory" | "ProtocolError"
        )
    }

    /// Whether the names were at fault, which the authority counts.
    pub fn is_failed_validation(&self) -> bool {
        matches!(self, Self::Challenge { .. })
    }

    /// What the retry schedule goes by.
    pub fn failure_kind(&self) -> FailureKind {
        match self.reason() {
            "RateLimited" => FailureKind::RateLimited,
            // Its nonces, not our request: the order stays and goes on soon, and no other authority is asked.
            "BadNonce" => FailureKind::Local,
            _ if self.is_outage() => FailureKind::Unavailable,
            _ => match self {
                Self::Store(_)
                | Self::Client(_)
                | Self::Preflight { .. }
                | Self::Budget { .. }
                | Self::NoSolver { .. }
                | Self::Present { .. }
                | Self::Unfinished(_)
                | Self::Key(..) => FailureKind::Local,
                Self::Challenge { .. } | Self::Invalid(_) => FailureKind::Validation,
                _ => FailureKind::Refused,
            },
        }
    }

    /// Until when nothing may be ordered, as far as this failure says.
    pub fn told_until(&self) -> Option<SystemTime> {
        match self {
            Self::Budget { refusal } => Some(refusal.at),
            Self::Client(ClientError::Busy { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// Whether the order stays as it is and goes on later.
    pub fn keeps_order(&self) -> bool {
        match self {
            Self::Unfinished(_) | Self::Store(_) | Self::Client(_) | Self::Present { .. } => true,
            Self::Protocol { .. } => self.is_outage(),
            Self::Refused { problem, .. } => {
                matches!(kind(problem), "rateLimited" | "serverInternal" | "badNonce")
            }
            _ => false,
        }
    }

    /// Everything in one line.
    pub fn text(&self) -> String {
        chain(self).to_string()
    }

    /// Sorts what instant-acme reports.
    pub(crate) fn of(action: &'static str, error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::Refused { action, problem },
            instant_acme::Error::Timeout(_) => Self::Unfinished(action),
            source => Self::Protocol { action, source },
        }
    }
}

fn client_error(error: &instant_acme::Error) -> Option<&ClientError> {
    match error {
        instant_acme::Error::Other(inner) => inner.downcast_ref(),
        _ => None,
    }
}

/// Type of a problem without its prefix (RFC 8555 §6.7).
pub(crate) fn kind(problem: &Problem) -> &str {
    let full = problem.r#type.as_deref().unwrap_or_default();
    full.rsplit(':').next().unwrap_or_default()
}

/// The authority's words, those about single names included.
pub(crate) fn words(problem: &Problem) -> String {
    let mut text = problem.detail.clone().unwrap_or_default();
    for part in &problem.subproblems {
        let name = part
            .identifier
            .as_ref()
            .map_or_else(String::new, |name| format!(" {}:", name.authorized(false)));
        let detail = part.detail.as_deref().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(text, ";{name} {detail}");
    }
    if text.is_empty() {
        text.push_str("it gave no reason");
    }
    match kind(problem) {
        "" => text,
        kind => format!("{text} ({kind})"),
    }
}

/// Types of problems as reasons.
fn refusal(kind: &str) -> &'static str {
    match kind {
        "accountDoesNotExist" => "AccountUnknown",
        "badCSR" => "BadSigningRequest",
        "badNonce" => "BadNonce",
        "badRevocationReason" | "alreadyRevoked" => "RevocationRefused",
        "caa" => "CaaForbids",
        "connection" => "ChallengeUnreachable",
        "dns" => "DnsFailed",
        "externalAccountRequired" => "ExternalAccountRequired",
        "incorrectResponse" | "unauthorized" => "ChallengeWrongAnswer",
        "invalidContact" | "unsupportedContact" => "ContactRefused",
        "invalidProfile" => "ProfileUnknown",
        "alreadyReplaced" => "AlreadyReplaced",
        "malformed" => "Malformed",
        "orderNotReady" => "OrderNotReady",
        "rateLimited" => "RateLimited",
        "rejectedIdentifier" | "unsupportedIdentifier" => "NameRejected",
        "serverInternal" => "ServerInternal",
        "tls" => "ChallengeTls",
        "userActionRequired" => "UserActionRequired",
        _ => "Refused",
    }
}

/// Every finding that blocks, with what mends it.
fn blocking(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings
        .iter()
        .filter(|finding| finding.state == State::Blocking)
    {
        if !text.is_empty() {
            text.push_str("; ");
        }
        if let Some(name) = &finding.name
            && !finding.message.contains(name)
        {
            text.push_str(name);
            text.push_str(": ");
        }
        text.push_str(&finding.message);
        if let Some(fix) = &finding.fix {
            text.push_str(" (");
            text.push_str(fix);
            text.push(')');
        }
    }
    text
}

fn preflight_reason(findings: &[Finding]) -> &'static str {
    let first = findings
        .iter()
        .find(|finding| finding.state == State::Blocking);
    match first.map(|finding| finding.check) {
        Some(Check::Challenge) => "NoUsableSolver",
        Some(Check::Address | Check::Alias) => "DnsWrong",
        Some(Check::Caa) => "CaaForbids",
        Some(Check::Reachability) => "NotReachable",
        Some(Check::DnsRecord) => "DnsRecordMissing",
        Some(Check::Directory) => "AuthorityRefuses",
        Some(Check::Clock) => "ClockSkew",
        Some(Check::Store) => StoreError::UNWRITABLE,
        Some(Check::Budget) => "RateLimited",
        None => "PreflightFailed",
    }
}
