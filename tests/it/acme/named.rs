//! A BIND on loopback with one zone that a TSIG key may write TXT records of.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Program, missing, ports, program};

/// Name of the key that may write.
pub(crate) const KEY_NAME: &str = "edge";
/// The key, in base64 of fixed bytes.
pub(crate) const KEY: &str = "dGlkZWdhdGUtdGVzdC1rZXktdGlkZWdhdGUtdGVzdA==";

/// A running name server. Dropping ends it.
pub(crate) struct Named {
    program: Program,
    _folder: TempDir,
    /// Its port on loopback, UDP and TCP.
    pub(crate) port: u16,
}

impl Named {
    /// Serves the zone, in which every name leads to loopback; None, said loudly, where BIND is missing.
    pub(crate) fn start(zone: &str) -> Option<Self> {
        if missing(&["named"]) {
            return None;
        }
        let binary = program::find("named")?;
        let folder = tempfile::Builder::new()
            .prefix("tidegate-named-")
            .tempdir()
            .unwrap();
        let port = ports::free();
        let dir = folder.path().display();
        let config = format!(
            "options {{ directory \"{dir}\"; listen-on port {port} {{ 127.0.0.1; }}; \
             listen-on-v6 {{ none; }}; pid-file none; session-keyfile none; recursion no; \
             dnssec-validation no; }};\ncontrols {{}};\n\
             key \"{KEY_NAME}\" {{ algorithm hmac-sha256; secret \"{KEY}\"; }};\n\
             zone \"{zone}\" {{ type primary; file \"zone\"; \
             update-policy {{ grant {KEY_NAME} zonesub TXT; }}; }};\n"
        );
        let records = format!(
            "$TTL 60\n@ IN SOA ns.{zone}. admin.{zone}. 1 3600 600 86400 5\n\
             @ IN NS ns.{zone}.\n@ IN A 127.0.0.1\nns IN A 127.0.0.1\n\
             app IN A 127.0.0.1\n*.app IN A 127.0.0.1\n"
        );
        fs::write(folder.path().join("zone"), records).unwrap();
        let path = folder.path().join("named.conf");
        fs::write(&path, config).unwrap();
        let program = Program::start(
            Command::new(binary)
                .args(["-g", "-n", "1", "-c"])
                .arg(&path),
        )
        .wait_for_port(port);
        Some(Self {
            program,
            _folder: folder,
            port,
        })
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        self.program.log()
    }
}
