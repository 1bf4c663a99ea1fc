//! Taking over certificates and accounts of certbot, Caddy and Traefik.
//!
//! ```text
//! their files ─► found: certificates, accounts, and what cannot be used and why ─► placed in our store
//! ```
//!
//! Their files are only read. A store that is broken in places gives what is whole; everything else is
//! named with its reason. Nothing is ordered: a certificate that was taken over is renewed when it is due.

mod caddy;
mod certbot;
mod keys;
mod place;
mod traefik;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tidegate_model::Secret;

pub use place::{Target, TargetRoute, place};
pub(crate) use place::{is_waiting, taken, waiting};

use crate::issued::inspect;
use crate::plan::moment;
use crate::record::Issued;

/// A file longer than this is no key and no certificate chain.
const LONGEST_FILE: u64 = 1024 * 1024;

/// Whose files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// certbot: `/etc/letsencrypt`.
    Certbot,
    /// Caddy: the folder `caddy` in `$XDG_DATA_HOME`, or `/var/lib/caddy/.local/share/caddy`.
    Caddy,
    /// Traefik: the file `acme.json`.
    Traefik,
}

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Something else is there.
    #[error("find {program}'s files in {path:?}: {why}")]
    Foreign {
        /// Of which program.
        program: &'static str,
        /// Where.
        path: PathBuf,
        /// What is missing, and what should be given.
        why: String,
    },
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Certificates that can be served.
    pub certificates: Vec<FoundCertificate>,
    /// Accounts that can be used.
    pub accounts: Vec<FoundAccount>,
    /// Everything else.
    pub skipped: Vec<Skipped>,
}

/// A certificate of another program.
#[derive(Debug, Clone)]
pub struct FoundCertificate {
    /// What the program calls it.
    pub name: String,
    /// Where it was read.
    pub source: PathBuf,
    /// The directory that it was ordered at, if that is known.
    pub directory: Option<String>,
    /// The certificate, with its key in PKCS#8.
    pub issued: Issued,
}

/// An account of another program.
#[derive(Debug, Clone)]
pub struct FoundAccount {
    /// Its directory.
    pub directory: String,
    /// URL of the account.
    pub url: Option<String>,
    /// `mailto:` URLs.
    pub contact: Vec<String>,
    /// Its key, PKCS#8 PEM; P-256.
    pub key_pem: Secret<String>,
    /// Where it was read.
    pub source: PathBuf,
    /// When it was made, if that is known.
    pub created_at: Option<SystemTime>,
}

/// Something that is not taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is.
    pub source: PathBuf,
    /// What it is, such as `certificate blog.example.com`.
    pub what: String,
    /// Why not, in a fragment.
    pub why: String,
}

impl Program {
    /// How it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Certbot => "certbot",
            Self::Caddy => "Caddy",
            Self::Traefik => "Traefik",
        }
    }

    /// Reads everything below this path, which is a folder, or Traefik's file.
    pub fn read(self, path: &Path, now: SystemTime) -> Result<Found, ImportError> {
        let mut reader = Reader {
            found: Found::default(),
            now,
        };
        let read = match self {
            Self::Certbot => certbot::read(&mut reader, path),
            Self::Caddy => caddy::read(&mut reader, path),
            Self::Traefik => traefik::read(&mut reader, path),
        };
        read.map_err(|why| ImportError::Foreign {
            program: self.name(),
            path: path.to_owned(),
            why,
        })?;
        Ok(reader.found)
    }
}

/// Collects what is found.
struct Reader {
    found: Found,
    now: SystemTime,
}

/// The parts of a certificate before they are looked at.
struct Candidate<'a> {
    name: &'a str,
    source: &'a Path,
    directory: Option<String>,
    chain_pem: &'a str,
    key_pem: &'a str,
}

impl Reader {
    /// Takes a certificate that is whole and still valid.
    fn certificate(&mut self, candidate: Candidate<'_>) {
        let issued = keys::pkcs8(candidate.key_pem)
            .and_then(|key_pem| inspect(candidate.chain_pem, &key_pem));
        let why = match issued {
            Err(why) => why,
            Ok(issued) if issued.names.is_empty() => "it has no names".to_owned(),
            Ok(issued) if issued.not_after <= self.now => {
                format!("it expired on {}", moment::stamp(issued.not_after))
            }
            Ok(_) if candidate.directory.as_deref().is_some_and(is_staging) => {
                "it comes from a staging directory, which nobody trusts".to_owned()
            }
            Ok(issued) => {
                self.found.certificates.push(FoundCertificate {
                    name: candidate.name.to_owned(),
                    source: candidate.source.to_owned(),
                    directory: candidate.directory,
                    issued,
                });
                return;
            }
        };
        let what = format!("certificate {}", candidate.name);
        self.skip(candidate.source, what, why);
    }

    fn account(&mut self, account: FoundAccount) {
        self.found.accounts.push(account);
    }

    fn skip(&mut self, source: &Path, what: impl Into<String>, why: impl Into<String>) {
        self.found.skipped.push(Skipped {
            source: source.to_owned(),
            what: what.into(),
            why: why.into(),
        });
    }
}

/// Let's Encrypt's and most others' staging directories say so in their URL.
fn is_staging(directory: &str) -> bool {
    directory.contains("staging")
}

/// The text of a file; in words, why not.
fn text_of(path: &Path, longest: u64) -> Result<String, String> {
    let read = || -> std::io::Result<Option<String>> {
        let mut text = String::new();
        let length = std::fs::File::open(path)?
            .take(longest + 1)
            .read_to_string(&mut text)?;
        Ok(Some(text).filter(|_| length as u64 <= longest))
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match read() {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(format!("{name} is longer than {longest} bytes")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("{name} is missing"))
        }
        Err(error) => Err(format!("{name} cannot be read: {error}")),
    }
}

/// The JSON of a file. Says nothing of its text, which may be a key.
fn json_of(path: &Path) -> Result<serde_json::Value, String> {
    let text = text_of(path, LONGEST_FILE)?;
    serde_json::from_str(&text).map_err(|error| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!(
            "{name} is no JSON at line {}, column {}",
            error.line(),
            error.column()
        )
    })
}

/// The entries of a folder, sorted; none when it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    entries
}

/// The last part of a path as text.
fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The strings of a JSON array.
fn strings(value: &serde_json::Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// Directories by the host of the URLs that they hand out.
const WELL_KNOWN: &[&str] = &[
    "https://acme-v02.api.letsencrypt.org/directory",
    "https://acme-staging-v02.api.letsencrypt.org/directory",
    "https://acme.zerossl.com/v2/DV90",
    "https://dv.acme-v02.api.pki.goog/directory",
    "https://dv.acme-v02.test-api.pki.goog/directory",
    "https://api.buypass.com/acme/directory",
    "https://acme.ssl.com/sslcom-dv-ecc",
    "https://acme.ssl.com/sslcom-dv-rsa",
];

/// The well-known directory that an URL of an account belongs to, if only one can be meant.
fn directory_of(account_url: &str) -> Option<String> {
    let host = |url: &str| {
        let rest = url.strip_prefix("https://")?;
        Some(rest.split('/').next().unwrap_or(rest).to_owned())
    };
    let wanted = host(account_url)?;
    let mut known = WELL_KNOWN
        .iter()
        .filter(|directory| host(directory).as_ref() == Some(&wanted));
    known
        .next()
        .filter(|_| known.next().is_none())
        .map(|directory| (*directory).to_owned())
}

#[cfg(test)]
mod tests;
