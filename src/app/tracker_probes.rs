//! Asks trackers whether they read X-Forwarded-For, as often as the objects wish.
//!
//! One after the other, each within its time, on connections of their own; what is asked and what an answer proves
//! is `tidegate_tracker::probe`'s. Keeps what was told until the next answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, header};
use tidegate_model::RuleId;
use tidegate_proxy::ask_once;
use tidegate_telemetry::{chain, spawn_named};
use tidegate_tracker::probe::{Announce, Answer, MAX_ANSWER, Probe, Reading};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::translate::{ProbeReport, TrackerProbe};

/// For one announce.
const PATIENCE: Duration = Duration::from_secs(5);
/// A tracker that is not as it should be is about to be mended.
const AGAIN: Duration = Duration::from_mins(1);

/// What trackers have told.
pub(super) type Reports = BTreeMap<RuleId, ProbeReport>;

/// The one who asks; ends with the value.
#[derive(Debug)]
pub(super) struct TrackerProbes {
    wanted: watch::Sender<Vec<TrackerProbe>>,
    reports: watch::Receiver<Arc<Reports>>,
    _stop: DropGuard,
}

// === impl TrackerProbes ===

impl TrackerProbes {
    /// Needs a runtime.
    pub(super) fn start() -> Self {
        let (wanted, wishes) = watch::channel(Vec::new());
        let (told, reports) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let asker = Asker {
            wanted: wishes,
            told,
            known: BTreeMap::new(),
        };
        let ended = stop.clone();
        spawn_named("tracker-probes", async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = asker.run() => {}
            }
        });
        Self {
            wanted,
            reports,
            _stop: stop.drop_guard(),
        }
    }

    /// Asks these from now on.
    pub(super) fn tell(&self, wanted: Vec<TrackerProbe>) {
        self.wanted.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }

    /// What was told so far.
    pub(super) fn reports(&self) -> Arc<Reports> {
        Arc::clone(&self.reports.borrow())
    }

    /// Returns when there is news.
    pub(super) async fn changed(&mut self) {
        if self.reports.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

struct Asker {
    wanted: watch::Receiver<Vec<TrackerProbe>>,
    told: watch::Sender<Arc<Reports>>,
    known: BTreeMap<RuleId, Known>,
}

/// A tracker that was asked.
struct Known {
    probe: TrackerProbe,
    report: ProbeReport,
    next: Instant,
}

impl Asker {
    async fn run(mut self) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            // Who is somebody else now is asked anew; who only wishes it more or less often is not.
            self.known.retain(|id, known| {
                wanted.iter().any(|probe| {
                    probe.id == *id
                        && probe.cluster == known.probe.cluster
                        && probe.host == known.probe.host
                })
            });
            self.tell();
            let now = Instant::now();
            let due = |probe: &&TrackerProbe| {
                self.known
                    .get(&probe.id)
                    .is_none_or(|known| known.next <= now)
            };
            if let Some(probe) = wanted.iter().find(due) {
                let report = ask(probe).await;
                self.note(probe, report);
                continue;
            }
            let next = self.known.values().map(|known| known.next).min();
            let sleep = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                changed = self.wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    fn note(&mut self, probe: &TrackerProbe, report: ProbeReport) {
        let settled = match &report {
            ProbeReport::Answered(Reading::Reads) => probe.behind_edge,
            ProbeReport::Answered(Reading::Ignores { .. }) => !probe.behind_edge,
            // It will not tell in a minute either.
            ProbeReport::Answered(Reading::Closed(_)) => true,
            ProbeReport::Answered(Reading::Unclear(_)) | ProbeReport::Failed(_) => false,
        };
        let pause = if settled {
            probe.interval
        } else {
            probe.interval.min(AGAIN)
        };
        tracing::debug!(
            route = %probe.id.route,
            rule = probe.id.rule,
            report = ?report,
            "asked a tracker whether it reads X-Forwarded-For"
        );
        self.known.insert(
            probe.id.clone(),
            Known {
                probe: probe.clone(),
                report,
                next: Instant::now() + pause,
            },
        );
    }

    fn tell(&self) {
        let reports: Reports = (self.known.iter())
            .map(|(id, known)| (id.clone(), known.report.clone()))
            .collect();
        self.told.send_if_modified(|told| {
            let changed = **told != reports;
            if changed {
                *told = Arc::new(reports);
            }
            changed
        });
    }
}

/// Both announces; then both peers stop, whatever came of it.
async fn ask(probe: &TrackerProbe) -> ProbeReport {
    let made_up = Probe::new(&mut fastrand::Rng::new());
    let mut answers = Vec::with_capacity(2);
    let mut failed = None;
    for announce in made_up.announces() {
        match send(probe, &announce).await {
            Ok(answer) => answers.push(answer),
            Err(why) => {
                failed = Some(why);
                break;
            }
        }
    }
    let sent = answers.len() + usize::from(failed.is_some());
    for farewell in made_up.farewells().iter().take(sent) {
        if let Err(error) = send(probe, farewell).await {
            tracing::debug!(route = %probe.id.route, error, "a made-up peer could not say that it stops");
        }
    }
    match (failed, &answers[..]) {
        (None, [first, second]) => {
            let answer = |it: &'_ (u16, bytes::Bytes)| (it.0, it.1.clone());
            let [(first_status, first), (second_status, second)] = [answer(first), answer(second)];
            let read = |status, body| Answer { status, body };
            let (first, second) = (read(first_status, &first), read(second_status, &second));
            ProbeReport::Answered(made_up.judge(first, second))
        }
        (failed, _) => ProbeReport::Failed(failed.unwrap_or_default()),
    }
}

/// One announce as the edge would pass it on.
async fn send(probe: &TrackerProbe, announce: &Announce) -> Result<(u16, bytes::Bytes), String> {
    let client = announce.client.to_string();
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
    let mut request = Request::get(&announce.target)
        .body(())
        .map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, value(&probe.host)?);
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static("tidegate-tracker-probe"),
    );
    headers.insert("x-forwarded-for", value(&client)?);
    headers.insert("x-real-ip", value(&client)?);
    ask_once(&probe.cluster, &probe.reach, request, PATIENCE, MAX_ANSWER)
        .await
        .map(|(status, body)| (status.as_u16(), body))
        .map_err(|error| chain(&error).to_string())
}
