//! The status page of a running agent: on loopback, read-only, without secrets.
//!
//! `/` is for people, `/status.json` for programs, `/healthz` and `/readyz` for whoever restarts and routes.
//! Names other than `localhost` are refused, so that no web page of elsewhere can read it through a visitor's browser.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::board::StatusView;

/// Clients at once.
const CLIENTS: usize = 32;
/// For a request.
const REQUEST: Duration = Duration::from_secs(10);
/// Larger answers are no status.
const LARGEST: usize = 8 << 20;

/// Serves the page until dropped.
pub(crate) async fn serve<F>(listener: TcpListener, view: Arc<F>)
where
    F: Fn() -> StatusView + Send + Sync + 'static,
{
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let view = Arc::clone(&view);
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answer = answer(&request, &*view);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .keep_alive(false);
            let _ = timeout(
                REQUEST * 2,
                server.serve_connection(TokioIo::new(client), service),
            )
            .await;
        });
    }
}

fn answer<B>(request: &Request<B>, view: impl Fn() -> StatusView) -> Response<Full<Bytes>> {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if !host.is_none_or(is_local) {
        return text(
            StatusCode::MISDIRECTED_REQUEST,
            "ask by address or as localhost\n",
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/" => {
            let mut response = text(StatusCode::OK, &page(&view()));
            let html = HeaderValue::from_static("text/html; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, html);
            let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
            response
                .headers_mut()
                .insert(header::CONTENT_SECURITY_POLICY, policy);
            response
        }
        "/status.json" => {
            let json = serde_json::to_string_pretty(&view()).unwrap_or_default();
            let mut response = text(StatusCode::OK, &json);
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        "/healthz" => text(StatusCode::OK, "alive\n"),
        "/readyz" if view().connected => text(StatusCode::OK, "connected\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "no link is up\n"),
        _ => text(
            StatusCode::NOT_FOUND,
            "/, /status.json, /healthz and /readyz are here\n",
        ),
    }
}

/// Web pages can make browsers ask under their own names, but not under addresses.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn page(view: &StatusView) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Tidegate agent</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
         padding:0 1rem;color:#1a1a1a;background:#fff}table{border-collapse:collapse;width:100%}td,th{text-align:left;\
         padding:.3rem .6rem;border-bottom:1px solid #ccc;vertical-align:top}.bad{color:#a40000}.good{color:#006400}\
         @media(prefers-color-scheme:dark){body{color:#eee;background:#161616}td,th{border-color:#444}.bad{color:#ff8a80}\
         .good{color:#8fdf8f}}</style>",
    );
    let state = if view.connected {
        ("good", "connected")
    } else {
        ("bad", "not connected")
    };
    let _ = write!(
        page,
        "<h1>Agent {}</h1><p><strong class={}>{}</strong> · version {} · since {}</p><h2>Links</h2><table><tr>\
         <th>Link<th>State<th>Edge<th>Carrier<th>Replica<th>Since<th>Requests<th>What went wrong last</tr>",
        escape(&view.agent),
        state.0,
        state.1,
        escape(&view.version),
        escape(&view.started_at)
    );
    for link in &view.links {
        let up = |of: fn(&crate::board::UpView) -> String| {
            link.up
                .as_ref()
                .map(|up| escape(&of(up)))
                .unwrap_or_default()
        };
        let error = link.last_error.as_ref().map(|error| {
            format!(
                "{}: {} ({})",
                escape(&error.reason),
                escape(&error.message),
                escape(&error.at)
            )
        });
        let _ = write!(
            page,
            "<tr><td>{}<td>{:?}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            link.link,
            link.phase,
            up(|up| up.edge.clone()),
            up(|up| up.carrier.clone()),
            up(|up| format!("{} of {}", up.replica, up.replicas)),
            up(|up| up.since.clone()),
            up(|up| up.requests.to_string()),
            error.unwrap_or_default()
        );
    }
    page.push_str(
        "</table><h2>Served</h2><table><tr><th>For<th>Target<th>Requests<th>Not answered</tr>",
    );
    for mapping in &view.mappings {
        let (names, target) = (escape(&mapping.names.join(", ")), escape(&mapping.target));
        let (requests, failed) = (mapping.requests, mapping.failed);
        let _ = write!(
            page,
            "<tr><td>{names}<td>{target}<td>{requests}<td>{failed}</tr>"
        );
    }
    for refused in &view.refused {
        let (reason, message) = (escape(&refused.reason), escape(&refused.message));
        let _ = write!(page, "<tr><td colspan=4 class=bad>{reason}: {message}</tr>");
    }
    page.push_str("</table>");
    if !view.requested.is_empty() {
        page.push_str(
            "<h2>Asked for</h2><table><tr><th>Name<th>Hostname<th>Target<th>Edge says</tr>",
        );
        for wish in &view.requested {
            let says = match wish.accepted {
                None => "nothing yet".to_owned(),
                Some(true) => "served".to_owned(),
                Some(false) => format!("{}: {}", escape(&wish.reason), escape(&wish.message)),
            };
            let (name, hostname) = (escape(&wish.name), escape(&wish.hostname));
            let target = escape(&wish.target);
            let _ = write!(
                page,
                "<tr><td>{name}<td>{hostname}<td>{target}<td>{says}</tr>"
            );
        }
        page.push_str("</table>");
    }
    page
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Asks a running agent.
pub async fn ask(address: SocketAddr) -> Result<StatusView, AskError> {
    let unreached = |error| AskError::Unreached(address, error);
    let asking = async {
        let stream = TcpStream::connect(address).await.map_err(unreached)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = http::Uri::from_static("/status.json");
        let host = HeaderValue::try_from(address.to_string()).ok();
        request
            .headers_mut()
            .extend(host.map(|host| (header::HOST, host)));
        let response: Response<Incoming> = sender.send_request(request).await?;
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|_| AskError::NotAnAgent(address))?.to_bytes();
        serde_json::from_slice(&body).map_err(|_| AskError::NotAnAgent(address))
    };
    timeout(REQUEST, asking)
        .await
        .unwrap_or(Err(AskError::NotAnAgent(address)))
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("reach an agent at {0}: is one running, and is its status page there?")]
    Unreached(SocketAddr, #[source] std::io::Error),
    /// Somebody listens, who does not speak HTTP.
    #[error("ask the agent")]
    Http(#[from] hyper::Error),
    /// What answers is something else.
    #[error("understand what answers at {0}: it is no agent")]
    NotAnAgent(SocketAddr),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::{ErrorView, LinkView, Phase};

    fn view(connected: bool) -> StatusView {
        StatusView {
            version: "1".to_owned(),
            pid: 1,
            instance: String::new(),
            agent: "default/<homelab>".to_owned(),
            started_at: String::new(),
            edges: Vec::new(),
            connected,
            links: vec![LinkView {
                link: 0,
                phase: Phase::Waiting,
                up: None,
                last_error: Some(ErrorView {
                    edge: "edge".to_owned(),
                    reason: "TlsFailed".to_owned(),
                    message: "<script>".to_owned(),
                    at: String::new(),
                }),
            }],
            mappings: Vec::new(),
            refused: Vec::new(),
            requested: Vec::new(),
        }
    }

    #[test]
    fn requests_by_name_are_refused() {
        for (host, method, path, expected) in [
            ("127.0.0.1:19181", "GET", "/", 200),
            ("localhost", "GET", "/status.json", 200),
            ("[::1]:19181", "HEAD", "/healthz", 200),
            ("10.0.0.7:8080", "GET", "/readyz", 503),
            ("evil.example", "GET", "/status.json", 421),
            ("evil.example:19181", "GET", "/", 421),
            ("localhost", "POST", "/", 405),
            ("localhost", "GET", "/x", 404),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", host);
            let response = answer(&request.body(()).unwrap(), || view(false));
            assert_eq!(response.status(), expected, "{host} {method} {path}");
        }
        let request = Request::builder().uri("/readyz").body(()).unwrap();
        assert_eq!(answer(&request, || view(true)).status(), 200);
    }

    #[test]
    fn the_page_shows_words_of_others_as_words() {
        let page = page(&view(false));
        assert!(
            !page.contains("<script>") && page.contains("TlsFailed: &lt;script&gt;"),
            "{page}"
        );
        assert!(page.contains("default/&lt;homelab&gt;"), "{page}");
    }

    #[tokio::test]
    async fn a_running_agent_is_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, Arc::new(|| view(true))));
        let found = ask(address).await.unwrap();
        assert!(found.connected);
        assert_eq!(found.links[0].phase, Phase::Waiting);
        serving.abort();
        let _ = serving.await;
        assert!(matches!(ask(address).await, Err(AskError::Unreached(..))));
    }
}
