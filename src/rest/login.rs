//! Logging in and out.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tidegate_model::Secret;
use utoipa::ToSchema;

use super::accounts::{self, LONGEST_PASSWORD, Scope};
use super::guard::{self, Caller};
use super::problem::Problem;
use super::{Given, Rest};
use crate::admin::Peer;

/// Hashes at one time: each takes a core and 19 MiB.
pub(super) const AT_ONCE: usize = 2;
/// How long somebody waits for their turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// Argon2id over `x`: what a name that nobody has is checked against, so that it takes as long.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$G7ZPjX1mBLsZWuLJ3MDY3BzTx2rCY5HdFoLtZ8kuQ+Y";

/// Name and password.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Login {
    /// Name of the account.
    #[schema(example = "anna")]
    name: String,
    /// Its password.
    #[schema(format = Password)]
    password: String,
}

/// Who is logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Session {
    /// Name of the account.
    name: String,
    /// What it may do.
    scopes: Vec<Scope>,
    /// What changes must carry in `X-CSRF-Token`; absent for tokens, which need none.
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
    /// Seconds after which the session ends at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<u64>,
}

/// Log in with name and password
///
/// The answer sets the cookie of the session. After five failures in a quarter of an hour it is refused for a while.
#[utoipa::path(
    post, path = "/session", tag = "session", request_body = Login, security(()),
    responses(
        (status = 200, body = Session),
        (status = 401, description = "`LoginFailed`", body = Problem),
        (status = 429, description = "`TooManyLogins`, with Retry-After", body = Problem),
    )
)]
pub(super) async fn log_in(
    State(rest): State<Arc<Rest>>,
    peer: Option<axum::Extension<Peer>>,
    headers: HeaderMap,
    Given(login): Given<Login>,
) -> Result<Response, Problem> {
    guard::same_site(&headers)?;
    let address = guard::address(peer.as_ref().map(|peer| &peer.0), &headers);
    let Login { name, password } = login;
    let password = Secret::new(password);
    let failed = || {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "LoginFailed",
            "name or password is wrong",
        )
    };
    if name.len() > 64 || password.expose().len() > LONGEST_PASSWORD {
        return Err(failed());
    }
    let throttle = || rest.throttle.lock().unwrap_or_else(PoisonError::into_inner);
    let too_many = |wait| {
        let detail = "too many failed attempts; wait and try again";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "TooManyLogins", detail).retry_after(wait)
    };
    if let Some(wait) = throttle().wait(address, &name, Instant::now()) {
        tracing::warn!(user = name, client = %address, reason = "TooManyLogins", "login refused");
        return Err(too_many(wait));
    }
    let busy = || {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Busy",
            "too many logins at one time",
        )
        .retry_after(Duration::from_secs(1))
    };
    let place = tokio::time::timeout(PATIENCE, Arc::clone(&rest.hashing).acquire_owned());
    let place = place.await.map_err(|_| busy())?.map_err(|_| busy())?;
    // Others may have failed while this one waited for its turn.
    if let Some(wait) = throttle().wait(address, &name, Instant::now()) {
        return Err(too_many(wait));
    }
    let user = rest.accounts.now().user(&name).cloned();
    let hash = user.as_ref().map_or_else(
        || Secret::new(NOBODY.to_owned()),
        |user| user.password_hash.clone(),
    );
    let checked = tokio::task::spawn_blocking(move || {
        let good = accounts::is_password(&hash, &password);
        drop(place);
        good
    });
    let good = checked.await.unwrap_or(false);
    let Some(user) = user.filter(|_| good) else {
        throttle().failed(address, &name, Instant::now());
        tracing::warn!(user = name, client = %address, reason = "LoginFailed", "login refused");
        return Err(failed());
    };
    throttle().succeeded(address, &name);
    let begun = rest
        .sessions
        .begin(&user, Instant::now())
        .ok_or_else(busy)?;
    tracing::info!(user = name, client = %address, "logged in");
    let cookie = guard::set_cookie(&headers, Some(begun.cookie.expose()));
    let session = Session {
        name: user.name,
        scopes: user.scopes,
        csrf_token: Some(begun.csrf.expose().clone()),
        expires_in: Some(super::sessions::LONGEST.as_secs()),
    };
    Ok((private(cookie), Json(session)).into_response())
}

/// Who am I
#[utoipa::path(
    get, path = "/session", tag = "session",
    responses((status = 200, body = Session), (status = 401, body = Problem))
)]
pub(super) async fn who(caller: Caller) -> impl IntoResponse {
    let session = Session {
        name: caller.name,
        scopes: caller.scopes,
        csrf_token: caller.csrf.map(|csrf| csrf.expose().clone()),
        expires_in: None,
    };
    ([(header::CACHE_CONTROL, "no-store")], Json(session))
}

/// Log out
#[utoipa::path(
    delete, path = "/session", tag = "session",
    responses((status = 204, description = "logged out"), (status = 401, body = Problem))
)]
pub(super) async fn log_out(
    State(rest): State<Arc<Rest>>,
    _: Caller,
    headers: HeaderMap,
) -> impl IntoResponse {
    if let Some(cookie) = guard::cookie(&headers) {
        rest.sessions.end(cookie);
    }
    (
        StatusCode::NO_CONTENT,
        private(guard::set_cookie(&headers, None)),
    )
}

fn private(cookie: String) -> AppendHeaders<[(header::HeaderName, String); 2]> {
    AppendHeaders([
        (header::SET_COOKIE, cookie),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_a_hash_that_takes_as_long() {
        let real = accounts::hash_password(&Secret::new("x".to_owned())).unwrap();
        let parameters = |hash: &str| hash.split('$').take(4).collect::<Vec<_>>().join("$");
        assert_eq!(parameters(NOBODY), parameters(&real));
        assert!(argon2::PasswordHash::new(NOBODY).is_ok());
    }
}
