//! A certificate chain with its parsed key.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;

use crate::{HostName, HostPattern};

/// SHA-256 of the leaf's DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a certificate came from; shown to people, never used to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateOrigin {
    /// Issued by the edge's internal CA.
    InternalCa,
    /// Read from a Secret document or object, `namespace/name`.
    Secret(String),
    /// Ordered by ACME through the issuer of that name.
    Acme(String),
    /// A placeholder until a real one exists.
    SelfSigned,
}

/// A certificate as the data plane serves it: chain and key match, the key is usable.
///
/// Equal when leaf and origin are equal.
#[derive(Clone)]
pub struct Certificate {
    /// Chain and signing key for rustls.
    pub key: Arc<CertifiedKey>,
    /// SHA-256 of the leaf.
    pub fingerprint: Fingerprint,
    /// DNS names and IP addresses of the leaf (subjectAltName).
    pub names: Vec<HostPattern>,
    /// Start of the validity.
    pub not_before: SystemTime,
    /// End of the validity.
    pub not_after: SystemTime,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Issuer's distinguished name.
    pub issuer: String,
    /// Where it came from.
    pub origin: CertificateOrigin,
}

impl Certificate {
    /// Whether a client that asked for the host accepts this certificate's names.
    pub fn covers(&self, host: &HostName) -> bool {
        self.names.iter().any(|name| name.matches(host))
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && self.origin == other.origin
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("fingerprint", &self.fingerprint)
            .field("names", &self.names)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}
