//! What the engine is told: issuers with their credentials resolved, and the certificates wanted of them.
//!
//! Plain values. Whoever reads objects (files now, custom resources next) makes them; nothing here looks
//! anything up.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use sha2::{Digest as _, Sha256};
use tidegate_model::{HostPattern, Secret};

use crate::dns::{DnsClient, DnsSolver, SolverError, propagation};
use crate::notices::{NoticeKind, Target};
use crate::plan::challenge::{self, ChallengeType};
use crate::record::Issued;

/// Time for one question to a name server.
const QUERY: Duration = Duration::from_secs(3);

/// An account at a certification authority and how it is used.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// Name of the AcmeIssuer; names the account in the store.
    pub name: String,
    /// URL of the directory (RFC 8555 §7.1.1).
    pub directory: String,
    /// Directory of the authority's staging service, where new sets of names are tried first.
    pub staging_directory: Option<String>,
    /// `mailto:` URLs; may be empty.
    pub contact: Vec<String>,
    /// Profile of the certificates, if not the authority's default.
    pub profile: Option<String>,
    /// Key of the certificates.
    pub key_type: KeyType,
    /// External account binding (RFC 8555 §7.3.4).
    pub external_account: Option<ExternalAccount>,
    /// CAs that the directory's own certificate is verified with; the system's if None.
    pub roots: Option<TrustedRoots>,
    /// Whom to ask when to renew.
    pub renewal: RenewalSource,
    /// Issuer that is asked while this one fails.
    pub fallback: Option<String>,
    /// How challenges are answered, in order of preference; never empty.
    pub solvers: Vec<Solver>,
    /// Who is told when one of its certificates is in danger.
    pub notifications: Vec<Notification>,
}

/// Somebody who is told, and of what.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// Who.
    pub target: Target,
    /// Of what; none means everything.
    pub on: Vec<NoticeKind>,
}

impl Notification {
    /// Whether a notice of this kind is for them.
    pub fn wants(&self, kind: NoticeKind) -> bool {
        self.on.is_empty() || kind == NoticeKind::Test || self.on.contains(&kind)
    }
}

/// A key that the authority gave out of band.
#[derive(Debug, Clone)]
pub struct ExternalAccount {
    /// Its identifier.
    pub key_id: String,
    /// The HMAC key, decoded.
    pub hmac_key: Secret<Vec<u8>>,
}

/// CAs by their content.
#[derive(Clone)]
pub struct TrustedRoots {
    /// The CAs.
    pub roots: Arc<RootCertStore>,
    /// SHA-256 over them, their identity.
    pub fingerprint: [u8; 32],
}

impl PartialEq for TrustedRoots {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl fmt::Debug for TrustedRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustedRoots")
            .field("count", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// Keys that certificates can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyType {
    /// ECDSA on P-256.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 4096 bits; takes seconds to make.
    Rsa4096,
}

impl KeyType {
    /// Every type, by the word that objects use.
    pub const ALL: &'static [(&'static str, Self)] = &[
        ("P256", Self::P256),
        ("P384", Self::P384),
        ("RSA2048", Self::Rsa2048),
        ("RSA4096", Self::Rsa4096),
    ];

    /// The word that objects use.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, key_type)| *key_type == self)
            .map_or("P256", |(word, _)| word)
    }
}

/// Whom to ask when to renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RenewalSource {
    /// The authority (RFC 9773), and the lifetime where it does not say.
    #[default]
    Ari,
    /// The lifetime alone.
    Lifetime,
}

/// A way to prove control of names.
#[derive(Debug, Clone)]
pub struct Solver {
    /// Name within the issuer.
    pub name: String,
    /// Zones that the names must be in; none means any.
    pub zones: Vec<HostPattern>,
    /// Names as such; none means any.
    pub names: Vec<HostPattern>,
    /// How.
    pub method: Method,
}

/// How control is proven.
#[derive(Debug, Clone)]
pub enum Method {
    /// RFC 8555 §8.3: a file under `/.well-known/acme-challenge/` on port 80.
    Http01,
    /// RFC 8737: a certificate on port 443.
    TlsAlpn01,
    /// RFC 8555 §8.4: a TXT record that is written for each order.
    Dns01(DnsMethod),
    /// A TXT record that stays, written by a person once.
    DnsPersist01,
    /// One that cannot be used as it is written. It is kept to say so to names that only it is for.
    Broken(ChallengeType, challenge::Broken),
}

impl Method {
    /// The type of challenge it answers.
    pub fn kind(&self) -> ChallengeType {
        match self {
            Self::Http01 => ChallengeType::Http01,
            Self::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Self::Dns01(_) => ChallengeType::Dns01,
            Self::DnsPersist01 => ChallengeType::DnsPersist01,
            Self::Broken(kind, _) => *kind,
        }
    }

    /// The type's name in the ACME registry.
    pub fn challenge(&self) -> &'static str {
        self.kind().as_str()
    }
}

/// What writes TXT records.
#[derive(Debug, Clone)]
pub struct DnsMethod {
    /// The writer.
    pub solver: Arc<dyn DnsSolver>,
    /// Who is asked where the record belongs; this machine's name servers if empty.
    pub name_servers: Vec<SocketAddr>,
    /// How long to wait until all servers of the zone show the record, and which are asked.
    pub propagation: propagation::Settings,
    /// SHA-256 over all settings, credentials included.
    pub fingerprint: [u8; 32],
}

impl DnsMethod {
    /// Asks these name servers, or this machine's if there are none.
    pub fn client(name_servers: &[SocketAddr]) -> Result<DnsClient, SolverError> {
        if name_servers.is_empty() {
            DnsClient::system(QUERY).map_err(|source| SolverError::Query {
                fqdn: "the zone".to_owned(),
                source,
            })
        } else {
            Ok(DnsClient::new(name_servers.to_vec(), QUERY))
        }
    }

    /// Who is asked where the record belongs.
    pub fn resolver(&self) -> Result<DnsClient, SolverError> {
        Self::client(&self.name_servers)
    }
}

impl Solver {
    /// The solver as the choice of a challenge takes it.
    pub(crate) fn plan(&self) -> challenge::Solver {
        challenge::Solver {
            name: self.name.clone(),
            zones: self
                .zones
                .iter()
                .map(|zone| match zone {
                    HostPattern::Exact(host) | HostPattern::Wildcard(host) => host.clone(),
                })
                .collect(),
            names: self.names.clone(),
            kind: self.method.kind(),
            broken: match &self.method {
                Method::Broken(_, broken) => Some(broken.clone()),
                _ => None,
            },
        }
    }
}

/// A certificate that the engine must get and keep.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Identity in the store, such as `default/blog`.
    pub id: String,
    /// Names it must cover, sorted, without duplicates, never empty.
    pub names: Vec<HostPattern>,
    /// Who issues it.
    pub issuer: Arc<Issuer>,
    /// Who issues it while that one fails.
    pub fallback: Option<Arc<Issuer>>,
}

impl Issuer {
    /// Whether a name may be proven by a record that stays.
    pub(crate) fn has_lasting_record(&self) -> bool {
        let mut methods = self.solvers.iter().map(|solver| &solver.method);
        methods.any(|method| matches!(method, Method::DnsPersist01))
    }
}

impl Wanted {
    /// Which of the two issuers a certificate came from.
    pub fn issuer_of(&self, issued: &Issued) -> Option<&Arc<Issuer>> {
        std::iter::once(&self.issuer)
            .chain(&self.fallback)
            .find(|issuer| Some(&issuer.directory) == issued.directory.as_ref())
    }

    /// Changes when anything changes that a failed attempt may have been due to, so that the next one
    /// need not wait.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let mut field = |text: &str| {
            hash.update(text.as_bytes());
            hash.update([0]);
        };
        for name in &self.names {
            field(&name.to_string());
        }
        for issuer in std::iter::once(&self.issuer).chain(&self.fallback) {
            field(&issuer.name);
            field(&issuer.directory);
            field(issuer.staging_directory.as_deref().unwrap_or_default());
            field(issuer.profile.as_deref().unwrap_or_default());
            field(issuer.key_type.as_str());
            if let Some(external) = &issuer.external_account {
                field(&external.key_id);
                let key: [u8; 32] = Sha256::digest(external.hmac_key.expose()).into();
                field(&hex(&key));
            }
            if let Some(roots) = &issuer.roots {
                field(&hex(&roots.fingerprint));
            }
            for solver in &issuer.solvers {
                field(&solver.name);
                field(solver.method.challenge());
                for pattern in solver.zones.iter().chain(&solver.names) {
                    field(&pattern.to_string());
                }
                match &solver.method {
                    Method::Dns01(with) => field(&hex(&with.fingerprint)),
                    Method::Broken(_, broken) => field(&broken.why),
                    _ => {}
                }
            }
        }
        let digest: [u8; 32] = hash.finalize().into();
        hex(&digest[..8])
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or('0');
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(digit).collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::dns::TxtRecord;

    #[derive(Debug)]
    struct Nothing;

    #[async_trait::async_trait]
    impl DnsSolver for Nothing {
        fn name(&self) -> String {
            "nothing".to_owned()
        }

        async fn present(&self, _: &TxtRecord, _: SystemTime) -> Result<(), SolverError> {
            Ok(())
        }

        async fn remove(&self, _: &TxtRecord, _: SystemTime) -> Result<(), SolverError> {
            Ok(())
        }
    }

    #[test]
    fn a_changed_credential_changes_the_fingerprint() {
        let wanted = |credential: u8, hmac: &[u8]| Wanted {
            id: "default/a".to_owned(),
            names: vec![HostPattern::parse("a.example").unwrap()],
            issuer: Arc::new(Issuer {
                name: "ca".to_owned(),
                directory: "https://ca.example/dir".to_owned(),
                staging_directory: None,
                contact: Vec::new(),
                profile: None,
                key_type: KeyType::P256,
                external_account: Some(ExternalAccount {
                    key_id: "k".to_owned(),
                    hmac_key: Secret::new(hmac.to_vec()),
                }),
                roots: None,
                renewal: RenewalSource::Ari,
                notifications: Vec::new(),
                fallback: None,
                solvers: vec![Solver {
                    name: "s".to_owned(),
                    zones: Vec::new(),
                    names: Vec::new(),
                    method: Method::Dns01(DnsMethod {
                        solver: Arc::new(Nothing),
                        name_servers: Vec::new(),
                        propagation: propagation::Settings::default(),
                        fingerprint: [credential; 32],
                    }),
                }],
            }),
            fallback: None,
        };
        let fingerprint = wanted(1, b"one").fingerprint();
        assert_eq!(wanted(1, b"one").fingerprint(), fingerprint);
        assert_ne!(wanted(2, b"one").fingerprint(), fingerprint);
        assert_ne!(wanted(1, b"two").fingerprint(), fingerprint);
        assert_eq!(fingerprint.len(), 16);
    }
}
