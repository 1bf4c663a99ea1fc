//! Ports of the edge while somebody floods them: visitors from several addresses ask on, and each gets its answers.
//!
//! ```text
//! alice, bob, carol ─┐ TCP and UDP, over and over
//! mallory ───────────┤ datagrams from many ports, connections that are kept
//!                hub: the edge, port 7777 ═ router (NAT) ═ home: the agent, two echoes on its loopback
//! ```
//!
//! What mallory sends is bounded in number, and stays in the namespaces that the test made.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::nat::{DIAL, Home, agent};
use crate::support::edge::PATIENCE;
use crate::support::netns::{Machine, Network};
use crate::support::{Edge, Program, breathe, eventually, missing, route, secret};

const PORT: u16 = 7777;
/// Connections of one address, and UDP clients of one: what the edge is started with.
const OF_CLIENT: usize = 64;
/// Times that mallory comes.
const WAVES: usize = 60;
/// Sockets of mallory's in a wave, each a client that the edge has not seen.
const SOCKETS: usize = 100;
/// Datagrams of each of them.
const DATAGRAMS: usize = 4;
/// Connections that mallory tries in a wave.
const CONNECTIONS: usize = 20;
/// Nobody sends more often than this; three of them are sixty questions a second, and as many over UDP.
const BREATHS: usize = 2;
/// A datagram that got lost is asked again after so long, as every resolver does.
const AGAIN: Duration = Duration::from_secs(1);
const TRIES: usize = 10;
/// What the edge may hold in memory more than before the flood: 64 kept connections with their buffers, and as many
/// clients of datagrams.
const MORE: u64 = 32 << 20;

fn edge_port() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Network::V4), PORT)
}

/// Services that send back what they get.
fn echoes() -> (SocketAddr, SocketAddr) {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let all = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(Shutdown::Write);
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..length], from);
        }
    });
    all
}

/// An edge with one number for both ports.
fn edge(tcp: SocketAddr, udp: SocketAddr, hash: &str) -> Edge {
    let agent = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TunnelAgent\nmetadata: {{name: homelab}}\nspec:\n  \
         credential: {{secretName: homelab-agent}}\n  mappings:\n  \
         - {{name: tcp, port: {PORT}, target: 'tcp://{tcp}'}}\n  \
         - {{name: udp, port: {PORT}, target: 'udp://{udp}'}}\n"
    );
    Edge::builder()
        .ports(80, 443)
        .arg("--https")
        .arg(&format!("{}:443", Network::V4))
        .args(&["--tunnel-ports", &PORT.to_string()])
        .args(&["--max-connections-per-client", &OF_CLIENT.to_string()])
        .object(agent)
        .object(secret("homelab-agent", "Opaque", &[("tokenHash", hash)]))
        .object(route("dial", DIAL, "127.0.0.1:9"))
        .start()
}

/// One question by TCP, over a connection of its own.
fn ask_tcp(question: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(edge_port())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(question.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Somebody's socket for datagrams, who asks again where no answer comes.
struct Asker {
    socket: UdpSocket,
    lost: usize,
}

impl Asker {
    fn new() -> Self {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(edge_port()).unwrap();
        socket.set_read_timeout(Some(AGAIN)).unwrap();
        Self { socket, lost: 0 }
    }

    fn ask(&mut self, question: &str) -> std::io::Result<()> {
        let mut buffer = [0; 2048];
        let mut last = std::io::ErrorKind::TimedOut.into();
        for _ in 0..TRIES {
            self.socket.send(question.as_bytes())?;
            // The answer to an earlier question that was given up may come first.
            loop {
                match self.socket.recv(&mut buffer) {
                    Ok(length) if buffer[..length] == *question.as_bytes() => return Ok(()),
                    Ok(_) => {}
                    Err(error) => {
                        last = error;
                        break;
                    }
                }
            }
            self.lost += 1;
        }
        Err(last)
    }
}

/// What a visitor has seen.
#[derive(Default)]
struct Seen {
    asked: usize,
    lost: usize,
    slowest: Duration,
    failed: Vec<String>,
}

fn visit(name: &str, over: &AtomicBool, rounds: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    let mut asker = Asker::new();
    while !over.load(Ordering::Relaxed) {
        let question = format!("{name} asks {}", seen.asked);
        let begun = Instant::now();
        match ask_tcp(&question) {
            Ok(answer) if answer == question => {}
            other => seen.failed.push(format!("TCP {question}: {other:?}")),
        }
        if let Err(error) = asker.ask(&question) {
            seen.failed.push(format!("UDP {question}: {error}"));
        }
        seen.slowest = seen.slowest.max(begun.elapsed());
        seen.asked += 1;
        rounds.fetch_add(1, Ordering::Relaxed);
        for _ in 0..BREATHS {
            breathe();
        }
    }
    seen.lost = asker.lost;
    seen
}

/// Comes again and again; how many datagrams were sent, and how many connections are kept at the end.
fn flood() -> (usize, usize) {
    let mut sent = 0;
    let mut kept: Vec<TcpStream> = Vec::new();
    for _ in 0..WAVES {
        for _ in 0..SOCKETS {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..DATAGRAMS {
                sent += usize::from(socket.send_to(&[b'x'; 512], edge_port()).is_ok());
            }
        }
        for _ in 0..CONNECTIONS {
            if let Ok(mut stream) = TcpStream::connect(edge_port()) {
                // A refused one is reset as soon as this arrives, or before.
                let _ = stream.write_all(b"x");
                stream.set_nonblocking(true).unwrap();
                kept.push(stream);
            }
        }
        breathe();
        kept.retain_mut(is_open);
    }
    eventually("the others are sent away", PATIENCE, || {
        kept.retain_mut(is_open);
        match kept.len() {
            0..=OF_CLIENT => Ok(()),
            more => Err(format!("{more} are there")),
        }
    });
    (sent, kept.len())
}

fn is_open(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

fn metric(edge: &Edge, name: &str, protocol: &str, more: &str) -> u64 {
    let metrics = edge.admin("/metrics").unwrap();
    let lower = protocol.to_lowercase();
    let labels = format!(
        "{name}{{mapping=\"default/homelab:{lower}\",protocol=\"{protocol}\",port=\"{PORT}\"{more}}} "
    );
    let line = metrics.lines().find_map(|line| line.strip_prefix(&labels));
    line.map_or(0, |value| value.parse().unwrap())
}

fn refused(edge: &Edge, protocol: &str, reason: &str) -> u64 {
    let reason = format!(",reason=\"{reason}\"");
    metric(edge, "tidegate_port_refused_total", protocol, &reason)
}

fn resident(program: &Program, edge: &mut Edge) -> [u64; 2] {
    // The agent is what `ip netns exec` has become.
    [edge.program().resident_memory(), program.resident_memory()]
}

#[test]
fn visitors_of_ports_get_their_answers_while_somebody_floods_them() {
    if missing(&["iptables", "sysctl"]) {
        return;
    }
    Network::run(|network| {
        let names = ["alice", "bob", "carol"];
        let visitors: Vec<Machine> = names.iter().map(|name| network.machine(name)).collect();
        let mallory = network.machine("mallory");
        let home = Home::new(network, "-p tcp --dport 443").home;
        home.hosts(&[(DIAL, IpAddr::V4(Network::V4))]);
        let (tcp, udp) = home.inside(echoes);
        let (token, hash) = Edge::agent_token();
        let mut edge = edge(tcp, udp, &hash);
        let program = Program::start(&mut agent(&home, &edge, &token));
        eventually("the port is open", PATIENCE, || {
            match visitors[0].inside(|| ask_tcp("is it open")) {
                Ok(answer) if answer == "is it open" => Ok(()),
                other => Err(format!("{other:?}; {}\n{}", program.log(), edge.log())),
            }
        });

        let (over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
        let more = |wanted: usize| {
            let before = rounds.load(Ordering::Relaxed);
            eventually("visitors ask on", PATIENCE, || {
                match rounds.load(Ordering::Relaxed) - before {
                    made if made >= wanted => Ok(()),
                    made => Err(format!("{made} rounds")),
                }
            });
        };
        let (seen, sent, kept, before, during) = thread::scope(|scope| {
            let (over, rounds) = (&over, &rounds);
            let asking: Vec<_> = names
                .iter()
                .zip(&visitors)
                .map(|(name, machine)| {
                    scope.spawn(move || machine.inside(|| visit(name, over, rounds)))
                })
                .collect();
            more(100);
            let before = resident(&program, &mut edge);
            let (sent, kept) = scope.spawn(|| mallory.inside(flood)).join().unwrap();
            let during = resident(&program, &mut edge);
            // Whom the flood has pushed aside would notice now.
            more(100);
            over.store(true, Ordering::Relaxed);
            let seen: Vec<Seen> = asking.into_iter().map(|it| it.join().unwrap()).collect();
            (seen, sent, kept, before, during)
        });

        for (name, seen) in names.iter().zip(&seen) {
            println!(
                "{name}: {} questions by TCP and as many by UDP, {} datagrams asked again, the slowest pair {:?}",
                seen.asked, seen.lost, seen.slowest
            );
            assert!(seen.failed.is_empty(), "{name}: {:?}", seen.failed);
        }
        let flooded = refused(&edge, "UDP", "Flood");
        let clients = refused(&edge, "UDP", "TooManyConnectionsOfClient");
        let connections = refused(&edge, "TCP", "TooManyConnectionsOfClient");
        println!(
            "mallory: {sent} datagrams of {} clients, {} connections of which {kept} were kept; refused: {flooded} as a \
             flood, {clients} clients and {connections} connections above {OF_CLIENT}",
            WAVES * SOCKETS,
            WAVES * CONNECTIONS,
        );
        println!("memory of edge and agent: {before:?} before, {during:?} after, in bytes");
        assert_eq!(sent, WAVES * SOCKETS * DATAGRAMS);
        assert!(flooded > 0 && clients > 0 && connections > 0);
        assert_eq!(
            u64::try_from(kept).unwrap() + connections,
            u64::try_from(WAVES * CONNECTIONS).unwrap(),
            "each connection was kept or refused"
        );
        for (who, (before, during)) in ["the edge", "the agent"]
            .iter()
            .zip(before.iter().zip(during))
        {
            assert!(
                during < before + MORE,
                "{who} grew from {before} to {during}"
            );
        }
        eventually("the kept connections are gone", PATIENCE, || {
            match metric(&edge, "tidegate_port_sessions_open", "TCP", "") {
                0 => Ok(()),
                open => Err(format!("{open} are open")),
            }
        });
        for log in [program.log(), edge.log()] {
            assert!(!log.contains("panicked"), "{log}");
        }
    });
}
