//! Keeps every wanted certificate: one task for each, few orders at a time.
//!
//! ```text
//! wanted ─► a task per certificate: load ─► decide ─► sleep | order ─► store ─► state
//! ```
//!
//! The engine owns no data plane: answers to challenges and finished certificates leave as values. What a
//! task decides is decided by `plan`; what it must remember goes into its record before it acts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tidegate_telemetry::{chain, spawn_named};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answers::{Answer, Answers, StoredAnswer};
use crate::book::Book;
pub use crate::checks::{LearnedAddresses, Surroundings, preflight};
use crate::client::{AcmeClient, ClientError, Directory};
use crate::crl::Crls;
use crate::import;
use crate::keeper::Keeper;
use crate::notices::{DeliveryState, Notice};
use crate::observed::{Observed, ObservedCertificate, Tally};
use crate::plan::retry::Attempts;
use crate::preflight::Finding;
use crate::record::{CertificateRecord, Issued};
use crate::revocation::RevocationReason;
use crate::rollback::RollbackError;
use crate::settings::{Issuer, Wanted};
use crate::store::{Key, Kind, Store, StoreError, load, tested};
use crate::watchman::{Lanes, Tested, Watchman};

/// Orders that are under way at one time, over all issuers.
const PARALLEL_ORDERS: usize = 8;
/// How long a directory that was read is believed.
const DIRECTORY_LIFE: Duration = Duration::from_secs(3600);

/// What the engine has and says, by certificate and by issuer.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// By the id of what is wanted.
    pub certificates: BTreeMap<String, Arc<CertificateState>>,
    /// By the name of the issuer.
    pub issuers: BTreeMap<String, IssuerState>,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct CertificateState {
    /// What can be served, if anything.
    pub issued: Option<Arc<Issued>>,
    /// What is going on.
    pub report: Report,
    /// The failed attempts since the last success.
    pub attempts: Attempts,
}

/// What is going on with a certificate, for statuses and tables.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Why there is no certificate, or why it is being replaced; `PascalCase`.
    pub reason: String,
    /// The same in one sentence.
    pub message: String,
    /// Whether the last attempt failed.
    pub failed: bool,
    /// URL of the order that is under way.
    pub order_url: Option<String>,
    /// When it was begun.
    pub started_at: Option<SystemTime>,
    /// Failed attempts since the last success.
    pub attempts: u32,
    /// When the next attempt is made.
    pub next_attempt: Option<SystemTime>,
    /// When the certificate will be renewed.
    pub renew_at: Option<SystemTime>,
    /// Who issued what is served.
    pub issued_by: Option<String>,
    /// What was found before the last order.
    pub preflight: Vec<Finding>,
}

/// One issuer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IssuerState {
    /// URL of the account, once it is registered.
    pub account_url: Option<String>,
    /// Reason and message of what is wrong with it.
    pub problem: Option<(String, String)>,
    /// What became of notices, by receiver.
    pub notices: Vec<DeliveryState>,
}

/// What can be asked of a running engine.
#[derive(Debug)]
pub enum Command {
    /// Renew now, whatever the plan says.
    Renew {
        /// The certificate.
        id: String,
        /// When it was asked: a certificate that was issued since is new enough.
        asked_at: SystemTime,
        /// Whether there is such a certificate.
        answer: oneshot::Sender<bool>,
    },
    /// Serve the certificate of before again.
    Rollback {
        /// The certificate.
        id: String,
        /// What came of it.
        answer: oneshot::Sender<Result<(), RollbackError>>,
    },
    /// Revoke what is served, and order another.
    Revoke {
        /// The certificate.
        id: String,
        /// Why.
        reason: RevocationReason,
        /// What came of it.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// The authority's list says that what was served is revoked.
    FoundRevoked {
        /// The certificate.
        id: String,
        /// What the list was asked about.
        issued: Arc<Issued>,
        /// Why, in the words of RFC 5280 §5.3.1.
        reason: Option<&'static str>,
    },
}

/// The outside of a running engine. Clones share it.
#[derive(Debug, Clone)]
pub struct Engine {
    wanted: watch::Sender<Arc<Vec<Wanted>>>,
    issuers: watch::Sender<Arc<Vec<Arc<Issuer>>>>,
    state: watch::Receiver<Arc<State>>,
    commands: mpsc::Sender<Command>,
    answers: Answers,
    tasks: TaskTracker,
    shared: Arc<Shared>,
}

impl Engine {
    /// Loads what is stored and starts. Returns what could not be understood beside the engine; it was
    /// set aside. Must be called within a runtime.
    pub async fn start(
        store: Arc<dyn Store>,
        surroundings: Surroundings,
        stop: CancellationToken,
    ) -> Result<(Self, Vec<StoreError>), StoreError> {
        let mut problems = Vec::new();
        let mut records = BTreeMap::new();
        for key in store.list(Kind::Certificate).await? {
            match load::<CertificateRecord>(store.as_ref(), &key).await {
                Ok(Some(record)) if import::is_waiting(&key.name) => {
                    forget_expired(store.as_ref(), &key, &record).await;
                }
                Ok(Some(record)) => {
                    records.insert(record.id.clone(), record);
                }
                Ok(None) => {}
                Err(error @ StoreError::Corrupt { .. }) => problems.push(error),
                Err(error) => return Err(error),
            }
        }
        let mut state = State::default();
        for record in records.values() {
            if let Some(current) = &record.current {
                state.certificates.insert(
                    record.id.clone(),
                    Arc::new(CertificateState {
                        issued: Some(Arc::new(current.clone())),
                        report: Report::default(),
                        attempts: record.attempts.clone(),
                    }),
                );
            }
        }
        let answers = Answers::default();
        for record in records.values() {
            let pending = record.pending.iter();
            let told: Vec<Answer> = pending
                .flat_map(|pending| pending.answers.iter().filter_map(StoredAnswer::answer))
                .collect();
            if !told.is_empty() {
                answers.restore(&record.id, told);
            }
        }
        let (wanted, wanted_receiver) = watch::channel(Arc::new(Vec::new()));
        let (issuers, issuers_receiver) = watch::channel(Arc::new(Vec::new()));
        let (commands, commands_receiver) = mpsc::channel(64);
        let shared = Arc::new(Shared {
            store,
            answers: answers.clone(),
            imports: tokio::sync::Mutex::default(),
            state: watch::Sender::new(Arc::new(state)),
            orders: Semaphore::new(PARALLEL_ORDERS),
            authorities: Mutex::default(),
            books: Mutex::default(),
            lanes: Lanes::default(),
            tally: Tally::default(),
            surroundings,
            tasks: TaskTracker::new(),
            stop,
        });
        let watchman = Watchman::new(
            Arc::clone(&shared),
            wanted_receiver.clone(),
            issuers_receiver,
            shared.state.subscribe(),
        );
        spawn_named("watchman", shared.tasks.track_future(watchman.run()));
        if let Some(interval) = shared.surroundings.revocation_interval {
            let state = shared.state.subscribe();
            let crls = Crls::new(interval, wanted_receiver.clone(), state, commands.clone());
            let stopped = shared.stop.clone();
            let life = async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = crls.run() => {}
                }
            };
            spawn_named("crl", shared.tasks.track_future(life));
        }
        let engine = Self {
            wanted,
            issuers,
            state: shared.state.subscribe(),
            commands,
            answers,
            tasks: shared.tasks.clone(),
            shared: Arc::clone(&shared),
        };
        let supervisor = Supervisor {
            shared,
            wanted: wanted_receiver,
            commands: commands_receiver,
            records,
            keepers: BTreeMap::new(),
        };
        let tasks = supervisor.shared.tasks.clone();
        spawn_named("acme", tasks.track_future(supervisor.run()));
        Ok((engine, problems))
    }

    /// Says which certificates are wanted from now on: all of them.
    pub fn want(&self, wanted: Vec<Wanted>) {
        self.wanted.send_replace(Arc::new(wanted));
    }

    /// Says which issuers there are from now on: all of them, also those of which nothing is wanted.
    /// Their receivers of notices are known from here.
    pub fn know(&self, issuers: Vec<Arc<Issuer>>) {
        self.issuers.send_replace(Arc::new(issuers));
    }

    /// Sends a test notice to every receiver of an issuer, or of all issuers. `edge` is what this edge is
    /// called in it.
    pub async fn test_notice(&self, issuer: Option<&str>, edge: &str) -> Vec<Tested> {
        let notice = Notice::test(edge, SystemTime::now());
        self.shared.lanes.test(issuer, &notice).await
    }

    /// What was counted since the start, of what exists now.
    pub fn observe(&self) -> Observed {
        let issuers = Arc::clone(&self.issuers.borrow());
        let exists = |name: &str| issuers.iter().any(|issuer| issuer.name == name);
        let mut observed = Observed {
            requests: self.shared.requests(),
            notices: self.shared.lanes.states(),
            ..Observed::default()
        };
        observed.requests.retain(|issuer, _| exists(issuer));
        self.shared.tally.fill(&mut observed, exists);
        let state = Arc::clone(&self.state.borrow());
        for want in self.wanted.borrow().iter() {
            let Some(certificate) = state.certificates.get(&want.id) else {
                continue;
            };
            observed.certificates.push(ObservedCertificate {
                id: want.id.clone(),
                issuer: want.issuer.name.clone(),
                renew_at: certificate.report.renew_at,
                next_attempt: certificate.report.next_attempt,
                attempts: certificate.attempts.count,
            });
        }
        observed
    }

    /// What there is, now and from now on.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Where the data plane finds answers to challenges.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Returns when every task has ended after the token that the engine was started with was cancelled.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What is wanted now, in order.
    pub fn wanted(&self) -> Arc<Vec<Wanted>> {
        Arc::clone(&self.wanted.borrow())
    }

    /// The pre-flight of a certificate at this moment, our own challenge included; None when it is not wanted.
    /// Nothing is ordered.
    pub async fn preflight(&self, id: &str) -> Option<Vec<Finding>> {
        let all = self.wanted();
        let wanted = all.iter().find(|wanted| wanted.id == id)?;
        let shared = &self.shared;
        let answers = Some(&self.answers);
        let store = shared.store.as_ref();
        let tested = Some(tested(store).await);
        Some(preflight(&shared.surroundings, store, answers, tested, wanted).await)
    }

    /// Asks for a renewal now; whether the certificate is known.
    pub async fn renew(&self, id: &str) -> bool {
        let (answer, answered) = oneshot::channel();
        let id = id.to_owned();
        self.commands
            .send(Command::Renew {
                id,
                asked_at: SystemTime::now(),
                answer,
            })
            .await
            .is_ok()
            && answered.await.unwrap_or(false)
    }

    /// Serves the certificate of before again, until its renewal.
    pub async fn roll_back(&self, id: &str) -> Result<(), RollbackError> {
        let (answer, answered) = oneshot::channel();
        let id = id.to_owned();
        let gone = || RollbackError::NotKept("the engine has stopped");
        let asked = self.commands.send(Command::Rollback { id, answer }).await;
        asked.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Revokes what is served for this certificate and orders another.
    pub async fn revoke(&self, id: &str, reason: RevocationReason) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let id = id.to_owned();
        let gone = || "the engine has stopped".to_owned();
        self.commands
            .send(Command::Revoke { id, reason, answer })
            .await
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// What the tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) answers: Answers,
    /// Held while a waiting import is taken.
    pub(crate) imports: tokio::sync::Mutex<()>,
    state: watch::Sender<Arc<State>>,
    pub(crate) orders: Semaphore,
    authorities: Mutex<BTreeMap<String, Arc<Authority>>>,
    books: Mutex<BTreeMap<(String, String), Arc<Book>>>,
    pub(crate) lanes: Lanes,
    pub(crate) tally: Tally,
    pub(crate) surroundings: Surroundings,
    tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// A certification authority as one issuer sees it.
#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) client: AcmeClient,
    roots: Option<[u8; 32]>,
    directories: tokio::sync::Mutex<BTreeMap<String, (Instant, Directory)>>,
}

impl Authority {
    /// The directory, read at most once an hour.
    pub(crate) async fn directory(&self, url: &str) -> Result<Directory, ClientError> {
        let mut directories = self.directories.lock().await;
        if let Some((read_at, directory)) = directories.get(url)
            && read_at.elapsed() < DIRECTORY_LIFE
        {
            return Ok(directory.clone());
        }
        let directory = self.client.directory(url).await?;
        directories.insert(url.to_owned(), (Instant::now(), directory.clone()));
        Ok(directory)
    }
}

impl Shared {
    /// The authority of an issuer; made anew when its CAs change.
    pub(crate) fn authority(&self, issuer: &Issuer) -> Result<Arc<Authority>, ClientError> {
        let roots = issuer.roots.as_ref().map(|roots| roots.fingerprint);
        let mut all = self
            .authorities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&issuer.name)
            && known.roots == roots
        {
            return Ok(Arc::clone(known));
        }
        let authority = Arc::new(Authority {
            client: AcmeClient::new(issuer.roots.as_ref())?,
            roots,
            directories: tokio::sync::Mutex::default(),
        });
        all.insert(issuer.name.clone(), Arc::clone(&authority));
        Ok(authority)
    }

    /// Requests by issuer and status.
    fn requests(&self) -> BTreeMap<String, BTreeMap<u16, u64>> {
        let all = self
            .authorities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(issuer, authority)| (issuer.clone(), authority.client.hints().requests))
            .collect()
    }

    /// The ledger of an issuer's account at a directory.
    pub(crate) fn book(&self, issuer: &str, directory: &str) -> Arc<Book> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let book = books
            .entry((issuer.to_owned(), directory.to_owned()))
            .or_insert_with(|| Arc::new(Book::of(issuer, directory)));
        Arc::clone(book)
    }

    /// Publishes the state of a certificate if it differs.
    pub(crate) fn publish(&self, id: &str, new: CertificateState) {
        self.state.send_if_modified(|state| {
            if state.certificates.get(id).is_some_and(|old| **old == new) {
                return false;
            }
            Arc::make_mut(state)
                .certificates
                .insert(id.to_owned(), Arc::new(new));
            true
        });
    }

    /// Changes what is known of an issuer.
    pub(crate) fn publish_issuer(&self, name: &str, change: impl FnOnce(&mut IssuerState)) {
        self.state.send_if_modified(|state| {
            let old = state.issuers.get(name).cloned().unwrap_or_default();
            let mut new = old.clone();
            change(&mut new);
            if new == old {
                return false;
            }
            Arc::make_mut(state).issuers.insert(name.to_owned(), new);
            true
        });
    }

    fn forget(&self, id: &str) {
        self.state.send_if_modified(|state| {
            state.certificates.contains_key(id)
                && Arc::make_mut(state).certificates.remove(id).is_some()
        });
    }
}

/// An import that nobody can use any more is removed; one that waits for a route is left for it.
async fn forget_expired(store: &dyn Store, key: &Key, record: &CertificateRecord) {
    let now = SystemTime::now();
    let current = record.current.as_ref();
    if current.is_some_and(|issued| issued.not_after > now) {
        return;
    }
    match store.remove(key).await {
        Ok(()) => tracing::info!(import = %key.name, "an imported certificate expired unused"),
        Err(error) => {
            tracing::warn!(import = %key.name, error = %chain(&error), "an imported certificate that expired stays");
        }
    }
}

/// One task and how to reach it.
struct Kept {
    wanted: watch::Sender<Wanted>,
    commands: mpsc::Sender<Command>,
    stop: CancellationToken,
}

/// Starts and ends tasks as certificates are wanted and no longer wanted.
struct Supervisor {
    shared: Arc<Shared>,
    wanted: watch::Receiver<Arc<Vec<Wanted>>>,
    commands: mpsc::Receiver<Command>,
    /// As read at the start, until a task takes them over.
    records: BTreeMap<String, CertificateRecord>,
    keepers: BTreeMap<String, Kept>,
}

impl Supervisor {
    async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let wanted = Arc::clone(&self.wanted.borrow_and_update());
                    self.adjust(&wanted);
                }
                Some(command) = self.commands.recv() => self.pass_on(command),
            }
        }
    }

    fn adjust(&mut self, wanted: &[Wanted]) {
        let is_wanted = |id: &str| wanted.iter().any(|want| want.id == id);
        self.shared.answers.keep_restored(is_wanted);
        let mut gone: Vec<String> = self.keepers.keys().cloned().collect();
        for want in wanted {
            gone.retain(|id| *id != want.id);
            if let Some(kept) = self.keepers.get(&want.id) {
                kept.wanted.send_if_modified(|known| {
                    let differs = known.fingerprint() != want.fingerprint();
                    *known = want.clone();
                    differs
                });
                continue;
            }
            let (sender, receiver) = watch::channel(want.clone());
            let (commands, commands_receiver) = mpsc::channel(8);
            let stop = self.shared.stop.child_token();
            let keeper = Keeper::new(
                Arc::clone(&self.shared),
                &want.id,
                self.records.remove(&want.id),
                receiver,
                commands_receiver,
            );
            let stopped = stop.clone();
            let life = async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = keeper.run() => {}
                }
            };
            spawn_named("certificate", self.shared.tasks.track_future(life));
            let kept = Kept {
                wanted: sender,
                commands,
                stop,
            };
            self.keepers.insert(want.id.clone(), kept);
        }
        // The record stays in the store: a route that comes back needs no new order.
        for id in gone {
            if let Some(kept) = self.keepers.remove(&id) {
                kept.stop.cancel();
            }
            self.shared.forget(&id);
        }
    }

    fn pass_on(&mut self, command: Command) {
        let id = match &command {
            Command::Renew { id, .. }
            | Command::Rollback { id, .. }
            | Command::Revoke { id, .. }
            | Command::FoundRevoked { id, .. } => id,
        };
        let refused = match self.keepers.get(id) {
            Some(kept) => match kept.commands.try_send(command) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(command)) => {
                    (command, "too much is asked of it already")
                }
                Err(mpsc::error::TrySendError::Closed(command)) => {
                    (command, "it is not kept any more")
                }
            },
            None => (command, "there is no such certificate"),
        };
        match refused {
            (Command::Renew { answer, .. }, _) => drop(answer.send(false)),
            (Command::Rollback { answer, .. }, why) => {
                drop(answer.send(Err(RollbackError::NotKept(why))));
            }
            (Command::Revoke { answer, .. }, why) => drop(answer.send(Err(why.to_owned()))),
            // Found again at the next look.
            (Command::FoundRevoked { .. }, _) => {}
        }
    }
}
