//! `tidegate doctor`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use tidegate_acme::engine::Surroundings;
use tidegate_acme::preflight::{Finding, State};

use super::check;
use super::terminal::{Look, Output, Terminal};
use super::values::StateArgs;
use crate::app::doctor::{Examined, doctor};

/// Tell what stands in the way of a certificate, and how to mend it.
///
/// Looks at everything that an order depends on, as the edge does before each: addresses of the names, CAA, ports 80
/// and 443 as seen through those addresses, TXT records, the authority, the clock, what its limits leave, and
/// whether the state folder can be written. Orders nothing. The running edge is asked to look; when none runs,
/// ports are not tried. Exit code 0 when nothing blocks an order, 1 otherwise.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// A hostname of the certificate.
    #[arg(required_unless_present = "route")]
    host: Option<String>,

    /// Folder of objects; the only argument with --route.
    #[arg(env = "TIDEGATE_DIR")]
    dir: Option<PathBuf>,

    /// Route as NAMESPACE/NAME or NAME, instead of a hostname.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,

    #[command(flatten)]
    state: StateArgs,

    /// When no edge runs: an address at which the edge is reached from outside, as for `tidegate run`.
    #[arg(
        long,
        env = "TIDEGATE_PUBLIC_ADDRESS",
        value_name = "IP",
        value_delimiter = ','
    )]
    public_address: Vec<IpAddr>,

    /// When no edge runs: a name server to ask, as for `tidegate run`.
    #[arg(
        long,
        env = "TIDEGATE_NAME_SERVER",
        value_name = "IP:PORT",
        value_delimiter = ','
    )]
    name_server: Vec<SocketAddr>,

    /// For people or for programs.
    #[arg(
        long,
        short,
        value_name = "FORMAT",
        value_enum,
        default_value = "human"
    )]
    output: Output,
}

impl DoctorArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let (name, folder) = match (self.route, self.host) {
            (Some(route), None) => (route, self.dir),
            (Some(route), Some(folder)) => (route, Some(PathBuf::from(folder))),
            (None, host) => (host.unwrap_or_default(), self.dir),
        };
        let state = self.state.find(folder.as_deref())?;
        let folder = folder.unwrap_or_else(|| PathBuf::from("."));
        let surroundings = Surroundings {
            name_servers: self.name_server,
            addresses: self.public_address,
            ..Surroundings::default()
        };
        let examined = doctor(&folder, &state, &name, &surroundings, SystemTime::now())?;
        match self.output {
            Output::Json => terminal.line(serde_json::to_string_pretty(&examined)?)?,
            Output::Human => print(terminal, &examined)?,
        }
        Ok(if examined.ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn print(terminal: &mut Terminal, examined: &Examined) -> std::io::Result<()> {
    terminal.line(format_args!(
        "{}  {} by AcmeIssuer {}",
        terminal.paint(Look::Strong, &examined.certificate),
        examined.names.join(", "),
        examined.issuer
    ))?;
    let mut about = None;
    for finding in &examined.findings {
        if about != Some(&finding.name) {
            terminal.line("")?;
            let title = finding.name.as_deref().unwrap_or("the order");
            terminal.line(terminal.paint(Look::Strong, title))?;
            about = Some(&finding.name);
        }
        line(terminal, finding)?;
    }
    terminal.line("")?;
    if !examined.running {
        terminal.line(terminal.paint(
            Look::Faint,
            "no edge runs, so that no port was tried; start it and ask again",
        ))?;
    }
    let blocking = examined.findings.iter();
    let blocking = blocking.filter(|finding| finding.state == State::Blocking);
    match blocking.count() {
        0 => terminal.line(terminal.paint(Look::Good, "nothing blocks an order")),
        count => {
            let what = check::plural(count, "finding");
            let verb = if count == 1 { "blocks" } else { "block" };
            terminal.line(terminal.paint(Look::Bad, format!("{what} {verb} an order")))
        }
    }
}

/// One finding with its fix.
pub(super) fn line(terminal: &mut Terminal, finding: &Finding) -> std::io::Result<()> {
    let (look, word) = match finding.state {
        State::Ok => (Look::Good, "ok      "),
        State::Unknown => (Look::Faint, "unknown "),
        State::Warning => (Look::Hint, "warning "),
        State::Blocking => (Look::Bad, "blocking"),
    };
    terminal.line(format_args!(
        "  {}  {}: {}",
        terminal.paint(look, word),
        finding.check.as_str(),
        finding.message
    ))?;
    if let Some(fix) = &finding.fix {
        let fix = terminal.paint(Look::Hint, format!("→ {fix}"));
        terminal.line(format_args!("            {fix}"))?;
    }
    Ok(())
}
