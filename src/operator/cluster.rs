//! The API server: how it is found, who we are to it, and which namespaces are ours to look at.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// The name under which this program owns fields of objects.
pub const FIELD_MANAGER: &str = "tidegate";

/// What is fixed when the operator starts.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// Context of the kubeconfig; the current one if None.
    pub context: Option<String>,
    /// Namespace of this program, where its Lease, its documents and the Secrets of issuers are; that of the
    /// service account or of the kubeconfig's context if None.
    pub namespace: Option<String>,
    /// Namespaces whose objects are served; all if empty.
    pub watched: Vec<String>,
    /// What this replica is called; the machine's name if None. Must be unique among replicas.
    pub identity: Option<String>,
}

/// A cluster that can be asked.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// Namespace of this program.
    pub namespace: String,
    /// Namespaces whose objects are served; all if empty.
    pub watched: Vec<String>,
    /// What this replica is called.
    pub identity: String,
    /// Addresses of the API server, as far as they are known before it is asked.
    pub api_server: Vec<SocketAddr>,
    /// DNS domain of the cluster's names; empty if this is no pod.
    pub domain: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("namespace", &self.namespace)
            .field("watched", &self.watched)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Why no cluster can be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Neither a service account nor a kubeconfig.
    #[error(
        "find the API server: neither a service account nor a kubeconfig could be used; set KUBECONFIG or run it in a pod"
    )]
    Infer(#[source] Box<InferConfigError>),
    /// The kubeconfig cannot be used.
    #[error("read the kubeconfig")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// The client cannot be made.
    #[error("make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    /// The machine has no name.
    #[error("name this replica: the machine has no usable name; give one with --identity")]
    Identity,
}

impl Cluster {
    /// Finds the API server: the service account of the pod, or the kubeconfig of the user.
    pub async fn connect(options: &ClusterOptions) -> Result<Self, ClusterError> {
        let mut config = match &options.context {
            Some(context) => {
                let kubeconfig = Kubeconfig::read()
                    .map_err(|error| ClusterError::Kubeconfig(Box::new(error)))?;
                let chosen = KubeConfigOptions {
                    context: Some(context.clone()),
                    ..KubeConfigOptions::default()
                };
                Config::from_custom_kubeconfig(kubeconfig, &chosen)
                    .await
                    .map_err(|error| ClusterError::Kubeconfig(Box::new(error)))?
            }
            None => Config::infer()
                .await
                .map_err(|error| ClusterError::Infer(Box::new(error)))?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        // A watch is silent for up to 295 s; whatever is silent for longer is dead.
        config.read_timeout = Some(Duration::from_secs(305));
        let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
        config.headers.push((
            http::header::USER_AGENT,
            http::HeaderValue::from_static(agent),
        ));
        let namespace = options
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let identity = match &options.identity {
            Some(identity) => identity.clone(),
            None => rustix::system::uname()
                .nodename()
                .to_str()
                .ok()
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .ok_or(ClusterError::Identity)?,
        };
        let api_server = api_server(&config);
        let client =
            Client::try_from(config).map_err(|error| ClusterError::Client(Box::new(error)))?;
        Ok(Self {
            client,
            namespace,
            watched: options.watched.clone(),
            identity,
            api_server,
            domain: domain(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        })
    }
}

/// The addresses in the configuration and in a pod's environment.
fn api_server(config: &Config) -> Vec<SocketAddr> {
    let url = &config.cluster_url;
    let port = url.port_u16().unwrap_or(443);
    let configured = url.host().map(|host| (host.to_owned(), port));
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok();
    let told = std::env::var("KUBERNETES_SERVICE_HOST").ok();
    let told = told.zip(port.and_then(|port| port.parse().ok()));
    [configured, told]
        .into_iter()
        .flatten()
        .filter_map(|(host, port)| {
            let ip: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
            Some(SocketAddr::new(ip, port))
        })
        .collect()
}

/// The domain of a cluster, from the search domains of a pod: `NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN`.
fn domain(resolv_conf: &str) -> String {
    let lines = resolv_conf.lines().map(str::split_whitespace);
    let mut searched = lines.flat_map(|mut words| match words.next() {
        Some("search") => words.collect(),
        _ => Vec::new(),
    });
    let found = searched.find_map(|domain| domain.strip_prefix("svc."));
    found.unwrap_or_default().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_is_read_from_a_pods_search_domains() {
        let pod = "nameserver 10.43.0.10\nsearch web.svc.k8s.example.net svc.k8s.example.net k8s.example.net\noptions ndots:5\n";
        assert_eq!(domain(pod), "k8s.example.net");
        assert_eq!(domain("nameserver 192.0.2.1\nsearch lan\n"), "");
    }

    #[test]
    fn the_address_of_the_api_server_is_read_from_its_url() {
        for (url, expected) in [
            ("https://10.43.0.1", Some("10.43.0.1:443")),
            ("https://[2001:db8::1]:6443/", Some("[2001:db8::1]:6443")),
            ("https://kubernetes.default.svc", None),
        ] {
            let found = api_server(&Config::new(url.parse().unwrap()));
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found.first().map(String::as_str), expected);
        }
    }
}
