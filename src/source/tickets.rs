//! When keys of TLS session tickets are made and when they die; and the document they are kept as.
//!
//! ```text
//!              │◄─ made ahead ─►│◄─ makes tickets ─►│◄─ opens them ─►│ gone
//! key n                         0 h                 12 h             24 h
//! key n+1                       made                0 h              12 h
//! ```
//!
//! A key is made one period before it makes its first ticket, so that every edge that shares it knows it by
//! then; the first of all has nobody to wait for. Pure: time and randomness are given.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use tidegate_acme::plan::moment;
use tidegate_model::{Secret, TicketKey, TicketKeys};

use super::state::StateFolder;

/// How long a key makes tickets, and then how long it opens them still.
pub const PERIOD: Duration = Duration::from_hours(12);
/// Time in which a new key reaches every edge.
const LEAD: Duration = Duration::from_mins(5);
/// A key from further ahead was made by a clock that was wrong.
const FURTHEST: Duration = Duration::from_hours(24);
/// File in the state folder.
const FILE: &str = "tickets.json";
/// Version of the document.
const VERSION: u32 = 1;

/// The keys after what is due at this moment; None when nothing is. `random` makes secrets.
pub fn rotate(
    keys: &TicketKeys,
    now: SystemTime,
    mut random: impl FnMut() -> [u8; 32],
) -> Option<TicketKeys> {
    // As the document has it.
    let now = moment::truncated(now);
    let mut kept: Vec<TicketKey> = (keys.all().iter())
        .filter(|key| now < key.expires && key.encrypts_from <= now + FURTHEST)
        .cloned()
        .collect();
    let mut make = |from| TicketKey {
        secret: Secret::new(random()),
        encrypts_from: from,
        expires: from + 2 * PERIOD,
    };
    if kept.is_empty() {
        kept.push(make(now));
    }
    let newest = kept.iter().map(|key| key.encrypts_from).max()?;
    if newest <= now {
        kept.push(make((newest + PERIOD).max(now + LEAD)));
    }
    let rotated = TicketKeys::new(kept);
    (rotated != *keys).then_some(rotated)
}

/// When [`rotate`] is due next, for keys that it has returned.
pub fn next_rotation(keys: &TicketKeys) -> Option<SystemTime> {
    let expires = keys.all().iter().map(|key| key.expires);
    let newest = keys.all().iter().map(|key| key.encrypts_from).max();
    expires.chain(newest).min()
}

/// 32 bytes nobody can guess; None when the system has none to give.
pub fn random() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut bytes).ok()?;
    Some(bytes)
}

/// The same for [`rotate`] with the system's randomness; None also when that fails.
pub fn rotate_now(keys: &TicketKeys, now: SystemTime) -> Option<TicketKeys> {
    let mut failed = false;
    let rotated = rotate(keys, now, || {
        random().unwrap_or_else(|| {
            failed = true;
            [0; 32]
        })
    });
    rotated.filter(|_| !failed)
}

/// The document.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    version: u32,
    keys: Vec<KeyDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyDocument {
    /// Base64.
    secret: String,
    #[serde(with = "moment::rfc3339")]
    encrypts_from: SystemTime,
    #[serde(with = "moment::rfc3339")]
    expires: SystemTime,
}

/// Writes the document.
pub fn to_document(keys: &TicketKeys) -> Secret<Vec<u8>> {
    let keys = keys.all().iter().map(|key| KeyDocument {
        secret: BASE64_STANDARD.encode(key.secret.expose()),
        encrypts_from: key.encrypts_from,
        expires: key.expires,
    });
    let document = Document {
        version: VERSION,
        keys: keys.collect(),
    };
    // Texts, numbers and times of this era can always be written.
    Secret::new(serde_json::to_vec_pretty(&document).unwrap_or_default())
}

/// Reads the document; None when it is not one. A later version's keys are not ours to use.
pub fn of_document(content: &Secret<Vec<u8>>) -> Option<TicketKeys> {
    let document: Document = serde_json::from_slice(content.expose()).ok()?;
    if document.version != VERSION {
        return None;
    }
    let keys = document.keys.iter().map(|key| {
        let secret = BASE64_STANDARD.decode(&key.secret).ok()?;
        Some(TicketKey {
            secret: Secret::new(secret.try_into().ok()?),
            encrypts_from: key.encrypts_from,
            expires: key.expires,
        })
    });
    Some(TicketKeys::new(keys.collect::<Option<_>>()?))
}

/// The keys of an edge that shares them with nobody but the process that follows it: a restart or an upgrade
/// must not make every client start anew.
#[derive(Debug)]
pub struct KeptKeys {
    state: Arc<StateFolder>,
    keys: Arc<TicketKeys>,
}

impl KeptKeys {
    /// Keys of this state folder.
    pub fn new(state: Arc<StateFolder>) -> Self {
        let content = state.read(FILE).ok().flatten().unwrap_or_default();
        let keys = of_document(&Secret::new(content.into_bytes())).unwrap_or_default();
        Self {
            state,
            keys: Arc::new(keys),
        }
    }

    /// The keys of this moment, and when to ask again. Those that cannot be kept are used all the same.
    pub fn at(&mut self, now: SystemTime) -> (Arc<TicketKeys>, Option<SystemTime>) {
        if let Some(rotated) = rotate_now(&self.keys, now) {
            let document = to_document(&rotated);
            let text = String::from_utf8_lossy(document.expose());
            if let Err(error) = self.state.write_unsynced(FILE, &text) {
                tracing::warn!(error = %tidegate_telemetry::chain(&error), "cannot keep the keys of session tickets; after a restart, clients begin new sessions");
            }
            self.keys = Arc::new(rotated);
        }
        (Arc::clone(&self.keys), next_rotation(&self.keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> SystemTime {
        // Noon of a day, in whole seconds as the document has them.
        SystemTime::UNIX_EPOCH
            + Duration::from_hours(20_000 * 24 + 12)
            + Duration::from_mins(minutes)
    }

    fn hours(hours: u64) -> SystemTime {
        at(hours * 60)
    }

    /// Secret, and when it begins to make tickets.
    type Keys<'a> = &'a [(u8, SystemTime)];

    fn keys(from: Keys<'_>) -> TicketKeys {
        let key = |(secret, from): &(u8, SystemTime)| TicketKey {
            secret: Secret::new([*secret; 32]),
            encrypts_from: *from,
            expires: *from + 2 * PERIOD,
        };
        TicketKeys::new(from.iter().map(key).collect())
    }

    /// Rotates with secrets 100, 101, …
    fn rotated(keys: &TicketKeys, now: SystemTime) -> Option<TicketKeys> {
        let mut next = 99;
        rotate(keys, now, || {
            next += 1;
            [next; 32]
        })
    }

    #[test]
    fn what_is_due_is_done_and_nothing_else() {
        let steady = [(2, hours(24)), (1, hours(12))];
        let cases: [(&str, Keys<'_>, SystemTime, Option<Keys<'_>>); 9] = [
            (
                "start",
                &[],
                hours(0),
                Some(&[(101, hours(12)), (100, hours(0))]),
            ),
            ("steady", &steady, at(24 * 60 - 1), None),
            (
                "the next key's time has come",
                &steady,
                hours(24),
                Some(&[(100, hours(36)), (2, hours(24)), (1, hours(12))]),
            ),
            (
                "an old key dies",
                &[(3, hours(36)), (2, hours(24)), (1, hours(12))],
                hours(36),
                Some(&[(100, hours(48)), (3, hours(36)), (2, hours(24))]),
            ),
            (
                "nobody led for a while: the next key is late, and everybody gets time to learn it",
                &steady,
                hours(40),
                Some(&[(100, at(40 * 60 + 5)), (2, hours(24))]),
            ),
            (
                "nobody led for days",
                &steady,
                hours(100),
                Some(&[(101, hours(112)), (100, hours(100))]),
            ),
            ("the clock went back a little", &steady, hours(11), None),
            (
                "the clock was a year ahead",
                &[(2, hours(9_012)), (1, hours(9_000))],
                hours(0),
                Some(&[(101, hours(12)), (100, hours(0))]),
            ),
            (
                "the clock was ahead, and the current key is right",
                &[(9, hours(9_000)), (1, hours(0))],
                hours(1),
                Some(&[(100, hours(12)), (1, hours(0))]),
            ),
        ];
        for (what, before, now, expected) in cases {
            let after = rotated(&keys(before), now);
            assert_eq!(after, expected.map(keys), "{what}");
            // A second leader, or the same one again, has nothing to do.
            let after = after.unwrap_or_else(|| keys(before));
            assert_eq!(rotated(&after, now), None, "{what}, again");
            assert!(after.all().len() <= 3, "{what}");
            let next = next_rotation(&after).unwrap();
            assert!(next > now, "{what}");
            assert_eq!(
                rotated(&after, next - Duration::from_secs(1)),
                None,
                "{what}"
            );
            assert!(rotated(&after, next).is_some(), "{what}");
        }
    }

    #[test]
    fn in_every_hour_there_is_a_key_and_a_new_one_is_known_ahead() {
        let mut known = rotated(&TicketKeys::default(), hours(0)).unwrap();
        for hour in 1..=20 * 24 {
            let before = known.clone();
            known = rotated(&before, hours(hour)).unwrap_or(known);
            let current = known.current(hours(hour)).map(|at| &known.all()[at]);
            let current = current.unwrap();
            assert!(
                before.all().contains(current),
                "hour {hour}: it was known before"
            );
            assert!(hours(hour) < current.encrypts_from + PERIOD, "hour {hour}");
        }
    }

    #[test]
    fn the_document_brings_back_what_was_written_and_shows_nothing() {
        let keys = rotate_now(&TicketKeys::default(), hours(0)).unwrap();
        let [next, current] = keys.all() else {
            panic!("{keys:?}")
        };
        assert_ne!(next.secret, current.secret);
        let document = to_document(&keys);
        assert_eq!(of_document(&document), Some(keys));
        assert_eq!(format!("{document:?}"), "[redacted]");
        let text = String::from_utf8(document.expose().clone()).unwrap();
        for damaged in [
            String::new(),
            "{}".to_owned(),
            text.replace("\"version\": 1", "\"version\": 2"),
            text.replace("\"secret\": \"", "\"secret\": \"AAAA"),
            text[..text.len() / 2].to_owned(),
        ] {
            assert_eq!(of_document(&Secret::new(damaged.into_bytes())), None);
        }
    }

    #[test]
    fn kept_keys_outlive_the_process_and_no_longer_than_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let open = || KeptKeys::new(Arc::new(StateFolder::open(folder.path()).unwrap()));
        let (first, next) = open().at(hours(0));
        assert_eq!(next, Some(hours(12)));
        assert_eq!(open().at(hours(1)).0, first);
        std::fs::write(folder.path().join(FILE), "garbage").unwrap();
        assert_ne!(open().at(hours(2)).0, first, "what is damaged is made anew");
        let (kept, _) = open().at(hours(3));
        assert!(kept.all().iter().all(|key| !first.all().contains(key)));
        let late = open().at(hours(100)).0;
        assert!(late.all().iter().all(|key| !kept.all().contains(key)));
    }
}
