//! When each list is read, and who is told.
//!
//! One task, one list at a time: what stands in a list is told to the certificate's keeper, and nothing
//! else waits for it. Certificates on the same list share one look. Nothing is stored: a process that
//! starts looks soon anyhow, and a finding is in the certificate's record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tidegate_telemetry::chain;
use tokio::sync::{mpsc, watch};

use super::fetch::{FetchError, fetch};
use super::list::{ListError, Looked, Standing, look_up, places};
use crate::engine::{Command, State};
use crate::record::Issued;
use crate::settings::{TrustedRoots, Wanted};
use crate::trust;

/// A clock that was set, or a machine that slept, is noticed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Changes of the state come in swarms; they are looked at together.
const SETTLE: Duration = Duration::from_secs(1);
/// A certificate that is new here is looked up within this time.
const FIRST_WITHIN: Duration = Duration::from_secs(600);

/// Looks up certificates in the lists of their authorities.
pub(crate) struct Crls {
    /// Time between two looks.
    interval: Duration,
    wanted: watch::Receiver<Arc<Vec<Wanted>>>,
    state: watch::Receiver<Arc<State>>,
    commands: mpsc::Sender<Command>,
    /// By the id of the certificate.
    looks: BTreeMap<String, Look>,
}

/// What is remembered of one certificate.
struct Look {
    issued: Arc<Issued>,
    places: Vec<String>,
    next: SystemTime,
    /// What went wrong last; said once.
    problem: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("set up the TLS client")]
    Tls(#[source] rustls::Error),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    List(#[from] ListError),
    #[error("looking up was interrupted")]
    Interrupted,
}

impl Crls {
    pub(crate) fn new(
        interval: Duration,
        wanted: watch::Receiver<Arc<Vec<Wanted>>>,
        state: watch::Receiver<Arc<State>>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            interval,
            wanted,
            state,
            commands,
            looks: BTreeMap::new(),
        }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            self.refresh(SystemTime::now());
            let now = SystemTime::now();
            let due = self.looks.iter().find(|(_, look)| look.next <= now);
            if let Some((_, look)) = due {
                let places = look.places.clone();
                self.look(&places).await;
                continue;
            }
            let next = self.looks.values().map(|look| look.next).min();
            let pause = next.map_or(LONGEST_SLEEP, |next| {
                next.duration_since(now).unwrap_or_default()
            });
            tokio::select! {
                () = tokio::time::sleep(pause.min(LONGEST_SLEEP)) => {}
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                }
            }
        }
    }

    /// Takes up what is new, forgets what is gone.
    fn refresh(&mut self, now: SystemTime) {
        let state = Arc::clone(&self.state.borrow_and_update());
        let wanted = Arc::clone(&self.wanted.borrow());
        let mut before = std::mem::take(&mut self.looks);
        for want in wanted.iter() {
            let certificate = state.certificates.get(&want.id);
            let Some(issued) = certificate.and_then(|known| known.issued.as_ref()) else {
                continue;
            };
            if issued.revoked.is_some() || issued.not_after <= now {
                continue;
            }
            let known = before
                .remove(&want.id)
                .filter(|look| look.issued.chain_pem == issued.chain_pem);
            let look = known.unwrap_or_else(|| Look {
                issued: Arc::clone(issued),
                places: issued.leaf().map_or_else(Vec::new, |leaf| places(&leaf)),
                next: now + self.interval.min(FIRST_WITHIN).mul_f64(fastrand::f64()),
                problem: None,
            });
            self.looks.insert(want.id.clone(), look);
        }
        // Most certificates of short life are on no list.
        for look in self.looks.values_mut() {
            if look.places.is_empty() {
                look.next = now + LONGEST_SLEEP;
            }
        }
    }

    /// Reads the list at these places for every certificate that is on it.
    async fn look(&mut self, places: &[String]) {
        let on_it: Vec<(String, Arc<Issued>)> = self
            .looks
            .iter()
            .filter(|(_, look)| look.places == places)
            .map(|(id, look)| (id.clone(), Arc::clone(&look.issued)))
            .collect();
        let roots = self.roots_of(&on_it);
        let chains = on_it
            .iter()
            .map(|(_, issued)| chain_of(issued))
            .collect::<Vec<_>>();
        let outcomes = match read(places, roots.as_ref(), chains).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let text = chain(&error).to_string();
                for (id, _) in &on_it {
                    self.failed(id, &text);
                }
                return;
            }
        };
        for ((id, issued), outcome) in on_it.into_iter().zip(outcomes) {
            match outcome {
                Ok(looked) => self.told(&id, issued, looked),
                Err(error) => self.failed(&id, &chain(&error).to_string()),
            }
        }
    }

    fn roots_of(&self, on_it: &[(String, Arc<Issued>)]) -> Option<TrustedRoots> {
        let wanted = Arc::clone(&self.wanted.borrow());
        on_it.iter().find_map(|(id, issued)| {
            let want = wanted.iter().find(|want| want.id == *id)?;
            want.issuer_of(issued)?.roots.clone()
        })
    }

    fn told(&mut self, id: &str, issued: Arc<Issued>, looked: Looked) {
        let now = SystemTime::now();
        if let Some(look) = self.looks.get_mut(id) {
            look.problem = None;
            look.next = next_look(
                self.interval,
                Some(looked.next_update),
                fastrand::f64(),
                now,
            );
            tracing::debug!(certificate = %id, standing = ?looked.standing, "looked up in the authority's list");
        }
        if let Standing::Revoked { reason } = looked.standing {
            let command = Command::FoundRevoked {
                id: id.to_owned(),
                issued,
                reason,
            };
            // It is told again at the next look if it cannot be taken now.
            let _ = self.commands.try_send(command);
        }
    }

    fn failed(&mut self, id: &str, problem: &str) {
        let now = SystemTime::now();
        let Some(look) = self.looks.get_mut(id) else {
            return;
        };
        look.next = next_look(self.interval / 2, None, fastrand::f64(), now);
        if look.problem.as_deref() != Some(problem) {
            tracing::info!(certificate = %id, problem, "whether it is revoked cannot be told");
            look.problem = Some(problem.to_owned());
        }
    }
}

/// When to look again: after the interval, a tenth more or less; when the next list is out, if that is
/// sooner, but not all the time. `jitter` is in `0..1`.
pub(super) fn next_look(
    interval: Duration,
    next_update: Option<SystemTime>,
    jitter: f64,
    now: SystemTime,
) -> SystemTime {
    let regular = now + interval.mul_f64(0.9 + jitter / 5.0);
    let earliest = now + interval.mul_f64((1.0 + jitter) / 6.0);
    next_update.map_or(regular, |update| update.clamp(earliest, regular))
}

fn chain_of(issued: &Issued) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes())
        .filter_map(Result::ok)
        .collect()
}

/// Fetches the list from the first place that has it and asks it for each chain.
async fn read(
    places: &[String],
    roots: Option<&TrustedRoots>,
    chains: Vec<Vec<CertificateDer<'static>>>,
) -> Result<Vec<Result<Looked, ListError>>, LookError> {
    let tls = match roots {
        Some(roots) => trust::client(Arc::clone(&roots.roots)),
        None => trust::client(trust::system()),
    };
    let tls = Arc::new(tls.map_err(LookError::Tls)?);
    let mut list = Err(LookError::Interrupted);
    for place in places {
        list = fetch(place, &tls).await.map_err(LookError::Fetch);
        if list.is_ok() {
            break;
        }
    }
    let list = list?;
    let now = SystemTime::now();
    // Many megabytes may have to be digested.
    tokio::task::spawn_blocking(move || {
        let looked = chains.iter().map(|chain| look_up(&list, chain, now));
        looked.collect()
    })
    .await
    .map_err(|_| LookError::Interrupted)
}
