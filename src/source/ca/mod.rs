//! The internal certificate authority: certificates for hosts that no public CA can or need know.
//!
//! ```text
//! ca/ca.pem            root: key and certificate, ten years, ECDSA P-256
//! ca/ca.crt            the root's certificate alone, for `curl --cacert`
//! certificates/ID.pem  one leaf per wanted certificate: key and certificate
//! ```
//!
//! Key and certificate share a file, so that one atomic write replaces both. A leaf gets a new key each time
//! it is issued; it is issued again after two thirds of its life, when its names change and when the root does.
//! Nothing is ever served from here: what is issued becomes an ordinary certificate of the inputs.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use tidegate_model::{HostPattern, Secret};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

use super::state::{StateError, StateFolder};

/// Life of a leaf unless told otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_hours(90 * 24);
/// Shortest life of a leaf that may be asked for.
pub const MIN_LIFETIME: Duration = Duration::from_secs(10);
const ROOT_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Clocks of clients that are a little behind must not see a certificate of the future.
const CLOCK_SKEW: Duration = Duration::from_hours(1);
/// File of the root in the state folder: key and certificate.
pub const ROOT: &str = "ca/ca.pem";
/// Folder of the leaves.
const LEAVES: &str = "certificates";
const ROOT_CERTIFICATE: &str = "ca/ca.crt";

/// Why the CA cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The state folder failed.
    #[error("keep the internal CA's files")]
    State(#[from] StateError),
    /// A key or certificate could not be made.
    #[error("issue a certificate for {names}")]
    Issue {
        /// The names, joined by commas.
        names: String,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
    /// No root was made yet.
    #[error("find the internal CA in {0:?}: none was made yet, `tidegate run` makes one")]
    NoRoot(PathBuf),
    /// The root's file is damaged.
    #[error("read the internal CA's root in {0:?}: the file is damaged")]
    DamagedRoot(PathBuf),
}

impl CaError {
    /// The reason for statuses and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::State(error) => error.reason(),
            Self::Issue { .. } => "IssueFailed",
            Self::NoRoot(_) => "NoRoot",
            Self::DamagedRoot(_) => "DamagedRoot",
        }
    }
}

/// A leaf as it is served.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: Secret<String>,
    /// When it will be issued again.
    pub renew_at: SystemTime,
    /// When clients stop accepting it.
    pub not_after: SystemTime,
    names: Vec<String>,
}

/// The CA of one state folder.
pub struct InternalCa {
    root_pem: String,
    root_key_id: Vec<u8>,
    root_not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
    lifetime: Duration,
    leaves: HashMap<String, Leaf>,
    /// Whether files of leaves that nobody wants were looked for.
    swept: bool,
}

impl std::fmt::Debug for InternalCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InternalCa")
            .field("leaves", &self.leaves.len())
            .finish_non_exhaustive()
    }
}

impl InternalCa {
    /// Reads the root of the state folder or makes one. A root that cannot be read is set aside, a new one is
    /// made and both are said: clients must then trust the new one.
    pub fn open(state: &StateFolder, lifetime: Duration, now: SystemTime) -> Result<Self, CaError> {
        if let Some(text) = state.read(ROOT)? {
            match parse_root(&text) {
                Some(root) if root.not_after > now => {
                    if state.read(ROOT_CERTIFICATE)?.as_ref() != Some(&root.cert_pem) {
                        state.write(ROOT_CERTIFICATE, &root.cert_pem)?;
                    }
                    return Ok(Self::with(root, lifetime));
                }
                Some(_) => {
                    let aside = state.set_aside(ROOT)?;
                    tracing::warn!(path = %aside.display(), "the internal CA's root expired and was set aside; a new one is made, which clients must trust: see `tidegate ca`");
                }
                None => {
                    let aside = state.set_aside(ROOT)?;
                    tracing::error!(path = %aside.display(), "the internal CA's root is damaged and was set aside; a new one is made, which clients must trust: see `tidegate ca`. To keep the old one, stop tidegate and restore ca/ca.pem from a backup");
                }
            }
        }
        let text = new_root(now).map_err(|source| CaError::Issue {
            names: "the internal CA".to_owned(),
            source,
        })?;
        state.write(ROOT, &text)?;
        let root =
            parse_root(&text).ok_or_else(|| CaError::DamagedRoot(state.path().join(ROOT)))?;
        state.write(ROOT_CERTIFICATE, &root.cert_pem)?;
        tracing::info!(path = %state.path().join(ROOT_CERTIFICATE).display(), "made an internal CA; `tidegate ca` prints its certificate and how to trust it");
        Ok(Self::with(root, lifetime))
    }

    fn with(root: Root, lifetime: Duration) -> Self {
        Self {
            root_pem: root.cert_pem,
            root_key_id: root.key_id,
            root_not_after: root.not_after,
            issuer: root.issuer,
            lifetime: lifetime.max(MIN_LIFETIME),
            leaves: HashMap::new(),
            swept: false,
        }
    }

    /// The root's certificate, which clients are to trust.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The leaf kept under this id with exactly these names: from memory, from the state folder, or newly
    /// issued when there is none, when the names or the root changed, or when two thirds of its life are over.
    pub fn leaf(
        &mut self,
        state: &StateFolder,
        id: &str,
        names: &[HostPattern],
        now: SystemTime,
    ) -> Result<Leaf, CaError> {
        let mut wanted: Vec<String> = names.iter().map(ToString::to_string).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let fresh = |leaf: &Leaf| leaf.names == wanted && now < leaf.renew_at;
        if let Some(leaf) = self.leaves.get(id).filter(|leaf| fresh(leaf)) {
            return Ok(leaf.clone());
        }
        let file = leaf_file(id);
        if let Some(text) = state.read(&file)? {
            match self.parse_leaf(&text) {
                ParsedLeaf::Ours(leaf) if fresh(&leaf) => {
                    self.leaves.insert(id.to_owned(), leaf.clone());
                    return Ok(leaf);
                }
                ParsedLeaf::Ours(_) | ParsedLeaf::OtherRoot => {}
                ParsedLeaf::Damaged => {
                    let aside = state.set_aside(&file)?;
                    tracing::warn!(path = %aside.display(), "a certificate of the internal CA is damaged and was set aside; it is issued again");
                }
            }
        }
        let text = self.issue(&wanted, now).map_err(|source| CaError::Issue {
            names: wanted.join(", "),
            source,
        })?;
        // Not synced: a leaf lost in a crash is issued again.
        state.write_unsynced(&file, &text)?;
        let ParsedLeaf::Ours(leaf) = self.parse_leaf(&text) else {
            return Err(CaError::Issue {
                names: wanted.join(", "),
                source: rcgen::Error::CouldNotParseCertificate,
            });
        };
        tracing::info!(id, names = wanted.join(","), not_after = %rfc3339(leaf.not_after), "issued a certificate from the internal CA");
        self.leaves.insert(id.to_owned(), leaf.clone());
        Ok(leaf)
    }

    /// Forgets leaves whose id is not wanted any more and removes their files, those of earlier processes too.
    pub fn retain(&mut self, state: &StateFolder, wanted: &BTreeSet<String>) {
        let known = self.leaves.len();
        self.leaves.retain(|id, _| wanted.contains(id));
        if self.swept && self.leaves.len() == known {
            return;
        }
        self.swept = true;
        let files: BTreeSet<String> = wanted.iter().map(|id| leaf_file(id)).collect();
        for name in state.list(LEAVES) {
            let file = format!("{LEAVES}/{name}");
            let is_leaf = Path::new(&file).extension().is_some_and(|it| it == "pem");
            if is_leaf
                && !files.contains(&file)
                && let Err(error) = state.remove(&file)
            {
                tracing::warn!(error = %tidegate_telemetry::chain(&error), "cannot remove an unused certificate");
            }
        }
    }

    /// When the first of the kept leaves wants to be issued again.
    pub fn next_renewal(&self) -> Option<SystemTime> {
        self.leaves.values().map(|leaf| leaf.renew_at).min()
    }

    fn issue(&self, names: &[String], now: SystemTime) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| {
                Ok(match name.parse::<IpAddr>() {
                    Ok(ip) => SanType::IpAddress(ip),
                    Err(_) => SanType::DnsName(name.as_str().try_into()?),
                })
            })
            .collect::<Result<_, rcgen::Error>>()?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        // RFC 5280 §A.1: a common name holds at most 64 characters; the names themselves are in the SAN.
        if let Some(first) = names.iter().find(|name| name.len() <= 64) {
            params
                .distinguished_name
                .push(DnType::CommonName, first.as_str());
        }
        params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
        params.not_after = OffsetDateTime::from((now + self.lifetime).min(self.root_not_after));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
    }

    fn parse_leaf(&self, text: &str) -> ParsedLeaf {
        parse_leaf(text, &self.root_key_id).unwrap_or(ParsedLeaf::Damaged)
    }
}

/// The root's certificate of a state folder, for people.
pub fn read_root(state: &StateFolder) -> Result<String, CaError> {
    let path = || state.path().join(ROOT);
    let text = state.read(ROOT)?.ok_or_else(|| CaError::NoRoot(path()))?;
    parse_root(&text)
        .map(|root| root.cert_pem)
        .ok_or_else(|| CaError::DamagedRoot(path()))
}

/// The leaf of this id as the state folder has it, for people; None when there is none that can be used.
pub fn read_leaf(state: &StateFolder, id: &str) -> Option<Leaf> {
    let root = parse_root(&state.read(ROOT).ok()??)?;
    match parse_leaf(&state.read(&leaf_file(id)).ok()??, &root.key_id)? {
        ParsedLeaf::Ours(leaf) => Some(leaf),
        ParsedLeaf::OtherRoot | ParsedLeaf::Damaged => None,
    }
}

enum ParsedLeaf {
    Ours(Leaf),
    OtherRoot,
    Damaged,
}

struct Root {
    cert_pem: String,
    key_id: Vec<u8>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

fn new_root(now: SystemTime) -> Result<String, rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mark = Sha256::digest(key.public_key_raw());
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // The mark tells the roots of several edges apart in a list of trusted certificates.
    params.distinguished_name.push(
        DnType::CommonName,
        format!(
            "Tidegate internal CA {:02x}{:02x}{:02x}{:02x}",
            mark[0], mark[1], mark[2], mark[3]
        ),
    );
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Tidegate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
    params.not_after = OffsetDateTime::from(now + ROOT_LIFETIME);
    let certificate = params.self_signed(&key)?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
}

fn parse_root(text: &str) -> Option<Root> {
    let der = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
    let key = KeyPair::from_pem(text).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    if !parsed.is_ca()
        || parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw()
    {
        return None;
    }
    let key_id =
        parsed
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => {
                    Some(id.0.to_vec())
                }
                _ => None,
            })?;
    let not_after = system_time(parsed.validity().not_after.timestamp())?;
    let issuer = Issuer::from_ca_cert_der(&der, key).ok()?;
    Some(Root {
        cert_pem: certificate_part(text)?.to_owned(),
        key_id,
        not_after,
        issuer,
    })
}

fn parse_leaf(text: &str, root_key_id: &[u8]) -> Option<ParsedLeaf> {
    let der = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
    let key = KeyPair::from_pem(text).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return None;
    }
    let issued_by =
        parsed
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            });
    if issued_by.as_deref() != Some(root_key_id) {
        return Some(ParsedLeaf::OtherRoot);
    }
    let mut names: Vec<String> = parsed
        .subject_alternative_name()
        .ok()??
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
            _ => None,
        })
        .collect();
    names.sort_unstable();
    let issued = system_time(parsed.validity().not_before.timestamp())? + CLOCK_SKEW;
    let not_after = system_time(parsed.validity().not_after.timestamp())?;
    let life = not_after.duration_since(issued).unwrap_or_default();
    let cert_pem = certificate_part(text)?;
    Some(ParsedLeaf::Ours(Leaf {
        cert_pem: cert_pem.to_owned(),
        key_pem: Secret::new(text.replace(cert_pem, "")),
        renew_at: issued + life * 2 / 3,
        not_after,
        names,
    }))
}

fn certificate_part(text: &str) -> Option<&str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    text.find(BEGIN).map(|start| &text[start..])
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn system_time(seconds: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

/// Ids hold slashes and may be longer than a file name: readable start, unmistakable end.
fn leaf_file(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    let readable: String = id
        .chars()
        .take(80)
        .map(|c| match c {
            'a'..='z' | '0'..='9' | '-' => c,
            _ => '_',
        })
        .collect();
    format!(
        "{LEAVES}/{readable}-{:02x}{:02x}{:02x}{:02x}.pem",
        digest[0], digest[1], digest[2], digest[3]
    )
}

#[cfg(test)]
mod tests;
