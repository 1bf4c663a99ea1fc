//! `tidegate operator`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use super::edge::{EdgeArgs, Switch};
use super::values::{self, Listen, StateArgs};
use crate::app::operator_mode::{self, OperatorOptions};
use crate::operator::ClusterOptions;

const AFTER: &str = "\
Finds the API server by the pod's service account, or outside of a cluster by KUBECONFIG or ~/.kube/config.

Every replica watches and serves; the one that holds the Lease orders certificates and writes statuses. The \
definitions of the objects are installed by `tidegate crds | kubectl apply --server-side -f -`, or by the chart.

Signals:
  TERM, INT  drain: finish what runs (see --drain-timeout), then end; a second one ends at once";

/// Serve the TlsRoutes of a Kubernetes cluster over HTTPS.
///
/// Watches TlsRoute, AcmeIssuer and TunnelAgent objects, the Services they lead to and the Secrets they name;
/// gets and renews certificates; writes into each object's status what is served and what is wrong. What is
/// served goes on when the API server is away.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
pub(super) struct OperatorArgs {
    /// Namespace whose objects are served; default: every namespace. May be given several times.
    #[arg(
        long,
        env = "TIDEGATE_WATCH_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        help_heading = "Kubernetes"
    )]
    watch_namespace: Vec<String>,

    /// Name of this edge, where several run side by side: only objects with that className are served.
    #[arg(
        long,
        env = "TIDEGATE_CLASS",
        value_name = "NAME",
        help_heading = "Kubernetes"
    )]
    class: Option<String>,

    /// Namespace of this program, for its Lease, its documents and the Secrets that AcmeIssuers name; default:
    /// that of the pod, or of the kubeconfig's context.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        value_name = "NAMESPACE",
        help_heading = "Kubernetes"
    )]
    namespace: Option<String>,

    /// What this replica is called, different from all others; default: the machine's name.
    #[arg(
        long,
        env = "POD_NAME",
        value_name = "NAME",
        help_heading = "Kubernetes"
    )]
    identity: Option<String>,

    /// Name of the Lease that replicas compete for. Edges of different classes need different ones.
    #[arg(
        long,
        env = "TIDEGATE_LEASE",
        value_name = "NAME",
        default_value = "tidegate",
        help_heading = "Kubernetes"
    )]
    lease: String,

    /// Service whose endpoints are the replicas, with ports named http and https: each of them must serve the
    /// answer to a challenge before the authority is told to look.
    #[arg(
        long,
        env = "TIDEGATE_REPLICAS_SERVICE",
        value_name = "NAME",
        help_heading = "Kubernetes"
    )]
    replicas_service: Option<String>,

    /// Where other replicas reach this one, to pass on what is for agents whose links end here: a port, an address with
    /// port, or off. The port named replicas of the Service of --replicas-service has to lead here, and nobody else
    /// needs to: replicas know each other by certificates that they make themselves.
    #[arg(
        long,
        env = "TIDEGATE_REPLICAS_LISTEN",
        value_name = "ADDRESS",
        default_value = "off",
        value_parser = values::listen,
        value_delimiter = ',',
        help_heading = "Kubernetes"
    )]
    replicas_listen: Vec<Listen>,

    /// Service of this edge by which clients reach it, in the program's namespace: what it does to their addresses
    /// is told in the condition ClientAddressPreserved.
    #[arg(
        long,
        env = "TIDEGATE_SERVICE",
        value_name = "NAME",
        help_heading = "Kubernetes"
    )]
    service: Option<String>,

    /// Addresses of this replica.
    #[arg(
        long,
        env = "POD_IPS",
        value_name = "IP",
        value_delimiter = ',',
        hide = true
    )]
    pod_ip: Vec<std::net::IpAddr>,

    /// Context of the kubeconfig, outside of a cluster.
    #[arg(
        long,
        env = "TIDEGATE_CONTEXT",
        value_name = "NAME",
        help_heading = "Kubernetes"
    )]
    context: Option<String>,

    /// Folder that backends of kind static lie in.
    #[arg(
        long,
        env = "TIDEGATE_STATIC_FILES",
        value_name = "DIR",
        default_value = "/srv/tidegate",
        help_heading = "Kubernetes"
    )]
    static_files: PathBuf,

    /// Network that backends may lead to although it is this machine, its neighbourhood or the API server, such as
    /// 10.0.0.5/32. May be given several times.
    #[arg(
        long,
        env = "TIDEGATE_ALLOW_ADDRESSES",
        value_name = "CIDR",
        value_delimiter = ',',
        help_heading = "Kubernetes"
    )]
    allow_addresses: Vec<IpNet>,

    /// Network that backends may not lead to, such as those of pods and Services, which then are reached as
    /// Services of a route's own namespace only. May be given several times.
    #[arg(
        long,
        env = "TIDEGATE_REFUSE_ADDRESSES",
        value_name = "CIDR",
        value_delimiter = ',',
        help_heading = "Kubernetes"
    )]
    refuse_addresses: Vec<IpNet>,

    /// File with one AcmeIssuer that routes without issuerRef use, as if it were an object with default: true. An
    /// object of the same name wins. Changes take effect within seconds; while the file is wrong, what it said
    /// before stays in use.
    #[arg(
        long,
        env = "TIDEGATE_DEFAULT_ISSUER_FILE",
        value_name = "FILE",
        help_heading = "Kubernetes"
    )]
    default_issuer_file: Option<PathBuf>,

    /// Share the ports with the process of the same Lease that runs in the same network, such as that of a node: its
    /// listening sockets are taken over when this one can serve, and handed on to the next. Without, a port that
    /// another process has is an error.
    #[arg(long, env = "TIDEGATE_HANDOVER", help_heading = "Kubernetes")]
    handover: bool,

    /// How long what is known of a certificate is kept after it has expired, when its route is gone.
    #[arg(
        long,
        env = "TIDEGATE_KEEP_UNUSED",
        value_name = "TIME",
        default_value = "30d",
        value_parser = values::duration,
        help_heading = "Kubernetes"
    )]
    keep_unused: Duration,

    /// Whether the Services of UDP trackers are made that keep the addresses of their clients; without, statuses have
    /// the manifests to apply by hand.
    #[arg(
        long,
        env = "TIDEGATE_TRACKER_SERVICES",
        value_name = "WHEN",
        value_enum,
        default_value = "on",
        help_heading = "Kubernetes"
    )]
    tracker_services: Switch,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    edge: EdgeArgs,
}

impl OperatorArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.edge.start_log()?;
        operator_mode::run(OperatorOptions {
            cluster: ClusterOptions {
                context: self.context,
                namespace: self.namespace,
                watched: self.watch_namespace,
                identity: self.identity,
            },
            class: self.class,
            lease: self.lease,
            replicas_service: self.replicas_service,
            replicas_listen: self
                .replicas_listen
                .into_iter()
                .filter_map(Listen::resolve)
                .collect(),
            service: self.service,
            own_addresses: self.pod_ip,
            static_files: self.static_files,
            allow_addresses: self.allow_addresses,
            refuse_addresses: self.refuse_addresses,
            default_issuer: self.default_issuer_file,
            handover: self.handover,

            keep_unused: self.keep_unused,
            tracker_services: self.tracker_services == Switch::On,
            state: self.state.resolve(None)?,
            settings: self.edge.settings(),
            admin: self.edge.admin(),
            admin_hosts: self.edge.admin_hosts(),
            accounts: self.edge.accounts(),
            certificate_lifetime: self.edge.certificate_lifetime(),
            surroundings: self.edge.surroundings(),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
