//! Ports of the edge that lead to services behind a real agent: connections that end one direction at a time, a real
//! tracker's datagrams, and what becomes of ports that cannot be opened or are taken away.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::support::edge::PATIENCE;
use crate::support::program::run;
use crate::support::trackers::{Settings, Torrust};
use crate::support::{Edge, Origin, Program, eventually, ports, route, secret};
use crate::trackers::udp::client::{Answer, Client};

const TORRENT: &str = "86737a4c940e74d53b44f2c3ee5f1eb0a5ac1d11";

/// The TunnelAgent `default/homelab` with these mappings.
fn homelab(mappings: &[String], allowed: &str) -> String {
    let mut text = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TunnelAgent\nmetadata: {{name: homelab}}\nspec:\n  \
         credential: {{secretName: homelab-agent}}\n  allowedPorts: ['{allowed}']\n  mappings:\n"
    );
    for mapping in mappings {
        writeln!(text, "  - {{{mapping}}}").unwrap();
    }
    text
}

fn edge(object: String, hash: &str, allowed: &str, drain: &str) -> Edge {
    Edge::builder()
        .arg("--tunnel-ports")
        .arg(allowed)
        .arg("--drain-timeout")
        .arg(drain)
        .object(object)
        .object(secret("homelab-agent", "Opaque", &[("tokenHash", hash)]))
        .object(route("dial", "localhost", "127.0.0.1:9"))
        .start()
}

fn agent(edge: &Edge, token: &str, more: &[&str]) -> Program {
    Program::start(
        Edge::command()
            .args([
                "agent",
                "--edge",
                &format!("https://localhost:{}", edge.https),
            ])
            .args(["--agent", "default/homelab", "--proxy", "none"])
            .arg("--ca-file")
            .arg(edge.ca_file())
            .args(["--status", "off"])
            .args(more)
            .env("TIDEGATE_AGENT_TOKEN", token),
    )
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A server that reads to the end before it says what it has read.
fn patient_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).is_ok() {
                    let line = all.iter().position(|byte| *byte == b'\n').unwrap_or(0);
                    let header = String::from_utf8_lossy(&all[..line]).into_owned();
                    let _ = write!(stream, "{header}|{}", all.len() - line);
                }
            });
        }
    });
    address
}

/// What `tidegate status` says once it says all of this.
#[track_caller]
fn wait_for_status(edge: &Edge, expected: &[&str]) -> String {
    eventually("the status", PATIENCE, || {
        let (_, said) = run(Edge::command()
            .arg("status")
            .arg(edge.objects())
            .arg("--state-dir")
            .arg(edge.folder().join("state")));
        match expected.iter().find(|text| !said.contains(**text)) {
            None => Ok(said),
            Some(missing) => Err(format!("no {missing:?} in\n{said}")),
        }
    })
}

/// Sends and ends; what comes back.
#[track_caller]
fn ask(port: u16, bytes: usize) -> (SocketAddr, String) {
    eventually("an answer", PATIENCE, || {
        let failed = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(local(port)).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.write_all(&vec![b'x'; bytes]).map_err(failed)?;
        stream.shutdown(Shutdown::Write).map_err(failed)?;
        let mut back = String::new();
        stream.read_to_string(&mut back).map_err(failed)?;
        if back.is_empty() {
            return Err("nothing".to_owned());
        }
        Ok((stream.local_addr().unwrap(), back))
    })
}

#[test]
fn connections_to_a_port_reach_the_service_and_ports_come_and_go() {
    let server = patient_server();
    let [mapped, held, wished, refused] = [(); 4].map(|()| ports::free());
    let (token, hash) = Edge::agent_token();
    let mapping = |name: &str, port: u16, more: &str| {
        format!("name: {name}, port: {port}, target: 'tcp://{server}'{more}")
    };
    let objects = [
        mapping("mapped", mapped, ", proxyProtocol: v1"),
        mapping("held", held, ""),
        mapping("refused", refused, ""),
    ];
    let holder = TcpListener::bind(local(held)).unwrap();
    let edge = edge(
        homelab(&objects, "18000-32000"),
        &hash,
        &format!("{mapped},{held}/tcp,{wished}"),
        "1s",
    );
    let agent = agent(
        &edge,
        &token,
        &[
            "--expose",
            &format!("{wished}=tcp://{server}"),
            "--expose",
            &format!("{mapped}=tcp://{server}"),
        ],
    );
    // More than all buffers on the way, and no answer before the end.
    let (visitor, said) = ask(mapped, 5 << 20);
    let header = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {mapped}\r",
        visitor.port()
    );
    assert_eq!(said, format!("{header}|{}", (5 << 20) + 1));
    println!("a service behind an agent was told: {header:?}");
    assert_eq!(ask(wished, 3).1, "|3");

    let said = wait_for_status(
        &edge,
        &[
            &format!("TCP {mapped} (mapped)"),
            &format!("TCP {wished} (tcp-{wished})"),
            "PortNotAllowed",
            &format!("another program has TCP port {held} at 127.0.0.1"),
        ],
    );
    assert!(!said.contains(&format!("TCP {refused} (")), "{said}");
    assert!(TcpStream::connect(local(refused)).is_err());
    eventually(
        "the agent hears that an object counts first",
        PATIENCE,
        || {
            let log = agent.log();
            if log.contains("PortConflict") {
                Ok(())
            } else {
                Err(log)
            }
        },
    );
    drop(holder);
    assert_eq!(ask(held, 1).1, "|1");

    // A mapping is taken away: its connections end within the time of a drain, those of others go on.
    let mut gone = TcpStream::connect(local(mapped)).unwrap();
    let mut stays = TcpStream::connect(local(held)).unwrap();
    for stream in [&mut gone, &mut stays] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"begun").unwrap();
    }
    edge.write("object-0.yaml", &homelab(&objects[1..2], "18000-32000"));
    // However it ends: the server has not answered.
    let mut rest = Vec::new();
    let _ = gone.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    stays.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    stays.read_to_string(&mut back).unwrap();
    assert_eq!(back, "|5");
    // Now nobody stands before the agent's own wish, which wants no header.
    eventually("the wish is served", PATIENCE, || match ask(mapped, 2).1 {
        said if said == "|2" => Ok(()),
        said => Err(said),
    });
    let log = edge.log();
    let line = format!("protocol=\"TCP\" port={held} ");
    assert!(log.contains(&line) && !log.contains(&token), "{log}");
}

/// Torrust binds a connection id to address and port of the client: each session must have a socket of its own.
#[test]
fn datagrams_of_two_clients_reach_a_tracker_behind_an_agent() {
    let behind = ports::free();
    let Some(tracker) = Torrust::start(Settings {
        udp: vec![local(behind)],
        ..Settings::default()
    }) else {
        return;
    };
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let echo_at = echo.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..length], from);
        }
    });
    let (port, second) = (ports::free(), ports::free());
    let (token, hash) = Edge::agent_token();
    let edge = edge(
        homelab(
            &[
                format!("name: tracker, port: {port}, target: 'udp://127.0.0.1:{behind}'"),
                format!("name: echo, port: {second}, target: 'udp://{echo_at}', proxyProtocol: v2"),
            ],
            "1",
        ),
        &hash,
        &format!("{port}/udp,{second}/udp"),
        "1s",
    );
    let agent = agent(&edge, &token, &[]);
    wait_for_status(&edge, &[&format!("UDP {port} (tracker)")]);
    let (mut alice, mut bob) = (Client::of(local(port)), Client::of(local(port)));
    // In turn, so that both sessions are there at once.
    let (a, b) = (alice.connect(), bob.connect());
    assert_ne!(a, b);
    let Answer::Announced(seeders, ..) = alice.announce(a, TORRENT, 0) else {
        panic!("no announce; agent:\n{}", agent.log());
    };
    assert_eq!(seeders, 1);
    let Answer::Announced(_, leechers, peers) = bob.announce(b, TORRENT, 7) else {
        panic!("no announce; agent:\n{}", agent.log());
    };
    assert_eq!((leechers, peers.len()), (1, 1));
    // An id that was given to another session is refused by the tracker.
    assert!(matches!(bob.announce(a, TORRENT, 7), Answer::Error(_)));
    assert_eq!(tracker.peers(TORRENT).len(), 2);

    // The largest datagram that fits beside a header, which says who asks.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(local(second)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..=255).cycle().take(65_507 - 28).collect();
    socket.send(&sent).unwrap();
    let mut back = vec![0; 1 << 16];
    let length = socket.recv(&mut back).unwrap();
    assert!(back[28..length] == sent);
    let own = socket.local_addr().unwrap().port();
    assert_eq!(back[12..16], [0x21, 0x12, 0, 12]);
    assert_eq!(back[16..24], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(
        back[24..28],
        [own.to_be_bytes(), second.to_be_bytes()].concat()
    );
    socket.send(&[]).unwrap();
    assert_eq!(
        socket.recv(&mut back).unwrap(),
        28,
        "an empty datagram is one"
    );
    let metrics = edge.admin("/metrics").unwrap();
    let open = format!(
        "tidegate_port_sessions_open{{mapping=\"default/homelab:tracker\",protocol=\"UDP\",port=\"{port}\"}} 2"
    );
    assert!(metrics.contains(&open), "{metrics}");
}

#[test]
fn ports_outlive_the_edge_that_is_replaced() {
    let server = patient_server();
    let (port, web) = (ports::free(), Origin::text("here"));
    let (token, hash) = Edge::agent_token();
    let object = homelab(
        &[format!("name: app, port: {port}, target: 'tcp://{server}'")],
        "1",
    );
    let mut edge = edge(object, &hash, &port.to_string(), "60s");
    edge.write("web.yaml", &route("web", "app.test", web.address()));
    let _agent = agent(&edge, &token, &[]);
    assert_eq!(ask(port, 1).1, "|1");
    let mut running = TcpStream::connect(local(port)).unwrap();
    running.set_read_timeout(Some(PATIENCE)).unwrap();
    running.write_all(b"before").unwrap();
    edge.program().signal("USR2");
    eventually("the new process listens beside", PATIENCE, || {
        let log = edge.log();
        let listening = log.matches("listening for an agent").count();
        if listening == 2 { Ok(()) } else { Err(log) }
    });
    // What began in the old process ends there.
    running.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    running.read_to_string(&mut back).unwrap();
    assert_eq!(back, "|6");
    let status = edge.program().wait(PATIENCE);
    assert!(status.success(), "{status}: {}", edge.log());
    assert_eq!(ask(port, 2).1, "|2");
}
