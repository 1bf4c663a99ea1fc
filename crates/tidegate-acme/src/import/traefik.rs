//! Traefik's `acme.json`: by resolver an account and certificates, keys and chains in Base64.
//!
//! The directory is in Traefik's configuration and not here; the account's URL tells the well-known ones.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Candidate, FoundAccount, Reader};
use super::{directory_of, keys, strings, text_of};

/// Thousands of certificates.
const LONGEST_STORE: u64 = 64 * 1024 * 1024;

pub(super) fn read(reader: &mut Reader, path: &Path) -> Result<(), String> {
    let inner = path.join("acme.json");
    let path = if path.is_dir() { &inner } else { path };
    let text = text_of(path, LONGEST_STORE)?;
    if text.trim().is_empty() {
        return Ok(());
    }
    let resolvers: Value = serde_json::from_str(&text).map_err(|error| {
        format!(
            "it is no JSON at line {}, column {}; give Traefik's acme.json",
            error.line(),
            error.column()
        )
    })?;
    let resolvers = resolvers
        .as_object()
        .ok_or("it is no object; give Traefik's acme.json")?;
    if resolvers.contains_key("Account") || resolvers.contains_key("DomainsCertificate") {
        return Err("it has the format of Traefik 1; let Traefik 2 convert it first".to_owned());
    }
    for (resolver, content) in resolvers {
        let account = &content["Account"];
        let url = account["Registration"]["uri"].as_str();
        let directory = url.and_then(directory_of);
        self::account(reader, path, resolver, account, directory.as_ref());
        let certificates = content["Certificates"].as_array();
        for certificate in certificates.into_iter().flatten() {
            self::certificate(reader, path, certificate, directory.clone());
        }
    }
    Ok(())
}

fn certificate(reader: &mut Reader, path: &Path, found: &Value, directory: Option<String>) {
    let name = found["domain"]["main"].as_str().unwrap_or("without name");
    let text = |member: &str| {
        found[member]
            .as_str()
            .and_then(|text| STANDARD.decode(text).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| format!("its {member} cannot be read"))
    };
    match (text("certificate"), text("key")) {
        (Ok(chain_pem), Ok(key_pem)) => reader.certificate(Candidate {
            name,
            source: path,
            directory,
            chain_pem: &chain_pem,
            key_pem: &key_pem,
        }),
        (Err(why), _) | (_, Err(why)) => reader.skip(path, format!("certificate {name}"), why),
    }
}

fn account(
    reader: &mut Reader,
    path: &Path,
    resolver: &str,
    found: &Value,
    directory: Option<&String>,
) {
    if found.is_null() {
        return;
    }
    let key_pem = found["PrivateKey"]
        .as_str()
        .and_then(|text| STANDARD.decode(text).ok())
        .ok_or_else(|| "its key cannot be read".to_owned())
        .and_then(|der| keys::account_from_der(&der));
    let taken = key_pem.and_then(|key_pem| match directory {
        Some(directory) => Ok((key_pem, directory)),
        None => Err("its directory is in Traefik's configuration and cannot be guessed".to_owned()),
    });
    match taken {
        Ok((key_pem, directory)) => reader.account(FoundAccount {
            directory: directory.clone(),
            url: found["Registration"]["uri"].as_str().map(str::to_owned),
            contact: strings(&found["Registration"]["body"]["contact"]),
            key_pem,
            source: path.to_owned(),
            created_at: None,
        }),
        Err(why) => reader.skip(path, format!("account of resolver {resolver}"), why),
    }
}
