//! An agent in a network that lets nothing out but through a proxy: Debian's tinyproxy.
//!
//! ```text
//! hub: the edge ─ bridge ─ proxies         one wants a login, one lets nobody to port 443
//!                    └───── router (to the proxies only) ─ lan ─ home: the agent
//! ```
//!
//! tinyproxy does no TLS itself. Where the way to the proxy is `https://`, HAProxy ends TLS before it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::links;
use super::nat::{DIAL, Home, agent, agent_does, agent_trusting, edge, wait_for_page};
use super::service::Service;
use crate::support::edge::PATIENCE;
use crate::support::netns::{Machine, Network};
use crate::support::program::{find, run};
use crate::support::{Edge, Program, eventually, missing};
use crate::tls::Ca;

const LOGIN: u16 = 3128;
const STRICT: u16 = 3129;
/// HAProxy with TLS before the one that wants a login.
const TLS: u16 = 3130;
/// tinyproxy knows no password that must be written otherwise in a URL.
const PASSWORD: &str = "s3cret.w0rd";
const IN_URL: &str = "s3cret%2Ew0rd";

/// Starts a tinyproxy on the machine.
#[track_caller]
fn tinyproxy(on: &Machine, folder: &Path, port: u16, lines: &str) -> Program {
    let file = folder.join(format!("tinyproxy-{port}.conf"));
    let text = format!("Port {port}\nListen {}\nTimeout 600\n{lines}\n", on.v4);
    fs::write(&file, text).unwrap();
    let mut command = on.command(find("tinyproxy").unwrap());
    let program = Program::start(command.arg("-d").arg("-c").arg(file));
    eventually("the proxy", PATIENCE, || {
        std::net::TcpStream::connect((on.v4, port))
            .map(drop)
            .map_err(|error| format!("{error}: {}", program.log()))
    });
    program
}

/// Starts an HAProxy on the machine which ends TLS before the tinyproxy that wants a login.
#[track_caller]
fn haproxy(on: &Machine, folder: &Path, ca: &Ca) -> Program {
    let leaf = ca.leaf("proxy.office");
    let both = folder.join("proxy.pem");
    fs::write(&both, leaf.pem + &leaf.key.serialize_pem()).unwrap();
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10m\n  timeout server 10m\n\
         frontend tls\n  bind {address}:{TLS} ssl crt {both}\n  default_backend proxy\n\
         backend proxy\n  server tinyproxy {address}:{LOGIN}\n",
        address = on.v4,
        both = both.display(),
    );
    let file = folder.join("haproxy.conf");
    fs::write(&file, text).unwrap();
    let mut command = on.command(find("haproxy").unwrap());
    let program = Program::start(command.args(["-db", "-f"]).arg(file));
    eventually("TLS before the proxy", PATIENCE, || {
        std::net::TcpStream::connect((on.v4, TLS))
            .map(drop)
            .map_err(|error| format!("{error}: {}", program.log()))
    });
    program
}

/// What `tidegate agent doctor` says of the way from here with these variables, and whether all is well.
fn doctor(on: &Machine, edge: &Edge, token: &str, variables: &[(&str, &str)]) -> (bool, String) {
    examine(agent_does(Some("doctor"), on, edge, token), variables)
}

/// The visitor gets the page by way of the proxy, as the links and the proxy's own log tell. Returns the links.
#[track_caller]
fn goes_through(
    office: &Machine,
    proxy: &Program,
    visitor: &Machine,
    edge: &Edge,
    agent: &Program,
) -> Vec<Value> {
    let page = wait_for_page(visitor, edge, agent);
    assert_eq!(page["headers"]["x-forwarded-for"], visitor.v4.to_string());
    let all = links(edge);
    for link in &all {
        let address = link["address"].as_str().unwrap();
        assert!(address.starts_with(&format!("{}:", office.v4)), "{all:?}");
    }
    let seen = proxy.log();
    assert!(seen.contains("CONNECT edge.example.com:443"), "{seen}");
    all
}

fn examine(mut command: Command, variables: &[(&str, &str)]) -> (bool, String) {
    command
        .envs(variables.iter().copied())
        .env_remove("no_proxy");
    let (well, said) = run(&mut command);
    eprintln!("doctor with {variables:?}:\n{said}");
    (well, said)
}

#[test]
fn an_agent_reaches_its_edge_through_a_proxy_alone() {
    if missing(&["iptables", "curl", "sysctl", "tinyproxy"]) {
        return;
    }
    Network::run(|network| {
        let (visitor, office) = (network.machine("visitor"), network.machine("proxy"));
        let out = format!("-d {} -p tcp --dport {LOGIN}:{STRICT}", office.v4);
        let home = Home::new(network, &out).home;
        // Names are the proxy's business: home does not know where the edge is.
        home.hosts(&[("proxy.office", IpAddr::V4(office.v4))]);
        office.hosts(&[(DIAL, IpAddr::V4(Network::V4))]);
        let app = home.inside(Service::start);
        let (token, hash) = Edge::agent_token();
        let edge = edge(&app.url(), &hash);
        let folder = tempfile::tempdir().unwrap();
        let login = format!("BasicAuth agent {PASSWORD}\nConnectPort 443");
        let proxy = tinyproxy(&office, folder.path(), LOGIN, &login);
        let strict = tinyproxy(&office, folder.path(), STRICT, "ConnectPort 563");

        // The doctor names what stands in the way, each time something else.
        let without = format!("http://proxy.office:{LOGIN}");
        let with = format!("http://agent:{IN_URL}@proxy.office:{LOGIN}");
        let other = format!("http://proxy.office:{STRICT}");
        let wrong = format!("http://agent:guessed@proxy.office:{LOGIN}");
        for (variables, expected) in [
            (&[][..], &["FAIL  name", "set HTTPS_PROXY"][..]),
            (
                &[("HTTPS_PROXY", without.as_str())],
                &[
                    "FAIL  through the proxy",
                    "wants a user name and password",
                    "http://USER:PASSWORD@",
                ],
            ),
            (
                &[("HTTPS_PROXY", &wrong)],
                &[
                    "FAIL  through the proxy",
                    "user name and password, or others",
                ],
            ),
            (
                &[("HTTPS_PROXY", &other)],
                &[
                    "answers CONNECT with status 403",
                    "let the proxy allow CONNECT to edge.example.com:443",
                ],
            ),
            (
                &[("HTTPS_PROXY", &with), ("NO_PROXY", "lan,example.com")],
                &["ok    proxy              none", "FAIL  name"],
            ),
        ] {
            let (well, said) = doctor(&home, &edge, &token, variables);
            assert!(!well, "{said}");
            for words in expected {
                assert!(said.contains(words), "{words:?} in {said}");
            }
        }
        let right = [
            ("HTTPS_PROXY", with.as_str()),
            ("NO_PROXY", "localhost,home.example.com"),
        ];
        let (well, said) = doctor(&home, &edge, &token, &right);
        assert!(well, "{said}");
        for words in [
            "proxy.office:3128 from HTTPS_PROXY or ALL_PROXY, with user name and password",
            "both carriers work",
        ] {
            assert!(said.contains(words), "{words:?} in {said}");
        }
        assert!(!said.contains("s3cret"), "{said}");

        // And the agent goes that way, as its links and the proxy's own log tell.
        let program = Program::start(agent(&home, &edge, &token).envs(right));
        let all = goes_through(&office, &proxy, &visitor, &edge, &program);
        println!(
            "a page through {} links from the proxy's address",
            all.len()
        );

        // A proxy that is restarted takes its connections with it, and they come back.
        drop(proxy);
        eventually("the lost links are found", PATIENCE, || {
            match links(&edge) {
                all if all.is_empty() => Ok(()),
                all => Err(format!("{all:?}")),
            }
        });
        let _proxy = tinyproxy(&office, folder.path(), LOGIN, &login);
        wait_for_page(&visitor, &edge, &program);
        for log in [program.log(), edge.log(), strict.log()] {
            assert!(!log.contains("s3cret"), "the password is in a log");
        }
    });
}

#[test]
fn a_proxy_that_does_tls_leads_to_the_edge_and_its_authority_is_asked_for() {
    if missing(&["iptables", "curl", "sysctl", "tinyproxy", "haproxy"]) {
        return;
    }
    Network::run(|network| {
        let (visitor, office) = (network.machine("visitor"), network.machine("proxy"));
        // Not even the plain proxy is within reach.
        let home = Home::new(network, &format!("-d {} -p tcp --dport {TLS}", office.v4)).home;
        let names = ["proxy.office", "old-name.office"].map(|name| (name, IpAddr::V4(office.v4)));
        home.hosts(&names);
        office.hosts(&[(DIAL, IpAddr::V4(Network::V4))]);
        let app = home.inside(Service::start);
        let (token, hash) = Edge::agent_token();
        let edge = edge(&app.url(), &hash);
        let folder = tempfile::tempdir().unwrap();
        let login = format!("BasicAuth agent {PASSWORD}\nConnectPort 443");
        let proxy = tinyproxy(&office, folder.path(), LOGIN, &login);
        let ca = Ca::new();
        let tls = haproxy(&office, folder.path(), &ca);

        // Of the two authorities that the agent needs, one is not in the file yet.
        let edges = fs::read_to_string(edge.ca_file()).unwrap();
        let authorities = folder.path().join("authorities.pem");
        fs::write(&authorities, &edges).unwrap();
        let both = edges + &ca.pem;
        let complete = folder.path().join("complete.pem");
        fs::write(&complete, &both).unwrap();
        let url = |scheme: &str, login: &str, name: &str| format!("{scheme}://{login}{name}:{TLS}");
        let with = format!("agent:{IN_URL}@");
        let right = url("https", &with, "proxy.office");
        let untrusted = [
            "FAIL  through the proxy",
            "do TLS with the proxy https://proxy.office:3130",
            "UnknownIssuer",
            "put the authority that issued the certificate of https://proxy.office:3130 into a file and name it \
             by caFile",
        ];
        for (authorities, url, expected) in [
            (&authorities, &right, &untrusted[..]),
            (
                &complete,
                &url("https", &with, "old-name.office"),
                &[
                    "do TLS with the proxy https://old-name.office:3130",
                    "write the proxy by a name that its certificate has",
                ],
            ),
            (
                &complete,
                &url("http", &with, "proxy.office"),
                &[
                    "speak HTTP with the proxy http://proxy.office:3130",
                    "write https:// before its name",
                ],
            ),
            (
                &complete,
                &url("https", "", "proxy.office"),
                &["wants a user name and password", "https://USER:PASSWORD@"],
            ),
        ] {
            let doctor = agent_trusting(Some("doctor"), &home, authorities, &token);
            let (well, said) = examine(doctor, &[("HTTPS_PROXY", url)]);
            assert!(!well, "{said}");
            for words in expected {
                assert!(said.contains(words), "{words:?} in {said}");
            }
        }

        // The agent says the same, and goes that way once the file holds both.
        let mut agent = agent_trusting(None, &home, &authorities, &token);
        let program = Program::start(agent.env("HTTPS_PROXY", &right).env_remove("no_proxy"));
        eventually("the agent says what is missing", PATIENCE, || {
            let log = program.log();
            let said = untrusted[1..].iter().all(|words| log.contains(words));
            if said { Ok(()) } else { Err(log) }
        });
        assert_eq!(links(&edge).len(), 0);
        let next = folder.path().join("next.pem");
        fs::write(&next, &both).unwrap();
        fs::rename(&next, &authorities).unwrap();
        let all = goes_through(&office, &proxy, &visitor, &edge, &program);
        let doctor = agent_trusting(Some("doctor"), &home, &complete, &token);
        let (well, said) = examine(doctor, &[("HTTPS_PROXY", &right)]);
        assert!(well && said.contains("both carriers work"), "{said}");
        println!(
            "a page through {} links over TLS to the proxy; the doctor:\n{said}",
            all.len()
        );
        for log in [program.log(), edge.log(), tls.log(), said] {
            assert!(!log.contains("s3cret"), "the password is in a log");
        }
    });
}
