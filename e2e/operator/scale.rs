//! A thousand routes at once, and what they cost: printed, with bounds that only a defect breaks.
//!
//! `TIDEGATE_E2E_ROUTES=10000` asks for another number, `TIDEGATE_E2E_PROGRAM=FILE` for another build.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;
use tidegate::api::TlsRoute;

use super::certificates::holds_for;
use crate::support::operator::{anywhere, route_to, service};
use crate::support::{Client, Cluster, Deployment, Origin, Part, block_on, eventually};

/// Single routes that are timed.
const SINGLE: usize = 20;
/// How long nothing is done, to see what is asked at rest.
const REST: Duration = Duration::from_secs(10);
/// How long everything together may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(10);

fn route(name: &str, service: &str) -> TlsRoute {
    let text = route_to(name, &format!("{name}.example.com"), service);
    serde_saphyr::from_str(&text).unwrap()
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent).div_ceil(100) - 1]
}

/// From the moment before the object is sent to the end of the first right answer.
fn time_to_text(client: &Client, host: &str, text: &str, send: impl FnOnce()) -> Duration {
    let began = Instant::now();
    send();
    loop {
        if let Ok(reply) = client.try_get(host, "/")
            && reply.status == 200
            && reply.text() == text
        {
            return began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "{host} does not answer {text}");
        // Not so tight that the looking is what takes the time.
        std::thread::yield_now();
    }
}

/// Requests of the operator by what they ask, as the API server's audit has them.
fn requests(audit: &str, space: &str) -> BTreeMap<String, usize> {
    let user = format!("system:serviceaccount:{space}:tidegate");
    let mut counts = BTreeMap::new();
    for line in audit.lines().filter(|line| line.contains(&user)) {
        // The last line may still be being written.
        let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        if event["user"]["username"] == *user {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let key = format!(
                "{} {}",
                text(&event["verb"]),
                text(&event["objectRef"]["resource"])
            );
            *counts.entry(key).or_default() += 1;
        }
    }
    counts
}

/// Returns when that many routes have been seen Ready. A watch, because a list of them all, again and again,
/// would cost the API server more than everything that is measured.
async fn wait_until_ready(api: &Api<TlsRoute>, count: usize) {
    let mut seen = BTreeSet::new();
    let all = async {
        let events = watcher(api.clone(), watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        while seen.len() < count {
            match events.next().await {
                Some(Ok(watcher::Event::Apply(route) | watcher::Event::InitApply(route)))
                    if is_ready(&route) =>
                {
                    seen.insert(route.metadata.name.unwrap_or_default());
                }
                Some(_) => {}
                None => return,
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all).await;
    assert!(in_time.is_ok(), "{} of {count} are ready", seen.len());
}

/// What the API server says of itself.
#[derive(Default)]
struct ServerCosts {
    /// By what was asked: how often, and seconds in all.
    requests: BTreeMap<String, (f64, f64)>,
    /// Seconds of CPU of the API server, and of etcd where it is ours.
    cpu: [f64; 2],
}

impl ServerCosts {
    fn now(cluster: &Cluster) -> Self {
        let mut costs = Self::default();
        // Somebody's cluster may show its metrics to nobody.
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let Ok(text) = block_on(cluster.client().request_text(request)) else {
            return costs;
        };
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let value: f64 = value.parse().unwrap_or_default();
            if name == "process_cpu_seconds_total" {
                costs.cpu[0] = value;
            }
            let label = |label: &str| {
                let (_, rest) = name.split_once(&format!("{label}=\""))?;
                rest.split('"').next()
            };
            let part = name.strip_prefix("apiserver_request_duration_seconds_");
            let (Some(part), Some(verb), Some(resource)) = (part, label("verb"), label("resource"))
            else {
                continue;
            };
            let subresource = label("subresource").unwrap_or_default();
            let key = format!("{verb} {resource} {subresource}");
            let costs: &mut (f64, f64) = costs.requests.entry(key.trim().to_owned()).or_default();
            if part.starts_with("count{") {
                costs.0 += value;
            } else if part.starts_with("sum{") {
                costs.1 += value;
            }
        }
        costs.cpu[1] = cluster.cpu_time(Part::Etcd).as_secs_f64();
        costs
    }

    fn since(self, before: &Self) -> Self {
        let requests = self.requests.into_iter().map(|(key, (count, sum))| {
            let before = before.requests.get(&key).copied().unwrap_or_default();
            (key, (count - before.0, sum - before.1))
        });
        Self {
            requests: requests.filter(|(_, (count, _))| *count > 0.0).collect(),
            cpu: [self.cpu[0] - before.cpu[0], self.cpu[1] - before.cpu[1]],
        }
    }
}

impl fmt::Display for ServerCosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [server, etcd] = self.cpu;
        write!(f, "CPU {server:.1} s and etcd's {etcd:.1} s")?;
        let mut requests: Vec<_> = self.requests.iter().collect();
        requests.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        for (what, (count, sum)) in requests.into_iter().take(6) {
            let each = sum / count * 1000.0;
            write!(f, "; {count} times {what} ({each:.1} ms)")?;
        }
        Ok(())
    }
}

#[test]
fn a_thousand_routes_at_once() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let count: usize = std::env::var("TIDEGATE_E2E_ROUTES")
        .map_or(1_000, |text| text.parse().expect("a number of routes"));
    let namespace = cluster.namespace();
    let space = namespace.name();
    let edge = Deployment::new(cluster, space);
    let mut one = edge.replica("one").start();
    let (blue, green) = (
        Origin::text_at(anywhere(), "blue"),
        Origin::text_at(anywhere(), "green"),
    );
    cluster
        .kubectl()
        .apply(space, &service("blue", &[blue.address()]));
    cluster
        .kubectl()
        .apply(space, &service("green", &[green.address()]));
    let client = one.client();
    let api: Api<TlsRoute> = Api::namespaced(cluster.client(), space);
    let create = |name: &str| {
        let route = route(name, "blue");
        block_on(api.create(&PostParams::default(), &route)).unwrap();
    };
    let single = |prefix: &str| -> Vec<Duration> {
        let names = (0..SINGLE).map(|number| format!("{prefix}-{number}"));
        names
            .map(|name| {
                let host = format!("{name}.example.com");
                time_to_text(&client, &host, "blue", || create(&name))
            })
            .collect()
    };
    let mut alone = single("alone");
    let memory_before = one.memory();

    let cpu = one.program().cpu_time();
    let costs = ServerCosts::now(cluster);
    let began = Instant::now();
    let (applied, served, ready) = std::thread::scope(|scope| {
        let ready = scope.spawn(|| {
            block_on(wait_until_ready(&api, count + SINGLE));
            began.elapsed()
        });
        block_on(async {
            let all = futures_util::stream::iter(0..count).map(|number| {
                let api = api.clone();
                async move {
                    let route = route(&format!("route-{number}"), "blue");
                    api.create(&PostParams::default(), &route).await.map(drop)
                }
            });
            all.buffer_unordered(32).try_collect::<()>().await
        })
        .unwrap();
        let applied = began.elapsed();
        let last = format!("route-{}.example.com", count - 1);
        eventually("the last one served", PATIENCE, || {
            match client.try_get(&last, "/") {
                Ok(reply) if reply.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let served = began.elapsed();
        (applied, served, ready.join().unwrap())
    });
    let cpu_of_all = one.program().cpu_time().abs_diff(cpu);
    let costs = ServerCosts::now(cluster).since(&costs);
    let memory = one.memory();
    // Events are still told, which would count as costs of what follows.
    if let Some(log) = cluster.audit() {
        wait_until_quiet(&log, space);
    }

    let mut among = single("among");
    let patch = |name: &str, service: &str| {
        let backend = json!({"service": {"name": service, "port": 80}});
        let change = json!({"spec": {"rules": [{"backends": [backend]}]}});
        block_on(api.patch(name, &PatchParams::default(), &Patch::Merge(&change))).unwrap();
    };
    let mut changes: Vec<Duration> = (0..SINGLE)
        .map(|number| {
            let name = format!("route-{number}");
            let host = format!("{name}.example.com");
            time_to_text(&client, &host, "green", || patch(&name, "green"))
        })
        .collect();
    // Watched through the status, because handshakes cost the edge more than the change.
    let cpu = one.program().cpu_time();
    for number in 0..SINGLE {
        let name = format!("route-{number}");
        patch(&name, "blue");
        eventually("a status of the change", PATIENCE, || {
            let route = edge.route(&name).ok_or("no route")?;
            let seen = route.status.and_then(|status| status.observed_generation);
            (seen == route.metadata.generation)
                .then_some(())
                .ok_or_else(|| format!("{seen:?}"))
        });
    }
    let cpu_of_one = one.program().cpu_time().abs_diff(cpu) / u32::try_from(SINGLE).unwrap();

    let quiet = cluster.audit().map(|log| {
        wait_until_quiet(&log, space);
        let before = fs::read_to_string(&log).unwrap().len();
        let cpu = one.program().cpu_time();
        holds_for(REST, || {});
        let cpu = one.program().cpu_time().abs_diff(cpu);
        let audit = fs::read_to_string(&log).unwrap();
        (
            requests(&audit[before..], space),
            requests(&audit, space),
            cpu,
        )
    });

    eprintln!("--- {count} routes");
    for (what, times) in [
        ("apply to first 200, no others", &mut alone),
        ("apply to first 200, among them", &mut among),
        ("change to first new answer", &mut changes),
    ] {
        let (half, most) = (percentile(times, 50), percentile(times, 99));
        eprintln!("{what}: p50 {half:.1?}, p99 {most:.1?}");
    }
    eprintln!(
        "all created after {applied:.1?}, the last served after {served:.1?}, all Ready after {ready:.1?}"
    );
    eprintln!("the API server while they were: {costs}");
    eprintln!(
        "memory {} MiB before, {} MiB with them; CPU of all {cpu_of_all:.1?}, of one change {cpu_of_one:.1?}",
        memory_before >> 20,
        memory >> 20
    );
    if let Some((at_rest, all, cpu)) = quiet {
        eprintln!(
            "requests in {REST:?} at rest: {at_rest:?}, CPU {cpu:?}; since the start: {all:?}"
        );
        // Watches end by themselves every few minutes and begin again.
        let others = at_rest
            .iter()
            .filter(|(key, _)| !key.ends_with("leases") && !key.starts_with("watch"));
        assert_eq!(others.count(), 0, "{at_rest:?}");
        let leases: usize = at_rest.values().sum();
        assert!((2..=12).contains(&leases), "{at_rest:?}");
        // Once to say that it is ready, and hardly ever more.
        let written = all["patch tlsroutes"];
        let routes = count + 4 * SINGLE;
        assert!(
            written < routes * 2,
            "{written} statuses of {routes} changes"
        );
    }
    assert!(memory < memory_before + (64 << 20) + (count as u64) * (64 << 10));
    assert!(!one.log().contains("\"ERROR\""));
}

/// Waits until the operator asks for nothing but its Lease.
fn wait_until_quiet(log: &Path, space: &str) {
    let mut length = 0;
    eventually("quiet", PATIENCE, || {
        let audit = fs::read_to_string(log).unwrap();
        let counts = requests(&audit, space);
        let busy: usize = (counts.iter())
            .filter(|(key, _)| !key.ends_with("leases"))
            .map(|(_, count)| count)
            .sum();
        let before = std::mem::replace(&mut length, busy);
        holds_for(Duration::from_secs(1), || {});
        (before == busy)
            .then_some(())
            .ok_or_else(|| format!("{counts:?}"))
    });
}

fn is_ready(route: &TlsRoute) -> bool {
    let conditions = route.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|it| it.type_ == "Ready")
        .any(|it| it.status == "True")
}
