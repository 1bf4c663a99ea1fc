//! An agent's end and an edge's end, connected.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tidegate_model::ObjectName;
use tokio::task::JoinHandle;

use crate::link::LinkError;
use crate::link::agent::{self, AgentControl};
use crate::link::edge::{self, EdgeControl, EdgeLink, LinkFacts};
use crate::wire::Hello;

pub(super) type TestBody = UnsyncBoxBody<Bytes, Infallible>;

pub(super) fn full(text: impl Into<Bytes>) -> TestBody {
    Full::new(text.into()).boxed_unsync()
}

pub(super) fn facts() -> LinkFacts {
    LinkFacts {
        session: "s1".to_owned(),
        agent: ObjectName::new("default", "homelab"),
        instance: "ab".repeat(16),
        link: 0,
    }
}

pub(super) fn hello() -> Hello {
    Hello {
        version: "1.0.0".to_owned(),
        instance: "ab".repeat(16),
        ..Hello::default()
    }
}

pub(super) struct Pair {
    pub(super) edge: EdgeLink<TestBody>,
    pub(super) control: EdgeControl,
    pub(super) agent: AgentControl,
    pub(super) edge_end: JoinHandle<LinkError>,
    pub(super) agent_end: JoinHandle<LinkError>,
}

/// Connects both ends; the function answers at the agent.
pub(super) async fn pair<F, R>(answer: F) -> Pair
where
    F: Fn(Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Response<TestBody>> + Send + 'static,
{
    let (edge_io, agent_io) = tokio::io::duplex(256 * 1024);
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let (agent, driver) = agent::serve(agent_io, hello(), service);
    let agent_end = tokio::spawn(driver);
    let (edge, control, driver) = within(edge::open(edge_io, facts())).await.unwrap();
    let edge_end = tokio::spawn(driver);
    Pair {
        edge,
        control,
        agent,
        edge_end,
        agent_end,
    }
}

/// Nothing here takes a minute, unless it never ends.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it never ends")
}
