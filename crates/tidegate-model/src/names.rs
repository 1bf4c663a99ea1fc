//! Names that were parsed once and are compared by value ever after.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("the name is empty")]
    Empty,
    /// RFC 1035 §2.3.4: at most 253 characters without the trailing dot.
    #[error("{0:?} is longer than 253 characters")]
    TooLong(String),
    /// A label is empty, longer than 63 characters or begins or ends with a hyphen.
    #[error("{name:?} has the invalid label {label:?}")]
    Label {
        /// The whole name as it was found.
        name: String,
        /// The first bad label.
        label: String,
    },
    /// A character that no hostname may have.
    #[error("{name:?} has the character {found:?}, which no hostname may have")]
    Character {
        /// The whole name as it was found.
        name: String,
        /// The first bad character.
        found: char,
    },
    /// `*` somewhere else than as the whole first label.
    #[error("{0:?} is not a host pattern: a wildcard may only be the whole first label")]
    Wildcard(String),
}

/// A canonical hostname: lower case, no trailing dot, no port; a DNS name or an IP address.
///
/// The one type for TLS, router, admin API and certificates, so that no two of them can read the same
/// input differently. IPv6 addresses are held without brackets.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Parses a DNS name or an IP address (IPv6 with or without brackets), in any case.
    pub fn parse(input: &str) -> Result<Self, NameError> {
        if input.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(ip) = parse_ip(input) {
            return Ok(Self(ip.to_canonical().to_string().into()));
        }
        let name = input.strip_suffix('.').unwrap_or(input);
        if name.len() > 253 {
            return Err(NameError::TooLong(input.to_owned()));
        }
        let mut lower = true;
        for label in name.split('.') {
            if label.is_empty()
                || label.len() > 63
                || label.starts_with('-')
                || label.ends_with('-')
            {
                return Err(NameError::Label {
                    name: input.to_owned(),
                    label: label.to_owned(),
                });
            }
            for c in label.chars() {
                match c {
                    'a'..='z' | '0'..='9' | '-' | '_' => {}
                    'A'..='Z' => lower = false,
                    '*' => return Err(NameError::Wildcard(input.to_owned())),
                    found => {
                        return Err(NameError::Character {
                            name: input.to_owned(),
                            found,
                        });
                    }
                }
            }
        }
        Ok(if lower {
            Self(name.into())
        } else {
            Self(name.to_ascii_lowercase().into())
        })
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, when the name is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// As it stands in a URL and in Host: an IPv6 address in brackets (RFC 3986 §3.2.2).
    pub fn in_url(&self) -> String {
        match self.ip() {
            Some(IpAddr::V6(ip)) => format!("[{ip}]"),
            _ => self.to_string(),
        }
    }

    /// The name without its first label, which is what a wildcard is looked up by.
    pub fn parent(&self) -> Option<&str> {
        if self.ip().is_some() {
            return None;
        }
        self.0.split_once('.').map(|(_, parent)| parent)
    }
}

fn parse_ip(input: &str) -> Option<IpAddr> {
    let inner = input
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match inner {
        Some(v6) => v6.parse().ok().filter(IpAddr::is_ipv6),
        None => input.parse().ok(),
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// An exact hostname, or `*.` and a parent that matches exactly one further label
/// (as a wildcard certificate does, RFC 6125 §6.4.3).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// Just this name.
    Exact(HostName),
    /// Any one label below this name.
    Wildcard(HostName),
}

impl HostPattern {
    /// Parses `name` or `*.name`.
    pub fn parse(input: &str) -> Result<Self, NameError> {
        match input.strip_prefix("*.") {
            Some(parent) => {
                let parent = HostName::parse(parent).map_err(|error| match error {
                    NameError::Wildcard(_) => NameError::Wildcard(input.to_owned()),
                    other => other,
                })?;
                if parent.ip().is_some() {
                    return Err(NameError::Wildcard(input.to_owned()));
                }
                Ok(Self::Wildcard(parent))
            }
            None => HostName::parse(input).map(Self::Exact),
        }
    }

    /// Whether the pattern covers the host.
    pub fn matches(&self, host: &HostName) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Wildcard(parent) => host.parent() == Some(parent.as_str()),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// Namespace and name of any object, as `namespace/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Kubernetes namespace; `default` for files that give none.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Joins the two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The object that a route came from.
pub type RouteId = ObjectName;

/// A rule of a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    /// Its route.
    pub route: RouteId,
    /// Its name within the route.
    pub rule: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostname_is_canonical() {
        for (input, expected) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("10.0.0.1", "10.0.0.1"),
            ("[2001:DB8::1]", "2001:db8::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("_acme.example", "_acme.example"),
        ] {
            assert_eq!(
                HostName::parse(input).unwrap().as_str(),
                expected,
                "{input}"
            );
        }
        for bad in [
            "", ".", "a..b", "-a.b", "a-.b", "a b", "a@b", "a/b", "a,b", "a:80", "*.b", "ä.de",
            "a\0b",
        ] {
            assert!(HostName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wildcard_covers_exactly_one_label() {
        let pattern = HostPattern::parse("*.example.com").unwrap();
        let matches = |host: &str| pattern.matches(&HostName::parse(host).unwrap());
        assert!(matches("A.example.com"));
        assert!(!matches("example.com"));
        assert!(!matches("a.b.example.com"));
        for bad in ["*", "*.", "a.*.b", "**.b", "*.10.0.0.1"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad:?}");
        }
    }
}
