//! Origins on hyper: what a well-behaved backend is to the edge.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A serving origin. Dropping ends it.
pub(crate) struct Origin {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Origin {
    /// Answers every request with what it received, as JSON:
    /// `{"method", "target", "version", "headers": [[name, value]…], "body_bytes"}`.
    pub(crate) fn echo() -> Self {
        Self::serve(|request| async move {
            let headers: Vec<_> = request
                .headers()
                .iter()
                .map(|(name, value)| {
                    serde_json::json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])
                })
                .collect();
            let seen = serde_json::json!({
                "method": request.method().as_str(),
                "target": request.uri().to_string(),
                "version": format!("{:?}", request.version()),
                "headers": headers,
            });
            let bytes = request
                .into_body()
                .collect()
                .await
                .map_or(0, |body| body.to_bytes().len());
            let mut seen = seen;
            seen["body_bytes"] = bytes.into();
            Response::builder()
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(seen.to_string())))
                .unwrap()
        })
    }

    /// Answers every request with this text.
    pub(crate) fn text(text: &'static str) -> Self {
        Self::text_at("127.0.0.1:0".parse().unwrap(), text)
    }

    /// The same on this address.
    pub(crate) fn text_at(address: SocketAddr, text: &'static str) -> Self {
        Self::serve_at(address, move |_| async move {
            Response::new(Full::new(Bytes::from_static(text.as_bytes())))
        })
    }

    /// Answers through a function.
    pub(crate) fn serve<F, R, B>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
        R: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        Self::serve_at("127.0.0.1:0".parse().unwrap(), answer)
    }

    fn serve_at<F, R, B>(address: SocketAddr, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
        R: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel::<()>();
        let counts = (Arc::clone(&requests), Arc::clone(&connections));
        let thread = std::thread::spawn(move || {
            super::client::block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, answer, counts) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            requests,
            connections,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests received so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept<F, R, B>(
    listener: TcpListener,
    answer: F,
    (requests, connections): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        let (answer, requests) = (answer.clone(), Arc::clone(&requests));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::Relaxed);
                let response = answer(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            let _ =
                hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
        });
    }
}
