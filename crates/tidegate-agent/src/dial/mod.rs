//! From nothing to a registered link: TCP or a proxy, TLS, the handshake, the edge's Welcome.
//!
//! Two carriers are raced (`race`): TLS with an ALPN of its own, and WebSocket for networks that let nothing else
//! pass. Each step has a clock; the token is read for each handshake.

mod advice;
mod clock;
mod error;
pub(crate) mod proxy;
mod race;
pub(crate) mod tcp;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tidegate_model::{AgentId, Carrier};
use tidegate_tunnel::credential::{Claims, Token};
use tidegate_tunnel::handshake::{self, Authorization, Refusal, Upgrade, reason};
use tidegate_tunnel::settings;
use tidegate_tunnel::websocket::{Role, WebSocketStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Edge, Proxies, TokenSource};
use crate::stream::Stream;
use crate::trust::Trust;

pub(crate) use advice::{advice, through_proxy};
pub(crate) use clock::Clock;
pub use error::DialError;
pub use proxy::ProxyError;
pub(crate) use race::{Memory, race};

/// For names and TCP. Short, so that a network that comes back is found at the next try and not at the end of this.
pub(crate) const CONNECT: Duration = Duration::from_secs(4);
/// For TLS.
pub(crate) const TLS: Duration = Duration::from_secs(5);
/// For the handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// Answers that refuse are shorter.
const LONGEST_REFUSAL: usize = 64 * 1024;

/// Bytes between agent and edge after the handshake.
pub(crate) trait Carried: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carried for T {}

/// Everything that does not differ between two dials.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) trust: Trust,
    pub(crate) proxy: Proxies,
    pub(crate) agent: AgentId,
    pub(crate) token: TokenSource,
    /// The process: 32 hexadecimal digits.
    pub(crate) instance: Arc<str>,
    pub(crate) clock: Arc<Clock>,
}

impl Dialer {
    /// TCP to the edge, or to a proxy that leads there.
    pub(crate) async fn transport(&self, edge: &Edge) -> Result<Stream, DialError> {
        let connecting = async {
            if let Some(proxy) = self.proxy.to(edge) {
                return Ok(proxy::connect(&proxy, edge, &self.trust).await?);
            }
            let bare = edge.host.as_str();
            let tcp = tcp::connect(bare, edge.port, |_| true).await?;
            settings::tune(&tcp).map_err(|error| DialError::Connect(error.into()))?;
            Ok(Stream::Plain(tcp))
        };
        let late = || DialError::Timeout("connecting", CONNECT);
        timeout(CONNECT, connecting).await.map_err(|_| late())?
    }

    /// TLS to the edge for a carrier.
    pub(crate) async fn tls(
        &self,
        edge: &Edge,
        carrier: Carrier,
        transport: Stream,
    ) -> Result<TlsStream<Stream>, DialError> {
        let name = server_name(edge).map_err(DialError::Tls)?;
        let connector = TlsConnector::from(self.trust.for_carrier(carrier));
        let late = || DialError::Timeout("TLS", TLS);
        let tls = timeout(TLS, connector.connect(name, transport)).await;
        let tls = tls
            .map_err(|_| late())?
            .map_err(|error| tls_error(carrier, error))?;
        let agreed = tls.get_ref().1.alpn_protocol();
        if carrier == Carrier::Direct && agreed != Some(handshake::ALPN) {
            return Err(DialError::NotDirect);
        }
        Ok(tls)
    }

    /// The handshake; corrects the clock once when the edge says that it is wrong.
    pub(crate) async fn carry(
        &self,
        edge: &Edge,
        carrier: Carrier,
        link: u8,
    ) -> Result<Box<dyn Carried>, DialError> {
        let mut corrected = false;
        loop {
            let transport = self.transport(edge).await?;
            let tls = self.tls(edge, carrier, transport).await?;
            let late = || DialError::Timeout("the handshake", HANDSHAKE);
            let done = timeout(HANDSHAKE, self.shake_hands(edge, carrier, link, tls)).await;
            match done.map_err(|_| late())? {
                Err(Refused {
                    error,
                    date: Some(date),
                }) if error.reason() == reason::CLOCK_SKEW && !corrected => {
                    self.clock.correct(date);
                    corrected = true;
                }
                Err(refused) => return Err(refused.error),
                Ok(bytes) => return Ok(bytes),
            }
        }
    }

    async fn shake_hands(
        &self,
        edge: &Edge,
        carrier: Carrier,
        link: u8,
        tls: TlsStream<Stream>,
    ) -> Result<Box<dyn Carried>, Refused> {
        let authorization = self.authorize(edge, carrier, link, &tls)?;
        let upgrade = match carrier {
            Carrier::Direct => Upgrade::Direct,
            Carrier::WebSocket => Upgrade::websocket(),
        };
        let request = handshake::request(&edge.authority(), &upgrade, &authorization);
        let request = request.map_err(DialError::Request)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls))
            .await
            .map_err(DialError::Http)?;
        let connection = Aborting(tokio::spawn(connection.with_upgrades()));
        let request = request.map(|()| Empty::<Bytes>::new());
        let mut response = sender
            .send_request(request)
            .await
            .map_err(DialError::Http)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(response).await);
        }
        handshake::check_answer(&upgrade, &response).map_err(DialError::Answer)?;
        let upgraded = hyper::upgrade::on(&mut response)
            .await
            .map_err(DialError::Http)?;
        drop(connection);
        let bytes = TokioIo::new(upgraded);
        Ok(match carrier {
            Carrier::Direct => Box::new(bytes),
            Carrier::WebSocket => Box::new(WebSocketStream::new(bytes, Role::Client)),
        })
    }

    fn authorize(
        &self,
        edge: &Edge,
        carrier: Carrier,
        link: u8,
        tls: &TlsStream<Stream>,
    ) -> Result<Authorization, DialError> {
        let token = self.token.read().map_err(DialError::Token)?;
        let token = Token::parse(token.expose())
            .map_err(|error| DialError::Token(format!("use the token: {error}")))?;
        // Over WebSocket the TLS of the agent may end before the edge.
        let mut binding = [0; handshake::EXPORTER_LENGTH];
        let binding: &[u8] = match carrier {
            Carrier::Direct => {
                let session = tls.get_ref().1;
                session
                    .export_keying_material(&mut binding, handshake::EXPORTER_LABEL, None)
                    .map_err(|error| DialError::Tls(io::Error::other(error)))?;
                &binding
            }
            Carrier::WebSocket => &[],
        };
        let mut authorization = Authorization {
            edge: edge.authority(),
            agent: self.agent.to_string(),
            instance: self.instance.to_string(),
            link,
            time: self.clock.now(),
            nonce: format!("{:032x}", fastrand::u128(..)),
            proof: tidegate_model::Secret::new(String::new()),
        };
        let proof = token.prove(&Claims {
            version: handshake::SPOKEN.first().copied().unwrap_or(1),
            edge: &authorization.edge,
            agent: &authorization.agent,
            instance: &authorization.instance,
            link,
            time: authorization.time,
            nonce: &authorization.nonce,
            binding,
        });
        authorization.proof = proof.text();
        Ok(authorization)
    }
}

/// The name that the edge's certificate must have.
pub(crate) fn server_name(edge: &Edge) -> io::Result<ServerName<'static>> {
    ServerName::try_from(edge.host.as_str().to_owned()).map_err(io::Error::other)
}

/// An edge without agents, or whoever opens TLS in between, ends the handshake where it does not know the protocol.
fn tls_error(carrier: Carrier, error: io::Error) -> DialError {
    let source = error
        .get_ref()
        .and_then(|source| source.downcast_ref::<rustls::Error>());
    let unknown = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    if carrier == Carrier::Direct && source == Some(&unknown) {
        return DialError::NotDirect;
    }
    DialError::Tls(error)
}

/// A refusal, and the edge's time when it said so.
struct Refused {
    error: DialError,
    date: Option<std::time::SystemTime>,
}

impl From<DialError> for Refused {
    fn from(error: DialError) -> Self {
        Self { error, date: None }
    }
}

async fn refused(response: Response<Incoming>) -> Refused {
    let (parts, body) = response.into_parts();
    let text = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let date = text(header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    let retry_after = text(header::RETRY_AFTER)
        .and_then(|seconds| seconds.trim().parse().ok())
        .map(Duration::from_secs);
    let body = Limited::new(body, LONGEST_REFUSAL).collect().await;
    let body = body
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let Some(refusal) = Refusal::parse(&body) else {
        let error = handshake::AnswerError::Status(parts.status);
        return DialError::Answer(error).into();
    };
    // Whatever stands there goes into logs.
    let plain = |words: &str| {
        words
            .chars()
            .filter(|c| !c.is_control())
            .take(512)
            .collect()
    };
    let error = DialError::Refused {
        status: parts.status,
        reason: plain(&refusal.reason),
        message: plain(&refusal.message),
        retry_after,
    };
    Refused { error, date }
}

/// Ends the task when dropped, unless the connection was taken over by then.
struct Aborting<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
