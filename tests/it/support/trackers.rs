//! Real BitTorrent trackers: the Torrust Tracker, `PeerTube`'s, opentracker.
//!
//! They read the client's address in three ways: the Torrust Tracker takes the last entry of
//! X-Forwarded-For, `PeerTube`'s the first one, opentracker as Debian builds it looks at the connection only.
//! What is started here listens on addresses of this thread's network and ends with its value.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::program::{Program, tools};
use super::{eventually, missing, ports};

/// How long a tracker may take to be ready, or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// Opens the API of every Torrust Tracker that is started here.
pub(crate) const TOKEN: &str = "MyAccessToken";
const DATABASE: &str = "/var/lib/torrust/tracker/database/sqlite3.db";

/// How a Torrust Tracker is to run.
#[derive(Default)]
pub(crate) struct Settings {
    /// Whether it takes addresses from X-Forwarded-For.
    pub(crate) on_reverse_proxy: bool,
    /// Where its HTTP trackers listen.
    pub(crate) http: Vec<SocketAddr>,
    /// Where its UDP trackers listen.
    pub(crate) udp: Vec<SocketAddr>,
    /// Where its API listens; any port of 127.0.0.1 by default.
    pub(crate) api: Option<SocketAddr>,
    /// Where it tells its health; any port of 127.0.0.1 by default.
    pub(crate) health: Option<SocketAddr>,
}

/// A running Torrust Tracker.
pub(crate) struct Torrust {
    program: Program,
    _folder: TempDir,
    /// Where its HTTP trackers listen.
    pub(crate) http: Vec<SocketAddr>,
    /// Where its API listens.
    pub(crate) api: SocketAddr,
}

/// A peer as the Torrust Tracker's API lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    /// Address and port at which others reach it.
    pub(crate) address: SocketAddr,
    /// The part of its id that names the client, such as `-TR3000-`.
    pub(crate) id: String,
    /// Bytes that it lacks.
    pub(crate) left: u64,
}

impl Torrust {
    /// One HTTP tracker on any port of 127.0.0.1, behind a proxy. None if it is not installed.
    #[track_caller]
    pub(crate) fn behind_proxy() -> Option<Self> {
        Self::start(Settings {
            on_reverse_proxy: true,
            http: vec![local(ports::free())],
            ..Settings::default()
        })
    }

    /// Starts it and waits until all its parts are well. None if it is not installed.
    #[track_caller]
    pub(crate) fn start(settings: Settings) -> Option<Self> {
        let api = settings.api.unwrap_or_else(|| local(ports::free()));
        let health = settings.health.unwrap_or_else(|| local(ports::free()));
        let config = torrust_config(&settings, api, health);
        Self::start_with(&config, settings.http, api, health)
    }

    /// Starts it with a configuration that has no token of an administrator and its database in
    /// `/var/lib/torrust`, as the official image does. None if it is not installed.
    #[track_caller]
    pub(crate) fn start_with(
        config: &str,
        http: Vec<SocketAddr>,
        api: SocketAddr,
        health: SocketAddr,
    ) -> Option<Self> {
        let program = tools().join("bin/torrust-tracker");
        if missing(&[&program]) {
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("tidegate-torrust-")
            .tempdir()
            .unwrap();
        let database = folder.path().join("tracker.db");
        let config = config.replace(DATABASE, &database.to_string_lossy());
        let file = folder.path().join("tracker.toml");
        fs::write(&file, config).unwrap();
        let mut program = Program::start(
            Command::new(program)
                .current_dir(folder.path())
                .env("TORRUST_TRACKER_CONFIG_TOML_PATH", &file)
                .env(
                    "TORRUST_TRACKER_CONFIG_OVERRIDE_HTTP_API__ACCESS_TOKENS__ADMIN",
                    TOKEN,
                ),
        );
        eventually("a healthy tracker", PATIENCE, || {
            if let Some(status) = program.ended() {
                panic!("it ended with {status}:\n{}", program.log());
            }
            match http_get(health, "/health_check", &[]) {
                Ok((200, body)) if body.contains("\"status\":\"Ok\"") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        Some(Self {
            program,
            _folder: folder,
            http,
            api,
        })
    }

    /// What the API says under this path, which begins with `/api/`.
    #[track_caller]
    pub(crate) fn ask(&self, path: &str) -> Value {
        let (status, body) = http_get(self.api, &format!("{path}?token={TOKEN}"), &[]).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The peers of a torrent, in order of their addresses. None of a torrent that it does not know.
    #[track_caller]
    pub(crate) fn peers(&self, info_hash: &str) -> Vec<Peer> {
        // Of an unknown torrent it says so in text, with the status of success.
        let torrent = self.ask(&format!("/api/v1/torrent/{info_hash}"));
        let peers = torrent["peers"].as_array().cloned().unwrap_or_default();
        let mut peers: Vec<_> = peers
            .iter()
            .map(|peer| Peer {
                address: peer["peer_addr"].as_str().unwrap().parse().unwrap(),
                id: client_id(peer["peer_id"]["id"].as_str().unwrap_or("")),
                left: peer["left"].as_u64().unwrap(),
            })
            .collect();
        peers.sort();
        peers
    }

    /// A counter such as `tcp4_announces_handled`.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let stats = self.ask("/api/v1/stats");
        stats[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no counter {name} in {stats}"))
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        self.program.log()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Ends it in the one way that it knows: it does not end on SIGTERM.
    #[track_caller]
    pub(crate) fn interrupt(mut self) -> ExitStatus {
        self.program.signal("INT");
        self.program.wait(PATIENCE)
    }
}

/// What can be read at the beginning of a peer's id, which comes as `0x` and hexadecimal digits.
fn client_id(digits: &str) -> String {
    let digits = digits.trim_start_matches("0x").as_bytes();
    let bytes = digits
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
    bytes.take(8).map(char::from).collect()
}

fn torrust_config(settings: &Settings, api: SocketAddr, health: SocketAddr) -> String {
    let mut text = format!(
        "[metadata]\napp = \"torrust-tracker\"\npurpose = \"configuration\"\nschema_version = \"2.0.0\"\n\
         [logging]\nthreshold = \"info\"\n\
         [core]\nlisted = false\nprivate = false\n\
         [core.announce_policy]\ninterval = 120\ninterval_min = 120\n\
         [core.net]\non_reverse_proxy = {}\n\
         [core.database]\ndriver = \"sqlite3\"\npath = \"{DATABASE}\"\n\
         [http_api]\nbind_address = \"{api}\"\n[health_check_api]\nbind_address = \"{health}\"\n",
        settings.on_reverse_proxy,
    );
    for (kind, addresses) in [("http", &settings.http), ("udp", &settings.udp)] {
        for address in addresses {
            let _ = writeln!(text, "[[{kind}_trackers]]\nbind_address = \"{address}\"");
        }
    }
    text
}

/// A running tracker of `PeerTube`'s, which believes its proxy.
pub(crate) struct PeerTube {
    program: Program,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl PeerTube {
    /// Starts it. None if it is not installed.
    #[track_caller]
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(true)
    }

    /// Starts one that believes its proxy, or one that does not. None if it is not installed.
    #[track_caller]
    pub(crate) fn start_with(trust_proxy: bool) -> Option<Self> {
        let packages = tools().join("node-test");
        let package = packages.join("node_modules/@peertube/bittorrent-tracker-server");
        if missing(&["node"]) || missing(&[&package]) {
            return None;
        }
        let port = ports::free();
        let script = format!(
            "import {{ Server }} from '@peertube/bittorrent-tracker-server'\n\
             const server = new Server({{ udp: false, ws: false, stats: false, trustProxy: {trust_proxy} }})\n\
             server.on('warning', warning => console.log(warning.message))\n\
             server.http.keepAliveTimeout = 2000\n\
             server.listen({port}, {{ http: '127.0.0.1' }})\n"
        );
        let program = Program::start(Command::new("node").current_dir(packages).args([
            "--input-type=module",
            "--eval",
            &script,
        ]))
        .wait_for_port(port);
        Some(Self {
            program,
            address: local(port),
        })
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        self.program.log()
    }
}

/// A running opentracker.
pub(crate) struct Opentracker {
    program: Program,
    _folder: TempDir,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Opentracker {
    /// Starts it. Debian's build serves only torrents that it is told of, by their hashes in hexadecimal
    /// digits. None if it is not installed.
    #[track_caller]
    pub(crate) fn start(torrents: &[String]) -> Option<Self> {
        Self::start_at(torrents, local(ports::free()), "")
    }

    /// The same at this address, with more lines of configuration.
    #[track_caller]
    pub(crate) fn start_at(torrents: &[String], address: SocketAddr, more: &str) -> Option<Self> {
        if missing(&["opentracker"]) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("white.txt"), torrents.join("\n") + "\n").unwrap();
        // It gives up root and changes into its folder, so that folder has to be open to others.
        open_to_all(folder.path());
        let config = format!(
            "listen.tcp {address}\naccess.whitelist white.txt\ntracker.rootdir {}\ntracker.user nobody\n{more}",
            folder.path().display()
        );
        let file = folder.path().join("tracker.conf");
        fs::write(&file, config).unwrap();
        let mut program = Program::start(
            Command::new("opentracker")
                .current_dir(folder.path())
                .arg("-f")
                .arg(&file),
        );
        eventually("a listening opentracker", PATIENCE, || {
            if let Some(status) = program.ended() {
                panic!("it ended with {status}:\n{}", program.log());
            }
            TcpStream::connect(address)
                .map(drop)
                .map_err(|error| error.to_string())
        });
        Some(Self {
            program,
            _folder: folder,
            address,
        })
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        self.program.log()
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A GET without any proxy: status and body.
pub(crate) fn http_get(
    address: SocketAddr,
    target: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Of version 1.0, so that the answer comes in one piece and ends the connection.
    let mut request = format!("GET {target} HTTP/1.0\r\nHost: {address}\r\n");
    for (name, value) in headers {
        let _ = write!(request, "{name}: {value}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes())?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other(format!("no status in {reply:?}")))?;
    Ok((status, body.to_owned()))
}
