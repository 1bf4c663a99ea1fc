//! `tidegate export` and `tidegate import`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, ValueEnum};

use super::check::plural;
use super::import::Source;
use super::passphrase::{PassphraseArgs, Purpose};
use super::terminal::{Look, Terminal};
use super::values::StateArgs;
use crate::app::portability::{self, Done, Mode, Outcome, Program, Skipped};

/// Write accounts, certificates, keys and the ledger of orders into one encrypted file.
///
/// On another machine `tidegate import` reads it, and no certificate has to be ordered again. The edge may run
/// meanwhile. The internal CA is not in it: its root belongs to the machine.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The file to write; must not exist.
    file: PathBuf,

    /// Folder of objects, whose state folder is read.
    #[arg(long, env = "TIDEGATE_DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    passphrase: PassphraseArgs,
}

/// Read what `tidegate export` wrote, or take over from certbot, Caddy, Traefik or the Torrust Tracker's deployer.
///
/// Nothing newer is overwritten, nothing is ordered, and twice is the same as once. The edge of the state folder must
/// not run, except for --dry-run. Certificates of other programs go to the routes of --dir whose names they cover;
/// the others wait until a route needs them. The other program's files are only read: stop it before the edge starts,
/// or both will renew.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ImportArgs {
    /// Objects rather than certificates: the environment file of torrust-tracker-deployer.
    #[command(subcommand)]
    source: Option<Source>,

    /// The export; with --from /etc/letsencrypt, Caddy's data folder or Traefik's acme.json.
    #[arg(required = true)]
    path: Option<PathBuf>,

    /// Take over from this program.
    #[arg(long, value_name = "PROGRAM", value_enum)]
    from: Option<From>,

    /// Only tell what would be done.
    #[arg(long)]
    dry_run: bool,

    /// Folder of objects, whose routes and issuers get what is taken over.
    #[arg(long, env = "TIDEGATE_DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    passphrase: PassphraseArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    /// /etc/letsencrypt.
    Certbot,
    /// $XDG_DATA_HOME/caddy.
    Caddy,
    /// acme.json.
    Traefik,
}

impl ExportArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let state = self.state.find(self.dir.as_deref())?;
        portability::can_export(&state, &self.file)?;
        let passphrase = self.passphrase.find(Purpose::New)?;
        let made = portability::export(&state, &self.file, &passphrase, SystemTime::now())?;
        for key in &made.included {
            terminal.line(format_args!("  {key}"))?;
        }
        for (key, why) in &made.left_out {
            let why = terminal.paint(Look::Bad, format!("left out, {why}"));
            terminal.line(format_args!("  {key}: {why}"))?;
        }
        terminal.line(format_args!(
            "{}: {} in {} ({} bytes); whoever has it and the passphrase has your keys",
            terminal.paint(Look::Good, "written"),
            plural(made.included.len(), "document"),
            self.file.display(),
            made.size
        ))?;
        Ok(if made.left_out.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl ImportArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let (path, now) = match (self.source, self.path) {
            (Some(source), _) => return source.run(terminal),
            (None, Some(path)) => (path, SystemTime::now()),
            (None, None) => anyhow::bail!("import: say which file"),
        };
        let mode = if self.dry_run {
            Mode::DryRun
        } else {
            Mode::Apply
        };
        let state = self.state.find(self.dir.as_deref())?;
        portability::can_import(&state, mode)?;
        let (outcomes, skipped) = match self.from {
            None => {
                let passphrase = self.passphrase.find(Purpose::Known)?;
                let outcomes = portability::import_file(&state, &path, &passphrase, mode, now)?;
                (outcomes, Vec::new())
            }
            Some(from) => {
                let program = match from {
                    From::Certbot => Program::Certbot,
                    From::Caddy => Program::Caddy,
                    From::Traefik => Program::Traefik,
                };
                let objects = self.dir.as_deref();
                portability::import_from(&state, objects, program, &path, mode, now)?
            }
        };
        print(terminal, &outcomes, &skipped, &state, mode)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn print(
    terminal: &mut Terminal,
    outcomes: &[Outcome],
    skipped: &[Skipped],
    state: &Path,
    mode: Mode,
) -> std::io::Result<()> {
    for outcome in outcomes {
        let look = match outcome.done {
            Done::Added | Done::Merged => Look::Good,
            Done::Same | Done::Kept => Look::Faint,
        };
        let done = terminal.paint(look, format!("{:<7}", outcome.done.as_str()));
        let why = match outcome.why.as_str() {
            "" => String::new(),
            why => format!(": {why}"),
        };
        terminal.line(format_args!("{done} {}{why}", outcome.key))?;
    }
    for skipped in skipped {
        let done = terminal.paint(Look::Hint, "skipped");
        terminal.line(format_args!("{done} {}: {}", skipped.what, skipped.why))?;
        terminal.line(format_args!("        {}", skipped.source.display()))?;
    }
    let changed = outcomes
        .iter()
        .filter(|outcome| matches!(outcome.done, Done::Added | Done::Merged))
        .count();
    let said = match mode {
        Mode::Apply => "changed",
        Mode::DryRun => "would change",
    };
    let summary = format!(
        "{said} {} in {}",
        plural(changed, "document"),
        state.display()
    );
    terminal.line(terminal.paint(Look::Strong, summary))
}
