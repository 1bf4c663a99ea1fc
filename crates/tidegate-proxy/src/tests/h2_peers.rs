//! HTTP/2 clients and origins for the tests: the frames are the `h2` crate's, the script is the test's.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::{HOST, PATIENCE, TestEdge};

impl TestEdge {
    /// Runs the client's side on this thread, not for ever.
    #[track_caller]
    pub(super) fn block_on<F: Future>(&self, future: F) -> F::Output {
        let limited = async { tokio::time::timeout(PATIENCE, future).await };
        self.runtime.block_on(limited).expect("it took too long")
    }

    /// An HTTP/2 connection with prior knowledge. Needs the test's runtime.
    pub(super) async fn h2(&self) -> SendRequest<Bytes> {
        let tcp = TcpStream::connect(self.http).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.data_frame_budget(usize::MAX);
        h2_over(tcp, builder).await
    }
}

pub(super) async fn h2_over<S>(io: S, builder: h2::client::Builder) -> SendRequest<Bytes>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(async move {
        // Its end is seen by whoever uses the sender.
        let _ = connection.await;
    });
    sender.ready().await.unwrap()
}

pub(super) fn h2_request(method: &str, path: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri(format!("http://{HOST}{path}"))
        .body(())
        .unwrap()
}

/// Reads a body to its end, giving the window back as it goes.
pub(super) async fn h2_body(
    body: &mut RecvStream,
) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok((all, body.trailers().await?))
}

/// Sends as much as the window allows, waiting for more, until all is sent.
pub(super) async fn h2_send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            let more = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
            more.expect("the stream was closed").unwrap();
        }
        let n = stream.capacity().min(data.len());
        let part = data.split_to(n);
        let last = end && data.is_empty();
        stream.send_data(part, last).unwrap();
    }
}

/// An origin that speaks HTTP/2 with prior knowledge and runs the script for each request.
pub(super) struct H2Origin {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
}

impl H2Origin {
    pub(super) fn scripted<F, Fut>(script: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let address = accepting(move |tcp| {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve_h2(tcp, script.clone()));
        });
        Self {
            address,
            connections,
        }
    }
}

/// Accepts on a free port, on a runtime of its own that ends with the test process.
pub(super) fn accepting(each: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((tcp, _)) = listener.accept().await {
                each(tcp);
            }
        });
    });
    address
}

pub(super) async fn serve_h2<S, F, Fut>(io: S, script: F)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    // The budgets for small frames under test are the edge's, not the peers'.
    let mut builder = h2::server::Builder::new();
    builder.data_frame_budget(usize::MAX);
    let Ok(mut connection) = builder.handshake(io).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(script(request, respond));
    }
}

/// Answers with the request's version, path, header and body as text.
pub(super) async fn describe(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let Ok((body, trailers)) = h2_body(&mut body).await else {
        return;
    };
    let text = format!(
        "{:?} {} {} {:?} trailers {trailers:?} body {}",
        parts.version,
        parts.method,
        parts.uri,
        parts.headers,
        String::from_utf8_lossy(&body)
    );
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    h2_send(&mut stream, Bytes::from(text), true).await;
}
