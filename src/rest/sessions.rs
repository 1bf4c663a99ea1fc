//! Sessions of people in browsers: an opaque identity in a cookie, of which only a hash is kept, in memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tidegate_model::Secret;

use super::accounts::User;

/// A session ends after this, whatever happens.
pub(super) const LONGEST: Duration = Duration::from_hours(12);
/// A session that nobody uses ends after this.
const IDLE: Duration = Duration::from_hours(2);
/// Sessions at one time; the one that was unused for longest makes room.
const MOST: usize = 256;

type Id = [u8; 32];

#[derive(Debug)]
struct Session {
    user: User,
    csrf: Secret<String>,
    began: Instant,
    used: Instant,
}

/// What a new session is known by.
#[derive(Debug)]
pub(super) struct Begun {
    /// Content of the cookie.
    pub(super) cookie: Secret<String>,
    /// What requests that change something must carry besides.
    pub(super) csrf: Secret<String>,
}

/// Every session.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Id, Session>>);

impl Sessions {
    /// Begins one. None where the system has no random numbers.
    pub(super) fn begin(&self, user: &User, now: Instant) -> Option<Begun> {
        let cookie = URL_SAFE_NO_PAD.encode(super::random::<32>()?);
        let csrf = URL_SAFE_NO_PAD.encode(super::random::<32>()?);
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.is_alive(now));
        if sessions.len() >= MOST {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.used);
            if let Some(id) = oldest.map(|(id, _)| *id) {
                sessions.remove(&id);
            }
        }
        let session = Session {
            user: user.clone(),
            csrf: Secret::new(csrf.clone()),
            began: now,
            used: now,
        };
        sessions.insert(Sha256::digest(&cookie).into(), session);
        Some(Begun {
            cookie: Secret::new(cookie),
            csrf: Secret::new(csrf),
        })
    }

    /// Who has the cookie, and what must come along with changes. A user whose account has changed since is nobody.
    pub(super) fn find<'a>(
        &self,
        cookie: &str,
        now: Instant,
        known: impl Fn(&str) -> Option<&'a User>,
    ) -> Option<(User, Secret<String>)> {
        let id: Id = Sha256::digest(cookie).into();
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get_mut(&id)?;
        let same = known(&session.user.name) == Some(&session.user);
        if !same || !session.is_alive(now) {
            sessions.remove(&id);
            return None;
        }
        session.used = now;
        Some((session.user.clone(), session.csrf.clone()))
    }

    /// Ends one.
    pub(super) fn end(&self, cookie: &str) {
        let id: Id = Sha256::digest(cookie).into();
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&id);
    }
}

impl Session {
    fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) < LONGEST
            && now.saturating_duration_since(self.used) < IDLE
    }
}

/// Whether the two are the same, in a time that tells nothing.
pub(super) fn is_same(expected: &Secret<String>, given: &str) -> bool {
    bool::from(expected.expose().as_bytes().ct_eq(given.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::accounts::Scope;

    fn user(name: &str) -> User {
        User {
            name: name.to_owned(),
            password_hash: Secret::new("x".to_owned()),
            scopes: vec![Scope::Read],
        }
    }

    #[test]
    fn a_session_ends_by_time_by_log_out_and_with_its_account() {
        let start = Instant::now();
        let sessions = Sessions::default();
        let anna = user("anna");
        let other = User {
            password_hash: Secret::new("changed".to_owned()),
            ..anna.clone()
        };
        let begin = || sessions.begin(&anna, start).unwrap().cookie;
        let find = |cookie: &Secret<String>, now| {
            sessions
                .find(cookie.expose(), now, |_| Some(&anna))
                .is_some()
        };
        let cookie = begin();
        assert!(find(&cookie, start + Duration::from_mins(119)));
        assert!(find(&cookie, start + IDLE));
        assert!(!find(&cookie, start + IDLE * 3));
        let cookie = begin();
        for hours in 1..12 {
            assert!(find(&cookie, start + Duration::from_hours(hours)));
        }
        assert!(!find(&cookie, start + LONGEST));
        let cookie = begin();
        sessions.end(cookie.expose());
        assert!(!find(&cookie, start));
        let cookie = begin();
        assert!(
            sessions
                .find(cookie.expose(), start, |_| Some(&other))
                .is_none()
        );
        assert!(!find(&cookie, start));
        assert!(!find(&Secret::new("guess".to_owned()), start));
    }

    #[test]
    fn sessions_are_bounded() {
        let start = Instant::now();
        let sessions = Sessions::default();
        let anna = user("anna");
        let first = sessions.begin(&anna, start).unwrap().cookie;
        for _ in 0..MOST {
            sessions
                .begin(&anna, start + Duration::from_secs(1))
                .unwrap();
        }
        assert_eq!(sessions.0.lock().unwrap().len(), MOST);
        assert!(
            sessions
                .find(first.expose(), start, |_| Some(&anna))
                .is_none()
        );
    }
}
