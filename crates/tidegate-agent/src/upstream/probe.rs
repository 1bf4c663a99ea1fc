//! Tries a target for the edge, which wants to know which part of the way is broken.

use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, header};
use tidegate_model::AgentTarget;
use tokio::time::timeout;

use super::Upstream;
use super::body::AskBody;
use super::connect::For;
use super::exchange::Ask;
use super::failure::{Failure, Reason};

/// Time for the answer, beside that for the connection.
const ANSWER: Duration = Duration::from_secs(10);

/// How a probe went.
#[derive(Debug)]
pub(crate) struct Probed {
    /// Until the target was connected.
    pub(crate) connect: Option<Duration>,
    /// In all.
    pub(crate) total: Duration,
    /// What it answered, or what went wrong.
    pub(crate) result: Result<String, Failure>,
}

impl Upstream {
    /// Connects, and asks for the head of `/` where the target speaks HTTP. Any answer is one.
    pub(crate) async fn probe(self: &std::sync::Arc<Self>) -> Probed {
        let begin = Instant::now();
        let mut connect = None;
        let result = self.probe_steps(begin, &mut connect).await;
        Probed {
            connect,
            total: begin.elapsed(),
            result,
        }
    }

    async fn probe_steps(
        self: &std::sync::Arc<Self>,
        begin: Instant,
        connect: &mut Option<Duration>,
    ) -> Result<String, Failure> {
        if matches!(self.target, AgentTarget::Udp { .. }) {
            // Nobody answers a datagram that says nothing.
            return Ok("datagrams are not acknowledged; the target's name is fine".to_owned());
        }
        let stream = self.open(None, For::Requests).await?;
        *connect = Some(begin.elapsed());
        drop(stream);
        if !self.target.is_http() {
            return Ok("connected".to_owned());
        }
        let mut headers = HeaderMap::new();
        let agent = concat!("tidegate-agent/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        let host = format!("{}:{}", self.target.host().in_url(), self.target.port());
        let ask = Ask {
            method: Method::HEAD,
            authority: host.parse().ok(),
            path: PathAndQuery::from_static("/"),
            raw: None,
            headers,
            body: AskBody::None,
        };
        // Probes are no visitors.
        let counted = std::sync::Arc::<super::Counters>::default().begin();
        let answered = timeout(ANSWER, self.exchange(ask, None, counted)).await;
        let late = || Failure::new(Reason::ResponseTimeout, "no answer to HEAD /");
        let response = answered.map_err(|_| late())??;
        Ok(format!(
            "answers with status {}",
            response.status().as_u16()
        ))
    }
}
