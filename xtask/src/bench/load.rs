//! One load on one proxy: which tool, which arguments, what it reported.
//!
//! Clients are not free: each shares its core with the origin, so requests per second say what this
//! set-up reached, while CPU time per request belongs to the proxy alone.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::process::{Running, pin};
use crate::shell;

/// What one run gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// Requests answered per second.
    pub(super) per_second: f64,
    /// CPU time of the proxy per request, in microseconds.
    pub(super) cpu_us: f64,
    /// Latencies in microseconds.
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Resident memory in KiB: after the load, or per connection for idle ones.
    pub(super) rss_kib: f64,
    /// Requests that failed.
    pub(super) failed: u64,
    /// Of each program by itself.
    pub(super) parts: Vec<Part>,
}

/// What one of several programs cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Part {
    /// CPU time per request, in microseconds.
    pub(super) cpu_us: f64,
    /// Resident memory in KiB: after the load, or per connection for those that stay open.
    pub(super) rss_kib: f64,
}

/// The middle value; of an even number the lower middle.
pub(super) fn median(samples: &[Sample], pick: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(pick).collect();
    values.sort_by(f64::total_cmp);
    values
        .get(values.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0.0)
}

/// What a client reported.
struct Report {
    requests: u64,
    failed: u64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Where a load goes to and comes from.
pub(super) struct Target<'a> {
    pub(super) port: u16,
    pub(super) host: &'a str,
    /// Core of the client.
    pub(super) core: Option<usize>,
    /// Scratch folder.
    pub(super) folder: &'a Path,
}

/// Runs a client and takes the CPU time over the run of the proxy, or of all programs that are one together.
pub(super) fn measure(proxies: &[Running], kind: &Kind, target: &Target<'_>) -> Result<Sample> {
    match kind {
        Kind::Idle { connections } => return held("idle", proxies, *connections, target),
        Kind::Streams { connections } => return held("streams", proxies, *connections, target),
        _ => {}
    }
    let before = cpu(proxies);
    let report = match kind {
        Kind::H2load {
            h1,
            connections,
            streams,
            count,
            path,
            body,
        } => h2load(
            target,
            (*h1, *connections, *streams, *count),
            path,
            body.as_deref(),
        )?,
        Kind::Handshakes { count, path, alpn } => peers(
            target,
            &[
                "handshakes",
                &target.port.to_string(),
                target.host,
                path,
                &count.to_string(),
                if *alpn { "http/1.1" } else { "" },
            ],
        )?,
        Kind::WebSocket { connections, count } => peers(
            target,
            &[
                "websocket",
                &target.port.to_string(),
                target.host,
                &connections.to_string(),
                &count.to_string(),
            ],
        )?,
        Kind::Idle { .. } | Kind::Streams { .. } => bail!("measured apart"),
    };
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let requests = report.requests.max(1) as f64;
    let grown = |_, now| now;
    Ok(Sample {
        per_second: requests / report.seconds.max(1e-9),
        p50_us: report.p50_us,
        p99_us: report.p99_us,
        failed: report.failed,
        ..sum(proxies, &before, requests, grown)
    })
}

fn cpu(proxies: &[Running]) -> Vec<(Duration, u64)> {
    proxies.iter().map(|it| (it.cpu(), it.rss_kib())).collect()
}

/// What was spent since then, for each request; `rss` makes of the memory then and now what is told.
fn sum(
    proxies: &[Running],
    before: &[(Duration, u64)],
    requests: f64,
    rss: impl Fn(f64, f64) -> f64,
) -> Sample {
    #[allow(clippy::cast_precision_loss, reason = "KiB far below 2^52")]
    let part = |(proxy, (cpu, then)): (&Running, &(Duration, u64))| Part {
        cpu_us: proxy.cpu().saturating_sub(*cpu).as_secs_f64() * 1e6 / requests,
        rss_kib: rss(*then as f64, proxy.rss_kib() as f64),
    };
    let parts: Vec<Part> = proxies.iter().zip(before).map(part).collect();
    Sample {
        cpu_us: parts.iter().map(|it| it.cpu_us).sum(),
        rss_kib: parts.iter().map(|it| it.rss_kib).sum(),
        parts,
        ..Sample::default()
    }
}

/// How a proxy is loaded.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// h2load over HTTP/1.1 or HTTP/2, with a body to upload or without.
    H2load {
        h1: bool,
        connections: u32,
        streams: u32,
        count: u64,
        path: &'static str,
        body: Option<std::path::PathBuf>,
    },
    /// A new TLS connection for each request.
    Handshakes {
        count: u64,
        path: &'static str,
        alpn: bool,
    },
    /// Echoes over WebSocket.
    WebSocket { connections: u32, count: u64 },
    /// Connections that are open and do nothing.
    Idle { connections: u32 },
    /// Upgraded connections that are open and on which nothing is said.
    Streams { connections: u32 },
}

/// How many of something, in a quick run fewer.
pub(super) fn scaled(quick: bool, count: u64) -> u64 {
    if quick { (count / 10).max(16) } else { count }
}

/// Makes loads of h2load: HTTP/1.1 or not, connections, streams of each, requests of a whole run, path and body.
pub(super) fn by_h2load(
    quick: bool,
) -> impl Fn(bool, u32, u32, u64, &'static str, Option<&Path>) -> Kind {
    move |h1, connections, streams, count, path, body| Kind::H2load {
        h1,
        connections,
        streams,
        count: scaled(quick, count),
        path,
        body: body.map(Path::to_owned),
    }
}

fn h2load(
    target: &Target<'_>,
    (h1, connections, streams, count): (bool, u32, u32, u64),
    path: &str,
    body: Option<&Path>,
) -> Result<Report> {
    let log = target.folder.join("h2load.tsv");
    // The log is appended to.
    let _ = std::fs::remove_file(&log);
    let mut command = Command::new("h2load");
    command
        .args([
            "-t",
            "1",
            "-n",
            &count.to_string(),
            "-c",
            &connections.to_string(),
        ])
        .args(["-m", &streams.to_string()])
        .arg(format!("--connect-to=127.0.0.1:{}", target.port))
        .arg(format!("--log-file={}", log.display()));
    if h1 {
        command.arg("--h1");
    }
    if let Some(body) = body {
        command.arg("-d").arg(body);
    }
    command.arg(format!("https://{}:{}{path}", target.host, target.port));
    let text = shell::output(&mut pin(&command, target.core))?;
    parse_h2load(
        &text,
        &std::fs::read_to_string(&log).context("read h2load's log")?,
    )
}

fn parse_h2load(text: &str, log: &str) -> Result<Report> {
    let finished = text
        .lines()
        .find_map(|line| line.strip_prefix("finished in "))
        .with_context(|| format!("h2load did not finish: {text}"))?;
    let time = finished.split(',').next().unwrap_or_default().trim();
    let seconds = seconds(time).with_context(|| format!("no time in {finished:?}"))?;
    let codes = text
        .lines()
        .find_map(|line| line.strip_prefix("status codes: "))
        .context("no status codes in h2load's report")?;
    let ok: u64 = codes
        .split_whitespace()
        .next()
        .and_then(|count| count.parse().ok())
        .context("no count of 2xx answers")?;
    let requests = text
        .lines()
        .find_map(|line| line.strip_prefix("requests: "))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .context("no count of requests")?;
    let mut times: Vec<f64> = log
        .lines()
        .filter_map(|line| line.split('\t').nth(2)?.parse().ok())
        .collect();
    times.sort_by(f64::total_cmp);
    Ok(Report {
        requests: ok,
        failed: requests - ok,
        seconds,
        p50_us: percentile(&times, 50),
        p99_us: percentile(&times, 99),
    })
}

/// `1.23s`, `456.78ms`, `12us` in seconds.
fn seconds(text: &str) -> Option<f64> {
    if let Some(number) = text.strip_suffix("ms") {
        return number.parse::<f64>().ok().map(|ms| ms / 1e3);
    }
    if let Some(number) = text.strip_suffix("us") {
        return number.parse::<f64>().ok().map(|us| us / 1e6);
    }
    text.strip_suffix('s')?.parse().ok()
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(0.0)
}

/// Command line of the benchmark's own clients and origins.
pub(super) fn peers_command(args: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(shell::root().join("xtask/bench/peers.py"))
        .args(args);
    command
}

fn peers(target: &Target<'_>, args: &[&str]) -> Result<Report> {
    let text = shell::output(&mut pin(&peers_command(args), target.core))?;
    let field = |name: &str| -> Result<f64> {
        text.split_whitespace()
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
            .with_context(|| format!("no {name} in {text:?}"))
    };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts that the client printed as whole numbers"
    )]
    Ok(Report {
        requests: field("requests")? as u64,
        failed: field("failed")? as u64,
        seconds: field("seconds")?,
        p50_us: field("p50_us")?,
        p99_us: field("p99_us")?,
    })
}

/// Memory and handshake cost of connections that stay open.
fn held(what: &str, proxies: &[Running], connections: u32, target: &Target<'_>) -> Result<Sample> {
    let before = cpu(proxies);
    let args = [
        what,
        &target.port.to_string(),
        target.host,
        "/1k",
        &connections.to_string(),
    ];
    let mut client = pin(&peers_command(&args), target.core)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the client that holds connections")?;
    let mut line = String::new();
    let stdout = client.stdout.take().context("the client's output")?;
    BufReader::new(stdout)
        .read_line(&mut line)
        .context("read from the client that holds connections")?;
    let each = f64::from(connections.max(1));
    let sample = sum(proxies, &before, each, |then, now| {
        (now - then).max(0.0) / each
    });
    drop(client.stdin.take());
    client
        .wait()
        .context("wait for the client that holds connections")?;
    let open: u32 = line
        .trim()
        .strip_prefix("open ")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0);
    Ok(Sample {
        failed: u64::from(connections - open.min(connections)),
        ..sample
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_h2load_is_read() {
        let text = "\nfinished in 1.50s, 2000.00 req/s, 1MB/s\n\
                    requests: 3000 total, 3000 started, 3000 done, 2999 succeeded, 1 failed, 0 errored, 0 timeout\n\
                    status codes: 2999 2xx, 0 3xx, 1 4xx, 0 5xx\n";
        let log = "1\t200\t10\n2\t200\t30\n3\t200\t20\n";
        let report = parse_h2load(text, log).unwrap();
        assert_eq!((report.requests, report.failed), (2999, 1));
        assert!((report.seconds - 1.5).abs() < 1e-9 && (report.p50_us - 20.0).abs() < 1e-9);
    }

    #[test]
    fn times_are_read_in_every_unit() {
        assert_eq!(seconds("2.5s"), Some(2.5));
        assert_eq!(seconds("250ms"), Some(0.25));
        assert_eq!(seconds("500us"), Some(0.0005));
    }
}
