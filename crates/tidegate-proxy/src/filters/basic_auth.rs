//! Name and password (RFC 7617), checked against the hashes of an htpasswd file.
//!
//! Hashes are slow on purpose, so they are computed on blocking threads, few at a time, and a good
//! credential is remembered for a while as a salted digest. An unknown name costs as much as a known one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::{Argon2, PasswordVerifier};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tidegate_model::BasicAuth;
use tokio::sync::Semaphore;

/// How long a good credential is not checked again.
const REMEMBERED: Duration = Duration::from_mins(5);
const REMEMBERED_AT_MOST: usize = 1024;
/// Hashes computed at once, and requests that may wait for one.
const AT_ONCE: usize = 2;
const WAITING_AT_MOST: usize = 64;

/// Why a request may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No credential, a malformed or a wrong one; 401 with [`challenge`].
    Unauthorized,
    /// More credentials to check than the machine can; 503.
    Busy,
}

/// Checks credentials. One for all workers.
#[derive(Debug)]
pub(crate) struct Authenticator {
    /// Makes the remembered digests useless to whoever may read them.
    salt: [u8; 32],
    /// Digest of a good credential and when it is forgotten.
    remembered: Mutex<HashMap<[u8; 32], Instant>>,
    working: Arc<Semaphore>,
    waiting: Semaphore,
}

// === impl Authenticator ===

impl Authenticator {
    /// Remembers nothing yet. `salt` must be random.
    pub(crate) fn new(salt: [u8; 32]) -> Self {
        Self {
            salt,
            remembered: Mutex::default(),
            working: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Semaphore::new(WAITING_AT_MOST),
        }
    }

    /// Returns the user's name as a header value if the request carries a good credential.
    pub(crate) async fn check(
        &self,
        auth: &BasicAuth,
        headers: &HeaderMap,
    ) -> Result<HeaderValue, Denied> {
        let (user, password) = credential(headers).ok_or(Denied::Unauthorized)?;
        let name = HeaderValue::from_bytes(user.as_bytes()).map_err(|_| Denied::Unauthorized)?;
        let stored = stored_hash(auth, &user);
        // Somebody else's hash for a name nobody has: same time, and never good.
        let (known, hash) = match (stored, auth.users.first()) {
            (Some(hash), _) => (true, hash),
            (None, Some((_, hash))) => (false, hash.expose().as_str()),
            (None, None) => return Err(Denied::Unauthorized),
        };
        let digest = self.digest(hash, &user, &password);
        if known && self.is_remembered(&digest) {
            return Ok(name);
        }
        let _place = self.waiting.try_acquire().map_err(|_| Denied::Busy)?;
        let working = Arc::clone(&self.working);
        let permit = working.acquire_owned().await.map_err(|_| Denied::Busy)?;
        let hash = hash.to_owned();
        // The permit goes along: a client that hangs up does not make room for more work.
        let checked = tokio::task::spawn_blocking(move || {
            let good = verify(&hash, &password);
            drop(permit);
            good
        });
        if checked.await.unwrap_or(false) && known {
            self.remember(digest);
            Ok(name)
        } else {
            Err(Denied::Unauthorized)
        }
    }

    fn digest(&self, hash: &str, user: &str, password: &str) -> [u8; 32] {
        let mut digest = Sha256::new_with_prefix(self.salt);
        for part in [hash, user, password] {
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    fn is_remembered(&self, digest: &[u8; 32]) -> bool {
        let remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        remembered
            .get(digest)
            .is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, digest: [u8; 32]) {
        let now = Instant::now();
        let mut remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_AT_MOST {
            remembered.retain(|_, until| now < *until);
        }
        if remembered.len() >= REMEMBERED_AT_MOST {
            remembered.clear();
        }
        remembered.insert(digest, now + REMEMBERED);
    }
}

/// Looks at every name, so that the time does not tell which one it was.
fn stored_hash<'a>(auth: &'a BasicAuth, user: &str) -> Option<&'a str> {
    let mut found = None;
    for (name, hash) in &auth.users {
        if bool::from(name.as_bytes().ct_eq(user.as_bytes())) && found.is_none() {
            found = Some(hash.expose().as_str());
        }
    }
    found
}

fn verify(hash: &str, password: &str) -> bool {
    if hash.starts_with("$argon2") {
        Argon2::default()
            .verify_password(password.as_bytes(), hash)
            .is_ok()
    } else {
        bcrypt::verify(password, hash).unwrap_or(false)
    }
}

/// Name and password of the Authorization field. The name has no colon, the password may.
fn credential(headers: &HeaderMap) -> Option<(String, String)> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (fields.next(), fields.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(token.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Value of WWW-Authenticate.
pub(crate) fn challenge(auth: &BasicAuth) -> HeaderValue {
    let realm: String = auth
        .realm
        .chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| {
            let escape = matches!(c, '"' | '\\').then_some('\\');
            escape.into_iter().chain([c])
        })
        .collect();
    HeaderValue::try_from(format!("Basic realm=\"{realm}\", charset=\"UTF-8\""))
        .unwrap_or_else(|_| HeaderValue::from_static("Basic realm=\"restricted\""))
}

#[cfg(test)]
mod tests {
    use tidegate_model::Secret;

    use super::*;

    fn auth() -> BasicAuth {
        let hash = |password: &str| Secret::new(bcrypt::hash(password, 4).unwrap());
        // `secret` with the lowest cost that argon2 allows.
        let argon = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$";
        BasicAuth {
            realm: "a \"b\" \\ c".to_owned(),
            users: vec![
                ("anna".to_owned(), hash("open:sesame")),
                ("jörg".to_owned(), hash("pässword")),
                ("broken".to_owned(), Secret::new(argon.to_owned())),
                ("plain".to_owned(), Secret::new("secret".to_owned())),
            ],
            user_header: None,
        }
    }

    fn asking(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        headers
    }

    fn basic(credential: &str) -> HeaderMap {
        asking(&format!("Basic {}", STANDARD.encode(credential)))
    }

    #[tokio::test]
    async fn only_good_credentials_pass() {
        let (auth, authenticator) = (auth(), Authenticator::new([7; 32]));
        for round in 0..2 {
            for good in ["anna:open:sesame", "jörg:pässword"] {
                let user = authenticator.check(&auth, &basic(good)).await.unwrap();
                let expected = good.split(':').next().unwrap();
                assert_eq!(user.as_bytes(), expected.as_bytes(), "round {round}");
            }
        }
        assert_eq!(authenticator.remembered.lock().unwrap().len(), 2);
        for bad in [
            "anna:wrong",
            "anna:",
            "anna",
            "jörg:open:sesame",
            "nobody:open:sesame",
            ":",
            "",
            "broken:",
            "broken:secret",
            "plain:secret",
            "anna\n:open:sesame",
        ] {
            let found = authenticator.check(&auth, &basic(bad)).await;
            assert_eq!(found, Err(Denied::Unauthorized), "{bad}");
        }
        let good = STANDARD.encode("anna:open:sesame");
        for bad in [
            format!("Bearer {good}"),
            "Basic".to_owned(),
            "Basic !".to_owned(),
        ] {
            assert!(
                authenticator.check(&auth, &asking(&bad)).await.is_err(),
                "{bad}"
            );
        }
        assert!(authenticator.check(&auth, &HeaderMap::new()).await.is_err());
        let mut two = basic("anna:open:sesame");
        two.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert!(authenticator.check(&auth, &two).await.is_err());
        let mut scheme = asking(&format!("bAsIc {good}"));
        assert!(authenticator.check(&auth, &scheme).await.is_ok());
        scheme.clear();
        assert_eq!(authenticator.remembered.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_changed_hash_forgets_the_old_password() {
        let (mut auth, authenticator) = (auth(), Authenticator::new([7; 32]));
        let request = basic("anna:open:sesame");
        assert!(authenticator.check(&auth, &request).await.is_ok());
        auth.users[0].1 = Secret::new(bcrypt::hash("new", 4).unwrap());
        assert!(authenticator.check(&auth, &request).await.is_err());
    }

    #[test]
    fn the_memory_is_bounded() {
        let authenticator = Authenticator::new([7; 32]);
        for i in 0..5000_u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&i.to_be_bytes());
            authenticator.remember(digest);
        }
        assert!(authenticator.remembered.lock().unwrap().len() <= REMEMBERED_AT_MOST);
    }

    #[test]
    fn argon2_hashes_are_understood() {
        use argon2::PasswordHasher;
        let params = argon2::Params::new(8, 1, 1, None).unwrap();
        let weak = Argon2::from(params);
        let hash = weak
            .hash_password_with_salt(b"secret", b"somesalt")
            .unwrap()
            .to_string();
        assert!(hash.starts_with("$argon2id$"));
        assert!(verify(&hash, "secret"));
        assert!(!verify(&hash, "Secret"));
    }

    #[test]
    fn the_challenge_quotes_the_realm() {
        assert_eq!(
            challenge(&auth()),
            "Basic realm=\"a \\\"b\\\" \\\\ c\", charset=\"UTF-8\""
        );
    }
}
