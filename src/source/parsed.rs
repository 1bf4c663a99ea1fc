//! Certificates of authorities as the data plane takes them, each parsed once however many ways lead to it: a
//! replica that orders knows each from the engine and from its document.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_acme::record::Issued;
use tidegate_model::{Certificate, CertificateOrigin};

use crate::translate::{CertificateError, parse_certificate};

/// What was parsed, by the certificate's id.
#[derive(Debug, Default)]
pub struct Parsed(BTreeMap<String, (Arc<Issued>, Arc<Certificate>)>);

impl Parsed {
    /// Parses it, unless it is known.
    pub fn of(
        &mut self,
        id: &str,
        issued: &Arc<Issued>,
    ) -> Result<Arc<Certificate>, CertificateError> {
        if let Some((known, parsed)) = self.0.get(id)
            && known.chain_pem == issued.chain_pem
        {
            return Ok(Arc::clone(parsed));
        }
        let parsed = Arc::new(parse_certificate(
            issued.chain_pem.as_bytes(),
            issued.key_pem.expose().as_bytes(),
            CertificateOrigin::Acme(issued.issuer.clone().unwrap_or_default()),
        )?);
        self.0
            .insert(id.to_owned(), (Arc::clone(issued), Arc::clone(&parsed)));
        Ok(parsed)
    }

    /// Forgets what nobody else holds.
    pub fn forget_unused(&mut self) {
        self.0
            .retain(|_, (_, certificate)| Arc::strong_count(certificate) > 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tidegate_model::Secret;

    use super::*;

    fn issued() -> Arc<Issued> {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        Arc::new(Issued {
            chain_pem: made.cert.pem(),
            key_pem: Secret::new(made.signing_key.serialize_pem()),
            names: vec!["a.example".to_owned()],
            issuer: Some("le".to_owned()),
            directory: None,
            profile: None,
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            ari_id: None,
            revoked: None,
            revoked_because: None,
        })
    }

    #[test]
    fn each_certificate_is_parsed_once_and_forgotten_with_its_last_user() {
        let mut parsed = Parsed::default();
        let first = issued();
        let one = parsed.of("default/blog", &first).unwrap();
        // The same certificate as another way tells it.
        let again = parsed
            .of("default/blog", &Arc::new((*first).clone()))
            .unwrap();
        assert!(Arc::ptr_eq(&one, &again));
        let other = parsed.of("default/blog", &issued()).unwrap();
        assert!(!Arc::ptr_eq(&one, &other));
        parsed.forget_unused();
        assert_eq!(parsed.0.len(), 1);
        drop(other);
        parsed.forget_unused();
        assert!(parsed.0.is_empty());
    }
}
