//! Asks one replica for the answer to a challenge, as the authority will, until it gives it.
//!
//! Two silences mean different things. Who accepts a connection and does not give the answer is alive: the
//! authority may meet it, so it is waited for. Who accepts none would not let the authority in either, and is
//! probably a pod that died and has not left the `EndpointSlice` yet: it is given two seconds, and remembered for
//! a minute, in which a glance must do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate_acme::answers::Answer;
use tidegate_acme::preflight::facts::LoopbackAnswer;
use tidegate_acme::preflight::loopback::ask;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Pause before a replica is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It serves the answer.
    Serves,
    /// It accepts connections, and did not serve it in time.
    Late,
    /// It accepts none.
    Dead,
    /// The answer is not needed any more.
    Withdrawn,
}

/// How replicas are asked, and which of them seem dead.
#[derive(Debug)]
pub struct Inquiry {
    /// Time in which a replica must accept a connection.
    reach: Duration,
    /// The same for one that seemed dead a moment ago.
    glance: Duration,
    /// How long one seems dead.
    memory: Duration,
    /// Since when.
    dead: Mutex<BTreeMap<SocketAddr, Instant>>,
}

impl Default for Inquiry {
    fn default() -> Self {
        Self {
            // One lost packet is sent again after a second.
            reach: Duration::from_secs(2),
            glance: Duration::from_millis(250),
            memory: Duration::from_mins(1),
            dead: Mutex::default(),
        }
    }
}

impl Inquiry {
    /// Asks until `patience` is over, or `still` says that the answer is not needed any more.
    pub(super) async fn ask(
        &self,
        answer: &Answer,
        address: SocketAddr,
        patience: Duration,
        still: impl Fn() -> bool,
    ) -> Outcome {
        let began = Instant::now();
        let suspected = self.seemed_dead(address);
        let reach = if suspected { self.glance } else { self.reach };
        // Since when it accepts nothing; None while it does.
        let mut silent = Some(began);
        loop {
            if !still() {
                return Outcome::Withdrawn;
            }
            if let Some(since) = silent {
                let left = reach.saturating_sub(since.elapsed());
                if let Ok(Ok(_)) = timeout(left, TcpStream::connect(address)).await {
                    self.lives(address);
                    silent = None;
                } else if since.elapsed() >= reach || suspected {
                    self.died(address);
                    if suspected {
                        tracing::debug!(%address, ?answer, "a replica still accepts no connection");
                    } else {
                        tracing::warn!(%address, ?answer, "a replica accepts no connection and is taken for dead; if the authority asks that one, the order fails");
                    }
                    return Outcome::Dead;
                }
            }
            let left = patience.saturating_sub(began.elapsed());
            if left.is_zero() {
                tracing::warn!(%address, ?answer, "a replica does not serve the answer to a challenge; if the authority asks that one, the order fails");
                return Outcome::Late;
            }
            if silent.is_none() {
                match ask(answer, address, left).await {
                    LoopbackAnswer::Ours => return Outcome::Serves,
                    LoopbackAnswer::Refused => silent = Some(Instant::now()),
                    other => {
                        tracing::debug!(%address, ?answer, ?other, "a replica does not serve an answer yet");
                    }
                }
            }
            sleep(AGAIN.min(left)).await;
        }
    }

    fn seemed_dead(&self, address: SocketAddr) -> bool {
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.retain(|_, since| since.elapsed() < self.memory);
        dead.contains_key(&address)
    }

    fn died(&self, address: SocketAddr) {
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.entry(address).or_insert_with(Instant::now);
    }

    fn lives(&self, address: SocketAddr) {
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tidegate_model::HostName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn answer() -> Answer {
        Answer::Http01 {
            host: HostName::parse("a.example").unwrap(),
            token: "token".to_owned(),
            key_authorization: "token.key".to_owned(),
        }
    }

    fn inquiry() -> Inquiry {
        Inquiry {
            reach: Duration::from_millis(300),
            ..Inquiry::default()
        }
    }

    /// Answers with a stranger's text that many times, and rightly from then on.
    async fn replica(wrong: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let asked = AtomicUsize::new(0);
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                // A look at whether it accepts says nothing.
                if stream.read(&mut head).await.unwrap_or(0) == 0 {
                    continue;
                }
                let body = if asked.fetch_add(1, Ordering::Relaxed) < wrong {
                    "nothing"
                } else {
                    "token.key"
                };
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        });
        address
    }

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn one_that_does_not_serve_it_yet_is_asked_again() {
        let address = replica(2).await;
        let outcome = inquiry().ask(&answer(), address, LONG, || true).await;
        assert_eq!(outcome, Outcome::Serves);
    }

    #[tokio::test]
    async fn one_that_accepts_and_says_nothing_is_waited_for() {
        // As one that was stopped: the kernel accepts for it.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (inquiry, patience) = (inquiry(), Duration::from_secs(1));
        let began = Instant::now();
        let outcome = inquiry.ask(&answer(), address, patience, || true).await;
        assert_eq!(outcome, Outcome::Late);
        assert!(began.elapsed() >= patience, "all of its time");
        assert!(!inquiry.seemed_dead(address));
    }

    #[tokio::test]
    async fn one_that_refuses_is_dead_until_it_accepts_again() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let inquiry = inquiry();
        // Nobody waits a minute for it, the first time and later.
        for _ in 0..2 {
            let outcome = inquiry.ask(&answer(), address, LONG, || true).await;
            assert_eq!(outcome, Outcome::Dead);
            assert!(inquiry.seemed_dead(address));
        }
        let listener = TcpListener::bind(address).await.unwrap();
        let patience = Duration::from_millis(300);
        let outcome = inquiry.ask(&answer(), address, patience, || true).await;
        assert_eq!(outcome, Outcome::Late, "it is there, and says nothing");
        assert!(!inquiry.seemed_dead(address));
        drop(listener);
    }

    #[tokio::test]
    async fn an_answer_that_is_withdrawn_is_not_asked_for() {
        let address = replica(usize::MAX).await;
        let looked = AtomicUsize::new(0);
        let still = || looked.fetch_add(1, Ordering::Relaxed) < 3;
        let outcome = inquiry().ask(&answer(), address, LONG, still).await;
        assert_eq!(outcome, Outcome::Withdrawn);
    }
}
