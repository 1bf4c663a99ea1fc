//! A tunnel beside another: edge and agent, and rathole with a proxy in front of it that ends TLS, which is the same
//! job. The edge without a tunnel tells what the tunnel adds.
//!
//! ```text
//! direct         client ─ TLS ─ tidegate ─ origin
//! tidegate       client ─ TLS ─ tidegate ═ TLS, one link ═ tidegate agent ─ origin
//! nginx+rathole  client ─ TLS ─ nginx ─ rathole ═ TLS ═ rathole ─ origin        (haproxy+rathole likewise)
//! ```

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::load::{self, Kind, Sample, Target, median};
use super::process::Running;
use super::proxies::{self, Proxy, Setup};
use super::{FIRST_PORT, Options, OriginKind, START, serves};
use crate::{shell, tools};

/// Where the section in docs/benchmarks.md begins, which is the last.
pub(super) const HEADING: &str = "## A tunnel\n";
/// Behind the ports of the other measurements.
const PORT: u16 = FIRST_PORT + 20;
const HOST: &str = "h0.bench.test";
/// Bytes of a GB.
const GB: f64 = 1e9;

/// Who leads visitors to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Tidegate,
    Rathole(Proxy),
}

const WAYS: [Way; 4] = [
    Way::Direct,
    Way::Tidegate,
    Way::Rathole(Proxy::Nginx),
    Way::Rathole(Proxy::Haproxy),
];

/// What a measurement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Requests,
    /// Bytes of a request's body, or of its answer's.
    Bytes(u32),
    Streams,
}

struct Workload {
    name: &'static str,
    title: &'static str,
    kind: Kind,
    origin: OriginKind,
    about: About,
}

/// What a way gave.
struct Row {
    way: Way,
    /// Resident before the load, in KiB: of each program where visitors come to, then of the one beside the origin.
    rss_kib: Vec<u64>,
    samples: Vec<Sample>,
}

/// One workload's rows.
pub(super) struct Table {
    title: &'static str,
    about: About,
    rows: Vec<Row>,
}

/// The names of all workloads.
pub(super) const NAMES: [&str; 6] = [
    "tunnel-small-h1",
    "tunnel-small-h2",
    "tunnel-latency",
    "tunnel-large",
    "tunnel-upload",
    "tunnel-streams",
];

fn workloads(quick: bool, body: &Path) -> Vec<Workload> {
    let h2load = load::by_h2load(quick);
    let requests = |name, title, kind| Workload {
        name,
        title,
        kind,
        origin: OriginKind::Files,
        about: About::Requests,
    };
    vec![
        requests(
            NAMES[0],
            "Through a tunnel: 1 KiB, HTTP/1.1, 32 kept connections",
            h2load(true, 32, 1, 12_000, "/1k", None),
        ),
        requests(
            NAMES[1],
            "Through a tunnel: 1 KiB, HTTP/2, 16 connections of 16 streams",
            h2load(false, 16, 16, 12_000, "/1k", None),
        ),
        requests(
            NAMES[2],
            "Through a tunnel: 1 KiB, one request after the other",
            h2load(true, 1, 1, 4000, "/1k", None),
        ),
        Workload {
            about: About::Bytes(1 << 20),
            ..requests(
                NAMES[3],
                "Through a tunnel: 1 MiB, HTTP/1.1, 4 connections",
                h2load(true, 4, 1, 600, "/1m", None),
            )
        },
        Workload {
            about: About::Bytes(10 << 20),
            origin: OriginKind::Sink,
            ..requests(
                NAMES[4],
                "Through a tunnel: 10 MiB upload, HTTP/1.1, 4 connections",
                h2load(true, 4, 1, 60, "/upload", Some(body)),
            )
        },
        Workload {
            about: About::Streams,
            origin: OriginKind::Echo,
            ..requests(
                NAMES[5],
                "Through a tunnel: open WebSockets that say nothing",
                Kind::Streams {
                    connections: if quick { 100 } else { 1000 },
                },
            )
        },
    ]
}

/// Runs what is wanted of it.
pub(super) fn run(
    options: &Options,
    folder: &Path,
    body: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for workload in workloads(options.quick, body) {
        if wanted(workload.name) {
            let table = measure(&workload, options, folder)
                .with_context(|| format!("workload {}", workload.name))?;
            print!("{}", shown(&table));
            tables.push(table);
        }
    }
    Ok(tables)
}

fn measure(workload: &Workload, options: &Options, folder: &Path) -> Result<Table> {
    eprintln!("== {}", workload.title);
    let several = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    let (core, other_core) = if several {
        (Some(1), Some(0))
    } else {
        (None, None)
    };
    let mut command = match workload.origin {
        OriginKind::Files => proxies::origin(PORT, &folder.join("origin"))?,
        OriginKind::Sink => load::peers_command(&["sink", &PORT.to_string()]),
        OriginKind::Echo => load::peers_command(&["echo", &PORT.to_string()]),
    };
    let mut origin = Running::start(&mut command, other_core, &folder.join("origin.log"))?;
    origin.wait_for_port(PORT, START)?;
    let mut running = Vec::new();
    for (index, way) in (0..).zip(WAYS) {
        // Visitors', and two that rathole has with itself.
        let port = PORT + 1 + index * 4;
        let own = folder.join(format!("{}-{}", workload.name, way.folder()));
        fs::create_dir_all(&own).context("create a way's folder")?;
        let parts = way
            .start(port, folder, &own, core)
            .and_then(|parts| {
                way_is_open(port, workload)?;
                Ok(parts)
            })
            .with_context(|| format!("{}; see {}", way.name(), own.display()))?;
        let row = Row {
            way,
            rss_kib: parts.iter().map(Running::rss_kib).collect(),
            samples: Vec::new(),
        };
        running.push((parts, port, row));
    }
    // Memory that a process keeps after the first time would hide what streams cost.
    let once = workload.about == About::Streams;
    let rounds = if once { 1..=1 } else { 0..=options.rounds };
    for round in rounds {
        for (parts, port, row) in &mut running {
            let target = Target {
                port: *port,
                host: HOST,
                core: other_core,
                folder,
            };
            let sample = load::measure(parts, &workload.kind, &target)
                .with_context(|| format!("load on {}", row.way.name()))?;
            if round > 0 {
                row.samples.push(sample);
            }
        }
        eprint!("{}", if round == 0 { "warm" } else { " ." });
    }
    eprintln!();
    // The programs end here: the next workload wants their ports.
    let rows = running.into_iter().map(|(_, _, row)| row).collect();
    Ok(Table {
        title: workload.title,
        about: workload.about,
        rows,
    })
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Direct => "tidegate without a tunnel".to_owned(),
            Self::Tidegate => "tidegate + agent".to_owned(),
            Self::Rathole(front) => format!("{} + rathole", front.name()),
        }
    }

    /// Some programs take no spaces in paths.
    fn folder(self) -> String {
        self.name().replace(" + ", "-").replace(' ', "-")
    }

    fn start(
        self,
        port: u16,
        folder: &Path,
        own: &Path,
        core: Option<usize>,
    ) -> Result<Vec<Running>> {
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        let setup = |origin| Setup {
            port,
            origin,
            hosts: &[],
            tracker: false,
            certificate: &certificate,
            key: &key,
            folder: own,
        };
        let hosts = [HOST.to_owned()];
        let begin = |command: &mut Command, name: &str| {
            Running::start(command, core, &own.join(format!("{name}.log")))
        };
        match self {
            Self::Direct => {
                let setup = Setup {
                    hosts: &hosts,
                    ..setup(PORT)
                };
                let mut edge = begin(&mut Proxy::Tidegate.command(&setup)?, "edge")?;
                edge.wait_for_port(port, START)?;
                Ok(vec![edge])
            }
            Self::Tidegate => {
                let setup = setup(PORT);
                let program = Proxy::Tidegate.program()?;
                let made = shell::output(Command::new(&program).args(["agent", "token"]))?;
                let word = |name: &str| {
                    let line = made.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|word| word.trim().to_owned())
                        .with_context(|| format!("no {name} in what `agent token` prints"))
                };
                let (token, hash) = (word("token ")?, word("tokenHash")?);
                let mut command = Proxy::Tidegate.command(&setup)?;
                fs::write(own.join("objects/agent.yaml"), objects(&hash))
                    .context("write the agent's objects")?;
                let mut edge = begin(&mut command, "edge")?;
                edge.wait_for_port(port, START)?;
                let ca = own.join("state/ca/ca.crt");
                wait_for_file(&ca)?;
                let mut command = Command::new(program);
                command
                    .args(["agent", "--edge", &format!("https://localhost:{port}")])
                    .args([
                        "--agent",
                        "default/bench",
                        "--proxy",
                        "none",
                        "--status",
                        "off",
                    ])
                    .arg("--ca-file")
                    .arg(ca)
                    .env("TIDEGATE_AGENT_TOKEN", token);
                let agent = begin(&mut command, "agent")?;
                Ok(vec![edge, agent])
            }
            Self::Rathole(front) => {
                let program = tools::rathole()?;
                let (entry, control) = (port + 1, port + 2);
                shell::output(
                    Command::new("openssl")
                        .args(["pkcs12", "-export", "-passout", "pass:bench", "-out"])
                        .arg(own.join("identity.pfx"))
                        .arg("-inkey")
                        .arg(&key)
                        .arg("-in")
                        .arg(&certificate),
                )?;
                let [server, client] = rathole(&certificate, own, entry, control);
                let write = |name: &str, text: &str| -> Result<PathBuf> {
                    let path = own.join(name);
                    fs::write(&path, text).with_context(|| format!("write {name}"))?;
                    Ok(path)
                };
                let server = write("server.toml", &server)?;
                let client = write("client.toml", &client)?;
                let command = |side: &str, config: &Path| {
                    let mut command = Command::new(&program);
                    command.arg(side).arg(config).env("RUST_LOG", "warn");
                    command
                };
                let mut server = begin(&mut command("--server", &server), "server")?;
                server.wait_for_port(control, START)?;
                let client = begin(&mut command("--client", &client), "client")?;
                server.wait_for_port(entry, START)?;
                let setup = Setup {
                    hosts: &hosts,
                    ..setup(entry)
                };
                let mut front = begin(&mut front.command(&setup)?, "front")?;
                front.wait_for_port(port, START)?;
                Ok(vec![front, server, client])
            }
        }
    }
}

/// Waits until visitors get through.
fn way_is_open(port: u16, workload: &Workload) -> Result<()> {
    // What each origin answers by itself: the echo goes over to WebSocket, on which curl then waits for its time.
    let (args, expected): (&[&str], _) = match workload.origin {
        OriginKind::Files => return serves(port, HOST),
        OriginKind::Sink => (&["-X", "POST", "-d", "x"], "204"),
        OriginKind::Echo => (
            &[
                "--http1.1",
                "-HConnection: Upgrade",
                "-HUpgrade: websocket",
                "-HSec-WebSocket-Version: 13",
                "-HSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            ],
            "101",
        ),
    };
    let deadline = Instant::now() + START;
    loop {
        let resolve = format!("{HOST}:{port}:127.0.0.1");
        let mut curl = Command::new("curl");
        curl.args(["-sk", "--max-time", "3", "-o", "/dev/null"])
            .args(["-w", "%{http_code}", "--resolve", &resolve])
            .args(args)
            .arg(format!("https://{HOST}:{port}/"));
        let output = curl.output().context("run curl")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said == expected {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("answers {said:?} where {expected:?} was expected");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn wait_for_file(path: &Path) -> Result<()> {
    let deadline = Instant::now() + START;
    while !path.is_file() {
        if Instant::now() > deadline {
            bail!("no {} after {START:?}", path.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A route with the certificate of all, which leads to the agent, and a name for the agent to dial.
fn objects(hash: &str) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TunnelAgent\nmetadata: {{name: bench}}\nspec:\n\
         \x20 credential: {{secretName: bench-agent}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: bench-agent}}\nstringData: {{tokenHash: '{hash}'}}\n---\n\
         apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {{name: app}}\nspec:\n\
         \x20 hostnames: [{HOST}]\n\x20 tls: {{secretName: bench-tls}}\n\x20 rules:\n\
         \x20 - backends: [{{agent: {{name: bench, target: 'http://127.0.0.1:{PORT}'}}}}]\n---\n\
         apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {{name: dial}}\nspec:\n\
         \x20 hostnames: [localhost]\n\x20 rules:\n\x20 - backends: [{{address: '127.0.0.1:9'}}]\n"
    )
}

/// Configuration of server and client. TLS on the way, as between edge and agent; `TCP_NODELAY` is the default.
fn rathole(certificate: &Path, own: &Path, entry: u16, control: u16) -> [String; 2] {
    let server = format!(
        "[server]\nbind_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n\
         [server.transport]\ntype = \"tls\"\n\
         [server.transport.tls]\npkcs12 = \"{}\"\npkcs12_password = \"bench\"\n\
         [server.services.app]\nbind_addr = \"127.0.0.1:{entry}\"\n",
        own.join("identity.pfx").display()
    );
    let client = format!(
        "[client]\nremote_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n\
         [client.transport]\ntype = \"tls\"\n\
         [client.transport.tls]\ntrusted_root = \"{}\"\nhostname = \"{HOST}\"\n\
         [client.services.app]\nlocal_addr = \"127.0.0.1:{PORT}\"\n",
        certificate.display()
    );
    [server, client]
}

/// The section, with its tables.
pub(super) fn section(tables: &[Table], rounds: usize) -> Result<String> {
    let version = Proxy::Tidegate.version()?;
    let fronts = [Proxy::Nginx, Proxy::Haproxy].map(|it| {
        let version = it.version().unwrap_or_default();
        format!("{} {version}", it.name())
    });
    let mut text = format!(
        "{HEADING}\n\
         Written by `cargo xtask bench --only tunnel` too; median of {rounds} interleaved rounds.\n\
         tidegate {version} (`tidegate run` and `tidegate agent`), rathole {} with TLS behind {}.\n\n\
         - Everything of a way (edge and agent; front, rathole's server and client) shares one core, client and origin the\n\
         \x20 other. Both sides of a tunnel are TLS on loopback; in the field there is a network between them.\n\
         - **CPU** is that of all programs of the way: *edge side* is where visitors come to (with rathole: the front and the\n\
         \x20 server), *agent side* is beside the origin.\n\
         - The first row is the same edge without a tunnel: what is above it is what the tunnel costs.\n\
         - rathole carries bytes and knows no HTTP: the front in front of it does what the edge does, and one connection of\n\
         \x20 its own for each of the front's connections does what a stream of the link does.\n",
        tools::RATHOLE,
        fronts.join(" or "),
    );
    for table in tables {
        text.push_str(&shown(table));
    }
    Ok(text)
}

fn shown(table: &Table) -> String {
    let mut text = format!("\n### {}\n\n", table.title);
    text.push_str(match table.about {
        About::Requests => {
            "| way | CPU µs per request | edge side | agent side | requests/s | p50 ms | p99 ms | failed |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        }
        About::Bytes(_) => {
            "| way | CPU s per GB | edge side | agent side | MB/s | RSS MiB: edge side | agent side | failed |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        }
        About::Streams => {
            "| way | idle MiB: edge side | agent side | KiB per stream: edge side | agent side | not opened |\n\
             | --- | ---: | ---: | ---: | ---: | ---: |\n"
        }
    });
    for row in &table.rows {
        text.push_str(&line(table.about, row));
    }
    if let (About::Requests, [direct, tunnel, ..]) = (table.about, &table.rows[..]) {
        let added = |pick: fn(&Sample) -> f64| {
            (median(&tunnel.samples, pick) - median(&direct.samples, pick)) / 1e3
        };
        let _ = write!(
            text,
            "\nThe tunnel adds {:.2} ms to the median and {:.2} ms to the 99th percentile.\n",
            added(|it| it.p50_us),
            added(|it| it.p99_us)
        );
    }
    text
}

fn line(about: About, row: &Row) -> String {
    // Whoever has no agent has only the first side.
    let last = match row.way {
        Way::Direct => row.rss_kib.len(),
        _ => row.rss_kib.len() - 1,
    };
    let sides = |pick: &dyn Fn(&Sample, usize) -> f64| {
        let side = |parts: std::ops::Range<usize>| {
            median(&row.samples, |sample| {
                parts.clone().map(|part| pick(sample, part)).sum()
            })
        };
        (side(0..last), side(last..row.rss_kib.len()))
    };
    let failed: u64 = row.samples.iter().map(|sample| sample.failed).sum();
    let name = row.way.name();
    let second = |value: f64| match row.way {
        Way::Direct => "–".to_owned(),
        _ => format!("{value:.1}"),
    };
    let cpu = sides(&|sample, part| sample.parts[part].cpu_us);
    match about {
        About::Requests => format!(
            "| {name} | {:.1} | {:.1} | {} | {:.0} | {:.2} | {:.2} | {failed} |\n",
            median(&row.samples, |sample| sample.cpu_us),
            cpu.0,
            second(cpu.1),
            median(&row.samples, |sample| sample.per_second),
            median(&row.samples, |sample| sample.p50_us) / 1e3,
            median(&row.samples, |sample| sample.p99_us) / 1e3,
        ),
        About::Bytes(length) => {
            let per_gb = GB / f64::from(length) / 1e6;
            let rss = sides(&|sample, part| sample.parts[part].rss_kib / 1024.0);
            format!(
                "| {name} | {:.2} | {:.2} | {} | {:.0} | {:.0} | {} | {failed} |\n",
                median(&row.samples, |sample| sample.cpu_us) * per_gb,
                cpu.0 * per_gb,
                match row.way {
                    Way::Direct => "–".to_owned(),
                    _ => format!("{:.2}", cpu.1 * per_gb),
                },
                median(&row.samples, |sample| sample.per_second) * f64::from(length) / 1e6,
                rss.0,
                second(rss.1),
            )
        }
        About::Streams => {
            #[allow(clippy::cast_precision_loss, reason = "KiB far below 2^52")]
            let idle = |parts: std::ops::Range<usize>| {
                row.rss_kib[parts].iter().sum::<u64>() as f64 / 1024.0
            };
            let rss = sides(&|sample, part| sample.parts[part].rss_kib);
            format!(
                "| {name} | {:.1} | {} | {:.1} | {} | {failed} |\n",
                idle(0..last),
                second(idle(last..row.rss_kib.len())),
                rss.0,
                second(rss.1),
            )
        }
    }
}
