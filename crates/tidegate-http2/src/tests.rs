//! Bodies over a real connection of the codec's two ends.

use std::convert::Infallible;
use std::future::poll_fn;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody};

use crate::{Driver, Ended, Incoming, Outgoing, SendBodyError, reason_of};

/// A server that answers every request with what comes of the function, and a request to it.
async fn ask<F, R>(answer: F, length: Option<u64>) -> (ResponseFuture, SendStream<Bytes>)
where
    F: Fn(Incoming, h2::server::SendResponse<Bytes>) -> R + Send + Clone + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let codec = h2::server::handshake(far).await.unwrap();
        let mut driver = Driver::new(codec, move |request, respond| {
            let (head, body) = request.into_parts();
            answer(Incoming::new(body, &head.headers), respond)
        });
        let never = |_: &mut Driver<_, _, _>, _: &mut std::task::Context<'_>| {
            std::task::Poll::<Infallible>::Pending
        };
        let Ended::Codec(_) = poll_fn(|cx| driver.poll(cx, never)).await;
    });
    let (sender, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let mut request = Request::post("http://a.example/").body(()).unwrap();
    if let Some(length) = length {
        request
            .headers_mut()
            .insert("content-length", length.into());
    }
    sender.send_request(request, false).unwrap()
}

/// Sends back what it reads, or its end.
async fn echo(body: Incoming, mut respond: h2::server::SendResponse<Bytes>) {
    let send = respond.send_response(Response::new(()), false).unwrap();
    let mut outgoing = Outgoing::new(send, body);
    if let Err(SendBodyError::Body(error)) = poll_fn(|cx| outgoing.poll(cx)).await {
        outgoing.reset(reason_of(&error));
    }
}

async fn answered(response: ResponseFuture) -> Incoming {
    let (head, body) = response.await.unwrap().into_parts();
    Incoming::new(body, &head.headers)
}

#[tokio::test]
async fn bodies_and_trailers_go_there_and_back() {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    // More than all windows.
    let chunks = (0..100).map(|_| Frame::data(Bytes::from(vec![7; 10_000])));
    let frames = chunks.chain([Frame::trailers(trailers.clone())]);
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
    let (response, send) = ask(echo, None).await;
    let mut outgoing = Outgoing::new(send, body);
    let task = tokio::spawn(async move { poll_fn(|cx| outgoing.poll(cx)).await.unwrap() });
    let collected = answered(response).await.collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(collected.to_bytes(), vec![7; 1_000_000]);
    task.await.unwrap();
}

/// Whoever gives up says CANCEL. A body must not look whole because of that.
#[tokio::test]
async fn a_body_that_is_given_up_is_not_whole() {
    for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        let (response, mut send) = ask(echo, None).await;
        send.send_data(Bytes::from_static(b"half"), false).unwrap();
        let mut body = answered(response).await;
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "half");
        send.send_reset(reason);
        let end = body.frame().await.unwrap().unwrap_err();
        assert_eq!(end.reason(), Some(reason));
        assert!(!body.is_end_stream());
    }
}

#[tokio::test]
async fn a_body_that_is_there_is_taken_whole() {
    let (response, send) = ask(echo, Some(5)).await;
    let mut outgoing = Outgoing::new(send, Full::new(Bytes::from_static(b"hello")));
    poll_fn(|cx| outgoing.poll(cx)).await.unwrap();
    let mut body = answered(response).await;
    // The head may come alone.
    let whole = loop {
        assert!(!body.is_end_stream());
        match body.take_whole() {
            Some(whole) => break whole,
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(whole, "hello");
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

/// What was looked at is still handed out.
#[tokio::test]
async fn a_body_that_goes_on_is_not_taken() {
    let (response, mut send) = ask(echo, Some(10)).await;
    send.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let mut body = answered(response).await;
    for _ in 0..100 {
        assert_eq!(body.take_whole(), None);
        tokio::task::yield_now().await;
    }
    assert!(!body.is_end_stream());
    send.send_data(Bytes::from_static(b"world"), true).unwrap();
    let collected = body.collect().await.unwrap();
    assert_eq!(collected.to_bytes(), "helloworld");
}

#[tokio::test]
async fn the_length_of_a_body_is_what_its_head_says() {
    let tell = |body: Incoming, mut respond: h2::server::SendResponse<Bytes>| async move {
        let said = body.size_hint().exact();
        let length = body.collect().await.unwrap().to_bytes().len();
        assert_eq!(said, Some(length as u64));
        respond.send_response(Response::new(()), true).unwrap();
    };
    let (response, mut send) = ask(tell, Some(5)).await;
    send.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let body = answered(response).await;
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
}
