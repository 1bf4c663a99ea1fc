//! What a leaf says of its list, and what a list says of a leaf. Pure.

use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, RevocationReason,
};
use x509_parser::asn1_rs::{Any, FromDer as _, Sequence};
use x509_parser::prelude::{
    ASN1Time, DistributionPointName, GeneralName, ParsedExtension, X509Certificate,
};

/// Places of one list that are tried.
const PLACES: usize = 3;
/// Longest URL that is asked, bytes.
const LONGEST_URL: usize = 1024;

/// What a list says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is not listed.
    Good,
    /// It is listed.
    Revoked {
        /// Why, in the words of RFC 5280 §5.3.1; None where nothing is said.
        reason: Option<&'static str>,
    },
}

/// An answer that can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Looked {
    /// What the list says.
    pub(crate) standing: Standing,
    /// When the next list is out, at the latest.
    pub(crate) next_update: SystemTime,
}

/// Why a list says nothing that can be believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    /// The leaf cannot be read.
    #[error("read the certificate")]
    Leaf,
    /// The chain does not hold the issuer of the leaf.
    #[error("the chain lacks the certificate's issuer")]
    NoIssuer,
    /// The issuer may not sign lists.
    #[error("the issuer's key may not sign lists")]
    NotASigner,
    /// It is no list, or one of a kind that cannot be understood.
    #[error("read the list: {0:?}")]
    Malformed(webpki::Error),
    /// It is another one's list, or for other certificates.
    #[error("the list is not about this certificate")]
    NotAbout,
    /// Its signature is wrong, or the leaf's.
    #[error("verify the list: {0:?}")]
    Unverified(webpki::Error),
    /// The list is too old to say that a certificate is good.
    #[error("the list ended at {}", crate::plan::moment::rfc3339_text(*.0))]
    Ended(SystemTime),
}

/// The URLs at which the list is that the leaf would be on; empty if it is on none. All hold the same list
/// (RFC 5280 §4.2.1.13).
pub(crate) fn places(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
        return Vec::new();
    };
    let mut places = Vec::new();
    for extension in leaf.extensions() {
        let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension() else {
            continue;
        };
        // Lists of single reasons, and lists that somebody else signs, are not understood.
        let whole = points
            .iter()
            .filter(|point| point.reasons.is_none() && point.crl_issuer.is_none());
        for point in whole {
            let Some(DistributionPointName::FullName(names)) = &point.distribution_point else {
                continue;
            };
            places.extend(names.iter().filter_map(|name| match name {
                GeneralName::URI(url) if is_http(url) => Some((*url).to_owned()),
                _ => None,
            }));
        }
    }
    places.truncate(PLACES);
    places
}

fn is_http(url: &str) -> bool {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    url.len() <= LONGEST_URL
        && scheme.is_some_and(|scheme| {
            scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
        })
}

/// Looks a leaf up in a list in DER or PEM. The chain is leaf first.
pub(crate) fn look_up(
    list: &[u8],
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<Looked, ListError> {
    let leaf = chain.first().ok_or(ListError::Leaf)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| ListError::Leaf)?;
    let issuer = issuer_of(&parsed, chain)?;
    let decoded = CertificateRevocationListDer::from_pem_slice(list);
    let der = decoded.as_deref().unwrap_or(list);
    let crl = BorrowedCertRevocationList::from_der(der).map_err(ListError::Malformed)?;
    let next_update = next_update(der).ok_or(ListError::Malformed(webpki::Error::BadDer))?;
    // Before the borrow moves: webpki tells that it is listed, not why.
    let reason = crl
        .into_iter()
        .filter_map(Result::ok)
        .find(|revoked| revoked.serial_number == parsed.tbs_certificate.raw_serial())
        .and_then(|revoked| revoked.reason_code)
        .and_then(word);
    let crl = CertRevocationList::Borrowed(crl);
    let standing = match verify(leaf, issuer, &crl, now) {
        Ok(()) if next_update <= now => return Err(ListError::Ended(next_update)),
        Ok(()) => Standing::Good,
        // Also by a list that has ended: what is revoked stays so.
        Err(webpki::Error::CertRevoked) => Standing::Revoked { reason },
        Err(webpki::Error::UnknownRevocationStatus) => return Err(ListError::NotAbout),
        Err(error) => return Err(ListError::Unverified(error)),
    };
    Ok(Looked {
        standing,
        next_update,
    })
}

fn issuer_of<'a>(
    leaf: &X509Certificate<'_>,
    chain: &'a [CertificateDer<'a>],
) -> Result<&'a CertificateDer<'a>, ListError> {
    let mut above = chain.iter().skip(1);
    let (der, issuer) = above
        .find_map(|der| {
            let (_, parsed) = X509Certificate::from_der(der).ok()?;
            (parsed.subject().as_raw() == leaf.issuer().as_raw()).then_some((der, parsed))
        })
        .ok_or(ListError::NoIssuer)?;
    match issuer.key_usage() {
        Ok(Some(usage)) if !usage.value.crl_sign() => Err(ListError::NotASigner),
        _ => Ok(der),
    }
}

/// Signature of the leaf and of the list, scope of the list, serial: as a TLS client does it.
fn verify(
    leaf: &CertificateDer<'_>,
    issuer: &CertificateDer<'_>,
    crl: &CertRevocationList<'_>,
    now: SystemTime,
) -> Result<(), webpki::Error> {
    let leaf = EndEntityCert::try_from(leaf)?;
    let anchor = webpki::anchor_from_trusted_cert(issuer)?;
    let crls = [crl];
    let revocation = RevocationOptionsBuilder::new(&crls)
        .map_err(|_| webpki::Error::UnknownRevocationStatus)?
        .with_depth(RevocationCheckDepth::EndEntity)
        .build();
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &[anchor],
        &[],
        UnixTime::since_unix_epoch(since),
        KeyUsage::server_auth(),
        Some(revocation),
        None,
    )
    .map(drop)
}

/// `nextUpdate` (RFC 5280 §5.1.2.5). The list itself may have hundreds of thousands of entries, so that it
/// is not parsed as a whole.
fn next_update(der: &[u8]) -> Option<SystemTime> {
    let (_, outer) = Sequence::from_der(der).ok()?;
    let (_, inner) = Sequence::from_der(&outer.content).ok()?;
    let mut rest: &[u8] = &inner.content;
    // version, signature, issuer, thisUpdate.
    for _ in 0..4 {
        (rest, _) = Any::from_der(rest).ok()?;
    }
    let (_, time) = ASN1Time::from_der(rest).ok()?;
    let seconds = u64::try_from(time.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The word of a reason; None for the one that says nothing.
fn word(reason: RevocationReason) -> Option<&'static str> {
    match reason {
        RevocationReason::Unspecified | RevocationReason::RemoveFromCrl => None,
        RevocationReason::KeyCompromise => Some("keyCompromise"),
        RevocationReason::CaCompromise => Some("cACompromise"),
        RevocationReason::AffiliationChanged => Some("affiliationChanged"),
        RevocationReason::Superseded => Some("superseded"),
        RevocationReason::CessationOfOperation => Some("cessationOfOperation"),
        RevocationReason::CertificateHold => Some("certificateHold"),
        RevocationReason::PrivilegeWithdrawn => Some("privilegeWithdrawn"),
        RevocationReason::AaCompromise => Some("aACompromise"),
    }
}
