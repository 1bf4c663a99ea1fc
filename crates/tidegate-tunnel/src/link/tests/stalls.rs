//! The stall budget: what visitors who do not read may cost, and who pays.

use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::sync::watch;

use super::support::*;
use crate::link::edge::{IncomingError, LinkIncoming, SendError};
use crate::link::stall::{CROWD, Patience, REFUSE_ABOVE, RESET_ABOVE};

/// Whoever does not come back in no time has stalled; crowds are another test's.
const NONE: Patience = Patience {
    stalled: Duration::ZERO,
    crowd: Duration::ZERO,
};

async fn downloads(patience: Patience) -> Pair {
    let (taken, _) = watch::channel(0);
    let pair = pair_with(patience, move |request| {
        let taken = taken.clone();
        async move {
            match request.uri().path() {
                "/big" => Response::new(Endless(taken).boxed_unsync()),
                _ => echo(request).await,
            }
        }
    })
    .await;
    pair.edge.look_by_hand();
    pair
}

/// A visitor who reads the first chunk and no more.
async fn stalled(pair: &Pair) -> LinkIncoming {
    let mut body = pair.get("/big").await.into_body();
    within(body.frame()).await.unwrap().unwrap();
    body
}

fn small() -> Request<TestBody> {
    Request::get("http://a.example/echo")
        .body(full(""))
        .unwrap()
}

#[tokio::test]
async fn too_many_who_do_not_read_and_new_requests_are_refused() {
    let pair = downloads(NONE).await;
    let mut visitors = Vec::new();
    for _ in 0..=REFUSE_ABOVE {
        assert!(!pair.edge.is_full());
        visitors.push(stalled(&pair).await);
    }
    pair.edge.look();
    assert!(pair.edge.is_full());
    let refused = within(pair.edge.try_send(small())).await.unwrap_err();
    assert!(
        matches!(refused.error, SendError::Stalled),
        "{:?}",
        refused.error
    );
    assert_eq!(refused.unsent.unwrap().uri(), "http://a.example/echo");

    drop(visitors.pop());
    pair.edge.look();
    assert!(!pair.edge.is_full());
    pair.still_works().await;
}

#[tokio::test]
async fn far_too_many_and_those_who_wait_longest_are_reset() {
    let pair = downloads(NONE).await;
    let mut visitors = Vec::new();
    while visitors.len() < RESET_ABOVE + 2 {
        visitors.push(stalled(&pair).await);
        // Milliseconds decide who is first.
        let now = tokio::time::Instant::now();
        while now.elapsed() < Duration::from_millis(2) {
            tokio::task::yield_now().await;
        }
    }
    pair.edge.look();
    for (place, visitor) in visitors.iter_mut().enumerate() {
        let frame = within(visitor.frame()).await.unwrap();
        if place < 2 {
            assert!(
                matches!(frame, Err(IncomingError::Stalled)),
                "visitor {place}"
            );
            assert!(visitor.frame().await.is_none() && visitor.is_end_stream());
        } else {
            assert!(frame.is_ok(), "visitor {place}");
        }
    }
    // The agent was told, although the visitors themselves are still there.
    while pair.agent.link.in_flight() > RESET_ABOVE {
        within(tokio::task::yield_now()).await;
    }
}

#[tokio::test]
async fn those_who_read_slowly_are_no_burden_and_crowds_are() {
    let patience = Patience {
        stalled: Duration::from_secs(3600),
        crowd: Duration::ZERO,
    };
    let pair = downloads(patience).await;
    let mut visitors = Vec::new();
    for _ in 0..REFUSE_ABOVE * CROWD {
        visitors.push(stalled(&pair).await);
    }
    pair.edge.look();
    assert!(!pair.edge.is_full());
    visitors.push(stalled(&pair).await);
    pair.edge.look();
    assert!(pair.edge.is_full());
}

#[tokio::test]
async fn uploads_that_are_not_taken_count_and_are_reset() {
    let (taken, mut progress) = watch::channel(0);
    let pair = pair_with(NONE, |request| async move {
        if request.uri().path() == "/stuck" {
            std::future::pending::<()>().await;
        }
        echo(request).await
    })
    .await;
    pair.edge.look_by_hand();
    let mut uploads = Vec::new();
    for _ in 0..=RESET_ABOVE {
        let body = Endless(taken.clone()).boxed_unsync();
        let request = Request::post("http://a.example/stuck").body(body).unwrap();
        uploads.push(tokio::spawn(pair.edge.try_send(request)));
    }
    // Each has filled its window and holds one chunk more.
    let full = (RESET_ABOVE + 1) * (crate::settings::STREAM_WINDOW as usize + CHUNK.len());
    within(progress.wait_for(|taken| *taken >= full))
        .await
        .unwrap();
    pair.edge.look();
    let (reset, _, others) = within(futures_util::future::select_all(uploads)).await;
    let reset = reset.unwrap().unwrap_err();
    assert!(matches!(reset.error, SendError::Reset), "{:?}", reset.error);
    turns().await;
    assert!(others.iter().all(|upload| !upload.is_finished()));
    // The agent was told.
    while pair.agent.link.in_flight() > RESET_ABOVE {
        within(tokio::task::yield_now()).await;
    }
}
