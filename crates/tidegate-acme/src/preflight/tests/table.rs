//! Facts by hand and the whole text of what is found.

use std::time::Duration;

use super::super::facts::{Budget, DnsRecordProblem};
use super::super::{Check, blocks};
use super::*;
use crate::plan::ledger::{self, LimitName};
use ChallengeType::{Dns01, Http01, TlsAlpn01};

fn one(change: impl FnOnce(&mut NameFacts, &mut Facts)) -> String {
    let mut all = facts(Vec::new());
    let mut name = name("www.example.com", Http01);
    change(&mut name, &mut all);
    all.names.push(name);
    wrong(&all)
}

fn left(limit: LimitName, scope: &str, left: u32, of: u32) -> ledger::Budget {
    ledger::Budget {
        limit,
        scope: scope.to_owned(),
        left,
        of,
        next_at: None,
    }
}

#[test]
fn a_good_name_has_nothing_wrong_and_says_what_was_seen() {
    let mut good = name("www.example.com", Http01);
    good.loopback = vec![answered("203.0.113.5", LoopbackAnswer::Ours)];
    let all = Facts {
        store: Some(Ok(())),
        budget: Some(Budget {
            refused: None,
            left: vec![
                left(LimitName::CertificatesPerSet, "www.example.com", 3, 5),
                left(LimitName::CertificatesPerDomain, "example.com", 48, 50),
            ],
        }),
        ..facts(vec![good])
    };
    let findings = judge(&all);
    assert!(!blocks(&findings));
    assert_eq!(
        shown(findings),
        "Ok Directory: Let's Encrypt answers\n\
         Ok Clock: the clock is right\n\
         Ok Store: certificates can be kept\n\
         Ok Budget: the authority's limits leave 3 of 5 certificates for the same set of names, 48 of \
         50 new certificates per registered domain for example.com\n\
         Ok Address www.example.com: 203.0.113.5 leads to this edge\n\
         Ok Reachability www.example.com: 203.0.113.5:80 answers our challenge\n\
         Ok Caa www.example.com: no CAA record limits it"
    );
}

#[test]
fn stray_ipv6_blocks_even_beside_a_good_ipv4() {
    let stray = |name: &mut NameFacts, _: &mut Facts| {
        name.v6 = Lookup::Found(vec![ip("2001:db8::1")]);
    };
    assert_eq!(
        one(stray),
        "Blocking Address www.example.com: AAAA 2001:db8::1 of www.example.com is not this machine\n  \
         fix: remove the record or make the edge listen on 2001:db8::1"
    );
    // One that leads here by another machine's help is fine.
    let ours = |name: &mut NameFacts, all: &mut Facts| {
        stray(name, all);
        name.loopback = vec![answered("2001:db8::1", LoopbackAnswer::Ours)];
    };
    assert_eq!(one(ours), "");
    // For dns-01 nobody connects.
    let dns = |name: &mut NameFacts, all: &mut Facts| {
        stray(name, all);
        name.challenge = Dns01;
    };
    assert_eq!(one(dns), "");
}

#[test]
fn addresses_elsewhere_are_told_with_the_record_to_publish() {
    assert_eq!(
        one(|name, _| name.v4 = Lookup::Found(vec![ip("198.51.100.9")])),
        "Blocking Address www.example.com: A 198.51.100.9 of www.example.com is not this machine\n  \
         fix: publish `www.example.com. IN A 203.0.113.5`"
    );
    assert_eq!(
        one(|name, _| {
            name.v4 = Lookup::Found(vec![ip("198.51.100.9")]);
            name.aliases = vec!["parking.registrar.example.".to_owned()];
        }),
        "Blocking Alias www.example.com: A 198.51.100.9 of parking.registrar.example (alias of \
         www.example.com) is not this machine\n  \
         fix: replace the CNAME of www.example.com; publish `www.example.com. IN A 203.0.113.5`"
    );
    assert_eq!(
        one(|name, _| {
            name.v4 = Lookup::Found(vec![ip("198.51.100.9")]);
            name.loopback = vec![answered(
                "198.51.100.9",
                LoopbackAnswer::Stranger("server \"nginx\" with status 404".to_owned()),
            )];
        }),
        "Blocking Address www.example.com: A 198.51.100.9 of www.example.com is not this machine: \
         server \"nginx\" with status 404 answers there\n  \
         fix: remove the record or make the edge listen on 198.51.100.9"
    );
}

#[test]
fn behind_address_translation_silence_is_unknown() {
    let behind = |name: &mut NameFacts, all: &mut Facts| {
        all.own.interfaces = vec![ip("127.0.0.1"), ip("192.168.1.20")];
        name.loopback = vec![answered(
            "203.0.113.5",
            LoopbackAnswer::Silent("no answer within 5 s".to_owned()),
        )];
    };
    assert_eq!(
        one(behind),
        "Unknown Address www.example.com: A 203.0.113.5 of www.example.com could not be told to be \
         this machine, which has no public address of its own\n  \
         fix: forward port 80 of 203.0.113.5 to this machine, or tell the edge that the address is \
         its own: --public-address 203.0.113.5"
    );
    let told = |name: &mut NameFacts, all: &mut Facts| {
        behind(name, all);
        all.own.configured = vec![ip("203.0.113.5")];
    };
    assert_eq!(
        one(told),
        "Unknown Reachability www.example.com: 203.0.113.5:80 does not answer: no answer within 5 s\n  \
         fix: check it from outside, for this network may not lead back to itself; open port 80 in \
         the firewall and the provider's security group"
    );
    // The router's own page at our public address proves nothing.
    let router = |name: &mut NameFacts, all: &mut Facts| {
        behind(name, all);
        name.loopback = vec![answered(
            "203.0.113.5",
            LoopbackAnswer::Stranger("a server with status 200".to_owned()),
        )];
    };
    assert!(
        one(router).starts_with("Unknown Address"),
        "{}",
        one(router)
    );
    // IPv6 is not translated.
    let six = |name: &mut NameFacts, all: &mut Facts| {
        behind(name, all);
        name.v6 = Lookup::Found(vec![ip("2001:db8::1")]);
    };
    assert!(one(six).contains("Blocking Address www.example.com: AAAA 2001:db8::1"));
}

#[test]
fn private_addresses_block_for_a_public_authority_alone() {
    let private = |name: &mut NameFacts, _: &mut Facts| {
        name.v4 = Lookup::Found(vec![ip("192.168.1.20")]);
    };
    assert_eq!(
        one(private),
        "Blocking Address www.example.com: A 192.168.1.20 of www.example.com is private, the \
         authority cannot reach it\n  \
         fix: publish `www.example.com. IN A 203.0.113.5`, or use dns-01"
    );
    let own = |name: &mut NameFacts, all: &mut Facts| {
        private(name, all);
        all.own.interfaces.push(ip("192.168.1.20"));
    };
    assert!(one(own).starts_with("Warning Address"), "{}", one(own));
    let internal = |name: &mut NameFacts, all: &mut Facts| {
        own(name, all);
        all.authority.public = false;
    };
    assert_eq!(one(internal), "");
}

#[test]
fn ports_of_our_own_addresses_are_named() {
    let port = |answer: LoopbackAnswer, kind: ChallengeType| {
        one(|name, _| {
            name.challenge = kind;
            name.loopback = vec![answered("203.0.113.5", answer)];
        })
    };
    assert_eq!(
        port(LoopbackAnswer::Refused, Http01),
        "Blocking Reachability www.example.com: 203.0.113.5:80 refuses connections\n  \
         fix: make the edge listen on 203.0.113.5:80, or forward port 80 to it"
    );
    assert_eq!(
        port(
            LoopbackAnswer::Stranger("a server without acme-tls/1".to_owned()),
            TlsAlpn01
        ),
        "Blocking Reachability www.example.com: 203.0.113.5:443 is answered by a server without \
         acme-tls/1, not by this edge\n  \
         fix: stop what listens on port 443, or pass the challenge on to the edge"
    );
    // A private authority may look elsewhere, and then that is what is said.
    let elsewhere = |kind: ChallengeType| {
        one(|name, all| {
            name.challenge = kind;
            name.loopback = vec![answered("203.0.113.5", LoopbackAnswer::Refused)];
            all.ports = Ports {
                http: 5002,
                tls: 5001,
            };
        })
    };
    for (kind, port) in [(Http01, 5002), (TlsAlpn01, 5001)] {
        let text = elsewhere(kind);
        let expected =
            format!("make the edge listen on 203.0.113.5:{port}, or forward port {port}");
        assert!(text.contains(&expected), "{text}");
    }
    assert_eq!(elsewhere(Dns01), "");
}

#[test]
fn wildcards_and_addresses_have_their_challenges() {
    let wild = wrong(&facts(vec![name("*.example.com", Http01)]));
    assert_eq!(
        wild,
        "Blocking Challenge *.example.com: a wildcard cannot be proven by http-01\n  \
         fix: give the issuer a dns-01 solver for this zone"
    );
    let mut by_dns = name("*.example.com", Dns01);
    by_dns.dns_record = Some(Err(DnsRecordProblem {
        message: "no dns-01 solver is set for example.com".to_owned(),
        fix: "give one".to_owned(),
        certain: true,
    }));
    assert!(wrong(&facts(vec![by_dns])).starts_with("Blocking DnsRecord *.example.com: no dns-01"));
    assert_eq!(wrong(&facts(vec![name("203.0.113.5", TlsAlpn01)])), "");
    let other = wrong(&facts(vec![name("203.0.113.77", Http01)]));
    assert!(
        other.contains("203.0.113.77 is not this machine"),
        "{other}"
    );
    let private = wrong(&facts(vec![name("10.0.0.1", Http01)]));
    assert!(private.contains("10.0.0.1 is private"), "{private}");
    let dns = wrong(&facts(vec![name("203.0.113.5", Dns01)]));
    assert!(
        dns.contains("an IP address cannot be proven by dns-01"),
        "{dns}"
    );
}

#[test]
fn the_authoritys_demands_are_checked() {
    let of = |change: fn(&mut Facts)| {
        let mut all = facts(vec![name("www.example.com", Http01)]);
        change(&mut all);
        wrong(&all)
    };
    assert_eq!(
        of(|all| all.authority.external_account_required = true),
        "Blocking Directory: Let's Encrypt wants an external account and none is given\n  \
         fix: create key id and HMAC key in the authority's console and give them as externalAccountBinding"
    );
    assert_eq!(
        of(|all| all.authority.profile = Some("tlserver".to_owned())),
        "Blocking Directory: Let's Encrypt has no profile \"tlserver\"\n  \
         fix: use one of classic, shortlived"
    );
    assert_eq!(
        of(|all| all.authority.terms_agreed = false),
        "Blocking Directory: the terms of service of Let's Encrypt are not agreed to\n  \
         fix: read https://letsencrypt.org/terms and set termsOfServiceAgreed"
    );
    assert_eq!(
        of(|all| all.authority.unreachable = Some("connection refused".to_owned())),
        "Blocking Directory: Let's Encrypt cannot be reached: connection refused\n  \
         fix: check the directory's url, the way out to it and the caBundle of the issuer"
    );
    assert_eq!(
        of(|all| all.authority.date = Some(now() - Duration::from_secs(3 * 3600))),
        "Warning Clock: this machine's clock is 3 hours ahead of that of Let's Encrypt\n  \
         fix: switch on time synchronisation: `timedatectl set-ntp true`"
    );
    let far = of(|all| all.authority.date = Some(now() + Duration::from_secs(40 * 86_400)));
    assert!(
        far.starts_with("Blocking Clock: this machine's clock is 40 days behind"),
        "{far}"
    );
    assert_eq!(
        of(|all| all.store = Some(Err("read-only file system".to_owned()))),
        "Blocking Store: a certificate could not be kept: read-only file system\n  \
         fix: make the store writable for the edge and give it room"
    );
    assert_eq!(
        of(|all| {
            all.budget = Some(Budget {
                refused: Some("5 of 5 are used; the next is allowed at noon".to_owned()),
                left: Vec::new(),
            });
        }),
        "Blocking Budget: 5 of 5 are used; the next is allowed at noon\n  \
         fix: nothing to do: the order is placed by itself then; other names are not held back"
    );
}

#[test]
fn lookups_that_fail_are_told_apart() {
    let both = |v4: Lookup, v6: Lookup| one(|name, _| (name.v4, name.v6) = (v4, v6));
    let silent = Lookup::NoAnswer("name server 192.0.2.1:53 did not answer within 5 s".to_owned());
    let text = both(silent.clone(), silent.clone());
    assert!(text.starts_with("Unknown Address"), "{text}");
    let half = both(
        Lookup::Found(vec![ip("203.0.113.5")]),
        Lookup::Failed("SERVFAIL".to_owned()),
    );
    assert!(
        half.starts_with("Warning Address www.example.com: the AAAA records"),
        "{half}"
    );
    assert!(both(Lookup::Empty, Lookup::Empty).contains("has no A or AAAA record"));
    assert!(both(Lookup::Circular, Lookup::Circular).contains("in a circle"));
    let caa = one(|name, _| {
        name.caa = CaaFacts::Failed {
            level: "example.com".to_owned(),
            code: "SERVFAIL".to_owned(),
        };
    });
    assert!(caa.starts_with("Blocking Caa"), "{caa}");
}

#[test]
fn findings_survive_json() {
    let findings = judge(&facts(vec![name("*.example.com", Http01)]));
    let json = serde_json::to_string(&findings).unwrap();
    let back: Vec<Finding> = serde_json::from_str(&json).unwrap();
    assert_eq!(back, findings);
    assert!(
        json.contains(r#""check":"Challenge","name":"*.example.com","state":"Blocking""#),
        "{json}"
    );
    assert!(findings.iter().any(|finding| finding.check == Check::Caa));
}
