//! Tells people: looks at every certificate, asks `notices` what is due, takes that down, hands it out.
//!
//! ```text
//! wanted, state, clock ─► NoticeMemory::due ─► store ─► a notifier per receiver ─► counts, issuers' state
//! ```
//!
//! What is due is in the store before it is sent, and what has not arrived stays there: a restart neither
//! decides it twice nor loses it. A receiver that is unchanged keeps its queue when objects change; one that
//! was changed begins anew with what the old one had not got. Nothing here holds up a renewal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tidegate_telemetry::chain;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::engine::{Shared, State};
use crate::notices::{
    DeliveryState, Notice, NoticeError, NoticeMemory, Notifier, NotifierSettings, Pending, Subject,
    pending,
};
use crate::settings::{Issuer, Notification, Wanted};
use crate::store::{Key, Kind, StoreError, load, save};

/// A clock that was set is noticed within this time.
const LOOK: Duration = Duration::from_secs(60);
/// Changes of the state come in swarms; they are looked at together.
const SETTLE: Duration = Duration::from_secs(1);
/// How soon a store that cannot be read is read again.
const STORE_PAUSE: Duration = Duration::from_secs(30);
/// Name of the one document.
const MEMORY: &str = "told";
/// Receivers that are tried at one time.
const PARALLEL_TESTS: usize = 8;

/// What came of a test notice to one receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// The issuer that names the receiver.
    pub issuer: String,
    /// The receiver.
    pub target: String,
    /// Whether it arrived, or why not; without any secret.
    pub outcome: Result<(), NoticeError>,
}

/// Receivers by issuer and name.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    settings: NotifierSettings,
    all: Mutex<BTreeMap<(String, String), Arc<Lane>>>,
    /// What others than the watchman have to tell, by issuer, until the watchman takes it up.
    reported: Mutex<Vec<(String, Notice)>>,
}

/// One receiver.
#[derive(Debug)]
struct Lane {
    notification: Notification,
    notifier: Notifier,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Arc<Lane>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what is new or differs, ends what is gone. Which were started.
    fn adjust(&self, issuers: &[Arc<Issuer>]) -> Vec<(String, String)> {
        let mut started = Vec::new();
        let mut all = self.lock();
        let mut gone: BTreeSet<_> = all.keys().cloned().collect();
        for issuer in issuers {
            for notification in &issuer.notifications {
                let name = notification.target.name().to_owned();
                let key = (issuer.name.clone(), name);
                gone.remove(&key);
                if all
                    .get(&key)
                    .is_some_and(|lane| lane.notification == *notification)
                {
                    continue;
                }
                let target = notification.target.clone();
                let (notifier, tasks) = Notifier::start(vec![target], &self.settings);
                let lane = Lane {
                    notification: notification.clone(),
                    notifier,
                    tasks,
                };
                started.push(key.clone());
                all.insert(key, Arc::new(lane));
            }
        }
        for key in gone {
            all.remove(&key);
        }
        started
    }

    /// Has a notice told to the receivers of an issuer, as if the watchman had decided it.
    pub(crate) fn report(&self, issuer: &str, notice: Notice) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.push((issuer.to_owned(), notice));
        drop(reported);
        self.settings.changed.notify_one();
    }

    fn take_reported(&self) -> Vec<(String, Notice)> {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut reported)
    }

    /// The notice for each receiver that wants it.
    fn addressed(&self, issuer: &str, notice: &Notice) -> Vec<Pending> {
        let all = self.lock();
        let receivers = all.iter().filter(|((of, _), lane)| {
            of == issuer
                && lane.notification.wants(notice.kind)
                && notice.severity >= lane.notification.target.least()
        });
        receivers
            .map(|((issuer, target), _)| Pending {
                issuer: issuer.clone(),
                target: target.clone(),
                notice: notice.clone(),
            })
            .collect()
    }

    fn tell(&self, pending: &Pending) {
        let key = (pending.issuer.clone(), pending.target.clone());
        if let Some(lane) = self.lock().get(&key) {
            lane.notifier.tell(pending.notice.clone());
        }
    }

    /// Keeps of what is on its way what has not arrived yet.
    fn settle(&self, pending: &mut Vec<Pending>, now: SystemTime) {
        let all = self.lock();
        let mut waiting = Vec::new();
        for ((issuer, _), lane) in all.iter() {
            for (target, notices) in lane.notifier.waiting() {
                waiting.extend(notices.into_iter().map(|notice| Pending {
                    issuer: issuer.clone(),
                    target: target.clone(),
                    notice,
                }));
            }
        }
        let exists = |one: &Pending| all.contains_key(&(one.issuer.clone(), one.target.clone()));
        *pending = pending::kept(std::mem::take(pending), waiting, exists, now);
    }

    /// What became of the notices so far, by issuer.
    pub(crate) fn states(&self) -> Vec<(String, DeliveryState)> {
        self.lock()
            .iter()
            .flat_map(|((issuer, _), lane)| {
                let states = lane.notifier.states().into_iter();
                states.map(|state| (issuer.clone(), state))
            })
            .collect()
    }

    /// Sends a notice to every receiver of one issuer, or of all; waits for what comes of it.
    pub(crate) async fn test(&self, issuer: Option<&str>, notice: &Notice) -> Vec<Tested> {
        let lanes: Vec<_> = self
            .lock()
            .iter()
            .filter(|((of, _), _)| issuer.is_none_or(|issuer| issuer == of))
            .map(|((of, _), lane)| (of.clone(), Arc::clone(lane)))
            .collect();
        let mut tested = Vec::new();
        let places = Arc::new(Semaphore::new(PARALLEL_TESTS));
        let mut asked = JoinSet::new();
        for (issuer, lane) in lanes {
            let (places, notice) = (Arc::clone(&places), notice.clone());
            asked.spawn(async move {
                let _place = places.acquire_owned().await;
                (issuer, lane.notifier.tell_now(&notice).await)
            });
        }
        while let Some(done) = asked.join_next().await {
            let Ok((issuer, outcomes)) = done else {
                continue;
            };
            tested.extend(outcomes.into_iter().map(|(target, outcome)| Tested {
                issuer: issuer.clone(),
                target,
                outcome,
            }));
        }
        tested
            .sort_by(|one, other| (&one.issuer, &one.target).cmp(&(&other.issuer, &other.target)));
        tested
    }
}

/// The task.
pub(crate) struct Watchman {
    shared: Arc<Shared>,
    wanted: watch::Receiver<Arc<Vec<Wanted>>>,
    issuers: watch::Receiver<Arc<Vec<Arc<Issuer>>>>,
    state: watch::Receiver<Arc<State>>,
    /// Whether it was said what is wanted; before, nothing may be forgotten.
    begun: bool,
}

impl Watchman {
    pub(crate) fn new(
        shared: Arc<Shared>,
        wanted: watch::Receiver<Arc<Vec<Wanted>>>,
        issuers: watch::Receiver<Arc<Vec<Arc<Issuer>>>>,
        state: watch::Receiver<Arc<State>>,
    ) -> Self {
        Self {
            shared,
            wanted,
            issuers,
            state,
            begun: false,
        }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = self.watch() => {}
        }
        shared.lanes.lock().clear();
    }

    async fn watch(&mut self) {
        let shared = Arc::clone(&self.shared);
        let changed_delivery = Arc::clone(&shared.lanes.settings.changed);
        let mut memory = self.load().await;
        let mut look_at = Instant::now();
        loop {
            let soon = Instant::now() + SETTLE;
            let ended = tokio::select! {
                () = tokio::time::sleep_until(look_at) => {
                    look_at = Instant::now() + self.look(&mut memory).await;
                    continue;
                }
                () = changed_delivery.notified() => {
                    self.publish();
                    let before = memory.clone();
                    shared.lanes.settle(&mut memory.pending, SystemTime::now());
                    let reported = shared.lanes.take_reported().into_iter();
                    let reported: Vec<Pending> = reported
                        .flat_map(|(issuer, notice)| shared.lanes.addressed(&issuer, &notice))
                        .collect();
                    memory.pending.extend(reported.iter().cloned());
                    self.keep(&before, &memory).await;
                    for pending in &reported {
                        shared.lanes.tell(pending);
                    }
                    continue;
                }
                changed = self.issuers.changed() => {
                    let issuers = Arc::clone(&self.issuers.borrow_and_update());
                    let before = memory.clone();
                    shared.lanes.settle(&mut memory.pending, SystemTime::now());
                    self.keep(&before, &memory).await;
                    for (issuer, target) in shared.lanes.adjust(&issuers) {
                        let left = memory.pending.iter();
                        left.filter(|one| one.issuer == issuer && one.target == target)
                            .for_each(|one| shared.lanes.tell(one));
                    }
                    self.publish();
                    changed.is_err()
                }
                changed = self.wanted.changed() => {
                    self.begun = true;
                    self.wanted.mark_unchanged();
                    changed.is_err()
                }
                changed = self.state.changed() => {
                    self.state.mark_unchanged();
                    changed.is_err()
                }
            };
            if ended {
                // Ended by the token in a moment.
                std::future::pending::<()>().await;
            }
            look_at = look_at.min(soon);
        }
    }

    async fn load(&self) -> NoticeMemory {
        let key = Key::new(Kind::Notices, MEMORY);
        loop {
            match load(self.shared.store.as_ref(), &key).await {
                Ok(memory) => return memory.unwrap_or_default(),
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::error!(error = %chain(&error), "what was told is lost; some of it is told again");
                    return NoticeMemory::default();
                }
                Err(error) => {
                    tracing::error!(error = %chain(&error), "nobody is told of anything until the store can be read");
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    /// Looks at everything; says how long nothing but a change can make another look worth while.
    async fn look(&mut self, memory: &mut NoticeMemory) -> Duration {
        let wanted = Arc::clone(&self.wanted.borrow());
        let state = Arc::clone(&self.state.borrow());
        let watched: Vec<&Wanted> = wanted
            .iter()
            .filter(|want| !want.issuer.notifications.is_empty())
            .collect();
        // What is not among the subjects is forgotten: all of them must be known.
        let known = watched
            .iter()
            .all(|want| state.certificates.contains_key(&want.id));
        if !self.begun || !known {
            return LOOK;
        }
        let now = SystemTime::now();
        let subjects: Vec<Subject<'_>> = watched
            .iter()
            .filter_map(|want| {
                let certificate = state.certificates.get(&want.id)?;
                let issued = certificate.issued.as_ref();
                Some(Subject {
                    id: &want.id,
                    names: &want.names,
                    issuer: &want.issuer.name,
                    validity: issued.map(|issued| (issued.not_before, issued.not_after)),
                    renew_at: certificate.report.renew_at,
                    attempts: &certificate.attempts,
                })
            })
            .collect();
        let before = memory.clone();
        let mut addressed = Vec::new();
        for notice in memory.due(&subjects, now) {
            let about = watched.iter().find(|want| want.id == notice.subject);
            if let Some(want) = about {
                tracing::info!(
                    subject = notice.subject,
                    kind = notice.kind.reason(),
                    severity = notice.severity.as_str(),
                    issuer = want.issuer.name,
                    "notice"
                );
                addressed.extend(self.shared.lanes.addressed(&want.issuer.name, &notice));
            }
        }
        self.shared.lanes.settle(&mut memory.pending, now);
        memory.pending.extend(addressed.iter().cloned());
        self.keep(&before, memory).await;
        for pending in &addressed {
            self.shared.lanes.tell(pending);
        }
        next_stage(&subjects, now).unwrap_or(LOOK).min(LOOK)
    }

    async fn keep(&self, before: &NoticeMemory, memory: &NoticeMemory) {
        if memory == before {
            return;
        }
        let key = Key::new(Kind::Notices, MEMORY);
        // A full disk is no reason to keep silent about it.
        if let Err(error) = save(self.shared.store.as_ref(), &key, memory).await {
            tracing::error!(error = %chain(&error), "what was told cannot be kept; it will be told again after a restart");
        }
    }

    /// Makes known what became of the notices.
    fn publish(&self) {
        let issuers = Arc::clone(&self.issuers.borrow());
        let states = self.shared.lanes.states();
        for issuer in issuers.iter() {
            let of_issuer: Vec<DeliveryState> = states
                .iter()
                .filter(|(of, _)| *of == issuer.name)
                .map(|(_, state)| state.clone())
                .collect();
            self.shared
                .publish_issuer(&issuer.name, |state| state.notices = of_issuer);
        }
    }
}

/// Time until the next certificate enters another stage of danger.
fn next_stage(subjects: &[Subject<'_>], now: SystemTime) -> Option<Duration> {
    let ends = subjects.iter().filter_map(|subject| subject.validity);
    ends.flat_map(|(begin, end)| {
        let life = end.duration_since(begin).unwrap_or_default();
        [life / 3, life / 6, life / 20, Duration::ZERO].map(|left| end.checked_sub(left))
    })
    .flatten()
    // What is due at that moment is not due the moment before.
    .filter_map(|at| at.duration_since(now).ok())
    .filter(|wait| !wait.is_zero())
    .min()
    .map(|wait| wait + Duration::from_millis(10))
}

#[cfg(test)]
mod tests {
    use tidegate_model::Secret;

    use super::*;
    use crate::notices::{NoticeKind, Severity, Target, Template, WebhookTarget};
    use crate::settings::{KeyType, RenewalSource};

    #[test]
    fn a_look_is_due_when_a_stage_begins() {
        let attempts = crate::plan::retry::Attempts::default();
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let subject = Subject {
            id: "default/a",
            names: &[],
            issuer: "any",
            validity: Some((begin, begin + Duration::from_secs(60))),
            renew_at: None,
            attempts: &attempts,
        };
        let at = |seconds| {
            let wait = next_stage(&[subject], begin + Duration::from_secs(seconds));
            wait.map(|wait| wait.as_secs())
        };
        assert_eq!(
            [0, 39, 40, 50, 57, 59, 60, 61].map(at),
            [
                Some(40),
                Some(1),
                Some(10),
                Some(7),
                Some(3),
                Some(1),
                None,
                None
            ]
        );
    }

    /// An issuer whose receivers have these names and URLs.
    fn issuer(receivers: &[(&str, String)]) -> Arc<Issuer> {
        let notifications = receivers.iter().map(|(name, url)| Notification {
            target: Target::Webhook(WebhookTarget {
                name: (*name).to_owned(),
                url: Secret::new(url.clone()),
                template: Template::Json,
                token: None,
                ca_bundle: None,
                timeout: Duration::from_secs(10),
                least: Severity::Info,
                reach: Arc::default(),
            }),
            on: vec![NoticeKind::Expired],
        });
        Arc::new(Issuer {
            name: "le".to_owned(),
            directory: "https://ca.example/dir".to_owned(),
            staging_directory: None,
            contact: Vec::new(),
            profile: None,
            key_type: KeyType::P256,
            external_account: None,
            roots: None,
            renewal: RenewalSource::Lifetime,
            fallback: None,
            notifications: notifications.collect(),
            solvers: Vec::new(),
        })
    }

    #[tokio::test]
    async fn only_receivers_that_changed_begin_anew() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let lanes = Lanes::default();
        let counts = || -> Vec<(String, u64)> {
            let states = lanes.states().into_iter();
            states
                .map(|(_, state)| (state.target, state.failed))
                .collect()
        };
        let named = |name: &str, count| (name.to_owned(), count);
        let named_lane = |name: &str| ("le".to_owned(), name.to_owned());
        let started = lanes.adjust(&[issuer(&[("a", nobody.clone()), ("b", nobody.clone())])]);
        assert_eq!(started.len(), 2);
        let notice = Notice::test("edge", SystemTime::now());
        assert_eq!(lanes.test(Some("other"), &notice).await, []);
        let tested = lanes.test(None, &notice).await;
        let reasons: Vec<_> = tested
            .iter()
            .map(|one| {
                (
                    one.target.as_str(),
                    one.outcome.as_ref().unwrap_err().reason(),
                )
            })
            .collect();
        assert_eq!(
            reasons,
            [("a", "TargetUnreachable"), ("b", "TargetUnreachable")]
        );
        let other = format!("{nobody}other");
        let started = lanes.adjust(&[issuer(&[("a", nobody.clone()), ("b", other)])]);
        assert_eq!(started, [named_lane("b")]);
        assert_eq!(counts(), [named("a", 1), named("b", 0)]);
        lanes.adjust(&[issuer(&[("a", nobody)])]);
        assert_eq!(counts(), [named("a", 1)]);
        lanes.adjust(&[]);
        assert_eq!(counts(), []);
    }

    #[tokio::test]
    async fn what_did_not_arrive_is_what_is_kept() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let lanes = Lanes::default();
        lanes.adjust(&[issuer(&[("a", nobody.clone())])]);
        let now = SystemTime::now();
        let notice = Notice {
            kind: NoticeKind::Expired,
            ..Notice::test("edge", now)
        };
        let addressed = lanes.addressed("le", &notice);
        assert_eq!(addressed.len(), 1);
        assert_eq!(lanes.addressed("other", &notice), []);
        let recovered = Notice {
            kind: NoticeKind::Recovered,
            ..notice.clone()
        };
        assert_eq!(lanes.addressed("le", &recovered), [], "nobody asked for it");
        lanes.tell(&addressed[0]);
        let mut pending = addressed.clone();
        lanes.settle(&mut pending, now);
        assert_eq!(pending, addressed, "it waits for the next attempt");
        // The receiver is edited: the new one has nothing, and is told what the old one had not got.
        let started = lanes.adjust(&[issuer(&[("a", format!("{nobody}other"))])]);
        assert_eq!(started.len(), 1);
        lanes.tell(&pending[0]);
        lanes.settle(&mut pending, now);
        assert_eq!(pending, addressed);
        // While its issuer is away nothing is forgotten, but for ever.
        lanes.adjust(&[]);
        lanes.settle(&mut pending, now);
        assert_eq!(pending, addressed);
        lanes.settle(&mut pending, now + Duration::from_secs(86_401));
        assert_eq!(pending, []);
    }

    #[test]
    fn a_receiver_hears_of_what_it_asked_for() {
        let issuer = issuer(&[("a", "http://a.example/".to_owned())]);
        let mut receiver = issuer.notifications[0].clone();
        let wanted = |receiver: &Notification| {
            let kinds = [NoticeKind::Expired, NoticeKind::Recovered, NoticeKind::Test];
            kinds.map(|kind| receiver.wants(kind))
        };
        assert_eq!(wanted(&receiver), [true, false, true]);
        receiver.on.clear();
        assert_eq!(wanted(&receiver), [true, true, true]);
    }
}
