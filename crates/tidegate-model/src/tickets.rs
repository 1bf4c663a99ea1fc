//! Keys of TLS session tickets (RFC 5077, RFC 8446 §4.6.1) that several edges share, so that a client resumes
//! its session at whichever of them it reaches.
//!
//! Master keys only: what encrypts a ticket is derived from them, apart for each policy. When a key is used is
//! fixed when it is made, so that nobody has to be reachable for a rotation, and an old key dies in time.

use std::time::SystemTime;

use crate::Secret;

/// Master keys, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TicketKeys {
    keys: Vec<TicketKey>,
}

/// One master key and its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketKey {
    /// 32 random bytes.
    pub secret: Secret<[u8; 32]>,
    /// New tickets are made with it from this moment until that of the next key. Tickets made with it are
    /// accepted earlier too: another edge's clock may be a little ahead.
    pub encrypts_from: SystemTime,
    /// From this moment it is not used at all.
    pub expires: SystemTime,
}

impl TicketKeys {
    /// Puts the keys into their order.
    pub fn new(mut keys: Vec<TicketKey>) -> Self {
        keys.sort_by_key(|key| std::cmp::Reverse(key.encrypts_from));
        Self { keys }
    }

    /// All keys, the newest first.
    pub fn all(&self) -> &[TicketKey] {
        &self.keys
    }

    /// Position of the key that new tickets are made with; none when every key is of the past or the future.
    pub fn current(&self, now: SystemTime) -> Option<usize> {
        self.keys
            .iter()
            .position(|key| key.encrypts_from <= now && now < key.expires)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_key_whose_time_has_come_is_current() {
        let at = |hours| SystemTime::UNIX_EPOCH + Duration::from_hours(hours);
        let key = |from| TicketKey {
            secret: Secret::new([0; 32]),
            encrypts_from: at(from),
            expires: at(from + 24),
        };
        let keys = TicketKeys::new(vec![key(100), key(124), key(112)]);
        let from = |now| keys.current(at(now)).map(|at| keys.all()[at].encrypts_from);
        for (now, expected) in [
            (99, None),
            (100, Some(100)),
            (111, Some(100)),
            (112, Some(112)),
            (147, Some(124)),
            (148, None),
        ] {
            assert_eq!(from(now), expected.map(at), "{now}");
        }
        assert_eq!(TicketKeys::default().current(at(0)), None);
    }
}
