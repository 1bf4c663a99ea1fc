//! What the engine answers to commands: each order bounded in time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Method, StatusCode};
use tidegate_acme::engine::{Engine, State};
use tidegate_acme::revocation::RevocationReason;
use tokio::task::JoinSet;

use super::super::doctor::{self, Examined, NotOne};
use super::desk::{Answer, Desk, Question, Reply, answered, refuse};
use super::messages::{
    Certificate, Done, Preflight, Refusal, Renew, Revoke, Rollback, TestNotice, TestedNotice,
};

/// How long a certificate may be busy with an order before the command is told so.
pub(super) const BUSY: Duration = Duration::from_secs(60);

#[async_trait]
impl Desk for Engine {
    async fn answer(&self, question: Question) -> Reply {
        answer(self, &question)
            .await
            .unwrap_or_else(|refused| refused)
    }
}

async fn answer(engine: &Engine, question: &Question) -> Answer {
    match (&question.method, question.path.as_str()) {
        (&Method::GET, "/v1/certificates") => {
            let state = Arc::clone(&engine.state().borrow());
            let all: Vec<Certificate> = state
                .certificates
                .iter()
                .map(|(id, certificate)| Certificate::of(id, certificate))
                .collect();
            Ok(answered(&all))
        }
        (&Method::POST, "/v1/renew") => renew(engine, question.read()?).await,
        (&Method::POST, "/v1/rollback") => roll_back(engine, question.read()?).await,
        (&Method::POST, "/v1/revoke") => revoke(engine, question.read()?).await,
        (&Method::POST, "/v1/notices/test") => test_notice(engine, question.read()?).await,
        (&Method::POST, "/v1/preflight") => preflight(engine, question.read()?).await,
        (
            _,
            "/v1/certificates" | "/v1/renew" | "/v1/rollback" | "/v1/revoke" | "/v1/notices/test"
            | "/v1/preflight",
        ) => Err(refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "this is asked with another method",
        )),
        _ => Err(refuse(
            StatusCode::NOT_FOUND,
            "UnknownRequest",
            "this edge does not know the request; it is older than the command",
        )),
    }
}

async fn renew(engine: &Engine, asked: Renew) -> Answer {
    let state = Arc::clone(&engine.state().borrow());
    let ids = match (&asked.id, asked.all) {
        (Some(name), false) => vec![find(name, &state)?],
        (None, true) => state
            .certificates
            .iter()
            .filter(|(id, _)| id.contains('/'))
            .map(|(id, _)| id.clone())
            .collect(),
        _ => {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "BadRequest",
                "it must have either id or all",
            ));
        }
    };
    let mut answers = JoinSet::new();
    for id in ids {
        let engine = engine.clone();
        answers.spawn(async move {
            let renewed = tokio::time::timeout(BUSY, engine.renew(&id)).await;
            (id, renewed)
        });
    }
    let mut done = Done::default();
    while let Some(answer) = answers.join_next().await {
        match answer {
            Ok((id, Ok(true))) => done.certificates.push(id),
            Ok((id, Ok(false))) => done.refused.push(Refusal {
                id: Some(id),
                reason: "NotKept".to_owned(),
                message: "no route wants it, or the state folder cannot be written".to_owned(),
            }),
            Ok((id, Err(_))) => done.refused.push(busy(id)),
            Err(_) => {}
        }
    }
    done.certificates.sort();
    done.refused.sort_by(|one, other| one.id.cmp(&other.id));
    tracing::info!(
        certificates = done.certificates.join(","),
        "a renewal was asked for"
    );
    Ok(answered(&done))
}

async fn roll_back(engine: &Engine, asked: Rollback) -> Answer {
    let state = Arc::clone(&engine.state().borrow());
    let id = find(&asked.id, &state)?;
    tracing::info!(certificate = %id, "a rollback was asked for");
    let mut done = Done::default();
    match tokio::time::timeout(BUSY, engine.roll_back(&id)).await {
        Ok(Ok(())) => done.certificates.push(id),
        Ok(Err(error)) => done.refused.push(Refusal {
            id: Some(id),
            reason: error.reason().to_owned(),
            message: error.to_string(),
        }),
        Err(_) => done.refused.push(busy(id)),
    }
    Ok(answered(&done))
}

async fn revoke(engine: &Engine, asked: Revoke) -> Answer {
    let reason = match asked.reason.as_str() {
        "" => RevocationReason::Unspecified,
        word => RevocationReason::parse(word).ok_or_else(|| {
            refuse(
                StatusCode::BAD_REQUEST,
                "UnknownReason",
                format!("{word:?} is no reason"),
            )
        })?,
    };
    let state = Arc::clone(&engine.state().borrow());
    let id = find(&asked.id, &state)?;
    tracing::info!(certificate = %id, reason = reason.as_str(), "a revocation was asked for");
    let mut done = Done::default();
    match tokio::time::timeout(BUSY, engine.revoke(&id, reason)).await {
        Ok(Ok(())) => done.certificates.push(id),
        Ok(Err(message)) => done.refused.push(Refusal {
            id: Some(id),
            reason: "NotRevoked".to_owned(),
            message,
        }),
        Err(_) => done.refused.push(busy(id)),
    }
    Ok(answered(&done))
}

async fn test_notice(engine: &Engine, asked: TestNotice) -> Answer {
    let issuer = asked.issuer.as_deref();
    // What a person calls the machine; anything will do.
    let edge = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let edge = match edge.trim() {
        "" => "Tidegate".to_owned(),
        name => format!("Tidegate on {name}"),
    };
    tracing::info!(issuer, "a test notice was asked for");
    let tested = tokio::time::timeout(BUSY, engine.test_notice(issuer, &edge)).await;
    let tested = tested.map_err(|_| {
        refuse(
            StatusCode::GATEWAY_TIMEOUT,
            "Busy",
            "the receivers do not answer in time; the log says more",
        )
    })?;
    if tested.is_empty() {
        let message = match issuer {
            Some(name) => format!(
                "AcmeIssuer {name} does not exist or names no receiver that can be used; `tidegate status` says what is wrong"
            ),
            None => {
                "no AcmeIssuer names a receiver that can be used; set spec.notifications".to_owned()
            }
        };
        return Err(refuse(StatusCode::NOT_FOUND, "NoReceiver", message));
    }
    let receivers = tested.into_iter().map(Into::into).collect();
    Ok(answered(&TestedNotice { receivers }))
}

async fn preflight(engine: &Engine, asked: Preflight) -> Answer {
    let all = engine.wanted();
    let wanted = doctor::find(&asked.id, &all).map_err(|error| match error {
        NotOne::None { .. } => refuse(
            StatusCode::NOT_FOUND,
            "UnknownCertificate",
            error.to_string(),
        ),
        NotOne::Several { .. } => refuse(
            StatusCode::CONFLICT,
            "AmbiguousCertificate",
            error.to_string(),
        ),
    })?;
    match tokio::time::timeout(BUSY, engine.preflight(&wanted.id)).await {
        Ok(Some(findings)) => Ok(answered(&Examined::new(wanted, findings, true))),
        Ok(None) => Err(refuse(
            StatusCode::NOT_FOUND,
            "UnknownCertificate",
            "no route wants it any more",
        )),
        Err(_) => Err(refuse(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            "the authority or the name servers do not answer",
        )),
    }
}

/// The certificate that a person means: by id, by the name of its route, or by a hostname.
fn find(name: &str, state: &State) -> Result<String, Reply> {
    if state.certificates.contains_key(name) {
        return Ok(name.to_owned());
    }
    let by_route: Vec<&String> = state
        .certificates
        .keys()
        .filter(|id| id.split_once('/').is_some_and(|(_, route)| route == name))
        .collect();
    let by_host = state.certificates.iter().filter(|(_, certificate)| {
        let issued = certificate.issued.as_ref();
        issued.is_some_and(|issued| {
            issued
                .names
                .iter()
                .any(|own| own.eq_ignore_ascii_case(name))
        })
    });
    let meant: Vec<&String> = if by_route.is_empty() {
        by_host.map(|(id, _)| id).collect()
    } else {
        by_route
    };
    let listed = |ids: &[&String]| {
        let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
        ids.join(", ")
    };
    match meant.as_slice() {
        [id] => Ok((*id).clone()),
        [] => {
            let known: Vec<&String> = state.certificates.keys().collect();
            let message = if known.is_empty() {
                format!("there is no certificate {name:?}: no route gets one from an AcmeIssuer")
            } else {
                format!(
                    "there is no certificate {name:?}; there are {}",
                    listed(&known)
                )
            };
            Err(refuse(StatusCode::NOT_FOUND, "UnknownCertificate", message))
        }
        several => Err(refuse(
            StatusCode::CONFLICT,
            "AmbiguousCertificate",
            format!("{name:?} can mean {}; say which", listed(several)),
        )),
    }
}

fn busy(id: String) -> Refusal {
    Refusal {
        id: Some(id),
        reason: "Busy".to_owned(),
        message: "an order is under way; it is done when that has ended".to_owned(),
    }
}
