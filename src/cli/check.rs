//! `tidegate check`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;

use super::terminal::{Look, Output, OutputArgs, Terminal};
use crate::app::check::{CheckReport, check};
use crate::app::{ProblemView, SeverityView};

/// Tell whether the objects of a folder are right, without serving them.
///
/// Tells every mistake at once, with file, line, field and how to mend it. Exit code 1 when anything must be
/// mended, 0 when nothing is wrong or there are only warnings: made for editors, commit hooks and CI. Connects to
/// nothing and writes nothing.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Folder of objects.
    #[arg(env = "TIDEGATE_DIR", default_value = ".")]
    dir: PathBuf,

    /// Take warnings for errors.
    #[arg(long)]
    strict: bool,

    /// An address at which the edge will be reached from outside: the DNS records of every route are printed with
    /// it. May be given several times.
    #[arg(
        long,
        env = "TIDEGATE_PUBLIC_ADDRESS",
        value_name = "IP",
        value_delimiter = ','
    )]
    public_address: Vec<IpAddr>,

    #[command(flatten)]
    output: OutputArgs,
}

impl CheckArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let mut report = check(&self.dir, self.public_address, SystemTime::now());
        if self.strict {
            report.ok = report.problems.is_empty();
        }
        match self.output.output {
            Output::Json => terminal.line(serde_json::to_string_pretty(&report)?)?,
            Output::Human => print(terminal, &report)?,
        }
        Ok(if report.ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn print(terminal: &mut Terminal, report: &CheckReport) -> std::io::Result<()> {
    problems(terminal, &report.problems)?;
    for (route, records) in &report.dns_records {
        terminal.line(format_args!(
            "{}",
            terminal.paint(Look::Faint, format!("; DNS of TlsRoute {route}"))
        ))?;
        dns_records(terminal, records)?;
    }
    for (route, trackers) in &report.udp_trackers {
        let title = format!("; UDP trackers of TlsRoute {route}");
        terminal.line(terminal.paint(Look::Faint, title))?;
        for line in trackers {
            terminal.line(line)?;
        }
    }
    if !report.dns_records.is_empty() || !report.udp_trackers.is_empty() {
        terminal.line("")?;
    }
    let objects = plural(report.objects, "object");
    let files = plural(report.files, "file");
    if report.problems.is_empty() && report.objects == 0 {
        terminal.line(format_args!(
            "{}: the folder {} holds no objects; `tidegate --help` shows a first one",
            terminal.paint(Look::Good, "ok"),
            report.folder
        ))
    } else if report.problems.is_empty() {
        terminal.line(format_args!(
            "{}: {objects} in {files}",
            terminal.paint(Look::Good, "ok")
        ))
    } else {
        terminal.line(format_args!(
            "{}; {objects} of {files} could be read",
            count(terminal, &report.problems),
        ))
    }
}

/// Prints lines of a zone file as they are pasted.
pub(super) fn dns_records(terminal: &mut Terminal, records: &[String]) -> std::io::Result<()> {
    for record in records {
        if record.starts_with(';') {
            terminal.line(terminal.paint(Look::Faint, record))?;
        } else {
            terminal.line(record)?;
        }
    }
    Ok(())
}

/// How many problems there are of each severity, such as `2 errors, 1 warning`.
pub(super) fn count(terminal: &Terminal, problems: &[ProblemView]) -> String {
    let parts = [
        (SeverityView::Error, Look::Bad, "error"),
        (SeverityView::Warning, Look::Warn, "warning"),
        (SeverityView::Progress, Look::Faint, "in progress"),
    ]
    .map(|(severity, look, noun)| {
        let count = problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .count();
        let text = match severity {
            SeverityView::Progress => format!("{count} {noun}"),
            _ => plural(count, noun),
        };
        (count > 0).then(|| terminal.paint(look, text))
    });
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Prints problems, each with place, object, field, what was found and what to do.
pub(super) fn problems(terminal: &mut Terminal, problems: &[ProblemView]) -> std::io::Result<()> {
    for problem in problems {
        let mut place = problem.file.clone().unwrap_or_default();
        if let Some(line) = problem.line {
            place = format!("{place}:{line}");
            if let Some(column) = problem.column {
                place = format!("{place}:{column}");
            }
        } else if let Some(document) = problem.document {
            place = format!("{place} (document {document})");
        }
        let mut head: Vec<String> = Vec::new();
        if !place.is_empty() {
            head.push(terminal.paint(Look::Strong, place));
        }
        head.extend(problem.object.clone());
        head.push(match problem.severity {
            SeverityView::Warning => {
                terminal.paint(Look::Warn, format!("[{}, warning]", problem.reason))
            }
            _ => terminal.paint(Look::Faint, format!("[{}]", problem.reason)),
        });
        terminal.line(head.join("  "))?;
        let what = match &problem.field {
            Some(field) => format!("{field}: {}", problem.message),
            None => problem.message.clone(),
        };
        terminal.line(format_args!("    {what}"))?;
        if let Some(hint) = &problem.hint {
            terminal.line(format_args!(
                "    {}",
                terminal.paint(Look::Hint, format!("→ {hint}"))
            ))?;
        }
        if problem.kept {
            terminal.line("    its last good version stays in use")?;
        }
        terminal.line("")?;
    }
    Ok(())
}

pub(super) fn plural(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}
