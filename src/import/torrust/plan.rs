//! What becomes of each service of an environment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use tidegate_model::HostName;

use super::environment::{Environment, Service};
use super::{Home, Mistake, MixedAs, Options, objects, said};

/// What is going to be written, and what is to be said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Files of objects, in the order in which they are best read.
    pub files: Vec<PlannedFile>,
    /// Trackers of one process on two sides, of which nobody has said what becomes. The files then hold the mixed
    /// set for `translate` to refuse, and must not be written.
    pub mixed: Option<Mixed>,
    /// What was done, what was not, and what is next; ends with a line break.
    pub explanation: String,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its name, without folder.
    pub name: String,
    /// Its documents.
    pub text: String,
}

/// HTTP trackers of one process on two sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mixed {
    /// The three ways out, a line or more for each; ends with a line break.
    pub ways: String,
}

/// How announces reach an HTTP tracker; the words of `tracker.exposure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exposure {
    Https,
    Http,
    Direct,
}

impl Exposure {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Https => "HTTPS",
            Self::Http => "HTTP",
            Self::Direct => "Direct",
        }
    }
}

/// A tracker and what becomes of it.
#[derive(Debug)]
pub(super) struct Tracker<'a> {
    /// Name of its rule, such as `http1`.
    pub(super) rule: String,
    pub(super) service: &'a Service,
    pub(super) exposure: Exposure,
    /// Names it is announced to by; empty where neither a domain nor an address is known.
    pub(super) hostnames: Vec<String>,
}

/// A service that is no tracker.
#[derive(Debug)]
pub(super) struct Plain<'a> {
    pub(super) kind: PlainKind,
    pub(super) service: &'a Service,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlainKind {
    Api,
    Health,
    Grafana,
}

/// Who issues the certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Issuer {
    /// Nobody: there is no TLS.
    None,
    /// The edge's own CA: no name is public.
    Internal,
    /// Let's Encrypt, or its staging.
    Acme { staging: bool },
}

/// Every decision.
#[derive(Debug)]
pub(super) struct Decisions<'a> {
    pub(super) environment: &'a Environment,
    pub(super) options: &'a Options,
    pub(super) http: Vec<Tracker<'a>>,
    pub(super) udp: Vec<Tracker<'a>>,
    pub(super) plain: Vec<Plain<'a>>,
    pub(super) issuer: Issuer,
}

/// Decides what becomes of an environment.
///
/// # Errors
///
/// What stands in the way of the choice of [`Options::mixed_as`].
pub fn plan(environment: &Environment, options: &Options) -> Result<Plan, Vec<Mistake>> {
    let is_mixed = environment.http.iter().any(|one| one.use_tls_proxy)
        && environment.http.iter().any(|one| !one.use_tls_proxy);
    let chosen = options.mixed_as.filter(|_| is_mixed);
    let undecided = is_mixed && chosen.is_none();
    let mut mistakes = Vec::new();
    let http: Vec<Tracker<'_>> = environment
        .http
        .iter()
        .enumerate()
        .map(|(index, service)| {
            let exposure = exposure(service, chosen);
            let mut hostnames = names(service, exposure, options);
            if hostnames.is_empty() && undecided {
                // For the words of the refusal only.
                hostnames.push(service.bind.ip().to_string());
            }
            if hostnames.is_empty() && exposure != Exposure::Direct {
                mistakes.push(nameless(service, exposure));
            }
            Tracker {
                rule: format!("http{}", index + 1),
                service,
                exposure,
                hostnames,
            }
        })
        .collect();
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let udp = environment
        .udp
        .iter()
        .enumerate()
        .map(|(index, service)| Tracker {
            rule: format!("udp{}", index + 1),
            service,
            exposure: Exposure::Direct,
            hostnames: names(service, Exposure::Direct, options),
        })
        .collect();
    let plain = [
        (PlainKind::Api, &environment.api),
        (PlainKind::Health, &environment.health),
        (PlainKind::Grafana, &environment.grafana),
    ]
    .into_iter()
    .filter_map(|(kind, service)| {
        let service = service.as_ref()?;
        Some(Plain { kind, service })
    })
    .collect();
    let mut decisions = Decisions {
        environment,
        options,
        http,
        udp,
        plain,
        issuer: Issuer::None,
    };
    decisions.issuer = decisions.find_issuer();
    Ok(Plan {
        files: objects::files(&decisions),
        mixed: undecided.then(|| Mixed {
            ways: said::ways(&decisions),
        }),
        explanation: said::explanation(&decisions),
    })
}

fn exposure(service: &Service, chosen: Option<MixedAs>) -> Exposure {
    match chosen {
        Some(MixedAs::Https) => Exposure::Https,
        Some(MixedAs::Direct) => Exposure::Direct,
        _ if service.use_tls_proxy => Exposure::Https,
        Some(MixedAs::Http) => Exposure::Http,
        None => Exposure::Direct,
    }
}

/// What clients write into announce URLs.
fn names(service: &Service, exposure: Exposure, options: &Options) -> Vec<String> {
    match &service.domain {
        Some(domain) => vec![domain.as_str().to_owned()],
        // A certificate for a bare address is nothing that the file can have meant.
        None if exposure == Exposure::Https => Vec::new(),
        None => options.addresses.iter().map(ToString::to_string).collect(),
    }
}

fn nameless(service: &Service, exposure: Exposure) -> Mistake {
    let fix = match exposure {
        Exposure::Https => "write the hostname that its certificate is to be for",
        _ => "write a hostname, or give the machine's address with --public-address",
    };
    Mistake {
        path: format!("{}.domain", service.path),
        found: format!(
            "is missing, and the tracker is to be reached over {}",
            exposure.as_str()
        ),
        fix: fix.to_owned(),
    }
}

impl Decisions<'_> {
    /// Names that the edge needs certificates for.
    pub(super) fn tls_names(&self) -> BTreeSet<&str> {
        let trackers = self
            .http
            .iter()
            .filter(|one| one.exposure == Exposure::Https)
            .flat_map(|one| one.hostnames.iter().map(String::as_str));
        let plain = self
            .plain
            .iter()
            .filter(|one| one.service.use_tls_proxy)
            .filter_map(|one| Some(one.service.domain.as_ref()?.as_str()));
        trackers.chain(plain).collect()
    }

    fn find_issuer(&self) -> Issuer {
        let names = self.tls_names();
        if names.is_empty() {
            Issuer::None
        } else if names.iter().all(|name| is_private(name)) {
            Issuer::Internal
        } else {
            let https = self.environment.https.as_ref();
            Issuer::Acme {
                staging: https.is_some_and(|https| https.use_staging),
            }
        }
    }

    /// What `on_reverse_proxy` has to be; None where there is no HTTP tracker.
    pub(super) fn on_reverse_proxy(&self) -> Option<bool> {
        let first = self.http.first()?;
        Some(first.exposure != Exposure::Direct)
    }

    /// Where a backend listens, for people.
    pub(super) fn backend(&self, service: &Service, of_grafana: bool) -> String {
        match self.options.home {
            Home::Folder => local(service.bind).to_string(),
            Home::Kubernetes if of_grafana => {
                format!("{}:{}", self.options.grafana_service, service.bind.port())
            }
            Home::Kubernetes => {
                format!("{}:{}", self.options.tracker_service, service.bind.port())
            }
        }
    }

    /// Ports that the DNS TXT records of BEP 34 name, by hostname: those of UDP, then those of TCP.
    pub(super) fn announced(&self) -> BTreeMap<&str, (BTreeSet<u16>, BTreeSet<u16>)> {
        let mut announced: BTreeMap<&str, (BTreeSet<u16>, BTreeSet<u16>)> = BTreeMap::new();
        for tracker in &self.udp {
            for name in domains(tracker) {
                let (udp, _) = announced.entry(name).or_default();
                udp.insert(tracker.service.bind.port());
            }
        }
        for tracker in &self.http {
            for name in domains(tracker) {
                let (_, tcp) = announced.entry(name).or_default();
                tcp.insert(match tracker.exposure {
                    Exposure::Https => 443,
                    Exposure::Http | Exposure::Direct => tracker.service.bind.port(),
                });
            }
        }
        announced
    }
}

fn domains<'a>(tracker: &'a Tracker<'_>) -> impl Iterator<Item = &'a str> {
    tracker.service.domain.iter().map(HostName::as_str)
}

/// The address at which this machine reaches what is bound there.
pub(super) fn local(bind: SocketAddr) -> SocketAddr {
    if bind.ip().is_unspecified() {
        SocketAddr::from(([127, 0, 0, 1], bind.port()))
    } else {
        bind
    }
}

/// Names that no public authority certifies (RFC 6761, 6762, 8375, 9476).
pub(super) fn is_private(name: &str) -> bool {
    [
        "local",
        "localhost",
        "test",
        "internal",
        "lan",
        "home.arpa",
        "invalid",
    ]
    .iter()
    .any(|end| {
        name.strip_suffix(end)
            .is_some_and(|rest| rest.ends_with('.'))
    })
}
