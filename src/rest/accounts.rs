//! Who may use the API: people with passwords and programs with tokens, from one file.
//!
//! ```yaml
//! users:
//! - name: anna
//!   passwordHash: $argon2id$v=19$m=19456,t=2,p=1$...
//! tokens:
//! - name: ci
//!   hash: sha256:...
//!   scopes: [read, mappings:write]
//!   expires: 2027-01-01T00:00:00Z
//! ```
//!
//! The file holds hashes only, so that it may lie in Git or in a Secret. It is read again when it changes; one that
//! cannot be read leaves the accounts as they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Argon2, PasswordHash};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tidegate_model::Secret;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

/// How often it is looked whether the file changed.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes of the file.
const LARGEST: u64 = 1024 * 1024;
/// What a token begins with, so that scanners of leaked secrets know it.
const TOKEN_PREFIX: &str = "tgp_";
/// Bytes of a password, so that nobody makes us hash megabytes.
pub(super) const LONGEST_PASSWORD: usize = 1024;

/// What an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// See routes, certificates, mappings and agents.
    #[serde(rename = "read")]
    Read,
    /// See who asked for what: the log of requests and of connections.
    #[serde(rename = "logs:read")]
    LogsRead,
    /// Create, change and delete mappings.
    #[serde(rename = "mappings:write")]
    MappingsWrite,
    /// Make agents connect anew.
    #[serde(rename = "agents:write")]
    AgentsWrite,
}

impl Scope {
    /// Every one.
    pub const ALL: [Self; 4] = [
        Self::Read,
        Self::LogsRead,
        Self::MappingsWrite,
        Self::AgentsWrite,
    ];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::LogsRead => "logs:read",
            Self::MappingsWrite => "mappings:write",
            Self::AgentsWrite => "agents:write",
        }
    }

    /// Reads what [`Scope::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// It cannot be read.
    #[error("read the accounts of {path}: {why}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Something in it is wrong.
    #[error("read the accounts of {path}: {field}: {found}; {hint}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Such as `users[0].passwordHash`.
        field: String,
        /// What stands there, never a hash.
        found: String,
        /// How to mend it.
        hint: &'static str,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    users: Vec<UserEntry>,
    #[serde(default)]
    tokens: Vec<TokenEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UserEntry {
    name: String,
    password_hash: String,
    scopes: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenEntry {
    name: String,
    hash: String,
    scopes: Vec<String>,
    expires: Option<String>,
}

/// A person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password_hash: Secret<String>,
    pub(super) scopes: Vec<Scope>,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    name: String,
    hash: Secret<[u8; 32]>,
    scopes: Vec<Scope>,
    expires: Option<SystemTime>,
}

/// Everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    users: Vec<User>,
    tokens: Vec<Token>,
}

impl Known {
    pub(super) fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The name and scopes of the token, if it is known and has not expired.
    pub(super) fn token(&self, token: &str, now: SystemTime) -> Option<(&str, &[Scope])> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        // Every one is looked at, so that the time does not tell which.
        for known in &self.tokens {
            if bool::from(known.hash.expose().ct_eq(&hash)) {
                found = Some(known);
            }
        }
        let found = found.filter(|token| token.expires.is_none_or(|end| now < end))?;
        Some((&found.name, &found.scopes))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, AccountsError> {
        let invalid = |field: String, found: String, hint| AccountsError::Invalid {
            path: path.to_owned(),
            field,
            found,
            hint,
        };
        let file: File = serde_saphyr::from_str(text).map_err(|error| {
            // The first line only: the rest may be a picture of the text, which has hashes.
            let error = error.without_snippet().to_string();
            let first = error.lines().next().unwrap_or_default().to_owned();
            invalid(
                "the file".to_owned(),
                first,
                "write users and tokens as `tidegate account` prints them",
            )
        })?;
        let mut known = Self::default();
        let mut names: Vec<&str> = Vec::new();
        for (index, user) in file.users.iter().enumerate() {
            let at = |member: &str| format!("users[{index}].{member}");
            check_name(&user.name, &names)
                .map_err(|(found, hint)| invalid(at("name"), found, hint))?;
            names.push(&user.name);
            if !user.password_hash.starts_with("$argon2")
                || PasswordHash::new(&user.password_hash).is_err()
            {
                let found = "is no Argon2 hash".to_owned();
                let hint = "`tidegate account password` makes one";
                return Err(invalid(at("passwordHash"), found, hint));
            }
            known.users.push(User {
                name: user.name.clone(),
                password_hash: Secret::new(user.password_hash.clone()),
                scopes: match &user.scopes {
                    Some(scopes) => scopes_of(scopes)
                        .map_err(|(found, hint)| invalid(at("scopes"), found, hint))?,
                    None => Scope::ALL.to_vec(),
                },
            });
        }
        for (index, token) in file.tokens.iter().enumerate() {
            let at = |member: &str| format!("tokens[{index}].{member}");
            check_name(&token.name, &names)
                .map_err(|(found, hint)| invalid(at("name"), found, hint))?;
            names.push(&token.name);
            let hash = hash_of(&token.hash).ok_or_else(|| {
                let found = "is no hash of a token".to_owned();
                invalid(at("hash"), found, "`tidegate account token` makes one")
            })?;
            let expires = match &token.expires {
                None => None,
                Some(text) => Some(OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
                    let found = format!("{text:?} is no time");
                    invalid(
                        at("expires"),
                        found,
                        "write one such as 2027-01-01T00:00:00Z",
                    )
                })?),
            };
            known.tokens.push(Token {
                name: token.name.clone(),
                hash: Secret::new(hash),
                scopes: scopes_of(&token.scopes)
                    .map_err(|(found, hint)| invalid(at("scopes"), found, hint))?,
                expires: expires.map(SystemTime::from),
            });
        }
        Ok(known)
    }
}

type Wrong = (String, &'static str);

fn check_name(name: &str, others: &[&str]) -> Result<(), Wrong> {
    let letters = |c: char| c.is_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(letters) {
        return Err((
            format!("{name:?} is no name"),
            "use 1 to 64 letters, digits and -_.@",
        ));
    }
    if others.contains(&name) {
        return Err((format!("{name:?} is there twice"), "give each its own name"));
    }
    Ok(())
}

fn scopes_of(written: &[String]) -> Result<Vec<Scope>, Wrong> {
    let hint = "scopes are read, logs:read, mappings:write and agents:write";
    let mut scopes = Vec::new();
    for text in written {
        scopes.push(Scope::parse(text).ok_or_else(|| (format!("{text:?} is no scope"), hint))?);
    }
    scopes.sort_unstable();
    scopes.dedup();
    Ok(scopes)
}

fn hash_of(text: &str) -> Option<[u8; 32]> {
    let encoded = text.strip_prefix("sha256:")?;
    URL_SAFE_NO_PAD.decode(encoded).ok()?.try_into().ok()
}

/// A new token and what the file says of it.
pub fn new_token() -> Option<(Secret<String>, String)> {
    let random = super::random::<32>()?;
    let token = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(&token));
    Some((Secret::new(token), format!("sha256:{hash}")))
}

/// What the file says of a password. Slow on purpose.
pub fn hash_password(password: &Secret<String>) -> Option<String> {
    let hash = Argon2::default().hash_password(password.expose().as_bytes());
    hash.ok().map(|hash| hash.to_string())
}

/// Whether it is the password. Slow on purpose.
pub(super) fn is_password(hash: &Secret<String>, password: &Secret<String>) -> bool {
    Argon2::default()
        .verify_password(password.expose().as_bytes(), hash.expose().as_str())
        .is_ok()
}

/// The accounts of a file, kept up to date.
#[derive(Debug)]
pub struct Accounts {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: Arc<Known>,
    /// Modification time and length of what was read, or tried.
    stamp: Option<(SystemTime, u64)>,
    looked: Instant,
}

impl Accounts {
    /// Reads the file, which must be right at the start.
    pub fn open(path: &Path) -> Result<Self, AccountsError> {
        let stamp = stamp(path);
        let known = read(path)?;
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State {
                known: Arc::new(known),
                stamp,
                looked: Instant::now(),
            }),
        })
    }

    /// Who is known at this moment. Reads a small file now and then.
    pub(super) fn now(&self) -> Arc<Known> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let stamp = stamp(&self.path);
            if stamp != state.stamp {
                state.stamp = stamp;
                match read(&self.path) {
                    Ok(known) => {
                        tracing::info!(path = %self.path.display(), "the accounts have changed");
                        state.known = Arc::new(known);
                    }
                    Err(error) => {
                        let error = tidegate_telemetry::chain(&error);
                        tracing::warn!(%error, "the accounts stay as they were");
                    }
                }
            }
        }
        Arc::clone(&state.known)
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<Known, AccountsError> {
    let failed = |why: String| AccountsError::Read {
        path: path.to_owned(),
        why,
    };
    let length = fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if length.len() > LARGEST {
        return Err(failed(format!("it is larger than {LARGEST} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    Known::parse(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Known, String> {
        Known::parse(Path::new("accounts.yaml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn tokens_are_known_by_their_hash_until_they_expire() {
        let (token, hash) = new_token().unwrap();
        let text = format!(
            "tokens:\n- name: ci\n  hash: {hash}\n  scopes: [mappings:write, read, read]\n  expires: 2027-01-01T00:00:00Z\n"
        );
        let known = parse(&text).unwrap();
        let at = |text| SystemTime::from(OffsetDateTime::parse(text, &Rfc3339).unwrap());
        let before = at("2026-12-31T23:59:59Z");
        assert_eq!(
            known.token(token.expose(), before),
            Some(("ci", &[Scope::Read, Scope::MappingsWrite][..]))
        );
        assert_eq!(known.token("tgp_other", before), None);
        assert_eq!(
            known.token(token.expose(), at("2027-01-01T00:00:00Z")),
            None
        );
        assert!(!format!("{known:?}").contains(&hash[10..]));
    }

    #[test]
    fn passwords_are_hashed_and_known() {
        let password = Secret::new("open sesame".to_owned());
        let hash = hash_password(&password).unwrap();
        let known = parse(&format!(
            "users:\n- {{name: anna, passwordHash: \"{hash}\"}}\n"
        ))
        .unwrap();
        let anna = known.user("anna").unwrap();
        assert_eq!(anna.scopes, Scope::ALL);
        assert!(is_password(&anna.password_hash, &password));
        assert!(!is_password(
            &anna.password_hash,
            &Secret::new("open".to_owned())
        ));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field_and_never_with_a_hash() {
        let hash = hash_password(&Secret::new("x".to_owned())).unwrap();
        for (text, expected) in [
            (
                "users:\n- {name: anna, passwordHash: secret123}",
                "users[0].passwordHash: is no Argon2 hash",
            ),
            (
                "users:\n- {name: 'an na', passwordHash: x}",
                "users[0].name: \"an na\" is no name",
            ),
            (
                "tokens:\n- {name: ci, hash: 'sha256:AAAA', scopes: []}",
                "tokens[0].hash: is no hash of a token",
            ),
            (
                "tokens:\n- {name: ci, hash: x, scopes: [all], expires: never}",
                "tokens[0].hash",
            ),
            ("user: []", "the file"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("secret123"), "{error}");
        }
        let user = format!("- {{name: anna, passwordHash: \"{hash}\"");
        let twice = parse(&format!("users:\n{user}}}\n{user}}}\n")).unwrap_err();
        assert!(
            twice.contains("users[1].name: \"anna\" is there twice"),
            "{twice}"
        );
        let scope = parse(&format!("users:\n{user}, scopes: [write]}}\n")).unwrap_err();
        assert!(
            scope.contains("\"write\" is no scope; scopes are read"),
            "{scope}"
        );
    }

    #[test]
    fn a_file_that_breaks_leaves_the_accounts_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accounts.yaml");
        let (token, hash) = new_token().unwrap();
        fs::write(
            &path,
            format!("tokens:\n- {{name: ci, hash: '{hash}', scopes: [read]}}\n"),
        )
        .unwrap();
        let accounts = Accounts::open(&path).unwrap();
        let look_again = || {
            accounts.state.lock().unwrap().looked = Instant::now().checked_sub(LOOK).unwrap();
            accounts
                .now()
                .token(token.expose(), SystemTime::now())
                .is_some()
        };
        assert!(look_again());
        fs::write(&path, "tokens: [broken").unwrap();
        assert!(look_again());
        fs::write(&path, "tokens: []").unwrap();
        assert!(!look_again());
        assert!(Accounts::open(&folder.path().join("missing")).is_err());
    }
}
