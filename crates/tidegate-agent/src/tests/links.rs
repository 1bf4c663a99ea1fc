//! Links over time: lost, drained, moved, told of changes, ended.

use http::Request;
use http_body_util::BodyExt as _;
use tidegate_tunnel::handshake;
use tidegate_tunnel::wire::{Bye, Drain, FromAgent, Retry, Verdict, Verdicts, Welcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::edge::{Edge, Session, Ways, empty, id, mapping};
use super::{Agent, given, within};
use crate::config::Given;
use crate::status;
use crate::system::Asked;

/// A target whose answer lasts until it is told to end.
async fn slow() -> (String, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (end, mut ended) = mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.read(&mut [0; 1024]).await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf")
            .await
            .unwrap();
        let _ = ended.recv().await;
        tcp.write_all(b"full").await.unwrap();
    });
    (url, end)
}

async fn begin(session: &Session) -> tidegate_tunnel::link::edge::LinkIncoming {
    let request = Request::builder()
        .uri("https://x/")
        .header(handshake::MAPPING, id(1));
    session
        .send(request.body(empty()).unwrap())
        .await
        .into_body()
}

#[tokio::test]
async fn a_link_that_drains_is_replaced_first_and_its_streams_end_in_peace() {
    let mut edge = Edge::start(Ways::default()).await;
    let agent = Agent::of(&edge);
    let mut old = edge.session().await;
    let (url, end) = slow().await;
    old.map(vec![mapping(1, &url)]).await;
    let body = begin(&old).await;
    old.tell(Drain {
        deadline_ms: 15_000,
        jitter_ms: 0,
        reason: "Update".to_owned(),
    })
    .await;
    // The replacement is there before the old one is given up.
    let mut new = edge.session().await;
    assert_eq!(new.authorization.instance, old.authorization.instance);
    new.map(vec![mapping(1, &url)]).await;
    old.hears(|message| matches!(message, FromAgent::DrainDone(_)).then_some(()))
        .await;
    assert!(!old.link.is_closed());
    end.send(()).await.unwrap();
    let body = within("the rest", body.collect()).await.unwrap();
    assert_eq!(body.to_bytes(), "halffull");
    within("the old link's end", old.link.closed()).await;
    assert!(!new.link.is_closed());
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_link_comes_back_and_a_goodbye_is_obeyed() {
    let mut edge = Edge::start(Ways::default()).await;
    let agent = Agent::of(&edge);
    edge.session().await.link.cut();
    let session = edge.session().await;
    session
        .link
        .end(Bye::new(Retry::Now, "Restart", ""), super::LONG)
        .await;
    edge.session().await;
    agent.stop().await;
}

#[tokio::test]
async fn two_links_end_at_two_replicas() {
    let replicas = vec!["a", "a", "b"];
    let mut edge = Edge::start(Ways {
        replicas,
        ..Ways::default()
    })
    .await;
    let agent = Agent::start(Given {
        links: Some(2),
        ..given(&edge)
    });
    let (one, two) = (edge.session().await, edge.session().await);
    // The third link is the one that replaces the second.
    let third = edge.session().await;
    assert_eq!(third.authorization.link, 1);
    let (stays, mut goes) = match one.authorization.link {
        0 => (one, two),
        _ => (two, one),
    };
    goes.hears(|message| matches!(message, FromAgent::Drain(_)).then_some(()))
        .await;
    within("the second link's end", goes.link.closed()).await;
    assert!(!stays.link.is_closed() && !third.link.is_closed());
    agent.stop().await;
}

/// An edge may become several, or learn of the others after its agents have come.
#[tokio::test]
async fn a_second_welcome_tells_of_replicas_that_have_come() {
    let mut edge = Edge::start(Ways {
        replicas: vec!["a", "a", "b"],
        count: Some(1),
        ..Ways::default()
    })
    .await;
    let page = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let agent = Agent::start(Given {
        links: Some(2),
        status: Some(page.to_string()),
        ..given(&edge)
    });
    let both = [edge.session().await, edge.session().await];
    for session in &both {
        session
            .tell(Welcome {
                protocol: 1,
                edge_version: "test".to_owned(),
                replica: "a".to_owned(),
                replicas: 2,
                session: "the same".to_owned(),
            })
            .await;
    }
    let third = edge.session().await;
    assert_eq!(third.authorization.link, 1);
    let found = within("the status", status::ask(page)).await.unwrap();
    let first = found.links[0].up.as_ref().unwrap();
    assert_eq!((first.replicas, &*first.replica), (2, "a"));
    assert!(first.session.starts_with("session-"));
    agent.stop().await;
}

#[tokio::test]
async fn wishes_change_on_a_link_that_stays_and_the_status_tells_what_became_of_them() {
    let mut edge = Edge::start(Ways::default()).await;
    let file = edge.folder().join("agent.yaml");
    let write = |mappings: &str| {
        std::fs::write(&file, format!("mappings: [{mappings}]\n")).unwrap();
    };
    write("{ name: nas, hostname: nas.example.com, target: 'http://nas' }");
    let page = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let agent = Agent::start(Given {
        config: Some(file.clone()),
        status: Some(page.to_string()),
        ..given(&edge)
    });
    let mut session = edge.session().await;
    let request = |message| match message {
        FromAgent::Request(request) => Some(request),
        _ => None,
    };
    let first = session.hears(request).await;
    assert_eq!(
        (first.version, &*first.mappings[0].target),
        (1, "http://nas:80")
    );
    let verdict = Verdict {
        name: "nas".to_owned(),
        accepted: false,
        reason: "HostnameNotAllowed".to_owned(),
        message: "ask for another".to_owned(),
    };
    session
        .tell(Verdicts {
            version: 1,
            verdicts: vec![verdict],
        })
        .await;
    // What cannot be used changes nothing; then what can is taken over.
    write("{ name: nas }");
    agent.asks.send(Asked::Reload).await.unwrap();
    write(
        "{ name: git, hostname: git.example.com, target: 'http://git' }, \
         { name: nas, hostname: nas.example.com, target: 'http://nas' }",
    );
    agent.asks.send(Asked::Reload).await.unwrap();
    let second = session.hears(request).await;
    let names: Vec<&str> = second.mappings.iter().map(|it| &*it.name).collect();
    assert_eq!((second.version, names), (2, vec!["git", "nas"]));
    let found = within("the verdict", async {
        loop {
            let found = status::ask(page).await.unwrap();
            if found.requested[1].reason == "HostnameNotAllowed" {
                return found;
            }
        }
    });
    let found = found.await;
    assert!(found.connected && !session.link.is_closed());
    assert_eq!(found.requested[0].accepted, None);
    assert_eq!(found.links[0].up.as_ref().unwrap().replica, "a");
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_ends_says_so_and_finishes_what_runs() {
    let mut edge = Edge::start(Ways::default()).await;
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    let (url, end) = slow().await;
    session.map(vec![mapping(1, &url)]).await;
    let body = begin(&session).await;
    agent.asks.send(Asked::Stop).await.unwrap();
    session
        .hears(|message| matches!(message, FromAgent::Drain(_)).then_some(()))
        .await;
    end.send(()).await.unwrap();
    let body = within("the rest", body.collect()).await.unwrap();
    assert_eq!(body.to_bytes(), "halffull");
    within("the agent's end", agent.running).await.unwrap();
}
