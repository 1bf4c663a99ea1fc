//! Answers to ACME challenges, as values: whichever replica is asked can answer.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use crate::HostName;

/// What certification authorities may ask for at this moment. Empty nearly always.
#[derive(Clone, Default, PartialEq)]
pub struct ChallengeAnswers {
    /// http-01 (RFC 8555 §8.3): the key authorization (§8.1) by host and token.
    pub http01: HashMap<HostName, HashMap<Box<str>, Arc<str>>>,
    /// tls-alpn-01 (RFC 8737 §3) by the server name that is asked for.
    pub tls_alpn01: HashMap<HostName, TlsAlpn01Answer>,
}

impl fmt::Debug for ChallengeAnswers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChallengeAnswers")
            .field("http01", &self.http01.keys().collect::<Vec<_>>())
            .field("tls_alpn01", &self.tls_alpn01.keys().collect::<Vec<_>>())
            .finish()
    }
}

impl ChallengeAnswers {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.http01.is_empty() && self.tls_alpn01.is_empty()
    }
}

/// The certificate for a client that offers nothing but `acme-tls/1`.
#[derive(Clone)]
pub struct TlsAlpn01Answer {
    /// SHA-256 of the key authorization, which is what the certificate says; its identity.
    pub digest: [u8; 32],
    /// Self-signed, with the digest in its acmeIdentifier extension.
    pub key: Arc<CertifiedKey>,
}

impl PartialEq for TlsAlpn01Answer {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for TlsAlpn01Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAlpn01Answer").finish_non_exhaustive()
    }
}
