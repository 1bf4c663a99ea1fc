//! Verdicts by table, the rim against a real name server and real listeners.

mod rim;
mod table;
mod whole;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tidegate_model::HostPattern;

use super::caa::CaaFacts;
use super::facts::{
    Authority, Facts, Lookup, Loopback, LoopbackAnswer, NameFacts, OwnAddresses, Ports,
};
use super::{Finding, State, judge};
use crate::plan::challenge::ChallengeType;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
}

fn authority() -> Authority {
    Authority {
        name: "Let's Encrypt".to_owned(),
        public: true,
        caa_identities: vec!["letsencrypt.org".to_owned()],
        terms_of_service: Some("https://letsencrypt.org/terms".to_owned()),
        terms_agreed: true,
        profiles: vec!["classic".to_owned(), "shortlived".to_owned()],
        date: Some(now()),
        ..Authority::default()
    }
}

fn name(text: &str, challenge: ChallengeType) -> NameFacts {
    NameFacts {
        name: HostPattern::parse(text).unwrap(),
        challenge,
        v4: Lookup::Found(vec![ip("203.0.113.5")]),
        v6: Lookup::Empty,
        aliases: Vec::new(),
        caa: CaaFacts::None,
        loopback: Vec::new(),
        dns_record: None,
    }
}

fn facts(names: Vec<NameFacts>) -> Facts {
    Facts {
        now: now(),
        names,
        own: OwnAddresses {
            interfaces: vec![ip("127.0.0.1"), ip("203.0.113.5")],
            ..OwnAddresses::default()
        },
        authority: authority(),
        store: None,
        budget: None,
        ports: Ports::default(),
    }
}

/// What is not right, as people see it.
fn wrong(facts: &Facts) -> String {
    shown(judge(facts).into_iter().filter(|f| f.state != State::Ok))
}

fn shown(findings: impl IntoIterator<Item = Finding>) -> String {
    let texts: Vec<String> = findings.into_iter().map(|f| f.to_string()).collect();
    texts.join("\n")
}

fn answered(address: &str, answer: LoopbackAnswer) -> Loopback {
    Loopback {
        address: ip(address),
        answer,
    }
}
