//! The tunnel where it is for: an agent behind a NAT that lets nothing in and only port 443 out, a cable that is
//! pulled.
//!
//! ```text
//! visitor 10.77.0.x ──┐
//! hub: the edge on 443 ┴─ bridge ─ router (NAT, firewall) ─ lan ─ home: the agent, a service on its loopback
//! ```

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use super::life::Life;
use super::service::Service;
use super::{APP, homelab, links};
use crate::support::edge::PATIENCE;
use crate::support::netns::{Machine, Network};
use crate::support::program::{run, succeed};
use crate::support::{Edge, Program, eventually, missing, route};

pub(super) const DIAL: &str = "edge.example.com";

/// A machine behind a router of its own.
pub(super) struct Home {
    pub(super) router: Machine,
    pub(super) home: Machine,
}

impl Home {
    /// The router lets out what one rule of iptables matches, and tells of the rest that it may not.
    pub(super) fn new(network: &mut Network, out: &str) -> Self {
        let (router, home) = (network.machine("router"), network.machine("home"));
        // Home is moved from the bridge to the router's other side.
        home.ip(&["link", "delete", "eth0"]);
        let there = ["peer", "name", "eth0", "netns", &home.namespace];
        router.ip(&[&["link", "add", "lan", "type", "veth"][..], &there].concat());
        router.ip(&["address", "add", "192.168.77.1/24", "dev", "lan"]);
        router.ip(&["link", "set", "lan", "up"]);
        home.ip(&["address", "add", "192.168.77.2/24", "dev", "eth0"]);
        home.ip(&["link", "set", "eth0", "up"]);
        home.ip(&["route", "add", "default", "via", "192.168.77.1"]);
        for rule in [
            "-P FORWARD DROP",
            &format!("-A FORWARD -i lan {out} -j ACCEPT"),
            "-A FORWARD -i lan -j REJECT",
            "-A FORWARD -i eth0 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            "-t nat -A POSTROUTING -o eth0 -j MASQUERADE",
        ] {
            succeed(router.command("iptables").args(rule.split(' ')));
        }
        succeed(
            router
                .command("sysctl")
                .args(["-qw", "net.ipv4.ip_forward=1"]),
        );
        Self { router, home }
    }

    fn cable(&self, state: &str) {
        self.router.ip(&["link", "set", "lan", state]);
    }
}

/// An edge on port 443 whose agent leads to the target.
pub(super) fn edge(target: &str, hash: &str) -> Edge {
    let [agent, kept] = homelab(target, hash);
    Edge::builder()
        .ports(80, 443)
        .arg("--https")
        .arg(&format!("{}:443", Network::V4))
        .object(agent)
        .object(kept)
        .object(route("dial", DIAL, "127.0.0.1:9"))
        .start()
}

/// The agent on a machine.
pub(super) fn agent(on: &Machine, edge: &Edge, token: &str) -> Command {
    agent_does(None, on, edge, token)
}

/// The same with one of its subcommands.
pub(super) fn agent_does(what: Option<&str>, on: &Machine, edge: &Edge, token: &str) -> Command {
    agent_trusting(what, on, &edge.ca_file(), token)
}

/// The same with a file of authorities of its own.
pub(super) fn agent_trusting(what: Option<&str>, on: &Machine, ca: &Path, token: &str) -> Command {
    let mut command = on.command(Edge::binary());
    command
        .arg("agent")
        .args(what)
        .args(["--edge", &format!("https://{DIAL}")])
        .args(["--agent", "default/homelab", "--status", "off"])
        .arg("--ca-file")
        .arg(ca)
        .env("TIDEGATE_AGENT_TOKEN", token);
    command
}

/// What a visitor gets: the status, or why there is none, and the body.
pub(super) fn visit(visitor: &Machine, ca: &Path) -> (String, String) {
    let mut curl = visitor.command("curl");
    curl.args(["-sS", "--max-time", "30", "-w", "\n%{http_code}"])
        .args(["--resolve", &format!("{APP}:443:{}", Network::V4)])
        .arg("--cacert")
        .arg(ca)
        .arg(format!("https://{APP}/page"));
    let (_, said) = run(&mut curl);
    let (body, status) = said.trim_end().rsplit_once('\n').unwrap_or(("", &said));
    (status.to_owned(), body.to_owned())
}

#[track_caller]
pub(super) fn wait_for_page(visitor: &Machine, edge: &Edge, agent: &Program) -> Value {
    eventually("the page", PATIENCE, || {
        match visit(visitor, &edge.ca_file()) {
            (status, body) if status == "200" => Ok(serde_json::from_str(&body).unwrap()),
            other => Err(format!(
                "{other:?}; agent:\n{}\nedge:\n{}",
                agent.log(),
                edge.log()
            )),
        }
    })
}

/// A visitor's page from a service at home, before anything happens to it.
struct Story {
    visitor: Machine,
    home: Home,
    app: Service,
    token: String,
    edge: Edge,
    program: Program,
    page: Value,
}

impl Story {
    fn run(test: impl FnOnce(Self) + Send) {
        if missing(&["iptables", "curl", "sysctl"]) {
            return;
        }
        Network::run(|network| {
            let visitor = network.machine("visitor");
            let home = Home::new(network, "-p tcp --dport 443");
            home.home.hosts(&[(DIAL, IpAddr::V4(Network::V4))]);
            // On the loopback of a machine that nobody can reach.
            let app = home.home.inside(Service::start);
            let (token, hash) = Edge::agent_token();
            let edge = edge(&app.url(), &hash);
            let program = Program::start(&mut agent(&home.home, &edge, &token));
            let page = wait_for_page(&visitor, &edge, &program);
            test(Self {
                visitor,
                home,
                app,
                token,
                edge,
                program,
                page,
            });
        });
    }
}

#[test]
fn a_service_behind_nat_is_served_and_comes_back_with_the_network() {
    Story::run(|story| {
        let Story {
            visitor,
            home,
            app,
            token,
            mut edge,
            program,
            page,
        } = story;
        let client = &page["headers"]["x-forwarded-for"];
        assert_eq!(*client, visitor.v4.to_string(), "{page}");
        println!(
            "a visitor at {client} gets a page from {} through {}",
            app.address(),
            home.router.v4
        );
        eventually("two links from the router's address", PATIENCE, || {
            let all = links(&edge);
            let router = home.router.v4.to_string();
            let from_there = |it: &Value| {
                it["address"]
                    .as_str()
                    .is_some_and(|it| it.starts_with(&router))
            };
            if all.len() == 2 && all.iter().all(from_there) {
                Ok(())
            } else {
                Err(format!("{all:?}"))
            }
        });

        // The cable is pulled: no end of a connection says so, and both ends find out.
        let before = Instant::now();
        home.cable("down");
        eventually("the lost links are found", PATIENCE, || {
            let all = links(&edge);
            if all.is_empty() {
                Ok(())
            } else {
                Err(format!("{all:?}"))
            }
        });
        println!("a pulled cable was found after {:?}", before.elapsed());
        // Who comes now waits, and gets the page when the cable is back.
        let answered = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| visit(&visitor, &edge.ca_file()));
            eventually("somebody waits", PATIENCE, || {
                let metrics = edge.admin("/metrics").unwrap();
                let flying = "tidegate_http_requests_in_flight 1";
                if metrics.contains(flying) {
                    Ok(())
                } else {
                    Err("nobody".to_owned())
                }
            });
            home.cable("up");
            let back = Instant::now();
            let page = wait_for_page(&visitor, &edge, &program);
            println!("traffic {:?} after the network's return", back.elapsed());
            assert!(page.is_object());
            waiting.join().unwrap()
        });
        // Longer than an agent is waited for, on a machine that has much else to do, is an answer too.
        assert!(
            ["200", "503"].contains(&answered.0.as_str()),
            "{answered:?}"
        );
        println!("the visitor who waited got {}", answered.0);

        // An edge that is killed is found again.
        edge.start_again();
        let back = Instant::now();
        wait_for_page(&visitor, &edge, &program);
        println!("traffic {:?} after the edge's return", back.elapsed());
        for log in [program.log(), edge.log()] {
            assert!(!log.contains(&token), "the token is in a log");
        }
    });
}

#[test]
fn an_agent_is_rolled_under_load_and_nobody_notices() {
    Story::run(|story| {
        let Story {
            home,
            token,
            edge,
            program: mut old,
            app,
            ..
        } = story;
        let mut life = Life::begin(&edge);
        let new = Program::start(&mut agent(&home.home, &edge, &token));
        eventually("the new agent's links", PATIENCE, || {
            match links(&edge).len() {
                4 => Ok(()),
                count => Err(format!("{count} links")),
            }
        });
        life.goes_on();
        // It takes no more requests, and ends those that run: within half a minute.
        old.signal("TERM");
        life.goes_on();
        life.finish_long_ones(|| app.release());
        eventually("the old agent's end", PATIENCE, || {
            old.ended().ok_or_else(|| "it runs".to_owned())
        });
        life.end("the agent was rolled");
        drop(new);
    });
}
