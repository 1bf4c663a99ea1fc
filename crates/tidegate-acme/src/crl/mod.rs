//! Whether an authority has revoked a certificate, by its own signed list (CRL, RFC 5280 §5).
//!
//! ```text
//! leaf ─► list: where is it listed ─► fetch ─► list: whose signature, which serial ─► watch: tell the keeper
//! ```
//!
//! A renewal that the authority wants early is told by ARI; a revocation need not be, and public authorities
//! no longer answer OCSP. A list is read, asked for one serial and dropped. Whatever goes wrong here, a
//! certificate counts as good: nothing may be ordered because a list could not be had.

mod fetch;
mod list;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use watch::Crls;

use std::time::SystemTime;

use crate::notices::{Notice, Subject};
use crate::record::{CertificateRecord, Issued};
use crate::settings::Wanted;

/// Takes down that what was held is on the list; the notice to send once that is stored. None if it is no
/// news. The plan then orders another.
pub(crate) fn take_down(
    record: &mut CertificateRecord,
    wanted: &Wanted,
    issued: &Issued,
    reason: Option<&'static str>,
) -> Option<Notice> {
    let now = SystemTime::now();
    if !record.note_revoked(issued, reason, now) {
        return None;
    }
    tracing::error!(
        certificate = %record.id,
        reason = reason.unwrap_or("unspecified"),
        "the authority has revoked the certificate"
    );
    let subject = Subject {
        id: &record.id,
        names: &wanted.names,
        issuer: &wanted.issuer.name,
        validity: Some((issued.not_before, issued.not_after)),
        renew_at: None,
        attempts: &record.attempts,
    };
    Some(Notice::revoked(&subject, reason, now))
}
