//! The account at a directory: its key is stored before it is registered, and it is registered once.

use std::time::SystemTime;

use instant_acme::{Account, ExternalAccountKey, Key as AccountKey, NewAccount};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::PrivateKeyDer;
use tidegate_model::Secret;

use crate::client::AcmeClient;
use crate::error::{OrderError, kind};
use crate::record::AccountRecord;
use crate::settings::Issuer;
use crate::store::{Key, Kind, Store, load, save};

/// Name of the account's document: one per issuer and directory, because an issuer whose directory was
/// changed has another account, and the old one is still needed to revoke.
pub fn key_of(issuer: &str, directory: &str) -> Key {
    let host_and_path = directory
        .split_once("://")
        .map_or(directory, |(_, rest)| rest);
    Key::new(Kind::Account, format!("{issuer} {host_and_path}"))
}

/// Opens the account of the issuer at this directory, registering it if need be.
pub async fn open(
    store: &dyn Store,
    client: &AcmeClient,
    issuer: &Issuer,
    directory: &str,
    now: SystemTime,
) -> Result<(Account, AccountRecord), OrderError> {
    let key = key_of(&issuer.name, directory);
    let known: Option<AccountRecord> = load(store, &key).await?;
    if let Some(record) = known {
        if let Some(opened) = resume(store, client, issuer, directory, &key, record).await? {
            return Ok(opened);
        }
        // The authority has forgotten it, which test authorities do at every start.
        forget(store, issuer, directory).await?;
    }
    register(store, client, issuer, directory, &key, now).await
}

/// Sets the account aside that the authority does not know any more.
pub(crate) async fn forget(
    store: &dyn Store,
    issuer: &Issuer,
    directory: &str,
) -> Result<(), OrderError> {
    let aside = store.set_aside(&key_of(&issuer.name, directory)).await?;
    tracing::warn!(issuer = %issuer.name, aside, "the authority does not know the account any more; registering a new one");
    Ok(())
}

async fn resume(
    store: &dyn Store,
    client: &AcmeClient,
    issuer: &Issuer,
    directory: &str,
    key: &Key,
    mut record: AccountRecord,
) -> Result<Option<(Account, AccountRecord)>, OrderError> {
    let Some(der) = record.key_der() else {
        return Ok(None);
    };
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let opened = if let Some(url) = &record.url {
        builder
            .from_parts(url.clone(), der, directory.to_owned())
            .await
    } else {
        // Registered or not before the crash: the same request finds or makes it (RFC 8555 §7.3.1).
        match AccountKey::from_pkcs8_der(der.clone_key()) {
            Ok(parsed) => builder
                .create_from_key((parsed, PrivateKeyDer::Pkcs8(der)), directory.to_owned())
                .await
                .map(|(account, _)| account),
            Err(error) => Err(error),
        }
    };
    let account = match opened {
        Ok(account) => account,
        Err(instant_acme::Error::Api(problem)) if kind(&problem) == "accountDoesNotExist" => {
            return Ok(None);
        }
        Err(error) => return Err(OrderError::of("open the account", error)),
    };
    let mut changed = record.url.is_none();
    record.url = Some(account.id().to_owned());
    if record.contact != issuer.contact {
        let contact: Vec<&str> = issuer.contact.iter().map(String::as_str).collect();
        match account.update_contacts(&contact).await {
            Ok(()) => {}
            Err(instant_acme::Error::Api(problem)) if kind(&problem) == "accountDoesNotExist" => {
                return Ok(None);
            }
            Err(error) => return Err(OrderError::of("change the account's contacts", error)),
        }
        record.contact.clone_from(&issuer.contact);
        changed = true;
    }
    if changed {
        save(store, key, &record).await?;
    }
    Ok(Some((account, record)))
}

async fn register(
    store: &dyn Store,
    client: &AcmeClient,
    issuer: &Issuer,
    directory: &str,
    key: &Key,
    now: SystemTime,
) -> Result<(Account, AccountRecord), OrderError> {
    let contact: Vec<&str> = issuer.contact.iter().map(String::as_str).collect();
    if let Some(external) = &issuer.external_account {
        // instant-acme makes the key of a bound account itself: stored as soon as it is known.
        let binding = ExternalAccountKey::new(external.key_id.clone(), external.hmac_key.expose());
        let request = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = Account::builder_with_http(Box::new(client.clone()))
            .create(&request, directory.to_owned(), Some(&binding))
            .await
            .map_err(|error| OrderError::of("register the account with its external key", error))?;
        let record = AccountRecord {
            version: 1,
            directory: directory.to_owned(),
            key_pem: Secret::new(pkcs8_pem(credentials.private_key().secret_pkcs8_der())),
            url: Some(account.id().to_owned()),
            contact: issuer.contact.clone(),
            external_key_id: Some(external.key_id.clone()),
            created_at: now,
        };
        save(store, key, &record).await?;
        return Ok((account, record));
    }
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| OrderError::Key("account's key", error))?;
    let record = AccountRecord {
        version: 1,
        directory: directory.to_owned(),
        key_pem: Secret::new(pair.serialize_pem()),
        url: None,
        contact: Vec::new(),
        external_key_id: None,
        created_at: now,
    };
    save(store, key, &record).await?;
    resume(store, client, issuer, directory, key, record)
        .await?
        .ok_or_else(|| OrderError::Invalid("the new account is not known".to_owned()))
}

/// PKCS#8 in PEM.
pub(crate) fn pkcs8_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    pem
}
