//! What a certificate that came from an authority, or from another program's store, says of itself.

use std::time::{Duration, SystemTime};

use rcgen::PublicKeyData as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_model::Secret;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::record::Issued;
use crate::settings::KeyType;

/// Reads chain and key; in words, what is wrong with them.
pub fn inspect(chain_pem: &str, key_pem: &Secret<String>) -> Result<Issued, String> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| "its PEM text cannot be read".to_owned())?;
    let leaf = chain.first().ok_or("it holds no certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.expose().as_bytes())
        .map_err(|_| "its key cannot be read".to_owned())?;
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|_| "its key is of no supported type".to_owned())?;
    rustls::sign::CertifiedKey::new(chain.clone(), signing)
        .keys_match()
        .map_err(|_| "its key belongs to another certificate".to_owned())?;
    let (_, parsed) = X509Certificate::from_der(leaf)
        .map_err(|_| "its leaf is no X.509 certificate".to_owned())?;
    let mut names = Vec::new();
    let mut authority = None;
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(alternatives) => {
                names.extend(alternatives.general_names.iter().filter_map(name_of));
            }
            ParsedExtension::AuthorityKeyIdentifier(identifier) => {
                authority = identifier.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    names.sort();
    let serial = parsed.tbs_certificate.raw_serial();
    Ok(Issued {
        chain_pem: chain_pem.to_owned(),
        key_pem: key_pem.clone(),
        names,
        issuer: None,
        directory: None,
        profile: None,
        not_before: moment(parsed.validity().not_before.timestamp()),
        not_after: moment(parsed.validity().not_after.timestamp()),
        ari_id: authority.map(|authority| ari_id(&authority, serial)),
        revoked: None,
        revoked_because: None,
    })
}

/// Identifier for renewal information (RFC 9773 §4.1).
fn ari_id(authority: &[u8], serial: &[u8]) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(authority),
        URL_SAFE_NO_PAD.encode(serial)
    )
}

/// The type of a private key; None for one that no issuer can ask for.
pub fn key_type_of(key_pem: &str) -> Option<KeyType> {
    let info = rcgen::KeyPair::from_pem(key_pem)
        .ok()?
        .subject_public_key_info();
    let (_, info) = SubjectPublicKeyInfo::from_der(&info).ok()?;
    match info.parsed().ok()? {
        PublicKey::EC(point) if point.key_size() == 256 => Some(KeyType::P256),
        PublicKey::EC(point) if point.key_size() == 384 => Some(KeyType::P384),
        PublicKey::RSA(key) if key.key_size() == 2048 => Some(KeyType::Rsa2048),
        PublicKey::RSA(key) if key.key_size() == 4096 => Some(KeyType::Rsa4096),
        _ => None,
    }
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|octets| std::net::Ipv6Addr::from(octets).to_string()),
        },
        _ => None,
    }
}

fn moment(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH - distance
    } else {
        SystemTime::UNIX_EPOCH + distance
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};

    #[test]
    fn names_and_key_are_read() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![
            "a.example".to_owned(),
            "192.0.2.1".to_owned(),
            "*.a.example".to_owned(),
        ]);
        let certificate = params.unwrap().self_signed(&key).unwrap();
        let pem = Secret::new(key.serialize_pem());
        let issued = inspect(&certificate.pem(), &pem).unwrap();
        assert_eq!(issued.names, ["*.a.example", "192.0.2.1", "a.example"]);
        let name = |text| tidegate_model::HostPattern::parse(text).unwrap();
        assert!(issued.covers(&[name("b.a.example"), name("*.a.example"), name("192.0.2.1")]));
        assert!(!issued.covers(&[name("b.example")]));
        assert_eq!(key_type_of(pem.expose()), Some(KeyType::P256));
        let other = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(key_type_of(&other.serialize_pem()), Some(KeyType::P384));
        let error = inspect(&certificate.pem(), &Secret::new(other.serialize_pem())).unwrap_err();
        assert_eq!(error, "its key belongs to another certificate");
    }
}
