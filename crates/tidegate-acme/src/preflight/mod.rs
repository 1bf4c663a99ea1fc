//! Checks before an order: what would make the authority refuse, found before it counts against a limit.
//!
//! ```text
//! probe (DNS, ports, clock) ─► Facts ─► judge (pure) ─► Vec<Finding> ─► status.preflight[], `tidegate doctor`
//! ```
//!
//! The rim ([`probe`], [`loopback`], [`own`]) only collects; every verdict is in [`judge`] and a pure function
//! of the facts, so that the doctor, the status and the tests say the same words. A finding that is not `Ok`
//! carries one sentence that says what to do. What cannot be known from here is `Unknown`, never `Blocking`:
//! an order that might succeed is not held back.

pub mod caa;
pub mod facts;
mod judge;
pub mod loopback;
pub mod own;
pub mod probe;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use facts::Facts;
pub(crate) use judge::is_skewed;
pub use judge::judge;

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Check {
    /// The challenge can prove this name at all.
    Challenge,
    /// Address records lead to this machine.
    Address,
    /// The alias leads somewhere.
    Alias,
    /// CAA allows the authority.
    Caa,
    /// The challenge's port answers from this edge.
    Reachability,
    /// TXT records can be written, or the lasting one is there.
    DnsRecord,
    /// The authority's directory and what it demands.
    Directory,
    /// This machine's clock.
    Clock,
    /// What is issued can be kept.
    Store,
    /// The authority's limits leave room.
    Budget,
}

impl Check {
    /// The word that statuses use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Challenge => "Challenge",
            Self::Address => "Address",
            Self::Alias => "Alias",
            Self::Caa => "Caa",
            Self::Reachability => "Reachability",
            Self::DnsRecord => "DnsRecord",
            Self::Directory => "Directory",
            Self::Clock => "Clock",
            Self::Store => "Store",
            Self::Budget => "Budget",
        }
    }
}

/// How a check ended. The order is that of urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// As it should be.
    Ok,
    /// Cannot be seen from here.
    Unknown,
    /// Will work, but something is wrong.
    Warning,
    /// The order would fail.
    Blocking,
}

impl State {
    /// The word that statuses use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "Ok",
            Self::Unknown => "Unknown",
            Self::Warning => "Warning",
            Self::Blocking => "Blocking",
        }
    }
}

/// One verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// The name concerned; none for what concerns the whole order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How it ended.
    pub state: State,
    /// What was found, with the records.
    pub message: String,
    /// One sentence that mends it; none when there is nothing to mend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.state, self.check)?;
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(fix) = &self.fix {
            write!(f, "\n  fix: {fix}")?;
        }
        Ok(())
    }
}

/// Whether an order must not be placed.
pub fn blocks(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.state == State::Blocking)
}
