//! Certificates by which replicas know each other: a CA for nothing else, whose root is a document that all share.
//!
//! ```text
//! Secret (root: key and certificate) ─► every replica's watch ─► Root ─► ReplicaCertificate (in memory, 24 h)
//! ```
//!
//! Not the internal CA, whose root clients are told to trust: this one can sign names of replicas only and is
//! trusted by replicas only. Each replica signs for itself, so that renewals need nobody, the API server least.
//! Whoever finds no root, or one that nobody can use, makes one; of several that do, the API server takes the
//! first, and the others take what it has. Whoever deletes the Secret makes all certificates void: new ones are there
//! within a second. What a newer version of this program has written is never replaced.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tidegate_model::Secret;
use tidegate_telemetry::chain;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::documents::{DocumentError, DocumentStore, secret_name};
use super::watch::World;

/// Kind of the document.
const KIND: &str = "replica-ca";
const NAME: &str = "root";
const VERSION: u32 = 1;
/// What all names of replicas end with.
pub const ZONE: &str = "replicas.tidegate.internal";
/// Life of a replica's certificate.
const LIFE: Duration = Duration::from_hours(24);
/// Life of a root.
const ROOT_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// Clocks of other nodes may be a little behind.
const CLOCK_SKEW: Duration = Duration::from_hours(1);
/// Pause before what failed is tried again, and before a root that was written has to be shown by the watch.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest pause, because clocks may be set.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Why a replica has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaCaError {
    /// The API server.
    #[error("share the root of the replicas' certificates")]
    Document(#[from] DocumentError),
    /// A key or certificate could not be made.
    #[error("make a certificate for {name}")]
    Issue {
        /// The name in it.
        name: String,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

/// Why a document is no root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Unusable {
    #[error("it is damaged")]
    Damaged,
    #[error("it has expired, or will within a day")]
    Expired,
    /// That one knows what it does.
    #[error("a newer version of tidegate wrote it ({0})")]
    Newer(u32),
}

/// The document.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    version: u32,
    /// In PEM.
    #[serde(default)]
    certificate: String,
    /// In PEM.
    #[serde(default)]
    key: String,
}

/// What replicas are signed by.
struct Root {
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// What a replica shows to others, and whom it believes.
#[derive(Debug)]
pub struct ReplicaCertificate {
    /// For servers and clients, with the replica's name.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// What other replicas' certificates are signed by.
    pub root: CertificateDer<'static>,
    /// When another one is due.
    pub renew_at: SystemTime,
}

impl ReplicaCertificate {
    /// One that nobody else believes, for as long as the shared root is not known.
    pub fn of_nobody(replica: &str, now: SystemTime) -> Result<Self, ReplicaCaError> {
        Root::make(now)
            .and_then(|(_, root)| root.sign(replica, now))
            .map_err(|source| failed(replica, source))
    }

    fn serves(&self, root: &Root, now: SystemTime) -> bool {
        self.root == root.certificate && now < self.renew_at
    }
}

impl Root {
    /// A new one, and the document that holds it.
    fn make(now: SystemTime) -> Result<(Secret<Vec<u8>>, Self), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mark = Sha256::digest(key.public_key_raw());
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(
            DnType::CommonName,
            format!(
                "Tidegate replicas {:02x}{:02x}{:02x}{:02x}",
                mark[0], mark[1], mark[2], mark[3]
            ),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(ZONE.to_owned())],
            excluded_subtrees: Vec::new(),
        });
        let not_after = now + ROOT_LIFE;
        params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
        params.not_after = OffsetDateTime::from(not_after);
        let certificate = params.self_signed(&key)?;
        let written = Written {
            version: VERSION,
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        };
        // Texts and a number: this cannot fail.
        let document = Secret::new(serde_json::to_vec(&written).unwrap_or_default());
        let certificate = certificate.der().clone();
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let root = Self {
            certificate,
            not_after,
            issuer,
        };
        Ok((document, root))
    }

    fn read(document: &[u8], now: SystemTime) -> Result<Self, Unusable> {
        let written: Written = serde_json::from_slice(document).map_err(|_| Unusable::Damaged)?;
        if written.version > VERSION {
            return Err(Unusable::Newer(written.version));
        }
        let root = Self::parse(&written).ok_or(Unusable::Damaged)?;
        // What it signs must live its life.
        if now + LIFE > root.not_after {
            return Err(Unusable::Expired);
        }
        Ok(root)
    }

    fn parse(written: &Written) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(written.certificate.as_bytes()).ok()?;
        let key = KeyPair::from_pem(&written.key).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
        if !parsed.is_ca()
            || parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw()
        {
            return None;
        }
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        let not_after = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).ok()?;
        Some(Self {
            certificate,
            not_after,
            issuer,
        })
    }

    fn sign(&self, replica: &str, now: SystemTime) -> Result<ReplicaCertificate, rcgen::Error> {
        let name = name_of(replica);
        let mut params = CertificateParams::new(vec![name])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
        params.not_after = OffsetDateTime::from(now + LIFE);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(ReplicaCertificate {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::from(key),
            root: self.certificate.clone(),
            renew_at: now + LIFE / 2,
        })
    }
}

/// The name in a replica's certificate.
fn name_of(replica: &str) -> String {
    format!("{replica}.{ZONE}")
}

fn failed(replica: &str, source: rcgen::Error) -> ReplicaCaError {
    ReplicaCaError::Issue {
        name: name_of(replica),
        source,
    }
}

/// Keeps this replica's certificate. One runs in each.
#[derive(Debug)]
pub struct Certifier {
    /// Where the root is written.
    pub store: Arc<DocumentStore>,
    /// What is known of the cluster.
    pub world: Arc<World>,
    /// What this replica is called.
    pub replica: String,
    /// The certificate; None until the root is known.
    pub issued: watch::Sender<Option<Arc<ReplicaCertificate>>>,
}

impl Certifier {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let keeping = async {
            let mut changes = self.world.changes();
            let mut told = None;
            loop {
                let pause = self.turn(&mut told).await;
                let waited = tokio::time::timeout(pause, changes.changed()).await;
                if matches!(waited, Ok(Err(_))) {
                    return;
                }
            }
        };
        stop.run_until_cancelled(keeping).await;
    }

    /// Does what is due; how long nothing else is. `told` is what was said of a document that cannot be used.
    async fn turn(&self, told: &mut Option<Unusable>) -> Duration {
        let now = SystemTime::now();
        let shown = (self.world).document(&self.world.namespace, &secret_name(KIND, NAME));
        let read = shown.map(|document| Root::read(document.content.expose(), now));
        let outcome = match read {
            Some(Ok(root)) => {
                *told = None;
                self.certify(&root, now)
            }
            Some(Err(unusable)) => {
                if told.replace(unusable) != Some(unusable) {
                    tell(unusable);
                }
                match unusable {
                    Unusable::Newer(_) => return LONGEST_PAUSE,
                    Unusable::Damaged | Unusable::Expired => self.share(now).await,
                }
            }
            // What was not listed yet may be there.
            None if !self.world.documents.is_complete() => return AGAIN,
            None => self.share(now).await,
        };
        match outcome {
            Ok(pause) => pause.clamp(Duration::from_secs(1), LONGEST_PAUSE),
            Err(ReplicaCaError::Document(DocumentError::Outdated(_))) => {
                tracing::debug!("another replica has made the root of the replicas' certificates");
                AGAIN
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "requests are not passed on to other replicas yet; trying again");
                AGAIN
            }
        }
    }

    fn certify(&self, root: &Root, now: SystemTime) -> Result<Duration, ReplicaCaError> {
        let current = self.issued.borrow().clone();
        let renew_at = if let Some(current) = current.filter(|it| it.serves(root, now)) {
            current.renew_at
        } else {
            let signed = root
                .sign(&self.replica, now)
                .map_err(|source| failed(&self.replica, source))?;
            let renew_at = signed.renew_at;
            self.issued.send_replace(Some(Arc::new(signed)));
            tracing::debug!("this replica has a new certificate for others");
            renew_at
        };
        Ok(renew_at.duration_since(now).unwrap_or_default())
    }

    /// Makes a root where there is none. What the watch has shown may be old: what is written follows from what is
    /// read now.
    async fn share(&self, now: SystemTime) -> Result<Duration, ReplicaCaError> {
        let found = self.store.get(KIND, NAME).await?;
        if let Some(found) = found
            && matches!(
                Root::read(found.expose(), now),
                Ok(_) | Err(Unusable::Newer(_))
            )
        {
            return Ok(AGAIN);
        }
        let (document, _) = Root::make(now).map_err(|source| failed("*", source))?;
        self.store.put(KIND, NAME, document).await?;
        tracing::info!("made the root of the replicas' certificates");
        Ok(AGAIN)
    }
}

fn tell(unusable: Unusable) {
    let secret = secret_name(KIND, NAME);
    match unusable {
        Unusable::Newer(_) => {
            tracing::error!(secret, error = %unusable, "the root of the replicas' certificates cannot be used; requests are not passed on to other replicas until all run the same version");
        }
        Unusable::Damaged | Unusable::Expired => {
            tracing::warn!(secret, error = %unusable, "the root of the replicas' certificates cannot be used; making a new one");
        }
    }
}

#[cfg(test)]
mod tests;
