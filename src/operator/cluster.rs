//! The API server: how it is found, who we are to it, and which namespaces are ours to look at.

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
        let client =
            Client::try_from(config).map_err(|error| ClusterError::Client(Box::new(error)))?;
        Ok(Self {
            client,
            namespace,
            watched: options.watched.clone(),
            identity,
        })
    }
}
