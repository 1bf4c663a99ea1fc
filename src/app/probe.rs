//! `tidegate probe`: whether something answers, at every address of its name.
//!
//! The image has no shell and no curl; this is what `helm test` runs. It knows nothing of a particular edge, which
//! may be another pod. Certificates are not looked at: before the first route there is none, so of HTTPS only the
//! connection is tried.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::str::FromStr;
use std::time::{Duration, Instant};

use http::Uri;

/// Longest time for one connection, so that one address does not use up the patience for all.
const CONNECTION: Duration = Duration::from_secs(5);
/// Pause before a target is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// An answer's first line is shorter.
const LONGEST_LINE: u64 = 1024;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    text: String,
    host: String,
    port: u16,
    /// Path and query of an HTTP request; `None`: only the connection is tried.
    path: Option<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a target: write http://HOST:PORT/PATH or tcp://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?;
        let (port, path) = match uri.scheme_str() {
            Some("http") => {
                let path = uri.path_and_query().map_or("/", |it| it.as_str());
                (uri.port_u16().unwrap_or(80), Some(path.to_owned()))
            }
            Some("tcp") if uri.path().trim_matches('/').is_empty() => {
                (uri.port_u16().ok_or_else(wrong)?, None)
            }
            _ => return Err(wrong()),
        };
        Ok(Self {
            text: text.to_owned(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            path,
        })
    }
}

/// Why a target does not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No address of the name is known.
    #[error("find the addresses of {name}")]
    Resolve {
        /// The name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The name has no address.
    #[error("find the addresses of {0}: it has none")]
    NoAddress(String),
    /// No connection, or no answer.
    #[error("ask {address}")]
    Ask {
        /// Who was asked.
        address: SocketAddr,
        /// What happened.
        source: io::Error,
    },
    /// Something that is not HTTP, or an answer of class 5xx.
    #[error("ask {address}: it answers {answer:?}")]
    Answer {
        /// Who was asked.
        address: SocketAddr,
        /// The answer's first line.
        answer: String,
    },
}

/// An address that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Who answers.
    pub address: SocketAddr,
    /// What: the status line's code and phrase, or that a connection was made.
    pub said: String,
}

/// Asks until every address of the target answers or the deadline has passed, and at least once.
pub fn probe(target: &Target, deadline: Instant) -> Result<Vec<Answer>, ProbeError> {
    loop {
        match attempt(target) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(AGAIN),
            outcome => return outcome,
        }
    }
}

fn attempt(target: &Target) -> Result<Vec<Answer>, ProbeError> {
    let found = (target.host.as_str(), target.port).to_socket_addrs();
    let found = found.map_err(|source| ProbeError::Resolve {
        name: target.host.clone(),
        source,
    })?;
    let addresses: BTreeSet<SocketAddr> = found.collect();
    if addresses.is_empty() {
        return Err(ProbeError::NoAddress(target.host.clone()));
    }
    addresses.into_iter().map(|it| ask(target, it)).collect()
}

fn ask(target: &Target, address: SocketAddr) -> Result<Answer, ProbeError> {
    let line = first_line(target, address).map_err(|source| ProbeError::Ask { address, source })?;
    let Some(line) = line else {
        let said = "connected".to_owned();
        return Ok(Answer { address, said });
    };
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split_once(' '))
        .map(|(_, status)| status.trim());
    match status {
        // Whatever the request deserves: somebody is there who can tell.
        Some(status) if matches!(status.as_bytes().first(), Some(b'1'..=b'4')) => Ok(Answer {
            address,
            said: status.to_owned(),
        }),
        _ => Err(ProbeError::Answer {
            address,
            answer: line,
        }),
    }
}

/// The first line of the answer to a request; `None` where none is made.
fn first_line(target: &Target, address: SocketAddr) -> io::Result<Option<String>> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECTION)?;
    let Some(path) = &target.path else {
        return Ok(None);
    };
    stream.set_read_timeout(Some(CONNECTION))?;
    stream.set_write_timeout(Some(CONNECTION))?;
    // The address as host: the admin listener answers no names but those it was told.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_until(b'\n', &mut line)?;
    Ok(Some(String::from_utf8_lossy(&line).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection after the other with these texts.
    fn server(answers: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                while !request.ends_with("\r\n\r\n") {
                    lines.read_line(&mut request).unwrap();
                }
                let wanted = format!("GET /readyz?a HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n");
                assert!(request.starts_with(&wanted), "{request}");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        port
    }

    fn target(port: u16) -> Target {
        let text = format!("http://127.0.0.1:{port}/readyz?a");
        text.parse().unwrap()
    }

    fn patience() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn targets_are_understood() {
        let target: Target = "http://edge".parse().unwrap();
        assert_eq!((target.port, target.path.as_deref()), (80, Some("/")));
        let target: Target = "tcp://[::1]:443".parse().unwrap();
        assert_eq!(
            (&*target.host, target.port, target.path),
            ("::1", 443, None)
        );
        let wrong = [
            "edge",
            "https://edge/",
            "tcp://edge",
            "tcp://edge:1/a",
            "http://",
            "/a",
            "",
        ];
        for wrong in wrong {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn waits_until_it_is_well() {
        let port = server(&[
            "HTTP/1.1 503 Service Unavailable\r\n\r\n",
            "",
            "nonsense\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
        ]);
        let answers = probe(&target(port), patience()).unwrap();
        assert_eq!(answers[0].said, "404 Not Found");
    }

    #[test]
    fn says_what_is_wrong_when_the_time_is_over() {
        let port = server(&["HTTP/1.0 503 Service Unavailable\r\n\r\n"]);
        let error = probe(&target(port), Instant::now()).unwrap_err();
        let wanted =
            format!("ask 127.0.0.1:{port}: it answers \"HTTP/1.0 503 Service Unavailable\"");
        assert_eq!(error.to_string(), wanted);
        // Nobody listens there.
        let error = probe(&target(1), Instant::now()).unwrap_err();
        assert!(matches!(error, ProbeError::Ask { .. }), "{error}");
    }

    #[test]
    fn a_connection_is_enough_without_a_request() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let target: Target = format!("tcp://127.0.0.1:{port}").parse().unwrap();
        assert_eq!(probe(&target, patience()).unwrap()[0].said, "connected");
    }
}
