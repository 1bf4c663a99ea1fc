//! Which replica orders certificates and writes: whoever holds the Lease.
//!
//! The rules are client-go's. A holder renews well before its time is over; the others take over when they
//! have seen no renewal for the whole duration *by their own clock*, so that wrong clocks do no harm; a holder
//! that could not renew stops leading before anybody else may begin. What it has begun then is refused by the
//! API server, because every write names the version it follows.

use std::fmt;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cluster::FIELD_MANAGER;

/// Time after which a Lease that is not renewed may be taken.
const DURATION: Duration = Duration::from_secs(15);
/// Time after the last renewal at which a holder stops leading.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between renewals.
const RENEW: Duration = Duration::from_secs(4);
/// Pause before another attempt to renew or to take.
const RETRY: Duration = Duration::from_secs(2);

/// Who leads, as this replica knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Whether it is this one.
    pub leading: bool,
    /// Who holds the Lease.
    pub holder: Option<String>,
}

/// Until when this replica may write as the leader, by its own clock. A process that was stopped for a while, or
/// starved, asks this before it knows that another leads.
#[derive(Debug, Clone)]
pub struct Tenure(watch::Receiver<Option<Instant>>);

impl Tenure {
    /// Whether it may still.
    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|at| at.elapsed() < DEADLINE)
    }
}

/// The Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    holder: Option<String>,
    duration: Duration,
    /// As written; only compared, never read as a time.
    renewed: Option<String>,
    transitions: i32,
    version: Option<String>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Nobody has it, or nobody renews it.
    Take,
    /// It is ours.
    Renew,
    /// Another has it; look again.
    Wait,
}

/// The decision: `unchanged` is how long the Lease has been as it is, by our own clock.
fn decide(me: &str, seen: Option<&Seen>, unchanged: Duration) -> Step {
    let Some(seen) = seen else { return Step::Take };
    match seen.holder.as_deref() {
        None | Some("") => Step::Take,
        Some(holder) if holder == me => Step::Renew,
        Some(_) if unchanged >= seen.duration => Step::Take,
        Some(_) => Step::Wait,
    }
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    state: watch::Sender<Leadership>,
    seen: Option<(Seen, Instant)>,
    renewed_at: watch::Sender<Option<Instant>>,
}

impl fmt::Debug for Elector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elector")
            .field("name", &self.name)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Elector {
    /// An elector for the Lease of that name.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            state: watch::Sender::default(),
            seen: None,
            renewed_at: watch::Sender::default(),
        }
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.state.subscribe()
    }

    /// Until when this one may write as the leader, now and from now on.
    pub fn tenure(&self) -> Tenure {
        Tenure(self.renewed_at.subscribe())
    }

    fn renewed_at(&self) -> Option<Instant> {
        *self.renewed_at.borrow()
    }

    /// Takes part until the token is cancelled, then gives the Lease back.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(pause) = stop.run_until_cancelled(self.round()).await {
            if stop
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                break;
            }
        }
        self.release().await;
    }

    /// One look and one step. Returns the pause until the next.
    async fn round(&mut self) -> Duration {
        // A request must not outlast the time that is left to a holder.
        let patience = match self.renewed_at() {
            Some(at) if self.state.borrow().leading => {
                let left = DEADLINE.saturating_sub(at.elapsed());
                if left.is_zero() {
                    self.lose("the Lease could not be renewed in time");
                    RETRY
                } else {
                    left
                }
            }
            _ => DEADLINE,
        };
        let outcome = tokio::time::timeout(patience, self.attempt()).await;
        let error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error).to_string()),
            Err(_) => Some("the API server did not answer in time".to_owned()),
        };
        let leading = self.state.borrow().leading;
        if let Some(error) = error {
            let overdue = self.renewed_at().is_none_or(|at| at.elapsed() >= DEADLINE);
            if leading && overdue {
                self.lose(&error);
            } else if leading {
                tracing::warn!(lease = %self.name, error, "cannot renew the Lease; trying again");
            } else {
                tracing::debug!(lease = %self.name, error, "cannot read the Lease");
            }
            return RETRY;
        }
        if leading { RENEW } else { RETRY }
    }

    async fn attempt(&mut self) -> Result<(), kube::Error> {
        let found = self.api.get_opt(&self.name).await?;
        let now = Instant::now();
        let seen = found.as_ref().map(read);
        match (&mut self.seen, &seen) {
            (Some((known, _)), Some(seen)) if known == seen => {}
            (known, Some(seen)) => *known = Some((seen.clone(), now)),
            (known, None) => *known = None,
        }
        let unchanged = match &self.seen {
            Some((_, since)) => now.duration_since(*since),
            None => Duration::ZERO,
        };
        match decide(&self.identity, seen.as_ref(), unchanged) {
            Step::Wait => {
                let holder = seen.and_then(|seen| seen.holder);
                if self.state.borrow().leading {
                    self.lose("another replica has the Lease");
                }
                self.tell(false, holder);
            }
            step => {
                let taken = step == Step::Take || self.renewed_at().is_none();
                let began = Instant::now();
                let lease = self.lease(found, seen.as_ref(), step == Step::Take);
                let written = self.write(&lease).await?;
                let written = read(&written);
                self.seen = Some((written, began));
                // From before the request: the others count from when they saw it, which is later.
                self.renewed_at.send_replace(Some(began));
                if taken {
                    tracing::info!(lease = %self.name, "leading: this replica orders certificates and writes statuses");
                }
                self.tell(true, Some(self.identity.clone()));
            }
        }
        Ok(())
    }

    /// The Lease as it is to be written; everything of others' in it stays.
    fn lease(&self, found: Option<Lease>, seen: Option<&Seen>, take: bool) -> Lease {
        let now = MicroTime(Timestamp::now());
        let mut lease = found.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        let transitions = seen.map_or(0, |seen| seen.transitions);
        if take {
            let another = seen.is_some_and(|seen| seen.holder.is_some());
            spec.lease_transitions = Some(transitions + i32::from(another));
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        // The version in it makes the API server refuse what another replica was faster to write.
        if lease.metadata.resource_version.is_some() {
            self.api.replace(&self.name, &params, lease).await
        } else {
            self.api.create(&params, lease).await
        }
    }

    async fn release(&mut self) {
        if !self.state.borrow().leading {
            return;
        }
        self.tell(false, None);
        let give_back = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else {
                return Ok(());
            };
            if let Some(spec) = &mut lease.spec
                && spec.holder_identity.as_deref() == Some(self.identity.as_str())
            {
                spec.holder_identity = None;
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                self.write(&lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(RETRY, give_back).await {
            Ok(Ok(())) => tracing::info!(lease = %self.name, "gave the Lease back"),
            Ok(Err(error)) => {
                tracing::debug!(lease = %self.name, error = %chain(&error), "cannot give the Lease back");
            }
            Err(_) => {}
        }
    }

    fn lose(&mut self, why: &str) {
        tracing::warn!(lease = %self.name, why, "not leading any more; serving goes on");
        self.renewed_at.send_replace(None);
        self.tell(false, None);
    }

    fn tell(&self, leading: bool, holder: Option<String>) {
        let new = Leadership { leading, holder };
        self.state.send_if_modified(|known| {
            let changed = *known != new;
            *known = new;
            changed
        });
    }
}

fn read(lease: &Lease) -> Seen {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
    Seen {
        holder: spec.and_then(|spec| spec.holder_identity.clone()),
        duration: seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(DURATION, Duration::from_secs),
        renewed: spec
            .and_then(|spec| spec.renew_time.as_ref())
            .map(|time| time.0.to_string()),
        transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
        version: lease.metadata.resource_version.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_nobody_renews_it() {
        let seen = |holder: Option<&str>| Seen {
            holder: holder.map(str::to_owned),
            duration: DURATION,
            renewed: None,
            transitions: 0,
            version: None,
        };
        let almost = Duration::from_millis(14_999);
        for (lease, unchanged, expected) in [
            (None, Duration::ZERO, Step::Take),
            (Some(seen(None)), Duration::ZERO, Step::Take),
            (Some(seen(Some(""))), Duration::ZERO, Step::Take),
            (Some(seen(Some("me"))), DURATION * 9, Step::Renew),
            (Some(seen(Some("you"))), Duration::ZERO, Step::Wait),
            (Some(seen(Some("you"))), almost, Step::Wait),
            (Some(seen(Some("you"))), DURATION, Step::Take),
        ] {
            assert_eq!(
                decide("me", lease.as_ref(), unchanged),
                expected,
                "{lease:?}"
            );
        }
    }

    #[test]
    fn a_holder_stops_before_another_may_begin() {
        assert!(DEADLINE + RENEW < DURATION);
        assert!(RENEW + RETRY < DEADLINE, "one failed renewal costs nothing");
    }
}
