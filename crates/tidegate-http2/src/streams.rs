//! The streams of one HTTP/2 connection: futures that are polled when they were woken, in memory that the
//! next stream of the connection uses again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use crate::wakes::{Bell, Wakes, Whom};

/// The running streams, and the places of those that have ended.
pub(super) struct Streams<F> {
    wakes: Arc<Wakes>,
    places: Vec<Place<F>>,
    free: Vec<usize>,
}

struct Place<F> {
    /// Boxed once: a stream's future is some kilobytes and never moves.
    future: Pin<Box<Option<F>>>,
    bell: Arc<Bell>,
    waker: Waker,
}

impl<F: Future<Output = ()>> Streams<F> {
    pub(super) fn new(wakes: Arc<Wakes>) -> Self {
        Self {
            wakes,
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Gives a stream its place. It is polled first with the next woken ones.
    pub(super) fn start(&mut self, future: F) {
        let index = if let Some(index) = self.free.pop() {
            self.places[index].future.as_mut().set(Some(future));
            index
        } else {
            let index = self.places.len();
            let bell = self.wakes.bell(Whom::Stream(index));
            self.places.push(Place {
                future: Box::pin(Some(future)),
                waker: Waker::from(Arc::clone(&bell)),
                bell,
            });
            index
        };
        self.places[index].waker.wake_by_ref();
    }

    /// Polls a woken stream. What still wakes the place of an ended stream means nothing.
    pub(super) fn poll(&mut self, index: usize) {
        let Some(place) = self.places.get_mut(index) else {
            return;
        };
        place.bell.answer();
        let Some(future) = place.future.as_mut().as_pin_mut() else {
            return;
        };
        let mut cx = Context::from_waker(&place.waker);
        if future.poll(&mut cx).is_ready() {
            place.future.as_mut().set(None);
            self.free.push(index);
        }
    }

    /// Gives memory back where nothing runs.
    pub(super) fn shrink(&mut self) {
        if self.free.len() == self.places.len() {
            self.places = Vec::new();
            self.free = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::task::Poll;

    use super::*;

    #[test]
    fn only_woken_streams_are_polled_and_places_are_used_again() {
        let wakes = Arc::new(Wakes::default());
        let mut streams = Streams::new(Arc::clone(&wakes));
        let polls = Rc::new([Cell::new(0), Cell::new(0)]);
        let given = Rc::new([Cell::new(None), Cell::new(None)]);
        let stream = |n: usize, ends_at: u32| {
            let (polls, given) = (Rc::clone(&polls), Rc::clone(&given));
            std::future::poll_fn(move |cx| {
                polls[n].set(polls[n].get() + 1);
                given[n].set(Some(cx.waker().clone()));
                if polls[n].get() >= ends_at {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
        };
        let woken = |streams: &mut Streams<_>| {
            let mut list = Vec::new();
            wakes.take_streams(&mut list);
            for index in list {
                streams.poll(index);
            }
        };
        wakes.look(Waker::noop());
        streams.start(stream(0, 2));
        streams.start(stream(1, 3));
        woken(&mut streams);
        given[0].take().unwrap().wake();
        woken(&mut streams);
        assert_eq!((polls[0].get(), polls[1].get()), (2, 1));
        assert_eq!(streams.free, [0]);
        streams.shrink();
        assert_eq!(streams.places.len(), 2, "one still runs");
        polls[0].set(0);
        streams.start(stream(0, 9));
        woken(&mut streams);
        assert_eq!((polls[0].get(), streams.places.len()), (1, 2));
    }
}
