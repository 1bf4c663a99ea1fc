//! `kill -9` at every step of an order: one certificate, no order wasted.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::authority::{Authority, Behaviour};
use super::tap::{Exchange, Tap, When};
use super::wait_for_trust;
use crate::support::{Edge, breathe, ports, route};

fn calm() -> Option<(Authority, Tap)> {
    let authority = Authority::start(&Behaviour::calm())?;
    let tap = Tap::start(&authority);
    Some((authority, tap))
}

fn edge(authority: &Authority, tap: &Tap, (http, https): (u16, u16)) -> Edge {
    authority
        .edge()
        .ports(http, https)
        .object(Authority::issuer_at(
            "tapped",
            tap.port,
            "  default: true\n",
        ))
        .start()
}

fn kill(pid: u32) {
    let status = std::process::Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// The network between the authority and the edge. While nobody listens, it tries again: as when packets
/// to a machine that is starting again are lost and sent once more.
struct Network {
    /// Lets nothing through.
    closed: Arc<AtomicBool>,
    /// The edge's ports.
    edge: (u16, u16),
}

impl Network {
    fn start(authority: &Authority) -> Self {
        let closed = Arc::new(AtomicBool::new(false));
        let edge = (ports::free(), ports::free());
        for (from, to) in [(authority.http, edge.0), (authority.https, edge.1)] {
            let listener = TcpListener::bind(("127.0.0.1", from)).unwrap();
            let closed = Arc::clone(&closed);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let closed = Arc::clone(&closed);
                    std::thread::spawn(move || carry(&stream.unwrap(), to, &closed));
                }
            });
        }
        Self { closed, edge }
    }
}

fn carry(client: &TcpStream, edge: u16, closed: &AtomicBool) {
    let server = loop {
        if !closed.load(Ordering::SeqCst)
            && let Ok(server) = TcpStream::connect(("127.0.0.1", edge))
        {
            break server;
        }
        breathe();
    };
    // Either side may break off at any time.
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let mut buffer = [0; 4096];
        while let Ok(length) = from.read(&mut buffer)
            && length > 0
            && to.write_all(&buffer[..length]).is_ok()
        {}
        let _ = to.shutdown(Shutdown::Write);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
}

/// Where to kill.
struct Kill {
    index: usize,
    when: When,
    /// Whether the authority is told to look there.
    told: bool,
}

/// What became of one kill.
struct Outcome {
    at: String,
    orders: usize,
    certificates: usize,
}

fn kill_at(authority: &Authority, tap: &Tap, network: &Network, at: &Kill, name: &str) -> Outcome {
    let mut edge = edge(authority, tap, network.edge);
    tap.clear();
    let before = authority.orders();
    let pid = edge.program().pid();
    if at.told {
        // It looks at once; how far it gets before the kill must not be chance.
        let closed = Arc::clone(&network.closed);
        tap.act_at(at.index, When::Before, move || {
            closed.store(true, Ordering::SeqCst);
        });
    }
    tap.act_at(at.index, at.when, move || kill(pid));
    let host = format!("{name}.example.com");
    edge.write("app.yaml", &route("app", &host, "127.0.0.1:9"));
    edge.program().wait(super::ORDER);
    let exchanges = tap.exchanges();
    let text = exchanges.get(at.index).map(|exchange: &Exchange| {
        let kind = exchange.path.split('/').nth(1).unwrap_or_default();
        format!("{:?} {} {kind}", at.when, exchange.method)
    });
    network.closed.store(false, Ordering::SeqCst);
    edge.start_again();
    wait_for_trust(&edge, &authority.root(), &host);
    Outcome {
        at: text.unwrap_or_default(),
        // A killed client takes the tap's note of the exchange with it.
        orders: authority.orders() - before,
        certificates: tap.distinct("certZ", 200),
    }
}

#[test]
fn a_kill_at_any_step_costs_no_order() {
    let Some((authority, tap)) = calm() else {
        return;
    };
    let network = Network::start(&authority);
    // Undisturbed, to learn the steps.
    let undisturbed = edge(&authority, &tap, network.edge);
    undisturbed.write("app.yaml", &route("app", "calm.example.com", "127.0.0.1:9"));
    wait_for_trust(&undisturbed, &authority.root(), "calm.example.com");
    let steps: Vec<Exchange> = tap.exchanges();
    drop(undisturbed);
    assert!(steps.len() > 8, "{steps:?}");
    // Polls repeat the same step; each kind of exchange is met once, and what changes something twice.
    let mut seen = Vec::new();
    let mut kills = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let kind = (
            step.method.clone(),
            step.path.split('/').nth(1).map(str::to_owned),
        );
        if seen.contains(&kind) {
            continue;
        }
        seen.push(kind);
        let told = step.path.contains("chalZ");
        let when = When::After;
        kills.push(Kill { index, when, told });
        if step.path.contains("order-plz") || step.path.contains("finalize-order") {
            let when = When::Before;
            kills.push(Kill { index, when, told });
        }
    }
    assert!(kills.iter().any(|kill| kill.told), "{steps:?}");
    let mut table = String::new();
    let mut wasted = Vec::new();
    for (number, at) in kills.iter().enumerate() {
        let outcome = kill_at(&authority, &tap, &network, at, &format!("kill{number}"));
        writeln!(
            table,
            "{:<28} orders {} certificates {}",
            outcome.at, outcome.orders, outcome.certificates
        )
        .unwrap();
        if outcome.certificates != 1 || outcome.orders != 1 {
            wasted.push(outcome.at);
        }
    }
    eprintln!("{table}");
    assert!(wasted.is_empty(), "wasted at {wasted:?}:\n{table}");
}

/// Kills the edge when the authority has made an order for another host and its answer is on the way.
/// How many orders that host then took.
fn lose_the_order(edge: &mut Edge, authority: &Authority, tap: &Tap, host: &str) -> usize {
    tap.clear();
    let pid = edge.program().pid();
    tap.act_on("order-plz", When::After, move || kill(pid));
    edge.write("lost.yaml", &route("lost", host, "127.0.0.1:9"));
    edge.program().wait(super::ORDER);
    edge.start_again();
    wait_for_trust(edge, &authority.root(), host);
    tap.count("order-plz", 201)
}

#[test]
fn a_lost_order_is_found_among_many() {
    let Some((authority, tap)) = calm() else {
        return;
    };
    let mut edge = edge(&authority, &tap, (authority.http, authority.https));
    // A page of Pebble's list holds three.
    for number in 0..4 {
        let (name, host) = (
            format!("app{number}"),
            format!("app{number}.many.example.com"),
        );
        edge.write(&format!("{name}.yaml"), &route(&name, &host, "127.0.0.1:9"));
        wait_for_trust(&edge, &authority.root(), &host);
    }
    let orders = lose_the_order(&mut edge, &authority, &tap, "lost.many.example.com");
    assert_eq!(orders, 1, "log:\n{}", edge.log());
    let pages = tap.distinct("list-orderz", 200);
    assert!(pages > 1, "{:?}", tap.exchanges());
}

#[test]
fn an_authority_that_lists_no_orders_is_asked_for_another() {
    let Some((authority, tap)) = calm() else {
        return;
    };
    let mut edge = edge(&authority, &tap, (authority.http, authority.https));
    tap.hide("list-orderz");
    let orders = lose_the_order(&mut edge, &authority, &tap, "lost.unlisted.example.com");
    assert_eq!(orders, 2, "log:\n{}", edge.log());
}
