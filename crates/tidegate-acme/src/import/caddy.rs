//! Caddy's storage, which is certmagic's.
//!
//! ```text
//! certificates/ISSUER/NAME/NAME.{crt,key,json}      NAME of *.example.com is wildcard_.example.com
//! acme/ISSUER/users/EMAIL/*.{json,key}
//! ```
//!
//! ISSUER is the directory's URL without its scheme, `/` and `:` as `-`; certificates say the whole URL.

use std::path::Path;

use super::{Candidate, FoundAccount, LONGEST_FILE, Reader, WELL_KNOWN};
use super::{entries, file_name, json_of, keys, strings, text_of};

/// The issuer of names that no authority issues for.
const INTERNAL: &str = "local";

pub(super) fn read(reader: &mut Reader, root: &Path) -> Result<(), String> {
    let is_store = |root: &Path| root.join("certificates").is_dir() || root.join("acme").is_dir();
    let inner = root.join("caddy");
    let root = if is_store(root) {
        root
    } else if is_store(&inner) {
        &inner
    } else {
        return Err(
            "it has no folders certificates and acme; give the folder that is usually /var/lib/caddy/.local/share/caddy, ~/.local/share/caddy or /data/caddy in a container"
                .to_owned(),
        );
    };
    let mut directories: Vec<String> = WELL_KNOWN.iter().map(|url| (*url).to_owned()).collect();
    for issuer in entries(&root.join("certificates")) {
        for folder in entries(&issuer).into_iter().filter(|path| path.is_dir()) {
            if file_name(&issuer) == INTERNAL {
                let what = format!("certificate {}", name_of(&folder));
                let why = "it comes from Caddy's internal CA; the one here issues its own";
                reader.skip(&folder, what, why);
            } else {
                directories.extend(certificate(reader, &folder, &file_name(&issuer)));
            }
        }
    }
    for issuer in entries(&root.join("acme")) {
        let key = file_name(&issuer);
        let directory = directories.iter().find(|url| issuer_key(url) == key);
        for user in entries(&issuer.join("users")) {
            account(reader, &user, &key, directory);
        }
    }
    Ok(())
}

/// The hostname that a folder stands for.
fn name_of(folder: &Path) -> String {
    let name = file_name(folder);
    match name.strip_prefix("wildcard_") {
        Some(rest) => format!("*{rest}"),
        None => name,
    }
}

/// How certmagic names the folder of a directory.
fn issuer_key(directory: &str) -> String {
    let rest = directory
        .split_once("://")
        .map_or(directory, |(_, rest)| rest);
    rest.trim_matches('/')
        .replace(['/', ':'], "-")
        .to_lowercase()
}

/// Reads one; its directory if it says so.
fn certificate(reader: &mut Reader, folder: &Path, issuer: &str) -> Option<String> {
    let file = |suffix: &str| folder.join(format!("{}.{suffix}", file_name(folder)));
    let meta = json_of(&file("json")).unwrap_or_default();
    let directory = meta["issuer_data"]["ca"].as_str().map(str::to_owned);
    let directory = directory.or_else(|| {
        let known = WELL_KNOWN.iter().find(|url| issuer_key(url) == issuer);
        known.map(|url| (*url).to_owned())
    });
    let name = name_of(folder);
    match (
        text_of(&file("crt"), LONGEST_FILE),
        text_of(&file("key"), LONGEST_FILE),
    ) {
        (Ok(chain_pem), Ok(key_pem)) => reader.certificate(Candidate {
            name: &name,
            source: folder,
            directory: directory.clone(),
            chain_pem: &chain_pem,
            key_pem: &key_pem,
        }),
        (Err(why), _) | (_, Err(why)) => {
            reader.skip(folder, format!("certificate {name}"), why);
        }
    }
    directory
}

fn account(reader: &mut Reader, folder: &Path, issuer: &str, directory: Option<&String>) {
    let what = format!("account of {} at {issuer}", file_name(folder));
    let files = entries(folder);
    let with = |suffix: &str| {
        files
            .iter()
            .find(|file| file.extension().is_some_and(|found| found == suffix))
    };
    let Some(directory) = directory else {
        let why = "no certificate says which directory the folder stands for";
        reader.skip(folder, what, why);
        return;
    };
    let key_pem = with("key")
        .ok_or_else(|| "its key is missing".to_owned())
        .and_then(|file| text_of(file, LONGEST_FILE))
        .and_then(|text| keys::account_from_pem(&text));
    let key_pem = match key_pem {
        Ok(key_pem) => key_pem,
        Err(why) => {
            reader.skip(folder, what, why);
            return;
        }
    };
    // Without it the account is found again by its key.
    let registration = with("json")
        .and_then(|file| json_of(file).ok())
        .unwrap_or_default();
    reader.account(FoundAccount {
        directory: directory.clone(),
        url: registration["location"].as_str().map(str::to_owned),
        contact: strings(&registration["contact"]),
        key_pem,
        source: folder.to_owned(),
        created_at: None,
    });
}
