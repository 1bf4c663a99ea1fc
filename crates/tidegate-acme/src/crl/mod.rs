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
