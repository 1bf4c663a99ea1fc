//! Reads golden inputs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber};
use serde::Deserialize;
use serde_json::Value;
use tidegate_model::{
    Carrier, CertificateOrigin, Hop, ListenError, ObjectName, ObservedAgent, ObservedProbe,
    ObservedSession, PortId, PortListener, PortSet, PortState, ProbeFailure, Reach,
    RequestedMapping, RouteId, RuleId, Transport,
};

use super::now;
use crate::translate::{
    ConfigMapData, FoundService, Inputs, PortPolicy, ProgramPolicy, PublicPlace, SecretData,
    ServiceData, ServiceKeeper, ServicePortData, ServiceResolution, ServiceSpec, StaticFilesPolicy,
    UdpServicePort, parse_certificate,
};

/// A certificate that is made for the test.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TestCertificate {
    #[serde(rename = "kind")]
    _kind: String,
    names: Vec<String>,
    #[serde(default)]
    secret: Option<String>,
    #[serde(default)]
    issued_for: Option<String>,
    #[serde(default)]
    default: bool,
    #[serde(default)]
    days_left: Option<i64>,
    #[serde(default)]
    key_of_another: bool,
    #[serde(default)]
    ca: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TestEnvironment {
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    programs_refused: bool,
    #[serde(default)]
    class_name: Option<String>,
    #[serde(default)]
    static_within: Option<PathBuf>,
    #[serde(default)]
    static_relative_to: Option<PathBuf>,
    /// Services are objects, and namespaces belong to different people.
    #[serde(default)]
    cluster: bool,
    #[serde(default)]
    allow_addresses: Vec<String>,
    #[serde(default)]
    refuse_addresses: Vec<String>,
    #[serde(default)]
    api_server: Vec<SocketAddr>,
    #[serde(default)]
    system_namespace: String,
    /// Addresses and names at which the edge is reached.
    #[serde(default)]
    reached_at: Vec<String>,
    #[serde(default)]
    https_port: Option<u16>,
    /// Services of UDP trackers are made by people.
    #[serde(default)]
    services_by_hand: bool,
    /// Services that cannot be written, and why.
    #[serde(default)]
    refused_services: BTreeMap<String, String>,
    #[serde(default)]
    plain_ports: Option<Vec<u16>>,
    /// Ports that agents may have.
    #[serde(default)]
    tunnel_ports: Option<Vec<String>>,
    /// Ports that cannot be listened on, and what the system says.
    #[serde(default)]
    broken_ports: BTreeMap<u16, String>,
    /// An edge runs that can tell of agents, with that many replicas.
    #[serde(default)]
    replicas: Option<usize>,
}

/// What is known of an agent.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TestAgent {
    #[serde(rename = "kind")]
    _kind: String,
    name: String,
    #[serde(default)]
    sessions: Vec<TestSession>,
    /// Seconds before now.
    #[serde(default)]
    last_seen: Option<u64>,
    /// Name, target, and hop, reason and message where it fails.
    #[serde(default)]
    probes: Vec<TestProbe>,
    /// Name, hostname or port, and target.
    #[serde(default)]
    asks: Vec<(String, String, String)>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TestProbe {
    name: String,
    target: String,
    #[serde(default)]
    fails: Option<(String, String, String)>,
    #[serde(default)]
    instance: u8,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TestSession {
    id: String,
    replica: String,
    #[serde(default)]
    link: u8,
    #[serde(default)]
    rtt: Option<u64>,
    #[serde(default)]
    draining: bool,
}

/// A Service and who is ready behind it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TestService {
    #[serde(rename = "kind")]
    _kind: String,
    name: String,
    #[serde(default)]
    external_name: Option<String>,
    #[serde(default)]
    ports: Vec<TestPort>,
    #[serde(default)]
    udp_ports: Vec<TestPort>,
    /// What matters of one with UDP ports.
    #[serde(default)]
    udp: Option<TestUdpService>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct TestUdpService {
    selector: BTreeMap<String, String>,
    /// Route and rule it was made for.
    made_for: Option<(String, String)>,
    type_: String,
    local: bool,
    port: u16,
    target: String,
    node_port: Option<u16>,
    load_balancer_ip: Option<String>,
    reached_at: Vec<IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TestPort {
    port: u16,
    #[serde(default)]
    app_protocol: Option<String>,
    #[serde(default)]
    ready: Vec<SocketAddr>,
}

/// The documents of a YAML text.
pub(super) fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple::<Value>(text)
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
        .into_iter()
        .filter(|document| !document.is_null())
        .collect()
}

/// One set of inputs per step.
pub(super) fn steps(text: &str) -> Vec<Inputs> {
    let mut steps = vec![Inputs::default()];
    for document in documents(text) {
        if document["kind"] == "Next" {
            steps.push(Inputs::default());
            continue;
        }
        add(steps.last_mut().unwrap(), document);
    }
    steps
}

/// Adds a document to the inputs.
pub(super) fn add(inputs: &mut Inputs, document: Value) {
    let kind = document["kind"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "TlsRoute" => inputs.routes.push(Arc::new(strict(document))),
        "TunnelAgent" => inputs.agents.push(Arc::new(strict(document))),
        "AcmeIssuer" => inputs.issuers.push(Arc::new(strict(document))),
        "Secret" => {
            let data = texts(&document["stringData"])
                .map(|(key, value)| (key, value.into_bytes()))
                .collect();
            let type_ = document["type"].as_str().unwrap_or("Opaque").to_owned();
            inputs
                .secrets
                .insert(name_of(&document), Arc::new(SecretData { type_, data }));
        }
        "ConfigMap" => {
            let data = texts(&document["data"]).collect();
            inputs
                .config_maps
                .insert(name_of(&document), Arc::new(ConfigMapData { data }));
        }
        "TestService" => {
            let wire: TestService = strict(document);
            let ports = |wire: Vec<TestPort>| {
                let ports = wire.into_iter().map(|port| ServicePortData {
                    port: port.port,
                    app_protocol: port.app_protocol,
                    addresses: port.ready,
                });
                ports.collect()
            };
            let name = split(&wire.name);
            let udp = wire.udp.map(|udp| Arc::new(udp_service(&name, udp)));
            let data = ServiceData {
                external_name: wire.external_name,
                ports: ports(wire.ports),
                udp_ports: ports(wire.udp_ports),
                udp,
            };
            inputs.services.insert(name, Arc::new(data));
        }
        "TestAgent" => agent(inputs, strict(document)),
        "TestCertificate" => certificate(inputs, &strict(document)),
        "TestEnvironment" => {
            let wire: TestEnvironment = strict(document);
            if wire.programs_refused {
                inputs.environment.programs = ProgramPolicy::Refused;
            }
            inputs.environment.class_name = wire.class_name;
            inputs.environment.system_namespace = wire.system_namespace;
            inputs.https_port = wire.https_port;
            if wire.services_by_hand {
                inputs.environment.service_keeper = ServiceKeeper::Person;
            }
            let refused = wire.refused_services.into_iter();
            let refused = refused.map(|(name, error)| (split(&name), error));
            inputs.service_refusals = Arc::new(refused.collect());
            inputs.environment.plain_ports = wire.plain_ports;
            inputs.environment.ports = wire.tunnel_ports.map(|allowed| {
                Arc::new(PortPolicy {
                    allowed: PortSet::parse(&allowed).unwrap(),
                    own: [80, 443, 9180].into(),
                })
            });
            let broken = wire
                .broken_ports
                .into_iter()
                .map(|(number, said)| PortState {
                    id: PortId {
                        number,
                        transport: Transport::Tcp,
                    },
                    listeners: vec![PortListener {
                        address: SocketAddr::from(([0, 0, 0, 0], number)),
                        error: Some(match &*said {
                            "InUse" => ListenError::InUse,
                            "NotPermitted" => ListenError::NotPermitted,
                            _ => ListenError::Other(said),
                        }),
                    }],
                });
            inputs.ports = Some(Arc::new(broken.collect()));
            if let Some(replicas) = wire.replicas {
                Arc::make_mut(inputs.agents_seen.get_or_insert_default()).replicas = replicas;
            }
            for place in wire.reached_at {
                match place.parse() {
                    Ok(address) => inputs.place.addresses.insert(address),
                    Err(_) => inputs.place.names.insert(place),
                };
            }
            if wire.cluster {
                inputs.environment.services = ServiceResolution::Objects;
                let reach = Reach::limited(
                    networks(&wire.allow_addresses),
                    networks(&wire.refuse_addresses),
                );
                inputs.environment.reach = Arc::new(reach.with_api_server(wire.api_server));
            }
            if let Some(folder) = wire.static_within {
                inputs.environment.static_files = StaticFilesPolicy::Within(folder);
            }
            if let Some(folder) = wire.static_relative_to {
                inputs.environment.static_files = StaticFilesPolicy::RelativeTo(folder);
            }
        }
        // Samples may hold other kinds, such as a Service.
        _ => {}
    }
}

fn agent(inputs: &mut Inputs, wire: TestAgent) {
    let id = split(&wire.name);
    let asks = wire.asks.into_iter();
    let asks = asks.map(|(name, public, target)| RequestedMapping {
        name,
        port: public.parse().ok(),
        hostname: if public.parse::<u16>().is_ok() {
            String::new()
        } else {
            public
        },
        target,
        ..RequestedMapping::default()
    });
    let requested: Vec<_> = asks.collect();
    let sessions = wire.sessions.into_iter().map(|wire| ObservedSession {
        id: wire.id,
        instance: "0123456789abcdef0123456789abcdef".to_owned(),
        link: wire.link,
        carrier: Carrier::Direct,
        address: SocketAddr::from(([203, 0, 113, 9], 40000 + u16::from(wire.link))),
        since: now() - Duration::from_secs(60),
        rtt: wire.rtt.map(Duration::from_millis),
        version: "0.1.0".to_owned(),
        replica: wire.replica,
        draining: wire.draining,
        in_flight: 0,
        requests: 7,
        bytes_sent: 0,
        bytes_received: 0,
    });
    let seen = ObservedAgent {
        id: id.clone(),
        sessions: sessions.collect(),
        requested: requested.clone(),
        last_seen: wire.last_seen.map(|ago| now() - Duration::from_secs(ago)),
        probes: wire.probes.into_iter().map(probe).collect(),
    };
    let all = Arc::make_mut(inputs.agents_seen.get_or_insert_default());
    all.agents.insert(id.clone(), seen);
    Arc::make_mut(&mut inputs.agent_requests).insert(id, requested);
}

fn probe(wire: TestProbe) -> ObservedProbe {
    ObservedProbe {
        names: vec![wire.name],
        target: wire.target,
        instance: format!("{:x}", wire.instance).repeat(32),
        connect: None,
        total: Some(Duration::from_millis(3)),
        failure: wire.fails.map(|(hop, reason, message)| ProbeFailure {
            hop: Hop::parse(&hop).unwrap(),
            reason,
            message,
        }),
    }
}

fn udp_service(name: &ObjectName, wire: TestUdpService) -> FoundService {
    FoundService {
        made_for: wire.made_for.map(|(route, rule)| RuleId {
            route: RouteId::new(Arc::clone(&name.namespace), route),
            rule,
        }),
        uid: format!("uid of {name}"),
        owner: None,
        spec: ServiceSpec {
            type_: wire.type_,
            local: wire.local,
            sticky: true,
            selector: wire.selector,
            ports: vec![UdpServicePort {
                port: wire.port,
                target: wire.target,
                node_port: wire.node_port,
            }],
            families: vec!["IPv4".to_owned()],
            family_policy: Some("SingleStack".to_owned()),
            load_balancer_ip: wire.load_balancer_ip,
        },
        place: PublicPlace {
            addresses: wire.reached_at.into_iter().collect(),
            ..PublicPlace::default()
        },
    }
}

/// Reads a document; a field that nobody knows is a mistake in the test.
pub(super) fn strict<T: serde::de::DeserializeOwned>(document: Value) -> T {
    let mut unknown = Vec::new();
    let text = document.to_string();
    let value = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()))
        .unwrap_or_else(|error| panic!("{error}\n{text}"));
    unknown.retain(|path| path != "apiVersion" && path != "kind");
    assert!(unknown.is_empty(), "unknown fields {unknown:?} in {text}");
    value
}

fn networks(all: &[String]) -> Vec<IpNet> {
    all.iter().map(|one| one.parse().unwrap()).collect()
}

fn name_of(document: &Value) -> ObjectName {
    let metadata = &document["metadata"];
    ObjectName::new(
        metadata["namespace"].as_str().unwrap_or("default"),
        metadata["name"].as_str().unwrap(),
    )
}

fn texts(map: &Value) -> impl Iterator<Item = (String, String)> {
    map.as_object()
        .cloned()
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key, value.as_str().unwrap().to_owned()))
}

fn split(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    ObjectName::new(namespace, name)
}

fn certificate(inputs: &mut Inputs, wire: &TestCertificate) {
    let mut params = CertificateParams::new(wire.names.clone()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "test certificate");
    params.serial_number = Some(SerialNumber::from(vec![1, 2, 3, 4]));
    let days = wire.days_left.unwrap_or(90);
    let day = Duration::from_secs(24 * 3600);
    let offset = day * u32::try_from(days.unsigned_abs()).unwrap();
    let not_after = if days < 0 {
        now() - offset
    } else {
        now() + offset
    };
    params.not_before = date(not_after - day * 90);
    params.not_after = date(not_after);
    if wire.ca {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let key_pem = if wire.key_of_another {
        KeyPair::generate().unwrap().serialize_pem()
    } else {
        key.serialize_pem()
    };
    let parse =
        |origin| Arc::new(parse_certificate(pem.as_bytes(), key_pem.as_bytes(), origin).unwrap());
    if let Some(secret) = &wire.secret {
        let mut data = SecretData {
            type_: "kubernetes.io/tls".to_owned(),
            data: [
                ("tls.crt".to_owned(), pem.clone().into_bytes()),
                ("tls.key".to_owned(), key_pem.clone().into_bytes()),
            ]
            .into(),
        };
        if wire.ca {
            data.type_ = "Opaque".to_owned();
            data.data = [("ca.crt".to_owned(), pem.clone().into_bytes())].into();
        }
        inputs.secrets.insert(split(secret), Arc::new(data));
    }
    if let Some(route) = &wire.issued_for {
        let issued = parse(CertificateOrigin::InternalCa);
        inputs.issued.insert(split(route), issued);
    }
    if wire.default {
        inputs.default_certificate = Some(parse(CertificateOrigin::SelfSigned));
    }
}

fn date(moment: SystemTime) -> time::OffsetDateTime {
    time::OffsetDateTime::from(moment)
}
