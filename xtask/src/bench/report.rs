//! Samples into tables, tables into docs/benchmarks.md.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Result;

use super::load::median;
use super::proxies::Proxy;
use super::{Row, Table};
use crate::shell;

/// One workload as a Markdown table.
pub(super) fn table(table: &Table) -> String {
    let mut text = format!("\n### {}\n\n", table.title);
    if table.name == "idle" {
        text.push_str("| proxy | KiB per connection | CPU µs per connection | not opened |\n| --- | ---: | ---: | ---: |\n");
        for row in &table.rows {
            let failed: u64 = row.samples.iter().map(|sample| sample.failed).sum();
            let _ = writeln!(
                text,
                "| {} | {:.1} | {:.0} | {failed} |",
                row.proxy.name(),
                median(&row.samples, |sample| sample.rss_kib),
                median(&row.samples, |sample| sample.cpu_us),
            );
        }
        return text;
    }
    let routes = table.name.starts_with("routes");
    text.push_str(
        "| proxy | CPU µs per request | requests/s | p50 ms | p99 ms | RSS MiB: start | loaded | failed |",
    );
    text.push_str(if routes { " start s |\n" } else { "\n" });
    text.push_str("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    text.push_str(if routes { " ---: |\n" } else { "\n" });
    for row in &table.rows {
        text.push_str(&line(row));
        if routes {
            let _ = write!(text, " {:.1} |", row.start.as_secs_f64());
        }
        text.push('\n');
    }
    text
}

fn line(row: &Row) -> String {
    let failed: u64 = row.samples.iter().map(|sample| sample.failed).sum();
    format!(
        "| {} | {:.1} | {:.0} | {:.2} | {:.2} | {} | {:.0} | {failed} |",
        row.proxy.name(),
        median(&row.samples, |sample| sample.cpu_us),
        median(&row.samples, |sample| sample.per_second),
        median(&row.samples, |sample| sample.p50_us) / 1e3,
        median(&row.samples, |sample| sample.p99_us) / 1e3,
        row.rss_kib / 1024,
        median(&row.samples, |sample| sample.rss_kib) / 1024.0,
    )
}

/// Tidegate against the better of the two usual choices, workload by workload.
fn glance(tables: &[Table]) -> String {
    let mut text = String::from(
        "| workload | tidegate | better of both | ratio |\n| --- | ---: | ---: | ---: |\n",
    );
    for table in tables {
        let cpu = |proxy: Proxy| {
            let row = table.rows.iter().find(|row| row.proxy == proxy)?;
            Some(median(&row.samples, |sample| sample.cpu_us))
        };
        let others = [Proxy::Nginx, Proxy::Haproxy].into_iter().filter_map(cpu);
        let best = others.fold(f64::INFINITY, f64::min);
        if let Some(ours) = cpu(Proxy::Tidegate)
            && best.is_finite()
        {
            let _ = writeln!(
                text,
                "| {} | {ours:.1} | {best:.1} | {:.2} |",
                table.title,
                ours / best
            );
        }
    }
    text
}

/// The whole page.
pub(super) fn document(tables: &[Table], proxies: &[Proxy], rounds: usize) -> Result<String> {
    let date = shell::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').nth(2).unwrap_or("?").to_owned();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut versions = Vec::new();
    for proxy in proxies {
        versions.push(format!("{} {}", proxy.name(), proxy.version()?));
    }
    let mut text = format!(
        "# Benchmarks

Written by `cargo xtask bench` on {date}; run it on your own machine to compare there.

{versions}, on {cores} cores, median of {rounds} interleaved rounds.
The machine's load average over the last 15 minutes was {load}; above {cores}, other work shows in throughput and latencies.

## How it is measured

- Every proxy runs one worker (`--workers 1`, `worker_processes 1`, `nbthread 1`, `GOMAXPROCS=1`) on one core.
  The client and the origin share another core where the machine has two.
- The same P-256 certificate, TLS 1.3 as every client here offers it, the same origin over kept HTTP/1.1 connections,
  the same forwarding headers set (`X-Forwarded-For`, `-Proto`, `-Host`, `-Port`, `X-Real-IP`), no access log.
- **CPU µs per request** is the time that the proxy's threads and children spent on a core, from /proc, divided by the
  answers with a 2xx status. It is the figure to compare: it belongs to the proxy alone.
- **requests/s and latencies** are what this set-up reached: client and origin cost time too, and other work on the
  machine shows in them.
- Load comes from h2load; new connections, WebSocket and idle connections from a small Python client whose own cost
  bounds requests/s there, not the CPU time of the proxy.
- Announces are what libtorrent sends, with a new connection each time, without ALPN and without resumption; the answer
  of 400 bytes with fifty peers is fixed, so that the proxies are measured and no tracker. Tidegate's rule says `tracker`.
- **RSS** is the resident memory of the process and its children after the load; per connection it is the growth while
  the connections are open, divided by their number.

## At a glance

CPU µs per request (per connection for the idle ones) of Tidegate and of the better of nginx and HAProxy.

",
        date = date.trim(),
        versions = versions.join(", "),
    );
    text.push_str(&glance(tables));
    text.push_str("\n## Results\n");
    for one in tables {
        text.push_str(&table(one));
    }
    Ok(text)
}
