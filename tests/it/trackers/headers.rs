//! One table of what clients may claim about themselves, over three trackers that read it in three ways:
//! each stores the address that the client connected from, and all get the same request.
//!
//! opentracker takes no address from a header. Whatever is claimed, it stores the edge's; it is in the table
//! because nobody may change that, and because it gets what the others get.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::support::netns::{Machine, Network};
use crate::support::trackers::{Opentracker, PeerTube, Torrust};
use crate::support::{Client, Edge, route};

/// What nobody may take for a client's address; each case claims it in its own way.
const CLAIMED: [&str; 3] = ["198.51.100.9", "2001:db8:bad::9", "unknown"];
/// The port of the announcing peer, and of the one that looks for it.
const PORT: u16 = 6881;
const LOOKER: u16 = 6999;
const PATIENCE: Duration = Duration::from_secs(30);

/// From where an announce comes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum From {
    V4,
    V6,
    /// IPv4 to a listener on `[::]`, whose connections have addresses such as `::ffff:10.77.0.11`.
    Mapped,
    /// A load balancer that speaks the PROXY protocol, for these clients.
    Proxy(&'static str, u8),
}

/// A line of the table: a name, from where, header lines, and what is added to the query.
type Case = (&'static str, From, &'static str, &'static str);

const CASES: &[Case] = &[
    ("nothing", From::V4, "", ""),
    (
        "X-Forwarded-For",
        From::V4,
        "X-Forwarded-For: 198.51.100.9\r\n",
        "",
    ),
    (
        "two entries",
        From::V4,
        "X-Forwarded-For: 198.51.100.9, 198.51.100.9\r\n",
        "",
    ),
    (
        "two lines",
        From::V4,
        "X-Forwarded-For: 198.51.100.9\r\nX-Forwarded-For: 198.51.100.9\r\n",
        "",
    ),
    (
        "lower case",
        From::V4,
        "x-forwarded-for: 198.51.100.9\r\n",
        "",
    ),
    (
        "a port",
        From::V4,
        "X-Forwarded-For: 198.51.100.9:6881\r\n",
        "",
    ),
    (
        "IPv6 in brackets",
        From::V4,
        "X-Forwarded-For: [2001:db8:bad::9]:6881\r\n",
        "",
    ),
    ("unknown", From::V4, "X-Forwarded-For: unknown\r\n", ""),
    (
        "an address and unknown",
        From::V4,
        "X-Forwarded-For: 198.51.100.9, unknown\r\n",
        "",
    ),
    ("empty", From::V4, "X-Forwarded-For:\r\n", ""),
    ("loopback", From::V4, "X-Forwarded-For: 127.0.0.1\r\n", ""),
    ("X-Real-IP", From::V4, "X-Real-IP: 198.51.100.9\r\n", ""),
    ("Forwarded", From::V4, "Forwarded: for=198.51.100.9\r\n", ""),
    (
        "True-Client-IP",
        From::V4,
        "True-Client-IP: 198.51.100.9\r\nCF-Connecting-IP: 198.51.100.9\r\n",
        "",
    ),
    (
        "a header that is to be removed",
        From::V4,
        "Connection: X-Forwarded-For, X-Real-IP\r\n",
        "",
    ),
    (
        "the query",
        From::V4,
        "",
        "&ip=198.51.100.9&ipv4=198.51.100.9&ipv6=2001:db8:bad::9",
    ),
    ("nothing, IPv6", From::V6, "", ""),
    (
        "X-Forwarded-For, IPv6",
        From::V6,
        "X-Forwarded-For: 198.51.100.9\r\n",
        "",
    ),
    (
        "another IPv6",
        From::V6,
        "X-Forwarded-For: 2001:db8:bad::9\r\nX-Real-IP: 2001:db8:bad::9\r\n",
        "",
    ),
    ("nothing, mapped", From::Mapped, "", ""),
    (
        "X-Forwarded-For, mapped",
        From::Mapped,
        "X-Forwarded-For: ::ffff:198.51.100.9\r\n",
        "",
    ),
    ("PROXY version 1", From::Proxy("203.0.113.7", 1), "", ""),
    (
        "PROXY version 1, IPv6",
        From::Proxy("2001:db8::7", 1),
        "",
        "",
    ),
    (
        "PROXY version 2",
        From::Proxy("203.0.113.7", 2),
        "Forwarded: for=198.51.100.9\r\n",
        "",
    ),
    (
        "PROXY version 2, IPv6",
        From::Proxy("2001:db8::7", 2),
        "X-Real-IP: 198.51.100.9\r\n",
        "",
    ),
];

#[test]
fn no_claim_of_a_client_changes_its_address_in_any_tracker() {
    Network::run(|network| {
        let torrents: Vec<_> = (0..CASES.len()).map(|case| hex(&info_hash(case))).collect();
        let trackers = (
            Torrust::behind_proxy(),
            PeerTube::start(),
            Opentracker::start(&torrents),
        );
        let (Some(torrust), Some(peertube), Some(opentracker)) = trackers else {
            return;
        };
        let taps = [
            ("torrust.test", Tap::before(torrust.http[0])),
            ("peertube.test", Tap::before(peertube.address)),
            ("opentracker.test", Tap::before(opentracker.address)),
        ];
        let front = network.machine("front");
        let client = network.machine("client");
        let builder = taps.iter().fold(Edge::builder(), |builder, (host, tap)| {
            let name = host.trim_end_matches(".test");
            builder.object(
                route(name, host, tap.address)
                    .replace("  - backends", "  - tracker: {type: HTTP}\n    backends"),
            )
        });
        let edge = builder
            .arg("--https=0.0.0.0:443,[fd77::1]:443,[::]:8443")
            .arg(&format!("--trusted-proxies={}/32", front.v4))
            .arg("--proxy-protocol=optional")
            .start();
        let announcer = Announcer {
            tls: tls(&edge),
            client,
            front,
        };
        let mut wrong = Vec::new();
        for (index, case) in CASES.iter().enumerate() {
            if let Err(why) = check(index, *case, &announcer, &taps, &torrust) {
                wrong.push(format!("{}: {why}", case.0));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let v6 = CASES
            .iter()
            .filter(|case| announcer.address(case.1).is_ipv6());
        let v6 = u64::try_from(v6.count()).unwrap();
        // Each case announces, and somebody looks.
        assert_eq!(torrust.counter("tcp6_announces_handled"), v6);
    });
}

/// Announces in all three trackers, then looks there who is in the torrent.
fn check(
    index: usize,
    (_, from, lines, query): Case,
    announcer: &Announcer,
    taps: &[(&str, Tap)],
    torrust: &Torrust,
) -> Result<(), String> {
    let info_hash = info_hash(index);
    let client = announcer.address(from);
    let mut heads = Vec::new();
    for (host, tap) in taps {
        tap.take();
        let target = announce(&info_hash, PORT) + query;
        announcer.send(from, host, &target, lines)?;
        let head = tap.take();
        same_request(&head, &target, client).map_err(|why| format!("{host}: {why} in\n{head}"))?;
        heads.push(head.replace(host, "HOST"));
        // From here, as any other peer does.
        let hub = SocketAddr::from((Network::V4, 443));
        let stream = TcpStream::connect(hub).map_err(|error| error.to_string())?;
        let answer = announcer.exchange(stream, host, &announce(&info_hash, LOOKER), "")?;
        let mut peers = peers(&answer);
        peers.retain(|peer| peer.port() != LOOKER);
        let seen = match *host {
            // The connection's: the edge's own.
            "opentracker.test" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            _ => client,
        };
        if peers != [SocketAddr::new(seen, PORT)] {
            return Err(format!("{host} stored {peers:?}, not {seen}"));
        }
    }
    if heads.iter().any(|head| *head != heads[0]) {
        return Err(format!("trackers got different requests: {heads:#?}"));
    }
    let listed: Vec<_> = torrust
        .peers(&hex(&info_hash))
        .into_iter()
        .map(|peer| peer.address)
        .filter(|address| address.port() != LOOKER)
        .collect();
    if listed != [SocketAddr::new(client, PORT)] {
        return Err(format!("the API lists {listed:?}, not {client}"));
    }
    Ok(())
}

/// The request as it came, with one header line that holds one bare address, and nothing of what was claimed.
fn same_request(head: &str, target: &str, client: IpAddr) -> Result<(), String> {
    let (line, fields) = head.split_once("\r\n").ok_or("no request line")?;
    if line != format!("GET {target} HTTP/1.1") {
        return Err(format!("not the target {target}"));
    }
    let values: Vec<_> = fields
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"))
        .map(|(_, value)| value)
        .collect();
    if values != [client.to_string()] {
        return Err(format!("X-Forwarded-For is {values:?}"));
    }
    match CLAIMED.iter().find(|claimed| fields.contains(**claimed)) {
        Some(claimed) => Err(format!("{claimed} came through")),
        None => Ok(()),
    }
}

/// Who announces: a client of the network, or a load balancer for somebody.
struct Announcer {
    tls: Arc<ClientConfig>,
    client: Machine,
    front: Machine,
}

impl Announcer {
    /// The address that a tracker has to store.
    fn address(&self, from: From) -> IpAddr {
        match from {
            From::V4 | From::Mapped => self.client.v4.into(),
            From::V6 => self.client.v6.into(),
            From::Proxy(address, _) => address.parse().unwrap(),
        }
    }

    fn send(&self, from: From, host: &str, target: &str, lines: &str) -> Result<Vec<u8>, String> {
        let (machine, edge) = match from {
            From::V4 => (&self.client, SocketAddr::from((Network::V4, 443))),
            From::V6 => (&self.client, SocketAddr::from((Network::V6, 443))),
            From::Mapped => (&self.client, SocketAddr::from((Network::V4, 8443))),
            From::Proxy(..) => (&self.front, SocketAddr::from((Network::V4, 443))),
        };
        machine.inside(|| {
            let mut stream = TcpStream::connect(edge).map_err(|error| error.to_string())?;
            if let From::Proxy(address, version) = from {
                stream
                    .write_all(&proxy_header(address.parse().unwrap(), version))
                    .map_err(|error| error.to_string())?;
            }
            self.exchange(stream, host, target, lines)
        })
    }

    /// One request on this connection, without ALPN as BitTorrent clients do it: the body of the answer.
    fn exchange(
        &self,
        stream: TcpStream,
        host: &str,
        target: &str,
        lines: &str,
    ) -> Result<Vec<u8>, String> {
        let text = |error: std::io::Error| error.to_string();
        stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let tls = ClientConnection::new(Arc::clone(&self.tls), name).unwrap();
        let mut stream = StreamOwned::new(tls, stream);
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}User-Agent: table\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).map_err(text)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(text)?;
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n");
        match end {
            Some(end) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(answer.split_off(end + 4)),
            _ => Err(String::from_utf8_lossy(&answer).into_owned()),
        }
    }
}

fn tls(edge: &Edge) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Client::roots(&std::fs::read(edge.ca_file()).unwrap());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// A header of the PROXY protocol for a client that connected to the balancer's port 443.
fn proxy_header(client: IpAddr, version: u8) -> Vec<u8> {
    let (family, balancer) = match client {
        IpAddr::V4(_) => (4, IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1))),
        IpAddr::V6(_) => (6, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    };
    if version == 1 {
        return format!("PROXY TCP{family} {client} {balancer} 40000 443\r\n").into_bytes();
    }
    let mut addresses = Vec::new();
    for address in [client, balancer] {
        match address {
            IpAddr::V4(address) => addresses.extend(address.octets()),
            IpAddr::V6(address) => addresses.extend(address.octets()),
        }
    }
    addresses.extend([40_000_u16, 443].map(u16::to_be_bytes).concat());
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    header.push(if family == 4 { 0x11 } else { 0x21 });
    header.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
    header.extend(addresses);
    header
}

/// A torrent for each case, so that nobody is in two of them.
fn info_hash(case: usize) -> [u8; 20] {
    let mut hash = *b"\x86sz~L'\x94\x0et%5D+f &\xee\x1b#\0";
    hash[19] = u8::try_from(case).unwrap();
    hash
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}"));
        text
    })
}

/// The target, escaped as libtorrent does it.
fn announce(info_hash: &[u8], port: u16) -> String {
    let hash = percent_encoding::percent_encode(info_hash, percent_encoding::NON_ALPHANUMERIC);
    format!(
        "/announce?info_hash={hash}&peer_id=-XX0001-0000000{port:05}&port={port}&uploaded=0&downloaded=0&left=1&compact=1&numwant=50&event=started"
    )
}

/// The peers of a compact answer, of both families.
fn peers(answer: &[u8]) -> Vec<SocketAddr> {
    let v4 = compact(answer, b"5:peers").chunks_exact(6).map(|peer| {
        let address: [u8; 4] = peer[..4].try_into().unwrap();
        SocketAddr::from((address, u16::from_be_bytes([peer[4], peer[5]])))
    });
    let v6 = compact(answer, b"6:peers6").chunks_exact(18).map(|peer| {
        let address: [u8; 16] = peer[..16].try_into().unwrap();
        SocketAddr::from((address, u16::from_be_bytes([peer[16], peer[17]])))
    });
    v4.chain(v6).collect()
}

/// The bytes that follow the key, in bencode; nothing without it.
fn compact<'a>(answer: &'a [u8], key: &[u8]) -> &'a [u8] {
    let Some(at) = answer.windows(key.len()).position(|part| part == key) else {
        return &[];
    };
    let rest = &answer[at + key.len()..];
    let colon = rest.iter().position(|byte| *byte == b':').unwrap();
    let length: usize = str::from_utf8(&rest[..colon]).unwrap().parse().unwrap();
    &rest[colon + 1..][..length]
}

/// Passes connections on to a tracker and keeps what the edge sends there. Ends with the test process.
struct Tap {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn before(tracker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            while let Ok((edge, _)) = listener.accept() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || pass(&edge, tracker, &kept));
            }
        });
        Self { address, seen }
    }

    /// What came since the last time.
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.seen.lock().unwrap())).unwrap()
    }
}

fn pass(mut edge: &TcpStream, tracker: SocketAddr, kept: &Mutex<Vec<u8>>) {
    let Ok(mut tracker) = TcpStream::connect(tracker) else {
        return;
    };
    let (mut back, mut answers) = (edge.try_clone().unwrap(), tracker.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = edge.read(&mut buffer) {
        kept.lock().unwrap().extend_from_slice(&buffer[..count]);
        if tracker.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = tracker.shutdown(Shutdown::Write);
}
