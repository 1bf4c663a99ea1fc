//! `cargo xtask bench`: Tidegate beside other proxies, as equals, on this machine.
//!
//! ```text
//! for each workload:  start the origin and every proxy   (proxies on one core; origin, client on another)
//!   warm up, then rounds: proxy a, b, c, … a, b, c, …    (interleaved: noise hits all alike)
//!   median of the rounds ─► table ─► docs/benchmarks.md
//! ```
//!
//! Loopback only, bounded counts. What is compared is CPU time per request and memory: both belong to
//! the proxy alone. Requests per second depend on the client and the origin too.

mod load;
mod process;
mod proxies;
mod report;
mod tunnel;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{shell, tools};
use load::{Kind, Sample, Target};
use process::Running;
use proxies::{Proxy, Setup};

const HELP: &str = "\
usage: cargo xtask bench [--quick] [--only WORKLOAD,…] [--proxies NAME,…] [--rounds N]

  --quick      2 rounds with small counts; prints, but leaves docs/benchmarks.md alone
  --only       workloads: small-h1 small-h2 large-h1 large-h2 upload handshake websocket idle
               routes-1000 routes-10000 announce announce-new
               tunnel-small-h1 tunnel-small-h2 tunnel-latency tunnel-large tunnel-upload tunnel-streams
               or `tunnel` for all of a tunnel, which writes that section of docs/benchmarks.md
  --proxies    tidegate nginx haproxy caddy traefik
  --rounds     rounds to take the median of (default 5)
";

/// Ports of 127.0.0.1: the origin's, then one for each proxy.
const FIRST_PORT: u16 = 17_400;
const START: Duration = Duration::from_mins(2);

/// As libtorrent writes it.
const ANNOUNCE: &str = "/announce?info_hash=%86zsL%94%0et%d5B%f2%19%8c%a7O%f1%09%b8%8a%5d%2e\
    &peer_id=-LT2010-d(UfWmCdvZLH&port=6881&uploaded=0&downloaded=0&left=640000&corrupt=0&key=4A7C3D21\
    &event=started&numwant=200&compact=1&no_peer_id=1&supportcrypto=1&redundant=0";

struct Options {
    quick: bool,
    rounds: usize,
    only: Option<Vec<String>>,
    proxies: Vec<Proxy>,
}

/// What is measured.
struct Workload {
    name: &'static str,
    title: &'static str,
    kind: Kind,
    origin: OriginKind,
    hosts: usize,
    /// The routes say that they lead to a tracker.
    tracker: bool,
}

/// What answers behind the proxies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OriginKind {
    Files,
    Sink,
    Echo,
}

/// The samples of one proxy in one workload.
struct Row {
    proxy: Proxy,
    samples: Vec<Sample>,
    /// From start until the first right answer.
    start: Duration,
    /// Resident before the load, in KiB.
    rss_kib: u64,
}

/// One workload's rows.
struct Table {
    name: &'static str,
    title: &'static str,
    rows: Vec<Row>,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{HELP}");
        return Ok(());
    }
    let options = parse(args)?;
    tools::install("bench")?;
    let tunnels = tunnel::NAMES.iter().any(|name| options.wants(name));
    if tunnels {
        tools::rathole()?;
    }
    if tunnels || options.proxies.contains(&Proxy::Tidegate) {
        shell::run(&mut shell::cargo(&[
            "build",
            "--release",
            "--bin",
            "tidegate",
        ]))?;
    }
    let folder = shell::root().join("target/bench");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("clear the scratch folder")?;
    }
    std::fs::create_dir_all(&folder).context("create the scratch folder")?;
    certificate(&folder)?;
    let body = folder.join("10m");
    std::fs::write(&body, vec![b'x'; 10 << 20]).context("write the upload")?;

    let mut tables = Vec::new();
    for workload in workloads(options.quick, &body) {
        if options.wants(workload.name) {
            let table = measure(&workload, &options, &folder)
                .with_context(|| format!("workload {}", workload.name))?;
            print!("{}", report::table(&table));
            tables.push(table);
        }
    }
    let through = tunnel::run(&options, &folder, &body, |name| options.wants(name))?;
    if options.quick {
        return Ok(());
    }
    let path = shell::root().join("docs/benchmarks.md");
    let document = match &options.only {
        None => report::document(&tables, &options.proxies, options.rounds)? + "\n",
        // The rest stays as it was measured.
        Some(only) if *only == ["tunnel"] => {
            let old = std::fs::read_to_string(&path).context("read docs/benchmarks.md")?;
            let rest = old.split(tunnel::HEADING).next().unwrap_or_default();
            format!("{}\n\n", rest.trim_end())
        }
        Some(_) => return Ok(()),
    };
    let document = document + &tunnel::section(&through, options.rounds)?;
    std::fs::write(&path, document).with_context(|| format!("write {}", path.display()))?;
    println!("wrote docs/benchmarks.md");
    Ok(())
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        let wanted =
            |only: &String| only == name || (only == "tunnel" && tunnel::NAMES.contains(&name));
        self.only
            .as_ref()
            .is_none_or(|only| only.iter().any(wanted))
    }
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options {
        quick: false,
        rounds: 0,
        only: None,
        proxies: proxies::ALL.to_vec(),
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
            "--only" => options.only = Some(value()?.split(',').map(str::to_owned).collect()),
            "--proxies" => {
                options.proxies = value()?
                    .split(',')
                    .map(Proxy::parse)
                    .collect::<Result<_>>()?;
            }
            other => bail!("no option {other:?}\n\n{HELP}"),
        }
    }
    if options.rounds == 0 {
        options.rounds = if options.quick { 2 } else { 5 };
    }
    Ok(options)
}

fn workloads(quick: bool, body: &Path) -> Vec<Workload> {
    let scale = |count| load::scaled(quick, count);
    let h2load = load::by_h2load(quick);
    let files = |name, title, kind| Workload {
        name,
        title,
        kind,
        origin: OriginKind::Files,
        hosts: 1,
        tracker: false,
    };
    let routes = |name, title, hosts| Workload {
        hosts,
        ..files(
            name,
            title,
            h2load(
                false,
                16,
                16,
                if hosts > 1000 { 1500 } else { 6000 },
                "/1k",
                None,
            ),
        )
    };
    let idle = Kind::Idle {
        connections: if quick { 500 } else { 5000 },
    };
    vec![
        files(
            "small-h1",
            "1 KiB, HTTP/1.1, 32 kept connections",
            h2load(true, 32, 1, 12_000, "/1k", None),
        ),
        files(
            "small-h2",
            "1 KiB, HTTP/2, 16 connections of 16 streams",
            h2load(false, 16, 16, 12_000, "/1k", None),
        ),
        files(
            "large-h1",
            "1 MiB, HTTP/1.1, 8 connections",
            h2load(true, 8, 1, 300, "/1m", None),
        ),
        files(
            "large-h2",
            "1 MiB, HTTP/2, 4 connections of 4 streams",
            h2load(false, 4, 4, 300, "/1m", None),
        ),
        Workload {
            origin: OriginKind::Sink,
            ..files(
                "upload",
                "10 MiB upload, HTTP/1.1, 4 connections",
                h2load(true, 4, 1, 40, "/upload", Some(body)),
            )
        },
        files(
            "handshake",
            "1 KiB, a new TLS connection for each request, 8 at a time",
            Kind::Handshakes {
                count: scale(1200),
                path: "/1k",
                alpn: true,
            },
        ),
        Workload {
            origin: OriginKind::Echo,
            ..files(
                "websocket",
                "WebSocket echo of 128 bytes, 16 connections",
                Kind::WebSocket {
                    connections: 16,
                    count: scale(8000),
                },
            )
        },
        files("idle", "Idle TLS connections after one request each", idle),
        routes("routes-1000", "1 KiB, HTTP/2, 1,000 routes", 1000),
        routes("routes-10000", "1 KiB, HTTP/2, 10,000 routes", 10_000),
        Workload {
            tracker: true,
            ..files(
                "announce",
                "Announces to an HTTP tracker, HTTP/1.1, 32 kept connections",
                h2load(true, 32, 1, 12_000, ANNOUNCE, None),
            )
        },
        Workload {
            tracker: true,
            ..files(
                "announce-new",
                "Announces to an HTTP tracker, a new TLS connection each without ALPN, 8 at a time",
                Kind::Handshakes {
                    count: scale(1200),
                    path: ANNOUNCE,
                    alpn: false,
                },
            )
        },
    ]
}

fn measure(workload: &Workload, options: &Options, folder: &Path) -> Result<Table> {
    eprintln!("== {}", workload.title);
    // The proxies get a core for themselves where there are two; the origin shares the client's.
    let several = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    let (proxy_core, other_core) = if several {
        (Some(1), Some(0))
    } else {
        (None, None)
    };

    let origin_port = FIRST_PORT;
    let mut origin_command = match workload.origin {
        OriginKind::Files => proxies::origin(origin_port, &folder.join("origin"))?,
        OriginKind::Sink => load::peers_command(&["sink", &origin_port.to_string()]),
        OriginKind::Echo => load::peers_command(&["echo", &origin_port.to_string()]),
    };
    let mut origin = Running::start(&mut origin_command, other_core, &folder.join("origin.log"))?;
    origin.wait_for_port(origin_port, START)?;

    let hosts: Vec<String> = (0..workload.hosts)
        .map(|index| format!("h{index}.bench.test"))
        .collect();
    let host = hosts.last().context("a workload without hosts")?;
    let mut running = Vec::new();
    for (index, proxy) in (1..).zip(&options.proxies) {
        let port = FIRST_PORT + index;
        let own = folder.join(format!("{}-{}", workload.name, proxy.name()));
        let setup = Setup {
            port,
            origin: origin_port,
            hosts: &hosts,
            tracker: workload.tracker,
            certificate: &folder.join("certificate.pem"),
            key: &folder.join("key.pem"),
            folder: &own,
        };
        let mut command = proxy.command(&setup)?;
        let log = folder.join(format!("{}-{}.log", workload.name, proxy.name()));
        let mut process = Running::start(&mut command, proxy_core, &log)?;
        let began = Instant::now();
        process
            .wait_for_port(port, START)
            .and_then(|()| match workload.origin {
                OriginKind::Files => serves(port, host),
                _ => Ok(()),
            })
            .with_context(|| format!("{}; see {}", proxy.name(), log.display()))?;
        let start = began.elapsed();
        let rss_kib = process.rss_kib();
        let row = Row {
            proxy: *proxy,
            samples: Vec::new(),
            start,
            rss_kib,
        };
        running.push((process, port, row));
    }
    for round in 0..=options.rounds {
        for (process, port, row) in &mut running {
            let target = Target {
                port: *port,
                host,
                core: other_core,
                folder,
            };
            // Memory of idle connections is measured on fresh allocations: no warm-up.
            if round == 0 && matches!(workload.kind, Kind::Idle { .. }) {
                continue;
            }
            let sample = load::measure(std::slice::from_ref(&*process), &workload.kind, &target)
                .with_context(|| format!("load on {}", row.proxy.name()))?;
            if round > 0 {
                row.samples.push(sample);
            }
        }
        eprint!("{}", if round == 0 { "warm" } else { " ." });
        // Memory that a process keeps after the first time would hide what connections cost.
        if matches!(workload.kind, Kind::Idle { .. }) && round == 1 {
            break;
        }
    }
    eprintln!();
    let rows = running.into_iter().map(|(_, _, row)| row).collect();
    Ok(Table {
        name: workload.name,
        title: workload.title,
        rows,
    })
}

/// Waits for a right answer: listening is not yet serving.
fn serves(port: u16, host: &str) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        let resolve = format!("{host}:{port}:127.0.0.1");
        let mut curl = Command::new("curl");
        curl.args([
            "-sk",
            "--max-time",
            "20",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{size_download}",
        ])
        .args(["--resolve", &resolve, &format!("https://{host}:{port}/1k")]);
        let said = shell::output(&mut curl).unwrap_or_default();
        if said == "200 1024" {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("answers {said:?} where 200 and 1024 bytes were expected");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One P-256 certificate for everybody.
fn certificate(folder: &Path) -> Result<()> {
    shell::output(
        Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ])
            .args(["-days", "30", "-subj", "/CN=bench.test"])
            .args(["-addext", "subjectAltName=DNS:*.bench.test"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(folder.join("key.pem"))
            .arg("-out")
            .arg(folder.join("certificate.pem")),
    )
    .map(drop)
}
