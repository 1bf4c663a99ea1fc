//! `SteadyBody` by itself.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::noop_waker_ref;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use proptest::prelude::*;

use crate::link::body::SteadyBody;

#[derive(Debug, Clone)]
enum Step {
    Data(Vec<u8>),
    Pending,
    Trailers,
    Fails,
}

struct Script(VecDeque<Step>);

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match self.0.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Pending) => Poll::Pending,
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data.into())))),
            Some(Step::Trailers) => {
                self.0.clear();
                Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new()))))
            }
            Some(Step::Fails) => {
                self.0.clear();
                Poll::Ready(Some(Err("broken")))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let length = |step: &Step| match step {
            Step::Data(data) => data.len() as u64,
            _ => 0,
        };
        SizeHint::with_exact(self.0.iter().map(length).sum())
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn step() -> impl Strategy<Value = Step> {
    let data = prop_oneof![Just(0), 1..30_usize, 1000..1100_usize, Just(20_000)];
    prop_oneof![
        8 => (data, any::<u8>()).prop_map(|(length, byte)| Step::Data(vec![byte; length])),
        2 => Just(Step::Pending),
        1 => Just(Step::Trailers),
        1 => Just(Step::Fails),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_late_or_empty(steps in proptest::collection::vec(step(), 0..60)) {
        let (mut expected, mut end) = (Vec::new(), "end");
        for step in &steps {
            match step {
                Step::Data(data) => expected.extend_from_slice(data),
                Step::Pending => {}
                Step::Trailers => { end = "trailers"; break }
                Step::Fails => { end = "failed"; break }
            }
        }
        let mut body = SteadyBody::new(Script(steps.into()));
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut found = Vec::new();
        let ended = loop {
            let hint = body.size_hint().exact().unwrap();
            prop_assert!(!body.is_end_stream() || hint == 0);
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Pending => {}
                Poll::Ready(None) => break "end",
                Poll::Ready(Some(Err(error))) => {
                    prop_assert_eq!(error, "broken");
                    break "failed";
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Err(_) => break "trailers",
                    Ok(data) => {
                        prop_assert!(!data.is_empty());
                        found.extend_from_slice(&data);
                    }
                },
            }
        };
        prop_assert_eq!(ended, end);
        prop_assert!(found == expected);
        prop_assert!(body.is_end_stream());
    }
}

/// Empty chunks without end do not keep a thread to themselves.
#[test]
fn empty_chunks_without_end_let_others_have_their_turn() {
    let steps = vec![Step::Data(Vec::new()); 1000];
    let mut body = SteadyBody::new(Script(steps.into()));
    let mut cx = Context::from_waker(noop_waker_ref());
    let mut turns = 0;
    while Pin::new(&mut body).poll_frame(&mut cx).is_pending() {
        turns += 1;
    }
    assert!(turns > 10, "{turns}");
}
