//! TLS to servers that are asked for something: whom to trust, set up in one way.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// A client that trusts these CAs and shows no certificate of its own.
pub(crate) fn client(roots: impl Into<Arc<RootCertStore>>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The CAs that this system trusts, as far as there are any.
pub(crate) fn system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// A client that trusts the CAs of a PEM text, or else the system's. `called` is what people call the text;
/// an error is in words.
pub(crate) fn client_of_bundle(
    bundle: Option<&str>,
    called: &str,
) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(bundle) = bundle {
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            certificate
                .map_err(|error| error.to_string())
                .and_then(|c| roots.add(c).map_err(|error| error.to_string()))
                .map_err(|error| format!("{called}: {error}"))?;
        }
        if roots.is_empty() {
            return Err(format!("{called} holds no certificate"));
        }
    } else {
        roots = system();
    }
    client(roots)
        .map(Arc::new)
        .map_err(|error| error.to_string())
}
