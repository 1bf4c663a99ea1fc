//! The datagrams of BEP 15, as far as a relay has to know them: which they are, and who may have sent them.
//!
//! Reads in place, allocates nothing and never panics. What is no request of BEP 15 is not passed on, so that the
//! relay is of no use for anything but trackers. Contents are left to the tracker, but for the trial of a way, which
//! announces something itself.

use std::net::{IpAddr, SocketAddr};

/// First eight bytes of every connect request.
const PROTOCOL: u64 = 0x0417_2710_1980;

/// Longest request: a scrape of 74 torrents has 1496 bytes, an announce with the options of BEP 41 fewer.
pub const LONGEST_REQUEST: usize = 2048;

const HEADER: usize = 16;
const ANNOUNCE: usize = 98;
const HASH: usize = 20;
/// An answer to an announce, without peers. Of a torrent that it does not serve, opentracker sends the first 8 bytes.
pub const ANNOUNCED: usize = 20;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which request it is.
    pub action: Action,
    /// Chosen by the client; the answer has it too.
    pub transaction: u32,
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// For a connection id.
    Connect,
    /// Of one torrent.
    Announce,
    /// Of one or more torrents.
    Scrape,
}

/// Why a datagram is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Malformed {
    /// Shorter than its kind must be.
    Short,
    /// Longer than any request is.
    Long,
    /// No known kind, or a connect request without its magic number.
    Unknown,
}

/// What a tracker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What it answers; None for an error.
    pub to: Option<Action>,
    /// That of the request.
    pub transaction: u32,
}

/// Reads a request.
pub fn request(datagram: &[u8]) -> Result<Request, Malformed> {
    if datagram.len() > LONGEST_REQUEST {
        return Err(Malformed::Long);
    }
    let (Some(first), Some(action), Some(transaction)) =
        (number(datagram, 0), word(datagram, 8), word(datagram, 12))
    else {
        return Err(Malformed::Short);
    };
    let action = match action {
        0 if first == PROTOCOL => Action::Connect,
        1 if datagram.len() < ANNOUNCE => return Err(Malformed::Short),
        1 => Action::Announce,
        2 if datagram.len() < HEADER + HASH => return Err(Malformed::Short),
        2 => Action::Scrape,
        _ => return Err(Malformed::Unknown),
    };
    Ok(Request {
        action,
        transaction,
    })
}

/// Reads an answer; None when it is none.
pub fn answer(datagram: &[u8]) -> Option<Answer> {
    let action = word(datagram, 0)?;
    let transaction = word(datagram, 4)?;
    let to = match action {
        0 if datagram.len() >= 16 => Some(Action::Connect),
        1 => Some(Action::Announce),
        2 => Some(Action::Scrape),
        3 => None,
        _ => return None,
    };
    Some(Answer { to, transaction })
}

/// A connect request.
pub fn connect(transaction: u32) -> [u8; 16] {
    let mut datagram = [0; 16];
    datagram[..8].copy_from_slice(&PROTOCOL.to_be_bytes());
    datagram[12..].copy_from_slice(&transaction.to_be_bytes());
    datagram
}

/// The connection id that a connect request was answered with.
pub fn connection(answer: &[u8]) -> Option<u64> {
    number(answer, 8)
}

/// What a peer is going to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// To be there.
    Started = 2,
    /// To leave.
    Stopped = 3,
}

/// An announce of a peer at the address that the datagram comes from.
#[derive(Debug, Clone, Copy)]
pub struct Announce<'a> {
    /// What connect was answered with.
    pub connection: u64,
    /// Chosen freely.
    pub transaction: u32,
    /// The torrent.
    pub info_hash: &'a [u8; HASH],
    /// Who the peer is.
    pub peer_id: &'a [u8; HASH],
    /// Bytes that it lacks.
    pub left: u64,
    /// What it is going to do.
    pub event: Event,
    /// Its port.
    pub port: u16,
}

impl Announce<'_> {
    /// The datagram. As many peers are asked for as the tracker likes.
    pub fn datagram(&self) -> [u8; ANNOUNCE] {
        let mut datagram = [0; ANNOUNCE];
        datagram[..8].copy_from_slice(&self.connection.to_be_bytes());
        datagram[8..12].copy_from_slice(&1_u32.to_be_bytes());
        datagram[12..16].copy_from_slice(&self.transaction.to_be_bytes());
        datagram[16..36].copy_from_slice(self.info_hash);
        datagram[36..56].copy_from_slice(self.peer_id);
        datagram[64..72].copy_from_slice(&self.left.to_be_bytes());
        datagram[80..84].copy_from_slice(&(self.event as u32).to_be_bytes());
        datagram[92..96].copy_from_slice(&(-1_i32).to_be_bytes());
        datagram[96..].copy_from_slice(&self.port.to_be_bytes());
        datagram
    }
}

/// The peers in an answer to an announce, which are of the family that the datagram has come by.
pub fn peers(answer: &[u8], v6: bool) -> impl Iterator<Item = SocketAddr> + Clone {
    let peers = answer.get(ANNOUNCED..).unwrap_or_default();
    let peers = peers.chunks_exact(if v6 { 18 } else { 6 });
    peers.filter_map(|peer| {
        let (ip, port) = peer.split_last_chunk()?;
        let ip = match <[u8; 4]>::try_from(ip) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?).to_canonical(),
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
    })
}

fn number(datagram: &[u8], at: usize) -> Option<u64> {
    let bytes = datagram.get(at..at + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn word(datagram: &[u8], at: usize) -> Option<u32> {
    let bytes = datagram.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(action: u32, length: usize) -> Vec<u8> {
        let mut datagram = vec![7; length.max(HEADER)];
        datagram[8..12].copy_from_slice(&action.to_be_bytes());
        datagram[12..16].copy_from_slice(&9_u32.to_be_bytes());
        datagram.truncate(length);
        datagram
    }

    #[test]
    fn only_what_bep_15_knows_is_a_request() {
        let is = |action| {
            Ok(Request {
                action,
                transaction: 9,
            })
        };
        assert_eq!(request(&connect(9)), is(Action::Connect));
        assert_eq!(request(&asked(1, 98)), is(Action::Announce));
        assert_eq!(request(&asked(1, 300)), is(Action::Announce));
        assert_eq!(request(&asked(2, 36)), is(Action::Scrape));
        assert_eq!(request(&asked(2, 1496)), is(Action::Scrape));
        assert_eq!(request(&asked(0, 16)), Err(Malformed::Unknown));
        assert_eq!(request(&asked(3, 16)), Err(Malformed::Unknown));
        assert_eq!(request(&asked(1, 97)), Err(Malformed::Short));
        assert_eq!(request(&asked(2, 35)), Err(Malformed::Short));
        assert_eq!(request(&asked(1, 2049)), Err(Malformed::Long));
        for length in 0..16 {
            assert_eq!(request(&connect(9)[..length]), Err(Malformed::Short));
        }
    }

    #[test]
    fn our_own_announce_is_what_bep_15_says() {
        let announce = Announce {
            connection: 0x0102_0304_0506_0708,
            transaction: 9,
            info_hash: &[0xaa; 20],
            peer_id: &[0xbb; 20],
            left: 1,
            event: Event::Stopped,
            port: 6881,
        };
        let datagram = announce.datagram();
        let expected = Request {
            action: Action::Announce,
            transaction: 9,
        };
        assert_eq!(request(&datagram), Ok(expected));
        let expected = [
            &[1, 2, 3, 4, 5, 6, 7, 8][..],
            &[0, 0, 0, 1],
            &[0, 0, 0, 9],
            &[0xaa; 20],
            &[0xbb; 20],
            // Downloaded, left, uploaded.
            &[0; 8],
            &[0, 0, 0, 0, 0, 0, 0, 1],
            &[0; 8],
            &[0, 0, 0, 3],
            // Address and key.
            &[0; 8],
            &[0xff; 4],
            &[0x1a, 0xe1],
        ];
        assert_eq!(datagram[..], expected.concat());
    }

    #[test]
    fn peers_are_read_by_the_family_of_the_way() {
        let head = [0; ANNOUNCED];
        let v4 = [&head[..], &[192, 0, 2, 1, 0x1a, 0xe1, 7]].concat();
        let found: Vec<_> = peers(&v4, false).collect();
        assert_eq!(found, ["192.0.2.1:6881".parse().unwrap()]);
        let ip: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
        let v6 = [&head[..], &ip.octets(), &[0x1a, 0xe1]].concat();
        let found: Vec<_> = peers(&v6, true).collect();
        assert_eq!(found, ["[2001:db8::1]:6881".parse().unwrap()]);
        assert_eq!(
            peers(&head, true).count() + peers(&head[..7], false).count(),
            0
        );
    }

    #[test]
    fn answers_are_told_apart() {
        let said = |action: u32, length: usize| {
            let mut datagram = vec![0; length.max(8)];
            datagram[..4].copy_from_slice(&action.to_be_bytes());
            datagram[4..8].copy_from_slice(&9_u32.to_be_bytes());
            datagram.truncate(length);
            answer(&datagram).map(|answer| {
                assert_eq!(answer.transaction, 9);
                answer.to
            })
        };
        assert_eq!(said(0, 16), Some(Some(Action::Connect)));
        assert_eq!(said(1, 20), Some(Some(Action::Announce)));
        assert_eq!(said(1, 8), Some(Some(Action::Announce)));
        assert_eq!(said(2, 8), Some(Some(Action::Scrape)));
        assert_eq!(said(3, 30), Some(None));
        for (action, length) in [(0, 15), (1, 7), (2, 7), (3, 7), (4, 30), (0, 0)] {
            assert_eq!(said(action, length), None, "{action} {length}");
        }
    }
}
