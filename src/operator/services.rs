//! Services and `EndpointSlices` as backends: who is ready to serve a port.
//!
//! The edge speaks to the endpoints themselves, not to the Service's address: each has its own health,
//! connections are kept, and no address translation comes between.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServiceSpec as KubeServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use tidegate_model::ObjectName;

use super::trackers::made_for;
use crate::translate::{
    FoundService, PublicPlace, ServiceData, ServicePortData, ServiceSpec, UdpServicePort,
};

/// Label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Name of the port at which replicas of an edge reach each other.
const REPLICAS: &str = "replicas";

/// What of a Service counts here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct ServiceShape {
    external_name: Option<String>,
    ports: Vec<PortShape>,
    #[serde(default)]
    udp_ports: Vec<PortShape>,
    /// Its `spec.type`.
    pub(super) type_: String,
    /// Whether `spec.externalTrafficPolicy` is `Local`.
    pub(super) local: bool,
    /// Addresses at which the world reaches it: those of its load balancer and `spec.externalIPs`.
    #[serde(default)]
    pub(super) outside: Vec<IpAddr>,
    /// Names of its load balancer.
    #[serde(default)]
    pub(super) outside_names: Vec<String>,
    /// What else matters of one that has UDP ports, or is ours.
    #[serde(skip)]
    pub(super) udp: Option<Arc<FoundService>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PortShape {
    port: u16,
    /// Slices call their ports by the names of the Service's.
    name: String,
    app_protocol: Option<String>,
}

/// What of an `EndpointSlice` counts here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct SliceShape {
    /// The Service it belongs to.
    pub(super) service: String,
    /// TCP ports by name.
    pub(super) ports: BTreeMap<String, u16>,
    /// UDP ports by name.
    #[serde(default)]
    pub(super) udp_ports: BTreeMap<String, u16>,
    /// Addresses of endpoints that are ready.
    ready: Vec<IpAddr>,
    /// Addresses of endpoints that still serve while they end.
    ending: Vec<IpAddr>,
    /// Addresses of all endpoints.
    pub(super) all: Vec<IpAddr>,
    /// Addresses of endpoints that are ending.
    #[serde(default)]
    pub(super) leaving: Vec<IpAddr>,
    /// Addresses of endpoints whose probes fail, or have not succeeded yet. Those of a Service that
    /// publishes them all the same count as ready.
    #[serde(default)]
    pub(super) failing: Vec<IpAddr>,
    /// The pods, of slices with a port for replicas only: nobody else asks, and the others have thousands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pods: Vec<PodShape>,
}

/// A pod and its addresses, ready or not, ending or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PodShape {
    name: String,
    addresses: Vec<IpAddr>,
}

/// Another replica, at its port for replicas.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundReplica {
    /// Of its pod.
    pub name: String,
    /// Where it is.
    pub address: SocketAddr,
}

/// Reads a Service.
pub(super) fn service_shape(service: &Service) -> ServiceShape {
    let Some(spec) = &service.spec else {
        return ServiceShape::default();
    };
    let ports = |wanted: &str| {
        let all = spec.ports.iter().flatten();
        all.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == wanted)
            .filter_map(|port| {
                Some(PortShape {
                    port: u16::try_from(port.port).ok()?,
                    name: port.name.clone().unwrap_or_default(),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect()
    };
    ServiceShape {
        type_: spec.type_.clone().unwrap_or_default(),
        local: spec.external_traffic_policy.as_deref() == Some("Local"),
        outside: outside(service),
        outside_names: outside_names(service),
        udp: udp_service(service, spec).map(Arc::new),
        external_name: (spec.type_.as_deref() == Some("ExternalName"))
            .then(|| spec.external_name.clone().unwrap_or_default()),
        ports: ports("TCP"),
        udp_ports: ports("UDP"),
    }
}

fn udp_service(service: &Service, spec: &KubeServiceSpec) -> Option<FoundService> {
    let made_for = made_for(service);
    let ports = spec.ports.iter().flatten();
    let ports: Vec<UdpServicePort> = ports
        .filter(|port| port.protocol.as_deref() == Some("UDP"))
        .filter_map(|port| {
            Some(UdpServicePort {
                port: u16::try_from(port.port).ok()?,
                target: match &port.target_port {
                    Some(IntOrString::Int(number)) => number.to_string(),
                    Some(IntOrString::String(name)) => name.clone(),
                    None => port.port.to_string(),
                },
                node_port: port.node_port.and_then(|it| u16::try_from(it).ok()),
            })
        })
        .collect();
    if ports.is_empty() && made_for.is_none() {
        return None;
    }
    let owners = service.metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|it| it.kind == "TlsRoute");
    Some(FoundService {
        made_for,
        uid: service.metadata.uid.clone().unwrap_or_default(),
        owner: owners.next().map(|it| it.uid.clone()),
        spec: ServiceSpec {
            type_: spec.type_.clone().unwrap_or_default(),
            local: spec.external_traffic_policy.as_deref() == Some("Local"),
            sticky: spec.session_affinity.as_deref() == Some("ClientIP"),
            selector: spec.selector.clone().unwrap_or_default(),
            ports,
            families: spec.ip_families.clone().unwrap_or_default(),
            family_policy: spec.ip_family_policy.clone(),
            load_balancer_ip: spec.load_balancer_ip.clone(),
        },
        place: PublicPlace {
            addresses: outside(service).into_iter().collect(),
            names: outside_names(service).into_iter().collect(),
        },
    })
}

fn ingress(service: &Service) -> impl Iterator<Item = &LoadBalancerIngress> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    ingress.into_iter().flatten()
}

fn outside_names(service: &Service) -> Vec<String> {
    let names = ingress(service).filter_map(|it| it.hostname.clone());
    names
        .map(|it| it.trim_end_matches('.').to_owned())
        .collect()
}

fn outside(service: &Service) -> Vec<IpAddr> {
    let balancer = ingress(service).filter_map(|it| it.ip.as_ref());
    let external = service
        .spec
        .iter()
        .flat_map(|spec| spec.external_ips.iter().flatten());
    balancer
        .chain(external)
        .filter_map(|it| it.parse().ok())
        .collect()
}

/// Reads a slice; None if it belongs to no Service or holds no addresses.
pub(super) fn slice_shape(slice: &EndpointSlice) -> Option<SliceShape> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone();
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        return None;
    }
    let mut shape = SliceShape {
        service,
        ..SliceShape::default()
    };
    for port in slice.ports.iter().flatten() {
        let ports = match port.protocol.as_deref() {
            None | Some("TCP") => &mut shape.ports,
            Some("UDP") => &mut shape.udp_ports,
            Some(_) => continue,
        };
        if let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) {
            ports.insert(port.name.clone().unwrap_or_default(), number);
        }
    }
    for endpoint in &slice.endpoints {
        let conditions = endpoint.conditions.as_ref();
        // Unknown counts as ready (EndpointConditions).
        let ready = conditions.and_then(|it| it.ready).unwrap_or(true);
        let serving = conditions.and_then(|it| it.serving).unwrap_or(ready);
        let leaving = conditions.and_then(|it| it.terminating).unwrap_or(false);
        let addresses = endpoint.addresses.iter().filter_map(|it| it.parse().ok());
        let target = endpoint.target_ref.as_ref();
        let pod = target.filter(|it| it.kind.as_deref() == Some("Pod"));
        if let Some(name) = pod.and_then(|pod| pod.name.clone())
            && shape.ports.contains_key(REPLICAS)
        {
            let addresses = addresses.clone().collect();
            shape.pods.push(PodShape { name, addresses });
        }
        for address in addresses {
            shape.all.push(address);
            if leaving {
                shape.leaving.push(address);
            }
            if !serving {
                shape.failing.push(address);
            }
            if ready {
                shape.ready.push(address);
            } else if serving {
                shape.ending.push(address);
            }
        }
    }
    Some(shape)
}

/// Joins Services with the slices of their namespace.
pub(super) fn join<'a>(
    service: &ServiceShape,
    slices: &(impl Iterator<Item = &'a SliceShape> + Clone),
) -> ServiceData {
    ServiceData {
        external_name: service.external_name.clone(),
        ports: joined(&service.ports, slices, |slice| &slice.ports),
        udp_ports: joined(&service.udp_ports, slices, |slice| &slice.udp_ports),
        udp: service.udp.clone(),
    }
}

/// Joins the ports of one protocol.
fn joined<'a>(
    ports: &[PortShape],
    slices: &(impl Iterator<Item = &'a SliceShape> + Clone),
    of_slice: fn(&SliceShape) -> &BTreeMap<String, u16>,
) -> Vec<ServicePortData> {
    let found = ports.iter().map(|port| {
        let of = |pick: fn(&SliceShape) -> &Vec<IpAddr>| {
            let mut addresses: Vec<SocketAddr> = slices
                .clone()
                .filter_map(|slice| {
                    let numbers = of_slice(slice);
                    let number = numbers.get(&port.name).copied();
                    // A slice that somebody wrote by hand may have one port without a name.
                    let number = number.or_else(|| {
                        let only = numbers.values().next();
                        let lone = numbers.len() == 1 && ports.len() == 1;
                        only.copied().filter(|_| lone)
                    })?;
                    Some((slice, number))
                })
                .flat_map(|(slice, number)| {
                    pick(slice)
                        .iter()
                        .map(move |ip| SocketAddr::new(*ip, number))
                })
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        };
        let mut addresses = of(|slice| &slice.ready);
        if addresses.is_empty() {
            // Better than none, as kube-proxy does it: those that are ending but still answer.
            addresses = of(|slice| &slice.ending);
        }
        ServicePortData {
            port: port.port,
            app_protocol: port.app_protocol.clone(),
            addresses,
        }
    });
    found.collect()
}

/// The pods of the slices but the one of that name, each once: of a pod with two addresses, the one of the family that
/// is preferred. Those that are ending stay among them to their end, whatever their probes say: who drains is not ready,
/// and still has links and streams.
pub(super) fn other_replicas(
    slices: &[&SliceShape],
    own_name: &str,
    prefer_ipv6: bool,
) -> Vec<FoundReplica> {
    let pods = slices.iter().flat_map(|slice| {
        let port = slice.ports.get(REPLICAS).copied();
        slice.pods.iter().filter_map(move |pod| Some((pod, port?)))
    });
    let mut all: Vec<FoundReplica> = pods
        .filter(|(pod, _)| pod.name != own_name)
        .flat_map(|(pod, port)| {
            let found = move |ip: &IpAddr| FoundReplica {
                name: pod.name.clone(),
                address: SocketAddr::new(*ip, port),
            };
            pod.addresses.iter().map(found)
        })
        .collect();
    all.sort_by(|a, b| {
        let order = |it: &FoundReplica| (it.address.is_ipv6() != prefer_ipv6, it.address);
        (&a.name, order(a)).cmp(&(&b.name, order(b)))
    });
    all.dedup_by(|a, b| a.name == b.name);
    all
}

/// Slices by Service.
pub(super) fn by_service<'a>(
    slices: impl Iterator<Item = (&'a ObjectName, &'a SliceShape)>,
) -> BTreeMap<ObjectName, Vec<&'a SliceShape>> {
    let mut all: BTreeMap<ObjectName, Vec<&SliceShape>> = BTreeMap::new();
    for (name, slice) in slices {
        let service = ObjectName::new(&*name.namespace, slice.service.as_str());
        all.entry(service).or_default().push(slice);
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(ports: &serde_json::Value) -> ServiceShape {
        let service = json!({"metadata": {"name": "web"}, "spec": {"ports": ports}});
        service_shape(&serde_json::from_value(service).unwrap())
    }

    fn slice(ports: &serde_json::Value, endpoints: &serde_json::Value) -> SliceShape {
        let slice = json!({
            "metadata": {"name": "web-1", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        });
        slice_shape(&serde_json::from_value(slice).unwrap()).unwrap()
    }

    fn addresses(data: &ServiceData, port: usize) -> Vec<String> {
        let all = &data.ports[port].addresses;
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ports_are_joined_by_name_and_only_ready_endpoints_serve() {
        let web = service(&json!([
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "admin", "port": 81, "targetPort": "admin"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ]));
        let slices = [
            slice(
                &json!([
                    {"name": "http", "port": 8080}, {"name": "admin", "port": 9000},
                    {"name": "dns", "port": 5353, "protocol": "UDP"},
                ]),
                &json!([
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
                    {"addresses": ["10.0.0.1"]},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                ]),
            ),
            slice(
                &json!([{"name": "http", "port": 8081}]),
                &json!([{"addresses": ["10.0.1.1"], "conditions": {"ready": true}}]),
            ),
        ];
        let data = join(&web, &slices.iter());
        assert_eq!(data.ports.len(), 2, "UDP ports are listed apart");
        assert_eq!(data.udp_ports.len(), 1);
        let udp = &data.udp_ports[0];
        assert_eq!((udp.port, udp.addresses.len()), (53, 2));
        assert_eq!(udp.addresses[0].port(), 5353);
        assert_eq!(
            addresses(&data, 0),
            ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.1.1:8081"]
        );
        assert_eq!(addresses(&data, 1), ["10.0.0.1:9000", "10.0.0.2:9000"]);
    }

    #[test]
    fn a_service_is_reached_at_its_load_balancer_and_external_addresses() {
        let service = json!({
            "metadata": {"name": "edge"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "externalIPs": ["192.0.2.7"]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.4"}, {"hostname": "lb.example.com"}, {"ip": "2001:db8::4"},
            ]}},
        });
        let shape = service_shape(&serde_json::from_value(service).unwrap());
        let outside: Vec<String> = shape.outside.iter().map(ToString::to_string).collect();
        assert_eq!(outside, ["198.51.100.4", "2001:db8::4", "192.0.2.7"]);
        assert_eq!(shape.outside_names, ["lb.example.com"]);
    }

    #[test]
    fn replicas_are_found_unless_they_are_ending() {
        // As the slices of a Service are that publishes addresses that are not ready.
        let all = slice(
            &json!([{"name": "http", "port": 8080}, {"name": "https", "port": 8443}]),
            &json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true, "serving": false, "terminating": false}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": true, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.4"]},
            ]),
        );
        let found: Vec<(String, bool)> = super::super::addresses::of_port(&[&all], "https")
            .into_iter()
            .map(|endpoint| (endpoint.address.to_string(), endpoint.serving))
            .collect();
        let expected = [
            ("10.0.0.1:8443", true),
            ("10.0.0.2:8443", false),
            ("10.0.0.4:8443", true),
        ];
        assert_eq!(
            found,
            expected.map(|(at, serving)| (at.to_owned(), serving))
        );
    }

    #[test]
    fn other_replicas_are_known_by_their_pods_from_the_first_to_the_last_moment() {
        let pod = |name: &str, address: &str, conditions: serde_json::Value| {
            json!({"addresses": [address], "conditions": conditions,
                   "targetRef": {"kind": "Pod", "name": name, "namespace": "tidegate"}})
        };
        let ports = json!([{"name": "https", "port": 8443}, {"name": "replicas", "port": 8444}]);
        let mut slices = vec![slice(
            &ports,
            &json!([
                pod("edge-a", "10.0.0.1", json!({"ready": true})),
                pod("edge-b", "10.0.0.2", json!({"ready": true, "serving": true, "terminating": true})),
                pod("edge-c", "10.0.0.3", json!({"ready": false, "serving": false, "terminating": true})),
                pod("edge-d", "10.0.0.4", json!({"ready": true, "serving": false})),
                // Two pods of one node in the node's own network.
                pod("edge-e", "10.0.0.1", json!({"ready": true})),
                {"addresses": ["10.0.0.6"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.7"], "targetRef": {"kind": "Node", "name": "n"}},
            ]),
        )];
        slices.push(slice(
            &ports,
            &json!([
                pod("edge-b", "fd00::2", json!({})),
                pod("edge-f", "fd00::6", json!({}))
            ]),
        ));
        let slices: Vec<&SliceShape> = slices.iter().collect();
        let found = |own: &str, prefer_ipv6| -> Vec<String> {
            let all = other_replicas(&slices, own, prefer_ipv6).into_iter();
            all.map(|it| format!("{} {}", it.name, it.address))
                .collect()
        };
        let expected = [
            "edge-b 10.0.0.2:8444",
            "edge-c 10.0.0.3:8444",
            "edge-d 10.0.0.4:8444",
            "edge-e 10.0.0.1:8444",
            "edge-f [fd00::6]:8444",
        ];
        assert_eq!(found("edge-a", false), expected);
        assert_eq!(found("edge-a", true)[0], "edge-b [fd00::2]:8444");
        assert_eq!(found("edge-b", true)[0], "edge-a 10.0.0.1:8444");
        // Other Services' pods are nobody's business.
        let other = slice(
            &json!([{"name": "http", "port": 80}]),
            &json!([pod("blog", "10.0.0.9", json!({}))]),
        );
        assert!(other.pods.is_empty());
    }

    #[test]
    fn endpoints_that_end_serve_while_there_are_no_others() {
        let web = service(&json!([{"port": 80}]));
        let ending =
            json!([{"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true}}]);
        let slices = [slice(&json!([{"name": "", "port": 8080}]), &ending)];
        assert_eq!(addresses(&join(&web, &slices.iter()), 0), ["10.0.0.3:8080"]);
        let gone =
            json!([{"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false}}]);
        let slices = [slice(&json!([{"name": "", "port": 8080}]), &gone)];
        assert!(addresses(&join(&web, &slices.iter()), 0).is_empty());
    }
}
