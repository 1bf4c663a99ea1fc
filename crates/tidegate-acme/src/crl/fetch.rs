//! Fetches a list by HTTP: with limits, without redirects, through the proxy that is set for https.
//!
//! The list is signed, so that plain HTTP, which most authorities offer it by, is good enough.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tower_service::Service as _;

use crate::client::Proxied;
use crate::oneshot::{self, Call, Reply};

/// Longest list that is read.
const LONGEST: usize = 16 << 20;
/// For everything together.
const TIMEOUT: Duration = Duration::from_secs(90);
/// For one address.
const TIMEOUT_OF_ONE: Duration = Duration::from_secs(30);
/// Addresses of the host that are tried.
const ADDRESSES: usize = 4;

/// Why a list could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// It is no URL that can be asked.
    #[error("{0:?} is no URL that can be asked")]
    Url(String),
    /// No connection, or no answer.
    #[error("ask {host}: {problem}")]
    Exchange {
        /// Host of the URL.
        host: String,
        /// What went wrong.
        problem: String,
    },
    /// Another answer than the list.
    #[error("{host} answered {status}")]
    Status {
        /// Host of the URL.
        host: String,
        /// The status.
        status: StatusCode,
    },
    /// It is too long.
    #[error("the list is longer than {} MiB", LONGEST >> 20)]
    TooLong,
    /// It took too long.
    #[error("no list within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// Fetches the list at a URL. `tls` is used for https.
pub(crate) async fn fetch(url: &str, tls: &Arc<ClientConfig>) -> Result<Vec<u8>, FetchError> {
    let reply = tokio::time::timeout(TIMEOUT, exchange(url, tls))
        .await
        .unwrap_or(Err(FetchError::Timeout))?;
    if reply.body.len() >= LONGEST {
        return Err(FetchError::TooLong);
    }
    Ok(reply.body)
}

async fn exchange(url: &str, tls: &Arc<ClientConfig>) -> Result<Reply, FetchError> {
    let malformed = || FetchError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| malformed())?;
    let (Some(authority), Some(host)) = (uri.authority(), uri.host()) else {
        return Err(malformed());
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (tls, port) = if uri.scheme_str() == Some("https") {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| malformed())?;
        (Some((Arc::clone(tls), name)), 443)
    } else {
        (None, 80)
    };
    let port = uri.port_u16().unwrap_or(port);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority.as_str())
        .header(
            header::USER_AGENT,
            concat!("tidegate/", env!("CARGO_PKG_VERSION")),
        )
        .body(Full::<Bytes>::default())
        .map_err(|_| malformed())?;
    let failed = |problem: String| FetchError::Exchange {
        host: host.to_owned(),
        problem,
    };
    let call = |address| Call {
        address,
        tls: tls.clone(),
        timeout: TIMEOUT_OF_ONE,
        body_limit: LONGEST,
    };
    let mut proxied = Proxied::from_environment();
    let reply = if tls.is_some() && proxied.stands_before(&uri) {
        let stream = proxied.call(uri.clone()).await;
        let stream = stream.map_err(|error| failed(format!("connect to the proxy: {error}")))?;
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        oneshot::over(stream.into_inner(), call(nowhere), request)
            .await
            .map_err(|error| failed(error.to_string()))?
    } else {
        let addresses = tokio::net::lookup_host((host, port)).await;
        let addresses = addresses.map_err(|error| failed(format!("find its address: {error}")))?;
        let mut outcome = Err(failed("it has no address".to_owned()));
        for address in addresses.take(ADDRESSES) {
            let reply = oneshot::send(call(address), request.clone()).await;
            outcome = reply.map_err(|error| failed(error.to_string()));
            if outcome.is_ok() {
                break;
            }
        }
        outcome?
    };
    if reply.status != StatusCode::OK {
        return Err(FetchError::Status {
            host: host.to_owned(),
            status: reply.status,
        });
    }
    Ok(reply)
}
