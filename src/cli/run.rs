//! `tidegate run`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use tidegate_model::HostPattern;

use super::edge::EdgeArgs;
use super::terminal::{Look, Terminal};
use super::values::StateArgs;
use crate::api::TlsRoute;
use crate::app::standalone_mode::{self, ObjectsFrom, RunOptions, Serving};

const AFTER: &str = "\
Signals:
  TERM, INT  drain: finish what runs (see --drain-timeout), then end; a second one ends at once
  HUP        read the folder again now
  USR2       hand over to a new process of the binary on disk, without refusing a connection

Ports below 1024 need a permission: `sudo setcap cap_net_bind_service=+ep $(command -v tidegate)`, \
the systemd unit in packaging/, or higher ports with --http and --https.";

/// Serve the objects of a folder over HTTPS.
///
/// Reads every .yaml, .yml and .json file below DIR (TlsRoute, AcmeIssuer, TunnelAgent, Secret, ConfigMap; several
/// documents per file), and Secrets from DIR/secrets/NAMESPACE/NAME/{tls.crt,tls.key}. Hidden files and the folders
/// of static backends are left out. Watches the folder. A
/// mistake in an object is told in the log and by `tidegate status`, harms only that object, and its last good
/// version stays in use.
///
/// Hosts without certificate of their own get one from an internal CA; see `tidegate ca`.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
pub(super) struct RunArgs {
    /// Folder of objects.
    #[arg(
        required_unless_present = "to",
        conflicts_with = "to",
        env = "TIDEGATE_DIR"
    )]
    dir: Option<PathBuf>,

    /// Without any file: the service to serve, as HOST:PORT or http(s)://HOST:PORT.
    #[arg(long, requires = "host", value_name = "ADDRESS")]
    to: Option<String>,

    /// With --to: the hostname to serve it under; can be given more than once.
    #[arg(long, requires = "to", value_name = "NAME")]
    host: Vec<String>,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    edge: EdgeArgs,
}

impl RunArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        self.edge.start_log()?;
        let objects = match &self.to {
            Some(to) => ObjectsFrom::Given(vec![route(to, &self.host)?]),
            None => ObjectsFrom::Folder(self.dir.clone().context("find the folder of objects")?),
        };
        let options = RunOptions {
            state: self.state.resolve(self.dir.as_deref())?,
            settings: self.edge.settings(),
            admin: self.edge.admin(),
            admin_hosts: self.edge.admin_hosts(),
            certificate_lifetime: self.edge.certificate_lifetime(),
            surroundings: self.edge.surroundings(),
            accounts: self.edge.accounts(),
            objects,
        };
        let greeting = self.to.clone().map(|to| (to, self.host.clone()));
        standalone_mode::run(options, |serving| {
            if let Some((to, hosts)) = greeting {
                // A closed standard output is no reason to stop serving.
                let _ = greet(terminal, &to, &hosts, serving);
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The object that `--to` and `--host` stand for.
fn route(to: &str, hosts: &[String]) -> anyhow::Result<TlsRoute> {
    for host in hosts {
        HostPattern::parse(host).with_context(|| format!("use --host {host:?}"))?;
    }
    let (tls, address) = match to.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some((scheme, _)) => anyhow::bail!("use --to {to:?}: {scheme:?} is not http or https"),
        None => (false, to),
    };
    let address = address.trim_end_matches('/');
    if address.contains('/') {
        anyhow::bail!(
            "use --to {to:?}: it may have no path; write a TlsRoute with a rewrite filter for that"
        );
    }
    let address = match address.parse::<u16>() {
        Ok(port) => format!("127.0.0.1:{port}"),
        Err(_) if !has_port(address) => {
            anyhow::bail!(
                "use --to {to:?}: it has no port; write {address}:{}",
                if tls { 443 } else { 80 }
            )
        }
        Err(_) => address.to_owned(),
    };
    let mut backend = serde_json::json!({"address": address});
    if tls {
        backend["tls"] = serde_json::json!({});
    }
    serde_json::from_value(serde_json::json!({
        "apiVersion": "edge.tidegate.dev/v1alpha1",
        "kind": "TlsRoute",
        "metadata": {"name": "command-line", "namespace": "default"},
        "spec": {"hostnames": hosts, "rules": [{"backends": [backend]}]},
    }))
    .context("build the route")
}

fn has_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn greet(
    terminal: &mut Terminal,
    to: &str,
    hosts: &[String],
    serving: &Serving,
) -> std::io::Result<()> {
    let port = serving
        .listeners
        .iter()
        .find(|(name, _)| *name == "https")
        .map_or(443, |(_, address)| address.port());
    let authority = |host: &str| match port {
        443 => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    };
    for host in hosts {
        terminal.line(format_args!(
            "{}  →  {to}",
            terminal.paint(Look::Strong, format!("{}/", authority(host)))
        ))?;
    }
    if let Some(host) = hosts.first() {
        terminal.line(format_args!(
            "try it:    curl --cacert {} --resolve {host}:{port}:127.0.0.1 {}/",
            serving.root_certificate.display(),
            authority(host)
        ))?;
    }
    let state = serving
        .root_certificate
        .parent()
        .and_then(std::path::Path::parent)
        .map(|state| state.display().to_string())
        .unwrap_or_default();
    terminal.line(format_args!("trust it:  tidegate ca --state-dir {state}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_files_becomes_a_route() {
        let hosts = ["app.localhost".to_owned()];
        let backend = |to: &str| {
            let route = route(to, &hosts).unwrap();
            let backend = route.spec.rules[0].backends[0].clone();
            (backend.address.unwrap(), backend.tls.is_some())
        };
        assert_eq!(
            backend("127.0.0.1:3000"),
            ("127.0.0.1:3000".to_owned(), false)
        );
        assert_eq!(backend("3000"), ("127.0.0.1:3000".to_owned(), false));
        assert_eq!(
            backend("https://nas.lan:5001/"),
            ("nas.lan:5001".to_owned(), true)
        );
        for bad in ["nas.lan", "ftp://x:1", "http://x:1/path"] {
            assert!(route(bad, &hosts).is_err(), "{bad}");
        }
        assert!(route("3000", &["a b".to_owned()]).is_err());
    }
}
