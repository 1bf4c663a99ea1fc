//! `tidegate explain`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::check;
use super::terminal::{Look, Terminal};
use crate::app::explain::{Question, explain};

/// Tell what would happen to a request, and why.
///
/// Shows the host's owner, the certificate, every rule in order of precedence with the reason why it answers or
/// not, the filters, the backend and the header changes. Asks the same code as the edge, sends nothing anywhere.
/// Exit code 0 when a rule answers, 1 otherwise.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Such as https://blog.example.com/feed?page=2; https when no scheme is given.
    url: String,

    /// Folder of objects.
    #[arg(long, env = "TIDEGATE_DIR", default_value = ".")]
    dir: PathBuf,

    /// The client's address.
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,

    /// A header field of the request, as 'Name: value'; can be given more than once.
    #[arg(long, short = 'H', value_name = "FIELD", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,

    /// Method of the request.
    #[arg(long, short = 'X', default_value = "GET")]
    method: Method,
}

impl ExplainArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let mut headers = HeaderMap::new();
        headers.extend(
            self.header
                .into_iter()
                .map(|(name, value)| (Some(name), value)),
        );
        let question = Question {
            url: url(&self.url)?,
            method: self.method,
            from: self.from,
            headers,
        };
        let explanation = explain(&self.dir, &question, SystemTime::now());
        terminal.line(terminal.paint(
            Look::Strong,
            format!("{} {}", question.method, question.url),
        ))?;
        for (title, lines) in &explanation.sections {
            terminal.line(terminal.paint(Look::Hint, title))?;
            for line in lines {
                terminal.line(format_args!("  {line}"))?;
            }
        }
        if !explanation.problems.is_empty() {
            terminal.line("")?;
            let count = check::count(terminal, &explanation.problems);
            terminal.line(format_args!("the folder has {count}, which may be why:"))?;
            terminal.line("")?;
            check::problems(terminal, &explanation.problems)?;
        }
        Ok(if explanation.answered {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn url(text: &str) -> anyhow::Result<Uri> {
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let url: Uri = full
        .parse()
        .with_context(|| format!("read the URL {text:?}"))?;
    match url.scheme_str() {
        Some("http" | "https") if url.host().is_some() => Ok(url),
        _ => {
            anyhow::bail!("read the URL {text:?}: write one such as https://blog.example.com/path")
        }
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let bad = || format!("{text:?} is not a header field: write one such as 'Accept: text/html'");
    let (name, value) = text.split_once(':').ok_or_else(bad)?;
    Ok((
        name.trim().parse().map_err(|_| bad())?,
        value.trim().parse().map_err(|_| bad())?,
    ))
}
