//! Trials against trackers that behave in every way there is. They read the PROXY protocol header, which needs no
//! rights and which no real tracker does; real ones are in `tests/it/trackers/udp`.

use std::collections::BTreeSet;
use std::io;

use tidegate_model::UdpWayState;

use super::super::way::Way;
use super::*;

/// Real time in which a datagram on this machine arrives.
const SOON: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Honest,
    /// Somebody replaces the source of every datagram.
    Masqueraded,
    /// The same, and no peer is told of one at its own address.
    MasqueradedAndShy,
    Refuses,
    TellsNoPeers,
    AnswersConnectOnly,
    ReadsNoHeader,
    Dead,
}

struct Tracker {
    socket: UdpSocket,
    habit: Habit,
    swarm: BTreeSet<SocketAddr>,
    joined: usize,
}

const NAT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const ID: u64 = 77;

impl Tracker {
    fn new(habit: Habit) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self {
            socket,
            habit,
            swarm: BTreeSet::new(),
            joined: 0,
        }
    }

    /// Takes what comes until nothing does.
    fn serve(&mut self) -> bool {
        let mut served = false;
        let mut buffer = [0; 512];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    served = true;
                    if let Some(answer) = self.answer(&buffer[..length]) {
                        self.socket.send_to(&answer, from).unwrap();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return served,
                Err(_) => {}
            }
        }
    }

    fn answer(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let by_header = datagram.starts_with(b"\r\n\r\n\0\r\nQUIT\n");
        if self.habit == Habit::Dead || (by_header && self.habit == Habit::ReadsNoHeader) {
            return None;
        }
        if !by_header {
            return Some([&[0; 4], &datagram[12..16], &ID.to_be_bytes()].concat());
        }
        let port = u16::from_be_bytes(datagram[24..26].try_into().unwrap());
        let ip: [u8; 4] = datagram[16..20].try_into().unwrap();
        let ip = match self.habit {
            Habit::Masqueraded | Habit::MasqueradedAndShy => NAT,
            _ => ip.into(),
        };
        let request = &datagram[28..];
        let transaction = &request[12..16];
        if request[8..12] == [0; 4] {
            return Some([&[0; 4], transaction, &ID.to_be_bytes()].concat());
        }
        assert_eq!(request[..8], ID.to_be_bytes());
        let peer = SocketAddr::new(ip, u16::from_be_bytes(request[96..98].try_into().unwrap()));
        assert_eq!(
            peer.port(),
            port,
            "announced at the port that it comes from"
        );
        match self.habit {
            Habit::AnswersConnectOnly => return None,
            Habit::Refuses => {
                return Some([&[0, 0, 0, 3], transaction, b"not whitelisted"].concat());
            }
            _ => {}
        }
        if request[83] == 3 {
            self.swarm.remove(&peer);
        } else {
            self.joined += usize::from(self.swarm.insert(peer));
        }
        let mut answer = [&[0, 0, 0, 1], transaction, &[0; 12]].concat();
        for told in &self.swarm {
            let shy = match self.habit {
                Habit::TellsNoPeers => true,
                Habit::MasqueradedAndShy => told.ip() == ip,
                _ => *told == peer,
            };
            if let (false, IpAddr::V4(ip)) = (shy, told.ip()) {
                answer.extend(ip.octets());
                answer.extend(told.port().to_be_bytes());
            }
        }
        Some(answer)
    }

    /// Lets a way be tried until the trial is over; the time of the way passes only while nobody says anything.
    fn tried(&mut self, way: &mut Way, now: &mut Instant) -> UdpWayState {
        assert!(way.turn(*now).is_some(), "no trial is due");
        for _ in 0..50 {
            let served = self.serve();
            for probe in Probe::ALL {
                way.hear(probe, *now);
            }
            if !way.is_being_tried() {
                return way.state();
            }
            if !served {
                *now += PATIENCE;
                way.turn(*now);
            }
        }
        panic!("a trial without an end");
    }
}

fn backend_of(tracker: &Tracker) -> SocketAddr {
    tracker.socket.local_addr().unwrap()
}

#[test]
fn each_habit_of_a_tracker_is_told_and_nobody_stays_in_its_swarm() {
    let replaced = |announced: [u8; 4]| UdpWayState::Replaced {
        announced: announced.into(),
        seen: NAT,
    };
    let unlisted = UdpWayState::Unlisted;
    for (habit, found, joined) in [
        (Habit::Honest, UdpWayState::Preserved, 2),
        (Habit::Masqueraded, replaced([192, 0, 2, 1]), 2),
        (Habit::MasqueradedAndShy, unlisted(UdpUnlisted::NoPeers), 2),
        (Habit::TellsNoPeers, unlisted(UdpUnlisted::NoPeers), 2),
        (Habit::Refuses, unlisted(UdpUnlisted::Refused), 0),
        (
            Habit::AnswersConnectOnly,
            unlisted(UdpUnlisted::Unanswered),
            0,
        ),
        (Habit::ReadsNoHeader, UdpWayState::HeaderNotRead, 0),
        (Habit::Dead, UdpWayState::NoAnswer, 0),
    ] {
        let mut tracker = Tracker::new(habit);
        let mut now = Instant::now();
        let backend = backend_of(&tracker);
        let mut way = Way::new(backend, UdpRelayMode::ProxyProtocol, now);
        assert_eq!(tracker.tried(&mut way, &mut now), found, "{habit:?}");
        assert_eq!(tracker.joined, joined, "{habit:?}");
        assert_eq!(tracker.swarm, BTreeSet::new(), "{habit:?}");
    }
}

#[test]
fn a_replaced_address_stays_replaced_until_it_is_refuted() {
    let mut tracker = Tracker::new(Habit::Masqueraded);
    let mut now = Instant::now();
    let mut way = Way::new(backend_of(&tracker), UdpRelayMode::ProxyProtocol, now);
    let replaced = tracker.tried(&mut way, &mut now);
    assert!(!replaced.is_open());
    for (habit, found) in [
        (Habit::Dead, UdpWayState::NoAnswer),
        (Habit::AnswersConnectOnly, replaced),
        (Habit::Honest, UdpWayState::Preserved),
        (Habit::Dead, UdpWayState::Silent),
        (Habit::Masqueraded, replaced),
    ] {
        tracker.habit = habit;
        now += Duration::from_mins(2);
        assert_eq!(tracker.tried(&mut way, &mut now), found, "{habit:?}");
    }
}

/// A relay that ends in the middle of a trial leaves nobody behind.
#[test]
fn a_trial_that_is_given_up_leaves_the_swarm() {
    let mut tracker = Tracker::new(Habit::Honest);
    let now = Instant::now();
    let mut way = Way::new(backend_of(&tracker), UdpRelayMode::ProxyProtocol, now);
    way.turn(now);
    for _ in 0..10 {
        if tracker.swarm.is_empty() {
            tracker.serve();
            way.hear(Probe::First, now);
        }
    }
    assert_eq!(tracker.swarm.len(), 1);
    drop(way);
    tracker.serve();
    assert_eq!(tracker.swarm, BTreeSet::new());
}
