//! TLS session tickets: made and opened with the keys of the current snapshot, which other edges have too.
//!
//! ```text
//! ticket = name (16) | nonce (12) | AES-256-GCM-SIV(session), authenticated with the name
//! name, key = HKDF-SHA256(master key, policy)
//! ```
//!
//! A ticket of one policy means nothing to another, because both name and key come from the policy. Edges
//! that share a key cannot agree on nonces, so they are random, and the cipher is the one that forgives two
//! equal ones (RFC 8452). The keys are looked up at each use: a rotation rebuilds no configuration. Without
//! keys in the snapshot, or with none whose time it is, the process makes tickets with keys of its own.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{hkdf, rand};
use rustls::server::ProducesTickets;
use tidegate_model::{
    ClientAuthMode, Fingerprint, SnapshotStore, TicketKey, TicketKeys, TlsVersion,
};

const NAME_LEN: usize = 16;
/// How long clients are told that a ticket is good for, in seconds: as long as a key is accepted at least
/// after it has made its last ticket.
const LIFETIME: u32 = 12 * 60 * 60;
/// Changes whenever what a ticket holds, or how it is made, does.
const CONTEXT: &[u8] = b"tidegate session tickets 1";

/// What keeps the tickets of two policies apart.
pub(crate) fn policy(
    min_version: TlsVersion,
    client_auth: Option<(Fingerprint, ClientAuthMode)>,
) -> Vec<u8> {
    let mut policy = CONTEXT.to_vec();
    policy.push(match min_version {
        TlsVersion::Tls12 => 12,
        TlsVersion::Tls13 => 13,
    });
    // The lengths differ, so that no two policies read the same.
    if let Some((fingerprint, mode)) = client_auth {
        policy.push(match mode {
            ClientAuthMode::Required => 1,
            ClientAuthMode::Optional => 2,
        });
        policy.extend(fingerprint.0);
    }
    policy
}

/// Makes and opens the tickets of one policy.
pub(crate) struct Ticketer {
    store: Arc<SnapshotStore>,
    policy: Vec<u8>,
    /// This process's own.
    own: Arc<dyn ProducesTickets>,
    /// What was derived from the snapshot's keys.
    derived: ArcSwapOption<Derived>,
}

/// Keys of one policy, in the order of the master keys.
struct Derived {
    from: Arc<TicketKeys>,
    keys: Vec<DerivedKey>,
}

struct DerivedKey {
    name: [u8; NAME_LEN],
    key: LessSafeKey,
    expires: SystemTime,
}

impl Ticketer {
    pub(crate) fn new(store: Arc<SnapshotStore>, policy: Vec<u8>) -> Result<Self, rustls::Error> {
        Ok(Self {
            store,
            policy,
            own: rustls::crypto::aws_lc_rs::Ticketer::new()?,
            derived: ArcSwapOption::empty(),
        })
    }

    /// The keys of the current snapshot.
    fn derived(&self) -> Option<Arc<Derived>> {
        let published = self.store.load();
        let known = self.derived.load();
        let Some(keys) = &published.snapshot.ticket_keys else {
            if known.is_some() {
                self.derived.store(None);
            }
            return None;
        };
        if let Some(known) = known.as_ref().filter(|it| Arc::ptr_eq(&it.from, keys)) {
            return Some(Arc::clone(known));
        }
        let derived = Arc::new(Derived {
            from: Arc::clone(keys),
            keys: (keys.all().iter())
                .map(|key| derive(key, &self.policy))
                .collect::<Result<_, _>>()
                .ok()?,
        });
        self.derived.store(Some(Arc::clone(&derived)));
        Some(derived)
    }

    fn encrypt_at(&self, plain: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        if let Some(derived) = self.derived()
            && let Some(current) = derived.from.current(now)
        {
            return seal(derived.keys.get(current)?, plain).ok();
        }
        self.own.encrypt(plain)
    }

    fn decrypt_at(&self, ticket: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        if let Some(derived) = self.derived()
            && let Some((name, rest)) = ticket.split_first_chunk::<NAME_LEN>()
            && let Some(key) = derived.keys.iter().find(|key| key.name == *name)
        {
            if now >= key.expires {
                return None;
            }
            return open(key, rest);
        }
        self.own.decrypt(ticket)
    }
}

fn derive(key: &TicketKey, policy: &[u8]) -> Result<DerivedKey, Unspecified> {
    let master = hkdf::Salt::new(hkdf::HKDF_SHA256, CONTEXT).extract(key.secret.expose());
    let mut name = [0; 32];
    master
        .expand(&[b"name ", policy], hkdf::HKDF_SHA256)?
        .fill(&mut name)?;
    let info = [&b"key "[..], policy];
    let key_bytes = master.expand(&info, &AES_256_GCM_SIV)?;
    let (name, _) = name.split_first_chunk().ok_or(Unspecified)?;
    Ok(DerivedKey {
        name: *name,
        key: LessSafeKey::new(UnboundKey::from(key_bytes)),
        expires: key.expires,
    })
}

fn seal(key: &DerivedKey, plain: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce)?;
    let mut sealed = plain.to_vec();
    key.key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(key.name),
        &mut sealed,
    )?;
    Ok([&key.name[..], &nonce, &sealed].concat())
}

/// None for whatever this key has not sealed.
fn open(key: &DerivedKey, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_first_chunk()?;
    let mut sealed = sealed.to_vec();
    let plain = key
        .key
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(key.name),
            &mut sealed,
        )
        .ok()?
        .len();
    sealed.truncate(plain);
    Some(sealed)
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(plain, SystemTime::now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(cipher, SystemTime::now())
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_model::{Secret, Snapshot};

    use super::*;

    const SESSION: &[u8] = b"a session";
    const REQUIRED: Option<(Fingerprint, ClientAuthMode)> =
        Some((Fingerprint([7; 32]), ClientAuthMode::Required));

    fn at(hours: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(hours)
    }

    fn keys(keys: &[(u8, u64)]) -> Snapshot {
        let key = |(secret, from): &(u8, u64)| TicketKey {
            secret: Secret::new([*secret; 32]),
            encrypts_from: at(*from),
            expires: at(*from + 24),
        };
        Snapshot {
            ticket_keys: Some(Arc::new(TicketKeys::new(keys.iter().map(key).collect()))),
            ..Snapshot::default()
        }
    }

    fn ticketer(
        snapshot: Snapshot,
        client_auth: Option<(Fingerprint, ClientAuthMode)>,
    ) -> (Ticketer, Arc<SnapshotStore>) {
        let store = Arc::new(SnapshotStore::new());
        store.publish(snapshot);
        let policy = policy(TlsVersion::Tls12, client_auth);
        (Ticketer::new(Arc::clone(&store), policy).unwrap(), store)
    }

    #[test]
    fn who_has_the_key_opens_the_ticket_and_no_two_are_equal() {
        let (one, _) = ticketer(keys(&[(1, 100)]), None);
        let (two, _) = ticketer(keys(&[(2, 112), (1, 100)]), None);
        let now = at(101);
        let first = one.encrypt_at(SESSION, now).unwrap();
        let second = one.encrypt_at(SESSION, now).unwrap();
        assert_ne!(first, second);
        for ticket in [first, second] {
            assert_eq!(two.decrypt_at(&ticket, now).as_deref(), Some(SESSION));
        }
        let empty = one.encrypt_at(b"", now).unwrap();
        assert_eq!(two.decrypt_at(&empty, now).as_deref(), Some(&b""[..]));
        let (stranger, _) = ticketer(keys(&[(3, 100)]), None);
        let ticket = one.encrypt_at(SESSION, now).unwrap();
        assert_eq!(stranger.decrypt_at(&ticket, now), None);
    }

    #[test]
    fn a_ticket_of_another_policy_is_no_ticket() {
        let other_ca = Some((Fingerprint([8; 32]), ClientAuthMode::Required));
        let optional = Some((Fingerprint([7; 32]), ClientAuthMode::Optional));
        let now = at(101);
        let policies = [None, REQUIRED, optional, other_ca];
        for made_by in policies {
            let (maker, _) = ticketer(keys(&[(1, 100)]), made_by);
            let ticket = maker.encrypt_at(SESSION, now).unwrap();
            for read_by in policies {
                let (reader, _) = ticketer(keys(&[(1, 100)]), read_by);
                let read = reader.decrypt_at(&ticket, now);
                assert_eq!(
                    read.is_some(),
                    made_by == read_by,
                    "{made_by:?} {read_by:?}"
                );
                // Not even under the right name.
                let mut renamed = ticket.clone();
                let own = reader.encrypt_at(SESSION, now).unwrap();
                renamed[..NAME_LEN].copy_from_slice(&own[..NAME_LEN]);
                let read = reader.decrypt_at(&renamed, now);
                assert_eq!(
                    read.is_some(),
                    made_by == read_by,
                    "{made_by:?} {read_by:?}"
                );
            }
        }
        let newer = policy(TlsVersion::Tls13, None);
        assert_ne!(newer, policy(TlsVersion::Tls12, None));
    }

    #[test]
    fn keys_change_with_the_snapshot_and_with_time() {
        let (ticketer, store) = ticketer(keys(&[(2, 112), (1, 100)]), None);
        let early = ticketer.encrypt_at(SESSION, at(111)).unwrap();
        let late = ticketer.encrypt_at(SESSION, at(112)).unwrap();
        assert_ne!(early[..NAME_LEN], late[..NAME_LEN]);
        for (ticket, now, good) in [
            (&early, 123, true),
            (&early, 124, false),
            // Another edge's clock is ahead.
            (&late, 111, true),
            (&late, 135, true),
            (&late, 136, false),
        ] {
            let read = ticketer.decrypt_at(ticket, at(now));
            assert_eq!(read.is_some(), good, "{now}");
        }
        store.publish(keys(&[(3, 124), (2, 112)]));
        assert_eq!(ticketer.decrypt_at(&early, at(113)), None, "it is erased");
        assert!(ticketer.decrypt_at(&late, at(125)).is_some());
    }

    #[test]
    fn without_a_key_for_this_moment_the_process_has_its_own() {
        let (ticketer, store) = ticketer(Snapshot::default(), None);
        let own = ticketer.encrypt_at(SESSION, at(1)).unwrap();
        assert_eq!(ticketer.decrypt_at(&own, at(1)).as_deref(), Some(SESSION));
        store.publish(keys(&[(1, 100)]));
        let before = ticketer.encrypt_at(SESSION, at(99)).unwrap();
        let shared = ticketer.encrypt_at(SESSION, at(100)).unwrap();
        let after = ticketer.encrypt_at(SESSION, at(124)).unwrap();
        for ticket in [&own, &before, &shared, &after] {
            let read = ticketer.decrypt_at(ticket, at(123));
            assert_eq!(
                read.as_deref(),
                Some(SESSION),
                "what was made before is good"
            );
        }
        store.publish(Snapshot::default());
        assert_eq!(ticketer.decrypt_at(&shared, at(123)), None);
        assert!(ticketer.derived.load().is_none(), "nothing of it is kept");
        assert!(ticketer.decrypt_at(&own, at(123)).is_some());
    }

    #[test]
    fn no_bit_can_be_changed_and_garbage_is_refused() {
        let (ticketer, _) = ticketer(keys(&[(1, 100)]), REQUIRED);
        let now = at(101);
        let ticket = ticketer.encrypt_at(SESSION, now).unwrap();
        for at in 0..ticket.len() * 8 {
            let mut changed = ticket.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert_eq!(ticketer.decrypt_at(&changed, now), None, "bit {at}");
        }
        for length in 0..ticket.len() {
            assert_eq!(ticketer.decrypt_at(&ticket[..length], now), None);
        }
        let longer = [&ticket[..], b"x"].concat();
        assert_eq!(ticketer.decrypt_at(&longer, now), None);
        assert_eq!(ticketer.decrypt_at(&vec![0; 70_000], now), None);
        let shown = format!("{ticketer:?} {:?}", keys(&[(1, 100)]).ticket_keys);
        assert!(
            !shown.contains("1, 1") && shown.contains("[redacted]"),
            "{shown}"
        );
    }
}
