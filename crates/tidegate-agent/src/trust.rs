//! Whom the agent believes: the system's authorities and those of `caFile`, and how TLS is set up with them.

use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tidegate_model::{AcceptAny, Carrier};
use tidegate_tunnel::handshake;

/// The system's authorities, read once.
static SYSTEM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "an authority of the system is not read");
    }
    roots.add_parsable_certificates(found.certs);
    Arc::new(roots)
});

/// The system's authorities.
pub(crate) fn system_roots() -> Arc<RootCertStore> {
    Arc::clone(&SYSTEM)
}

/// Why authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file of `caFile`.
    #[error("read the authorities of caFile {0}")]
    File(String, #[source] io::Error),
    /// There is nothing to believe.
    #[error(
        "find an authority: the system has none (install its package ca-certificates) and caFile names none"
    )]
    Nobody,
    /// TLS cannot be set up.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
}

/// How TLS is done with edges and proxies.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    direct: Arc<ClientConfig>,
    websocket: Arc<ClientConfig>,
    proxy: Arc<ClientConfig>,
    roots: Arc<RootCertStore>,
}

impl Trust {
    /// The system's authorities and those of the file.
    pub(crate) fn load(ca_file: Option<&Path>) -> Result<Self, TrustError> {
        let mut roots = (*system_roots()).clone();
        if let Some(path) = ca_file {
            let failed = |error| TrustError::File(path.display().to_string(), error);
            let mut count = 0;
            let certificates = CertificateDer::pem_file_iter(path);
            for certificate in certificates.map_err(|error| failed(io::Error::other(error)))? {
                let certificate = certificate.map_err(|error| failed(io::Error::other(error)))?;
                roots
                    .add(certificate)
                    .map_err(|error| failed(io::Error::other(error)))?;
                count += 1;
            }
            if count == 0 {
                return Err(failed(io::Error::other("it holds no certificate in PEM")));
            }
        }
        if roots.is_empty() {
            return Err(TrustError::Nobody);
        }
        let roots = Arc::new(roots);
        Ok(Self {
            direct: Arc::new(client(&roots, &[handshake::ALPN])?),
            websocket: Arc::new(client(&roots, &[b"http/1.1"])?),
            proxy: Arc::new(client(&roots, &[b"http/1.1"])?),
            roots,
        })
    }

    /// TLS for a carrier.
    pub(crate) fn for_carrier(&self, carrier: Carrier) -> Arc<ClientConfig> {
        match carrier {
            Carrier::Direct => Arc::clone(&self.direct),
            Carrier::WebSocket => Arc::clone(&self.websocket),
        }
    }

    /// TLS to a proxy.
    pub(crate) fn for_proxy(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.proxy)
    }

    /// Everybody who is believed.
    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

/// TLS that verifies, offering these protocols.
pub(crate) fn client(
    roots: &Arc<RootCertStore>,
    protocols: &[&[u8]],
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    Ok(offering(builder, protocols))
}

/// TLS that takes any certificate, offering these protocols.
pub(crate) fn unverified(protocols: &[&[u8]]) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny::new(provider)))
        .with_no_client_auth();
    Ok(offering(builder, protocols))
}

fn offering(mut config: ClientConfig, protocols: &[&[u8]]) -> ClientConfig {
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
