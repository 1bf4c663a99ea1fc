//! Exports: round trips, merges, and every way in which a file can be wrong.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tidegate_model::HostPattern;

use super::sealed::{Cost, open, seal};
use super::*;
use crate::issued::inspect;
use crate::plan::ledger::{LETS_ENCRYPT, OrderKind};
use crate::record::{Issued, Pending};
use crate::store::{MemoryStore, load, save};

const CHEAP: Cost = Cost {
    memory_kib: 8 * 1024,
    passes: 1,
    lanes: 1,
};

fn phrase(text: &str) -> Secret<String> {
    Secret::new(text.to_owned())
}

fn day(number: u64) -> SystemTime {
    // 2026-01-01.
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + number * 86_400)
}

/// A certificate of 90 days that begins in this month of 2026.
fn issued(month: u8) -> Issued {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["blog.example.com".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2026, month, 1);
    params.not_after = date_time_ymd(2026, month + 3, 1);
    let pem = params.self_signed(&key).unwrap().pem();
    inspect(&pem, &Secret::new(key.serialize_pem())).unwrap()
}

fn record(current: Option<Issued>) -> CertificateRecord {
    CertificateRecord {
        current,
        ..CertificateRecord::new("default/blog")
    }
}

fn account(url: Option<&str>) -> AccountRecord {
    AccountRecord {
        version: 1,
        directory: "https://ca.example/dir".to_owned(),
        key_pem: Secret::new(KeyPair::generate().unwrap().serialize_pem()),
        url: url.map(str::to_owned),
        contact: Vec::new(),
        external_key_id: None,
        created_at: day(0),
    }
}

fn certificate_key() -> Key {
    Key::new(Kind::Certificate, "default/blog")
}

async fn certificate_in(store: &MemoryStore) -> CertificateRecord {
    load(store, &certificate_key()).await.unwrap().unwrap()
}

async fn content_of(store: &MemoryStore) -> Vec<u8> {
    let export = export(store, &phrase("correct horse"), "test", day(20))
        .await
        .unwrap();
    export.file
}

async fn import_all(store: &MemoryStore, file: &[u8], mode: Mode) -> Vec<Outcome> {
    import(store, file, &phrase("correct horse"), mode, day(20))
        .await
        .unwrap()
}

#[test]
fn wrong_files_and_passphrases_each_have_their_error() {
    let file = seal(b"content".to_vec(), &phrase("correct horse"), CHEAP).unwrap();
    let right = phrase("correct horse");
    assert_eq!(open(&file, &right).unwrap().expose(), b"content");
    let again = seal(b"content".to_vec(), &right, CHEAP).unwrap();
    assert_ne!(again, file, "salt and nonce are random");

    let error = |file: &[u8], passphrase: &str| open(file, &phrase(passphrase)).unwrap_err();
    assert!(matches!(
        error(&file, "wrong horse"),
        BundleError::Passphrase
    ));
    assert!(matches!(error(b"", "x"), BundleError::Foreign));
    assert!(matches!(
        error(b"-----BEGIN CERT", "x"),
        BundleError::Foreign
    ));
    for length in [8, 9, 20, 57, file.len() - 40, file.len() - 1] {
        let error = error(&file[..length], "correct horse");
        assert!(
            matches!(error, BundleError::Cut { .. }),
            "{length}: {error}"
        );
    }
    let mut longer = file.clone();
    longer.push(0);
    assert!(matches!(
        error(&longer, "correct horse"),
        BundleError::Damaged
    ));
    for place in [10, 30, 60, file.len() - 1] {
        let mut changed = file.clone();
        changed[place] ^= 1;
        let error = error(&changed, "correct horse");
        assert!(matches!(error, BundleError::Damaged), "{place}: {error}");
    }
    let mut later = file.clone();
    later[8] = 2;
    assert!(matches!(
        error(&later, "correct horse"),
        BundleError::Version(2)
    ));
    assert!(matches!(
        seal(Vec::new(), &phrase("short"), CHEAP),
        Err(BundleError::ShortPassphrase)
    ));
}

/// The file with these bytes at this place, and the digest of somebody who knows the format.
fn forged(file: &[u8], place: usize, bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    let mut forged = file[..file.len() - 32].to_vec();
    forged[place..place + bytes.len()].copy_from_slice(bytes);
    let digest = sha2::Sha256::digest(&forged);
    forged.extend_from_slice(&digest);
    forged
}

#[test]
fn a_header_cannot_ask_for_all_memory_or_weaken_the_key() {
    let file = seal(b"content".to_vec(), &phrase("correct horse"), CHEAP).unwrap();
    for (place, asked) in [
        (9, u32::MAX),
        (9, 1),
        (13, u32::MAX),
        (13, 0),
        (17, 99),
        (17, 0),
    ] {
        let forged = forged(&file, place, &asked.to_be_bytes());
        let error = open(&forged, &phrase("correct horse")).unwrap_err();
        assert!(
            matches!(error, BundleError::Cost { .. }),
            "{place}: {error}"
        );
    }
    let huge = forged(&file, 49, &u64::MAX.to_be_bytes());
    let error = open(&huge, &phrase("correct horse")).unwrap_err();
    assert!(matches!(error, BundleError::TooLong), "{error}");
    // Within the limits, but not what it was sealed with.
    let other = forged(&file, 13, &2_u32.to_be_bytes());
    let error = open(&other, &phrase("correct horse")).unwrap_err();
    assert!(matches!(error, BundleError::Passphrase), "{error}");
}

#[tokio::test]
async fn an_export_restores_everything_and_twice_is_once() {
    let from = MemoryStore::default();
    let mut original = record(Some(issued(2)));
    original.previous = Some(issued(1));
    original.attempts.count = 2;
    original.attempts.last_failure = Some(day(19));
    original.forced = Some(day(19));
    save(&from, &certificate_key(), &original).await.unwrap();
    let account_key = Key::new(Kind::Account, "le ca.example/dir");
    let known = account(Some("https://ca.example/acct/1"));
    save(&from, &account_key, &known).await.unwrap();
    let names = [HostPattern::parse("blog.example.com").unwrap()];
    let mut ledger = Ledger::default();
    ledger.record_order(&LETS_ENCRYPT, &names, OrderKind::New, day(19));
    let ledger_key = Key::new(Kind::Ledger, "le ca.example/dir");
    save(&from, &ledger_key, &ledger).await.unwrap();
    let notices_key = Key::new(Kind::Notices, "all");
    let notices = serde_json::json!({"version": 1, "told": {}});
    save(&from, &notices_key, &notices).await.unwrap();
    let broken = Key::new(Kind::Certificate, "default/broken");
    from.write(&broken, Secret::new(b"{\"version\":".to_vec()))
        .await
        .unwrap();

    let export = export(&from, &phrase("correct horse"), "test", day(20))
        .await
        .unwrap();
    assert_eq!(export.included.len(), 4);
    assert_eq!(export.left_out[0].0, broken);
    assert!(
        from.read(&broken).await.unwrap().is_some(),
        "only looked at"
    );
    let file = export.file;
    for secret in ["PRIVATE KEY", "blog.example.com", "ca.example"] {
        let found = file
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        assert!(!found, "{secret}");
    }

    let into = MemoryStore::default();
    let told = import_all(&into, &file, Mode::DryRun).await;
    for kind in [
        Kind::Account,
        Kind::Certificate,
        Kind::Ledger,
        Kind::Notices,
    ] {
        assert!(into.list(kind).await.unwrap().is_empty());
    }
    let done = import_all(&into, &file, Mode::Apply).await;
    assert_eq!(done, told);
    assert!(
        done.iter().all(|outcome| outcome.done == Done::Added),
        "{done:?}"
    );
    let restored = certificate_in(&into).await;
    assert_eq!(restored.forced, None, "restoring never orders");
    original.forced = None;
    assert_eq!(restored, original);
    let restored: AccountRecord = load(&into, &account_key).await.unwrap().unwrap();
    assert_eq!(restored, known);
    let restored: Ledger = load(&into, &ledger_key).await.unwrap().unwrap();
    ledger.prune(day(20));
    assert_eq!(restored, ledger, "what still counts");

    let again = import_all(&into, &file, Mode::Apply).await;
    assert!(
        again.iter().all(|outcome| outcome.done == Done::Same),
        "{again:?}"
    );
}

#[tokio::test]
async fn the_newer_certificate_stays_and_the_older_becomes_the_previous() {
    let (old, new) = (issued(1), issued(2));
    let from = MemoryStore::default();
    save(&from, &certificate_key(), &record(Some(old.clone())))
        .await
        .unwrap();
    let older = content_of(&from).await;
    let into = MemoryStore::default();
    save(&into, &certificate_key(), &record(Some(new.clone())))
        .await
        .unwrap();
    import_all(&into, &older, Mode::Apply).await;
    let kept = certificate_in(&into).await;
    assert_eq!(
        (&kept.current, &kept.previous),
        (&Some(new.clone()), &Some(old))
    );
    let outcome = import_all(&into, &older, Mode::Apply).await;
    assert_eq!(outcome[0].done, Done::Kept, "{outcome:?}");
    assert!(outcome[0].why.contains("2026-05-01"), "{outcome:?}");

    // The other way round, and with failures here that the newer one has ended.
    save(&from, &certificate_key(), &record(Some(issued(3))))
        .await
        .unwrap();
    let newer = content_of(&from).await;
    import_all(&into, &newer, Mode::Apply).await;
    let merged = certificate_in(&into).await;
    assert_eq!(merged.previous, Some(new.clone()));
    assert_eq!(merged.current.unwrap().not_before, issued(3).not_before);

    // A revoked one gives way to an older one that works, and the mark travels.
    let into = MemoryStore::default();
    let mut revoked = new;
    revoked.revoked = Some(day(10));
    save(&into, &certificate_key(), &record(Some(revoked)))
        .await
        .unwrap();
    import_all(&into, &older, Mode::Apply).await;
    assert_eq!(
        certificate_in(&into).await.current.unwrap().not_before,
        issued(1).not_before
    );
}

#[tokio::test]
async fn who_went_back_to_an_older_certificate_stays_there() {
    let store = MemoryStore::default();
    let mut renewed = record(Some(issued(2)));
    renewed.previous = Some(issued(1));
    save(&store, &certificate_key(), &renewed).await.unwrap();
    let file = content_of(&store).await;
    let mut back = renewed.clone();
    std::mem::swap(&mut back.current, &mut back.previous);
    back.rolled_back = serde_json::from_value(serde_json::json!({
        "at": "2026-01-15T00:00:00Z", "renewNotBefore": "2026-02-20T00:00:00Z", "asked": ""
    }))
    .unwrap();
    save(&store, &certificate_key(), &back).await.unwrap();
    let told = import_all(&store, &file, Mode::Apply).await;
    let (done, why) = (told[0].done, told[0].why.as_str());
    assert_eq!(done, Done::Kept);
    assert_eq!(
        why,
        "a person went back to the one here at 2026-01-15 00:00 UTC"
    );
    assert_eq!(certificate_in(&store).await, back);
    // And the other way round: they went back after this export was made.
    let file = content_of(&store).await;
    let other = MemoryStore::default();
    save(&other, &certificate_key(), &renewed).await.unwrap();
    import_all(&other, &file, Mode::Apply).await;
    assert_eq!(certificate_in(&other).await.current, back.current);
    assert_eq!(certificate_in(&other).await.rolled_back, back.rolled_back);
}

#[tokio::test]
async fn an_order_travels_only_when_it_was_placed() {
    let pending = |order_url: Option<&str>| Pending {
        issuer: "le".to_owned(),
        directory: "https://ca.example/dir".to_owned(),
        trial: false,
        names: vec!["blog.example.com".to_owned()],
        key_pem: Secret::new(KeyPair::generate().unwrap().serialize_pem()),
        profile: None,
        order_url: order_url.map(str::to_owned),
        answers: Vec::new(),
        started_at: day(19),
    };
    for (url, expected) in [(None, false), (Some("https://ca.example/order/1"), true)] {
        let from = MemoryStore::default();
        let mut ordering = record(None);
        ordering.pending = Some(pending(url));
        save(&from, &certificate_key(), &ordering).await.unwrap();
        let file = content_of(&from).await;
        let into = MemoryStore::default();
        import_all(&into, &file, Mode::Apply).await;
        assert_eq!(certificate_in(&into).await.pending.is_some(), expected);
    }
}

#[tokio::test]
async fn a_registered_account_is_never_replaced() {
    let key = Key::new(Kind::Account, "le ca.example/dir");
    let from = MemoryStore::default();
    let theirs = account(Some("https://ca.example/acct/1"));
    save(&from, &key, &theirs).await.unwrap();
    let file = content_of(&from).await;
    for (mine, done, replaced) in [
        (
            account(Some("https://ca.example/acct/2")),
            Done::Kept,
            false,
        ),
        (account(None), Done::Merged, true),
    ] {
        let into = MemoryStore::default();
        save(&into, &key, &mine).await.unwrap();
        let outcomes = import_all(&into, &file, Mode::Apply).await;
        assert_eq!(outcomes[0].done, done, "{outcomes:?}");
        let now: AccountRecord = load(&into, &key).await.unwrap().unwrap();
        assert_eq!(now, if replaced { theirs.clone() } else { mine });
    }
}

#[tokio::test]
async fn ledgers_are_joined() {
    let names = [HostPattern::parse("blog.example.com").unwrap()];
    let key = Key::new(Kind::Ledger, "le ca.example/dir");
    let ledger = |at| {
        let mut ledger = Ledger::default();
        ledger.record_order(&LETS_ENCRYPT, &names, OrderKind::New, at);
        ledger
    };
    let from = MemoryStore::default();
    save(&from, &key, &ledger(day(18))).await.unwrap();
    let file = content_of(&from).await;
    let into = MemoryStore::default();
    save(&into, &key, &ledger(day(19))).await.unwrap();
    let outcomes = import_all(&into, &file, Mode::Apply).await;
    assert_eq!(outcomes[0].done, Done::Merged, "{outcomes:?}");
    let merged: Ledger = load(&into, &key).await.unwrap().unwrap();
    assert_eq!(merged.orders().len(), 2);
    let again = import_all(&into, &file, Mode::Apply).await;
    assert_eq!(again[0].done, Done::Same, "{again:?}");
}
