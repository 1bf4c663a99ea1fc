//! A BIND on loopback with zones of its own in a temporary folder; ended when dropped.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::dns::DnsClient;

pub(crate) const KEY_NAME: &str = "edge-key";
pub(crate) const OTHER_KEY_NAME: &str = "other-key";
/// Base64 of fixed bytes: test keys, known to everybody.
pub(crate) const KEY: &str = "dGlkZWdhdGUtdGVzdC1rZXktdGlkZWdhdGUtdGVzdA==";
pub(crate) const OTHER_KEY: &str = "YW5vdGhlci10ZXN0LWtleS1hbm90aGVyLXRlc3Qta2V5";

pub(crate) struct Bind {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) folder: TempDir,
}

/// A zone and its lines below SOA and NS.
pub(crate) struct Zone<'a> {
    pub(crate) name: &'a str,
    pub(crate) records: &'a str,
    /// Key that may write TXT records.
    pub(crate) key: &'a str,
}

pub(crate) fn zone<'a>(name: &'a str, records: &'a str) -> Zone<'a> {
    Zone {
        name,
        records,
        key: KEY_NAME,
    }
}

#[track_caller]
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join("named"))
        .find(|program| program.is_file());
    if found.is_none() {
        super::missing("named");
    }
    found
}

impl Bind {
    /// Serves the zones; `broken` are answered with SERVFAIL. None, said loudly, where BIND is missing;
    /// under `CI` that is a failure.
    #[track_caller]
    pub(crate) fn start(zones: &[Zone<'_>], broken: &[&str], algorithm: &str) -> Option<Self> {
        let program = program()?;
        // Another process may take a port between our look and BIND's start.
        for _ in 0..5 {
            if let Some(bind) = Self::try_start(&program, zones, broken, algorithm) {
                return Some(bind);
            }
        }
        panic!("named did not start five times");
    }

    fn try_start(
        program: &Path,
        zones: &[Zone<'_>],
        broken: &[&str],
        algorithm: &str,
    ) -> Option<Self> {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-bind-")
            .tempdir()
            .unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).ok()?;
        let dir = folder.path().display();
        let mut config = format!(
            "options {{ directory \"{dir}\"; listen-on port {port} {{ 127.0.0.1; }}; \
             listen-on-v6 {{ none; }}; pid-file none; session-keyfile none; recursion no; \
             dnssec-validation no; minimal-responses no; }};\ncontrols {{}};\n\
             key \"{KEY_NAME}\" {{ algorithm {algorithm}; secret \"{KEY}\"; }};\n\
             key \"{OTHER_KEY_NAME}\" {{ algorithm {algorithm}; secret \"{OTHER_KEY}\"; }};\n",
            port = address.port(),
        );
        for zone in zones {
            let text = format!(
                "$TTL 60\n@ IN SOA ns.{name}. admin.{name}. 1 3600 600 86400 5\n\
                 @ IN NS ns.{name}.\nns IN A 127.0.0.1\n{records}\n",
                name = zone.name,
                records = zone.records,
            );
            std::fs::write(folder.path().join(zone.name), text).unwrap();
            writeln!(
                config,
                "zone \"{name}\" {{ type primary; file \"{name}\"; \
                 update-policy {{ grant {key} zonesub TXT; }}; }};",
                name = zone.name,
                key = zone.key,
            )
            .unwrap();
        }
        for name in broken {
            // Its primary is not there, so it never has data.
            writeln!(
                config,
                "zone \"{name}\" {{ type secondary; primaries {{ 127.0.0.1 port 1; }}; \
                 file \"broken-{name}\"; }};"
            )
            .unwrap();
        }
        let path = folder.path().join("named.conf");
        std::fs::write(&path, config).unwrap();
        drop((udp, tcp));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut child = Command::new(program)
            .args(["-g", "-n", "1", "-c"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let log = folder.path().join("log");
        loop {
            let said = std::fs::read_to_string(&log).unwrap();
            if said.contains("\nrunning") || said.contains(" running\n") {
                // "running" comes after all zones are loaded.
                return Some(Self {
                    child,
                    address,
                    folder,
                });
            }
            if let Some(status) = child.try_wait().unwrap() {
                assert!(
                    said.contains("address in use"),
                    "named ended: {status}\n{said}"
                );
                return None;
            }
            assert!(Instant::now() < deadline, "named does not start:\n{said}");
            super::breathe();
        }
    }

    /// Asks this server.
    pub(crate) fn client(&self) -> DnsClient {
        DnsClient::new(vec![self.address], Duration::from_secs(5))
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
