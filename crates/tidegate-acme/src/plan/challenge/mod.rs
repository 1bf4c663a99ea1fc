//! How control over a name is proved: which challenge type, by which solver, and why not the others.
//!
//! Chosen by what can work: the object's solvers say what may be used, facts about listeners and probes
//! say what would fail, the authority says what it offers, and what failed last time goes last. Each type
//! that is left out has a sentence, so that "no usable solver" tells what to mend.
//!
//! Must not probe anything: facts come from [`crate::preflight`] and from the data plane's listeners.

use std::fmt;

use serde::{Deserialize, Serialize};
use tidegate_model::{HostName, HostPattern};

/// A challenge type that the edge can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ChallengeType {
    /// A file on port 80 (RFC 8555 §8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// A TXT record for each order (RFC 8555 §8.4).
    #[serde(rename = "dns-01")]
    Dns01,
    /// A TXT record that stays (draft-ietf-acme-dns-persist).
    #[serde(rename = "dns-persist-01")]
    DnsPersist01,
}

impl ChallengeType {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
            Self::DnsPersist01 => "dns-persist-01",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(name: &str) -> Option<Self> {
        [
            Self::Http01,
            Self::TlsAlpn01,
            Self::Dns01,
            Self::DnsPersist01,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == name)
    }

    /// Whether the authority connects to the name's addresses; if not, it asks the DNS.
    pub const fn connects(self) -> bool {
        matches!(self, Self::Http01 | Self::TlsAlpn01)
    }

    fn is_dns(self) -> bool {
        !self.connects()
    }
}

impl fmt::Display for ChallengeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One solver of an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Solver {
    /// Its name, unique within the issuer.
    pub name: String,
    /// Zones that a name must be in; empty for any.
    pub zones: Vec<HostName>,
    /// Names that it is for, wildcards as such; empty for any.
    pub names: Vec<HostPattern>,
    /// What it answers.
    pub kind: ChallengeType,
    /// Why it cannot be used as it is written; none when it can.
    pub broken: Option<Broken>,
}

/// Why a solver cannot be used as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// What is wrong, with its field.
    pub why: String,
    /// How to mend it.
    pub fix: String,
}

impl Solver {
    /// Whether the selector fits: every given condition must hold.
    pub fn selects(&self, name: &HostPattern) -> bool {
        let in_zone = |zone: &HostName| match name {
            HostPattern::Exact(host) if host.ip().is_some() => host == zone,
            HostPattern::Exact(host) | HostPattern::Wildcard(host) => host
                .as_str()
                .strip_suffix(zone.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        };
        (self.zones.is_empty() || self.zones.iter().any(in_zone))
            && (self.names.is_empty() || self.names.contains(name))
    }
}

/// The solvers of an issuer that names none: tls-alpn-01, then http-01.
pub fn default_solvers() -> Vec<Solver> {
    [ChallengeType::TlsAlpn01, ChallengeType::Http01]
        .into_iter()
        .map(|kind| Solver {
            name: kind.as_str().to_owned(),
            zones: Vec::new(),
            names: Vec::new(),
            kind,
            broken: None,
        })
        .collect()
}

/// Whether the authority can reach us on a port, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reach {
    /// It was tried and works.
    Works,
    /// Nothing speaks against it.
    #[default]
    Unknown,
    /// It did not work when tried from here, which proves little behind NAT: used last.
    Doubtful(String),
    /// It cannot work; why.
    Impossible(String),
}

/// What is known about one name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Port 80, where http-01 is answered.
    pub http: Reach,
    /// Port 443, where tls-alpn-01 is answered. A name whose TLS is passed through is `Impossible`.
    pub tls: Reach,
    /// The DNS provider or its credentials.
    pub dns: Reach,
    /// What the authority offers; none before the order.
    pub offered: Option<Vec<ChallengeType>>,
    /// What failed at earlier attempts, the latest last.
    pub failed: Vec<ChallengeType>,
}

/// A way to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The type.
    pub kind: ChallengeType,
    /// The solver's name.
    pub solver: String,
    /// Why it stands where it stands.
    pub why: String,
}

/// A solver that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excluded {
    /// The type.
    pub kind: ChallengeType,
    /// The solver's name.
    pub solver: String,
    /// Why not, in a sentence.
    pub why: String,
    /// How to mend it, if it only must be written differently.
    pub fix: Option<String>,
}

/// The ways to prove control over one name, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// In the order in which to try; never empty.
    pub candidates: Vec<Candidate>,
    /// What was left out.
    pub excluded: Vec<Excluded>,
}

/// No solver can prove control over the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("choose a challenge for {name:?}: {why}; {mend}")]
pub struct NoUsableSolver {
    /// The name.
    pub name: String,
    /// What was found.
    pub why: String,
    /// How to mend it.
    pub mend: String,
    /// Every solver that was looked at.
    pub excluded: Vec<Excluded>,
}

impl NoUsableSolver {
    /// One `PascalCase` name for status, log and metric.
    pub fn reason(&self) -> &'static str {
        "NoUsableSolver"
    }
}

/// The ways to prove control over a name.
///
/// # Errors
///
/// When no solver is left; the error says why for each and how to mend it.
pub fn choose(
    name: &HostPattern,
    solvers: &[Solver],
    facts: &Facts,
) -> Result<Choice, NoUsableSolver> {
    let defaults;
    let solvers = if solvers.is_empty() {
        defaults = default_solvers();
        &defaults
    } else {
        solvers
    };
    let (mut ranked, mut excluded) = (Vec::new(), Vec::new());
    for (index, solver) in solvers.iter().enumerate() {
        match look_at(name, solver, facts) {
            Err(Left { why, fix }) => excluded.push(Excluded {
                kind: solver.kind,
                solver: solver.name.clone(),
                why,
                fix,
            }),
            Ok(rank) => ranked.push((rank, index, solver)),
        }
    }
    ranked.sort_by_key(|(rank, index, _)| (*rank, *index));
    let candidates: Vec<Candidate> = ranked
        .into_iter()
        .map(|(rank, _, solver)| Candidate {
            kind: solver.kind,
            solver: solver.name.clone(),
            why: match rank {
                Rank::Fits => "it can work".to_owned(),
                Rank::Doubtful => match reach(solver.kind, facts) {
                    Reach::Doubtful(why) => why.clone(),
                    _ => "it may work".to_owned(),
                },
                Rank::FailedBefore(_) => "it failed before, the others are tried first".to_owned(),
            },
        })
        .collect();
    if candidates.is_empty() {
        return Err(none_left(name, excluded));
    }
    Ok(Choice {
        candidates,
        excluded,
    })
}

/// Order of the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Fits,
    Doubtful,
    /// The number counts from the earliest failure: what failed longest ago comes first.
    FailedBefore(usize),
}

/// Why a solver is not used.
struct Left {
    why: String,
    fix: Option<String>,
}

impl From<String> for Left {
    fn from(why: String) -> Self {
        Self { why, fix: None }
    }
}

fn look_at(name: &HostPattern, solver: &Solver, facts: &Facts) -> Result<Rank, Left> {
    let kind = solver.kind;
    if !solver.selects(name) {
        return Err(format!("solver {:?} is not for {name}", solver.name).into());
    }
    match name {
        HostPattern::Wildcard(_) if !kind.is_dns() => {
            return Err(format!("{kind} cannot prove control over a wildcard").into());
        }
        HostPattern::Exact(host) if host.ip().is_some() && kind.is_dns() => {
            return Err(format!("{kind} cannot prove control over an IP address").into());
        }
        _ => {}
    }
    if let Some(broken) = &solver.broken {
        return Err(Left {
            why: format!("solver {:?} cannot be used: {}", solver.name, broken.why),
            fix: Some(broken.fix.clone()),
        });
    }
    if let Some(offered) = &facts.offered
        && !offered.contains(&kind)
    {
        return Err(format!("the authority does not offer {kind} for this name").into());
    }
    let rank = match reach(kind, facts) {
        Reach::Impossible(why) => return Err(why.clone().into()),
        Reach::Doubtful(_) => Rank::Doubtful,
        Reach::Works | Reach::Unknown => Rank::Fits,
    };
    Ok(
        match facts.failed.iter().rposition(|failed| *failed == kind) {
            Some(position) => Rank::FailedBefore(position),
            None => rank,
        },
    )
}

fn reach(kind: ChallengeType, facts: &Facts) -> &Reach {
    match kind {
        ChallengeType::Http01 => &facts.http,
        ChallengeType::TlsAlpn01 => &facts.tls,
        ChallengeType::Dns01 => &facts.dns,
        // The record is there already; nothing is written.
        ChallengeType::DnsPersist01 => &Reach::Unknown,
    }
}

fn none_left(name: &HostPattern, excluded: Vec<Excluded>) -> NoUsableSolver {
    let broken = excluded.iter().find_map(|solver| solver.fix.clone());
    let mend = broken.unwrap_or_else(|| mend(name, &excluded).to_owned());
    let shown: Vec<String> = excluded
        .iter()
        .filter(|solver| fits(name, solver))
        .take(4)
        .map(|solver| solver.why.clone())
        .collect();
    let why = if shown.is_empty() {
        "no solver is for it".to_owned()
    } else {
        shown.join(", ")
    };
    NoUsableSolver {
        name: name.to_string(),
        why,
        mend,
        excluded,
    }
}

/// Whether the selector let it be looked at.
fn fits(name: &HostPattern, solver: &Excluded) -> bool {
    !solver.why.ends_with(&format!("is not for {name}"))
}

fn mend(name: &HostPattern, excluded: &[Excluded]) -> &'static str {
    match name {
        HostPattern::Wildcard(_) if !excluded.iter().any(|solver| solver.kind.is_dns()) => {
            "a wildcard needs a dns01 solver in the AcmeIssuer"
        }
        HostPattern::Exact(host)
            if host.ip().is_some() && excluded.iter().all(|solver| solver.kind.is_dns()) =>
        {
            "an IP address needs an http01 or tlsAlpn01 solver in the AcmeIssuer"
        }
        _ if !excluded.iter().any(|solver| fits(name, solver)) => {
            "add a solver to the AcmeIssuer whose selector fits, or one without a selector"
        }
        HostPattern::Wildcard(_)
            if !excluded
                .iter()
                .any(|solver| solver.kind.is_dns() && fits(name, solver)) =>
        {
            "a wildcard needs a dns01 solver for its zone in the AcmeIssuer"
        }
        HostPattern::Wildcard(_) => "mend the dns01 solver",
        HostPattern::Exact(_) => {
            "open port 80 or 443 to the internet, or add a dns01 solver to the AcmeIssuer"
        }
    }
}

#[cfg(test)]
mod tests;
