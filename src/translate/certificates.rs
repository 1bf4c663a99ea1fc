//! Certificates: PEM in, what the data plane serves out; and which certificate a route gets.
//!
//! Private keys are parsed here and never appear in an error.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys, RootCertStore};
use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tidegate_model::{Certificate, CertificateOrigin, Fingerprint, HostName, HostPattern};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::api::conditions::Reason;

/// Why a certificate or key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No certificate is in the PEM text.
    #[error("no PEM block \"CERTIFICATE\" was found in the certificate")]
    NoCertificate,
    /// The PEM text is broken.
    #[error("the certificate is not valid PEM")]
    CertificatePem,
    /// A certificate of the chain cannot be read.
    #[error("certificate {0} of the chain is not valid X.509")]
    X509(usize),
    /// No private key is in the PEM text.
    #[error("no PEM block \"PRIVATE KEY\" was found in the key")]
    NoKey,
    /// The PEM text is broken.
    #[error("the key is not valid PEM")]
    KeyPem,
    /// The key is encrypted or of a type that TLS does not use.
    #[error(
        "the key is not usable: it must be RSA (2048 to 8192 bits), P-256, P-384, P-521 or Ed25519"
    )]
    UnsupportedKey,
    /// Key and certificate belong to different pairs.
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
    /// A certificate without names is no use for TLS.
    #[error("the certificate has no subjectAltName that is a hostname or an IP address")]
    NoNames,
}

impl CertificateError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoCertificate | Self::CertificatePem | Self::X509(_) => {
                "put the chain in PEM, the server's certificate first"
            }
            Self::NoKey | Self::KeyPem => "put the private key in PEM, not encrypted",
            Self::UnsupportedKey => {
                "make a new key, for instance with openssl ecparam -genkey -name prime256v1"
            }
            Self::KeyMismatch => {
                "use the key that the certificate was requested with; the server's certificate must be the first of the chain"
            }
            Self::NoNames => "request a certificate with the hostname as subjectAltName",
        }
    }
}

/// Reads a chain and its key and makes sure that they belong together.
pub fn parse_certificate(
    certificate_pem: &[u8],
    key_pem: &[u8],
    origin: CertificateOrigin,
) -> Result<Certificate, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(certificate_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| CertificateError::CertificatePem)?;
    for (index, certificate) in chain.iter().enumerate() {
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::X509(index + 1))?;
    }
    let leaf_der = chain.first().ok_or(CertificateError::NoCertificate)?;
    let (_, leaf) = X509Certificate::from_der(leaf_der).map_err(|_| CertificateError::X509(1))?;

    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| match error {
        PemError::NoItemsFound => CertificateError::NoKey,
        _ => CertificateError::KeyPem,
    })?;
    let key = any_supported_type(&key).map_err(|_| CertificateError::UnsupportedKey)?;

    let names = names_of(&leaf);
    if names.is_empty() {
        return Err(CertificateError::NoNames);
    }
    let fingerprint = Fingerprint(Sha256::digest(leaf_der).into());
    let not_before = moment(leaf.validity().not_before.timestamp());
    let not_after = moment(leaf.validity().not_after.timestamp());
    let serial = leaf.raw_serial_as_string().replace(':', "");
    let issuer = leaf.issuer().to_string();

    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(_) => return Err(CertificateError::KeyMismatch),
    }
    Ok(Certificate {
        key: Arc::new(certified),
        fingerprint,
        names,
        not_before,
        not_after,
        serial,
        issuer,
        origin,
    })
}

fn names_of(leaf: &X509Certificate<'_>) -> Vec<HostPattern> {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else {
        return Vec::new();
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => HostPattern::parse(name).ok(),
            GeneralName::IPAddress(bytes) => {
                let ip = match bytes.len() {
                    4 => std::net::IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?),
                    _ => std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
                };
                HostName::parse(&ip.to_string())
                    .ok()
                    .map(HostPattern::Exact)
            }
            _ => None,
        })
        .collect()
}

fn moment(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH - distance
    } else {
        SystemTime::UNIX_EPOCH + distance
    }
}

/// Reads CAs and gives them an identity.
pub(super) fn parse_roots(
    pem: &[u8],
) -> Result<(Arc<RootCertStore>, Fingerprint), CertificateError> {
    let mut roots = RootCertStore::empty();
    let mut hash = Sha256::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let certificate = certificate.map_err(|_| CertificateError::CertificatePem)?;
        hash.update(&certificate);
        roots
            .add(certificate)
            .map_err(|_| CertificateError::X509(index + 1))?;
    }
    if roots.is_empty() {
        return Err(CertificateError::NoCertificate);
    }
    Ok((Arc::new(roots), Fingerprint(hash.finalize().into())))
}

/// The same as DER. Every one could be trusted.
pub(super) fn parse_ca_der(pem: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    parse_roots(pem)?;
    CertificateDer::pem_slice_iter(pem)
        .map(|certificate| match certificate {
            Ok(certificate) => Ok(certificate.to_vec()),
            Err(_) => Err(CertificateError::CertificatePem),
        })
        .collect()
}

/// Whether a client that may ask for any name of the pattern accepts the certificate.
pub(super) fn covers(certificate: &Certificate, pattern: &HostPattern) -> bool {
    match pattern {
        HostPattern::Exact(host) => certificate.covers(host),
        HostPattern::Wildcard(_) => certificate.names.contains(pattern),
    }
}

/// What is wrong with a certificate that could be read: reason, what was found, what to do.
pub(super) fn complaint(
    certificate: &Certificate,
    hosts: &[HostPattern],
    now: SystemTime,
) -> Option<(Reason, String, &'static str)> {
    if certificate.not_after <= now {
        return Some((
            Reason::Expired,
            format!("the certificate expired at {}", when(certificate.not_after)),
            "put a renewed certificate in its place",
        ));
    }
    if certificate.not_before > now {
        return Some((
            Reason::NotYetValid,
            format!(
                "the certificate is valid only from {}",
                when(certificate.not_before)
            ),
            "check this machine's clock, or wait",
        ));
    }
    let missing: Vec<_> = hosts
        .iter()
        .filter(|host| !covers(certificate, host))
        .map(ToString::to_string)
        .collect();
    if missing.is_empty() {
        return None;
    }
    let names: Vec<_> = certificate.names.iter().map(ToString::to_string).collect();
    Some((
        Reason::NameMismatch,
        format!(
            "the certificate is for {} and does not cover {}",
            names.join(", "),
            missing.join(", ")
        ),
        "use a certificate with these names, or take the hostnames out of the route",
    ))
}

fn when(moment: SystemTime) -> String {
    crate::api::conditions::timestamp(moment).0.to_string()
}
