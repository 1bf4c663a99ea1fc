//! Ports that lead to an agent: opened, kept from being opened, taken away.

use std::net::{Shutdown, TcpListener, UdpSocket};

use tidegate_model::{IpAccess, ListenError, MappedPort, PortId, PortSet, Transport};

use super::streams::{echoes, near_and_far_with};
use super::*;

const TCP: &str = "tidegate-tcp";

/// A number that nobody has at the moment, and its socket.
fn number() -> (u16, TcpListener) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

fn port(transport: Transport, number: u16) -> MappedPort {
    MappedPort {
        id: PortId { number, transport },
        route: RouteId::new("default", "homelab:port"),
        cluster: behind_agent(),
        access: None,
    }
}

/// Settings of an edge that may open these.
fn opening(allowed: &[String]) -> impl Fn(&mut Settings) {
    let allowed = PortSet::parse(allowed).unwrap();
    move |settings| {
        settings.tunnel_ports = allowed.clone();
        settings.timeouts.drain = Duration::from_millis(10);
    }
}

fn rig(allowed: &[String]) -> Rig {
    Rig::with(forward_to(&[behind_agent()]), opening(allowed))
}

/// A port of the replica that visitors come to leads to an agent of that one, and to one of another replica.
fn near_and_far(allowed: &[String], test: impl Fn(&Rig, &Rig)) {
    let rule = || forward_to(&[behind_agent()]);
    let here = near_and_far_with(rule, opening(allowed), test);
    let (all, answered) = (here.forwarded(""), here.forwarded("Answered"));
    assert!(all > 0 && answered == all, "{answered} of {all}");
}

impl Rig {
    fn open(&self, ports: &[MappedPort]) {
        let before = self.edge.store.load_full();
        let ports = ports.iter().map(|port| (port.id, Arc::new(port.clone())));
        self.edge.store.publish(Snapshot {
            hosts: before.snapshot.hosts.clone(),
            agents: before.snapshot.agents.clone(),
            ports: ports.collect(),
            ..Snapshot::default()
        });
    }

    /// Streams of the agent's links, as the edge counts them.
    fn in_flight(&self) -> u64 {
        let agents = self.agents();
        let sessions = agents.iter().flat_map(|agent| &agent.sessions);
        sessions.map(|session| session.in_flight).sum()
    }

    /// What keeps each port from being open.
    fn errors(&self) -> Vec<(PortId, Option<ListenError>)> {
        let states = self.edge.edge.ports();
        let states = states.borrow();
        let all = states.iter();
        all.map(|state| (state.id, state.listeners[0].error.clone()))
            .collect()
    }
}

/// Connects as soon as somebody listens.
#[track_caller]
fn visit(number: u16) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], number));
    eventually("somebody listens", || TcpStream::connect(address).is_ok());
    connect(address)
}

#[test]
fn bytes_go_both_ways_and_each_direction_ends_by_itself() {
    let (number, socket) = number();
    drop(socket);
    let test = |rig: &Rig, agents: &Rig| bytes_both_ways(rig, agents, number);
    near_and_far(&[number.to_string()], test);
}

fn bytes_both_ways(rig: &Rig, agents: &Rig, number: u16) {
    let _agent = agents.connect(Way::Direct, echoes(TCP));
    rig.sees_a_link();
    rig.open(&[port(Transport::Tcp, number)]);
    let mut visitor = visit(number);
    let sent = vec![7; 3 << 20];
    let mut writing = visitor.try_clone().unwrap();
    let written = sent.clone();
    let writer = thread::spawn(move || {
        writing.write_all(&written).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    visitor.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(back == sent);
    eventually("nothing is left", || agents.in_flight() == 0);
    let labels = format!("{{mapping=\"default/homelab:port\",protocol=\"TCP\",port=\"{number}\"}}");
    let metric = |name: &str| rig.edge.metric(&format!("tidegate_port_{name}{labels}"));
    eventually("it is over", || metric("sessions_open") == 0);
    assert_eq!(metric("listening"), 1);
    assert_eq!(metric("received_bytes_total"), 3 << 20);
    assert_eq!(metric("sent_bytes_total"), 3 << 20);
}

#[test]
fn a_port_that_somebody_has_is_told_and_taken_when_it_is_free_and_others_notice_nothing() {
    let ((first, socket), (second, held)) = (number(), number());
    drop(socket);
    let rig = rig(&[first.to_string(), second.to_string()]);
    let _agent = rig.connect(Way::Direct, echoes(TCP));
    let (first, mut second) = (port(Transport::Tcp, first), port(Transport::Tcp, second));
    second.route = RouteId::new("default", "homelab:second");
    rig.open(std::slice::from_ref(&first));
    let mut visitor = visit(first.id.number);
    // A third is not among those that may be opened.
    let third = port(Transport::Tcp, second.id.number ^ 1);
    rig.open(&[first.clone(), second.clone(), third.clone()]);
    let mut expected = vec![(first.id, None), (second.id, Some(ListenError::InUse))];
    expected.sort_by_key(|it| it.0);
    eventually("it is told", || rig.errors() == expected);
    drop(held);
    let mut other = visit(second.id.number);
    // The system lets visitors in as soon as the socket listens, which is before it is told.
    eventually("it is told", || {
        rig.errors().iter().all(|(_, error)| error.is_none())
    });
    for visitor in [&mut visitor, &mut other] {
        visitor.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        visitor.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
    }

    // The first is taken away: who is there has the time of a drain, and nobody else can come.
    rig.open(std::slice::from_ref(&second));
    assert_eq!(read_to_end(&mut visitor), "");
    let address = SocketAddr::from(([127, 0, 0, 1], first.id.number));
    eventually("nobody listens", || TcpStream::connect(address).is_err());
    other.write_all(b"still").unwrap();
    let mut back = [0; 5];
    other.read_exact(&mut back).unwrap();

    // Who may not come is sent away before the agent hears of it.
    second.access = Some(IpAccess {
        allow: vec!["10.0.0.0/8".parse().unwrap()],
        deny: Vec::new(),
    });
    rig.open(std::slice::from_ref(&second));
    assert_eq!(read_to_end(&mut visit(second.id.number)), "");
    assert!(rig.edge.metric("tidegate_port_refused_total") > 0);
}

#[test]
fn a_visitor_who_comes_while_the_agent_is_away_waits_for_it() {
    let (number, socket) = number();
    drop(socket);
    let rig = rig(&[number.to_string()]);
    let first = rig.connect(Way::Direct, echoes(TCP));
    rig.open(&[port(Transport::Tcp, number)]);
    drop(visit(number));
    first.link.cut();
    eventually("the link is gone", || rig.sessions() == 0);
    let mut visitor = visit(number);
    visitor.write_all(b"early").unwrap();
    let _agent = rig.connect(Way::WebSocket, echoes(TCP));
    let mut back = [0; 5];
    visitor.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"early");
}

#[test]
fn datagrams_come_back_to_whom_they_are_for() {
    let (number, socket) = number();
    drop(socket);
    let test = |rig: &Rig, agents: &Rig| datagrams(rig, agents, number);
    near_and_far(&[format!("{number}/udp")], test);
}

fn datagrams(rig: &Rig, agents: &Rig, number: u16) {
    let _agent = agents.connect(Way::WebSocket, echoes("tidegate-udp"));
    rig.sees_a_link();
    let mut port = port(Transport::Udp, number);
    rig.open(std::slice::from_ref(&port));
    let visitor = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", number)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        // Nobody may listen yet.
        eventually("an echo", || {
            let mut back = [0; 2];
            socket.send(b"hi").is_ok() && matches!(socket.recv(&mut back), Ok(2))
        });
        while socket.recv(&mut [0; 2]).is_ok() {}
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (first, second) = (visitor(), visitor());
    let mut back = vec![0; 1 << 16];
    for length in [0, 1, 1400, 65_507] {
        for (visitor, byte) in [(&first, 1), (&second, 2)] {
            visitor.send(&vec![byte; length]).unwrap();
        }
        for (visitor, byte) in [(&second, 2), (&first, 1)] {
            let got = visitor.recv(&mut back).unwrap();
            assert_eq!(got, length);
            assert!(back[..got].iter().all(|it| *it == byte));
        }
    }
    assert_eq!(agents.in_flight(), 2);
    assert_eq!(rig.edge.metric("tidegate_port_sessions_open"), 2);

    // Who may not come costs nobody anything.
    port.access = Some(IpAccess {
        allow: Vec::new(),
        deny: vec!["127.0.0.0/8".parse().unwrap()],
    });
    rig.open(std::slice::from_ref(&port));
    let third = UdpSocket::bind("127.0.0.1:0").unwrap();
    eventually("it is refused", || {
        third.send_to(b"hi", ("127.0.0.1", number)).unwrap();
        rig.edge.metric("tidegate_port_refused_total") > 0
    });
    assert_eq!(rig.edge.metric("tidegate_port_sessions_open"), 2);
    // Taken away: sessions end, and their streams.
    rig.open(&[]);
    eventually("nothing is left", || agents.in_flight() == 0);
}
