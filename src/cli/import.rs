//! `tidegate import torrust`.
//!
//! Asks, shows and writes; what becomes of an environment is decided by `import`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};
use tidegate_model::HostName;

use super::check::problems;
use super::terminal::{Look, Terminal};
use crate::app::check::check;
use crate::app::take_over::{self, Written};
use crate::import::torrust;

/// What is taken over as objects rather than as certificates.
#[derive(Debug, Subcommand)]
pub(super) enum Source {
    Torrust(TorrustArgs),
}

/// Make objects of an environment file of torrust-tracker-deployer.
///
/// Writes the AcmeIssuer and the TlsRoutes that do what the deployer's Caddy does, and tells what was done, what was
/// not and why, and what to do next. HTTP trackers of which only some use the TLS proxy are refused: the tracker
/// would take one half for somebody else. Secrets of the file are not read. Twice is the same as once.
#[derive(Debug, Args)]
pub(super) struct TorrustArgs {
    /// What `create environment --env-file` was given, such as envs/demo.json.
    file: PathBuf,

    /// Folder to write the objects to.
    #[arg(long, env = "TIDEGATE_DIR", required_unless_present = "dry_run")]
    dir: Option<PathBuf>,

    /// Write nothing: the objects go to standard output, what is told to standard error.
    #[arg(long)]
    dry_run: bool,

    /// Replace files of other content.
    #[arg(long)]
    overwrite: bool,

    /// Where the objects are going to be used.
    #[arg(long, value_enum, default_value = "folder")]
    home: Home,

    /// What becomes of HTTP trackers of which only some use the TLS proxy.
    #[arg(long, value_enum, value_name = "WAY")]
    mixed_as: Option<MixedAs>,

    /// Public addresses of the machine or cluster, for DNS records and for trackers without a domain; with commas.
    #[arg(
        long = "public-address",
        env = "TIDEGATE_PUBLIC_ADDRESS",
        value_name = "IP",
        value_delimiter = ','
    )]
    addresses: Vec<IpAddr>,

    /// Begins the names of objects and files.
    #[arg(long, value_parser = label, default_value = "torrust")]
    name: String,

    /// Namespace of the objects, for --home kubernetes.
    #[arg(long, value_parser = label, default_value = "torrust")]
    namespace: String,

    /// Name of the tracker's Service, for --home kubernetes.
    #[arg(long, value_parser = label, default_value = "tracker", value_name = "NAME")]
    tracker_service: String,

    /// Name of Grafana's Service, for --home kubernetes.
    #[arg(long, value_parser = label, default_value = "grafana", value_name = "NAME")]
    grafana_service: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Home {
    /// A folder of files on the tracker's machine; backends are its ports.
    Folder,
    /// A namespace; backends are Services.
    Kubernetes,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MixedAs {
    /// All come over TLS.
    Https,
    /// Those without TLS come over the edge's plain listener.
    Http,
    /// None comes through the edge.
    Direct,
}

/// Part of an object's name.
fn label(text: &str) -> Result<String, String> {
    let is_label = HostName::parse(text).is_ok_and(|name| name.as_str() == text)
        && !text.contains(['.', '_', ':'])
        && text.len() <= 40;
    if is_label {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} cannot begin a name: write small letters, digits and hyphens, at most 40"
        ))
    }
}

impl Source {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        match self {
            Self::Torrust(args) => args.run(terminal),
        }
    }
}

impl TorrustArgs {
    fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let now = SystemTime::now();
        let addresses = self.addresses;
        let options = torrust::Options {
            home: match self.home {
                Home::Folder => torrust::Home::Folder,
                Home::Kubernetes => torrust::Home::Kubernetes,
            },
            name: self.name,
            namespace: self.namespace,
            tracker_service: self.tracker_service,
            grafana_service: self.grafana_service,
            addresses: addresses.clone(),
            mixed_as: self.mixed_as.map(|way| match way {
                MixedAs::Https => torrust::MixedAs::Https,
                MixedAs::Http => torrust::MixedAs::Http,
                MixedAs::Direct => torrust::MixedAs::Direct,
            }),
        };
        let prepared = take_over::prepare(&self.file, &options, now)?;
        if !prepared.problems.is_empty() || prepared.plan.mixed.is_some() {
            problems(terminal, &prepared.problems)?;
            if let Some(mixed) = &prepared.plan.mixed {
                terminal.text(&mixed.ways)?;
            }
            return Ok(ExitCode::FAILURE);
        }
        let plan = prepared.plan;
        let Some(dir) = self.dir.filter(|_| !self.dry_run) else {
            let files: Vec<&str> = plan.files.iter().map(|file| file.text.as_str()).collect();
            terminal.text(files.join("---\n"))?;
            terminal.tell(&plan.explanation)?;
            return Ok(ExitCode::SUCCESS);
        };
        let written = take_over::write(&dir, &plan.files, self.overwrite)?;
        let shown = dir.display().to_string();
        terminal.text(plan.explanation.replace("DIR", &shown))?;
        terminal.line("")?;
        for (path, state) in &written {
            let state = match state {
                Written::New => terminal.paint(Look::Good, "written "),
                Written::Replaced => terminal.paint(Look::Warn, "replaced"),
                Written::Same => terminal.paint(Look::Faint, "there   "),
            };
            terminal.line(format_args!("{state} {}", path.display()))?;
        }
        // With whatever else the folder holds.
        let report = check(&dir, addresses, now);
        problems(terminal, &report.problems)?;
        Ok(if report.ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
