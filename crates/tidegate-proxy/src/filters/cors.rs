//! Cross-origin resource sharing: answers preflights, marks responses.
//!
//! The rule's word replaces whatever the backend says about origins, so that two answers never mix.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use tidegate_model::{Cors, OriginPattern};

use crate::body::Body;

/// The answer to a preflight. None if the request is not one and goes on.
pub(crate) fn preflight(
    cors: &Cors,
    method: &Method,
    headers: &HeaderMap,
) -> Option<Response<Body>> {
    let origin = headers.get(header::ORIGIN)?;
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    if method != Method::OPTIONS {
        return None;
    }
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    answer.insert(
        header::VARY,
        HeaderValue::from_static(
            "origin, access-control-request-method, access-control-request-headers",
        ),
    );
    // A browser reads the lack of these fields as no.
    if allow_origin(cors, origin, answer) {
        answer.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            allowed_methods(cors, asked),
        );
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        if let Some(names) = allowed_headers(cors, asked) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
        }
        answer.insert(
            header::ACCESS_CONTROL_MAX_AGE,
            HeaderValue::from(cors.max_age.as_secs()),
        );
    }
    Some(response)
}

/// Marks a response for the origin of its request.
pub(crate) fn apply(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for name in [
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        header::ACCESS_CONTROL_ALLOW_METHODS,
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        header::ACCESS_CONTROL_MAX_AGE,
    ] {
        headers.remove(name);
    }
    if !is_for_anyone(cors) {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    let Some(origin) = origin else { return };
    if allow_origin(cors, origin, headers)
        && let Some(names) = join(cors.expose_headers.iter().map(HeaderName::as_str))
    {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, names);
    }
}

/// Whether the answer is the same for every origin, so that caches may keep one.
fn is_for_anyone(cors: &Cors) -> bool {
    !cors.allow_credentials && cors.allow_origins.contains(&OriginPattern::Any)
}

fn allow_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) -> bool {
    let Ok(text) = origin.to_str() else {
        return false;
    };
    if !cors
        .allow_origins
        .iter()
        .any(|pattern| matches(pattern, text))
    {
        return false;
    }
    // `*` and credentials exclude each other (Fetch, CORS protocol and credentials).
    let value = if is_for_anyone(cors) {
        HeaderValue::from_static("*")
    } else {
        origin.clone()
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, value);
    if cors.allow_credentials {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
    true
}

fn matches(pattern: &OriginPattern, origin: &str) -> bool {
    match pattern {
        OriginPattern::Any => true,
        OriginPattern::Exact(exact) => exact.eq_ignore_ascii_case(origin),
        OriginPattern::Wildcard { prefix, suffix } => {
            let origin = origin.to_ascii_lowercase();
            origin
                .strip_prefix(prefix.as_str())
                .and_then(|rest| rest.strip_suffix(suffix.as_str()))
                .is_some_and(|labels| {
                    // Hostname characters only: `https://evil.example#.example.com` is no subdomain.
                    !labels.is_empty()
                        && labels
                            .bytes()
                            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
                })
        }
    }
}

fn allowed_methods(cors: &Cors, asked: &HeaderValue) -> HeaderValue {
    if cors.allow_any_method {
        return asked.clone();
    }
    join(cors.allow_methods.iter().map(Method::as_str))
        .unwrap_or_else(|| HeaderValue::from_static("GET, HEAD, POST"))
}

fn allowed_headers(cors: &Cors, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
    if cors.allow_any_header {
        return asked.cloned();
    }
    join(cors.allow_headers.iter().map(HeaderName::as_str))
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        return None;
    }
    HeaderValue::try_from(names.join(", ")).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cors(origins: Vec<OriginPattern>) -> Cors {
        Cors {
            allow_origins: origins,
            allow_methods: vec![Method::GET, Method::PUT],
            allow_any_method: false,
            allow_headers: vec![HeaderName::from_static("x-token")],
            allow_any_header: false,
            expose_headers: vec![HeaderName::from_static("x-total")],
            allow_credentials: false,
            max_age: Duration::from_mins(10),
        }
    }

    fn exact() -> Vec<OriginPattern> {
        vec![OriginPattern::Exact("https://app.example".to_owned())]
    }

    fn asking(origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_static;
        headers.insert("origin", value(origin));
        headers.insert("access-control-request-method", value("DELETE"));
        headers.insert("access-control-request-headers", value("x-a,x-b"));
        headers
    }

    #[test]
    fn a_preflight_tells_what_is_allowed() {
        let answer = preflight(
            &cors(exact()),
            &Method::OPTIONS,
            &asking("https://app.example"),
        );
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 204);
        let found = |name: &str| answer.headers().get(name).map(|v| v.to_str().unwrap());
        assert_eq!(
            found("access-control-allow-origin"),
            Some("https://app.example")
        );
        assert_eq!(found("access-control-allow-methods"), Some("GET, PUT"));
        assert_eq!(found("access-control-allow-headers"), Some("x-token"));
        assert_eq!(found("access-control-max-age"), Some("600"));
        assert_eq!(found("access-control-allow-credentials"), None);
        assert!(found("vary").unwrap().starts_with("origin"));
    }

    #[test]
    fn any_method_and_header_are_what_was_asked_for() {
        let any = Cors {
            allow_any_method: true,
            allow_any_header: true,
            allow_credentials: true,
            ..cors(vec![OriginPattern::Any])
        };
        let answer = preflight(&any, &Method::OPTIONS, &asking("https://x.example")).unwrap();
        let headers = answer.headers();
        assert_eq!(headers["access-control-allow-origin"], "https://x.example");
        assert_eq!(headers["access-control-allow-credentials"], "true");
        assert_eq!(headers["access-control-allow-methods"], "DELETE");
        assert_eq!(headers["access-control-allow-headers"], "x-a,x-b");
    }

    #[test]
    fn other_requests_and_origins_get_nothing() {
        let mut plain = asking("https://app.example");
        assert!(preflight(&cors(exact()), &Method::GET, &plain).is_none());
        plain.remove("access-control-request-method");
        assert!(preflight(&cors(exact()), &Method::OPTIONS, &plain).is_none());
        let evil = preflight(
            &cors(exact()),
            &Method::OPTIONS,
            &asking("https://evil.example"),
        );
        let names: Vec<_> = evil.unwrap().headers().keys().cloned().collect();
        assert_eq!(names, [header::VARY]);
    }

    #[test]
    fn the_rule_replaces_what_the_backend_says() {
        let value = HeaderValue::from_static;
        let mut headers = HeaderMap::new();
        headers.insert("access-control-allow-origin", value("*"));
        headers.insert("access-control-allow-credentials", value("true"));
        let mut evil = headers.clone();
        apply(
            &cors(exact()),
            Some(&value("https://app.example")),
            &mut headers,
        );
        assert_eq!(
            headers["access-control-allow-origin"],
            "https://app.example"
        );
        assert_eq!(headers["access-control-expose-headers"], "x-total");
        assert!(!headers.contains_key("access-control-allow-credentials"));
        apply(
            &cors(exact()),
            Some(&value("https://evil.example")),
            &mut evil,
        );
        assert_eq!(evil.keys().collect::<Vec<_>>(), [&header::VARY]);
        let mut open = HeaderMap::new();
        let any = cors(vec![OriginPattern::Any]);
        apply(&any, Some(&value("https://x.example")), &mut open);
        assert_eq!(open["access-control-allow-origin"], "*");
        assert!(!open.contains_key("vary"));
    }

    #[test]
    fn wildcards_cover_subdomains_only() {
        let pattern = OriginPattern::Wildcard {
            prefix: "https://".to_owned(),
            suffix: ".example.com".to_owned(),
        };
        for (origin, expected) in [
            ("https://a.example.com", true),
            ("https://A.B.example.com", true),
            ("https://example.com", false),
            ("https://.example.com", false),
            ("http://a.example.com", false),
            ("https://a.example.com.evil.example", false),
            ("https://evil.example/.example.com", false),
            ("https://evil.example:1.example.com", false),
            ("null", false),
        ] {
            assert_eq!(matches(&pattern, origin), expected, "{origin}");
        }
    }
}
