//! What an agent is told to do: from flags, the environment and a file of YAML, in this order.
//!
//! [`Config`] is complete and valid. Everything that is wrong is said at once, each with the field, what was found
//! and how to mend it. The token is read when it is needed, so that a new one needs no restart; it is never an
//! argument of the process and never printed.

mod file;
mod given;
mod problem;
pub(crate) mod target_rule;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tidegate_model::{AgentId, HostName, RequestedMapping, Secret};

pub use given::Given;
pub use problem::{ConfigError, Problem};
pub use target_rule::TargetRule;

/// Where the status page is unless told otherwise.
pub const STATUS: &str = "127.0.0.1:19181";
/// Links unless told otherwise: one may end without anybody noticing.
pub const LINKS: u8 = 2;
/// More than a few links carry nothing more.
pub const MOST_LINKS: u8 = 4;
/// The edge takes no more from one agent's wishes.
const MOST_MAPPINGS: usize = 256;

/// What an agent does.
#[derive(Debug, Clone)]
pub struct Config {
    /// Edges in the order in which they are tried.
    pub edges: Vec<Edge>,
    /// Who the agent is.
    pub agent: AgentId,
    /// Where its token is.
    pub token: TokenSource,
    /// How edges are reached.
    pub proxy: Proxies,
    /// More authorities for the edge's certificate, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How many links are kept, 1 to 4.
    pub links: u8,
    /// Where the status page listens.
    pub status: Option<SocketAddr>,
    /// What the edge may send the agent to; everything when empty.
    pub allow_targets: Vec<TargetRule>,
    /// What the agent asks for.
    pub mappings: Vec<RequestedMapping>,
}

/// An edge to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Edge {
    /// Name or address.
    pub host: HostName,
    /// TCP port.
    pub port: u16,
}

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// In a file, which is read before every handshake.
    File(PathBuf),
    /// In the environment.
    Environment(Secret<String>),
}

/// Which proxy leads to an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxies {
    /// What the environment says: `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`.
    Environment,
    /// None, whatever the environment says.
    None,
    /// This one. It may hold a password.
    Fixed(Secret<String>),
}

// === impl Config ===

impl Config {
    /// Joins what was given with what the file says, which is read if there is one.
    pub fn load(given: &Given) -> Result<Self, ConfigError> {
        let file = match &given.config {
            Some(path) => file::read(path)?,
            None => file::File::default(),
        };
        given.join(file).map_err(ConfigError::Invalid)
    }

    /// What of `newer` cannot be taken over without a restart: names of fields.
    pub fn fixed_differences(&self, newer: &Self) -> Vec<&'static str> {
        let fields = [
            ("agent", self.agent != newer.agent),
            ("links", self.links != newer.links),
            ("status", self.status != newer.status),
        ];
        let differs = fields.into_iter().filter(|(_, differs)| *differs);
        differs.map(|(field, _)| field).collect()
    }
}

// === impl Edge ===

impl Edge {
    /// Reads `https://edge.example.com[:443]`, or the name alone.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = || format!("{text:?} is not the address of an edge");
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => rest,
            Some((scheme, _)) => {
                return Err(format!(
                    "{text:?} begins with {scheme}:// and not with https://"
                ));
            }
            None => text,
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(format!("{text:?} has a path"));
        }
        if authority.contains('@') {
            // Whatever stands there may be a secret.
            return Err("it has a user name".to_owned());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((_, after)) if after.ends_with(']') => (authority, 443),
            Some((host, digits)) if digits.bytes().all(|c| c.is_ascii_digit()) => {
                (host, digits.parse().map_err(|_| found())?)
            }
            Some(_) => return Err(found()),
            None => (authority, 443),
        };
        if port == 0 {
            return Err(found());
        }
        let host = HostName::parse(host).map_err(|error| format!("{text:?}: {error}"))?;
        Ok(Self { host, port })
    }

    /// Host, and port where it is not 443: what stands in `Host` and in proofs.
    pub fn authority(&self) -> String {
        let host = self.host.in_url();
        match self.port {
            443 => host,
            port => format!("{host}:{port}"),
        }
    }

    /// As a URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.authority())
    }
}

// === impl TokenSource ===

impl TokenSource {
    /// The token as it is now. The error names the place and shows nothing of what is there.
    pub fn read(&self) -> Result<Secret<String>, String> {
        match self {
            Self::Environment(token) => Ok(token.clone()),
            Self::File(path) => read_token(path),
        }
    }
}

fn read_token(path: &Path) -> Result<Secret<String>, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("read the token in {shown}: {error}"))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(format!("read the token in {shown}: the file is empty"));
    }
    Ok(Secret::new(token.to_owned()))
}

// === impl Proxies ===

impl Proxies {
    /// The proxy for an edge.
    pub fn to(&self, edge: &Edge) -> Option<Intercept> {
        let matcher = match self {
            Self::None => return None,
            Self::Environment => Matcher::from_env(),
            Self::Fixed(proxy) => Matcher::builder().all(proxy.expose().as_str()).build(),
        };
        let uri: Uri = edge.url().parse().ok()?;
        matcher.intercept(&uri)
    }
}
