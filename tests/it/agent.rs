//! The real agent against the real edge: from a token to a page, and through what happens to both.

use std::process::Command;

use crate::support::edge::PATIENCE;
use crate::support::program::run;
use crate::support::{Edge, Origin, Program, eventually, ports, route};

const APP: &str = "app.home.example.com";

/// An edge that knows the agent `default/homelab`, one mapping of which leads to the origin.
fn edge(origin: &Origin, hash: &str) -> Edge {
    let agent = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\n\
         kind: TunnelAgent\n\
         metadata: {{ name: homelab }}\n\
         spec:\n\
         \x20 credential: {{ secretName: homelab-agent }}\n\
         \x20 allowedHostnames: ['*.home.example.com']\n\
         \x20 mappings:\n\
         \x20   - {{ name: app, hostname: {APP}, target: 'http://{}' }}\n",
        origin.address()
    );
    let kept = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: homelab-agent }}\nstringData: {{ tokenHash: '{hash}' }}\n"
    );
    // Any hostname of the edge will do for the agent to dial.
    Edge::start(&[agent, kept, route("dial", "localhost", origin.address())])
}

/// The agent's command line, all but its command.
fn agent(edge: &Edge, token: &str, command: Option<&str>) -> Command {
    let mut program = Edge::command();
    program
        .arg("agent")
        .args(command)
        .args(["--edge", &format!("https://localhost:{}", edge.https)])
        .args(["--agent", "default/homelab", "--proxy", "none"])
        .arg("--ca-file")
        .arg(edge.ca_file())
        .env("TIDEGATE_AGENT_TOKEN", token);
    program
}

fn status(port: u16) -> serde_json::Value {
    let address = format!("127.0.0.1:{port}");
    let (_, text) =
        run(Edge::command().args(["agent", "status", "-o", "json", "--status", &address]));
    serde_json::from_str(&text).unwrap_or_default()
}

#[test]
fn a_service_behind_an_agent_is_a_page_at_the_edge() {
    let app = Origin::echo();
    let (token, hash) = Edge::agent_token();
    let edge = edge(&app, &hash);
    let page = ports::free();
    let _agent =
        Program::start(agent(&edge, &token, None).args(["--status", &format!("127.0.0.1:{page}")]));
    let seen = edge.wait_for_status(APP, "/a%2Fb?c", 200).json();
    assert_eq!(seen["target"], "/a%2Fb?c");
    let header = |name: &str| -> Vec<String> {
        let fields = seen["headers"].as_array().unwrap().iter();
        let named = fields.filter(|field| field[0] == name);
        named
            .map(|field| field[1].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(header("host"), [format!("{APP}:{}", edge.https)], "{seen}");
    assert_eq!(header("x-forwarded-for"), ["127.0.0.1"], "{seen}");
    assert!(!seen.to_string().contains("tidegate-tunnel"), "{seen}");
    // A body of some size, both ways of its length.
    let reply = edge.send(APP, "POST", "/", &[], vec![b'x'; 3 << 20]);
    assert_eq!(reply.json()["body_bytes"], 3 << 20);

    let told = eventually("two links", PATIENCE, || {
        let told = status(page);
        let up = told["links"].as_array().map_or(0, |links| {
            links
                .iter()
                .filter(|link| link["phase"] == "Connected")
                .count()
        });
        if up == 2 {
            Ok(told)
        } else {
            Err(told.to_string())
        }
    });
    // On a busy machine the other carrier, which begins 300 ms later, may be the first one.
    let carrier = told["links"][0]["carrier"].as_str().unwrap();
    assert!(["Direct", "WebSocket"].contains(&carrier), "{told}");

    let (well, told) = run(&mut agent(&edge, &token, Some("doctor")));
    assert!(well, "{told}");
    assert!(told.contains("both carriers work"), "{told}");
    let (well, told) = run(&mut agent(&edge, &Edge::agent_token().0, Some("doctor")));
    assert!(!well && told.contains("CredentialRefused"), "{told}");
}

#[test]
fn an_agent_is_updated_and_an_edge_restarted_without_a_visitor_noticing_the_first() {
    let origin = Origin::text("here");
    let (token, hash) = Edge::agent_token();
    let mut edge = edge(&origin, &hash);
    let pages = [ports::free(), ports::free()];
    let start = |page: u16| {
        Program::start(agent(&edge, &token, None).args(["--status", &format!("127.0.0.1:{page}")]))
    };
    let mut old = start(pages[0]);
    edge.wait_for_status(APP, "/", 200);
    // The new one is there before the old one goes; requests go on all the while.
    let new = start(pages[1]);
    let client = edge.client();
    eventually("the new agent's links", PATIENCE, || {
        assert_eq!(client.get(APP, "/").status, 200);
        let told = status(pages[1]);
        let links = told["links"].as_array().cloned().unwrap_or_default();
        let all = links.len() == 2 && links.iter().all(|link| link["phase"] == "Connected");
        if all { Ok(()) } else { Err(told.to_string()) }
    });
    old.signal("TERM");
    eventually("the old agent's end", PATIENCE, || {
        let reply = client.get(APP, "/");
        assert_eq!(reply.status, 200, "{}", reply.text());
        old.ended().ok_or_else(|| "it runs".to_owned())
    });
    assert!(old.log().contains("the agent ends"), "{}", old.log());

    // An edge that is killed finds its agents again by itself.
    edge.start_again();
    edge.wait_for_status(APP, "/", 200);
    assert!(!new.log().contains(&token), "the token is in the log");
}

#[test]
fn what_an_agent_asks_for_is_served_where_it_may_be() {
    let (app, own) = (Origin::text("mapped"), Origin::text("asked for"));
    let (token, hash) = Edge::agent_token();
    let mut edge = edge(&app, &hash);
    let page = ports::free();
    let expose = |host: &str| format!("{host}=http://{}", own.address());
    let program = Program::start(
        agent(&edge, &token, None)
            .args(["--status", &format!("127.0.0.1:{page}")])
            .args(["--expose", &expose("own.home.example.com")])
            .args(["--expose", &expose("other.example.com")])
            // Objects come first.
            .args(["--expose", &expose(APP)]),
    );
    let reply = edge.wait_for_status("own.home.example.com", "/", 200);
    assert_eq!(reply.text(), "asked for");
    assert_eq!(edge.wait_for_status(APP, "/", 200).text(), "mapped");
    assert!(edge.client().try_get("other.example.com", "/").is_err());
    eventually("the verdicts", PATIENCE, || {
        let log = program.log();
        if log.contains("HostnameNotAllowed") {
            Ok(())
        } else {
            Err(format!("{}\n{log}", status(page)))
        }
    });
    // Whoever comes before the agent is back is told to wait, and not that there is no such host.
    drop(program);
    edge.start_again();
    let told = edge.admin("/api/v1/status").unwrap();
    assert!(told.contains("\"own.home.example.com\""), "{told}");
}

#[test]
fn the_part_of_the_way_that_is_broken_is_named_until_it_is_mended() {
    let app = Origin::text("well");
    let (token, hash) = Edge::agent_token();
    let port = ports::free();
    let edge = edge(&app, &hash);
    let object = std::fs::read_to_string(edge.objects().join("object-0.yaml")).unwrap();
    edge.write(
        "object-0.yaml",
        &format!(
            "{object}\x20   - {{ name: dead, hostname: dead.home.example.com, target: 'http://127.0.0.1:{port}' }}\n\
             \x20 probeInterval: 5s\n"
        ),
    );
    let _agent = Program::start(&mut agent(&edge, &token, None));
    let told = |status: &str, reason: &str| {
        eventually(reason, PATIENCE, || {
            let reply = edge.admin("/api/v1/status").map_err(|it| it.to_string())?;
            let body = reply.split_once("\r\n\r\n").map_or("", |it| it.1);
            let all: serde_json::Value = serde_json::from_str(body).map_err(|it| it.to_string())?;
            let conditions = all["agents"][0]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            let condition = conditions
                .find(|it| it["type"] == "DataPathHealthy")
                .ok_or_else(|| reply.clone())?;
            if condition["status"] == status && condition["reason"] == reason {
                Ok(condition["message"].as_str().unwrap().to_owned())
            } else {
                Err(condition.to_string())
            }
        })
    };
    let message = told("False", "ServiceUnreachable");
    let expected = format!(
        "1 of 2 services fail; mapping dead (http://127.0.0.1:{port}): edge, link and agent are well, the service is not: ConnectFailed"
    );
    assert!(message.starts_with(&expected), "{message}");
    let metrics = edge.admin("/metrics").unwrap();
    let up = |mapping: &str, value| {
        let mut lines = metrics.lines();
        lines.any(|line| {
            line.starts_with("tidegate_agent_service_up{")
                && line.contains(mapping)
                && line.ends_with(value)
        })
    };
    assert!(
        up("homelab:dead", " 0") && up("homelab:app", " 1"),
        "{metrics}"
    );
    // The service starts.
    let _mended = Origin::text_at(([127, 0, 0, 1], port).into(), "mended");
    assert_eq!(
        told("True", "ServicesAnswer"),
        "all 2 services behind the agent answer"
    );
}
