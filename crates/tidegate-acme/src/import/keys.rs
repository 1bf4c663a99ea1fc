//! Private keys in the forms that other programs write, as PKCS#8.
//!
//! Errors are fixed words: none of them can hold a part of a key.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use tidegate_model::Secret;

use crate::account::pkcs8_pem;

const UNREADABLE: &str = "its key cannot be read";
const NOT_P256: &str = "its key is RSA, and accounts here have P-256 keys; a new account is registered instead, which costs nothing";

/// The key in PKCS#8 PEM; from PKCS#8, PKCS#1 (`RSA PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`).
pub(super) fn pkcs8(key_pem: &str) -> Result<Secret<String>, String> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| {
        if key_pem.contains("ENCRYPTED") {
            "its key is encrypted".to_owned()
        } else {
            UNREADABLE.to_owned()
        }
    })?;
    let der = match &key {
        PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der().to_vec(),
        PrivateKeyDer::Pkcs1(key) => aws_lc_rs::rsa::KeyPair::from_der(key.secret_pkcs1_der())
            .ok()
            .and_then(|pair| AsDer::<Pkcs8V1Der<'static>>::as_der(&pair).ok())
            .map(|der| der.as_ref().to_vec())
            .ok_or(UNREADABLE)?,
        PrivateKeyDer::Sec1(key) => [
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &ECDSA_P384_SHA384_ASN1_SIGNING,
            &ECDSA_P521_SHA512_ASN1_SIGNING,
        ]
        .into_iter()
        .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, key.secret_sec1_der()).ok())
        .and_then(|pair| pair.to_pkcs8v1().ok())
        .map(|der| der.as_ref().to_vec())
        .ok_or(UNREADABLE)?,
        _ => return Err(UNREADABLE.to_owned()),
    };
    Ok(Secret::new(pkcs8_pem(&der)))
}

/// The key of an account from PEM.
pub(super) fn account_from_pem(key_pem: &str) -> Result<Secret<String>, String> {
    let key =
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| UNREADABLE.to_owned())?;
    account_from_der(match &key {
        PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der(),
        PrivateKeyDer::Sec1(key) => key.secret_sec1_der(),
        _ => return Err(NOT_P256.to_owned()),
    })
}

/// The key of an account from DER of any form.
pub(super) fn account_from_der(der: &[u8]) -> Result<Secret<String>, String> {
    let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der);
    if let Ok(pair) = pair {
        return account(&pair);
    }
    let forms: [PrivateKeyDer<'_>; 3] = [
        PrivatePkcs1KeyDer::from(der).into(),
        PrivatePkcs8KeyDer::from(der).into(),
        PrivateSec1KeyDer::from(der).into(),
    ];
    let is_key = forms
        .iter()
        .any(|key| rustls::crypto::aws_lc_rs::sign::any_supported_type(key).is_ok());
    Err(if is_key { NOT_P256 } else { UNREADABLE }.to_owned())
}

/// The key of an account from a JSON Web Key (RFC 7517).
pub(super) fn account_from_jwk(jwk: &serde_json::Value) -> Result<Secret<String>, String> {
    match (jwk["kty"].as_str(), jwk["crv"].as_str()) {
        (Some("EC"), Some("P-256")) => {}
        (Some("EC" | "RSA"), _) => return Err(NOT_P256.to_owned()),
        _ => return Err(UNREADABLE.to_owned()),
    }
    let member = |name: &str| {
        jwk[name]
            .as_str()
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
            // Leading zeros may be left out by whoever wrote it.
            .filter(|bytes| bytes.len() <= 32)
            .map(|bytes| [vec![0; 32 - bytes.len()], bytes].concat())
            .ok_or_else(|| UNREADABLE.to_owned())
    };
    let point = [vec![4], member("x")?, member("y")?].concat();
    let pair = EcdsaKeyPair::from_private_key_and_public_key(
        &ECDSA_P256_SHA256_ASN1_SIGNING,
        &member("d")?,
        &point,
    );
    account(&pair.map_err(|_| UNREADABLE.to_owned())?)
}

fn account(pair: &EcdsaKeyPair) -> Result<Secret<String>, String> {
    let der = pair.to_pkcs8v1().map_err(|_| UNREADABLE.to_owned())?;
    Ok(Secret::new(pkcs8_pem(der.as_ref())))
}
