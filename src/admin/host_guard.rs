//! Refuses requests that a browser was tricked into sending.
//!
//! A page of `evil.example` whose name suddenly resolves to 127.0.0.1 may read what this listener answers: to
//! the browser it is the same origin. Its Host header gives it away: nobody but DNS makes a public name mean
//! this machine, so only `localhost`, addresses and names that were configured are answered.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tidegate_model::HostName;

/// The names that are answered besides `localhost` and addresses.
#[derive(Debug, Clone, Default)]
pub struct HostGuard(Arc<[HostName]>);

impl HostGuard {
    /// Answers these names too.
    pub fn new(names: impl IntoIterator<Item = HostName>) -> Self {
        Self(names.into_iter().collect())
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            // Only HTTP/1.0 may leave it out, and browsers never do.
            (None, _) => return true,
            (Some(host), None) => host,
            (Some(_), Some(_)) => return false,
        };
        host.to_str()
            .ok()
            .map(without_port)
            .and_then(|host| HostName::parse(host).ok())
            .is_some_and(|host| {
                host.ip().is_some()
                    || host.as_str() == "localhost"
                    || host.as_str().ends_with(".localhost")
                    || self.0.contains(&host)
            })
    }
}

pub(super) async fn check(guard: HostGuard, request: Request, next: Next) -> Response {
    if guard.allows(request.headers()) {
        return next.run(request).await;
    }
    let message = "the admin listener answers only Host headers that are localhost, an address, or a name given with --admin-host\n";
    (StatusCode::MISDIRECTED_REQUEST, message).into_response()
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // The last colon of `::1` is none of a port.
        Some((host, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_no_stranger_controls_are_answered() {
        let guard = HostGuard::new([HostName::parse("edge.internal").unwrap()]);
        let allows = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            guard.allows(&headers)
        };
        for host in [
            "localhost",
            "LOCALHOST:9180",
            "app.localhost",
            "127.0.0.1:9180",
            "[::1]:9180",
            "[::1]",
            "192.168.1.2",
            "edge.internal:9180",
        ] {
            assert!(allows(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9180",
            "",
            "localhost.evil.example",
            "a b",
        ] {
            assert!(!allows(host), "{host}");
        }
        assert!(guard.allows(&HeaderMap::new()));
        let mut twice = HeaderMap::new();
        twice.append(header::HOST, "localhost".parse().unwrap());
        twice.append(header::HOST, "evil.example".parse().unwrap());
        assert!(!guard.allows(&twice));
    }
}
