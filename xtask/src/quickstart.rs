//! `cargo xtask quickstart`: from a fresh checkout to an HTTPS answer, with nothing installed.
//!
//! Serves `examples/quickstart`; state (the internal CA) lives under `target/quickstart`.
//! `--check` starts, fetches the page with curl, and stops: the exit code tells whether it works.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::shell;

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const ADMIN: u16 = 9443;
const PATIENCE: Duration = Duration::from_secs(30);

fn serve(check: bool) -> Result<()> {
    shell::run(&mut shell::cargo(&[
        "build",
        "--workspace",
        "--bin",
        "tidegate",
    ]))?;
    let root = shell::root();
    let state = root.join("target/quickstart");
    let mut command = Command::new(root.join("target/debug/tidegate"));
    command
        .current_dir(&root)
        .args([
            "run",
            "examples/quickstart",
            "--state-dir",
            "target/quickstart",
        ])
        .args([
            "--http",
            &format!("127.0.0.1:{HTTP}"),
            "--https",
            &format!("127.0.0.1:{HTTPS}"),
        ])
        .args(["--admin", &format!("127.0.0.1:{ADMIN}")]);
    if check {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut edge = Edge(command.spawn().context("start the edge")?);
    wait_until_ready(&mut edge)?;
    let ca = state.join("ca/ca.crt");
    let url = format!("https://localhost:{HTTPS}/");
    if check {
        let page = fetch(&ca, &url)?;
        if !page.contains("Tidegate") {
            bail!("{url} answered with another page: {page}");
        }
        println!(
            "ok: {url} answers over HTTPS, verified against {}",
            ca.display()
        );
        return Ok(());
    }
    println!(
        "\n  serving   {url}  and http://localhost:{HTTP}/ (redirects)\n\
         \x20 CA        {ca}  (`tidegate ca --state-dir target/quickstart` tells how to trust it)\n\
         \x20 try       curl --cacert {ca} {url}\n\
         \x20 proxy     start anything on 127.0.0.1:3000, then open https://app.localhost:{HTTPS}/\n\
         \x20 edit      files in examples/quickstart apply as they are saved\n\
         \x20 stop      Ctrl-C\n",
        ca = ca.display(),
    );
    // Ctrl-C reaches the edge too: both are in the terminal's foreground group.
    let status = edge.0.wait().context("wait for the edge")?;
    if !status.success() {
        bail!("the edge ended with {status}");
    }
    Ok(())
}

/// The command.
pub(crate) fn run(args: &[String]) -> Result<()> {
    match args {
        [] => serve(false),
        [one] if one == "--check" => serve(true),
        _ => bail!("usage: cargo xtask quickstart [--check]"),
    }
}

/// Ends the edge it started, by its pid, when the check is over or has failed.
struct Edge(Child);

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until_ready(edge: &mut Edge) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = edge.0.try_wait().context("look after the edge")? {
            let mut said = String::new();
            if let Some(mut stderr) = edge.0.stderr.take() {
                stderr
                    .read_to_string(&mut said)
                    .context("read what the edge said")?;
            }
            bail!("the edge ended with {status} {said}");
        }
        if ready() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the edge is not ready after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ready() -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", ADMIN)) else {
        return false;
    };
    let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut status = String::new();
    stream.write_all(request).is_ok()
        && BufReader::new(stream).read_line(&mut status).is_ok()
        && status.contains(" 200 ")
}

fn fetch(ca: &Path, url: &str) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "--max-time", "20", "--cacert"])
        .arg(ca)
        .arg(url);
    shell::output(&mut curl)
}
