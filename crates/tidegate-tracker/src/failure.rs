//! Why trackers refuse, in a few classes that metrics can have as labels.
//!
//! Trackers write sentences, often with an address, a hash, a key or a place in their source in it. The class
//! is found by words that known trackers use: Torrust, opentracker, aquatic, bittorrent-tracker (`PeerTube`),
//! chihaya, UNIT3D, Ocelot. What no known tracker says is [`FailureClass::Other`].

/// A class of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The tracker found no client address where it looks for one: it reads other header fields than the edge
    /// sends, or is reached without the edge.
    InvalidClientAddress,
    /// It does not know or not allow the torrent.
    UnknownTorrent,
    /// A private tracker got no key, or one that is wrong or has expired.
    InvalidKey,
    /// The client is not allowed.
    ClientNotAllowed,
    /// The client came again too soon.
    TooSoon,
    /// The request could not be read.
    BadRequest,
    /// Something else.
    Other,
}

impl FailureClass {
    /// Every class.
    pub const ALL: [Self; 7] = [
        Self::InvalidClientAddress,
        Self::UnknownTorrent,
        Self::InvalidKey,
        Self::ClientNotAllowed,
        Self::TooSoon,
        Self::BadRequest,
        Self::Other,
    ];

    /// As metrics show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidClientAddress => "InvalidClientAddress",
            Self::UnknownTorrent => "UnknownTorrent",
            Self::InvalidKey => "InvalidKey",
            Self::ClientNotAllowed => "ClientNotAllowed",
            Self::TooSoon => "TooSoon",
            Self::BadRequest => "BadRequest",
            Self::Other => "Other",
        }
    }

    /// The class of a `failure reason`. The order matters: a sentence on a key may quote the whole request.
    pub fn of(reason: &str) -> Self {
        let reason = reason.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
        if says(ADDRESS) {
            Self::InvalidClientAddress
        } else if says(KEY) {
            Self::InvalidKey
        } else if says(TORRENT) {
            Self::UnknownTorrent
        } else if says(CLIENT) {
            Self::ClientNotAllowed
        } else if says(SOON) {
            Self::TooSoon
        } else if says(REQUEST) {
            Self::BadRequest
        } else {
            Self::Other
        }
    }
}

const ADDRESS: &[&str] = &[
    "resolving peer ip",
    "x-forwarded-for",
    "client ip",
    "peer ip",
    "ip address",
];

const KEY: &[&str] = &[
    "authentication",
    "not authenticated",
    "supplied key",
    "auth key",
    "passkey",
    "pass key",
    "torrent_pass",
    "authkey",
    "unregistered user",
    "user not found",
    "key has expired",
];

const TORRENT: &[&str] = &[
    "whitelisted",
    "blacklisted",
    "not authorized for use with this tracker",
    "info hash not allowed",
    "info_hash not allowed",
    "infohash not allowed",
    "unapproved infohash",
    "disallowed info_hash",
    "unregistered torrent",
    "torrent not found",
    "torrent not registered",
    "infohash not found",
    "unknown infohash",
    "unknown info_hash",
    "unknown torrent",
    "torrent does not exist",
    "swarm does not exist",
];

const CLIENT: &[&str] = &[
    "unapproved client",
    "client not allowed",
    "client is not allowed",
    "client is not whitelisted",
    "peer id not allowed",
    "peer_id not allowed",
    "banned",
];

const SOON: &[&str] = &[
    "too fast",
    "slow down",
    "too soon",
    "too frequent",
    "rate limit",
];

const REQUEST: &[&str] = &[
    "bad request",
    "cannot parse",
    "invalid",
    "malformed",
    "missing",
    "forgot to send",
    "no info_hash",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_known_trackers_have_their_class() {
        for (reason, expected) in [
            // Torrust.
            (
                "Error resolving peer IP: missing or invalid the right most X-Forwarded-For IP (mandatory on \
                 reverse proxy tracker configuration) in src/servers/http/v1/services/peer_ip_resolver.rs:131:23",
                FailureClass::InvalidClientAddress,
            ),
            (
                "Error resolving peer IP: cannot get the client IP from the connection info in src/x.rs:1:2",
                FailureClass::InvalidClientAddress,
            ),
            (
                "Authentication error: Missing authentication key param for private tracker. Error in src/x.rs:1:2",
                FailureClass::InvalidKey,
            ),
            (
                "The supplied key: Key(\"YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ\"), is not valid: Failed to read key",
                FailureClass::InvalidKey,
            ),
            (
                "The torrent: 3b245504cf5f11bbdbe1201cea6a6bf45aee1bc0, is not whitelisted, src/core/mod.rs:1:2",
                FailureClass::UnknownTorrent,
            ),
            (
                "Bad request. Cannot parse query params for announce request: invalid param value invalid for info_hash",
                FailureClass::BadRequest,
            ),
            // opentracker.
            (
                "Requested download is not authorized for use with this tracker.",
                FailureClass::UnknownTorrent,
            ),
            (
                "Your client forgot to send your torrent's info_hash. Please upgrade your client.",
                FailureClass::BadRequest,
            ),
            // bittorrent-tracker.
            ("invalid info_hash", FailureClass::BadRequest),
            ("invalid port", FailureClass::BadRequest),
            ("disallowed info_hash", FailureClass::UnknownTorrent),
            // aquatic, chihaya.
            ("Info hash not allowed", FailureClass::UnknownTorrent),
            ("unapproved client", FailureClass::ClientNotAllowed),
            // UNIT3D, Ocelot.
            (
                "Passkey not found. Please re-download the .torrent",
                FailureClass::InvalidKey,
            ),
            ("Unregistered torrent", FailureClass::UnknownTorrent),
            ("Rate limit exceeded", FailureClass::TooSoon),
            ("Malformed announce", FailureClass::BadRequest),
            ("the database is on fire", FailureClass::Other),
            ("", FailureClass::Other),
        ] {
            assert_eq!(FailureClass::of(reason), expected, "{reason}");
        }
        let names: std::collections::BTreeSet<_> =
            FailureClass::ALL.map(FailureClass::as_str).into();
        assert_eq!(names.len(), FailureClass::ALL.len());
    }
}
