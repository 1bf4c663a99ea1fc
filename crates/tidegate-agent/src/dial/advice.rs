//! What to do about a dial that failed: the same words for the doctor and for the agent's log.

use std::io;

use rustls::CertificateError;

use super::{DialError, ProxyError};
use crate::config::Edge;

/// How to mend it, where that is known without a look at anything else.
pub(crate) fn advice(error: &DialError, edge: &Edge) -> Option<String> {
    let words = match error {
        DialError::Proxy(error) => return Some(of_proxy(error, edge)),
        DialError::Token(_) => {
            "give the agent a token that it can read: --token-file or TIDEGATE_AGENT_TOKEN"
        }
        DialError::Refused { status, .. } => match status.as_u16() {
            401 => {
                "compare the agent's name and token with the TunnelAgent and its Secret at the edge; \
                 `tidegate agent token` makes a new token"
            }
            403 => "the TunnelAgent has suspend: true",
            426 => "update the older one of agent and edge",
            429 => "wait a minute; other agents of this address may be failing all the time",
            503 => "the edge is about to end: try again in a moment",
            _ => return None,
        },
        DialError::NotDirect => "nothing, as long as the WebSocket carrier works",
        DialError::Answer(_) => {
            "what answers at that name is no edge that knows agents: look at the address, and at proxies in front \
             of the edge, which must pass WebSockets and the path /.tunnel/v1 on"
        }
        _ => return None,
    };
    Some(words.to_owned())
}

fn of_proxy(error: &ProxyError, edge: &Edge) -> String {
    match error {
        ProxyError::Reach(..) => {
            "look at the proxy's name and port, and whether it runs".to_owned()
        }
        ProxyError::Tls(proxy, source) => of_proxy_tls(proxy, source),
        ProxyError::Login(proxy) => {
            let (scheme, _) = proxy.split_once("://").unwrap_or(("http", ""));
            format!(
                "write them into the proxy's URL: {scheme}://USER:PASSWORD@…, with what means something in a URL \
                 as %XX"
            )
        }
        ProxyError::Http(proxy, _) if proxy.starts_with("http://") => {
            "look at the proxy's port; if the proxy does TLS there, write https:// before its name"
                .to_owned()
        }
        ProxyError::Http(..) => "look at the proxy's port, and at its log".to_owned(),
        ProxyError::Status(..) | ProxyError::Socks(..) => through_proxy(edge),
    }
}

fn of_proxy_tls(proxy: &str, error: &io::Error) -> String {
    match certificate_error(error) {
        None => "look at the proxy's port; if the proxy does no TLS there, write http:// before its name"
            .to_owned(),
        Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "write the proxy by a name that its certificate has".to_owned()
        }
        Some(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => format!("have the certificate of {proxy} renewed, or set this machine's clock right"),
        Some(_) => format!(
            "put the authority that issued the certificate of {proxy} into a file and name it by caFile \
             (--ca-file), which may hold the edge's authority as well"
        ),
    }
}

/// The proxy's own rules stand in the way.
pub(crate) fn through_proxy(edge: &Edge) -> String {
    format!(
        "let the proxy allow CONNECT to {}:{}, or write a proxy that does",
        edge.host.in_url(),
        edge.port
    )
}

fn certificate_error(error: &io::Error) -> Option<&CertificateError> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(error) => Some(error),
        _ => None,
    }
}
