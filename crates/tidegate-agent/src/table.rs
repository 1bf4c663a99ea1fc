//! The mappings of a link, and the service that answers on it.
//!
//! Links may end at replicas of the edge that know different sets, so each link has a table of its own; equal mappings
//! of several tables are one, with its connections. A new table touches no stream of the one before.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::{Request, Response};
use hyper::service::Service;
use tidegate_model::MappingId;
use tidegate_tunnel::{handshake, wire};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::TargetRule;
use crate::upstream::{AnswerBody, Counters, Failure, Reason, Upstream, VisitorBody};

/// Requests may overtake the message that tells of their mapping, which takes another stream.
const OVERTAKEN: Duration = Duration::from_secs(2);

/// What may be asked on one link.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// As the edge counts.
    pub(crate) version: u64,
    /// By id.
    pub(crate) entries: HashMap<MappingId, Entry>,
    /// What this agent does not serve.
    pub(crate) refused: Vec<wire::Refused>,
}

/// A mapping in a table.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Shared with other tables.
    pub(crate) upstream: Arc<Upstream>,
    /// Whose it is, for people.
    pub(crate) names: Vec<String>,
}

/// All mappings that some table holds.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    known: Mutex<HashMap<MappingId, Weak<Upstream>>>,
    /// Everything that was asked of the agent.
    pub(crate) counters: Arc<Counters>,
}

impl Registry {
    /// A table of what the edge tells. The rules hold for mappings that are new; when they change, so does the
    /// registry.
    pub(crate) fn table(&self, told: &wire::Mappings, allow: &Arc<[TargetRule]>) -> Table {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table {
            version: told.version,
            ..Table::default()
        };
        for mapping in &told.mappings {
            let alive = MappingId::parse(&mapping.id)
                .and_then(|id| known.get(&id))
                .and_then(Weak::upgrade)
                .filter(|upstream| upstream.is_under(allow));
            let upstream = match alive {
                Some(upstream) => upstream,
                None => match Upstream::new(mapping, allow) {
                    Ok(upstream) => Arc::new(upstream),
                    Err((reason, message)) => {
                        table.refused.push(wire::Refused {
                            id: mapping.id.clone(),
                            reason: reason.to_owned(),
                            message,
                        });
                        continue;
                    }
                },
            };
            known.insert(upstream.id.clone(), Arc::downgrade(&upstream));
            let names = mapping.names.clone();
            table
                .entries
                .insert(upstream.id.clone(), Entry { upstream, names });
        }
        known.retain(|_, upstream| upstream.strong_count() > 0);
        table
    }
}

/// Answers the requests of a link.
#[derive(Debug, Clone)]
pub(crate) struct Answering {
    pub(crate) table: watch::Receiver<Arc<Table>>,
    pub(crate) counters: Arc<Counters>,
}

impl Answering {
    async fn answer(mut self, request: Request<VisitorBody>) -> Response<AnswerBody> {
        let _counted = self.counters.begin();
        let answer = match self.upstream(&request).await {
            Ok(upstream) => upstream.serve(request).await,
            Err(failure) => Err(failure),
        };
        answer.unwrap_or_else(|failure| {
            self.counters.failed();
            let (reason, error) = (failure.reason.name(), &*failure.message);
            tracing::debug!(reason, error, "a request is not answered by its target");
            failure.response()
        })
    }

    async fn upstream(&mut self, request: &Request<VisitorBody>) -> Result<Arc<Upstream>, Failure> {
        let unknown = |found: &str| Failure::new(Reason::UnknownMapping, found.to_owned());
        let mut ids = request.headers().get_all(handshake::MAPPING).iter();
        let (Some(id), None) = (ids.next(), ids.next()) else {
            return Err(unknown("the request does not name one mapping"));
        };
        let id = id.to_str().ok().and_then(MappingId::parse);
        let id = id.ok_or_else(|| unknown("the request names no mapping"))?;
        if let Some(entry) = self.table.borrow_and_update().entries.get(&id) {
            return Ok(Arc::clone(&entry.upstream));
        }
        let told = self.table.wait_for(|table| table.entries.contains_key(&id));
        match timeout(OVERTAKEN, told).await {
            Ok(Ok(table)) => table
                .entries
                .get(&id)
                .map(|entry| Arc::clone(&entry.upstream)),
            _ => None,
        }
        .ok_or_else(|| unknown("the agent was not told of that mapping, or does not take it"))
    }
}

impl Service<Request<VisitorBody>> for Answering {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Infallible>> + Send>>;

    fn call(&self, request: Request<VisitorBody>) -> Self::Future {
        let answering = self.clone();
        Box::pin(async move { Ok(answering.answer(request).await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(id: &str, target: &str) -> wire::Mapping {
        wire::Mapping {
            id: id.to_owned(),
            target: target.to_owned(),
            ..wire::Mapping::default()
        }
    }

    const ONE: &str = "0000000000000001";
    const TWO: &str = "0000000000000002";

    #[test]
    fn equal_mappings_of_tables_are_one_and_forgotten_with_the_last() {
        let registry = Registry::default();
        let allow: Arc<[TargetRule]> = Arc::from([]);
        let told = |mappings: &[wire::Mapping]| wire::Mappings {
            version: 7,
            mappings: mappings.to_vec(),
        };
        let one = mapping(ONE, "http://127.0.0.1:1");
        let first = registry.table(&told(std::slice::from_ref(&one)), &allow);
        let both = told(&[one, mapping(TWO, "tcp://127.0.0.1:2")]);
        let second = registry.table(&both, &allow);
        let id = MappingId::parse(ONE).unwrap();
        let of = |table: &Table| Arc::clone(&table.entries[&id].upstream);
        assert!(Arc::ptr_eq(&of(&first), &of(&second)));
        assert_eq!((second.entries.len(), second.version), (2, 7));
        drop((first, second));
        let third = registry.table(&told(&[mapping(TWO, "tcp://127.0.0.1:2")]), &allow);
        assert_eq!(third.entries.len(), 1);
        assert_eq!(registry.known.lock().unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_its_reason() {
        let registry = Registry::default();
        let allow: Arc<[TargetRule]> = Arc::from([TargetRule::parse("127.0.0.0/8").unwrap()]);
        let wrong = [
            ("x", "http://127.0.0.1:1", "NotSupported"),
            (ONE, "ftp://127.0.0.1:1", "TargetNotSupported"),
            (ONE, "http://10.0.0.1", "TargetNotAllowed"),
        ];
        let mut mappings: Vec<wire::Mapping> = wrong
            .iter()
            .map(|(id, target, _)| mapping(id, target))
            .collect();
        mappings.push(wire::Mapping {
            protocol: 9,
            ..mapping(ONE, "http://127.0.0.1")
        });
        mappings.push(wire::Mapping {
            proxy_protocol: Some(1),
            ..mapping(ONE, "udp://127.0.0.1:1")
        });
        mappings.push(wire::Mapping {
            tls: Some(wire::AgentTls {
                ca_der: vec![vec![1].into()],
                ..Default::default()
            }),
            ..mapping(ONE, "https://127.0.0.1:1")
        });
        let told = wire::Mappings {
            version: 1,
            mappings,
        };
        let table = registry.table(&told, &allow);
        assert!(table.entries.is_empty());
        let reasons: Vec<&str> = table.refused.iter().map(|it| &*it.reason).collect();
        let mut expected: Vec<&str> = wrong.iter().map(|(.., reason)| *reason).collect();
        expected.extend(["NotSupported", "NotSupported", "TlsNotPossible"]);
        assert_eq!(reasons, expected, "{:#?}", table.refused);
    }
}
