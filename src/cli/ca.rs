//! `tidegate ca`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::terminal::{Look, Terminal};
use super::values::StateArgs;
use crate::source::ca::read_root;
use crate::source::state::StateFolder;

/// Print the internal CA's root certificate and how to trust it.
///
/// The certificate goes to standard output, so that `tidegate ca > tidegate-ca.crt` saves it; on a terminal the
/// instructions per system follow. Trust it only on machines of your own: whoever has the state folder can make
/// certificates for every name that those machines accept.
#[derive(Debug, Args)]
pub(super) struct CaArgs {
    /// Folder of objects, whose state folder is asked.
    #[arg(env = "TIDEGATE_DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    state: StateArgs,

    /// Print the instructions even when the output is not a terminal.
    #[arg(long)]
    instructions: bool,
}

impl CaArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        let state = StateFolder::peek(self.state.find(self.dir.as_deref())?);
        let pem = read_root(&state)?;
        terminal.text(&pem)?;
        if self.instructions || std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            let file = state.path().join("ca/ca.crt");
            terminal.line("")?;
            for (system, steps) in instructions(&file.display().to_string()) {
                terminal.line(terminal.paint(Look::Strong, system))?;
                for step in steps {
                    terminal.line(format_args!("  {step}"))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Steps by system; `file` is where the certificate lies on this machine.
fn instructions(file: &str) -> Vec<(&'static str, Vec<String>)> {
    let s = |text: &str| text.to_owned();
    vec![
        (
            "Debian, Ubuntu",
            vec![
                format!("sudo cp {file} /usr/local/share/ca-certificates/tidegate-ca.crt"),
                s("sudo update-ca-certificates"),
            ],
        ),
        (
            "Fedora, RHEL, Rocky, Alma",
            vec![
                format!("sudo cp {file} /etc/pki/ca-trust/source/anchors/tidegate-ca.crt"),
                s("sudo update-ca-trust"),
            ],
        ),
        ("Arch", vec![format!("sudo trust anchor --store {file}")]),
        (
            "Alpine",
            vec![
                s("apk add ca-certificates"),
                format!("cp {file} /usr/local/share/ca-certificates/tidegate-ca.crt"),
                s("update-ca-certificates"),
            ],
        ),
        (
            "macOS",
            vec![format!(
                "sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {file}"
            )],
        ),
        (
            "Windows (as administrator)",
            vec![s("certutil -addstore -f ROOT tidegate-ca.crt")],
        ),
        (
            "Firefox (has its own list)",
            vec![
                s("Settings > Privacy & Security > View Certificates > Authorities > Import,"),
                s("or set security.enterprise_roots.enabled to true to use the system's"),
            ],
        ),
        (
            "Chromium and Chrome on Linux (need libnss3-tools)",
            vec![format!(
                "certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n tidegate -i {file}"
            )],
        ),
        (
            "iOS, Android",
            vec![
                s(
                    "send tidegate-ca.crt to the device, open it and install it as a CA certificate;",
                ),
                s("on iOS then turn it on under General > About > Certificate Trust Settings"),
            ],
        ),
        ("curl", vec![format!("curl --cacert {file} https://…")]),
        (
            "Node.js",
            vec![format!("NODE_EXTRA_CA_CERTS={file} node …")],
        ),
        (
            "Python (requests, httpx, ssl)",
            vec![
                format!("REQUESTS_CA_BUNDLE={file} python …   (requests)"),
                format!("SSL_CERT_FILE={file} python …        (ssl, httpx, aiohttp)"),
            ],
        ),
        (
            "git",
            vec![format!(
                "git config --global http.https://git.example.com/.sslCAInfo {file}"
            )],
        ),
    ]
}
