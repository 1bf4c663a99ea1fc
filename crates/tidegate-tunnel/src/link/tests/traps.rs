//! The ways in which the defaults of h2, or of hyper above it, end a healthy link or let one visitor stop all others.
//! Each of these fails with the default of the setting it names, unless it says otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::{Notify, watch};

use super::support::*;
use crate::settings::STREAM_WINDOW;

/// `CONNECTION_WINDOW` of the edge: 5 MiB would be full after a handful of visitors.
#[tokio::test]
async fn visitors_who_stop_reading_stop_nobody_else() {
    const VISITORS: usize = 64;
    let (taken, mut progress) = watch::channel(0);
    let pair = pair(move |request| {
        let taken = taken.clone();
        async move {
            match request.uri().path() {
                "/big" => Response::new(BodyExt::boxed_unsync(Endless(taken))),
                _ => echo(request).await,
            }
        }
    })
    .await;
    let mut stopped = Vec::new();
    for _ in 0..VISITORS {
        stopped.push(pair.get("/big").await);
    }
    let full = VISITORS * STREAM_WINDOW as usize;
    within(progress.wait_for(|taken| *taken >= full))
        .await
        .unwrap();
    pair.still_works().await;
    assert_eq!(pair.edge.in_flight(), VISITORS);
    drop(stopped);
    within(pair.edge.idle()).await;
    within(pair.agent.link.idle()).await;
    pair.still_works().await;
}

/// `CONNECTION_WINDOW` of the agent: of 1 MiB, one upload that its target does not take would use all.
#[tokio::test]
async fn uploads_that_are_not_taken_stop_nobody_else() {
    const UPLOADS: usize = 64;
    let (taken, mut progress) = watch::channel(0);
    let pair = pair(|request| async move {
        if request.uri().path() == "/stuck" {
            // Holds the body and does not read it.
            std::future::pending::<()>().await;
        }
        echo(request).await
    })
    .await;
    let mut stuck = Vec::new();
    for _ in 0..UPLOADS {
        let body = Endless(taken.clone()).boxed_unsync();
        let request = Request::post("http://a.example/stuck").body(body).unwrap();
        stuck.push(tokio::spawn(pair.edge.try_send(request)));
    }
    let full = UPLOADS * STREAM_WINDOW as usize;
    within(progress.wait_for(|taken| *taken >= full))
        .await
        .unwrap();
    pair.still_works().await;
    for request in stuck {
        request.abort();
    }
    within(pair.agent.link.idle()).await;
    pair.still_works().await;
}

/// After the answer has begun, too: nothing but the visitor could end them.
#[tokio::test]
async fn uploads_that_are_not_taken_end_with_their_visitors() {
    let (taken, mut progress) = watch::channel(0);
    let pair = pair(|request| async move {
        if request.uri().path() == "/echo" {
            return echo(request).await;
        }
        let held = request.into_body();
        let open = futures_util::stream::once(async move {
            std::future::pending::<()>().await;
            drop(held);
            Ok(Frame::data(Bytes::new()))
        });
        Response::new(StreamBody::new(Box::pin(open)).boxed_unsync())
    })
    .await;
    let body = Endless(taken).boxed_unsync();
    let request = Request::post("http://a.example/").body(body).unwrap();
    let answer = within(pair.edge.try_send(request)).await.unwrap();
    within(progress.wait_for(|taken| *taken >= STREAM_WINDOW as usize))
        .await
        .unwrap();
    drop(answer);
    within(pair.agent.link.idle()).await;
    // Its feeder is gone with it, and the channel that tells of its progress.
    while within(progress.changed()).await.is_ok() {}
    pair.still_works().await;
}

/// `CONNECTION_WINDOW` again: half of it is h2's budget for small frames that lie unread; 20 000 were too many.
#[tokio::test]
async fn events_that_nobody_reads_do_not_end_the_link() {
    const EVENTS: usize = 50_000;
    let (taken, mut progress) = watch::channel(0);
    let pair = pair(move |request| {
        let taken = taken.clone();
        async move {
            match request.uri().path() {
                "/events" => Response::new(BodyExt::boxed_unsync(Events {
                    left: EVENTS,
                    taken,
                    rest: false,
                })),
                _ => echo(request).await,
            }
        }
    })
    .await;
    let events = pair.get("/events").await;
    within(progress.wait_for(|taken| *taken == EVENTS))
        .await
        .unwrap();
    // Arrives after all of them.
    pair.still_works().await;
    let read = within(events.into_body().collect()).await.unwrap();
    assert_eq!(read.to_bytes().len(), EVENTS * 20);
}

/// `SteadyBody`: the hundredth empty frame of a connection ends it.
#[tokio::test]
async fn empty_chunks_do_not_end_the_link() {
    let chunks = || {
        let chunks = (0..5000_u32).map(|n| match n % 100 {
            99 => Bytes::from_static(b"x"),
            _ => Bytes::new(),
        });
        StreamBody::new(futures_util::stream::iter(
            chunks.map(|it| Ok(Frame::data(it))),
        ))
    };
    let pair = pair(move |request| async move {
        if request.uri().path() == "/echo" {
            return echo(request).await;
        }
        let read = request.into_body().collect().await.unwrap();
        assert_eq!(read.to_bytes().len(), 50);
        Response::new(chunks().boxed_unsync())
    })
    .await;
    let request = Request::post("http://a.example/").body(chunks().boxed_unsync());
    let answer = within(pair.edge.try_send(request.unwrap())).await.unwrap();
    let read = within(answer.into_body().collect()).await.unwrap();
    assert_eq!(read.to_bytes().len(), 50);
    pair.still_works().await;
}

/// `MAX_PENDING_RESETS`: the agent finds a burst of requests and of resets all at once; 20 were too many.
#[tokio::test]
async fn visitors_who_leave_in_a_burst_do_not_end_the_link() {
    const VISITORS: usize = 500;
    let pair = pair(|request| async move {
        match request.uri().path() {
            "/echo" => echo(request).await,
            _ => std::future::pending().await,
        }
    })
    .await;
    pair.gate.shut();
    let mut visitors = Vec::new();
    for _ in 0..VISITORS {
        let request = Request::get("http://a.example/").body(full("")).unwrap();
        visitors.push(tokio::spawn(pair.edge.try_send(request)));
    }
    turns().await;
    let sent = pair.edge.bytes().1;
    assert!(sent > 9 * VISITORS as u64, "only {sent} bytes were sent");
    for visitor in visitors {
        visitor.abort();
    }
    turns().await;
    // A reset is a frame of 13 bytes.
    let resets = pair.edge.bytes().1 - sent;
    assert!(
        resets >= 13 * VISITORS as u64,
        "only {resets} bytes of resets"
    );
    pair.gate.open();
    pair.still_works().await;
    within(pair.agent.link.idle()).await;
    pair.still_works().await;
}

/// `MAX_REMEMBERED_RESETS` and `max_local_error_reset_streams`: what the agent still sends to visitors who left in
/// the middle of downloads is no offence of the agent's. (Nor is it with the defaults of hyper 1.12.)
#[tokio::test]
async fn frames_for_visitors_who_left_do_not_end_the_link() {
    const VISITORS: usize = 1100;
    let (taken, _progress) = watch::channel(0);
    let pair = pair(move |request| {
        let taken = taken.clone();
        async move {
            match request.uri().path() {
                "/big" => Response::new(BodyExt::boxed_unsync(Endless(taken))),
                _ => echo(request).await,
            }
        }
    })
    .await;
    for _ in 0..VISITORS {
        drop(pair.get("/big").await);
    }
    pair.still_works().await;
    within(pair.agent.link.idle()).await;
    pair.still_works().await;
}

/// `MAX_STREAMS` of the agent: with 200 the rest would wait for ever, with 100 until the first SETTINGS too.
#[tokio::test]
async fn two_thousand_streams_are_open_at_once() {
    const STREAMS: usize = 2000;
    let (arrived, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let pair = pair(move |request| {
        let (arrived, all) = (Arc::clone(&arrived), Arc::clone(&all));
        async move {
            if request.uri().path() != "/echo" {
                let notified = all.notified();
                if arrived.fetch_add(1, Ordering::SeqCst) + 1 == STREAMS {
                    all.notify_waiters();
                } else {
                    notified.await;
                }
            }
            echo(request).await
        }
    })
    .await;
    let sent: Vec<_> = (0..STREAMS)
        .map(|n| {
            let request = Request::post("http://a.example/").body(full(n.to_string()));
            tokio::spawn(pair.edge.try_send(request.unwrap()))
        })
        .collect();
    for (n, answer) in sent.into_iter().enumerate() {
        let answer = within(answer).await.unwrap().unwrap();
        let body = within(answer.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes(), n.to_string());
    }
    assert_eq!((pair.edge.in_flight(), pair.agent.link.in_flight()), (0, 0));
}

/// `MAX_HEADERS`, both ways: 16 KiB were too few.
#[tokio::test]
async fn large_header_fields_pass() {
    let cookie = "c".repeat(48 * 1024);
    let pair = pair(|request| async move {
        let cookie = request.headers()["cookie"].clone();
        Response::builder()
            .header("set-cookie", cookie)
            .body(full(""))
            .unwrap()
    })
    .await;
    let request = Request::get("http://a.example/").header("cookie", &cookie);
    let answer = within(pair.edge.try_send(request.body(full("")).unwrap()))
        .await
        .unwrap();
    assert_eq!(answer.headers()["set-cookie"], cookie);
}

/// `SteadyBody`: a frame costs the same whatever is in it.
#[tokio::test]
async fn tiny_chunks_that_are_ready_together_travel_together() {
    let pair = pair(|_| async {
        let chunks = (0..1000).map(|_| Ok(Frame::data(Bytes::from_static(b"ten bytes\n"))));
        Response::new(StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync())
    })
    .await;
    let before = pair.edge.bytes().0;
    let read = within(pair.get("/").await.into_body().collect())
        .await
        .unwrap();
    assert_eq!(read.to_bytes().len(), 10_000);
    // 1000 frames would have 9000 bytes of headers.
    let overhead = pair.edge.bytes().0 - before - 10_000;
    assert!(overhead < 500, "{overhead} bytes beside the content");
}
