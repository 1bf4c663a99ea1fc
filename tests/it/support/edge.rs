//! The real `tidegate` binary on free ports of loopback, over a folder of the test's own.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tempfile::TempDir;

use super::client::block_on;
use super::program::{Program, succeed};
use super::{Client, Reply, eventually, ports};

/// How long anything asked of the edge may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// What is done in the edge's folder before it starts.
type Prepare = Box<dyn FnOnce(&Path)>;

/// How an edge is to be started.
pub(crate) struct Builder {
    objects: Vec<(String, String)>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    no_folder: bool,
    ports: Option<(u16, u16)>,
    prepare: Option<Prepare>,
    under: Vec<String>,
}

impl Builder {
    /// Listens on these ports for HTTP and HTTPS instead of any.
    pub(crate) fn ports(mut self, http: u16, https: u16) -> Self {
        self.ports = Some((http, https));
        self
    }

    /// Does this in the edge's folder, with `objects` and a `state` to be, before it starts.
    pub(crate) fn prepare(mut self, prepare: impl FnOnce(&Path) + 'static) -> Self {
        self.prepare = Some(Box::new(prepare));
        self
    }

    /// Starts the binary through another program, which takes it as its last argument and becomes it.
    pub(crate) fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(|&part| part.to_owned()).collect();
        self
    }

    /// Adds an object in a file of its own.
    pub(crate) fn object(mut self, yaml: impl Into<String>) -> Self {
        let name = format!("object-{}.yaml", self.objects.len());
        self.objects.push((name, yaml.into()));
        self
    }

    /// Adds a command-line argument of `tidegate run`.
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Adds several.
    pub(crate) fn args(self, args: &[&str]) -> Self {
        args.iter().fold(self, |builder, arg| builder.arg(arg))
    }

    /// Adds an environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Names no folder of objects on the command line.
    pub(crate) fn without_folder(mut self) -> Self {
        self.no_folder = true;
        self
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(self) -> Edge {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-it-")
            .tempdir()
            .unwrap();
        let objects = folder.path().join("objects");
        fs::create_dir(&objects).unwrap();
        for (name, yaml) in &self.objects {
            fs::write(objects.join(name), yaml).unwrap();
        }
        if let Some(prepare) = self.prepare {
            prepare(folder.path());
        }
        let (http, https) = self.ports.unwrap_or_else(|| (ports::free(), ports::free()));
        let admin = ports::free();
        let mut command = match self.under.split_first() {
            None => Edge::command(),
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(Edge::binary());
                Edge::environment(&mut command);
                command
            }
        };
        command
            .arg("run")
            .args((!self.no_folder).then_some(&objects))
            .args(["--http", &format!("127.0.0.1:{http}")])
            .args(["--https", &format!("127.0.0.1:{https}")])
            .args(["--admin", &format!("127.0.0.1:{admin}")])
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .args(["--workers", "1"])
            .args(&self.args)
            .envs(self.env);
        let program = Program::start(&mut command).wait_for_port(admin);
        let edge = Edge {
            program,
            command,
            folder,
            http,
            https,
            admin,
        };
        edge.wait_until_ready();
        edge
    }
}

/// A running edge. Dropping ends it.
pub(crate) struct Edge {
    program: Program,
    command: Command,
    folder: TempDir,
    /// Port of plain HTTP.
    pub(crate) http: u16,
    /// Port of HTTPS.
    pub(crate) https: u16,
    /// Port of the admin listener.
    pub(crate) admin: u16,
}

impl Edge {
    /// An edge without objects yet.
    pub(crate) fn builder() -> Builder {
        Builder {
            objects: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            no_folder: false,
            ports: None,
            prepare: None,
            under: Vec::new(),
        }
    }

    /// An edge that serves these objects.
    #[track_caller]
    pub(crate) fn start(objects: &[String]) -> Self {
        objects
            .iter()
            .fold(Self::builder(), |builder, yaml| {
                builder.object(yaml.clone())
            })
            .start()
    }

    /// The binary, with an environment of its own.
    pub(crate) fn command() -> Command {
        Self::command_of(Self::binary())
    }

    /// Another build of it.
    pub(crate) fn command_of(binary: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(binary);
        Self::environment(&mut command);
        command
    }

    /// Where the binary is.
    pub(crate) fn binary() -> &'static str {
        env!("CARGO_BIN_EXE_tidegate")
    }

    fn environment(command: &mut Command) {
        command.env_remove("SSL_CERT_FILE").env("NO_COLOR", "1");
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        eventually("readiness", PATIENCE, || match self.admin("/readyz") {
            Ok(reply) if reply.starts_with("HTTP/1.1 200") => Ok(()),
            other => Err(format!("{other:?}; log:\n{}", self.log())),
        });
    }

    /// Kills the process, if it still runs, and starts another on the same folders and ports.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        if self.program.ended().is_none() {
            self.program.signal("KILL");
            self.program.wait(PATIENCE);
        }
        self.program = Program::start(&mut self.command).wait_for_port(self.admin);
        self.wait_until_ready();
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        self.program.log()
    }

    /// The process.
    pub(crate) fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// The watched folder.
    pub(crate) fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    /// A folder that ends with the test.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes or replaces a file of the watched folder in one step, as an editor or a sync tool does.
    pub(crate) fn write(&self, name: &str, yaml: &str) {
        let next = self.folder.path().join(format!("{name}.next"));
        fs::write(&next, yaml).unwrap();
        fs::rename(&next, self.objects().join(name)).unwrap();
    }

    /// Removes a file of the watched folder.
    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.objects().join(name)).unwrap();
    }

    /// The file with the edge's own root certificate.
    #[track_caller]
    pub(crate) fn ca_file(&self) -> PathBuf {
        let file = self.folder.path().join("state/ca/ca.crt");
        assert!(file.exists(), "no root certificate at {}", file.display());
        file
    }

    /// A GET on the admin listener: head and body as text.
    pub(crate) fn admin(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    }

    /// What the admin listener says of a path of its API.
    pub(crate) fn api(&self, path: &str) -> Result<serde_json::Value, String> {
        let reply = self.admin(path).map_err(|error| error.to_string())?;
        let (_, body) = reply.split_once("\r\n\r\n").unwrap_or_default();
        serde_json::from_str(body).map_err(|error| format!("{error} in {reply}"))
    }

    /// Pid of the process that serves, which after an upgrade in place is another one. It ends with this edge.
    pub(crate) fn successor(&self) -> Result<u32, String> {
        let pid = self.api("/api/v1/status")?["pid"].as_u64();
        pid.and_then(|pid| pid.try_into().ok())
            .ok_or_else(|| "the status names no process".to_owned())
    }

    /// A client that trusts the edge.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.https, &fs::read(self.ca_file()).unwrap())
    }

    /// `GET https://host/path`.
    #[track_caller]
    pub(crate) fn get(&self, host: &str, path: &str) -> Reply {
        self.client().get(host, path)
    }

    /// Sends a request without body over HTTP/1.1: method, path and header fields.
    #[track_caller]
    pub(crate) fn request(
        &self,
        host: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Reply {
        self.send(host, method, path, headers, "")
    }

    /// Sends a request over HTTP/1.1.
    #[track_caller]
    pub(crate) fn send(
        &self,
        host: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            request = request.header("host", host);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        block_on(self.client().send(host, request))
            .unwrap_or_else(|error| panic!("{method} {host}{path}: {error}"))
    }

    /// Waits until a GET of this host answers with the status.
    #[track_caller]
    pub(crate) fn wait_for_status(&self, host: &str, path: &str, status: u16) -> Reply {
        let client = self.client();
        eventually(
            &format!("{status} from {host}{path}"),
            PATIENCE,
            || match client.try_get(host, path) {
                Ok(reply) if reply.status == status => Ok(reply),
                Ok(reply) => Err(format!("{} {}", reply.status, reply.text())),
                Err(error) => Err(error),
            },
        )
    }

    /// curl that finds the hosts here and trusts this edge.
    pub(crate) fn curl(&self, hosts: &[&str]) -> Command {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "60"])
            .arg("--cacert")
            .arg(self.ca_file())
            .env_remove("CURL_CA_BUNDLE");
        for host in hosts {
            command
                .arg("--resolve")
                .arg(format!("{host}:{}:127.0.0.1", self.https));
            command
                .arg("--resolve")
                .arg(format!("{host}:{}:127.0.0.1", self.http));
        }
        command
    }

    /// `https://host:port/path`.
    pub(crate) fn url(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}{path}", self.https)
    }

    /// A token of an agent and its hash, as people make them.
    #[track_caller]
    pub(crate) fn agent_token() -> (String, String) {
        let made = Self::run(&["agent", "token", "--output", "json"]);
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        (text("token"), text("tokenHash"))
    }

    /// Runs another subcommand of the binary; panics unless it succeeds.
    #[track_caller]
    pub(crate) fn run(args: &[&str]) -> String {
        succeed(Self::command().args(args))
    }
}

/// A route from one host to one address.
pub(crate) fn route(name: &str, host: &str, address: impl std::fmt::Display) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\n\
         kind: TlsRoute\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 hostnames: [{host}]\n\
         \x20 rules:\n\
         \x20 - backends: [{{address: \"{address}\"}}]\n"
    )
}

/// A route whose spec is given as YAML, indented as it likes.
pub(crate) fn route_of(name: &str, spec: &str) -> String {
    let spec = spec.trim_matches('\n');
    let margin = spec
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.len() - line.trim_start().len())
        .min()
        .unwrap_or(0);
    let lines: Vec<_> = spec
        .lines()
        .map(|line| format!("  {}\n", line.get(margin..).unwrap_or_default()))
        .collect();
    let body = lines.concat();
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {{name: {name}}}\nspec:\n{body}"
    )
}

/// A Secret whose values are text.
pub(crate) fn secret(name: &str, kind: &str, values: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: {kind}\nstringData:\n"
    );
    for (key, value) in values {
        let _ = writeln!(text, "  {key}: |");
        for line in value.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}
