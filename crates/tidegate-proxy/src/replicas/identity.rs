//! Who a replica is to the others: a certificate that names it, and the root that all of them are signed by.
//!
//! Only TLS 1.3, both ends with a certificate, no resumption: a session that began with another certificate must not
//! go on by a ticket.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tidegate_tunnel::handshake;

/// What comes after a replica's name in the DNS name of its certificate.
const DOMAIN: &str = ".replicas.tidegate.internal";

/// Certificate chain and key of this replica, and the root that replicas' certificates are signed by.
///
/// The certificate has the DNS name `NAME.replicas.tidegate.internal`, where NAME is
/// [`Settings::replica`](crate::Settings::replica), and is for servers and clients.
pub struct PeerIdentity {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerIdentity").finish_non_exhaustive()
    }
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PeerIdentityError {
    /// The root is no certificate.
    #[error("use the root of replicas' certificates")]
    Root(#[source] rustls::Error),
    /// Nobody's certificate could be verified with it.
    #[error("verify certificates of replicas")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// Certificate and key do not fit, or cannot be read.
    #[error("use the certificate of this replica")]
    Certificate(#[source] rustls::Error),
}

impl PeerIdentity {
    /// Checks that the three fit together. The first certificate of the chain is the replica's.
    ///
    /// # Errors
    /// [`PeerIdentityError`]
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        root: CertificateDer<'static>,
    ) -> Result<Self, PeerIdentityError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(root).map_err(PeerIdentityError::Root)?;
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let verifier: Arc<dyn ClientCertVerifier> =
            verifier.build().map_err(PeerIdentityError::Verifier)?;
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(PeerIdentityError::Certificate)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(PeerIdentityError::Certificate)?;
        server.alpn_protocols = vec![handshake::ALPN_REPLICA.to_vec()];
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(PeerIdentityError::Certificate)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(PeerIdentityError::Certificate)?;
        client.alpn_protocols = vec![handshake::ALPN_REPLICA.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
}

/// The name that a replica's certificate has to have.
pub(super) fn name_of(replica: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(format!("{replica}{DOMAIN}")).ok()
}

/// The replica that a certificate, which was verified, is for; None where it is for something else.
pub(super) fn replica_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    let replica = names.find_map(|name| name.strip_suffix(DOMAIN))?;
    (!replica.is_empty() && replica != "*").then(|| replica.to_owned())
}
