//! What the system asks of the process, as values.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Something asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGTERM or SIGINT: end in order; a second one: end at once.
    Stop,
    /// SIGHUP: read the folder again now.
    Reload,
    /// SIGUSR2: hand over to a new process of the binary as it is now on disk.
    Upgrade,
}

/// The signals of this process.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_two: Signal,
}

impl Signals {
    /// Takes over the signals; from now on they no longer end the process by themselves.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_two: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next thing asked. Cancel safe.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
            _ = self.user_two.recv() => Asked::Upgrade,
        }
    }
}
