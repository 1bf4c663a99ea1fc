//! A swarm as it is in the world: three kinds of clients, each on a machine of its own, that find each
//! other through HTTPS announces alone and download, over IPv4 and over IPv6.
//!
//! The tracker has to list every client at the address of its machine, or the downloads would not begin;
//! what one of them claims about itself or others changes nothing.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::netns::{Machine, Network};
use crate::support::program::{python, succeed};
use crate::support::trackers::{Peer, Torrust};
use crate::support::{Edge, Program, eventually, missing, route_of};

/// Each family has a name that exists in it only, and a torrent.
const HOSTS: [&str; 2] = ["v4.tracker.test", "v6.tracker.test"];
const CONTENTS: [&str; 2] = ["four.bin", "six.bin"];
const PORT: u16 = 6881;
/// What the liar says that its peers' addresses are.
const CLAIMED: &str = "198.51.100.9";
/// Clients that found nobody ask again after two minutes; a busy machine may make it so.
const PATIENCE: Duration = Duration::from_mins(4);

#[test]
fn a_swarm_downloads_and_the_tracker_knows_every_clients_true_address() {
    if missing(&["aria2c", "transmission-daemon", "curl"]) || missing(&[python("python")]) {
        return;
    }
    Network::run(|network| {
        let Some(torrust) = Torrust::behind_proxy() else {
            return;
        };
        let edge = Edge::builder()
            .object(route_of(
                "tracker",
                &format!(
                    "hostnames: [{}, {}]\nrules:\n- tracker: {{type: HTTP}}\n  backends: [{{address: \"{}\"}}]",
                    HOSTS[0], HOSTS[1], torrust.http[0]
                ),
            ))
            // A bare port is every address of both families.
            .arg("--https=443")
            .start();
        let folder = tempfile::tempdir().unwrap();
        let torrents = CONTENTS.map(|name| content(folder.path(), name));
        let hashes = [0, 1].map(|index| make(&torrents[index], HOSTS[index]));

        let machines = ["seeder", "aria2", "transmission", "libtorrent", "liar"]
            .map(|name| network.machine(name));
        for machine in &machines {
            machine.hosts(&[
                (HOSTS[0], IpAddr::V4(Network::V4)),
                (HOSTS[1], IpAddr::V6(Network::V6)),
            ]);
        }
        let [seeder, aria2, transmission, libtorrent, liar] = &machines;
        let swarm = Swarm {
            ca: edge.ca_file(),
            folder: folder.path().to_owned(),
            torrents: torrents.map(|content| content.with_extension("torrent")),
        };
        let seeding = swarm.libtorrent(seeder, folder.path(), "");
        // Both at the seeder first: the liar then has somebody to lie about.
        for (hash, family) in hashes.iter().zip([IpAddr::is_ipv4, IpAddr::is_ipv6]) {
            eventually("the seeder's announce", PATIENCE, || {
                let peers = torrust.peers(hash);
                let there = peers.iter().any(|peer| family(&peer.address.ip()));
                there
                    .then_some(())
                    .ok_or_else(|| format!("{peers:?}; {}", seeding.log()))
            });
        }
        swarm.lie(liar, &hashes, aria2);
        let downloads = [
            ("aria2", swarm.aria2(aria2)),
            ("transmission", swarm.transmission(transmission)),
            ("libtorrent", swarm.libtorrent_downloads(libtorrent)),
        ];
        for (name, program) in &downloads {
            for content in CONTENTS {
                let got = folder.path().join(name).join(content);
                eventually(&format!("{name}: {content}"), PATIENCE, || {
                    let whole = fs::read(&got).unwrap_or_default()
                        == fs::read(folder.path().join(content)).unwrap();
                    whole.then_some(()).ok_or_else(|| program.log())
                });
            }
        }

        for (index, hash) in hashes.iter().enumerate() {
            let address = |machine: &Machine| match index {
                0 => SocketAddr::from((machine.v4, PORT)),
                _ => SocketAddr::from((machine.v6, PORT)),
            };
            let expected = [seeder, aria2, transmission, libtorrent, liar].map(address);
            // All that was downloaded is told to the tracker, once each client comes to it.
            let peers = eventually("everybody as a seeder", PATIENCE, || {
                let peers = torrust.peers(hash);
                let lacking = peers.iter().filter(|peer| peer.left > 0).count();
                (lacking == 1)
                    .then_some(peers.clone())
                    .ok_or_else(|| format!("{peers:?}"))
            });
            show(HOSTS[index], hash, &peers);
            let mut listed: Vec<_> = peers.iter().map(|peer| peer.address).collect();
            let mut expected = expected.to_vec();
            listed.sort();
            expected.sort();
            assert_eq!(listed, expected, "{peers:?}");
        }
        for family in ["tcp4", "tcp6"] {
            let announces = torrust.counter(&format!("{family}_announces_handled"));
            // Everybody's first one, and three that say that their download is complete.
            assert!(announces >= 8, "{family}: {announces}");
        }
        drop((seeding, downloads));
        assert!(torrust.interrupt().success());
    });
}

/// Half a megabyte that nobody else has.
fn content(folder: &Path, name: &str) -> PathBuf {
    let mut state = u64::from(name.as_bytes()[0]);
    let bytes: Vec<u8> = (0..500_000)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let file = folder.join(name);
    fs::write(&file, bytes).unwrap();
    file
}

/// The torrent beside the content: its info hash.
fn make(content: &Path, host: &str) -> String {
    let printed = succeed(
        Command::new(python("python"))
            .arg(script())
            .arg("make")
            .arg(content)
            .arg(content.with_extension("torrent"))
            .arg(format!("https://{host}/announce")),
    );
    printed.trim().to_owned()
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/trackers/torrent_client.py")
}

/// Prints a peer list for whoever runs this with `--nocapture`.
fn show(host: &str, hash: &str, peers: &[Peer]) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "peers of {hash} at https://{host}/announce:");
    for peer in peers {
        let _ = writeln!(
            out,
            "  {:<20} peer id {:<10} left {}",
            peer.address, peer.id, peer.left
        );
    }
}

struct Swarm {
    ca: PathBuf,
    folder: PathBuf,
    torrents: [PathBuf; 2],
}

impl Swarm {
    /// A program on a machine, with nothing of this process's environment but where programs are.
    fn command(&self, machine: &Machine, program: impl AsRef<Path>, home: &Path) -> Command {
        fs::create_dir_all(home).unwrap();
        let mut command = machine.command(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home)
            .env("CURL_CA_BUNDLE", &self.ca)
            .env("SSL_CERT_FILE", &self.ca)
            .current_dir(home);
        command
    }

    fn libtorrent(&self, machine: &Machine, folder: &Path, query: &str) -> Program {
        Program::start_held(
            self.command(machine, python("python"), folder)
                .arg(script())
                .arg("run")
                .arg(folder)
                .args([machine.v4.to_string(), machine.v6.to_string()])
                .arg(query)
                .args(&self.torrents),
        )
    }

    /// One that claims another address in the query.
    fn libtorrent_downloads(&self, machine: &Machine) -> Program {
        let query = format!("?ip={CLAIMED}&ipv4={CLAIMED}&ipv6=2001:db8:bad::9");
        self.libtorrent(machine, &self.folder.join("libtorrent"), &query)
    }

    fn aria2(&self, machine: &Machine) -> Program {
        let folder = self.folder.join("aria2");
        Program::start(
            self.command(machine, "aria2c", &folder)
                .arg(format!("--ca-certificate={}", self.ca.display()))
                .arg(format!("--listen-port={PORT}"))
                .args(["--enable-dht=false", "--enable-dht6=false"])
                .args(["--bt-enable-lpd=false", "--enable-peer-exchange=false"])
                // The system's names, which a hosts file can give.
                .args(["--async-dns=false", "--no-conf", "--seed-ratio=0.0"])
                .args(["--summary-interval=0", "--file-allocation=none"])
                .args(&self.torrents),
        )
    }

    fn transmission(&self, machine: &Machine) -> Program {
        let folder = self.folder.join("transmission");
        let (config, watched) = (folder.join("config"), folder.join("watched"));
        for folder in [&config, &watched] {
            fs::create_dir_all(folder).unwrap();
        }
        for torrent in &self.torrents {
            fs::copy(torrent, watched.join(torrent.file_name().unwrap())).unwrap();
        }
        let settings = r#"{"dht-enabled": false, "lpd-enabled": false, "pex-enabled": false, "utp-enabled": false,
            "port-forwarding-enabled": false, "preallocation": 0}"#;
        fs::write(config.join("settings.json"), settings).unwrap();
        Program::start(
            self.command(machine, "transmission-daemon", &folder)
                .args(["--foreground", "--config-dir"])
                .arg(&config)
                .arg("--watch-dir")
                .arg(&watched)
                .arg("--download-dir")
                .arg(&folder)
                .arg(format!("--peerport={PORT}")),
        )
    }

    /// Announces a peer on its own machine while it claims to be another one in every way there is.
    fn lie(&self, machine: &Machine, hashes: &[String; 2], victim: &Machine) {
        for (host, hash) in HOSTS.iter().zip(hashes) {
            let escaped: Vec<_> = hash
                .as_bytes()
                .chunks(2)
                .map(|digits| format!("%{}", String::from_utf8_lossy(digits)))
                .collect();
            let url = format!(
                "https://{host}/announce?info_hash={}&peer_id=-XX0001-000000000009&port={PORT}&uploaded=0&downloaded=0&left=9&compact=1&event=started&ip={CLAIMED}",
                escaped.concat()
            );
            let v4 = victim.v4;
            let said = succeed(
                self.command(machine, "curl", &self.folder.join("liar"))
                    .args(["--silent", "--show-error", "--max-time", "60"])
                    .args(["-H", &format!("X-Forwarded-For: {v4}")])
                    .args(["-H", &format!("X-Forwarded-For: {CLAIMED}, {v4}")])
                    .args(["-H", &format!("X-Real-IP: {v4}")])
                    .args(["-H", &format!("Forwarded: for={v4}")])
                    .args(["-H", &format!("True-Client-IP: {v4}")])
                    .args(["-H", "Connection: close, X-Forwarded-For"])
                    .arg(url),
            );
            assert!(said.starts_with("d8:complete"), "{said}");
        }
    }
}
