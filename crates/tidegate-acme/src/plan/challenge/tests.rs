//! Names, solvers and facts in; the order of attempts, or the sentence why there is none, out.

use super::ChallengeType::{Dns01, DnsPersist01, Http01, TlsAlpn01};
use super::*;

fn name(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

/// `kind`, `kind@zone` or `kind=name`, separated by spaces.
fn solvers(text: &str) -> Vec<Solver> {
    text.split_whitespace()
        .map(|word| {
            let end = word.find(['@', '=']).unwrap_or(word.len());
            let selector = word.get(end + 1..).unwrap_or_default();
            Solver {
                name: word.to_owned(),
                zones: word
                    .contains('@')
                    .then(|| HostName::parse(selector).unwrap())
                    .into_iter()
                    .collect(),
                names: word
                    .contains('=')
                    .then(|| name(selector))
                    .into_iter()
                    .collect(),
                kind: ChallengeType::parse(&word[..end]).unwrap(),
                broken: None,
            }
        })
        .collect()
}

fn impossible(why: &str) -> Reach {
    Reach::Impossible(why.to_owned())
}

fn order(host: &str, list: &str, facts: &Facts) -> Vec<ChallengeType> {
    choose(&name(host), &solvers(list), facts)
        .unwrap()
        .candidates
        .into_iter()
        .map(|candidate| candidate.kind)
        .collect()
}

#[test]
fn what_can_work_is_tried_in_the_order_of_the_object() {
    type Case<'a> = (&'a str, &'a str, Facts, &'a [ChallengeType]);
    let doubtful = Reach::Doubtful("the probe of port 443 failed".into());
    let closed = || Facts {
        tls: impossible("port 443 is not ours"),
        ..Facts::default()
    };
    let cases: &[Case<'_>] = &[
        ("a.example", "", Facts::default(), &[TlsAlpn01, Http01]),
        (
            "a.example",
            "http-01 tls-alpn-01",
            Facts::default(),
            &[Http01, TlsAlpn01],
        ),
        (
            "*.a.example",
            "http-01 dns-01 tls-alpn-01",
            Facts::default(),
            &[Dns01],
        ),
        (
            "*.a.example",
            "dns-persist-01 dns-01",
            Facts::default(),
            &[DnsPersist01, Dns01],
        ),
        ("192.0.2.1", "dns-01 http-01", Facts::default(), &[Http01]),
        ("2001:db8::1", "", Facts::default(), &[TlsAlpn01, Http01]),
        ("a.example", "", closed(), &[Http01]),
        ("a.example", "dns-01", closed(), &[Dns01]),
        (
            "a.example",
            "",
            Facts {
                tls: doubtful,
                ..Facts::default()
            },
            &[Http01, TlsAlpn01],
        ),
        (
            "a.example",
            "",
            Facts {
                offered: Some(vec![Http01, Dns01]),
                ..Facts::default()
            },
            &[Http01],
        ),
        (
            "a.example",
            "",
            Facts {
                failed: vec![TlsAlpn01],
                ..Facts::default()
            },
            &[Http01, TlsAlpn01],
        ),
        // Rotates: what failed longest ago is tried next.
        (
            "a.example",
            "",
            Facts {
                failed: vec![TlsAlpn01, Http01],
                ..Facts::default()
            },
            &[TlsAlpn01, Http01],
        ),
        (
            "a.example",
            "",
            Facts {
                failed: vec![TlsAlpn01, Http01, TlsAlpn01],
                ..Facts::default()
            },
            &[Http01, TlsAlpn01],
        ),
        (
            "a.b.example",
            "dns-01@other.example http-01@b.example tls-alpn-01",
            Facts::default(),
            &[Http01, TlsAlpn01],
        ),
        (
            "*.b.example",
            "dns-01=*.b.example",
            Facts::default(),
            &[Dns01],
        ),
    ];
    for (host, list, facts, expected) in cases {
        assert_eq!(
            order(host, list, facts),
            *expected,
            "{host} with {list:?} and {facts:?}"
        );
    }
}

#[test]
fn a_selector_ends_at_a_label() {
    for (selector, host, fits) in [
        ("http-01@example.com", "example.com", true),
        ("http-01@example.com", "a.b.example.com", true),
        ("http-01@example.com", "*.example.com", true),
        ("http-01@example.com", "badexample.com", false),
        ("http-01@example.com", "com", false),
        ("http-01@0.2.1", "192.0.2.1", false),
        ("http-01=*.example.com", "*.example.com", true),
        ("http-01=*.example.com", "a.example.com", false),
    ] {
        assert_eq!(
            solvers(selector)[0].selects(&name(host)),
            fits,
            "{selector} {host}"
        );
    }
    let both = Solver {
        names: vec![name("b.other.com")],
        ..solvers("http-01@example.com").remove(0)
    };
    assert!(
        !both.selects(&name("b.other.com")),
        "all given conditions must hold"
    );
}

#[test]
fn what_cannot_work_is_said_with_its_mend() {
    for (host, list, facts, message) in [
        (
            "*.a.example",
            "http-01",
            Facts::default(),
            "choose a challenge for \"*.a.example\": http-01 cannot prove control over a wildcard; \
             a wildcard needs a dns01 solver in the AcmeIssuer",
        ),
        (
            "192.0.2.1",
            "dns-01",
            Facts::default(),
            "choose a challenge for \"192.0.2.1\": dns-01 cannot prove control over an IP address; \
             an IP address needs an http01 or tlsAlpn01 solver in the AcmeIssuer",
        ),
        (
            "a.example",
            "http-01@b.example dns-01=c.example",
            Facts::default(),
            "choose a challenge for \"a.example\": no solver is for it; add a solver to the AcmeIssuer \
             whose selector fits, or one without a selector",
        ),
        (
            "a.example",
            "",
            Facts {
                http: impossible("nothing listens on port 80"),
                tls: impossible("TLS of this name is passed through"),
                ..Facts::default()
            },
            "choose a challenge for \"a.example\": TLS of this name is passed through, nothing listens \
             on port 80; open port 80 or 443 to the internet, or add a dns01 solver to the AcmeIssuer",
        ),
        (
            "*.a.example",
            "dns-01",
            Facts {
                dns: impossible("the token was refused"),
                ..Facts::default()
            },
            "choose a challenge for \"*.a.example\": the token was refused; mend the dns01 solver",
        ),
        (
            "a.example",
            "http-01",
            Facts {
                offered: Some(vec![Dns01]),
                ..Facts::default()
            },
            "choose a challenge for \"a.example\": the authority does not offer http-01 for this name; \
             open port 80 or 443 to the internet, or add a dns01 solver to the AcmeIssuer",
        ),
    ] {
        let error = choose(&name(host), &solvers(list), &facts).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(
            error.excluded.len(),
            solvers(list).len().max(usize::from(list.is_empty()) * 2)
        );
    }
}

#[test]
fn a_broken_solver_harms_only_the_names_that_it_alone_is_for() {
    let mut all = solvers("dns-01@b.example http-01");
    all[0].broken = Some(Broken {
        why: "Secret default/tsig does not exist".to_owned(),
        fix: "create it in namespace default".to_owned(),
    });
    let chosen = |host: &str| {
        let choice = choose(&name(host), &all, &Facts::default());
        choice.map(|choice| choice.candidates[0].kind)
    };
    assert_eq!(chosen("a.example"), Ok(Http01));
    assert_eq!(chosen("www.b.example"), Ok(Http01));
    assert_eq!(
        chosen("*.b.example").unwrap_err().to_string(),
        "choose a challenge for \"*.b.example\": solver \"dns-01@b.example\" cannot be used: Secret \
         default/tsig does not exist, http-01 cannot prove control over a wildcard; create it in \
         namespace default"
    );
    assert!(
        chosen("*.c.example")
            .unwrap_err()
            .to_string()
            .ends_with("a wildcard needs a dns01 solver for its zone in the AcmeIssuer"),
    );
}

#[test]
fn each_one_left_out_has_its_sentence() {
    let facts = Facts {
        tls: impossible("port 443 is not ours"),
        ..Facts::default()
    };
    let choice = choose(
        &name("a.example"),
        &solvers("tls-alpn-01 http-01 dns-01@b.example"),
        &facts,
    )
    .unwrap();
    let told: Vec<&str> = choice
        .excluded
        .iter()
        .map(|solver| solver.why.as_str())
        .collect();
    assert_eq!(
        told,
        [
            "port 443 is not ours",
            "solver \"dns-01@b.example\" is not for a.example"
        ]
    );
}

#[test]
fn a_type_is_its_name_on_the_wire() {
    for kind in [Http01, TlsAlpn01, Dns01, DnsPersist01] {
        assert_eq!(ChallengeType::parse(kind.as_str()), Some(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }
    assert_eq!(ChallengeType::parse("device-attest-01"), None);
}
