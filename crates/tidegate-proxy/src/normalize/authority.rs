//! Which host a request is for: rules 1 and 2. One strict parser for Host, `:authority` and absolute-form,
//! so that no two readers can see different hosts in one request.

use http::Version;
use http::header;
use http::uri::Scheme;
use tidegate_model::HostName;

use super::Refusal;

/// Host and port as the client wrote them, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    /// Canonical host.
    pub host: HostName,
    /// Port, when one was written.
    pub port: Option<u16>,
}

impl Authority {
    /// Parses `host[:port]`: a DNS name, an IPv4 address or an IPv6 address in brackets. No userinfo, no
    /// empty or zero port, nothing around it.
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        let (host, port) = if text.starts_with('[') {
            let end = text.find(']').ok_or(INVALID)?;
            let (host, rest) = text.split_at(end + 1);
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(INVALID),
            }
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let host = HostName::parse(host).map_err(|_| INVALID)?;
        let port = match port {
            None => None,
            Some(digits) => Some(parse_port(digits).ok_or(INVALID)?),
        };
        Ok(Self { host, port })
    }
}

const INVALID: Refusal = Refusal::bad_request(
    "InvalidHost",
    "the host of the request is not a name or address with an optional port",
);

const CONFLICT: Refusal = Refusal::bad_request("HostConflict", "the request names two hosts");

/// `1*5DIGIT` from 1 to 65535; `u16::from_str` would take a plus sign.
fn parse_port(digits: &str) -> Option<u16> {
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|port| *port != 0)
}

/// The raw text of the host that the request is for, to be given to [`Authority::parse`].
///
/// None for an HTTP/1.0 request that names none; the TLS server name stands in for it then.
pub(crate) fn authority(parts: &http::request::Parts) -> Result<Option<&str>, Refusal> {
    if let Some(scheme) = parts.uri.scheme()
        && *scheme != Scheme::HTTP
        && *scheme != Scheme::HTTPS
    {
        return Err(Refusal::bad_request(
            "Scheme",
            "the scheme of the request is neither http nor https",
        ));
    }
    let target = parts.uri.authority().map(http::uri::Authority::as_str);
    let mut fields = parts.headers.get_all(header::HOST).iter();
    let host = match fields.next() {
        Some(value) => Some(value.to_str().map_err(|_| INVALID)?),
        None => None,
    };
    if fields.next().is_some() {
        return Err(CONFLICT);
    }
    match (target, host) {
        // HTTP/2 and absolute-form: both, and they agree.
        (Some(target), Some(host)) if target.eq_ignore_ascii_case(host) => Ok(Some(target)),
        (Some(_), Some(_)) => Err(CONFLICT),
        (Some(target), None) if parts.version != Version::HTTP_11 => Ok(Some(target)),
        (None, Some("")) => Err(INVALID),
        (None, Some(host)) => Ok(Some(host)),
        (None, None) if parts.version == Version::HTTP_10 => Ok(None),
        (_, None) => Err(Refusal::bad_request(
            "MissingHost",
            "the request does not say which host it is for",
        )),
    }
}
