//! One question to one name server, and the answer as it came.
//!
//! Preflight and propagation need what a caching resolver hides: the alias chain of a name that does not
//! exist, who answered, whether with authority, and never an answer from a cache. So this speaks DNS itself,
//! over UDP with TCP after truncation (RFC 1035 §4.2, RFC 7766); from the system only its list of name
//! servers is taken. It does not validate DNSSEC and does not retry for ever: each question has one deadline
//! per server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// Time for one question at one server.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Payload that passes without fragments on every usual path (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;

/// After which an unanswered datagram is sent again.
const RESEND: Duration = Duration::from_millis(1500);

/// A name that is an alias of an alias: resolvers give up about here too.
const MAX_ALIASES: usize = 10;

/// Why no answer came. An answer that says no is an [`Answer`].
#[derive(Debug, Error)]
pub enum QueryError {
    /// The system's configuration of name servers is unreadable or empty.
    #[error("no name servers configured on this machine: {0}")]
    NoServers(String),
    /// The question cannot be written.
    #[error("write the question for {name}: {problem}")]
    Question {
        /// What was to be asked for.
        name: String,
        /// Why not.
        problem: String,
    },
    /// No answer in time.
    #[error("name server {server} did not answer within {} s", .after.as_secs_f32())]
    Timeout {
        /// Who was asked.
        server: SocketAddr,
        /// For how long.
        after: Duration,
    },
    /// The server cannot be reached.
    #[error("ask name server {server}")]
    Unreachable {
        /// Who was asked.
        server: SocketAddr,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The servers answered that they cannot answer.
    #[error("the name servers of {name} fail: {code}")]
    Failed {
        /// What was asked for.
        name: String,
        /// Their code.
        code: ResponseCode,
    },
    /// What came back is no answer to the question.
    #[error("name server {server} answered nonsense: {problem}")]
    Malformed {
        /// Who was asked.
        server: SocketAddr,
        /// What is wrong with it.
        problem: String,
    },
}

impl QueryError {
    /// One sentence that says what to do.
    pub fn fix(&self) -> String {
        match self {
            Self::NoServers(_) => {
                "put a name server into /etc/resolv.conf or into the settings".to_owned()
            }
            Self::Question { name, .. } => format!("correct the name {name}"),
            Self::Timeout { server, .. } | Self::Unreachable { server, .. } => format!(
                "check that {server} is a name server and that UDP and TCP to it pass the firewall"
            ),
            Self::Failed { .. } => "look at the zone's name servers and at DNSSEC".to_owned(),
            Self::Malformed { server, .. } => {
                format!("use another name server than {server}, or look what rewrites its answers")
            }
        }
    }
}

/// What a name server said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Who said it.
    pub server: SocketAddr,
    /// Its result code.
    pub code: ResponseCode,
    /// Whether it holds the zone itself.
    pub authoritative: bool,
    /// The answer section in order, aliases included.
    pub answers: Vec<Record>,
    /// The authority section: the zone's SOA, or its name servers.
    pub authorities: Vec<Record>,
    /// The additional section: addresses of name servers.
    pub additionals: Vec<Record>,
}

/// How the walk along a name's aliases ended.
#[derive(Debug, Clone)]
pub struct Walk {
    /// Alias targets in order, absolute; empty when the name is no alias.
    pub aliases: Vec<Name>,
    /// Records of the wanted type at the end.
    pub records: Vec<Record>,
    /// Code of the last answer; `NoError` without records means "exists, but has none".
    pub code: ResponseCode,
    /// The aliases lead in a circle or are too many.
    pub circular: bool,
}

impl Walk {
    /// The name at the end of the aliases.
    pub fn end<'a>(&'a self, start: &'a Name) -> &'a Name {
        self.aliases.last().unwrap_or(start)
    }

    /// Whether the servers knew; that there is nothing is knowledge too.
    pub fn answered(&self) -> bool {
        matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain)
    }
}

/// Asks a list of name servers in turn.
#[derive(Debug, Clone)]
pub struct DnsClient {
    servers: Vec<SocketAddr>,
    timeout: Duration,
    recursive: bool,
}

impl DnsClient {
    /// Asks these resolvers, the first that has an answer wins.
    pub fn new(servers: Vec<SocketAddr>, timeout: Duration) -> Self {
        Self {
            servers,
            timeout,
            recursive: true,
        }
    }

    /// Asks servers of a zone, without recursion.
    pub fn authoritative(servers: Vec<SocketAddr>, timeout: Duration) -> Self {
        Self {
            servers,
            timeout,
            recursive: false,
        }
    }

    /// Asks the resolvers of this machine.
    pub fn system(timeout: Duration) -> Result<Self, QueryError> {
        let (config, _) = hickory_resolver::system_conf::read_system_conf()
            .map_err(|error| QueryError::NoServers(error.to_string()))?;
        let mut servers = Vec::new();
        for server in config.name_servers() {
            let port = server.connections.first().map_or(53, |c| c.port);
            let address = SocketAddr::new(server.ip, port);
            if !servers.contains(&address) {
                servers.push(address);
            }
        }
        if servers.is_empty() {
            return Err(QueryError::NoServers("the list is empty".to_owned()));
        }
        Ok(Self::new(servers, timeout))
    }

    /// Who is asked, in order.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Time for one question at one server.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The first answer other than a failure of the server (SERVFAIL, REFUSED); else the last answer.
    pub async fn ask(&self, name: &Name, kind: RecordType) -> Result<Answer, QueryError> {
        let mut last = None;
        for &server in &self.servers {
            let result = self.ask_at(server, name, kind).await;
            let usable = result.as_ref().is_ok_and(|answer| {
                !matches!(answer.code, ResponseCode::ServFail | ResponseCode::Refused)
            });
            if usable {
                return result;
            }
            // A server that says no tells more than one that says nothing.
            if result.is_ok() || last.is_none() {
                last = Some(result);
            }
        }
        last.unwrap_or_else(|| Err(QueryError::NoServers("the list is empty".to_owned())))
    }

    async fn ask_at(
        &self,
        server: SocketAddr,
        name: &Name,
        kind: RecordType,
    ) -> Result<Answer, QueryError> {
        let mut message = Message::query();
        message.metadata.recursion_desired = self.recursive;
        message.add_query(Query::query(name.clone(), kind));
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        message.set_edns(edns);
        let bytes = message.to_vec().map_err(|error| QueryError::Question {
            name: name.to_string(),
            problem: error.to_string(),
        })?;
        let reply = exchange(server, &bytes, self.timeout).await?;
        let reply = decode(server, &reply)?;
        let asked = reply
            .queries
            .first()
            .is_some_and(|q| q.name() == name && q.query_type() == kind);
        // Some servers leave the question out of an error answer.
        if !asked && !reply.queries.is_empty() {
            return Err(QueryError::Malformed {
                server,
                problem: "it answers another question".to_owned(),
            });
        }
        Ok(Answer {
            server,
            code: reply.metadata.response_code,
            authoritative: reply.metadata.authoritative,
            answers: reply.answers,
            authorities: reply.authorities,
            additionals: reply.additionals,
        })
    }

    /// Records of a type under a name and where its aliases lead.
    pub async fn walk(&self, name: &Name, kind: RecordType) -> Result<Walk, QueryError> {
        let mut walk = Walk {
            aliases: Vec::new(),
            records: Vec::new(),
            code: ResponseCode::NoError,
            circular: false,
        };
        let mut here = name.clone();
        loop {
            let answer = self.ask(&here, kind).await?;
            walk.code = answer.code;
            let before = walk.aliases.len();
            while let Some(next) = alias_of(&answer.answers, &here) {
                if walk.aliases.contains(next) || next == name || walk.aliases.len() >= MAX_ALIASES
                {
                    walk.circular = true;
                    return Ok(walk);
                }
                here = next.clone();
                walk.aliases.push(here.clone());
            }
            walk.records = answer
                .answers
                .into_iter()
                .filter(|record| record.record_type() == kind && record.name == here)
                .collect();
            let moved = walk.aliases.len() > before;
            if !walk.records.is_empty() || !moved || answer.code != ResponseCode::NoError {
                return Ok(walk);
            }
            // The server knew the alias and not its target: ask for that.
        }
    }

    /// Addresses of a host, IPv4 first.
    pub async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, QueryError> {
        let mut addresses = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            let walk = self.walk(name, kind).await?;
            addresses.extend(walk.records.iter().filter_map(address));
        }
        Ok(addresses)
    }

    /// The TXT values under exactly this name; each record's strings are joined (RFC 7208 §3.3's way).
    pub async fn texts(&self, name: &Name) -> Result<Vec<String>, QueryError> {
        let walk = self.walk(name, RecordType::TXT).await?;
        Ok(texts_in(&walk.records))
    }
}

pub(super) fn texts_in(records: &[Record]) -> Vec<String> {
    records.iter().filter_map(text).collect()
}

/// The address in an A or AAAA record.
pub fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    }
}

fn text(record: &Record) -> Option<String> {
    match &record.data {
        RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
        _ => None,
    }
}

fn alias_of<'a>(answers: &'a [Record], name: &Name) -> Option<&'a Name> {
    answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if record.name == *name => Some(&target.0),
        _ => None,
    })
}

pub(super) fn decode(server: SocketAddr, bytes: &[u8]) -> Result<Message, QueryError> {
    Message::from_vec(bytes).map_err(|error| QueryError::Malformed {
        server,
        problem: error.to_string(),
    })
}

/// Sends an encoded message and returns the reply's bytes: by UDP, then by TCP when it was cut or too long.
pub(super) async fn exchange(
    server: SocketAddr,
    message: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>, QueryError> {
    let unreachable = |source| QueryError::Unreachable { server, source };
    let work = async {
        if message.len() <= usize::from(UDP_PAYLOAD) {
            let reply = by_udp(server, message).await.map_err(unreachable)?;
            let cut = reply.get(2).is_some_and(|flags| flags & 0x02 != 0);
            if !cut {
                return Ok(reply);
            }
        }
        by_tcp(server, message).await.map_err(unreachable)
    };
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or(Err(QueryError::Timeout {
            server,
            after: timeout,
        }))
}

async fn by_udp(server: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A connected socket takes datagrams from this server alone, on a port of the system's choosing.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; 4096];
    loop {
        socket.send(message).await?;
        // A datagram may get lost. Asking again is harmless: the same update changes nothing twice.
        let again = tokio::time::sleep(RESEND);
        tokio::pin!(again);
        loop {
            let length = tokio::select! {
                length = socket.recv(&mut buffer) => length?,
                () = &mut again => break,
            };
            if is_reply_to(&buffer[..length], message) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }
}

/// Whether this machine has a way to the address at all; nothing is sent. A host without IPv6 has none to
/// half of a zone's servers.
pub(super) async fn has_route(server: SocketAddr) -> bool {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    match UdpSocket::bind(any).await {
        Ok(socket) => socket.connect(server).await.is_ok(),
        Err(_) => false,
    }
}

/// Same id and the reply bit: what else arrives is late or forged.
fn is_reply_to(reply: &[u8], message: &[u8]) -> bool {
    reply.len() >= 12 && reply[..2] == message[..2] && reply[2] & 0x80 != 0
}

async fn by_tcp(server: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let length = u16::try_from(message.len()).map_err(|_| invalid("message too long"))?;
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    if is_reply_to(&reply, message) {
        Ok(reply)
    } else {
        Err(invalid("reply to something else"))
    }
}

/// Whether a message is a reply at all.
pub(super) fn is_response(message: &Message) -> bool {
    message.metadata.message_type == MessageType::Response
}
