//! When a certificate of before may be served again, and what is planned for it then.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tidegate_model::{HostPattern, Secret};

use super::*;
use crate::decision::{KnownKey, Plan, plan};
use crate::plan::moment::DAY;
use crate::record::Issued;
use crate::settings::{Issuer, KeyType, RenewalSource};

fn day(number: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH
        + Duration::from_secs(1_700_000_000)
        + DAY * u32::try_from(number).unwrap()
}

/// For 90 days from that one.
fn issued(name: &str, by: &str, from: u64) -> Issued {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Issued {
        issuer: Some(by.to_owned()),
        not_before: day(from),
        not_after: day(from + 90),
        ..inspect(&pem, &Secret::new(key.serialize_pem())).unwrap()
    }
}

fn wanted(names: &[&str], issuer: &str) -> Wanted {
    Wanted {
        id: "default/blog".to_owned(),
        names: names
            .iter()
            .map(|name| HostPattern::parse(name).unwrap())
            .collect(),
        issuer: Arc::new(Issuer {
            name: issuer.to_owned(),
            directory: "https://ca.example/dir".to_owned(),
            staging_directory: None,
            contact: Vec::new(),
            profile: None,
            key_type: KeyType::P256,
            external_account: None,
            roots: None,
            renewal: RenewalSource::Lifetime,
            fallback: None,
            notifications: Vec::new(),
            solvers: Vec::new(),
        }),
        fallback: None,
    }
}

/// Renewed on day 60.
fn record(name: &str) -> CertificateRecord {
    let mut record = CertificateRecord::new("default/blog");
    record.previous = Some(issued(name, "le", 0));
    record.current = Some(issued(name, "le", 60));
    record
}

const NAME: &str = "blog.example.com";

#[test]
fn what_cannot_be_served_is_refused_with_its_reason() {
    let refused = |names: &[&str], now, change: &dyn Fn(&mut CertificateRecord)| {
        let mut record = record(NAME);
        change(&mut record);
        let before = record.clone();
        let error = roll_back(&mut record, &wanted(names, "le"), now).unwrap_err();
        assert_eq!(record, before, "nothing is changed");
        format!("{}: {error}", error.reason())
    };
    let previous = |record: &mut CertificateRecord, change: &dyn Fn(&mut Issued)| {
        change(record.previous.as_mut().unwrap());
    };
    assert_eq!(
        refused(&[NAME], day(61), &|record| record.previous = None),
        "NoPrevious: no earlier certificate is kept, there was only this one"
    );
    assert_eq!(
        refused(&[NAME], day(90), &|_| {}),
        "PreviousExpired: the earlier certificate expired at 2024-02-12 22:13 UTC"
    );
    assert_eq!(
        refused(&[NAME], day(61), &|record| previous(record, &|one| one
            .revoked =
            Some(day(59)))),
        "PreviousRevoked: the earlier certificate was revoked at 2024-01-12 22:13 UTC"
    );
    assert_eq!(
        refused(&[NAME, "www.example.com"], day(61), &|_| {}),
        "PreviousOfOtherNames: the earlier certificate does not cover www.example.com"
    );
    assert_eq!(
        refused(&[NAME], day(61), &|record| previous(record, &|one| one
            .key_pem =
            Secret::new("cut".to_owned()))),
        "PreviousUnusable: the earlier certificate cannot be used: its key cannot be read"
    );
}

#[test]
fn what_is_restored_is_not_renewed_at_once() {
    let mut record = record(NAME);
    let (old, new) = (record.previous.clone(), record.current.clone());
    record.attempts.count = 2;
    record.forced = Some(day(61));
    let le = wanted(&[NAME], "le");
    roll_back(&mut record, &le, day(61)).unwrap();
    assert_eq!((&record.current, &record.previous), (&old, &new));
    assert_eq!((record.attempts.count, record.forced), (0, None));
    let decided = |record: &CertificateRecord, wanted: &Wanted, now| {
        plan(record, wanted, &mut KnownKey::default(), day(0), now)
    };
    // Its own renewal was on day 60; of the 29 days that are left half may pass.
    let half = day(61) + DAY * 29 / 2;
    let Plan::Keep { renew_at, .. } = decided(&record, &le, day(62)) else {
        panic!("{:?}", decided(&record, &le, day(62)));
    };
    assert_eq!(renew_at, half);
    assert!(matches!(
        decided(&record, &le, half),
        Plan::Order(RenewReason::TwoThirds { .. })
    ));
    // Names, revocation and a person's wish do not wait.
    assert!(matches!(
        decided(&record, &wanted(&["other.example.com"], "le"), day(62)),
        Plan::Order(RenewReason::NamesChanged { .. })
    ));
    let mut revoked = record.clone();
    revoked.current.as_mut().unwrap().revoked = Some(day(62));
    assert_eq!(
        decided(&revoked, &le, day(62)),
        Plan::Order(RenewReason::Revoked)
    );
    let mut asked = record.clone();
    asked.forced = Some(day(62));
    assert_eq!(
        decided(&asked, &le, day(62)),
        Plan::Order(RenewReason::Forced)
    );
    // Twice is back again, at the usual time of that one.
    roll_back(&mut record, &le, day(62)).unwrap();
    assert_eq!((&record.current, &record.previous), (&new, &old));
    let Plan::Keep { renew_at, .. } = decided(&record, &le, day(62)) else {
        panic!("{:?}", decided(&record, &le, day(62)));
    };
    assert!((day(119)..day(124)).contains(&renew_at), "{renew_at:?}");
}

#[test]
fn another_issuer_is_asked_again_once_the_object_changes() {
    // The route went to another authority on day 10, which clients did not trust.
    let mut record = record(NAME);
    record.current = Some(issued(NAME, "other", 10));
    let other = wanted(&[NAME], "other");
    roll_back(&mut record, &other, day(11)).unwrap();
    let decided =
        |wanted: &Wanted| plan(&record, wanted, &mut KnownKey::default(), day(0), day(12));
    assert!(matches!(decided(&other), Plan::Keep { .. }));
    assert!(matches!(decided(&wanted(&[NAME], "le")), Plan::Keep { .. }));
    assert!(matches!(
        decided(&wanted(&[NAME], "third")),
        Plan::Order(RenewReason::IssuerChanged { .. })
    ));
}

#[test]
fn it_survives_the_store() {
    let mut record = record(NAME);
    roll_back(&mut record, &wanted(&[NAME], "le"), day(61)).unwrap();
    let text = serde_json::to_string(&record).unwrap();
    assert!(text.contains(r#""rolledBack":{"at":"2024-01-14T22:13:20Z""#));
    assert_eq!(
        serde_json::from_str::<CertificateRecord>(&text).unwrap(),
        record
    );
}
