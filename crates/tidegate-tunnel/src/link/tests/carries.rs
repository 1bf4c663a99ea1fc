//! What a link carries.

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::support::*;

#[tokio::test]
async fn a_request_with_trailers_passes() {
    let mut pair = pair(|request| async move {
        assert_eq!(request.uri(), "http://app.example.com/a?b=c");
        let collected = request.into_body().collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap();
        let data = collected.to_bytes();
        let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Response::new(BodyExt::boxed_unsync(body))
    })
    .await;
    assert_eq!(pair.control.hello, hello());

    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [
        Ok(Frame::data("hello".into())),
        Ok(Frame::trailers(trailers.clone())),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::post("http://app.example.com/a?b=c").body(BodyExt::boxed_unsync(body));
    let response = within(pair.edge.try_send(request.unwrap())).await.unwrap();
    assert_eq!(pair.edge.in_flight(), 1);
    let collected = within(response.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(collected.to_bytes(), "hello");
    assert_eq!((pair.edge.in_flight(), pair.edge.requests()), (0, 1));

    let mappings = crate::wire::Mappings::default();
    let said = crate::wire::FromEdge::from(mappings);
    pair.control.to_agent.send(said.clone()).await.unwrap();
    assert_eq!(within(pair.agent.from_edge.recv()).await, Some(said));
}

#[tokio::test]
async fn an_end_that_goes_is_noticed_by_the_other() {
    let pair = pair(|_| async { Response::new(full("hello")) }).await;
    let request = Request::get("http://a.example/").body(full(""));
    let answer = within(pair.edge.try_send(request.unwrap())).await.unwrap();
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );
    pair.agent.link.finish();
    let end = within(pair.agent_end).await.unwrap();
    assert_eq!(end.reason(), "LinkEnded", "{end:?}");
    let end = within(pair.edge_end).await.unwrap();
    assert_eq!(end.reason(), "LinkClosed", "{end:?}");
    assert!(pair.edge.is_closed());
    let request = Request::get("http://a.example/").body(full(""));
    let failed = within(pair.edge.try_send(request.unwrap()))
        .await
        .unwrap_err();
    assert_eq!(failed.error.reason(), "LinkClosed");
    assert!(failed.unsent.is_some());
}
