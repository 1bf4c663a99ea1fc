//! Between the agent and the system that it runs on: signals, the limit of open files, systemd's notes.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, interval};

/// Something asked of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// What the process is asked.
#[derive(Debug)]
pub(crate) enum Signals {
    /// By signals.
    System {
        terminate: Signal,
        interrupt: Signal,
        hang_up: Signal,
    },
    /// By tests, which share their process.
    #[cfg(test)]
    Given(tokio::sync::mpsc::Receiver<Asked>),
}

impl Signals {
    /// Takes them over; from now on they no longer end the process by themselves.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self::System {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Asked {
        match self {
            Self::System {
                terminate,
                interrupt,
                hang_up,
            } => tokio::select! {
                _ = terminate.recv() => Asked::Stop,
                _ = interrupt.recv() => Asked::Stop,
                _ = hang_up.recv() => Asked::Reload,
            },
            #[cfg(test)]
            Self::Given(asked) => match asked.recv().await {
                Some(asked) => asked,
                None => std::future::pending().await,
            },
        }
    }
}

/// Each connection to a target is an open file, and the usual soft limit of 1024 is soon reached; the hard limit is
/// what the administrator allows.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// The agent does its work; edges may still be away, which no restart mends.
pub(crate) fn tell_ready() {
    notify(&[NotifyState::Ready]);
}

pub(crate) fn tell_stopping() {
    notify(&[NotifyState::Stopping]);
}

pub(crate) fn tell_state(up: usize, links: u8) {
    notify(&[NotifyState::Status(&format!(
        "{up} of {links} links are up"
    ))]);
}

/// systemd asks for a sign of life.
pub(crate) struct Watchdog(Option<Interval>);

pub(crate) fn watchdog() -> Watchdog {
    let limit = sd_notify::watchdog_enabled();
    Watchdog(limit.map(|limit| interval((limit / 2).max(Duration::from_millis(100)))))
}

impl Watchdog {
    /// Gives the sign when it is due. Cancel safe.
    pub(crate) async fn beat(&mut self) {
        match &mut self.0 {
            None => std::future::pending().await,
            Some(ticks) => {
                ticks.tick().await;
                notify(&[NotifyState::Watchdog]);
            }
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd is not told");
    }
}
