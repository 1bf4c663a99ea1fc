//! A client of UDP trackers as BEP 15 has it, on a socket that takes answers only from the address it asked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const PROTOCOL: u64 = 0x0417_2710_1980;
/// How long an answer may take on a busy machine; requests are sent again meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(500);

/// What a tracker said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Connected(u64),
    /// Seeders and leechers, then the peers.
    Announced(u32, u32, Vec<SocketAddr>),
    Scraped(u32, u32, u32),
    Error(String),
}

/// A client with a port of its own.
pub(crate) struct Client {
    socket: UdpSocket,
    next: u32,
}

impl Client {
    /// Any port of this thread's network, and one tracker.
    #[track_caller]
    pub(crate) fn of(tracker: SocketAddr) -> Self {
        let any: IpAddr = match tracker {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(tracker).unwrap();
        Self {
            next: u32::from(socket.local_addr().unwrap().port()) << 16,
            socket,
        }
    }

    /// Its address as the tracker should see it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Sends without waiting for anything.
    pub(crate) fn send(&self, datagram: &[u8]) {
        // What the kernel says of earlier datagrams does not matter here.
        let _ = self.socket.send(datagram);
    }

    /// A connect request.
    pub(crate) fn connect_request(&mut self) -> Vec<u8> {
        self.request(PROTOCOL, 0, &[])
    }

    fn request(&mut self, id: u64, action: u32, rest: &[u8]) -> Vec<u8> {
        self.next += 1;
        let transaction = self.next;
        let mut datagram = id.to_be_bytes().to_vec();
        datagram.extend(action.to_be_bytes());
        datagram.extend(transaction.to_be_bytes());
        datagram.extend(rest);
        datagram
    }

    /// Asks until there is an answer.
    #[track_caller]
    fn ask(&mut self, datagram: &[u8]) -> Answer {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.ask_once(datagram, AGAIN) {
                return answer;
            }
            assert!(
                Instant::now() < until,
                "no answer to {} from {}",
                self.address(),
                self.socket.peer_addr().unwrap()
            );
        }
    }

    /// Asks once; None if nothing comes in that time.
    pub(crate) fn ask_once(&mut self, datagram: &[u8], patience: Duration) -> Option<Answer> {
        self.send(datagram);
        let until = Instant::now() + patience;
        let mut buffer = [0; 2048];
        loop {
            let left = until.checked_duration_since(Instant::now())?;
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .unwrap();
            match self.socket.recv(&mut buffer) {
                Ok(length) if buffer[4..8] == datagram[12..16] => {
                    return Some(self.read(&buffer[..length]));
                }
                // An answer to what was asked twice.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // Nobody listens there yet.
                Err(_) => crate::support::breathe(),
            }
        }
    }

    fn read(&self, answer: &[u8]) -> Answer {
        let word = |at: usize| u32::from_be_bytes(answer[at..at + 4].try_into().unwrap());
        match word(0) {
            0 => Answer::Connected(u64::from_be_bytes(answer[8..16].try_into().unwrap())),
            // What opentracker says of a torrent that it does not serve.
            1 if answer.len() < 20 => Answer::Error(String::new()),
            1 => {
                let v4 = self.address().is_ipv4();
                let peers = answer[20..].chunks_exact(if v4 { 6 } else { 18 });
                let peers = peers.map(|peer| {
                    let (ip, port) = peer.split_at(peer.len() - 2);
                    let ip: IpAddr = if v4 {
                        <[u8; 4]>::try_from(ip).unwrap().into()
                    } else {
                        <[u8; 16]>::try_from(ip).unwrap().into()
                    };
                    SocketAddr::new(ip, u16::from_be_bytes(port.try_into().unwrap()))
                });
                Answer::Announced(word(16), word(12), peers.collect())
            }
            2 => Answer::Scraped(word(8), word(12), word(16)),
            3 => Answer::Error(String::from_utf8_lossy(&answer[8..]).into_owned()),
            other => panic!("action {other}"),
        }
    }

    /// Gets a connection id.
    #[track_caller]
    pub(crate) fn connect(&mut self) -> u64 {
        let request = self.connect_request();
        match self.ask(&request) {
            Answer::Connected(id) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Announces a peer at this client's own port that has everything but `left` bytes.
    #[track_caller]
    pub(crate) fn announce(&mut self, id: u64, torrent: &str, left: u64) -> Answer {
        let port = self.address().port();
        let mut rest = hash(torrent);
        rest.extend(format!("-XX0001-{port:012}").as_bytes());
        rest.extend(0_u64.to_be_bytes());
        rest.extend(left.to_be_bytes());
        rest.extend(0_u64.to_be_bytes());
        // Started; the sender's address; any key; as many peers as there are.
        rest.extend(2_u32.to_be_bytes());
        rest.extend(0_u32.to_be_bytes());
        rest.extend(7_u32.to_be_bytes());
        rest.extend((-1_i32).to_be_bytes());
        rest.extend(port.to_be_bytes());
        let request = self.request(id, 1, &rest);
        self.ask(&request)
    }

    /// Scrapes one torrent.
    #[track_caller]
    pub(crate) fn scrape(&mut self, id: u64, torrent: &str) -> Answer {
        let request = self.request(id, 2, &hash(torrent));
        self.ask(&request)
    }

    /// Whether a connect request is answered within this time.
    pub(crate) fn is_answered(&mut self, patience: Duration) -> bool {
        let request = self.connect_request();
        self.ask_once(&request, patience).is_some()
    }
}

fn hash(torrent: &str) -> Vec<u8> {
    (0..20)
        .map(|at| u8::from_str_radix(&torrent[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}
