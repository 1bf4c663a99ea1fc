//! git push and clone over HTTP: a chunked upload of unknown length, a long response.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::program::succeed;
use crate::support::program::{find, real_file};
use crate::support::{Edge, Program, missing, ports, route};

const HOST: &str = "git.test";

#[test]
fn thirty_megabytes_are_pushed_and_cloned() {
    let Some(hosted) = Hosted::start() else {
        return;
    };
    let edge = Edge::start(&[route("git", HOST, format!("127.0.0.1:{}", hosted.port))]);
    edge.wait_for_status(HOST, "/git/project.git/HEAD", 200);
    for version in ["HTTP/1.1", "HTTP/2"] {
        hosted.push_and_clone(&edge, HOST, version, 30 << 20);
    }
}

/// A repository as many host it.
pub(crate) struct Hosted {
    folder: TempDir,
    bare: PathBuf,
    /// Port of the server.
    pub(crate) port: u16,
    _lighttpd: Program,
}

impl Hosted {
    /// None where a program is missing.
    pub(crate) fn start() -> Option<Self> {
        if missing(&["git", "lighttpd"]) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let served = folder.path().join("served");
        fs::create_dir(&served).unwrap();
        let bare = served.join("project.git");
        succeed(
            Command::new("git")
                .args(["init", "--quiet", "--bare", "-b", "main"])
                .arg(&bare),
        );
        succeed(Command::new("git").arg("-C").arg(&bare).args([
            "config",
            "http.receivepack",
            "true",
        ]));

        let port = ports::free();
        let exec_path = succeed(Command::new("git").arg("--exec-path"));
        let backend = format!("{}/git-http-backend", exec_path.trim());
        let config = fs::read_to_string(real_file("lighttpd.conf"))
            .unwrap()
            .replace(" = PORT", &format!(" = {port}"))
            .replace("\"ROOT\"", &format!("{:?}", served.display().to_string()))
            .replace("BACKEND", &backend);
        let config_file = folder.path().join("lighttpd.conf");
        fs::write(&config_file, config).unwrap();
        let lighttpd = Program::start(
            Command::new(find("lighttpd").unwrap())
                .arg("-D")
                .arg("-f")
                .arg(&config_file),
        )
        .wait_for_port(port);
        Some(Self {
            folder,
            bare,
            port,
            _lighttpd: lighttpd,
        })
    }

    /// Pushes so many bytes that do not compress under two names, chunk by chunk, and clones them.
    #[track_caller]
    pub(crate) fn push_and_clone(&self, edge: &Edge, host: &str, version: &str, bytes: usize) {
        let (folder, url) = (self.folder.path(), edge.url(host, "/git/project.git"));
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            git.arg("-c")
                .arg(format!(
                    "http.curloptResolve={host}:{}:127.0.0.1",
                    edge.https
                ))
                .args(["-c", &format!("http.version={version}")])
                .args(["-c", "user.name=a", "-c", "user.email=a@example.com"])
                .args(["-c", "http.postBuffer=65536"])
                .env("GIT_SSL_CAINFO", edge.ca_file())
                .env("GIT_TERMINAL_PROMPT", "0")
                .env("GIT_CONFIG_NOSYSTEM", "1")
                .args(args);
            git
        };
        let source = folder.join(format!("source-{}", version.replace('/', "-")));
        succeed(git(&["init", "--quiet", "-b", "main"]).arg(&source));
        let random = noise(bytes);
        fs::write(source.join("large.bin"), &random).unwrap();
        let at = source.display().to_string();
        succeed(&mut git(&["-C", &at, "add", "."]));
        succeed(&mut git(&["-C", &at, "commit", "--quiet", "-m", "large"]));
        succeed(&mut git(&["-C", &at, "push", "--quiet", &url, "main"]));
        let clone = folder.join(version.replace('/', "-"));
        succeed(git(&["clone", "--quiet", &url]).arg(&clone));
        assert!(
            fs::read(clone.join("large.bin")).unwrap() == random,
            "{version}: another content"
        );
        succeed(&mut git(&[
            "-C",
            &at,
            "push",
            "--quiet",
            &url,
            "main:other",
        ]));
        // The next round pushes everything again.
        for branch in ["main", "other"] {
            let name = format!("refs/heads/{branch}");
            let mut forget = Command::new("git");
            succeed(
                forget
                    .arg("-C")
                    .arg(&self.bare)
                    .args(["update-ref", "-d", &name]),
            );
        }
        let mut prune = Command::new("git");
        succeed(
            prune
                .arg("-C")
                .arg(&self.bare)
                .args(["prune", "--expire=now"]),
        );
    }
}

/// Bytes that do not compress, the same in every run.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}
