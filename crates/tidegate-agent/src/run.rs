//! A running agent: starts its parts, follows its configuration, ends in order.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_telemetry::{chain, spawn_named};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::board::{Board, RequestedView, StatusView, stamp};
use crate::config::{Config, ConfigError, Given, TargetRule, TokenSource};
use crate::dial::{Clock, Dialer, Memory};
use crate::keeper::{Keeper, Shared, Way};
use crate::link::{Common, Wishes};
use crate::table::Registry;
use crate::trust::{Trust, TrustError};
use crate::{status, system};

/// Streams may go on for so long when the agent is told to end.
const DRAIN: Duration = Duration::from_secs(30);
/// How often the files of the configuration are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The token is not there, or none.
    #[error("{0}")]
    Token(String),
    /// There is nobody to believe.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The address of the status page is taken.
    #[error(
        "serve the status page on {0}; another agent may run here: set status to another address, or to off"
    )]
    Status(std::net::SocketAddr, #[source] std::io::Error),
    /// The system gives no thread, or no event queue for one.
    #[error("start the thread of a link")]
    Thread(#[source] std::io::Error),
    /// The system gives no signals.
    #[error("watch for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs until the process is told to end.
pub async fn run(given: Given) -> Result<(), RunError> {
    system::raise_file_limit();
    let signals = system::Signals::new().map_err(RunError::Signals)?;
    follow(given, signals).await
}

/// Runs until it is told to end.
pub(crate) async fn follow(given: Given, mut signals: system::Signals) -> Result<(), RunError> {
    let config = Config::load(&given)?;
    check_token(&config.token)?;
    let mut agent = Agent::new(given, config)?;
    let listener = match agent.config.status {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|error| RunError::Status(address, error))?)
        }
        None => None,
    };
    let keepers = agent.start()?;
    let page = listener.map(|listener| agent.page(listener));
    system::tell_ready();
    let edges: Vec<String> = agent
        .config
        .edges
        .iter()
        .map(crate::config::Edge::authority)
        .collect();
    tracing::info!(
        agent = %agent.config.agent,
        version = env!("CARGO_PKG_VERSION"),
        edges = edges.join(", "),
        links = agent.config.links,
        "the agent runs"
    );
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beats = system::watchdog();
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                system::Asked::Stop => break,
                system::Asked::Reload => agent.reload(),
            },
            _ = looks.tick() => {
                if agent.files_differ() {
                    agent.reload();
                }
                system::tell_state(agent.shared.board.count_up(), agent.config.links);
            }
            () = beats.beat() => {}
        }
    }
    tracing::info!("the agent ends; what runs may finish");
    system::tell_stopping();
    agent.shared.stop.cancel();
    let ended = async {
        for keeper in keepers {
            let _ = keeper.await;
        }
        agent.shared.leaving.close();
        agent.shared.leaving.wait().await;
    };
    tokio::select! {
        _ = timeout(DRAIN + Duration::from_secs(2), ended) => {}
        _ = signals.next() => tracing::warn!("told a second time: ends at once"),
    }
    if let Some(page) = page {
        page.abort();
    }
    Ok(())
}

fn check_token(source: &TokenSource) -> Result<(), RunError> {
    let token = source.read().map_err(RunError::Token)?;
    tidegate_tunnel::credential::Token::parse(token.expose())
        .map(drop)
        .map_err(|error| {
            RunError::Token(format!(
                "use the token: {error}; `tidegate agent token` makes one"
            ))
        })
}

struct Agent {
    given: Given,
    config: Config,
    shared: Arc<Shared>,
    started: SystemTime,
    instance: Arc<str>,
    clock: Arc<Clock>,
    /// The files of the configuration as they were read last.
    files: Vec<Option<Vec<u8>>>,
    ways: watch::Sender<Arc<Way>>,
    wishes: watch::Sender<Arc<Wishes>>,
    allow: watch::Sender<Arc<[TargetRule]>>,
}

impl Agent {
    fn new(given: Given, config: Config) -> Result<Self, RunError> {
        let instance: Arc<str> = format!("{:032x}", fastrand::u128(..)).into();
        let clock = Arc::<Clock>::default();
        let way = way(&config, &instance, &clock)?;
        let (ways, way) = watch::channel(Arc::new(way));
        let wanted = Wishes {
            version: 1,
            mappings: config.mappings.clone(),
        };
        let (wishes, told) = watch::channel(Arc::new(wanted));
        let rules: Arc<[TargetRule]> = config.allow_targets.clone().into();
        let (allow, allowed) = watch::channel(rules);
        let common = Common {
            instance: Arc::clone(&instance),
            registry: Registry::default(),
            wishes: told,
            allow: allowed,
            verdicts: watch::channel(Vec::new()).0,
        };
        let shared = Shared {
            common: Arc::new(common),
            way,
            memory: Memory::default(),
            board: Arc::new(Board::new(config.links)),
            up: Notify::new(),
            stop: CancellationToken::new(),
            leaving: TaskTracker::new(),
            drain: DRAIN,
        };
        let mut agent = Self {
            given,
            config,
            shared: Arc::new(shared),
            started: SystemTime::now(),
            instance,
            clock,
            files: Vec::new(),
            ways,
            wishes,
            allow,
        };
        agent.files = agent.read_files();
        Ok(agent)
    }

    /// Starts the keepers of all links; what comes back ends when the last of a thread does.
    fn start(&self) -> Result<Vec<oneshot::Receiver<()>>, RunError> {
        let links = usize::from(self.config.links);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.min(links);
        (0..threads)
            .map(|thread| {
                let numbers = (0..self.config.links).skip(thread).step_by(threads);
                start_links(&self.shared, thread, numbers.collect()).map_err(RunError::Thread)
            })
            .collect()
    }

    fn page(&self, listener: TcpListener) -> tokio::task::JoinHandle<()> {
        let shared = Arc::clone(&self.shared);
        let (instance, started) = (self.instance.to_string(), stamp(self.started));
        let (agent, wishes) = (self.config.agent.to_string(), self.wishes.subscribe());
        let view = move || {
            let (mappings, refused) = shared.board.mappings();
            let edges = &shared.way.borrow().edges;
            StatusView {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                instance: instance.clone(),
                agent: agent.clone(),
                started_at: started.clone(),
                edges: edges.iter().map(crate::config::Edge::url).collect(),
                connected: shared.board.count_up() > 0,
                links: shared.board.links(),
                mappings,
                refused,
                requested: requested(&wishes.borrow(), &shared.common),
            }
        };
        spawn_named("status page", status::serve(listener, Arc::new(view)))
    }

    /// Everything on disk that the configuration depends on.
    fn read_files(&self) -> Vec<Option<Vec<u8>>> {
        let token = match &self.config.token {
            TokenSource::File(path) => Some(path.clone()),
            TokenSource::Environment(_) => None,
        };
        let paths: [Option<PathBuf>; 3] = [
            self.given.config.clone(),
            self.config.ca_file.clone(),
            token,
        ];
        paths
            .into_iter()
            .flatten()
            .map(|path| std::fs::read(path).ok())
            .collect()
    }

    fn files_differ(&mut self) -> bool {
        let now = self.read_files();
        // A file that is gone for a moment is one that is being replaced.
        let differ = now != self.files && now.iter().all(Option::is_some);
        if differ {
            self.files = now;
        }
        differ
    }

    /// Links and their streams stay as they are.
    fn reload(&mut self) {
        let loaded = Config::load(&self.given).map_err(RunError::from);
        let taken = loaded.and_then(|config| {
            let way = way(&config, &self.instance, &self.clock)?;
            Ok((config, way))
        });
        let (mut config, way) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                let error = chain(&error).to_string();
                tracing::error!(error, "the configuration is not read again; what was stays");
                return;
            }
        };
        let fixed = self.config.fixed_differences(&config);
        if !fixed.is_empty() {
            let fields = fixed.join(", ");
            tracing::warn!(
                fields,
                "these need a restart of the agent; they stay as they were"
            );
            config.agent = self.config.agent.clone();
            config.links = self.config.links;
            config.status = self.config.status;
        }
        // Also where only the token has changed: who was refused tries again.
        let way = Way {
            dialer: Dialer {
                agent: config.agent.clone(),
                ..way.dialer
            },
            ..way
        };
        self.ways.send_replace(Arc::new(way));
        if config.mappings != self.config.mappings {
            let version = self.wishes.borrow().version + 1;
            let mappings = config.mappings.clone();
            self.wishes
                .send_replace(Arc::new(Wishes { version, mappings }));
        }
        if config.allow_targets != self.config.allow_targets {
            self.allow.send_replace(config.allow_targets.clone().into());
        }
        self.config = config;
        self.files = self.read_files();
        tracing::info!(
            mappings = self.config.mappings.len(),
            "the configuration is read again"
        );
    }
}

fn way(config: &Config, instance: &Arc<str>, clock: &Arc<Clock>) -> Result<Way, RunError> {
    let dialer = Dialer {
        trust: Trust::load(config.ca_file.as_deref())?,
        proxy: config.proxy.clone(),
        agent: config.agent.clone(),
        token: config.token.clone(),
        instance: Arc::clone(instance),
        clock: Arc::clone(clock),
    };
    Ok(Way {
        edges: config.edges.clone(),
        dialer,
    })
}

fn requested(wishes: &Wishes, common: &Common) -> Vec<RequestedView> {
    let verdicts = common.verdicts.borrow();
    let view = |wish: &tidegate_model::RequestedMapping| {
        let verdict = verdicts.iter().find(|verdict| verdict.name == wish.name);
        RequestedView {
            name: wish.name.clone(),
            hostname: wish.public(),
            target: wish.target.clone(),
            accepted: verdict.map(|verdict| verdict.accepted),
            reason: verdict
                .map(|verdict| verdict.reason.clone())
                .unwrap_or_default(),
            message: verdict
                .map(|verdict| verdict.message.clone())
                .unwrap_or_default(),
        }
    };
    wishes.mappings.iter().map(view).collect()
}

/// Starts a thread that keeps some of the links. A request passes several tasks, of the link and of the connection to
/// its target: on one thread none of them has to wake another core.
fn start_links(
    shared: &Arc<Shared>,
    thread: usize,
    numbers: Vec<u8>,
) -> std::io::Result<oneshot::Receiver<()>> {
    let runtime = runtime()?;
    let (ended, end) = oneshot::channel();
    let shared = Arc::clone(shared);
    let work = move || {
        runtime.block_on(async {
            let keeper = |number| Keeper::new(Arc::clone(&shared), number).keep();
            let keepers: Vec<_> = numbers
                .into_iter()
                .map(|number| spawn_named("link", keeper(number)))
                .collect();
            for keeper in keepers {
                // A panic is logged there.
                let _ = keeper.await;
            }
            // Nobody waits any more where the agent ends at once.
            let _ = ended.send(());
            shared.leaving.wait().await;
        });
    };
    let name = format!("links-{thread}");
    std::thread::Builder::new().name(name).spawn(work)?;
    Ok(end)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Runs a future on a runtime of its own.
pub fn block_on<F: Future>(future: F) -> std::io::Result<F::Output> {
    let runtime = runtime()?;
    let output = runtime.block_on(future);
    // Names that are being resolved must not hold the process up.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(output)
}
