//! The datagrams of BEP 15, as far as a relay has to know them: which they are, and who may have sent them.
//!
//! Reads in place, allocates nothing and never panics. What is no request of BEP 15 is not passed on, so that the
//! relay is of no use for anything but trackers. Contents are left to the tracker.

/// First eight bytes of every connect request.
const PROTOCOL: u64 = 0x0417_2710_1980;

/// Longest request: a scrape of 74 torrents has 1496 bytes, an announce with the options of BEP 41 fewer.
pub const LONGEST_REQUEST: usize = 2048;

const HEADER: usize = 16;
const ANNOUNCE: usize = 98;
const HASH: usize = 20;

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
        1 if datagram.len() >= 20 => Some(Action::Announce),
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
        assert_eq!(said(2, 8), Some(Some(Action::Scrape)));
        assert_eq!(said(3, 30), Some(None));
        for (action, length) in [(0, 15), (1, 19), (2, 7), (3, 7), (4, 30), (0, 0)] {
            assert_eq!(said(action, length), None, "{action} {length}");
        }
    }
}
