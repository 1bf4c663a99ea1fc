//! Where redirects lead: to HTTPS, and by a rule.
//!
//! A Location is always absolute, so that a path like `//evil.example` cannot become a host. Path and
//! query that are kept are kept byte for byte.

use http::HeaderValue;
use http::uri::PathAndQuery;
use tidegate_model::{HostName, Redirect};

use crate::rewrite;

/// The request that is redirected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RedirectFacts<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Its host.
    pub host: &'a HostName,
    /// The port that the client connected to.
    pub port: u16,
    /// Its target.
    pub target: &'a PathAndQuery,
}

/// Location of the same resource over HTTPS. `port` is the one that clients use for HTTPS.
pub(crate) fn to_https(host: &HostName, port: u16, target: &PathAndQuery) -> Option<HeaderValue> {
    build("https", host.as_str(), port, target.as_str())
}

/// Location for a rule's redirect (Gateway API: parts that are not given are the request's; a given scheme
/// brings its well-known port). None if the object's parts do not make a header value.
pub(crate) fn location(redirect: &Redirect, request: &RedirectFacts<'_>) -> Option<HeaderValue> {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let host = redirect
        .hostname
        .as_deref()
        .unwrap_or_else(|| request.host.as_str());
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => port,
        (None, Some(scheme)) => well_known(scheme),
        (None, None) => request.port,
    };
    match &redirect.path {
        None => build(scheme, host, port, request.target.as_str()),
        Some(path) => {
            let path = rewrite::replace(request.target.path(), path);
            let target = rewrite::with_query(path, request.target.query());
            build(scheme, host, port, &target)
        }
    }
}

fn well_known(scheme: &str) -> u16 {
    if scheme == "http" { 80 } else { 443 }
}

fn build(scheme: &str, host: &str, port: u16, target: &str) -> Option<HeaderValue> {
    let (open, close) = if host.contains(':') {
        ("[", "]")
    } else {
        ("", "")
    };
    let slash = if target.starts_with('/') { "" } else { "/" };
    let target = if target == "*" { "" } else { target };
    let text = if port == well_known(scheme) {
        format!("{scheme}://{open}{host}{close}{slash}{target}")
    } else {
        format!("{scheme}://{open}{host}{close}:{port}{slash}{target}")
    };
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tidegate_model::RedirectPath;

    use super::*;

    fn host(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    #[test]
    fn https_keeps_path_and_query() {
        for (name, port, target, expected) in [
            (
                "a.example",
                443,
                "/x?y=%0et'",
                "https://a.example/x?y=%0et'",
            ),
            ("a.example", 8443, "/", "https://a.example:8443/"),
            ("::1", 8443, "/", "https://[::1]:8443/"),
            (
                "a.example",
                443,
                "//evil.example",
                "https://a.example//evil.example",
            ),
            ("a.example", 443, "*", "https://a.example/"),
        ] {
            let found = to_https(&host(name), port, &target.parse().unwrap());
            assert_eq!(found.unwrap(), expected);
        }
    }

    #[test]
    fn a_rule_replaces_what_it_names() {
        let keep = Redirect {
            status: StatusCode::FOUND,
            scheme: None,
            hostname: None,
            port: None,
            path: None,
        };
        let name = host("a.example");
        let target: PathAndQuery = "/old/x?q=1".parse().unwrap();
        let request = RedirectFacts {
            scheme: "http",
            host: &name,
            port: 8080,
            target: &target,
        };
        let check = |redirect: Redirect, expected: &str| {
            assert_eq!(location(&redirect, &request).unwrap(), expected);
        };
        check(keep.clone(), "http://a.example:8080/old/x?q=1");
        check(
            Redirect {
                scheme: Some("https".to_owned()),
                ..keep.clone()
            },
            "https://a.example/old/x?q=1",
        );
        check(
            Redirect {
                scheme: Some("http".to_owned()),
                hostname: Some("b.example".to_owned()),
                ..keep.clone()
            },
            "http://b.example/old/x?q=1",
        );
        check(
            Redirect {
                scheme: Some("https".to_owned()),
                port: Some(8443),
                path: Some(RedirectPath::Full("/new".to_owned())),
                ..keep.clone()
            },
            "https://a.example:8443/new?q=1",
        );
        check(
            Redirect {
                port: Some(80),
                path: Some(RedirectPath::Prefix {
                    matched: "/old".to_owned(),
                    replacement: "/".to_owned(),
                }),
                ..keep
            },
            "http://a.example/x?q=1",
        );
    }
}
