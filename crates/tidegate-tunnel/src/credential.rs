//! What an agent proves itself by: a random token, of which the edge keeps what nobody can log in with.
//!
//! The keys are those of SCRAM (RFC 5802 §3), without salt and iterations, because nobody guesses 32 random bytes:
//!
//! ```text
//! ClientKey = HMAC-SHA-256(token, "Client Key")
//! StoredKey = SHA-256(ClientKey)                            the edge keeps this one
//! Proof     = ClientKey XOR HMAC-SHA-256(StoredKey, claims)
//! ```
//!
//! The claims name everything that the proof is good for: edge, agent, process, link, time, nonce and, where there is
//! TLS between the two, the connection (RFC 9266). Tokens, client keys and proofs never go into logs or errors.

use std::fmt::Write as _;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tidegate_model::{Secret, StoredKey};

/// Begin of every token, so that people and secret scanners know what they see.
const TOKEN_PREFIX: &str = "tga_";
/// Begin of a stored key's text form.
const HASH_PREFIX: &str = "sha256:";
/// Bytes of keys, tokens and proofs.
const KEY: usize = digest::SHA256_OUTPUT_LEN;

/// Why a credential cannot be had. Says nothing of what was found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CredentialError {
    /// What was given as a token is none.
    #[error("a token is {TOKEN_PREFIX} and 43 characters of base64url")]
    Token,
    /// What was given as a token's hash is none.
    #[error("the hash of a token is {HASH_PREFIX} and 43 characters of base64url")]
    Hash,
    /// The system's random numbers could not be had.
    #[error("get random numbers from the system")]
    Random,
}

/// The secret of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token(Secret<[u8; KEY]>);

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// [`CredentialError::Random`]
    pub fn generate() -> Result<Self, CredentialError> {
        let mut bytes = [0; KEY];
        rand::fill(&mut bytes).map_err(|_| CredentialError::Random)?;
        Ok(Self(Secret::new(bytes)))
    }

    /// Reads a token as people have it; white space around it does not count.
    ///
    /// # Errors
    /// [`CredentialError::Token`]
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let encoded = text.trim().strip_prefix(TOKEN_PREFIX);
        let bytes = encoded.and_then(decode).ok_or(CredentialError::Token)?;
        Ok(Self(Secret::new(bytes)))
    }

    /// The token as people have it.
    pub fn text(&self) -> Secret<String> {
        let encoded = URL_SAFE_NO_PAD.encode(self.0.expose());
        Secret::new(format!("{TOKEN_PREFIX}{encoded}"))
    }

    /// What the edge keeps of it.
    pub fn stored_key(&self) -> StoredKey {
        StoredKey(sha256(&self.client_key()))
    }

    /// Proves the claims.
    pub fn prove(&self, claims: &Claims<'_>) -> Proof {
        let client_key = self.client_key();
        let signature = hmac(&sha256(&client_key), &claims.message());
        Proof(xor(client_key, &signature))
    }

    fn client_key(&self) -> [u8; KEY] {
        hmac(self.0.expose(), b"Client Key")
    }
}

/// The text form of a stored key, which is what objects and Secrets hold.
pub fn stored_key_text(key: &StoredKey) -> String {
    let encoded = URL_SAFE_NO_PAD.encode(key.0);
    format!("{HASH_PREFIX}{encoded}")
}

/// Reads the text form of a stored key; white space around it does not count.
///
/// # Errors
/// [`CredentialError::Hash`]
pub fn parse_stored_key(text: &str) -> Result<StoredKey, CredentialError> {
    let encoded = text.trim().strip_prefix(HASH_PREFIX);
    let bytes = encoded.and_then(decode).ok_or(CredentialError::Hash)?;
    Ok(StoredKey(bytes))
}

/// What an agent says of itself in a handshake, and what both sides know of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims<'a> {
    /// Version of the protocol that is to be spoken.
    pub version: u16,
    /// The edge as it was dialled: host, and port where it is not the scheme's.
    pub edge: &'a str,
    /// Namespace and name.
    pub agent: &'a str,
    /// The agent's process.
    pub instance: &'a str,
    /// Which of its links.
    pub link: u8,
    /// Seconds since 1970.
    pub time: u64,
    /// Never used before.
    pub nonce: &'a str,
    /// The TLS exporter of the connection; empty where something may end TLS in between.
    pub binding: &'a [u8],
}

impl Claims<'_> {
    /// What is signed: one line each, in this order, for ever. None of them can hold a line's end, which
    /// [`crate::handshake`] sees to.
    fn message(&self) -> Vec<u8> {
        let Self {
            version,
            edge,
            agent,
            instance,
            link,
            time,
            nonce,
            binding,
        } = self;
        let binding = URL_SAFE_NO_PAD.encode(binding);
        let mut text = String::with_capacity(256);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "tidegate-tunnel\n{version}\n{edge}\n{agent}\n{instance}\n{link}\n{time}\n{nonce}\n{binding}\n"
        );
        text.into_bytes()
    }
}

/// That who sends it has the token. Good once, for one set of claims.
#[derive(Clone)]
pub struct Proof([u8; KEY]);

impl Proof {
    /// As it travels.
    pub fn text(&self) -> Secret<String> {
        Secret::new(URL_SAFE_NO_PAD.encode(self.0))
    }

    /// Reads what travelled; None for what is no proof at all.
    pub fn parse(text: &str) -> Option<Self> {
        decode(text).map(Self)
    }

    /// Which of the keys it was made with, if any. Takes the same time for every wrong proof.
    pub fn made_with<'k>(
        &self,
        keys: &'k [StoredKey],
        claims: &Claims<'_>,
    ) -> Option<&'k StoredKey> {
        let message = claims.message();
        let mut found = None;
        for key in keys {
            let signature = hmac(&key.0, &message);
            let client_key = xor(self.0, &signature);
            if verify_slices_are_equal(&sha256(&client_key), &key.0).is_ok() {
                found = Some(key);
            }
        }
        found
    }
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

fn decode(text: &str) -> Option<[u8; KEY]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn sha256(bytes: &[u8]) -> [u8; KEY] {
    let mut out = [0; KEY];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; KEY] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut out = [0; KEY];
    out.copy_from_slice(hmac::sign(&key, message).as_ref());
    out
}

fn xor(mut one: [u8; KEY], other: &[u8; KEY]) -> [u8; KEY] {
    for (byte, by) in one.iter_mut().zip(other) {
        *byte ^= by;
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody's: bytes 0 to 31.
    const TOKEN: &str = "tga_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn claims() -> Claims<'static> {
        Claims {
            version: 1,
            edge: "edge.example.com",
            agent: "default/homelab",
            instance: "0123456789abcdef0123456789abcdef",
            link: 0,
            time: 1_795_300_000,
            nonce: "bm9uY2U",
            binding: &[7; 32],
        }
    }

    #[test]
    fn tokens_and_hashes_are_read_as_they_are_written() {
        let token = Token::parse(&format!(" {TOKEN}\n")).unwrap();
        assert_eq!(token.text().expose(), TOKEN);
        let hash = stored_key_text(&token.stored_key());
        assert!(hash.starts_with("sha256:") && hash.len() == 50, "{hash}");
        assert_eq!(parse_stored_key(&hash), Ok(token.stored_key()));
        let fresh = Token::generate().unwrap();
        assert_eq!(Token::parse(fresh.text().expose()), Ok(fresh.clone()));
        assert_ne!(fresh, Token::generate().unwrap());
        let long = format!("{TOKEN}A");
        for wrong in ["", "tga_", &TOKEN[4..], &TOKEN[..46], &long] {
            assert_eq!(Token::parse(wrong), Err(CredentialError::Token), "{wrong}");
        }
        for wrong in ["", "sha256:", TOKEN, &hash[..49]] {
            let read = parse_stored_key(wrong);
            assert_eq!(read, Err(CredentialError::Hash), "{wrong}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let token = Token::parse(TOKEN).unwrap();
        let proof = token.prove(&claims());
        let shown = format!("{token:?} {:?} {proof:?} {:?}", token.text(), proof.text());
        let wrong = Token::parse("tga_secret").unwrap_err();
        let shown = format!("{shown} {wrong} {:?}", token.stored_key());
        for secret in [&TOKEN[4..], proof.text().expose(), "secret"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    /// Agents of other versions and languages compute the same: this changes never.
    #[test]
    fn the_proof_is_what_the_protocol_says() {
        let token = Token::parse(TOKEN).unwrap();
        assert_eq!(stored_key_text(&token.stored_key()), STORED);
        assert_eq!(token.prove(&claims()).text().expose(), PROOF);
    }

    const STORED: &str = "sha256:6ct9Uk0KN7n1jfXaUmgZzB35xmo8_-5PTPJQJlTypsA";
    const PROOF: &str = "dHn48BhhErVwk9jW9OGZq3JAJOHqWKVDSI-LCRF7U7U";

    #[test]
    fn a_proof_is_good_for_its_claims_and_keys_alone() {
        let token = Token::parse(TOKEN).unwrap();
        let proof = token.prove(&claims());
        let other = Token::generate().unwrap();
        let keys = [other.stored_key(), token.stored_key()];
        let found = proof.made_with(&keys, &claims());
        assert_eq!(found, Some(&keys[1]));
        assert_eq!(proof.made_with(&keys[..1], &claims()), None);
        assert_eq!(proof.made_with(&[], &claims()), None);
        let fine = claims();
        for wrong in [
            Claims {
                version: 2,
                ..fine.clone()
            },
            Claims {
                edge: "edge.example.org",
                ..fine.clone()
            },
            Claims {
                agent: "default/other",
                ..fine.clone()
            },
            Claims {
                instance: "00",
                ..fine.clone()
            },
            Claims {
                link: 1,
                ..fine.clone()
            },
            Claims {
                time: fine.time + 1,
                ..fine.clone()
            },
            Claims {
                nonce: "",
                ..fine.clone()
            },
            Claims {
                binding: &[],
                ..fine.clone()
            },
        ] {
            assert_eq!(proof.made_with(&keys, &wrong), None, "{wrong:?}");
        }
        // Who has stolen what the edge keeps has no proof from it.
        let stolen = token.stored_key();
        let signature = hmac(&stolen.0, &fine.message());
        for made_up in [
            Proof(signature),
            Proof(stolen.0),
            Proof(xor(stolen.0, &signature)),
        ] {
            assert_eq!(made_up.made_with(&keys, &fine), None);
        }
        let sent = Proof::parse(proof.text().expose()).unwrap();
        assert_eq!(sent.made_with(&keys, &fine), Some(&keys[1]));
        assert!(Proof::parse("short").is_none());
    }
}
