//! The verdicts: facts in, findings out; nothing is asked here.
//!
//! What decides whether an address is ours, in this order: it answered our own challenge; it is one of our
//! known addresses; a stranger answered. Behind address translation a machine often cannot reach itself by
//! its public address, so silence there is `Unknown`. IPv6 is not translated: an AAAA that is none of ours
//! blocks, because authorities connect by IPv6 first.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tidegate_model::HostPattern;

use super::caa::{Asker, CaaFacts, Verdict, verdict};
use super::facts::{Authority, Budget, Facts, Lookup, LoopbackAnswer, NameFacts, OwnAddresses};
use super::own::is_public;
use super::{Check, Finding, State};
use crate::plan::moment::span;

/// Clock differences below this are the network's.
const CLOCK_TOLERANCE: Duration = Duration::from_mins(2);

/// Limits of which it is said what they leave; the scarcest are the first.
const LIMITS_SHOWN: usize = 4;

/// From here on a fresh certificate would not be valid on this clock.
const CLOCK_LIMIT: Duration = Duration::from_hours(24);

/// All verdicts: those of the whole order first, then name by name.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    directory(&mut findings, &facts.authority);
    clock(&mut findings, &facts.authority, facts.now);
    store(&mut findings, facts.store.as_ref());
    budget(&mut findings, facts.budget.as_ref());
    for name in &facts.names {
        challenge(&mut findings, name);
        if name.challenge.connects() {
            addresses(&mut findings, name, facts);
        }
        caa(&mut findings, name, &facts.authority);
        dns_record(&mut findings, name);
    }
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: Check, name: Option<&NameFacts>, message: String) {
        self.push(check, name, State::Ok, message, None);
    }

    fn bad(
        &mut self,
        check: Check,
        name: Option<&NameFacts>,
        state: State,
        message: String,
        fix: String,
    ) {
        self.push(check, name, state, message, Some(fix));
    }

    fn push(
        &mut self,
        check: Check,
        name: Option<&NameFacts>,
        state: State,
        message: String,
        fix: Option<String>,
    ) {
        self.0.push(Finding {
            check,
            name: name.map(|name| name.name.to_string()),
            state,
            message,
            fix,
        });
    }
}

fn directory(findings: &mut Findings, authority: &Authority) {
    let who = &authority.name;
    let mut bad = |message: String, fix: String| {
        findings.bad(Check::Directory, None, State::Blocking, message, fix);
    };
    if let Some(why) = &authority.unreachable {
        let fix = "check the directory's url, the way out to it and the caBundle of the issuer";
        bad(format!("{who} cannot be reached: {why}"), fix.to_owned());
        return;
    }
    let mut fine = true;
    if authority.external_account_required && !authority.external_account_given {
        fine = false;
        bad(
            format!("{who} wants an external account and none is given"),
            "create key id and HMAC key in the authority's console and give them as externalAccountBinding"
                .to_owned(),
        );
    }
    if let Some(terms) = &authority.terms_of_service
        && !authority.terms_agreed
    {
        fine = false;
        bad(
            format!("the terms of service of {who} are not agreed to"),
            format!("read {terms} and set termsOfServiceAgreed"),
        );
    }
    if let Some(profile) = &authority.profile
        && !authority.profiles.contains(profile)
    {
        fine = false;
        let fix = if authority.profiles.is_empty() {
            format!("leave profile out: {who} has none")
        } else {
            format!("use one of {}", authority.profiles.join(", "))
        };
        bad(format!("{who} has no profile {profile:?}"), fix);
    }
    if fine {
        findings.ok(Check::Directory, None, format!("{who} answers"));
    }
}

/// Whether a clock that is this far ahead of ours, in seconds, shows that one of the two is wrong.
pub(crate) fn is_skewed(ahead: Option<i64>) -> bool {
    ahead.is_some_and(|ahead| ahead.unsigned_abs() > CLOCK_TOLERANCE.as_secs())
}

fn clock(findings: &mut Findings, authority: &Authority, now: SystemTime) {
    let Some(theirs) = authority.date else {
        return;
    };
    let (difference, side) = match now.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    if difference <= CLOCK_TOLERANCE {
        findings.ok(Check::Clock, None, "the clock is right".to_owned());
        return;
    }
    let state = if difference > CLOCK_LIMIT {
        State::Blocking
    } else {
        State::Warning
    };
    findings.bad(
        Check::Clock,
        None,
        state,
        format!(
            "this machine's clock is {} {side} that of {}",
            span(difference),
            authority.name
        ),
        "switch on time synchronisation: `timedatectl set-ntp true`".to_owned(),
    );
}

fn store(findings: &mut Findings, store: Option<&Result<(), String>>) {
    match store {
        None => {}
        Some(Ok(())) => findings.ok(Check::Store, None, "certificates can be kept".to_owned()),
        Some(Err(error)) => findings.bad(
            Check::Store,
            None,
            State::Blocking,
            format!("a certificate could not be kept: {error}"),
            "make the store writable for the edge and give it room".to_owned(),
        ),
    }
}

fn budget(findings: &mut Findings, budget: Option<&Budget>) {
    let Some(budget) = budget else {
        return;
    };
    if let Some(sentence) = &budget.refused {
        let fix =
            "nothing to do: the order is placed by itself then; other names are not held back";
        findings.bad(
            Check::Budget,
            None,
            State::Blocking,
            sentence.clone(),
            fix.to_owned(),
        );
        return;
    }
    let left: Vec<String> = budget
        .left
        .iter()
        .take(LIMITS_SHOWN)
        .map(ToString::to_string)
        .collect();
    if !left.is_empty() {
        let message = format!("the authority's limits leave {}", left.join(", "));
        findings.ok(Check::Budget, None, message);
    }
}

/// What the challenge can never prove.
fn challenge(findings: &mut Findings, facts: &NameFacts) {
    let kind = facts.challenge;
    match &facts.name {
        HostPattern::Wildcard(_) if kind.connects() => findings.bad(
            Check::Challenge,
            Some(facts),
            State::Blocking,
            format!("a wildcard cannot be proven by {}", kind.as_str()),
            "give the issuer a dns-01 solver for this zone".to_owned(),
        ),
        HostPattern::Exact(host) if host.ip().is_some() && !kind.connects() => findings.bad(
            Check::Challenge,
            Some(facts),
            State::Blocking,
            format!("an IP address cannot be proven by {}", kind.as_str()),
            "use http-01 or tls-alpn-01 for IP addresses".to_owned(),
        ),
        _ => {}
    }
}

/// What one address of a name turned out to be.
enum Judged {
    Ours,
    /// Message and fix; the state says how sure.
    Not(State, String, String),
}

fn addresses(findings: &mut Findings, facts: &NameFacts, all: &Facts) {
    if matches!(facts.name, HostPattern::Wildcard(_)) {
        return;
    }
    let HostPattern::Exact(host) = &facts.name else {
        return;
    };
    if let Some(ip) = host.ip() {
        let judged = address(ip, host.as_str(), facts, all);
        report(findings, facts, ip, &judged, Check::Address);
        return;
    }
    let found: Vec<IpAddr> = [&facts.v4, &facts.v6]
        .into_iter()
        .flat_map(Lookup::addresses)
        .copied()
        .collect();
    if found.is_empty() {
        without_address(findings, facts, &all.own);
        return;
    }
    for (kind, lookup) in [("A", &facts.v4), ("AAAA", &facts.v6)] {
        if let Lookup::Failed(why) | Lookup::NoAnswer(why) = lookup {
            findings.bad(
                Check::Address,
                Some(facts),
                State::Warning,
                format!("the {kind} records of {host} could not be read: {why}"),
                "look at the zone's name servers: the authority may meet the same".to_owned(),
            );
        }
    }
    let mut ours = Vec::new();
    for ip in found {
        let judged = address(ip, host.as_str(), facts, all);
        let check = if facts.aliases.is_empty() {
            Check::Address
        } else {
            Check::Alias
        };
        if matches!(judged, Judged::Ours) {
            ours.push(ip);
        } else {
            report(findings, facts, ip, &judged, check);
        }
    }
    if !ours.is_empty() {
        let message = format!("{} {} to this edge", listed(&ours), leads(ours.len()));
        findings.ok(Check::Address, Some(facts), message);
        reachability(findings, facts, &ours, all);
    }
}

fn report(findings: &mut Findings, facts: &NameFacts, ip: IpAddr, judged: &Judged, check: Check) {
    match judged {
        Judged::Ours => findings.ok(check, Some(facts), format!("{ip} leads to this edge")),
        Judged::Not(state, message, fix) => {
            findings.bad(check, Some(facts), *state, message.clone(), fix.clone());
        }
    }
}

fn without_address(findings: &mut Findings, facts: &NameFacts, own: &OwnAddresses) {
    let name = &facts.name;
    let publish = || publish(&name.to_string(), own);
    let last = facts.aliases.last().map(|alias| bare(alias));
    let (check, state, message, fix) = match (&facts.v4, &facts.v6) {
        (Lookup::Circular, _) | (_, Lookup::Circular) => (
            Check::Alias,
            State::Blocking,
            format!("the aliases of {name} lead in a circle: {}", chain(facts)),
            format!("replace the CNAME of {name}; {}", publish()),
        ),
        (Lookup::Failed(code), _) | (_, Lookup::Failed(code)) => (
            Check::Address,
            State::Blocking,
            format!("the name servers of {name} fail: {code}"),
            "look at the zone's name servers and at DNSSEC: an expired signature or a missing key \
             answers so too"
                .to_owned(),
        ),
        (Lookup::NoAnswer(why), _) | (_, Lookup::NoAnswer(why)) => (
            Check::Address,
            State::Unknown,
            format!("the addresses of {name} could not be asked for: {why}"),
            "check the name servers of this machine in /etc/resolv.conf".to_owned(),
        ),
        (Lookup::NoName, _) | (_, Lookup::NoName) => match last {
            Some(last) => (
                Check::Alias,
                State::Blocking,
                format!("{name} is an alias of {last}, which does not exist (NXDOMAIN)"),
                format!("remove the CNAME and {}", publish()),
            ),
            None => (
                Check::Address,
                State::Blocking,
                format!("{name} does not exist in DNS (NXDOMAIN)"),
                publish(),
            ),
        },
        _ => (
            Check::Address,
            State::Blocking,
            match last {
                Some(last) => {
                    format!("{name} is an alias of {last}, which has no A or AAAA record")
                }
                None => format!("{name} has no A or AAAA record"),
            },
            publish(),
        ),
    };
    findings.bad(check, Some(facts), state, message, fix);
}

fn address(ip: IpAddr, host: &str, facts: &NameFacts, all: &Facts) -> Judged {
    let own = &all.own;
    let answer = facts
        .loopback
        .iter()
        .find(|loopback| loopback.address == ip)
        .map(|loopback| &loopback.answer);
    let kind = if ip.is_ipv6() { "AAAA" } else { "A" };
    let record = match facts.aliases.last() {
        _ if host == ip.to_string() => ip.to_string(),
        None => format!("{kind} {ip} of {host}"),
        Some(alias) => format!("{kind} {ip} of {} (alias of {host})", bare(alias)),
    };
    if all.authority.public && !is_public(ip) {
        return private(&record, host, ip, own);
    }
    if answer == Some(&LoopbackAnswer::Ours) || own.contains(ip) {
        return Judged::Ours;
    }
    let remove = || {
        if facts.aliases.is_empty() {
            format!("remove the record or make the edge listen on {ip}")
        } else {
            format!("replace the CNAME of {host}; {}", publish(host, own))
        }
    };
    let foreign = || format!("{record} is not this machine");
    let port = all.ports.of(facts.challenge);
    let port = port.map_or_else(String::new, |port| format!("port {port} of "));
    match answer {
        // Without a public address of ours it may be the router that answers from inside.
        Some(LoopbackAnswer::Stranger(how)) if ip.is_ipv6() || !own.public(false).is_empty() => {
            Judged::Not(
                State::Blocking,
                format!("{}: {how} answers there", foreign()),
                remove(),
            )
        }
        // IPv6 is not translated, so our interfaces are the whole truth about it.
        _ if ip.is_ipv6() => Judged::Not(State::Blocking, foreign(), remove()),
        _ if !own.public(false).is_empty() => Judged::Not(
            State::Blocking,
            foreign(),
            if facts.aliases.is_empty() {
                publish(host, own)
            } else {
                remove()
            },
        ),
        _ => Judged::Not(
            State::Unknown,
            format!(
                "{record} could not be told to be this machine, which has no public address of its own"
            ),
            format!(
                "forward {port}{ip} to this machine, or tell the edge that the address is its own: --public-address {ip}"
            ),
        ),
    }
}

fn private(record: &str, host: &str, ip: IpAddr, own: &OwnAddresses) -> Judged {
    if own.contains(ip) {
        Judged::Not(
            State::Warning,
            format!("{record} is private: either the world is told another address, or none"),
            format!(
                "check with `dig {host} @9.9.9.9` that the world is told a public address, or use dns-01"
            ),
        )
    } else {
        Judged::Not(
            State::Blocking,
            format!("{record} is private, the authority cannot reach it"),
            format!("{}, or use dns-01", publish(host, own)),
        )
    }
}

fn reachability(findings: &mut Findings, facts: &NameFacts, ours: &[IpAddr], all: &Facts) {
    let Some(port) = all.ports.of(facts.challenge) else {
        return;
    };
    let mut reached = Vec::new();
    for loopback in facts.loopback.iter().filter(|l| ours.contains(&l.address)) {
        let ip = loopback.address;
        // Through a router the answer from inside proves nothing about the way from outside.
        let state = if all.own.is_interface(ip) {
            State::Blocking
        } else {
            State::Unknown
        };
        let at = match ip {
            IpAddr::V4(_) => format!("{ip}:{port}"),
            IpAddr::V6(_) => format!("[{ip}]:{port}"),
        };
        let (message, fix) = match &loopback.answer {
            LoopbackAnswer::Ours => {
                reached.push(at);
                continue;
            }
            LoopbackAnswer::Stranger(how) => (
                format!("{at} is answered by {how}, not by this edge"),
                format!("stop what listens on port {port}, or pass the challenge on to the edge"),
            ),
            LoopbackAnswer::Refused => (
                format!("{at} refuses connections"),
                format!("make the edge listen on {at}, or forward port {port} to it"),
            ),
            LoopbackAnswer::Silent(how) => (
                format!("{at} does not answer: {how}"),
                format!("open port {port} in the firewall and the provider's security group"),
            ),
        };
        let fix = if state == State::Unknown {
            format!("check it from outside, for this network may not lead back to itself; {fix}")
        } else {
            fix
        };
        findings.bad(Check::Reachability, Some(facts), state, message, fix);
    }
    if !reached.is_empty() {
        let message = format!("{} answers our challenge", reached.join(", "));
        findings.ok(Check::Reachability, Some(facts), message);
    }
}

fn caa(findings: &mut Findings, facts: &NameFacts, authority: &Authority) {
    let who = &authority.name;
    let wildcard = matches!(facts.name, HostPattern::Wildcard(_));
    let (level, records) = match &facts.caa {
        CaaFacts::NotAsked => return,
        CaaFacts::None => {
            findings.ok(
                Check::Caa,
                Some(facts),
                "no CAA record limits it".to_owned(),
            );
            return;
        }
        CaaFacts::Failed { level, code } => {
            findings.bad(
                Check::Caa,
                Some(facts),
                State::Blocking,
                format!("the name servers fail when asked for the CAA of {level}: {code}"),
                "look at the zone's name servers: the authority must refuse while they fail (RFC 8659 §3)"
                    .to_owned(),
            );
            return;
        }
        CaaFacts::NoAnswer { level, problem } => {
            findings.bad(
                Check::Caa,
                Some(facts),
                State::Unknown,
                format!("the CAA of {level} could not be asked for: {problem}"),
                "check the name servers of this machine in /etc/resolv.conf".to_owned(),
            );
            return;
        }
        CaaFacts::Found { level, records } => (level, records),
    };
    let said = verdict(
        records,
        &Asker {
            identities: &authority.caa_identities,
            account_uri: authority.account_uri.as_deref(),
            challenge: facts.challenge,
            wildcard,
        },
    );
    let tag = if wildcard { "issuewild" } else { "issue" };
    let identity = authority.caa_identities.first().map_or("", String::as_str);
    let add = |value: &str| format!("add `{level}. IN CAA 0 {tag} \"{value}\"`");
    let (state, message, fix) = match said {
        Verdict::Allowed(None) => {
            findings.ok(
                Check::Caa,
                Some(facts),
                format!("CAA of {level} does not limit it"),
            );
            return;
        }
        Verdict::Allowed(Some(value)) => {
            let message = format!("CAA of {level} allows it: {value:?}");
            findings.ok(Check::Caa, Some(facts), message);
            return;
        }
        Verdict::OtherAuthority(values) => (
            State::Blocking,
            if values.iter().all(|value| value.trim() == ";") {
                format!("CAA of {level} allows nobody to issue")
            } else {
                format!("CAA of {level} allows {}, not {identity}", quoted(&values))
            },
            format!("{}, or use an issuer that is allowed", add(identity)),
        ),
        Verdict::OtherAccount(value) => (
            State::Blocking,
            format!("CAA of {level} allows another account of {identity}: {value:?}"),
            match &authority.account_uri {
                Some(uri) => add(&format!("{identity}; accounturi={uri}")),
                None => "import the account it names, or take accounturi out".to_owned(),
            },
        ),
        Verdict::OtherMethod(value) => (
            State::Blocking,
            format!(
                "CAA of {level} allows {identity}, but not by {}: {value:?}",
                facts.challenge.as_str()
            ),
            format!(
                "add {} to validationmethods, or use a challenge named there",
                facts.challenge.as_str()
            ),
        ),
        Verdict::Critical(tag) => (
            State::Blocking,
            format!(
                "CAA of {level} has the critical property {tag:?}, which authorities must know or refuse"
            ),
            format!("remove the {tag} record or its critical flag"),
        ),
        Verdict::Unnamed(values) => (
            State::Unknown,
            format!(
                "CAA of {level} allows {}, and {who} does not say its name",
                quoted(&values)
            ),
            "compare the record with the authority's documentation".to_owned(),
        ),
    };
    findings.bad(Check::Caa, Some(facts), state, message, fix);
}

fn dns_record(findings: &mut Findings, facts: &NameFacts) {
    match &facts.dns_record {
        None => {}
        Some(Ok(what)) => findings.ok(Check::DnsRecord, Some(facts), what.clone()),
        Some(Err(problem)) => findings.bad(
            Check::DnsRecord,
            Some(facts),
            if problem.certain {
                State::Blocking
            } else {
                State::Unknown
            },
            problem.message.clone(),
            problem.fix.clone(),
        ),
    }
}

/// How to point the name here.
fn publish(host: &str, own: &OwnAddresses) -> String {
    let mut records: Vec<String> = Vec::new();
    for (kind, v6) in [("A", false), ("AAAA", true)] {
        let found = own.public(v6);
        records.extend(
            found
                .iter()
                .take(2)
                .map(|ip| format!("`{host}. IN {kind} {ip}`")),
        );
    }
    if records.is_empty() {
        format!("publish an A record for {host} with the public address of this edge")
    } else {
        format!("publish {}", records.join(" and "))
    }
}

fn bare(name: &str) -> &str {
    name.trim_end_matches('.')
}

fn chain(facts: &NameFacts) -> String {
    let names: Vec<&str> = facts.aliases.iter().map(|alias| bare(alias)).collect();
    names.join(" → ")
}

fn listed(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn leads(count: usize) -> &'static str {
    if count == 1 { "leads" } else { "lead" }
}

fn quoted(values: &[String]) -> String {
    let texts: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("only {}", texts.join(", "))
}
