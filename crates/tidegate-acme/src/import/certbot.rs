//! certbot's `/etc/letsencrypt`.
//!
//! ```text
//! renewal/NAME.conf                        [renewalparams] server = …
//! live/NAME/{fullchain,privkey}.pem     ─► archive/NAME/{fullchain,privkey}N.pem
//! accounts/HOST/PATH/ID/{private_key.json,regr.json,meta.json}
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Candidate, FoundAccount, LONGEST_FILE, Reader};
use super::{entries, file_name, json_of, keys, strings, text_of};
use crate::plan::moment;

/// Folders below `accounts`: host and path of a directory, and the account.
const DEEPEST: usize = 6;

pub(super) fn read(reader: &mut Reader, root: &Path) -> Result<(), String> {
    let folders = ["live", "archive", "renewal"];
    if !folders.iter().any(|folder| root.join(folder).is_dir()) {
        return Err(
            "it has no folders live, archive and renewal; give the folder that is usually /etc/letsencrypt"
                .to_owned(),
        );
    }
    let mut names = BTreeSet::new();
    for file in entries(&root.join("renewal")) {
        if let Some(name) = file_name(&file).strip_suffix(".conf") {
            names.insert(name.to_owned());
        }
    }
    for folder in ["live", "archive"] {
        let folders = entries(&root.join(folder));
        names.extend(
            folders
                .iter()
                .filter(|path| path.is_dir())
                .map(|path| file_name(path)),
        );
    }
    for name in names {
        certificate(reader, root, &name);
    }
    accounts(reader, &root.join("accounts"), "", DEEPEST);
    Ok(())
}

fn certificate(reader: &mut Reader, root: &Path, name: &str) {
    let conf = text_of(&root.join(format!("renewal/{name}.conf")), LONGEST_FILE);
    let directory = conf.ok().and_then(|conf| setting(&conf, "server"));
    let (folder, number) = newest(root, name);
    let part = |part: &str| text_of(&folder.join(format!("{part}{number}.pem")), LONGEST_FILE);
    match (part("fullchain"), part("privkey")) {
        (Ok(chain_pem), Ok(key_pem)) => reader.certificate(Candidate {
            name,
            source: &folder,
            directory,
            chain_pem: &chain_pem,
            key_pem: &key_pem,
        }),
        (Err(why), _) | (_, Err(why)) => {
            reader.skip(&folder, format!("certificate {name}"), why);
        }
    }
}

/// The folder and the number in the file names. The links of `live` are lost where a copy did not keep
/// them; then the files of `archive` with the highest number are what they meant.
fn newest(root: &Path, name: &str) -> (PathBuf, String) {
    let live = root.join("live").join(name);
    let archive = root.join("archive").join(name);
    if live.join("fullchain.pem").exists() || !archive.is_dir() {
        return (live, String::new());
    }
    let numbers = entries(&archive).into_iter().filter_map(|file| {
        let file = file_name(&file);
        file.strip_prefix("fullchain")?
            .strip_suffix(".pem")?
            .parse::<u32>()
            .ok()
    });
    match numbers.max() {
        Some(number) => (archive, number.to_string()),
        None => (live, String::new()),
    }
}

/// The value of `key = value`.
fn setting(conf: &str, key: &str) -> Option<String> {
    conf.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().to_owned())
}

/// Looks for accounts; the folders' names make up the URL of the directory.
fn accounts(reader: &mut Reader, folder: &Path, url: &str, deeper: usize) {
    for path in entries(folder).into_iter().filter(|path| path.is_dir()) {
        if path.join("private_key.json").exists() {
            account(reader, &path, &format!("https://{url}"));
        } else if deeper > 0 {
            let name = file_name(&path);
            let url = if url.is_empty() {
                name
            } else {
                format!("{url}/{name}")
            };
            accounts(reader, &path, &url, deeper - 1);
        }
    }
}

fn account(reader: &mut Reader, folder: &Path, directory: &str) {
    let key_pem =
        json_of(&folder.join("private_key.json")).and_then(|jwk| keys::account_from_jwk(&jwk));
    let key_pem = match key_pem {
        Ok(key_pem) => key_pem,
        Err(why) => {
            reader.skip(folder, format!("account at {directory}"), why);
            return;
        }
    };
    // Without them the account is found again by its key.
    let registration = json_of(&folder.join("regr.json")).unwrap_or_default();
    let meta = json_of(&folder.join("meta.json")).unwrap_or_default();
    reader.account(FoundAccount {
        directory: directory.to_owned(),
        url: registration["uri"].as_str().map(str::to_owned),
        contact: strings(&registration["body"]["contact"]),
        key_pem,
        source: folder.to_owned(),
        created_at: meta["creation_dt"].as_str().and_then(moment::parse_rfc3339),
    });
}
