//! Stores in the layouts that certbot 2 to 5, Caddy 2 and Traefik 2 and 3 write, whole and broken.

use std::fs;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, date_time_ymd};
use serde_json::json;
use tidegate_model::HostPattern;

use super::*;
use crate::account::key_of;
use crate::bundle::{Done, Mode};
use crate::issued::key_type_of;
use crate::record::{AccountRecord, CertificateRecord};
use crate::settings::KeyType;
use crate::store::{Key, Kind, MemoryStore, Store as _, load};

const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

fn now() -> SystemTime {
    // 2026-11-21.
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_219_200)
}

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn names(list: &[&str]) -> Vec<HostPattern> {
    list.iter()
        .map(|name| HostPattern::parse(name).unwrap())
        .collect()
}

fn certificate(list: &[&str], key: &KeyPair, year: i32) -> String {
    let list: Vec<String> = list.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(list).unwrap();
    params.not_before = date_time_ymd(year, 10, 1);
    params.not_after = date_time_ymd(year, 12, 30);
    params.self_signed(key).unwrap().pem()
}

/// A valid certificate and its key.
fn pair(list: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (certificate(list, &key, 2026), key.serialize_pem())
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

fn p256() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

/// As Go writes it.
fn sec1(key: &EcdsaKeyPair) -> Vec<u8> {
    let private = key.private_key();
    let der = AsDer::<EcPrivateKeyRfc5915Der<'_>>::as_der(&private).unwrap();
    der.as_ref().to_vec()
}

/// As Go and OpenSSL 1 write it: what PKCS#8 wraps.
fn pkcs1(key: &KeyPair) -> Vec<u8> {
    key.serialize_der()[26..].to_vec()
}

/// The part of the key that both forms of it share.
fn public(key_pem: &Secret<String>) -> Vec<u8> {
    rcgen::PublicKeyData::der_bytes(&KeyPair::from_pem(key_pem.expose()).unwrap()).to_vec()
}

fn why<'a>(found: &'a Found, what: &str) -> &'a str {
    let skipped = found.skipped.iter().find(|skipped| skipped.what == what);
    &skipped
        .unwrap_or_else(|| panic!("{what} in {:?}", found.skipped))
        .why
}

fn certbot_lineage(root: &Path, name: &str, list: &[&str], server: &str) {
    let (chain_pem, key_pem) = pair(list);
    write(
        root,
        &format!("renewal/{name}.conf"),
        &format!(
            "# renew_before_expiry = 30 days\nversion = 5.1.0\narchive_dir = /etc/letsencrypt/archive/{name}\nfullchain = /etc/letsencrypt/live/{name}/fullchain.pem\n\n# Options used in the renewal process\n[renewalparams]\naccount = 4d0c9d1c8d0f\nserver = {server}\nkey_type = ecdsa\n"
        ),
    );
    for (part, text) in [("fullchain", &chain_pem), ("privkey", &key_pem)] {
        write(root, &format!("archive/{name}/{part}1.pem"), "an older one");
        write(root, &format!("archive/{name}/{part}12.pem"), text);
        let live = root.join("live").join(name);
        fs::create_dir_all(&live).unwrap();
        std::os::unix::fs::symlink(
            format!("../../archive/{name}/{part}12.pem"),
            live.join(format!("{part}.pem")),
        )
        .unwrap();
    }
}

#[test]
fn certbots_folder_is_read_and_each_broken_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    certbot_lineage(root, "blog.example.com", &["blog.example.com"], DIRECTORY);
    certbot_lineage(root, "copied", &["*.example.com"], DIRECTORY);
    fs::remove_dir_all(root.join("live/copied")).unwrap();
    certbot_lineage(root, "tried", &["tried.example.com"], STAGING);
    certbot_lineage(root, "keyless", &["keyless.example.com"], DIRECTORY);
    fs::remove_file(root.join("archive/keyless/privkey12.pem")).unwrap();
    certbot_lineage(root, "mixed", &["mixed.example.com"], DIRECTORY);
    write(root, "archive/mixed/privkey12.pem", &pair(&["x.example"]).1);
    certbot_lineage(root, "old", &["old.example.com"], DIRECTORY);
    let key = KeyPair::generate().unwrap();
    let old = certificate(&["old.example.com"], &key, 2025);
    write(root, "archive/old/fullchain12.pem", &old);
    write(root, "archive/old/privkey12.pem", &key.serialize_pem());
    write(root, "live/README", "This directory contains your keys");

    let account = root.join("accounts/acme-v02.api.letsencrypt.org/directory");
    let key = p256();
    let point = key.public_key().as_ref().to_vec();
    let der = sec1(&key);
    // SEQUENCE, version, OCTET STRING of 32 bytes.
    let secret = &der[7..39];
    let jwk = json!({
        "kty": "EC", "crv": "P-256",
        "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
        "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
        "d": URL_SAFE_NO_PAD.encode(secret),
    });
    write(&account, "ec/private_key.json", &jwk.to_string());
    let registration = json!({"body": {"contact": ["mailto:a@example.com"]},
        "uri": "https://acme-v02.api.letsencrypt.org/acme/acct/1"});
    write(&account, "ec/regr.json", &registration.to_string());
    write(
        &account,
        "ec/meta.json",
        r#"{"creation_dt": "2024-03-01T10:00:00Z", "creation_host": "x"}"#,
    );
    write(
        &account,
        "rsa/private_key.json",
        r#"{"kty": "RSA", "n": "AQAB", "e": "AQAB", "d": "AQAB"}"#,
    );
    write(&account, "broken/private_key.json", "{");

    let found = Program::Certbot.read(root, now()).unwrap();
    let taken: Vec<&str> = found.certificates.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(taken, ["blog.example.com", "copied"]);
    assert_eq!(found.certificates[0].directory.as_deref(), Some(DIRECTORY));
    assert_eq!(found.certificates[1].issued.names, ["*.example.com"]);
    assert!(why(&found, "certificate tried").contains("staging"));
    assert_eq!(why(&found, "certificate keyless"), "privkey.pem is missing");
    assert_eq!(
        why(&found, "certificate mixed"),
        "its key belongs to another certificate"
    );
    assert!(why(&found, "certificate old").starts_with("it expired on 2025-12-30"));
    assert_eq!(found.accounts.len(), 1);
    let taken = &found.accounts[0];
    assert_eq!(taken.directory, DIRECTORY);
    assert_eq!(taken.contact, ["mailto:a@example.com"]);
    assert_eq!(public(&taken.key_pem), point);
    assert_eq!(
        moment::rfc3339_text(taken.created_at.unwrap()),
        "2024-03-01T10:00:00Z"
    );
    let accounts: Vec<&Skipped> = found
        .skipped
        .iter()
        .filter(|skipped| skipped.what.starts_with("account"))
        .collect();
    assert_eq!(accounts.len(), 2, "{accounts:?}");
    assert!(accounts.iter().any(|skipped| skipped.why.contains("RSA")));
    assert!(
        accounts
            .iter()
            .any(|skipped| skipped.why.contains("no JSON"))
    );

    let error = Program::Certbot
        .read(&root.join("live"), now())
        .unwrap_err();
    assert!(error.to_string().contains("/etc/letsencrypt"), "{error}");
}

#[test]
fn caddys_storage_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("caddy");
    let le = "acme-v02.api.letsencrypt.org-directory";
    let own = "https://ca.lan:9000/acme/acme/directory";
    let save = |issuer: &str, name: &str, list: &[&str], ca: Option<&str>| {
        let at = format!("certificates/{issuer}/{name}/{name}");
        let key = p256();
        let key_pem = pem("EC PRIVATE KEY", &sec1(&key));
        let pkcs8 = keys::pkcs8(&key_pem).unwrap();
        let pair = KeyPair::from_pem(pkcs8.expose()).unwrap();
        write(&root, &format!("{at}.crt"), &certificate(list, &pair, 2026));
        write(&root, &format!("{at}.key"), &key_pem);
        let mut meta = json!({"sans": list, "issuer_data": {"url": "https://x/acme/cert/1"}});
        if let Some(ca) = ca {
            meta["issuer_data"]["ca"] = json!(ca);
        }
        write(&root, &format!("{at}.json"), &meta.to_string());
    };
    save(
        le,
        "blog.example.com",
        &["blog.example.com"],
        Some(DIRECTORY),
    );
    save(le, "wildcard_.example.com", &["*.example.com"], None);
    save(
        "ca.lan-9000-acme-acme-directory",
        "nas.lan",
        &["nas.lan"],
        Some(own),
    );
    save("local", "app.localhost", &["app.localhost"], None);
    write(
        &root,
        &format!("certificates/{le}/half.example.com/half.example.com.crt"),
        "",
    );

    let key = p256();
    let user = format!("acme/{le}/users/me@example.com");
    write(
        &root,
        &format!("{user}/me.key"),
        &pem("EC PRIVATE KEY", &sec1(&key)),
    );
    let registration = json!({"status": "valid", "contact": ["mailto:me@example.com"],
        "termsOfServiceAgreed": true, "location": "https://acme-v02.api.letsencrypt.org/acme/acct/7"});
    write(&root, &format!("{user}/me.json"), &registration.to_string());
    let user = "acme/ca.lan-9000-acme-acme-directory/users/default";
    write(
        &root,
        &format!("{user}/default.key"),
        &pem("EC PRIVATE KEY", &sec1(&key)),
    );
    let user = "acme/elsewhere.example-dir/users/default";
    write(
        &root,
        &format!("{user}/default.key"),
        &pem("EC PRIVATE KEY", &sec1(&key)),
    );

    let found = Program::Caddy.read(folder.path(), now()).unwrap();
    let taken: Vec<(&str, Option<&str>)> = found
        .certificates
        .iter()
        .map(|certificate| (certificate.name.as_str(), certificate.directory.as_deref()))
        .collect();
    assert_eq!(
        taken,
        [
            ("blog.example.com", Some(DIRECTORY)),
            ("*.example.com", Some(DIRECTORY)),
            ("nas.lan", Some(own)),
        ]
    );
    for certificate in &found.certificates {
        let key_pem = certificate.issued.key_pem.expose();
        assert_eq!(key_type_of(key_pem), Some(KeyType::P256), "in PKCS#8");
    }
    assert!(why(&found, "certificate app.localhost").contains("internal CA"));
    assert_eq!(
        why(&found, "certificate half.example.com"),
        "half.example.com.key is missing"
    );
    let accounts: Vec<(&str, Option<&str>)> = found
        .accounts
        .iter()
        .map(|account| (account.directory.as_str(), account.url.as_deref()))
        .collect();
    assert_eq!(
        accounts,
        [
            (
                DIRECTORY,
                Some("https://acme-v02.api.letsencrypt.org/acme/acct/7")
            ),
            (own, None),
        ]
    );
    assert_eq!(
        public(&found.accounts[0].key_pem),
        key.public_key().as_ref()
    );
    let strange = "account of default at elsewhere.example-dir";
    assert!(why(&found, strange).contains("which directory"));
    assert!(Program::Caddy.read(&root.join("acme"), now()).is_err());
}

#[test]
fn traefiks_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("acme.json");
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let entry = |list: &[&str], chain_pem: &str, key_pem: &str| {
        json!({"domain": {"main": list[0], "sans": list[1..]},
            "certificate": STANDARD.encode(chain_pem), "key": STANDARD.encode(key_pem), "Store": "default"})
    };
    let list = ["example.com", "*.example.com"];
    let whole = certificate(&list, &rsa, 2026);
    let rsa_pem = pem("RSA PRIVATE KEY", &pkcs1(&rsa));
    let (tried, tried_key) = pair(&["tried.example.com"]);
    let mut broken = entry(&["broken.example.com"], "", "");
    broken["certificate"] = json!("!");
    let account = |key: &[u8], uri: &str| {
        json!({"Email": "a@example.com", "KeyType": "4096", "PrivateKey": STANDARD.encode(key),
            "Registration": {"body": {"status": "valid", "contact": ["mailto:a@example.com"]}, "uri": uri}})
    };
    let url = "https://acme-v02.api.letsencrypt.org/acme/acct/9";
    let staging = "https://acme-staging-v02.api.letsencrypt.org/acme/acct/9";
    let ec = sec1(&p256());
    let store = json!({
        "letsencrypt": {
            "Account": account(&pkcs1(&rsa), url),
            "Certificates": [entry(&list, &whole, &rsa_pem), broken],
        },
        "ec": {"Account": account(&ec, url), "Certificates": null},
        "own": {"Account": account(&ec, "https://ca.lan/acct/1"), "Certificates": null},
        "staging": {
            "Account": account(&ec, staging),
            "Certificates": [entry(&["tried.example.com"], &tried, &tried_key)],
        },
        "unused": {"Account": null, "Certificates": null},
    });
    fs::write(&file, store.to_string()).unwrap();

    let found = Program::Traefik.read(&file, now()).unwrap();
    assert_eq!(found.certificates.len(), 1);
    let taken = &found.certificates[0];
    assert_eq!(taken.issued.names, ["*.example.com", "example.com"]);
    assert_eq!(taken.directory.as_deref(), Some(DIRECTORY));
    let key_type = key_type_of(taken.issued.key_pem.expose());
    assert_eq!(key_type, Some(KeyType::Rsa2048));
    assert_eq!(
        why(&found, "certificate broken.example.com"),
        "its certificate cannot be read"
    );
    assert!(why(&found, "certificate tried.example.com").contains("staging"));
    assert!(why(&found, "account of resolver letsencrypt").contains("RSA"));
    assert!(why(&found, "account of resolver own").contains("configuration"));
    let directories: Vec<&str> = found
        .accounts
        .iter()
        .map(|a| a.directory.as_str())
        .collect();
    assert_eq!(directories, [DIRECTORY, STAGING]);

    for (text, expected) in [
        ("[]", "it is no object"),
        ("{\"Account\": {}}", "Traefik 1"),
        ("nonsense", "it is no JSON at line 1"),
    ] {
        fs::write(&file, text).unwrap();
        let error = Program::Traefik.read(folder.path(), now()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    fs::write(&file, "").unwrap();
    let found = Program::Traefik.read(&file, now()).unwrap();
    assert!(found.certificates.is_empty() && found.skipped.is_empty());
}

fn found(list: &[&str]) -> FoundCertificate {
    let (chain_pem, key_pem) = pair(list);
    FoundCertificate {
        name: list[0].to_owned(),
        source: PathBuf::from("x"),
        directory: Some(DIRECTORY.to_owned()),
        issued: inspect(&chain_pem, &Secret::new(key_pem)).unwrap(),
    }
}

#[tokio::test]
async fn certificates_go_to_their_routes_and_the_rest_waits() {
    let store = MemoryStore::default();
    let everything = || Found {
        certificates: vec![
            found(&["*.example.com"]),
            found(&["blog.example.com"]),
            found(&["later.example.org"]),
        ],
        accounts: vec![FoundAccount {
            directory: DIRECTORY.to_owned(),
            url: Some("https://acme-v02.api.letsencrypt.org/acme/acct/7".to_owned()),
            contact: Vec::new(),
            key_pem: keys::account_from_der(&sec1(&p256())).unwrap(),
            source: PathBuf::from("y"),
            created_at: None,
        }],
        skipped: Vec::new(),
    };
    let route = |id: &str, list: &[&str]| TargetRoute {
        id: id.to_owned(),
        names: names(list),
    };
    let target = Target {
        routes: vec![
            route("default/blog", &["blog.example.com"]),
            route("default/wiki", &["wiki.example.com"]),
            route("default/other", &["other.example.net"]),
        ],
        issuers: vec![("le".to_owned(), DIRECTORY.to_owned())],
    };
    let mut all = everything();
    let told = place(&store, &mut all, &target, Mode::DryRun, now())
        .await
        .unwrap();
    assert!(store.list(Kind::Certificate).await.unwrap().is_empty());
    let mut all = everything();
    let done = place(&store, &mut all, &target, Mode::Apply, now())
        .await
        .unwrap();
    let keys: Vec<String> = done.iter().map(|outcome| outcome.key.to_string()).collect();
    assert_eq!(
        keys,
        [
            "account le acme-v02.api.letsencrypt.org/directory",
            "certificate default/blog",
            "certificate default/wiki",
            "certificate imported:later.example.org",
        ]
    );
    assert_eq!(
        told.iter()
            .map(|outcome| outcome.key.to_string())
            .collect::<Vec<_>>(),
        keys
    );
    assert!(all.skipped.is_empty());
    let read = async |id: &str| {
        let key = Key::new(Kind::Certificate, id);
        let record: CertificateRecord = load(&store, &key).await.unwrap().unwrap();
        record.current.unwrap()
    };
    // Of two that cover the name the closer one; equal ends.
    assert_eq!(read("default/blog").await.names, ["blog.example.com"]);
    let wiki = read("default/wiki").await;
    assert_eq!(wiki.names, ["*.example.com"]);
    assert_eq!(wiki.issuer, None);
    assert_eq!(
        wiki.directory.as_deref(),
        Some(DIRECTORY),
        "its account is ours"
    );
    let account: Option<AccountRecord> = load(&store, &key_of("le", DIRECTORY)).await.unwrap();
    assert!(account.unwrap().url.is_some());

    let again = place(&store, &mut all, &target, Mode::Apply, now())
        .await
        .unwrap();
    assert!(
        again.iter().all(|outcome| outcome.done == Done::Same),
        "{again:?}"
    );

    let later = waiting(&store, &names(&["later.example.org"]), now())
        .await
        .unwrap();
    let (key, later) = later.unwrap();
    assert_eq!(later.names, ["later.example.org"]);
    let after = now() + Duration::from_secs(365 * 86_400);
    for (list, at) in [
        (&["none.example.org"][..], now()),
        (&["later.example.org", "none.example.org"], now()),
        (&["later.example.org"], after),
    ] {
        assert!(
            waiting(&store, &names(list), at).await.unwrap().is_none(),
            "{list:?}"
        );
    }
    taken(&store, &key, &names(&["later.example.org"]))
        .await
        .unwrap();
    assert!(store.read(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn what_was_imported_waits_until_each_of_its_names_was_taken() {
    let store = MemoryStore::default();
    let mut all = Found {
        certificates: vec![found(&["a.example.org", "*.b.example.org"])],
        ..Found::default()
    };
    place(&store, &mut all, &Target::default(), Mode::Apply, now())
        .await
        .unwrap();
    let find = async |list: &[&str]| waiting(&store, &names(list), now()).await.unwrap();
    for list in [&["a.example.org"][..], &["x.b.example.org"]] {
        let (key, _) = find(list).await.unwrap();
        taken(&store, &key, &names(list)).await.unwrap();
    }
    // Another name below b may come to be served.
    let (key, _) = find(&["y.b.example.org"]).await.unwrap();
    taken(&store, &key, &names(&["*.b.example.org"]))
        .await
        .unwrap();
    assert!(find(&["y.b.example.org"]).await.is_none());
    assert!(store.list(Kind::Certificate).await.unwrap().is_empty());
}

#[tokio::test]
async fn without_an_issuer_an_account_is_told_and_replaces_nothing() {
    let store = MemoryStore::default();
    let mut all = Found {
        certificates: vec![found(&["blog.example.com"])],
        accounts: vec![FoundAccount {
            directory: DIRECTORY.to_owned(),
            url: None,
            contact: Vec::new(),
            key_pem: keys::account_from_der(&sec1(&p256())).unwrap(),
            source: PathBuf::from("y"),
            created_at: None,
        }],
        skipped: Vec::new(),
    };
    place(&store, &mut all, &Target::default(), Mode::Apply, now())
        .await
        .unwrap();
    assert!(
        all.skipped[0].why.contains("AcmeIssuer"),
        "{:?}",
        all.skipped
    );
    let key = Key::new(Kind::Certificate, "imported:blog.example.com");
    let record: CertificateRecord = load(&store, &key).await.unwrap().unwrap();
    assert_eq!(record.current.unwrap().directory, None);
}
