//! RFC 2136, zones, aliases and propagation against BIND.

use std::time::{Duration, SystemTime};

use tidegate_model::Secret;

use super::bind::{Bind, KEY, KEY_NAME, OTHER_KEY, OTHER_KEY_NAME, Zone, zone};
use crate::dns::persist::{PersistProblem, PersistRecord};
use crate::dns::propagation::{self, Propagation};
use crate::dns::rfc2136::{Rfc2136, Settings, TsigAlgorithm};
use crate::dns::zone::{challenge_fqdn, find_zone, servers_of};
use crate::dns::{DnsClient, DnsSolver as _, SolverError, TxtRecord, parse_name};

fn settings(bind: &Bind) -> Settings {
    Settings {
        server: bind.address,
        zone: None,
        key_name: KEY_NAME.to_owned(),
        key: Secret::new(KEY.to_owned()),
        algorithm: TsigAlgorithm::HmacSha256,
        timeout: Duration::from_secs(5),
    }
}

fn record(value: &str) -> TxtRecord {
    TxtRecord::new("_acme-challenge.example.test", value)
}

async fn texts(bind: &Bind, name: &str) -> Vec<String> {
    let mut texts = bind
        .client()
        .texts(&parse_name(name).unwrap())
        .await
        .unwrap();
    texts.sort();
    texts
}

/// The error of one update as people see it: reason, text, fix.
async fn refused(settings: &Settings, record: &TxtRecord, now: SystemTime) -> [String; 3] {
    let error = Rfc2136::new(settings)
        .unwrap()
        .present(record, now)
        .await
        .unwrap_err();
    let server = settings.server.to_string();
    [
        error.reason().to_owned(),
        error.to_string().replace(&server, "SERVER"),
        error.fix().replace(&server, "SERVER"),
    ]
}

#[tokio::test]
async fn two_values_live_under_one_name_and_go_one_by_one() {
    for algorithm in ["hmac-sha256", "hmac-sha384", "hmac-sha512"] {
        let Some(bind) = Bind::start(&[zone("example.test", "")], &[], algorithm) else {
            return;
        };
        let solver = Rfc2136::new(&Settings {
            algorithm: algorithm.parse().unwrap(),
            ..settings(&bind)
        })
        .unwrap();
        let now = SystemTime::now();
        let name = "_acme-challenge.example.test.";
        solver.present(&record("one"), now).await.unwrap();
        solver.present(&record("two"), now).await.unwrap();
        solver.present(&record("two"), now).await.unwrap();
        assert_eq!(texts(&bind, name).await, ["one", "two"], "{algorithm}");
        solver.remove(&record("one"), now).await.unwrap();
        assert_eq!(texts(&bind, name).await, ["two"]);
        solver.remove(&record("two"), now).await.unwrap();
        solver.remove(&record("two"), now).await.unwrap();
        assert!(texts(&bind, name).await.is_empty());
    }
}

#[tokio::test]
async fn each_refusal_says_what_to_mend() {
    let locked = Zone {
        key: OTHER_KEY_NAME,
        ..zone("locked.test", "")
    };
    let Some(bind) = Bind::start(&[zone("example.test", ""), locked], &[], "hmac-sha256") else {
        return;
    };
    let now = SystemTime::now();
    let good = settings(&bind);

    let wrong_secret = Settings {
        key: Secret::new(OTHER_KEY.to_owned()),
        ..good.clone()
    };
    assert_eq!(
        refused(&wrong_secret, &record("x"), now).await,
        [
            "DnsKeyWrong",
            "update of zone example.test at SERVER: the secret of key edge-key is not the server's \
             (BADSIG)",
            "copy the secret of key edge-key from SERVER again; both sides must hold the same",
        ]
    );
    let unknown_key = Settings {
        key_name: "nobody".to_owned(),
        ..good.clone()
    };
    assert_eq!(
        refused(&unknown_key, &record("x"), now).await,
        [
            "DnsKeyUnknown",
            "update of zone example.test at SERVER: the server does not know the key nobody (BADKEY)",
            "define a key named nobody with the same algorithm on SERVER, or correct keyName",
        ]
    );
    let [reason, text, fix] = refused(&good, &record("x"), now - Duration::from_secs(3600)).await;
    assert_eq!(reason, "ClockSkew");
    assert!(text.contains("ahead of ours (BADTIME)"), "{text}");
    assert!(text.contains("is 36") || text.contains("is 3599"), "{text}");
    assert!(fix.contains("by NTP"), "{fix}");

    let locked = TxtRecord::new("_acme-challenge.locked.test", "x");
    assert_eq!(
        refused(&good, &locked, now).await,
        [
            "DnsUpdateRefused",
            "update of zone locked.test at SERVER: key edge-key may not do this (REFUSED)",
            "allow it on SERVER; BIND: `update-policy { grant edge-key zonesub TXT; };` in zone \
             locked.test",
        ]
    );
    let foreign_zone = Settings {
        zone: Some("elsewhere.test".to_owned()),
        ..good.clone()
    };
    let elsewhere = TxtRecord::new("_acme-challenge.elsewhere.test", "x");
    let [reason, text, _] = refused(&foreign_zone, &elsewhere, now).await;
    assert_eq!(reason, "DnsZoneWrong", "{text}");
    let [reason, text, _] = refused(&foreign_zone, &record("x"), now).await;
    assert_eq!(reason, "DnsZoneWrong");
    assert!(text.ends_with("(NOTZONE)"), "{text}");
    let [reason, _, _] = refused(&good, &elsewhere, now).await;
    assert_eq!(reason, "DnsZoneNotFound");

    assert!(
        texts(&bind, "_acme-challenge.example.test.")
            .await
            .is_empty()
    );
    assert!(!bind.log().contains("assertion"));
}

#[tokio::test]
async fn silence_is_an_error_with_the_address() {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let settings = Settings {
        server: address,
        zone: Some("example.test".to_owned()),
        key_name: KEY_NAME.to_owned(),
        key: Secret::new(KEY.to_owned()),
        algorithm: TsigAlgorithm::HmacSha256,
        timeout: Duration::from_millis(100),
    };
    let [reason, _, fix] = refused(&settings, &record("x"), SystemTime::now()).await;
    assert_eq!(reason, "DnsLookupFailed");
    assert!(fix.contains("pass the firewall"), "{fix}");
}

/// The first datagram is lost on the way.
#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let Some(bind) = Bind::start(&[zone("example.test", "")], &[], "hmac-sha256") else {
        return;
    };
    let relay = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = relay.local_addr().unwrap();
    let server = bind.address;
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        relay.recv_from(&mut buffer).await.unwrap();
        let (length, client) = relay.recv_from(&mut buffer).await.unwrap();
        relay.send_to(&buffer[..length], server).await.unwrap();
        let (length, _) = relay.recv_from(&mut buffer).await.unwrap();
        relay.send_to(&buffer[..length], client).await.unwrap();
    });
    let solver = Rfc2136::new(&Settings {
        server: address,
        zone: Some("example.test".to_owned()),
        timeout: Duration::from_secs(20),
        ..settings(&bind)
    })
    .unwrap();
    let now = SystemTime::now();
    solver.present(&record("x"), now).await.unwrap();
    assert_eq!(texts(&bind, "_acme-challenge.example.test.").await, ["x"]);
}

#[test]
fn keys_are_checked_and_never_shown() {
    let settings = Settings {
        server: "127.0.0.1:53".parse().unwrap(),
        zone: None,
        key_name: KEY_NAME.to_owned(),
        key: Secret::new("not base64!".to_owned()),
        algorithm: TsigAlgorithm::default(),
        timeout: Duration::from_secs(1),
    };
    let error = Rfc2136::new(&settings).unwrap_err();
    assert_eq!(error.to_string(), "the TSIG key is not base64");
    let good = Settings {
        key: Secret::new(KEY.to_owned()),
        ..settings
    };
    let shown = format!("{good:?} {:?}", Rfc2136::new(&good).unwrap());
    assert!(
        !shown.contains(KEY) && !shown.contains("tidegate-test-key"),
        "{shown}"
    );
    assert!("hmac-md5".parse::<TsigAlgorithm>().is_err());
}

#[tokio::test]
async fn aliases_are_followed_and_zones_found() {
    let Some(bind) = Bind::start(
        &[
            zone(
                "example.test",
                "_acme-challenge.www IN CNAME id17.acme-dns.test.\n\
                 _acme-challenge.loop IN CNAME _acme-challenge.loop2\n\
                 _acme-challenge.loop2 IN CNAME _acme-challenge.loop\n\
                 deep.er IN A 127.0.0.1",
            ),
            zone("acme-dns.test", ""),
            zone("sub.example.test", ""),
        ],
        &["broken.test"],
        "hmac-sha256",
    ) else {
        return;
    };
    let client = bind.client();
    let error = challenge_fqdn(&client, "www.broken.test")
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "DnsLookupFailed");
    let fqdn = challenge_fqdn(&client, "www.example.test").await.unwrap();
    assert_eq!(fqdn, "id17.acme-dns.test.");
    assert_eq!(
        challenge_fqdn(&client, "new.example.test").await.unwrap(),
        "_acme-challenge.new.example.test."
    );
    let error = challenge_fqdn(&client, "loop.example.test")
        .await
        .unwrap_err();
    assert!(matches!(error, SolverError::AliasLoop { .. }), "{error}");
    for (name, zone) in [
        ("id17.acme-dns.test", "acme-dns.test."),
        ("_acme-challenge.a.b.sub.example.test", "sub.example.test."),
        ("x.deep.er.example.test", "example.test."),
        ("example.test", "example.test."),
    ] {
        assert_eq!(find_zone(&client, name).await.unwrap(), zone, "{name}");
    }
    assert_eq!(
        servers_of(&client, "example.test").await.unwrap(),
        [(
            "ns.example.test".to_owned(),
            "127.0.0.1:53".parse().unwrap()
        )]
    );
    // The whole way: alias, update in the other zone, seen under the first name.
    let solver = Rfc2136::new(&settings(&bind)).unwrap();
    let record = TxtRecord::new(&fqdn, "delegated");
    solver.present(&record, SystemTime::now()).await.unwrap();
    assert_eq!(
        texts(&bind, "_acme-challenge.www.example.test.").await,
        ["delegated"]
    );
}

#[tokio::test]
async fn propagation_waits_for_all_and_names_who_lacks_it() {
    let Some(first) = Bind::start(&[zone("example.test", "")], &[], "hmac-sha256") else {
        return;
    };
    let Some(second) = Bind::start(&[zone("example.test", "")], &[], "hmac-sha256") else {
        return;
    };
    let now = SystemTime::now();
    let record = record("seen");
    let solver = Rfc2136::new(&settings(&first)).unwrap();
    solver.present(&record, now).await.unwrap();
    let mut settings_ = propagation::Settings {
        servers: vec![first.address, second.address],
        timeout: Duration::from_millis(400),
        interval: Duration::from_millis(50),
        query_timeout: Duration::from_secs(3),
    };
    let resolver = first.client();
    match propagation::wait(&resolver, &record, &settings_)
        .await
        .unwrap()
    {
        Propagation::Incomplete { seen: 1, lacking } => {
            assert_eq!(lacking.len(), 1);
            assert_eq!(
                lacking[0].to_string(),
                format!("127.0.0.1 ({}): no such name (NXDOMAIN)", second.address)
            );
        }
        other => panic!("{other:?}"),
    }
    settings_.timeout = Duration::from_secs(20);
    let late = Rfc2136::new(&settings(&second)).unwrap();
    let (waited, presented) = tokio::join!(
        propagation::wait(&resolver, &record, &settings_),
        late.present(&record, now)
    );
    presented.unwrap();
    assert_eq!(waited.unwrap(), Propagation::Everywhere { servers: 2 });
}

#[tokio::test]
async fn long_answers_come_by_tcp_and_persist_records_are_read() {
    let many: Vec<String> = (0..20)
        .map(|n| format!("many IN TXT \"{n}{}\"\n", "x".repeat(200)))
        .collect();
    let persist = PersistRecord {
        domain: "example.test".to_owned(),
        issuer_domain: "pebble.letsencrypt.org".to_owned(),
        account_uri: "https://localhost:14000/my-account/1".to_owned(),
        wildcard: true,
        persist_until: None,
    };
    let records = format!("{}{}\n", many.concat(), persist.zone_line());
    let Some(bind) = Bind::start(&[zone("example.test", &records)], &[], "hmac-sha256") else {
        return;
    };
    assert_eq!(texts(&bind, "many.example.test.").await.len(), 20);
    let now = SystemTime::now();
    let client: DnsClient = bind.client();
    assert_eq!(persist.look(&client, now).await.unwrap(), Ok(()));
    let other = PersistRecord {
        domain: "other.example.test".to_owned(),
        ..persist
    };
    assert_eq!(
        other.look(&client, now).await.unwrap(),
        Err(PersistProblem::Missing)
    );
}
