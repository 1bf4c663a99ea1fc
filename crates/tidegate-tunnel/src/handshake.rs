//! The request that a link begins with, the same over both carriers; what both ends must write and read alike.
//!
//! ```text
//! GET /.tunnel/v1 HTTP/1.1                    HTTP/1.1 101 Switching Protocols
//! Host: edge.example.com                      Connection: Upgrade
//! Connection: Upgrade                         Upgrade: websocket
//! Upgrade: websocket | tidegate-tunnel        Tidegate-Tunnel-Version: 1
//! Tidegate-Tunnel-Versions: 1
//! Authorization: Tidegate edge="…", agent="…", instance="…", link=0, time=…, nonce="…", proof="…"
//! ```
//!
//! Only forms are checked here: who may connect is decided by whoever knows the agents.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use serde::{Deserialize, Serialize};
use tidegate_model::Secret;

/// Where the edge expects it.
pub const PATH: &str = "/.tunnel/v1";
/// ALPN of TLS connections that are links from the first byte on.
pub const ALPN: &[u8] = b"tidegate-tunnel/1";
/// Label of the TLS exporter that proofs are bound to (RFC 9266); 32 bytes, no context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
/// Length of that.
pub const EXPORTER_LENGTH: usize = 32;
/// Scheme of the Authorization field.
pub const SCHEME: &str = "Tidegate";
/// Upgrade token of the direct carrier.
pub const UPGRADE_DIRECT: &str = "tidegate-tunnel";
/// Upgrade token of the WebSocket carrier.
pub const UPGRADE_WEBSOCKET: &str = "websocket";
/// Subprotocol of the WebSocket carrier.
pub const SUBPROTOCOL: &str = "tunnel.v1";
/// Versions that the agent speaks, or the edge where it speaks none of those.
pub const VERSIONS: HeaderName = HeaderName::from_static("tidegate-tunnel-versions");
/// The version that was chosen.
pub const VERSION: HeaderName = HeaderName::from_static("tidegate-tunnel-version");
/// Versions that this build speaks, best first.
pub const SPOKEN: &[u16] = &[1];

/// Field names that belong to the tunnel begin so. The edge removes them from what visitors send, the agent from what
/// it sends to targets.
pub const FIELD_PREFIX: &str = "tidegate-tunnel-";
/// [`crate::wire::Mapping::id`] of a data stream.
pub const MAPPING: HeaderName = HeaderName::from_static("tidegate-tunnel-mapping");
/// The visitor as the edge sees it: `ip:port`.
pub const CLIENT: HeaderName = HeaderName::from_static("tidegate-tunnel-client");
/// The address of the edge that the visitor came to: `ip:port`.
pub const LOCAL: HeaderName = HeaderName::from_static("tidegate-tunnel-local");
/// The request target with bytes that no URI may hold.
pub const TARGET: HeaderName = HeaderName::from_static("tidegate-tunnel-target");
/// Why the agent answers with a status of its own.
pub const ERROR: HeaderName = HeaderName::from_static("tidegate-tunnel-error");
/// Between replicas: whose mapping it is, `namespace/name`. Agents do not get it.
pub const AGENT: HeaderName = HeaderName::from_static("tidegate-tunnel-agent");
/// Between replicas: the process of the agent that is meant; another will do where it is gone.
pub const INSTANCE: HeaderName = HeaderName::from_static("tidegate-tunnel-instance");
/// ALPN of the connections between replicas, which are links from the first byte on.
pub const ALPN_REPLICA: &[u8] = b"tidegate-replica/1";
/// [`ERROR`] of a replica: it has no link to the agent. Nothing of the request was read.
pub const NO_LINK: &str = "NoLink";
/// [`ERROR`] of a replica: the agent had not begun with the request when its link ended.
pub const NOT_BEGUN: &str = "NotBegun";
/// [`ERROR`] of a replica: the link ended with the request on it.
pub const LINK_LOST: &str = "LinkLost";
/// [`ERROR`] of a replica: its links to the agent take no more requests.
pub const LINK_BUSY: &str = "LinkBusy";
/// `:protocol` of a TCP stream.
pub const PROTOCOL_TCP: &str = "tidegate-tcp";
/// `:protocol` of a stream of datagrams.
pub const PROTOCOL_UDP: &str = "tidegate-udp";

/// Longest Authorization field.
const MAX_AUTHORIZATION: usize = 1024;
/// Appended to the key, RFC 6455 §1.3.
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How the connection goes on after 101.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// Bytes.
    Direct,
    /// Bytes in WebSocket frames.
    WebSocket {
        /// `Sec-WebSocket-Key`, 16 random bytes in base64.
        key: HeaderValue,
    },
}

impl Upgrade {
    /// A WebSocket upgrade with a fresh key.
    pub fn websocket() -> Self {
        let key = STANDARD.encode(fastrand::u128(..).to_be_bytes());
        // Base64 is always a valid field value.
        let key = HeaderValue::try_from(key)
            .unwrap_or_else(|_| HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="));
        Self::WebSocket { key }
    }

    /// What a request asks for; None when it is no handshake of ours.
    pub fn of<B>(request: &Request<B>) -> Option<Self> {
        let headers = request.headers();
        let one = |name: HeaderName| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none())
        };
        let list = |name: HeaderName, token: &str| {
            headers
                .get_all(name)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .any(|item| item.trim().eq_ignore_ascii_case(token))
        };
        if request.method() != Method::GET
            || request.version() != Version::HTTP_11
            || request.uri().path() != PATH
            || request.uri().query().is_some()
            || !list(header::CONNECTION, "upgrade")
        {
            return None;
        }
        let upgrade = one(header::UPGRADE)?.to_str().ok()?;
        if upgrade.eq_ignore_ascii_case(UPGRADE_DIRECT) {
            return Some(Self::Direct);
        }
        let key = one(header::SEC_WEBSOCKET_KEY)?;
        let sixteen = STANDARD.decode(key).is_ok_and(|key| key.len() == 16);
        let agreed = upgrade.eq_ignore_ascii_case(UPGRADE_WEBSOCKET)
            && one(header::SEC_WEBSOCKET_VERSION)? == "13"
            && list(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
            && sixteen;
        agreed.then(|| Self::WebSocket { key: key.clone() })
    }

    fn token(&self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Direct => UPGRADE_DIRECT,
            Self::WebSocket { .. } => UPGRADE_WEBSOCKET,
        })
    }

    /// `Sec-WebSocket-Accept`, RFC 6455 §4.2.2.
    pub fn accept(key: &HeaderValue) -> Option<HeaderValue> {
        let mut text = key.as_bytes().to_vec();
        text.extend_from_slice(ACCEPT_SUFFIX.as_bytes());
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &text);
        STANDARD.encode(hash).try_into().ok()
    }
}

/// The agent's request.
///
/// # Errors
/// A value is no field value, which the agent's configuration sees to.
pub fn request(
    host: &str,
    upgrade: &Upgrade,
    authorization: &Authorization,
) -> Result<Request<()>, http::Error> {
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(PATH)
        .header(header::HOST, host)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, upgrade.token())
        .header(VERSIONS, format_versions(SPOKEN))
        .header(header::AUTHORIZATION, authorization.value()?);
    if let Upgrade::WebSocket { key } = upgrade {
        request = request
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key)
            .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    }
    request.body(())
}

/// The edge's answer that the connection goes on as a link.
pub fn accepted(upgrade: &Upgrade, version: u16) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, upgrade.token());
    headers.insert(VERSION, HeaderValue::from(version));
    if let Upgrade::WebSocket { key } = upgrade {
        let protocol = HeaderValue::from_static(SUBPROTOCOL);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        if let Some(accept) = Upgrade::accept(key) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
    }
    response
}

/// Why the answer to [`request`] does not start a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Another status than 101; its body may hold a [`Refusal`].
    #[error("the edge answers with status {0}")]
    Status(StatusCode),
    /// What stands at that name is no edge, or something in between has changed the answer.
    #[error("the answer has no fitting {0} field")]
    Field(HeaderName),
}

/// Checks the edge's answer; tells the version that it chose.
///
/// # Errors
/// [`AnswerError`]
pub fn check_answer<B>(upgrade: &Upgrade, response: &Response<B>) -> Result<u16, AnswerError> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(AnswerError::Status(response.status()));
    }
    let headers = response.headers();
    let field = |name: HeaderName| headers.get(&name).ok_or(AnswerError::Field(name));
    let token = field(header::UPGRADE)?;
    if !token
        .as_bytes()
        .eq_ignore_ascii_case(upgrade.token().as_bytes())
    {
        return Err(AnswerError::Field(header::UPGRADE));
    }
    if let Upgrade::WebSocket { key } = upgrade {
        if Some(field(header::SEC_WEBSOCKET_ACCEPT)?) != Upgrade::accept(key).as_ref() {
            return Err(AnswerError::Field(header::SEC_WEBSOCKET_ACCEPT));
        }
        if field(header::SEC_WEBSOCKET_PROTOCOL)? != SUBPROTOCOL {
            return Err(AnswerError::Field(header::SEC_WEBSOCKET_PROTOCOL));
        }
    }
    let version = field(VERSION)?.to_str().ok();
    version
        .and_then(|version| version.parse().ok())
        .filter(|version| SPOKEN.contains(version))
        .ok_or(AnswerError::Field(VERSION))
}

/// Versions as they stand in [`VERSIONS`].
pub fn format_versions(versions: &[u16]) -> String {
    let versions: Vec<String> = versions.iter().map(u16::to_string).collect();
    versions.join(", ")
}

/// The best version that both speak. Items that are no number are those of a future agent and passed over.
pub fn choose_version(headers: &HeaderMap) -> Option<u16> {
    let offered: Vec<u16> = headers
        .get_all(VERSIONS)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').take(32))
        .filter_map(|item| item.trim().parse().ok())
        .collect();
    SPOKEN
        .iter()
        .copied()
        .find(|spoken| offered.contains(spoken))
}

/// What the agent says of itself. None of the texts can hold a line's end or a quotation mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The edge as it was dialled: host, and port where it is not 443.
    pub edge: String,
    /// Namespace and name.
    pub agent: String,
    /// The process: 32 hexadecimal digits.
    pub instance: String,
    /// Which of the process's links.
    pub link: u8,
    /// Seconds since 1970.
    pub time: u64,
    /// Random, used once.
    pub nonce: String,
    /// That the agent has the token.
    pub proof: Secret<String>,
}

/// Why a field of our scheme cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizationError {
    /// More than anybody needs.
    #[error("the Authorization field is longer than {MAX_AUTHORIZATION} bytes")]
    TooLong,
    /// Not `name=value, name="value"`.
    #[error("the Authorization field is no list of parameters")]
    Form,
    /// Given twice.
    #[error("the Authorization field has {0:?} twice")]
    Twice(&'static str),
    /// Missing, or no value of its kind.
    #[error("the Authorization field has no fitting {0:?}")]
    Missing(&'static str),
}

impl Authorization {
    /// As it stands in the field, marked as sensitive.
    ///
    /// # Errors
    /// A text holds what no field value may.
    pub fn value(&self) -> Result<HeaderValue, http::Error> {
        let Self {
            edge,
            agent,
            instance,
            link,
            time,
            nonce,
            proof,
        } = self;
        let mut text = String::with_capacity(320);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{SCHEME} edge=\"{edge}\", agent=\"{agent}\", instance=\"{instance}\", link={link}, time={time}, \
             nonce=\"{nonce}\", proof=\"{}\"",
            proof.expose()
        );
        let mut value = HeaderValue::try_from(text)?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Reads the field; None when it is of another scheme. Parameters that are not known are passed over.
    ///
    /// # Errors
    /// [`AuthorizationError`]
    pub fn parse(value: &HeaderValue) -> Option<Result<Self, AuthorizationError>> {
        let (scheme, rest) = value.as_bytes().split_at_checked(SCHEME.len())?;
        let rest = rest.strip_prefix(b" ")?;
        scheme
            .eq_ignore_ascii_case(SCHEME.as_bytes())
            .then(|| Self::parse_parameters(rest))
    }

    fn parse_parameters(text: &[u8]) -> Result<Self, AuthorizationError> {
        if text.len() > MAX_AUTHORIZATION {
            return Err(AuthorizationError::TooLong);
        }
        let text = str::from_utf8(text).map_err(|_| AuthorizationError::Form)?;
        let names = [
            "edge", "agent", "instance", "link", "time", "nonce", "proof",
        ];
        let mut values: [Option<&str>; 7] = [None; 7];
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=').ok_or(AuthorizationError::Form)?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').ok_or(AuthorizationError::Form)?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            let fine = |c: u8| c.is_ascii_graphic() && c != b'\\';
            if name.is_empty() || !name.bytes().all(fine) || !value.trim().bytes().all(fine) {
                return Err(AuthorizationError::Form);
            }
            if let Some(place) = names.iter().position(|it| *it == name)
                && values[place].replace(value.trim()).is_some()
            {
                return Err(AuthorizationError::Twice(names[place]));
            }
            rest = after.trim_start();
            if let Some(next) = rest.strip_prefix(',') {
                rest = next.trim_start();
            } else if !rest.is_empty() {
                return Err(AuthorizationError::Form);
            }
        }
        let text = |place: usize| {
            values[place]
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
                .ok_or(AuthorizationError::Missing(names[place]))
        };
        let number = |place: usize| {
            values[place]
                .filter(|value| value.bytes().all(|c| c.is_ascii_digit()))
                .and_then(|value| value.parse::<u64>().ok())
                .ok_or(AuthorizationError::Missing(names[place]))
        };
        let instance = text(2)?;
        let digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if instance.len() != 32 || !instance.bytes().all(digit) {
            return Err(AuthorizationError::Missing(names[2]));
        }
        Ok(Self {
            edge: text(0)?,
            agent: text(1)?,
            instance,
            link: number(3)?
                .try_into()
                .map_err(|_| AuthorizationError::Missing(names[3]))?,
            time: number(4)?,
            nonce: text(5)?,
            proof: Secret::new(text(6)?),
        })
    }
}

/// Body of every answer but 101.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One word.
    pub reason: String,
    /// What was found and how to mend it.
    #[serde(default)]
    pub message: String,
}

impl Refusal {
    /// JSON.
    pub fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what an edge, or something in front of it, answered.
    pub fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

/// Words of [`Refusal::reason`].
pub mod reason {
    /// 401: no valid proof, whatever else.
    pub const CREDENTIAL_REFUSED: &str = "CredentialRefused";
    /// 401: a clock is wrong; the answer has `Date`.
    pub const CLOCK_SKEW: &str = "ClockSkew";
    /// 403, after a valid proof.
    pub const SUSPENDED: &str = "Suspended";
    /// 426, with [`super::VERSIONS`].
    pub const VERSION_NOT_SUPPORTED: &str = "VersionNotSupported";
    /// 429, with `Retry-After`.
    pub const TOO_MANY_HANDSHAKES: &str = "TooManyHandshakes";
    /// 503, with `Retry-After`.
    pub const DRAINING: &str = "Draining";
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn authorization() -> Authorization {
        Authorization {
            edge: "edge.example.com:8443".to_owned(),
            agent: "default/homelab".to_owned(),
            instance: "0123456789abcdef".repeat(2),
            link: 1,
            time: 1_795_300_000,
            nonce: "bm9uY2U".to_owned(),
            proof: Secret::new("cHJvb2Y_-".to_owned()),
        }
    }

    #[test]
    fn each_end_understands_the_other() {
        for upgrade in [Upgrade::Direct, Upgrade::websocket()] {
            let sent = request("edge.example.com", &upgrade, &authorization()).unwrap();
            assert!(!format!("{sent:?}").contains("cHJvb2Y"), "{sent:?}");
            assert_eq!(Upgrade::of(&sent).as_ref(), Some(&upgrade));
            assert_eq!(choose_version(sent.headers()), Some(1));
            let read = Authorization::parse(&sent.headers()[header::AUTHORIZATION]);
            assert_eq!(read, Some(Ok(authorization())));
            assert_eq!(check_answer(&upgrade, &accepted(&upgrade, 1)), Ok(1));
        }
    }

    /// The example of RFC 6455 §1.3.
    #[test]
    fn the_websocket_key_is_answered_as_the_standard_says() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(
            Upgrade::accept(&key).unwrap(),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn what_is_no_handshake_is_not_taken_for_one() {
        let upgrade = Upgrade::websocket();
        let fine = || request("edge.example.com", &upgrade, &authorization()).unwrap();
        let without = |name: HeaderName| {
            let mut request = fine();
            request.headers_mut().remove(name);
            request
        };
        let mut others = vec![
            without(header::CONNECTION),
            without(header::UPGRADE),
            without(header::SEC_WEBSOCKET_KEY),
            without(header::SEC_WEBSOCKET_VERSION),
            without(header::SEC_WEBSOCKET_PROTOCOL),
        ];
        let change = |change: &dyn Fn(&mut Request<()>)| {
            let mut request = fine();
            change(&mut request);
            request
        };
        others.push(change(&|it| *it.method_mut() = Method::POST));
        others.push(change(&|it| *it.version_mut() = Version::HTTP_10));
        others.push(change(&|it| {
            *it.uri_mut() = "/.tunnel/v1?token=x".parse().unwrap();
        }));
        others.push(change(&|it| *it.uri_mut() = "/.tunnel/v2".parse().unwrap()));
        let short = HeaderValue::from_static("c2hvcnQ=");
        let two = |it: &mut Request<()>| {
            it.headers_mut()
                .append(header::SEC_WEBSOCKET_KEY, short.clone());
        };
        others.push(change(&two));
        others.push(change(&|it| {
            it.headers_mut()
                .insert(header::SEC_WEBSOCKET_KEY, short.clone());
        }));
        for other in others {
            assert_eq!(Upgrade::of(&other), None, "{other:?}");
        }
    }

    #[test]
    fn an_answer_of_somebody_else_is_refused() {
        let upgrade = Upgrade::websocket();
        for (name, value) in [
            (header::UPGRADE, "h2c"),
            (header::SEC_WEBSOCKET_ACCEPT, "x"),
            (header::SEC_WEBSOCKET_PROTOCOL, "chat"),
            (VERSION, "2"),
        ] {
            let mut answer = accepted(&upgrade, 1);
            answer
                .headers_mut()
                .insert(name.clone(), HeaderValue::from_static(value));
            assert_eq!(
                check_answer(&upgrade, &answer),
                Err(AnswerError::Field(name.clone()))
            );
            answer.headers_mut().remove(&name);
            assert_eq!(
                check_answer(&upgrade, &answer),
                Err(AnswerError::Field(name))
            );
        }
        let mut answer = accepted(&upgrade, 1);
        *answer.status_mut() = StatusCode::OK;
        let refused = Err(AnswerError::Status(StatusCode::OK));
        assert_eq!(check_answer(&upgrade, &answer), refused);
        let refusal = Refusal {
            reason: reason::DRAINING.to_owned(),
            message: "soon".to_owned(),
        };
        assert_eq!(Refusal::parse(&refusal.body()), Some(refusal));
        assert_eq!(Refusal::parse(b"<html>"), None);
    }

    #[test]
    fn the_best_common_version_is_chosen() {
        for (offered, chosen) in [
            ("1", Some(1)),
            ("3, 2, 1", Some(1)),
            ("2, one, 1.5", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(VERSIONS, HeaderValue::from_static(offered));
            assert_eq!(choose_version(&headers), chosen, "{offered}");
        }
        assert_eq!(choose_version(&HeaderMap::new()), None);
    }

    #[test]
    fn parameters_of_the_future_are_passed_over_and_the_rest_must_be_right() {
        let fine = authorization().value().unwrap();
        let fine = fine.to_str().unwrap();
        let read = |text: &str| Authorization::parse(&HeaderValue::from_str(text).unwrap());
        let future = format!("{fine}, key=2,  colour=\"red\"");
        assert_eq!(read(&future), Some(Ok(authorization())));
        assert_eq!(
            read(&fine.replace("Tidegate ", "tidegate ")),
            Some(Ok(authorization()))
        );
        for other in ["Bearer x", "Tidegates x", "Tide", "Tidegate"] {
            assert_eq!(read(other), None, "{other}");
        }
        for (from, to) in [
            ("link=1", "link=256"),
            ("link=1", "link=+1"),
            ("link=1", "link"),
            ("link=1, ", ""),
            ("time=1795300000", "time=-1"),
            ("0123456789abcdef0", "0123456789ABCDEF0"),
            ("nonce=\"bm9uY2U\"", "nonce=\"\""),
            ("nonce=\"bm9uY2U\"", "nonce=\"bm9uY2U"),
            ("nonce=\"bm9uY2U\"", "nonce=\"bm9 uY2U\""),
            ("nonce=\"bm9uY2U\"", "nonce=\"a\" \"b\""),
            ("agent=", "edge="),
        ] {
            let text = fine.replace(from, to);
            assert_ne!(text, fine);
            assert!(read(&text).unwrap().is_err(), "{text}");
        }
        let long = format!("{fine}, x={}", "x".repeat(1000));
        assert_eq!(read(&long), Some(Err(AuthorizationError::TooLong)));
    }

    proptest! {
        #[test]
        fn no_field_is_too_strange(text in "(Tidegate )?[ -~\\t]{0,200}") {
            if let Ok(value) = HeaderValue::from_str(&text) {
                let _ = Authorization::parse(&value);
            }
        }
    }
}
