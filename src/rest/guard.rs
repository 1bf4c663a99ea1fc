//! Who asks, and whether they may.
//!
//! A program sends `Authorization: Bearer TOKEN`. A browser sends the cookie of a session; because it sends that
//! without being asked, whatever changes something must also carry the session's `X-CSRF-Token`, and must not come
//! from another site (`Sec-Fetch-Site`).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use tidegate_model::Secret;

use super::accounts::Scope;
use super::problem::Problem;
use super::{Rest, sessions};
use crate::admin::Peer;

/// Header that carries the session's second half.
pub(super) const CSRF: &str = "x-csrf-token";
/// Name of the cookie where the browser came by plain HTTP, which on one's own machine is as good.
const COOKIE: &str = "tidegate-session";
/// Name of the cookie where it came by HTTPS: browsers take it from nobody but this host (RFC 6265bis §4.1.3.2).
const HOST_COOKIE: &str = "__Host-tidegate-session";

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) scopes: Vec<Scope>,
    /// What changes must carry besides the session's cookie; None for tokens.
    pub(super) csrf: Option<Secret<String>>,
}

impl Caller {
    /// Refuses whoever may not.
    pub(super) fn needs(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.contains(&scope) {
            return Ok(());
        }
        let detail = format!("{} has not the scope {}", self.name, scope.as_str());
        Err(Problem::new(StatusCode::FORBIDDEN, "MissingScope", detail))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| unauthorized("log in, or send a token"))
    }
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "Unauthorized", detail)
}

/// Lets in who may read at least, and remembers who it is.
pub(super) async fn check(
    State(rest): State<Arc<Rest>>,
    mut request: Request,
    next: Next,
) -> Response {
    match caller(&rest, request.method(), request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// The same for views that know nothing of callers.
pub(super) async fn check_reader(
    State(rest): State<Arc<Rest>>,
    request: Request,
    next: Next,
) -> Response {
    let caller = caller(&rest, request.method(), request.headers());
    match caller.and_then(|caller| caller.needs(Scope::Read)) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn caller(rest: &Rest, method: &Method, headers: &HeaderMap) -> Result<Caller, Problem> {
    let known = rest.accounts.now();
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value.to_str().unwrap_or_default();
        let token = text
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let found = token.and_then(|(_, token)| known.token(token.trim(), SystemTime::now()));
        let (name, scopes) =
            found.ok_or_else(|| unauthorized("the token is not known, or has expired"))?;
        return Ok(Caller {
            name: name.to_owned(),
            scopes: scopes.to_vec(),
            csrf: None,
        });
    }
    let cookie = cookie(headers).ok_or_else(|| unauthorized("log in, or send a token"))?;
    let (user, csrf) = rest
        .sessions
        .find(cookie, Instant::now(), |name| known.user(name))
        .ok_or_else(|| unauthorized("the session has ended; log in again"))?;
    if !method.is_safe() {
        same_site(headers)?;
        let given = headers.get(CSRF).and_then(|value| value.to_str().ok());
        if !given.is_some_and(|given| sessions::is_same(&csrf, given)) {
            let detail =
                "a change needs the session's X-CSRF-Token, which GET /api/v1/session tells";
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "CsrfTokenMissing",
                detail,
            ));
        }
    }
    Ok(Caller {
        name: user.name,
        scopes: user.scopes,
        csrf: Some(csrf),
    })
}

/// Refuses what a page of another site makes a browser send.
pub(super) fn same_site(headers: &HeaderMap) -> Result<(), Problem> {
    let site = headers
        .get("sec-fetch-site")
        .and_then(|value| value.to_str().ok());
    match site {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "CrossSite",
            "the request comes from a page of another site",
        )),
    }
}

/// The session's cookie. A cookie that only this host can have set counts before one that others could have.
pub(super) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let named = |wanted: &str| {
        let fields = headers.get_all(header::COOKIE).iter();
        fields
            .filter_map(|value| value.to_str().ok())
            .flat_map(|field| field.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value)
    };
    named(HOST_COOKIE).or_else(|| named(COOKIE))
}

/// The line that gives a browser its cookie, or takes it away.
pub(super) fn set_cookie(headers: &HeaderMap, content: Option<&str>) -> String {
    let secure = headers
        .get("x-forwarded-proto")
        .is_some_and(|proto| proto == "https");
    let (name, secure) = if secure {
        (HOST_COOKIE, "; Secure")
    } else {
        (COOKIE, "")
    };
    let age = content.map_or(0, |_| sessions::LONGEST.as_secs());
    let content = content.unwrap_or_default();
    format!("{name}={content}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}")
}

/// Where a request comes from. An edge on the same machine in front says it in X-Forwarded-For.
pub(super) fn address(peer: Option<&Peer>, headers: &HeaderMap) -> IpAddr {
    let peer = peer.and_then(|Peer(peer)| *peer);
    let peer = peer.unwrap_or(Ipv4Addr::LOCALHOST.into());
    if !peer.to_canonical().is_loopback() {
        return peer;
    }
    let forwarded = headers.get_all("x-forwarded-for").iter().next_back();
    let last = forwarded
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.rsplit(',').next()?.trim().parse().ok());
    last.unwrap_or(peer)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                let name: HeaderName = name;
                map.append(name, value);
                map
            })
    }

    #[test]
    fn cookies_are_found_and_written() {
        let several = headers(&[
            ("cookie", "a=1; tidegate-session=x"),
            ("cookie", "__Host-tidegate-session=y"),
        ]);
        assert_eq!(cookie(&several), Some("y"));
        assert_eq!(
            cookie(&headers(&[("cookie", "tidegate-session=x; b=2")])),
            Some("x")
        );
        assert_eq!(cookie(&headers(&[("cookie", "xtidegate-session=x")])), None);
        let plain = set_cookie(&headers(&[]), Some("abc"));
        assert_eq!(
            plain,
            "tidegate-session=abc; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"
        );
        let over_tls = set_cookie(&headers(&[("x-forwarded-proto", "https")]), None);
        assert_eq!(
            over_tls,
            "__Host-tidegate-session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"
        );
    }

    #[test]
    fn only_an_edge_on_this_machine_says_who_asks() {
        let forwarded = headers(&[("x-forwarded-for", "198.51.100.9, 203.0.113.7")]);
        let of = |peer: &str| address(Some(&Peer(peer.parse().ok())), &forwarded).to_string();
        assert_eq!(of("127.0.0.1"), "203.0.113.7");
        assert_eq!(of("::ffff:127.0.0.1"), "203.0.113.7");
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert_eq!(address(None, &headers(&[])).to_string(), "127.0.0.1");
    }
}
