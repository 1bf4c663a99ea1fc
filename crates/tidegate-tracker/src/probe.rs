//! Whether a tracker reads X-Forwarded-For: made-up announces, and what the answers to them prove.
//!
//! Two peers that do not exist announce a torrent that does not exist, one after the other, each with an address of
//! its own from the networks for documentation (RFC 5737). If the second is told of the first under that address,
//! the tracker reads the header; if under another, or not at all although two are counted, it does not. Then both say
//! that they stop. Decides without I/O: whoever asks the tracker does that elsewhere.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::FailureClass;

/// Bytes of an answer that are looked at. A tracker lists two peers at most.
pub const MAX_ANSWER: usize = 64 * 1024;
/// Lists within lists; a real answer has two.
const MAX_DEPTH: usize = 4;
/// Characters of a tracker's own words that are shown.
const MAX_WORDS: usize = 200;

/// A torrent and two peers that nobody has heard of before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    info_hash: [u8; 20],
    first: Peer,
    second: Peer,
}

/// A peer that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    id: [u8; 20],
    address: Ipv4Addr,
    port: u16,
    left: u8,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announce {
    /// Path and query.
    pub target: String,
    /// For X-Forwarded-For.
    pub client: Ipv4Addr,
}

/// An answer as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The status of HTTP.
    pub status: u16,
    /// As much of the body as [`MAX_ANSWER`] says.
    pub body: &'a [u8],
}

/// What a probe has found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// The tracker takes the address of a peer from X-Forwarded-For.
    Reads,
    /// It takes it from somewhere else.
    Ignores {
        /// The address that it lists instead; None if it lists nobody, as for addresses that it takes for its own.
        listed: Option<IpAddr>,
    },
    /// It does not tell strangers anything, in its own words: it is private, or knows every torrent beforehand.
    Closed(String),
    /// Something else answered, or in a way that proves nothing; the text says what.
    Unclear(String),
}

// === impl Probe ===

impl Probe {
    /// Makes up a torrent and two peers.
    pub fn new(random: &mut fastrand::Rng) -> Self {
        let mut info_hash = [0; 20];
        random.fill(&mut info_hash);
        let mut peer = |network: [u8; 3], left| {
            let [a, b, c] = network;
            let mut id = *b"-TG0001-            ";
            for byte in &mut id[8..] {
                *byte = random.alphanumeric() as u8;
            }
            Peer {
                id,
                address: Ipv4Addr::new(a, b, c, random.u8(1..=254)),
                port: random.u16(1024..=u16::MAX),
                left,
            }
        };
        let first = peer([192, 0, 2], 0);
        let mut second = peer([198, 51, 100], 1);
        // Peers behind one address are told apart by their ports.
        if second.port == first.port {
            second.port ^= 1;
        }
        Self {
            info_hash,
            first,
            second,
        }
    }

    /// What is asked, in this order.
    pub fn announces(&self) -> [Announce; 2] {
        [&self.first, &self.second].map(|peer| self.announce(peer, "started"))
    }

    /// What is said afterwards, whatever the answers were, so that nothing of it stays in the tracker.
    pub fn farewells(&self) -> [Announce; 2] {
        [&self.first, &self.second].map(|peer| self.announce(peer, "stopped"))
    }

    fn announce(&self, peer: &Peer, event: &str) -> Announce {
        let mut target = "/announce?info_hash=".to_owned();
        for byte in self.info_hash {
            // Writing to a String cannot fail.
            let _ = write!(target, "%{byte:02X}");
        }
        let id = String::from_utf8_lossy(&peer.id);
        let (port, left) = (peer.port, peer.left);
        let _ = write!(
            target,
            "&peer_id={id}&port={port}&uploaded=0&downloaded=0&left={left}&compact=1&numwant=50&event={event}"
        );
        Announce {
            target,
            client: peer.address,
        }
    }

    /// What the answers to both announces prove.
    pub fn judge(&self, first: Answer<'_>, second: Answer<'_>) -> Reading {
        for answer in [first, second] {
            match read(answer) {
                Ok(_) => {}
                Err(reading) => return reading,
            }
        }
        let told = match read(second) {
            Ok(told) => told,
            Err(reading) => return reading,
        };
        let first = SocketAddr::new(self.first.address.into(), self.first.port);
        if told.peers.contains(&first) {
            return Reading::Reads;
        }
        let by_port = told.peers.iter().find(|peer| peer.port() == first.port());
        if let Some(listed) = by_port {
            return Reading::Ignores {
                listed: Some(listed.ip()),
            };
        }
        // Those of its own address, and those that it takes for itself, a tracker does not list.
        if told.counted >= 2 {
            return Reading::Ignores { listed: None };
        }
        Reading::Unclear("it does not tell one peer of the other".to_owned())
    }
}

/// What an answer to an announce says.
#[derive(Debug, Default)]
struct Told {
    peers: Vec<SocketAddr>,
    /// Seeders and leechers.
    counted: i64,
}

fn read(answer: Answer<'_>) -> Result<Told, Reading> {
    let status = answer.status;
    let unclear = |what: &str| Reading::Unclear(format!("status {status} and {what}"));
    let Some((Item::Dictionary(entries), _)) = item(answer.body, 0) else {
        return Err(unclear("no answer of a tracker"));
    };
    let mut told = Told::default();
    let mut is_tracker = false;
    for (key, value) in entries {
        match (key, value) {
            (b"failure reason", Item::Text(words)) => {
                let words = shown(words);
                return Err(match FailureClass::of(&words) {
                    FailureClass::UnknownTorrent
                    | FailureClass::InvalidKey
                    | FailureClass::ClientNotAllowed => Reading::Closed(words),
                    _ => Reading::Unclear(format!("the failure {words:?}")),
                });
            }
            (b"complete" | b"incomplete", Item::Number(count)) => {
                told.counted = told.counted.saturating_add(count);
            }
            (b"interval", Item::Number(_)) => is_tracker = true,
            (b"peers" | b"peers6", Item::Text(compact)) => {
                is_tracker = true;
                let of_four = key == b"peers";
                told.peers.extend(read_compact(compact, of_four));
            }
            (b"peers", Item::List(all)) => {
                is_tracker = true;
                told.peers.extend(all.iter().filter_map(peer));
            }
            _ => {}
        }
    }
    if is_tracker {
        Ok(told)
    } else {
        Err(unclear("no answer of a tracker"))
    }
}

/// BEP 23 and BEP 7: addresses and ports without anything between.
fn read_compact(bytes: &[u8], of_four: bool) -> Vec<SocketAddr> {
    let size = if of_four { 6 } else { 18 };
    let entries = bytes.chunks_exact(size).filter_map(|entry| {
        let (ip, port) = entry.split_at_checked(size - 2)?;
        let ip: IpAddr = if of_four {
            Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?).into()
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?).into()
        };
        let port = u16::from_be_bytes(port.try_into().ok()?);
        Some(SocketAddr::new(ip.to_canonical(), port))
    });
    entries.collect()
}

/// A peer of a list (BEP 3).
fn peer(item: &Item<'_>) -> Option<SocketAddr> {
    let Item::Dictionary(entries) = item else {
        return None;
    };
    let find = |wanted: &[u8]| entries.iter().find(|(key, _)| *key == wanted);
    let (Some((_, Item::Text(ip))), Some((_, Item::Number(port)))) = (find(b"ip"), find(b"port"))
    else {
        return None;
    };
    let ip: IpAddr = std::str::from_utf8(ip).ok()?.parse().ok()?;
    Some(SocketAddr::new(
        ip.to_canonical(),
        u16::try_from(*port).ok()?,
    ))
}

/// A tracker's words, fit for a line.
fn shown(words: &[u8]) -> String {
    let words = String::from_utf8_lossy(words);
    let mut shown: String = words
        .chars()
        .take(MAX_WORDS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if words.chars().nth(MAX_WORDS).is_some() {
        shown.push('…');
    }
    shown
}

/// Bencoded (BEP 3).
#[derive(Debug)]
enum Item<'a> {
    Number(i64),
    Text(&'a [u8]),
    List(Vec<Item<'a>>),
    Dictionary(Vec<(&'a [u8], Item<'a>)>),
}

/// An item and what follows it; None where the bytes are something else. Some trackers add a line end.
fn item(bytes: &[u8], depth: usize) -> Option<(Item<'_>, &[u8])> {
    if depth > MAX_DEPTH {
        return None;
    }
    match bytes.split_first()? {
        (b'i', rest) => {
            let (digits, rest) = until(rest, b'e')?;
            Some((Item::Number(digits.parse().ok()?), rest))
        }
        (b'l', mut rest) => {
            let mut all = Vec::new();
            while *rest.first()? != b'e' {
                let (one, after) = item(rest, depth + 1)?;
                all.push(one);
                rest = after;
            }
            Some((Item::List(all), &rest[1..]))
        }
        (b'd', mut rest) => {
            let mut all = Vec::new();
            while *rest.first()? != b'e' {
                let (key, after) = text(rest)?;
                let (value, after) = item(after, depth + 1)?;
                all.push((key, value));
                rest = after;
            }
            Some((Item::Dictionary(all), &rest[1..]))
        }
        (b'0'..=b'9', _) => {
            let (text, rest) = text(bytes)?;
            Some((Item::Text(text), rest))
        }
        _ => None,
    }
}

fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (digits, rest) = until(bytes, b':')?;
    rest.split_at_checked(digits.parse().ok()?)
}

fn until(bytes: &[u8], end: u8) -> Option<(&str, &[u8])> {
    // A number is short; what has no end must not be searched for one again and again.
    let at = bytes.iter().take(24).position(|byte| *byte == end)?;
    let (text, rest) = bytes.split_at_checked(at)?;
    Some((std::str::from_utf8(text).ok()?, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> Probe {
        Probe::new(&mut fastrand::Rng::with_seed(7))
    }

    fn ok(body: &[u8]) -> Answer<'_> {
        Answer { status: 200, body }
    }

    fn compact(key: &str, counted: usize, peers: &[SocketAddr]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for peer in peers {
            match peer.ip() {
                IpAddr::V4(ip) => bytes.extend(ip.octets()),
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
            bytes.extend(peer.port().to_be_bytes());
        }
        let mut body = format!(
            "d8:completei{counted}e10:incompletei0e8:intervali120e{}:{key}{}:",
            key.len(),
            bytes.len()
        )
        .into_bytes();
        body.extend(bytes);
        body.push(b'e');
        body
    }

    #[test]
    fn what_is_asked_is_made_up_and_taken_back() {
        let probe = probe();
        let [first, second] = probe.announces();
        assert!(first.client.is_documentation() && second.client.is_documentation());
        assert_ne!(first.client, second.client);
        for (asked, taken_back) in probe.announces().iter().zip(probe.farewells()) {
            assert!(
                asked.target.starts_with("/announce?info_hash=%"),
                "{asked:?}"
            );
            assert_eq!(asked.target.matches('%').count(), 20);
            let stopped = asked.target.replace("event=started", "event=stopped");
            assert_eq!(
                (stopped, asked.client),
                (taken_back.target, taken_back.client)
            );
        }
        assert_ne!(probe, Probe::new(&mut fastrand::Rng::with_seed(8)));
    }

    #[test]
    fn each_answer_proves_what_it_proves() {
        let probe = probe();
        let port = probe.first.port;
        let known = SocketAddr::new(probe.first.address.into(), port);
        let edge = SocketAddr::new("10.0.0.9".parse().unwrap(), port);
        let mapped = SocketAddr::new("::ffff:10.0.0.9".parse().unwrap(), port);
        let stranger = SocketAddr::new("203.0.113.9".parse().unwrap(), port ^ 2);
        let listed = |ip: &str| Reading::Ignores {
            listed: Some(ip.parse().unwrap()),
        };
        let dictionary = format!(
            "d8:intervali9e5:peersld2:ip{}:{}7:peer id1:x4:porti{port}eeee\r\n",
            known.ip().to_string().len(),
            known.ip()
        );
        let closed = b"d14:failure reason63:Requested download is not authorized for use with this tracker.e";
        let told = "Requested download is not authorized for use with this tracker.";
        let unclear = |what: &str| Reading::Unclear(what.to_owned());
        for (second, expected) in [
            (compact("peers", 1, &[known]), Reading::Reads),
            (compact("peers", 2, &[stranger, known]), Reading::Reads),
            (dictionary.into_bytes(), Reading::Reads),
            (compact("peers", 2, &[edge]), listed("10.0.0.9")),
            (compact("peers6", 2, &[mapped]), listed("10.0.0.9")),
            (compact("peers", 2, &[]), Reading::Ignores { listed: None }),
            (
                compact("peers", 1, &[stranger]),
                unclear("it does not tell one peer of the other"),
            ),
            (closed.to_vec(), Reading::Closed(told.to_owned())),
            (
                b"d14:failure reason7:no\nideae".to_vec(),
                unclear("the failure \"no idea\""),
            ),
            (
                b"<html>".to_vec(),
                unclear("status 200 and no answer of a tracker"),
            ),
            (
                b"d1:ai1ee".to_vec(),
                unclear("status 200 and no answer of a tracker"),
            ),
            (Vec::new(), unclear("status 200 and no answer of a tracker")),
        ] {
            let first = compact("peers", 1, &[]);
            let text = String::from_utf8_lossy(&second).into_owned();
            assert_eq!(probe.judge(ok(&first), ok(&second)), expected, "{text}");
        }
        // The first answer counts too.
        let second = compact("peers", 1, &[known]);
        let found = probe.judge(ok(closed), ok(&second));
        assert_eq!(found, Reading::Closed(told.to_owned()));
    }

    #[test]
    fn nothing_that_a_tracker_sends_harms() {
        let probe = probe();
        let fine = compact("peers", 2, &[]);
        for end in 0..fine.len() {
            probe.judge(ok(&fine), ok(&fine[..end]));
        }
        for body in [
            "d".repeat(9_000),
            "l".repeat(9_000),
            "d5:peers99999999999999999999999999:e".to_owned(),
            "i99999999999999999999999e".to_owned(),
            "d8:completei9223372036854775807e10:incompletei9223372036854775807e8:intervali1ee"
                .to_owned(),
            format!("d14:failure reason9000:{}e", "ä\n".repeat(3_000)),
        ] {
            probe.judge(ok(&fine), ok(body.as_bytes()));
        }
    }
}
