//! The units of packaging/systemd under a real systemd, installed as the README beside them says: an edge and an agent,
//! each with nothing but what its unit gives.
//!
//! ```text
//! hub: a service ◄─ tidegate-agent.service ═► tidegate.service on 443 ◄─ bridge ─ visitor
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::homelab;
use super::nat::{DIAL, visit};
use super::service::Service;
use crate::support::edge::PATIENCE;
use crate::support::netns::Network;
use crate::support::program::{run, succeed};
use crate::support::systemd::Systemd;
use crate::support::{Edge, eventually, missing, route};

const UNITS: [&str; 2] = ["tidegate.service", "tidegate-agent.service"];
/// More than this is exposed, in tenths as `systemd-analyze security` counts, and nobody has decided so.
const EXPOSED: &str = "18";
/// `CAP_NET_BIND_SERVICE`, as /proc shows capabilities.
const BIND: &str = "0000000000000400";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd")
}

/// The unit as this machine's systemd can have it; with one older than 253, changed as the README says.
fn unit(name: &str, version: u32) -> String {
    let text = fs::read_to_string(packaging().join(name)).unwrap();
    if version >= 253 {
        return text;
    }
    let [kind, reload] = ["`Type=notify`", "`ExecReload=kill -HUP $MAINPID`"];
    let readme = fs::read_to_string(packaging().join("README.md")).unwrap();
    assert!(readme.contains(&format!("write {kind} and add {reload}")));
    let instead = format!("{kind}\n{reload}").replace('`', "");
    text.replace("Type=notify-reload", &instead)
}

/// The commands of the README that install a unit, for somebody who is root.
fn installation(unit: &str) -> String {
    let readme = fs::read_to_string(packaging().join("README.md")).unwrap();
    let named = format!("packaging/systemd/{unit} ");
    let mut blocks = readme.split("```").skip(1).step_by(2);
    let block = blocks.find(|block| block.contains(&named));
    let block = block.unwrap_or_else(|| panic!("the README does not install {unit}"));
    let lines = block.strip_prefix("sh\n").unwrap();
    let bare = |line: &str| line.strip_prefix("sudo ").unwrap_or(line).to_owned() + "\n";
    lines.lines().map(bare).collect()
}

#[test]
fn systemd_reads_every_line_of_the_units_and_finds_little_exposed() {
    if missing(&["systemd-analyze", "/lib/systemd/systemd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let file = folder.path().join(name);
        let text = unit(name, Systemd::version());
        // What it starts must be there.
        let program = format!("ExecStart=/usr/bin/{} ", name.trim_end_matches(".service"));
        assert!(text.contains(&program), "{text}");
        let here = format!("ExecStart={} ", Edge::binary());
        fs::write(&file, text.replace(&program, &here)).unwrap();
        let (well, said) = run(Command::new("systemd-analyze").arg("verify").arg(&file));
        assert!(well && said.is_empty(), "{name}: {said}");
        let mut security = Command::new("systemd-analyze");
        security
            .args(["security", "--offline=true", "--no-pager"])
            .args(["--threshold", EXPOSED])
            .arg(&file);
        let (well, said) = run(&mut security);
        assert!(well, "{said}");
        println!("{}", said.lines().last().unwrap_or_default());
    }
}

/// What a process is, by the fields of its status.
fn process(systemd: &Systemd, unit: &str) -> impl Fn(&str) -> String {
    let pid = systemd.property(unit, "MainPID");
    let status = systemd.run(&["cat", &format!("/proc/{pid}/status")]);
    move |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }
}

#[test]
fn an_edge_and_an_agent_run_under_systemd_as_their_units_say() {
    if Systemd::is_missing() || missing(&["curl", "systemd-sysusers"]) {
        return;
    }
    Network::run(|network| {
        let visitor = network.machine("visitor");
        let app = Service::start();
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("work");
        for place in ["target/release", "packaging/systemd"] {
            fs::create_dir_all(work.join(place)).unwrap();
        }
        for entry in fs::read_dir(packaging()).unwrap() {
            let from = entry.unwrap().path();
            let to = work
                .join("packaging/systemd")
                .join(from.file_name().unwrap());
            fs::copy(from, to).unwrap();
        }
        for name in UNITS {
            let file = work.join("packaging/systemd").join(name);
            // Signs of life come often enough for a test to see them.
            let text = unit(name, Systemd::version());
            assert!(text.contains("WatchdogSec=30s"));
            fs::write(file, text.replace("WatchdogSec=30s", "WatchdogSec=10s")).unwrap();
        }
        fs::copy(Edge::binary(), work.join("target/release/tidegate")).unwrap();
        // The small program is the same library, and tests of this package have no build of it.
        let small = "#!/bin/sh\nexec /usr/bin/tidegate agent \"$@\"\n";
        fs::write(work.join("tidegate-agent"), small).unwrap();
        let (token, hash) = Edge::agent_token();
        fs::write(work.join("token"), format!("{token}\n")).unwrap();
        let config = format!("edge: https://{DIAL}\nagent: default/homelab\ncaFile: edge.pem\n");
        fs::write(work.join("agent.yaml"), &config).unwrap();
        let objects = homelab(&app.url(), &hash);
        let dial = route("dial", DIAL, "127.0.0.1:9");
        let objects = [&objects[0][..], &objects[1], &dial].join("\n---\n");
        fs::write(work.join("objects.yaml"), objects).unwrap();

        let systemd = Systemd::boot(folder.path());
        let log = |unit: &str| {
            fs::read_to_string(folder.path().join(format!("{unit}.log"))).unwrap_or_default()
        };
        let said = systemd.shell("work", &installation("tidegate.service"));
        println!("{said}");
        assert_eq!(systemd.property("tidegate", "ActiveState"), "active");
        systemd.shell(
            "work",
            "install -m 0640 -g tidegate objects.yaml /etc/tidegate/routes/",
        );
        let root = folder.path().join("edge.pem");
        eventually("the edge's authority", PATIENCE, || {
            let kept = "/var/lib/tidegate/ca/ca.crt";
            let (well, said) = run(systemd.command("cp").args([kept, "/run/test/edge.pem"]));
            if well {
                Ok(())
            } else {
                Err(format!("{said}{}", log("tidegate")))
            }
        });

        let here = format!(
            "echo {} {DIAL} >>/etc/hosts\ninstall -D -m 0644 ../edge.pem /etc/tidegate-agent/edge.pem\n",
            Network::V4
        );
        systemd.shell("work", &here);
        let said = systemd.shell("work", &installation("tidegate-agent.service"));
        println!("{said}");
        let page = eventually("the page", PATIENCE, || match visit(&visitor, &root) {
            (status, body) if status == "200" => Ok(body),
            other => Err(format!(
                "{other:?}; agent:\n{}\nedge:\n{}",
                log("tidegate-agent"),
                log("tidegate")
            )),
        });
        assert!(page.contains(&visitor.v4.to_string()), "{page}");
        eventually("systemd is told of the links", PATIENCE, || {
            match systemd.property("tidegate-agent", "StatusText") {
                text if text == "2 of 2 links are up" => Ok(()),
                text => Err(text),
            }
        });

        // Nobody is root, and nobody may more than the units say.
        for (name, may) in [("tidegate", BIND), ("tidegate-agent", "0000000000000000")] {
            let process = process(&systemd, name);
            let ids = process("Uid");
            assert!(ids.split_whitespace().all(|id| id != "0"), "{name}: {ids}");
            for field in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(process(field), may, "{name}: {field}");
            }
            assert_eq!((&*process("NoNewPrivs"), &*process("Seccomp")), ("1", "2"));
            println!("{name}.service: user {ids}, capabilities {may}");
        }
        let pid = systemd.property("tidegate-agent", "MainPID");
        // The token is root's, and the process has it by its credential alone.
        let kept = systemd.run(&["stat", "-c", "%U %a", "/etc/tidegate-agent/token"]);
        assert_eq!(kept.trim(), "root 600");
        let environment = systemd.run(&["cat", &format!("/proc/{pid}/environ")]);
        assert!(!environment.contains(&token));
        let given = "TIDEGATE_AGENT_TOKEN_FILE=/run/credentials/tidegate-agent.service/token";
        assert!(environment.contains(given), "{environment}");

        // Each is told to read again, and says when it has.
        systemd.run(&["systemctl", "reload", "tidegate-agent", "tidegate"]);
        for (name, words) in [
            ("tidegate-agent", "the configuration is read again"),
            ("tidegate", "reloading"),
        ] {
            eventually(words, PATIENCE, || {
                let log = log(name);
                if log.contains(words) {
                    Ok(())
                } else {
                    Err(log)
                }
            });
            assert_eq!(systemd.property(name, "ActiveState"), "active");
        }

        // A new binary takes over: systemd is told which process it is now, and hears that it lives.
        let old = systemd.property("tidegate", "MainPID");
        let kill = ["kill", "-s", "USR2", "--kill-whom=main", "tidegate"];
        succeed(systemd.command("systemctl").args(kill));
        eventually("another process", PATIENCE, || {
            let new = systemd.property("tidegate", "MainPID");
            let lives = run(systemd.command("kill").args(["-0", &old])).0;
            if new != old && !lives {
                Ok(())
            } else {
                Err(format!("{old}, {new}; {}", log("tidegate")))
            }
        });
        let sign = || systemd.property("tidegate", "WatchdogTimestampMonotonic");
        for round in 0..2 {
            let last = sign();
            eventually("a sign of life", PATIENCE, || match sign() {
                next if next == last => Err(format!("{round}: {}", log("tidegate"))),
                _ => Ok(()),
            });
        }
        assert_eq!(systemd.property("tidegate", "ActiveState"), "active");
        assert_eq!(systemd.property("tidegate", "NRestarts"), "0");
        eventually("the page again", PATIENCE, || {
            match visit(&visitor, &root) {
                (status, _) if status == "200" => Ok(()),
                other => Err(format!("{other:?}; {}", log("tidegate"))),
            }
        });

        for name in ["tidegate-agent", "tidegate"] {
            systemd.run(&["systemctl", "stop", name]);
            assert_eq!(systemd.property(name, "Result"), "success", "{}", log(name));
            assert!(!log(name).contains(&token), "the token is in a log");
        }
        assert!(log("tidegate-agent").contains("the agent ends"));
    });
}
