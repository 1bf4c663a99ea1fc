//! Dynamic update (RFC 2136) signed with a TSIG key (RFC 8945): the one interface that BIND, Knot, `PowerDNS`,
//! Windows DNS and many hosting panels share.
//!
//! One value is added or deleted by its content, so that other values under the name stay. The zone is found
//! at the update server when it is not given. The key is decoded once and appears nowhere again.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine as _;
use hickory_proto::op::update_message::{self, UpdateMessage as _};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TSIG, TsigAlgorithm as Wire, TsigError};
use hickory_proto::rr::{Name, RData, Record, RecordSet, TSigVerifier, TSigner};
use tidegate_model::Secret;

use super::query::{self, DnsClient};
use super::{DnsSolver, SolverError, TxtRecord, parse_name, zone};

/// Difference of clocks that a signature survives, in seconds (RFC 8945 §10).
const FUDGE: u16 = 300;

/// How the update is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TsigAlgorithm {
    /// `hmac-sha256`.
    #[default]
    HmacSha256,
    /// `hmac-sha384`.
    HmacSha384,
    /// `hmac-sha512`.
    HmacSha512,
}

impl TsigAlgorithm {
    fn wire(self) -> Wire {
        match self {
            Self::HmacSha256 => Wire::HmacSha256,
            Self::HmacSha384 => Wire::HmacSha384,
            Self::HmacSha512 => Wire::HmacSha512,
        }
    }
}

impl FromStr for TsigAlgorithm {
    type Err = SolverError;

    fn from_str(text: &str) -> Result<Self, SolverError> {
        match text
            .trim_end_matches('.')
            .to_ascii_lowercase()
            .replace('_', "-")
            .as_str()
        {
            "hmac-sha256" | "hmacsha256" => Ok(Self::HmacSha256),
            "hmac-sha384" | "hmacsha384" => Ok(Self::HmacSha384),
            "hmac-sha512" | "hmacsha512" => Ok(Self::HmacSha512),
            _ => Err(SolverError::Settings {
                what: format!("TSIG algorithm {text:?} is not offered"),
                fix: "use hmac-sha256, hmac-sha384 or hmac-sha512 on both sides".to_owned(),
            }),
        }
    }
}

/// What the update needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The zone's primary server.
    pub server: SocketAddr,
    /// The zone to change; found by asking the server when not given.
    pub zone: Option<String>,
    /// Name of the key, as the server knows it.
    pub key_name: String,
    /// The key in base64, as `tsig-keygen` prints it.
    pub key: Secret<String>,
    /// How it signs.
    pub algorithm: TsigAlgorithm,
    /// Time for one exchange.
    pub timeout: Duration,
}

/// Updates a zone at its primary server.
pub struct Rfc2136 {
    server: SocketAddr,
    zone: Option<Name>,
    signer: TSigner,
    timeout: Duration,
}

impl fmt::Debug for Rfc2136 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rfc2136")
            .field("server", &self.server)
            .field("zone", &self.zone)
            .field("key_name", self.signer.signer_name())
            .finish_non_exhaustive()
    }
}

/// What a server answers instead of doing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// It does not know the key (TSIG error 17).
    BadKey(String),
    /// It knows the key's name, but not this key (TSIG error 16).
    BadSignature(String),
    /// Its clock and ours differ by more than five minutes (TSIG error 18); its clock minus ours in seconds.
    BadTime(Option<i64>),
    /// It does not hold the zone.
    NotAuthoritative,
    /// The name is not in the zone.
    NotZone(String),
    /// The key may not do this.
    Refused(String),
    /// It failed itself.
    ServerFailure,
    /// Its answer is not signed with our key: forged, or by a server without TSIG.
    Unsigned(String),
    /// Any other code.
    Other(String),
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadKey(key) => write!(f, "the server does not know the key {key} (BADKEY)"),
            Self::BadSignature(key) => {
                write!(f, "the secret of key {key} is not the server's (BADSIG)")
            }
            Self::BadTime(Some(ahead)) => write!(
                f,
                "the clocks differ: the server's is {} s {} ours (BADTIME)",
                ahead.unsigned_abs(),
                if *ahead >= 0 { "ahead of" } else { "behind" }
            ),
            Self::BadTime(None) => f.write_str("the clocks differ (BADTIME)"),
            Self::NotAuthoritative => f.write_str("it does not hold this zone (NOTAUTH)"),
            Self::NotZone(name) => write!(f, "{name} is not in this zone (NOTZONE)"),
            Self::Refused(key) => write!(f, "key {key} may not do this (REFUSED)"),
            Self::ServerFailure => f.write_str("it failed itself (SERVFAIL)"),
            Self::Unsigned(why) => write!(f, "its answer is not signed with our key: {why}"),
            Self::Other(code) => f.write_str(code),
        }
    }
}

impl Rejection {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::BadKey(_) => "DnsKeyUnknown",
            Self::BadSignature(_) => "DnsKeyWrong",
            Self::BadTime(_) => "ClockSkew",
            Self::NotAuthoritative | Self::NotZone(_) => "DnsZoneWrong",
            Self::Refused(_) => "DnsUpdateRefused",
            Self::ServerFailure | Self::Other(_) => "DnsUpdateFailed",
            Self::Unsigned(_) => "DnsAnswerUnsigned",
        }
    }

    pub(super) fn fix(&self, server: &str, zone: &str) -> String {
        match self {
            Self::BadKey(key) => format!(
                "define a key named {key} with the same algorithm on {server}, or correct keyName"
            ),
            Self::BadSignature(key) => {
                format!(
                    "copy the secret of key {key} from {server} again; both sides must hold the same"
                )
            }
            Self::BadTime(_) => {
                format!("set the clock of this machine and of {server}, by NTP, within 5 minutes")
            }
            Self::NotAuthoritative => {
                format!("give the address of the primary server of {zone}, or correct the zone")
            }
            Self::NotZone(name) => format!("correct the zone: {name} does not end in {zone}"),
            Self::Refused(key) => format!(
                "allow it on {server}; BIND: `update-policy {{ grant {key} zonesub TXT; }};` in zone {zone}"
            ),
            Self::ServerFailure => {
                format!("read the log of {server}: often it may not write the zone's journal file")
            }
            Self::Unsigned(_) => format!("check that {server} is the server and speaks TSIG"),
            Self::Other(_) => format!("read the log of {server}"),
        }
    }
}

impl Rfc2136 {
    /// Checks the settings; asks nobody yet.
    pub fn new(settings: &Settings) -> Result<Self, SolverError> {
        let settings_error = |what: &str, fix: &str| SolverError::Settings {
            what: what.to_owned(),
            fix: fix.to_owned(),
        };
        let key = base64::engine::general_purpose::STANDARD
            .decode(settings.key.expose().trim())
            .map_err(|_| {
                settings_error(
                    "the TSIG key is not base64",
                    "copy the text after `secret` from the output of tsig-keygen, without quotes",
                )
            })?;
        if key.is_empty() {
            return Err(settings_error(
                "the TSIG key is empty",
                "make one with `tsig-keygen -a hmac-sha256 NAME`",
            ));
        }
        let name = parse_name(&settings.key_name)?;
        let signer = TSigner::new(key, settings.algorithm.wire(), name, FUDGE)
            .map_err(|error| settings_error(&error.to_string(), "use hmac-sha256"))?;
        Ok(Self {
            server: settings.server,
            zone: settings.zone.as_deref().map(parse_name).transpose()?,
            signer,
            timeout: settings.timeout,
        })
    }

    async fn zone_for(&self, name: &Name) -> Result<Name, SolverError> {
        if let Some(zone) = &self.zone {
            return Ok(zone.clone());
        }
        let client = DnsClient::authoritative(vec![self.server], self.timeout);
        let fqdn = name.to_string();
        match zone::zone_of(&client, name).await {
            Ok(Some(zone)) => Ok(zone),
            Ok(None) => Err(SolverError::NoZone { fqdn }),
            Err(source) => Err(SolverError::Query { fqdn, source }),
        }
    }

    async fn update(
        &self,
        record: &TxtRecord,
        now: SystemTime,
        build: impl FnOnce(RecordSet, Name) -> Message,
    ) -> Result<(), SolverError> {
        let name = record.name()?;
        let zone = self.zone_for(&name).await?;
        let rejected = |rejection| SolverError::Rejected {
            server: self.server.to_string(),
            zone: shown(&zone),
            rejection,
        };
        if !zone.zone_of(&name) {
            return Err(rejected(Rejection::NotZone(shown(&name))));
        }
        let text = RData::TXT(TXT::new(vec![record.value.clone()]));
        let set = RecordSet::from(Record::from_rdata(name.clone(), record.ttl_seconds(), text));
        let mut message = build(set, zone.clone());
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let internal = |error: hickory_proto::ProtoError| {
            rejected(Rejection::Other(format!("cannot be signed: {error}")))
        };
        let verifier = message.finalize(&self.signer, seconds).map_err(internal)?;
        debug_assert_eq!(message.zones().len(), 1);
        let bytes = message.to_vec().map_err(internal)?;
        let query_error = |source| SolverError::Query {
            fqdn: record.fqdn.clone(),
            source,
        };
        let reply = query::exchange(self.server, &bytes, self.timeout)
            .await
            .map_err(query_error)?;
        let decoded = query::decode(self.server, &reply).map_err(query_error)?;
        self.judge(&decoded, &reply, verifier, &name, seconds)
            .map_err(rejected)
    }

    /// Success is believed only when signed; an error is believed as it is, for it stops us either way.
    fn judge(
        &self,
        decoded: &Message,
        reply: &[u8],
        verifier: Option<TSigVerifier>,
        name: &Name,
        our_time: u64,
    ) -> Result<(), Rejection> {
        let key = || shown(self.signer.signer_name());
        let tsig: Option<&TSIG> = decoded.signature().map(|record| &record.data);
        match tsig.and_then(|tsig| tsig.error) {
            Some(TsigError::BadKey) => return Err(Rejection::BadKey(key())),
            Some(TsigError::BadSig | TsigError::BadTrunc) => {
                return Err(Rejection::BadSignature(key()));
            }
            Some(TsigError::BadTime) => {
                return Err(Rejection::BadTime(
                    tsig.and_then(|tsig| clock_difference(&tsig.other, our_time)),
                ));
            }
            Some(TsigError::Unknown(code)) => {
                return Err(Rejection::Other(format!("TSIG error {code}")));
            }
            None => {}
        }
        match decoded.metadata.response_code {
            ResponseCode::NoError => {}
            ResponseCode::NotAuth => return Err(Rejection::NotAuthoritative),
            ResponseCode::NotZone => return Err(Rejection::NotZone(shown(name))),
            ResponseCode::Refused => return Err(Rejection::Refused(key())),
            ResponseCode::ServFail => return Err(Rejection::ServerFailure),
            other => return Err(Rejection::Other(other.to_string())),
        }
        if !query::is_response(decoded) {
            return Err(Rejection::Other("it is no answer".to_owned()));
        }
        let Some(mut verifier) = verifier else {
            return Ok(());
        };
        if tsig.is_none() {
            return Err(Rejection::Unsigned("no signature".to_owned()));
        }
        verifier
            .verify(reply)
            .map(drop)
            .map_err(|error| Rejection::Unsigned(error.to_string()))
    }
}

/// The server's 48-bit clock (RFC 8945 §5.2.3) minus ours, in seconds.
fn clock_difference(other: &[u8], our_time: u64) -> Option<i64> {
    let bytes: [u8; 6] = other.try_into().ok()?;
    let theirs = bytes.iter().fold(0_i64, |n, b| (n << 8) | i64::from(*b));
    Some(theirs - i64::try_from(our_time).ok()?)
}

/// Without the final dot, as people write it.
fn shown(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_owned()
}

#[async_trait]
impl DnsSolver for Rfc2136 {
    fn name(&self) -> String {
        format!("RFC 2136 update at {}", self.server)
    }

    async fn present(&self, record: &TxtRecord, now: SystemTime) -> Result<(), SolverError> {
        self.update(record, now, |set, zone| {
            update_message::append(set, zone, false, false)
        })
        .await
    }

    async fn remove(&self, record: &TxtRecord, now: SystemTime) -> Result<(), SolverError> {
        self.update(record, now, |set, zone| {
            update_message::delete_by_rdata(set, zone, false)
        })
        .await
    }
}
