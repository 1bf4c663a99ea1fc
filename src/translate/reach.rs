//! Where backends may lead, as far as what is written tells: addresses, and the names of a cluster.
//!
//! What a name turns out to be is judged by the data plane when it has looked it up. Nothing here looks anything
//! up, so that no answer tells what exists in other namespaces.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tidegate_model::{HostName, RouteId};

use super::Environment;

/// How a refused address is mended.
pub(super) const ALLOW: &str =
    "lead it elsewhere; whoever runs this edge can allow networks with --allow-addresses";

/// Domains that no registry has and home networks use.
const PRIVATE: &[&str] = &[
    "corp",
    "home",
    "internal",
    "intranet",
    "lan",
    "local",
    "localdomain",
    "private",
    "test",
];

/// What is wrong with a host, and how to mend it.
type Complaint = (String, String);

/// Whether a backend may be written so.
pub(super) fn judge(
    environment: &Environment,
    owner: &RouteId,
    host: &HostName,
    port: u16,
) -> Result<(), Complaint> {
    let reach = &environment.reach;
    if !reach.is_limited() {
        return Ok(());
    }
    let name = host.as_str();
    let local = name == "localhost" || name.ends_with(".localhost");
    let ip = host.ip();
    if let Some(ip) = ip.or(local.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST))) {
        return match reach.refuses(SocketAddr::new(ip, port)) {
            None => Ok(()),
            Some(special) => Err((format!("{name} is {special}"), ALLOW.to_owned())),
        };
    }
    let own = &*owner.namespace;
    match in_cluster(name, &environment.cluster_domain) {
        InCluster::Elsewhere => Ok(()),
        InCluster::Named { namespace, whole } if namespace == own && whole => Ok(()),
        InCluster::Named { namespace, .. } if namespace == own => Err((
            format!(
                "{name} is not looked up: names are taken whole, without the search domains of a pod"
            ),
            format!("write service: {{name: …, port: {port}}}"),
        )),
        InCluster::Named { namespace, .. } => Err((
            format!("{name} is a name of namespace {namespace}"),
            format!("a route leads to Services of its own namespace only, which is {own}"),
        )),
        InCluster::Short => Err((
            format!(
                "{name} is not looked up: names are taken whole, without the search domains of a pod"
            ),
            format!(
                "write service: {{name: …, port: {port}}} for a Service of namespace {own}, which is the only one that the route leads to; for anything else write its whole name"
            ),
        )),
    }
}

/// The Service and namespace that a name means within a cluster.
pub(super) fn service_in_cluster<'a>(name: &'a str, domain: &str) -> Option<(&'a str, &'a str)> {
    let InCluster::Named { namespace, .. } = in_cluster(name, domain) else {
        return None;
    };
    let (service, rest) = name.split_once('.')?;
    let rest = rest.strip_prefix(namespace)?;
    (rest.is_empty() || rest == ".svc" || rest.starts_with(".svc.")).then_some((service, namespace))
}

/// What a name is within a cluster.
#[derive(Debug, PartialEq, Eq)]
enum InCluster<'a> {
    /// Nothing: it is somebody else's name.
    Elsewhere,
    /// Of a Service or a pod of that namespace; whole if it ends in the cluster's domain.
    Named { namespace: &'a str, whole: bool },
    /// It means something only together with search domains.
    Short,
}

fn in_cluster<'a>(name: &'a str, domain: &str) -> InCluster<'a> {
    let inside = [domain, "cluster.local"]
        .iter()
        .filter(|domain| !domain.is_empty())
        .find_map(|domain| name.strip_suffix(domain)?.strip_suffix('.'));
    let (rest, whole) = match inside {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let labels: Vec<&str> = rest.split('.').collect();
    match labels[..] {
        [.., namespace, "svc" | "pod"] => InCluster::Named { namespace, whole },
        [_, top] if !whole && !is_top(top) => InCluster::Named {
            namespace: top,
            whole: false,
        },
        [_] if !whole => InCluster::Short,
        _ => InCluster::Elsewhere,
    }
}

/// Whether names end in it outside of clusters.
fn is_top(label: &str) -> bool {
    PRIVATE.contains(&label)
        || psl::suffix(label.as_bytes()).is_some_and(|suffix| suffix.is_known())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_model::Reach;

    use super::*;

    fn said(host: &str) -> Option<String> {
        let environment = Environment {
            reach: Arc::new(Reach::limited(Vec::new(), Vec::new())),
            cluster_domain: "k8s.example.net".to_owned(),
            ..Environment::default()
        };
        let owner = RouteId::new("own", "route");
        let host = HostName::parse(host).unwrap();
        judge(&environment, &owner, &host, 80).err().map(|it| it.0)
    }

    #[test]
    fn names_of_other_namespaces_lead_nowhere() {
        for name in [
            "x.other.svc",
            "x.other.svc.cluster.local",
            "x.other.svc.k8s.example.net",
            "pod-0.x.other.svc.cluster.local",
            "10-1-2-3.other.pod.cluster.local",
            "x.other",
        ] {
            let said = said(name).unwrap_or_default();
            assert_eq!(said, format!("{name} is a name of namespace other"));
        }
    }

    #[test]
    fn what_needs_search_domains_is_told_so() {
        for name in ["x", "x.own", "x.own.svc"] {
            let said = said(name).unwrap_or_default();
            assert!(said.contains("without the search domains"), "{name} {said}");
        }
    }

    #[test]
    fn names_of_the_world_and_of_homes_are_let_through() {
        for name in [
            "x.own.svc.cluster.local",
            "example.com",
            "nas.lan",
            "printer.fritz.box",
            "a.b.c.example.co.uk",
            "app.svc.example.com",
            "svc.example.com",
            "host.home.arpa",
            "192.168.1.20",
        ] {
            assert_eq!(said(name), None, "{name}");
        }
    }

    #[test]
    fn this_machine_has_more_than_one_name() {
        for name in ["localhost", "app.localhost", "127.0.0.1", "::1"] {
            let said = said(name).unwrap_or_default();
            assert_eq!(said, format!("{name} is a loopback address"));
        }
        let anywhere = Environment::default();
        let owner = RouteId::new("own", "route");
        for name in ["localhost", "x.other.svc", "x"] {
            let host = HostName::parse(name).unwrap();
            assert_eq!(judge(&anywhere, &owner, &host, 80), Ok(()));
        }
    }
}
