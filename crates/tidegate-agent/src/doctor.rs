//! Tries every step of the way to every edge and says which carrier works and why others do not.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use tidegate_model::Carrier;
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::{Config, Edge, Proxies};
use crate::dial::{self, Clock, DialError, Dialer, proxy};
use crate::link::{Common, Wishes, establish};
use crate::stream::Stream;
use crate::table::Registry;
use crate::trust::{self, Trust, TrustError};

/// What was found on the way to one edge.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Examined {
    /// The edge.
    pub edge: String,
    /// Each step, in order.
    pub steps: Vec<Step>,
    /// `Direct`, `WebSocket` or none: what the agent would use.
    pub carrier: Option<&'static str>,
    /// In one sentence.
    pub verdict: String,
}

/// One step of the way.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What was tried.
    pub name: &'static str,
    /// How it went.
    pub state: StepState,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StepState {
    /// It works.
    Good,
    /// It works, and something is to be known.
    Notable,
    /// It does not work.
    Bad,
}

impl Examined {
    /// Whether the agent would be connected.
    pub fn is_good(&self) -> bool {
        self.carrier.is_some()
    }

    fn step(&mut self, name: &'static str, state: StepState, found: String) -> &mut Step {
        self.steps.push(Step {
            name,
            state,
            found,
            fix: None,
        });
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }
}

/// Examines all edges of the configuration.
pub async fn examine(config: &Config) -> Result<Vec<Examined>, TrustError> {
    let instance: Arc<str> = format!("{:032x}", fastrand::u128(..)).into();
    let dialer = Dialer {
        trust: Trust::load(config.ca_file.as_deref())?,
        proxy: config.proxy.clone(),
        agent: config.agent.clone(),
        token: config.token.clone(),
        instance: Arc::clone(&instance),
        clock: Arc::<Clock>::default(),
    };
    let common = Arc::new(Common {
        instance,
        registry: Registry::default(),
        // A look must not change what the edge serves.
        wishes: watch::channel(Arc::<Wishes>::default()).1,
        allow: watch::channel(config.allow_targets.clone().into()).1,
        verdicts: watch::channel(Vec::new()).0,
    });
    let mut all = Vec::new();
    for edge in &config.edges {
        all.push(edge_of(&dialer, &common, edge).await);
    }
    Ok(all)
}

async fn edge_of(dialer: &Dialer, common: &Arc<Common>, edge: &Edge) -> Examined {
    let mut examined = Examined {
        edge: edge.url(),
        steps: Vec::new(),
        carrier: None,
        verdict: String::new(),
    };
    let proxied = the_proxy(&mut examined, dialer, edge);
    if !proxied {
        names(&mut examined, edge).await;
    }
    if !reach(&mut examined, dialer, edge, proxied).await {
        "the edge cannot be reached from here".clone_into(&mut examined.verdict);
        return examined;
    }
    let trusted = tls(&mut examined, dialer, edge).await;
    let mut errors = Vec::new();
    for carrier in [Carrier::Direct, Carrier::WebSocket] {
        match one_carrier(&mut examined, dialer, common, edge, carrier).await {
            Ok(()) => examined.carrier = examined.carrier.or(Some(carrier.name())),
            Err(error) => errors.push((carrier, error)),
        }
    }
    examined.verdict = verdict(&errors, trusted);
    examined
}

fn the_proxy(examined: &mut Examined, dialer: &Dialer, edge: &Edge) -> bool {
    let Some(proxy) = dialer.proxy.to(edge) else {
        let found = match dialer.proxy {
            Proxies::None => "none, because the configuration says so",
            _ => "none",
        };
        examined.step("proxy", StepState::Good, found.to_owned());
        return false;
    };
    let from = match dialer.proxy {
        Proxies::Environment => "from HTTPS_PROXY or ALL_PROXY",
        _ => "from the configuration",
    };
    let login = if proxy.basic_auth().is_some() || proxy.raw_auth().is_some() {
        ", with user name and password"
    } else {
        ""
    };
    let found = format!("{} {from}{login}", proxy::shown(proxy.uri()));
    examined.step("proxy", StepState::Good, found);
    true
}

async fn names(examined: &mut Examined, edge: &Edge) {
    let begin = Instant::now();
    let resolving = tokio::net::lookup_host((edge.host.as_str(), edge.port));
    let found = match timeout(dial::CONNECT, resolving).await {
        Err(_) => Err("no name server answers".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(addresses)) => {
            let addresses: Vec<String> = addresses.map(|it| it.ip().to_string()).collect();
            if addresses.is_empty() {
                Err("the name has no address".to_owned())
            } else {
                Ok(addresses.join(", "))
            }
        }
    };
    match found {
        Ok(addresses) => {
            let found = format!("{addresses} in {}", shown(begin.elapsed()));
            examined.step("name", StepState::Good, found);
        }
        Err(found) => {
            let fix = format!(
                "look at the name {} and at this machine's name servers (/etc/resolv.conf); where only a proxy \
                 resolves names, set HTTPS_PROXY",
                edge.host.as_str()
            );
            examined.step("name", StepState::Bad, found).fix = Some(fix);
        }
    }
}

async fn reach(examined: &mut Examined, dialer: &Dialer, edge: &Edge, proxied: bool) -> bool {
    let begin = Instant::now();
    let name = if proxied { "through the proxy" } else { "tcp" };
    match dialer.transport(edge).await {
        Ok(_) => {
            let found = format!("port {} answers in {}", edge.port, shown(begin.elapsed()));
            examined.step(name, StepState::Good, found);
            true
        }
        Err(error) => {
            let fix = dial::advice(&error, edge).unwrap_or_else(|| {
                if proxied {
                    return dial::through_proxy(edge);
                }
                format!(
                    "let this machine out to TCP port {}; where that goes through a proxy only, set HTTPS_PROXY",
                    edge.port
                )
            });
            let found = chain(&error).to_string();
            examined.step(name, StepState::Bad, found).fix = Some(fix);
            false
        }
    }
}

/// Tells who issued the certificate, verified or not. Returns whether it is trusted.
async fn tls(examined: &mut Examined, dialer: &Dialer, edge: &Edge) -> bool {
    let issuer = match certificate(dialer, edge).await {
        Ok(issuer) => issuer,
        Err(error) => {
            let fix =
                "the other end of the port speaks no TLS: look at the edge's address and port";
            let found = chain(&error).to_string();
            examined.step("tls", StepState::Bad, found).fix = Some(fix.to_owned());
            return false;
        }
    };
    let roots = trust::client(&trust::system_roots(), &[b"http/1.1"]);
    let by_system = match roots {
        Ok(config) => handshake(dialer, edge, Arc::new(config)).await,
        Err(error) => Err(io::Error::other(error)),
    };
    if by_system.is_ok() {
        let found = format!("verified; issued by {issuer}");
        examined.step("tls", StepState::Good, found);
        return true;
    }
    let config = trust::client(dialer.trust.roots(), &[b"http/1.1"]);
    let result = match config {
        Ok(config) => handshake(dialer, edge, Arc::new(config)).await,
        Err(error) => Err(io::Error::other(error)),
    };
    match result {
        Ok(()) => {
            let found = format!(
                "verified by caFile only; issued by {issuer}. A private authority, or a network that opens TLS"
            );
            examined.step("tls", StepState::Notable, found);
            true
        }
        Err(error) => {
            let found = format!("{error}; issued by {issuer}");
            let fix = "if that is not the edge's authority, this network opens TLS: put the network's authority \
                       into a file and name it by caFile; if the edge has a private authority, name that one \
                       (`tidegate ca` prints it)";
            examined.step("tls", StepState::Bad, found).fix = Some(fix.to_owned());
            false
        }
    }
}

async fn certificate(dialer: &Dialer, edge: &Edge) -> Result<String, DialError> {
    let config = trust::unverified(&[b"http/1.1"])
        .map_err(|error| DialError::Tls(io::Error::other(error)))?;
    let transport = dialer.transport(edge).await?;
    let name = dial::server_name(edge).map_err(DialError::Tls)?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, transport);
    let tls = timeout(dial::TLS, connecting).await;
    let tls = tls
        .map_err(|_| DialError::Timeout("TLS", dial::TLS))?
        .map_err(DialError::Tls)?;
    let issuer = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(issuer);
    Ok(issuer.unwrap_or_else(|| "nobody".to_owned()))
}

fn issuer(certificate: &CertificateDer<'_>) -> String {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, parsed)) => parsed.issuer().to_string(),
        Err(_) => "somebody whose name cannot be read".to_owned(),
    }
}

async fn handshake(dialer: &Dialer, edge: &Edge, config: Arc<ClientConfig>) -> io::Result<()> {
    let transport: Stream = dialer.transport(edge).await.map_err(io::Error::other)?;
    let connecting = TlsConnector::from(config).connect(dial::server_name(edge)?, transport);
    timeout(dial::TLS, connecting)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
        .map(drop)
}

async fn one_carrier(
    examined: &mut Examined,
    dialer: &Dialer,
    common: &Arc<Common>,
    edge: &Edge,
    carrier: Carrier,
) -> Result<(), DialError> {
    let name = match carrier {
        Carrier::Direct => "direct",
        Carrier::WebSocket => "websocket",
    };
    let begin = Instant::now();
    // Beside the links of a running agent, which are 0 to 3.
    let dialled = async {
        let bytes = dialer.carry(edge, carrier, 9).await?;
        establish(bytes, edge.clone(), carrier, 9, common).await
    };
    match dialled.await {
        Ok(link) => {
            let welcome = &link.welcome;
            let found = format!(
                "link in {} to replica {:?} of {}, edge {}",
                shown(begin.elapsed()),
                welcome.replica,
                welcome.replicas,
                welcome.edge_version
            );
            examined.step(name, StepState::Good, found);
            link.leave("Doctor", Duration::from_secs(3)).await;
            Ok(())
        }
        Err(error) => {
            let found = format!("{}: {}", error.reason(), chain(&error));
            examined.step(name, StepState::Bad, found).fix = dial::advice(&error, edge);
            Err(error)
        }
    }
}

fn verdict(errors: &[(Carrier, DialError)], trusted: bool) -> String {
    let refused = errors.iter().find(|(_, error)| error.is_final());
    match errors {
        [] => "both carriers work; the agent uses the direct one".to_owned(),
        [(Carrier::Direct, DialError::NotDirect)] => {
            "WebSocket works; the direct carrier does not, because something in between opens TLS"
                .to_owned()
        }
        [(failed, error)] => {
            let other = match failed {
                Carrier::Direct => "WebSocket works",
                Carrier::WebSocket => "the direct carrier works",
            };
            format!("{other}; the other one does not: {}", error.reason())
        }
        _ => match refused {
            Some((_, error)) => format!("the edge answers and refuses: {}", error.reason()),
            None if !trusted => {
                "the edge's certificate is not trusted, so nothing is sent there".to_owned()
            }
            None => "no carrier works".to_owned(),
        },
    }
}

fn shown(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
