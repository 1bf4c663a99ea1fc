//! The agent's command line, the same for `tidegate-agent` and `tidegate agent`.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 well, 1 something is wrong,
//! 2 the command line is.

#![allow(clippy::doc_markdown, reason = "doc comments are help text here")]

mod print;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use tidegate_model::Secret;
use tidegate_telemetry::{LogFormat, LogOptions, chain};
use tidegate_tunnel::credential::{self, Token};

use crate::config::{Config, Given, STATUS};
use crate::{doctor, run, status};

const AFTER: &str = "\
The configuration is a file, options or both; options win:

    edge: https://edge.example.com
    agent: default/homelab
    tokenFile: /etc/tidegate-agent/token
    mappings:
      - name: nas
        hostname: nas.home.example.com
        target: https://192.168.1.10:5001
        insecureSkipVerify: true

The token is read from tokenFile or from TIDEGATE_AGENT_TOKEN; it is never an option, because every user of a \
machine sees the options of its processes.

Signals:
  TERM, INT  no new requests, 30 s for those that run, then the end; a second one ends at once
  HUP        read the configuration again; links and their streams stay. A saved file applies by itself

Exit codes: 0 well, 1 something is wrong, 2 the command line is.";

/// Serve through an edge what only this machine can reach.
///
/// Dials out to the edge on port 443, needs no open port and no public address, and passes what visitors of the edge
/// ask to services of its network. What it serves is said by the edge (a TunnelAgent, routes with an agent backend) and
/// by its own configuration, as far as the edge allows.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER, args_conflicts_with_subcommands = true)]
pub struct AgentArgs {
    #[command(subcommand)]
    command: Option<AgentCommand>,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Say whether the configuration can be used, without dialling.
    Check(CheckArgs),
    /// Tell how the running agent is doing.
    ///
    /// Asks its status page. Exit code 0 when a link is up, 1 otherwise.
    Status(StatusArgs),
    /// Try every step of the way to each edge, and say what stands in the way.
    ///
    /// Name, TCP, proxy, TLS (and who issued the certificate), the direct carrier, the WebSocket carrier. Exit code 0
    /// when every edge can be used, 1 otherwise.
    Doctor(DoctorArgs),
    /// Make a new token.
    ///
    /// The agent gets the token, the edge its hash: from the hash nobody can make the token. Put one of them into the
    /// Secret that the TunnelAgent names, as `token` or as `tokenHash`.
    Token(TokenArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Address of the agent's status page.
    #[arg(long, env = "TIDEGATE_AGENT_STATUS", value_name = "ADDRESS", default_value = STATUS)]
    status: String,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// Write the token into this new file, readable by its owner only, and print the hash alone.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct OutputArgs {
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Human,
    Json,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// File of YAML with the agent's configuration.
    #[arg(long, short, env = "TIDEGATE_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// The edge to dial, such as https://edge.example.com; several are tried in order.
    #[arg(
        long,
        env = "TIDEGATE_AGENT_EDGE",
        value_name = "URL",
        value_delimiter = ','
    )]
    edge: Vec<String>,

    /// Who the agent is: NAMESPACE/NAME of its TunnelAgent, or NAME in the namespace default.
    #[arg(long, env = "TIDEGATE_AGENT_NAME", value_name = "NAME")]
    agent: Option<String>,

    /// File that holds the agent's token. The token itself may be in TIDEGATE_AGENT_TOKEN.
    #[arg(long, env = "TIDEGATE_AGENT_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Proxy to the edge: http://, https:// or socks5://, with user:password@ if it wants that, or none.
    ///
    /// Default: what HTTPS_PROXY, ALL_PROXY and NO_PROXY say. Give a password in the file or in the environment.
    #[arg(
        long,
        env = "TIDEGATE_AGENT_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    proxy: Option<String>,

    /// File of more authorities in PEM that may have issued the edge's certificate, or that of an https:// proxy.
    #[arg(long, env = "TIDEGATE_AGENT_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// How many links to keep, 1 to 4, on different replicas of the edge where there are several. Default: 2.
    #[arg(long, env = "TIDEGATE_AGENT_LINKS", value_name = "NUMBER")]
    links: Option<u64>,

    /// Where the status page listens, or off. Default: 127.0.0.1:19181.
    #[arg(long, env = "TIDEGATE_AGENT_STATUS", value_name = "ADDRESS")]
    status: Option<String>,

    /// Where the edge may send the agent: names, networks, both with :PORT or without. Default: anywhere.
    #[arg(
        long,
        env = "TIDEGATE_AGENT_ALLOW_TARGET",
        value_name = "RULE",
        value_delimiter = ','
    )]
    allow_target: Vec<String>,

    /// Ask the edge to serve a hostname or a port, as HOSTNAME=TARGET or PORT=TARGET; can be given more than once.
    #[arg(
        long,
        env = "TIDEGATE_AGENT_EXPOSE",
        value_name = "HOSTNAME=TARGET",
        value_delimiter = ','
    )]
    expose: Vec<String>,
}

impl ConfigArgs {
    fn given(self) -> Given {
        let token = std::env::var("TIDEGATE_AGENT_TOKEN")
            .ok()
            .filter(|token| !token.is_empty());
        Given {
            config: self.config,
            edge: self.edge,
            agent: self.agent,
            token: token.map(Secret::new),
            token_file: self.token_file,
            proxy: self.proxy,
            ca_file: self.ca_file,
            links: self.links,
            status: self.status,
            allow_target: self.allow_target,
            expose: self.expose,
        }
    }
}

#[derive(Debug, Args)]
struct LogArgs {
    /// What to log: a level, or directives such as info,tidegate_agent=debug.
    #[arg(
        long,
        env = "TIDEGATE_AGENT_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info"
    )]
    log_level: String,

    /// For people or as lines of JSON.
    #[arg(
        long,
        env = "TIDEGATE_AGENT_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "human"
    )]
    log_format: Output,
}

impl AgentArgs {
    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            None => serve(self.config, self.log),
            Some(AgentCommand::Check(args)) => check(args),
            Some(AgentCommand::Status(args)) => show_status(&args),
            Some(AgentCommand::Doctor(args)) => examine(args),
            Some(AgentCommand::Token(args)) => make_token(&args),
        };
        match done {
            Ok(code) => code,
            Err(error) => {
                let closed = error.downcast_ref::<io::Error>();
                if closed.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                    return ExitCode::SUCCESS;
                }
                let _ = writeln!(io::stderr().lock(), "tidegate: cannot {}", chain(&*error));
                ExitCode::FAILURE
            }
        }
    }
}

type Done = Result<ExitCode, Box<dyn std::error::Error>>;

fn serve(config: ConfigArgs, log: LogArgs) -> Done {
    tidegate_telemetry::init(&LogOptions {
        format: match log.log_format {
            Output::Human => LogFormat::Human,
            Output::Json => LogFormat::Json,
        },
        level: log.log_level,
    })?;
    run::block_on(run::run(config.given()))??;
    Ok(ExitCode::SUCCESS)
}

fn check(args: CheckArgs) -> Done {
    let config = Config::load(&args.config.given())?;
    let token = config.token.read()?;
    Token::parse(token.expose())?;
    crate::trust::Trust::load(config.ca_file.as_deref())?;
    print::check(&mut io::stdout().lock(), &config)?;
    Ok(ExitCode::SUCCESS)
}

fn show_status(args: &StatusArgs) -> Done {
    let address = args.status.parse();
    let address = address.map_err(|_| {
        format!(
            "use --status {:?}: write an address with a port, such as {STATUS}",
            args.status
        )
    })?;
    let found = run::block_on(status::ask(address))??;
    let mut out = io::stdout().lock();
    match args.output.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?,
        Output::Human => print::status(&mut out, &found)?,
    }
    Ok(if found.connected {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn examine(args: DoctorArgs) -> Done {
    let config = Config::load(&args.config.given())?;
    let found = run::block_on(doctor::examine(&config))??;
    let mut out = io::stdout().lock();
    match args.output.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?,
        Output::Human => print::doctor(&mut out, &found)?,
    }
    let good = found.iter().all(doctor::Examined::is_good);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn make_token(args: &TokenArgs) -> Done {
    let token = Token::generate()?;
    let hash = credential::stored_key_text(&token.stored_key());
    let mut out = io::stdout().lock();
    let shown = match &args.file {
        Some(path) => {
            write_token(path, &token)
                .map_err(|error| format!("write the token to {}: {error}", path.display()))?;
            None
        }
        None => Some(token.text()),
    };
    let shown = shown.as_ref().map(|token| token.expose().as_str());
    match args.output.output {
        Output::Json => {
            writeln!(
                out,
                "{}",
                serde_json::json!({"token": shown, "tokenHash": hash})
            )?;
        }
        Output::Human => print::token(&mut out, shown, &hash)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_token(path: &std::path::Path, token: &Token) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", token.text().expose())?;
    file.sync_all()
}
