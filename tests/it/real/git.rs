//! git push and clone over HTTP: a chunked upload of unknown length, a long response.

use std::fs;
use std::process::Command;

use crate::support::program::succeed;
use crate::support::program::{find, real_file};
use crate::support::{Edge, Program, missing, ports, route};

const HOST: &str = "git.test";

#[test]
fn thirty_megabytes_are_pushed_and_cloned() {
    if missing(&["git", "lighttpd"]) {
        return;
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
    succeed(
        Command::new("git")
            .arg("-C")
            .arg(&bare)
            .args(["config", "http.receivepack", "true"]),
    );

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
    let _lighttpd = Program::start(
        Command::new(find("lighttpd").unwrap())
            .arg("-D")
            .arg("-f")
            .arg(&config_file),
    )
    .wait_for_port(port);

    let edge = Edge::start(&[route("git", HOST, format!("127.0.0.1:{port}"))]);
    edge.wait_for_status(HOST, "/git/project.git/HEAD", 200);
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.arg("-c")
            .arg(format!(
                "http.curloptResolve={HOST}:{}:127.0.0.1",
                edge.https
            ))
            .args([
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@example.com",
                "-c",
                "http.postBuffer=65536",
            ])
            .env("GIT_SSL_CAINFO", edge.ca_file())
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(args);
        git
    };

    let source = folder.path().join("source");
    succeed(git(&["init", "--quiet", "-b", "main"]).arg(&source));
    let random = noise(30 << 20);
    fs::write(source.join("large.bin"), &random).unwrap();
    let source_text = source.display().to_string();
    succeed(&mut git(&["-C", &source_text, "add", "."]));
    succeed(&mut git(&[
        "-C",
        &source_text,
        "commit",
        "--quiet",
        "-m",
        "large",
    ]));
    let url = edge.url(HOST, "/git/project.git");
    for version in ["HTTP/1.1", "HTTP/2"] {
        let http = format!("http.version={version}");
        succeed(&mut git(&[
            "-C",
            &source_text,
            "-c",
            &http,
            "push",
            "--quiet",
            &url,
            "main",
        ]));
        let clone = folder.path().join(version.replace('/', "-"));
        succeed(git(&["-c", &http, "clone", "--quiet", &url]).arg(&clone));
        assert!(
            fs::read(clone.join("large.bin")).unwrap() == random,
            "{version}: another content"
        );
        // The next round pushes everything again.
        succeed(&mut git(&[
            "-C",
            &source_text,
            "push",
            "--quiet",
            &url,
            "main:other",
        ]));
        succeed(Command::new("git").arg("-C").arg(&bare).args([
            "update-ref",
            "-d",
            "refs/heads/main",
        ]));
        succeed(Command::new("git").arg("-C").arg(&bare).args([
            "update-ref",
            "-d",
            "refs/heads/other",
        ]));
        succeed(
            Command::new("git")
                .arg("-C")
                .arg(&bare)
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
