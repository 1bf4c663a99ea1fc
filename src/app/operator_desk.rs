//! Answers commands at any replica: what is known it says itself, and orders it passes on to the one that leads.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, StatusCode};
use tidegate_acme::engine::{Engine, State};
use tidegate_acme::record::CertificateRecord;
use tidegate_acme::store::Kind;
use tidegate_telemetry::chain;
use tokio::sync::watch;

use super::control::{Certificate, Desk, Kept, Question, Reply, answered, refuse};
use crate::operator::World;
use crate::operator::lease::Leadership;
use crate::operator::relay::{self, Answering, Relay, RelayError};

/// What a replica answers with.
pub(super) struct OperatorDesk {
    /// Only where this replica leads.
    pub(super) engine: watch::Receiver<Option<Engine>>,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) relay: Relay,
    /// Namespace of this program.
    pub(super) namespace: String,
}

#[async_trait]
impl Desk for OperatorDesk {
    async fn answer(&self, question: Question) -> Reply {
        let engine = self.engine.borrow().clone();
        match (engine, &question.method, question.path.as_str()) {
            (engine, &Method::GET, "/v1/certificates") => {
                let state = engine.map(|engine| Arc::clone(&engine.state().borrow()));
                let all = certificates(&self.relay.world, state.as_deref());
                answered(&all)
            }
            (Some(engine), _, _) => engine.answer(question).await,
            (None, &Method::POST, _) => self.pass_on(question).await,
            (None, _, _) => refuse(
                StatusCode::NOT_FOUND,
                "UnknownRequest",
                "this edge does not know the request; it is older than the command",
            ),
        }
    }
}

impl OperatorDesk {
    async fn pass_on(&self, question: Question) -> Reply {
        let Leadership { leading, holder } = self.leadership.borrow().clone();
        let leader = match holder {
            Some(leader) if !leading => leader,
            _ => {
                return refuse(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "NoLeader",
                    "no replica leads at this moment; one will within a quarter of a minute",
                );
            }
        };
        let path = question.path.clone();
        let question = relay::Question {
            path: question.path,
            body: String::from_utf8_lossy(&question.body).into_owned(),
        };
        match self.relay.ask(question).await {
            Ok(answer) => Reply {
                status: StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY),
                body: answer.body.into_bytes(),
            },
            Err(error) => {
                let reason = match error {
                    RelayError::Write(_) => "NotPassedOn",
                    RelayError::NotTaken => "NotTaken",
                    RelayError::NotAnswered => "NotAnswered",
                };
                let told = chain(&error);
                let command = path.trim_start_matches("/v1/");
                let namespace = &self.namespace;
                refuse(
                    StatusCode::GATEWAY_TIMEOUT,
                    reason,
                    format!(
                        "{told}; {leader} leads, ask it itself: kubectl exec -n {namespace} {leader} -- /tidegate {command} …"
                    ),
                )
            }
        }
    }
}

/// What is kept in documents, with what the engine does about it where it runs.
fn certificates(world: &World, state: Option<&State>) -> Vec<Certificate> {
    let documents = world.documents(Kind::Certificate);
    let records = documents.iter().filter_map(|document| {
        serde_json::from_slice::<CertificateRecord>(document.content.expose()).ok()
    });
    let mut all: Vec<Certificate> = records
        .map(
            |record| match state.and_then(|state| state.certificates.get(&record.id)) {
                Some(certificate) => Certificate {
                    kept: Some(Kept::of(&record)),
                    ..Certificate::of(&record.id, certificate)
                },
                None => Certificate::of_record(&record),
            },
        )
        .collect();
    // Of what was just begun there may be no document yet.
    let known: BTreeSet<String> = all.iter().map(|known| known.id.clone()).collect();
    let begun = state.iter().flat_map(|state| &state.certificates);
    let begun = begun.filter(|(id, _)| !known.contains(*id));
    all.extend(begun.map(|(id, certificate)| Certificate::of(id, certificate)));
    all
}

/// What the engine says to other replicas.
pub(super) fn answering(engine: Engine) -> Box<Answering> {
    Box::new(move |question| {
        let engine = engine.clone();
        Box::pin(async move {
            let question = Question {
                method: Method::POST,
                path: question.path,
                body: question.body.into_bytes(),
            };
            let reply = engine.answer(question).await;
            relay::Answer {
                status: reply.status.as_u16(),
                body: String::from_utf8_lossy(&reply.body).into_owned(),
            }
        })
    })
}
