//! How links end, and those that do not come up.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::support::*;
use crate::link::{agent, edge};
use crate::wire::{Bye, FromEdge, Hello, Retry};

/// Twice the promise, for machines that do much else.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_dead_link_is_found_by_both_ends() {
    let (taken, _) = watch::channel(0);
    let pair = pair(move |_| {
        let taken = taken.clone();
        async move { Response::new(Endless(taken).boxed_unsync()) }
    })
    .await;
    // Downloads, so that both ends want to write and cannot.
    let mut read = pair.get("/").await.into_body();
    within(read.frame()).await.unwrap().unwrap();
    let waits = pair.get("/").await;
    pair.gate.shut();
    let start = Instant::now();
    let ends = within(async { tokio::join!(pair.edge_end, pair.agent_end) }).await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(ends.0.is_ok() && ends.1.is_ok(), "{ends:?}");
    assert!(pair.edge.is_closed());
    // Whoever is on it learns of it.
    let lost = async { while within(read.frame()).await.unwrap().is_ok() {} };
    within(lost).await;
    drop(waits);
}

/// Neither end takes silence of a slow visitor, or of nobody, for death.
#[tokio::test]
async fn an_idle_link_lives() {
    let pair = pair(|request| async move {
        match request.uri().path() {
            "/echo" => echo(request).await,
            _ => pending().await,
        }
    })
    .await;
    let request = Request::get("http://a.example/").body(full("")).unwrap();
    let waits = tokio::spawn(pair.edge.try_send(request));
    let ended = timeout(Duration::from_secs(7), pair.edge.closed()).await;
    assert!(ended.is_err(), "the link has ended");
    pair.still_works().await;
    assert!(pair.edge.rtt().is_some());
    assert!(!waits.is_finished() && !pair.agent_end.is_finished());
}

#[tokio::test]
async fn a_link_that_is_cut_fails_what_is_on_it() {
    let (taken, _) = watch::channel(0);
    let pair = pair(move |request| {
        let taken = taken.clone();
        async move {
            match request.uri().path() {
                "/big" => Response::new(Endless(taken).boxed_unsync()),
                _ => pending().await,
            }
        }
    })
    .await;
    let mut reads = pair.get("/big").await.into_body();
    let request = Request::get("http://a.example/").body(full("")).unwrap();
    let waits = tokio::spawn(pair.edge.try_send(request));
    turns().await;
    pair.edge.cut();
    assert_eq!(
        within(waits).await.unwrap().unwrap_err().error.reason(),
        "LinkBroken"
    );
    while within(reads.frame()).await.unwrap().is_ok() {}
    assert!(reads.frame().await.is_none());
    within(pair.edge_end).await.unwrap();
    within(pair.agent_end).await.unwrap();
    within(pair.agent.link.idle()).await;
}

#[tokio::test]
async fn a_farewell_is_heard_before_the_link_ends() {
    let mut pair = pair(echo).await;
    let bye = Bye::new(Retry::Never, "Revoked", "the token was revoked");
    let end = pair.edge.end(bye.clone(), SOON);
    let heard = async {
        let heard = pair.agent.from_edge.recv().await;
        pair.agent.link.cut();
        heard
    };
    let ((), heard) = within(async { tokio::join!(end, heard) }).await;
    assert_eq!(heard, Some(FromEdge::Bye(bye)));
    within(pair.edge_end).await.unwrap();
    assert_eq!(within(pair.agent.from_edge.recv()).await, None);
}

#[tokio::test]
async fn a_link_without_its_driver_is_gone() {
    let pair = pair(echo).await;
    pair.edge_end.abort();
    within(pair.agent_end).await.unwrap();
    within(pair.edge.closed()).await;
    assert!(pair.edge.is_closed());
}

#[tokio::test]
async fn a_link_ends_after_what_is_on_it() {
    let (finish, finished) = watch::channel(false);
    let pair = pair(move |request| {
        let mut finished = finished.clone();
        async move {
            finished.wait_for(|finished| *finished).await.unwrap();
            echo(request).await
        }
    })
    .await;
    let request = Request::post("http://a.example/")
        .body(full("to the end"))
        .unwrap();
    let waits = tokio::spawn(pair.edge.try_send(request));
    turns().await;
    assert_eq!(pair.agent.link.in_flight(), 1);
    pair.agent.link.finish();
    turns().await;
    assert!(!pair.agent_end.is_finished());
    finish.send(true).unwrap();
    let answer = within(waits).await.unwrap().unwrap();
    let body = within(answer.into_body().collect()).await.unwrap();
    assert_eq!(body.to_bytes(), "to the end");
    within(pair.agent_end).await.unwrap();
    within(pair.edge_end).await.unwrap();
}

/// The Hello must be that of the process that the handshake was for.
#[tokio::test]
async fn a_hello_of_somebody_else_is_refused() {
    for wrong in [
        Hello { link: 1, ..hello() },
        Hello {
            instance: "cd".repeat(16),
            ..hello()
        },
    ] {
        let (edge_io, agent_io) = tokio::io::duplex(64 * 1024);
        let (_control, driver) = agent::serve(agent_io, wrong, echo);
        let agent_end = tokio::spawn(driver);
        let opened = within(edge::open::<_, TestBody>(edge_io, facts())).await;
        let error = opened.err().unwrap();
        assert_eq!(error.reason(), "ControlStreamBroken", "{error:?}");
        within(agent_end).await.unwrap();
    }
}

/// Neither end waits for ever for what the other does not say.
#[tokio::test]
async fn a_link_that_does_not_come_up_ends() {
    let start = Instant::now();
    let (edge_io, _silent) = tokio::io::duplex(64 * 1024);
    let opens = async {
        let opened = edge::open::<_, TestBody>(edge_io, facts()).await;
        opened.err().unwrap()
    };
    let (agent_io, _silent) = tokio::io::duplex(64 * 1024);
    let (_control, driver) = agent::serve(agent_io, hello(), echo);
    // Speaks HTTP/2, but answers to the control stream as any web server would.
    let (other_io, web_io) = tokio::io::duplex(64 * 1024);
    let web = tokio::spawn(async move {
        let connection = crate::settings::agent().handshake::<_, Bytes>(web_io);
        let mut connection = connection.await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let answer: Response<()> = Response::builder().status(404).body(()).unwrap();
            respond.send_response(answer, true).unwrap();
        }
    });
    let refused = edge::open::<_, TestBody>(other_io, facts());
    let all = Box::pin(async { tokio::join!(opens, driver, refused) });
    let (opened, served, refused) = within(all).await;
    assert_eq!(opened.reason(), "NoHello");
    assert!(
        ["NoHello", "LinkDead"].contains(&served.reason()),
        "{served:?}"
    );
    let refused = refused.err().unwrap();
    assert!(refused.to_string().contains("404"), "{refused}");
    assert!(start.elapsed() < SOON);
    web.abort();
}
