//! Replicas that come, go, end, lie, or are none at all.

use std::sync::Mutex;

use http::HeaderValue;
use rustls_pki_types::ServerName;
use tidegate_tunnel::link::edge::{self, LinkFacts};
use tidegate_tunnel::wire::{Registration, Registrations};
use tokio::net::TcpListener as AsyncListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::replicas::{Authority, Replica, introduce, replicas, replicas_from, replicas_of};
use super::*;
use crate::Peer;

/// A replica that says and does what a test wants.
struct Fake {
    peer: Peer,
    to_edge: Sender<FromAgent>,
}

impl Fake {
    /// Says that it has the agent, and answers like that.
    fn start<F, R>(beside: &Replica, authority: &Authority, name: &str, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<AgentBody>> + Send + 'static,
    {
        let runtime = &beside.rig.runtime;
        let listener = runtime
            .block_on(AsyncListener::bind("127.0.0.1:0"))
            .unwrap();
        let peer = Peer {
            name: name.to_owned(),
            address: listener.local_addr().unwrap(),
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&authority.identity(name).server));
        let (to_edge, mut orders) = tokio::sync::mpsc::channel::<FromAgent>(8);
        let name = name.to_owned();
        runtime.spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let io = acceptor.accept(tcp).await.unwrap();
            let hello = Hello {
                instance: name,
                ..Hello::default()
            };
            let (control, driver) = link::serve(io, hello, answer);
            tokio::spawn(driver);
            control.to_edge.send(has_agent().into()).await.unwrap();
            while let Some(order) = orders.recv().await {
                let _ = control.to_edge.send(order).await;
            }
            control.link.cut();
        });
        Self { peer, to_edge }
    }
}

fn has_agent() -> Registrations {
    let agent = Registration {
        agent: agent_id().to_string(),
        instance: "ef".repeat(16),
        mappings: vec![mapping_id().to_string()],
    };
    Registrations {
        agents: vec![agent],
        links: 1,
        ..Registrations::default()
    }
}

fn no_link() -> Response<AgentBody> {
    let mut response = Response::new(full(""));
    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    let word = HeaderValue::from_static(handshake::NO_LINK);
    response.headers_mut().insert(handshake::ERROR, word);
    response
}

#[test]
fn a_replica_that_has_lost_the_agent_costs_no_request() {
    let authority = Authority::new();
    let all = replicas_of(&authority, &["a", "b"], PATIENCE, Replica::plain(PATIENCE));
    let (here, there) = (&all[0], &all[1]);
    let _agent = there.rig.connect(Way::Direct, describe);
    // It has even taken a part of the body before it says so.
    let fake = Fake::start(
        here,
        &authority,
        "c",
        |mut request: Request<Incoming>| async move {
            let _ = request.body_mut().frame().await;
            no_link()
        },
    );
    here.rig
        .edge
        .edge
        .set_peers(vec![there.peer(), fake.peer.clone()]);
    eventually("both say that they have it", || here.addresses().len() == 2);
    let body = "x".repeat(30_000);
    eventually("the one that has not was asked several times", || {
        for method in ["POST", "GET"] {
            let body = if method == "GET" { "" } else { &*body };
            let answer = here.rig.edge.exchange(&format!(
                "{method} / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            assert_eq!(status_of(&answer), 200, "{answer}");
            assert!(answer.ends_with(&format!("\n\n{body}")));
            assert_eq!(answer.matches("tunnel-mapping").count(), 1, "{answer}");
        }
        here.forwarded("NoLink") >= 4
    });
    // What an agent did not see is counted once, where it was answered.
    let requests = here.rig.edge.metric("tidegate_agent_requests_total");
    assert_eq!(requests, here.forwarded("Answered"));
}

#[test]
fn who_believes_wrongly_neither_goes_in_circles_nor_waits_for_ever() {
    let authority = Authority::new();
    let hold = Duration::ZERO;
    let all = replicas_of(&authority, &["a"], hold, Replica::plain(hold));
    let here = &all[0];
    let fake = Fake::start(here, &authority, "b", |_| async { no_link() });
    here.rig.edge.edge.set_peers(vec![fake.peer.clone()]);
    eventually("it says that it has the agent", || {
        here.addresses().len() == 1
    });
    let answer = here.get("/");
    assert_eq!(status_of(&answer), 503, "{answer}");
    assert!(answer.contains("AgentNotConnected"), "{answer}");
    assert_eq!(here.forwarded("NoLink"), 1);
    // The other way round: this one has heard of the agent, and says no to whoever asks it for what is elsewhere.
    let (status, word) = here.rig.runtime.block_on(async {
        let identity = authority.identity("z");
        let mut link = dial(here, &identity.client, "a").await.unwrap();
        link.ask().await
    });
    assert_eq!((status, &*word), (503, "NoLink"));
    // What was believed goes with the channel.
    drop(fake.to_edge);
    eventually("it is forgotten", || here.addresses().is_empty());
}

/// A channel to a replica.
struct Dialled {
    link: edge::EdgeLink<AgentBody>,
}

impl Dialled {
    async fn ask(&mut self) -> (u16, String) {
        let request = Request::builder()
            .uri("http://app.test/")
            .header(handshake::AGENT, agent_id().to_string())
            .header(handshake::MAPPING, mapping_id().as_str());
        let sent = self.link.try_send(request.body(full("")).unwrap()).await;
        let answer = sent.unwrap();
        let word = answer.headers().get(handshake::ERROR);
        let word = word.map(|it| it.to_str().unwrap().to_owned());
        (answer.status().as_u16(), word.unwrap_or_default())
    }
}

async fn dial(
    to: &Replica,
    config: &Arc<rustls::ClientConfig>,
    name: &str,
) -> Result<Dialled, String> {
    let tcp = tokio::net::TcpStream::connect(to.peer().address)
        .await
        .unwrap();
    let host = ServerName::try_from(format!("{name}.replicas.tidegate.internal")).unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    let io = connector.connect(host, tcp).await;
    let io = io.map_err(|error| error.to_string())?;
    let facts = LinkFacts {
        session: "test".to_owned(),
        agent: AgentId::new("replicas", name),
        instance: name.to_owned(),
        link: 0,
    };
    let opened = edge::open(io, facts).await;
    let (link, control, driver) = opened.map_err(|error| error.to_string())?;
    tokio::spawn(driver);
    // The test hears nothing, but the link is to stay.
    tokio::spawn(async move {
        let mut control = control;
        while control.from_agent.recv().await.is_some() {}
    });
    Ok(Dialled { link })
}

#[test]
fn only_replicas_are_let_in_and_only_the_one_that_is_meant_is_spoken_to() {
    let authority = Authority::new();
    let all = replicas_of(&authority, &["a"], PATIENCE, Replica::plain(PATIENCE));
    let here = &all[0];
    let other = Authority::new();
    let named = |name: &str| Arc::clone(&authority.identity_as(name, &authority).client);
    let mut anonymous = rustls::ClientConfig::clone(&tls::client(authority.roots()));
    anonymous.alpn_protocols = vec![handshake::ALPN_REPLICA.to_vec()];
    for (config, name, reason) in [
        (Arc::new(anonymous), "a", "HandshakeFailed"),
        // Certified by somebody else.
        (
            Arc::clone(
                &other
                    .identity_as("b.replicas.tidegate.internal", &authority)
                    .client,
            ),
            "a",
            "HandshakeFailed",
        ),
        (named("b.example.com"), "a", "WrongName"),
        (named("a.replicas.tidegate.internal"), "a", "OwnName"),
        // This one is not whom the other looks for.
        (
            named("b.replicas.tidegate.internal"),
            "c",
            "HandshakeFailed",
        ),
    ] {
        let failures = format!("tidegate_replica_channel_failures_total{{reason=\"{reason}\"}}");
        let before = here.rig.edge.metric(&failures);
        let dialled = here.rig.runtime.block_on(dial(here, &config, name));
        assert!(dialled.is_err(), "{reason}");
        eventually(reason, || here.rig.edge.metric(&failures) == before + 1);
    }
    let good = named("b.replicas.tidegate.internal");
    let mut good = here.rig.runtime.block_on(dial(here, &good, "a")).unwrap();
    assert_eq!(here.rig.runtime.block_on(good.ask()).0, 503);
    // And this one does not speak to a replica that is another than it should be.
    let fake = Fake::start(here, &authority, "c", |_| async { no_link() });
    let wrong = Peer {
        name: "d".to_owned(),
        ..fake.peer
    };
    here.rig.edge.edge.set_peers(vec![wrong]);
    let failures = "tidegate_replica_channel_failures_total{reason=\"TlsFailed\"}";
    eventually("it is refused", || here.rig.edge.metric(failures) >= 1);
    assert!(here.rig.edge.edge.channels().is_empty());
}

#[test]
fn an_identity_is_replaced_while_channels_stand() {
    let old = Authority::new();
    let all = replicas_of(&old, &["a", "b"], PATIENCE, Replica::plain(PATIENCE));
    let _agent = all[1].rig.connect(Way::Direct, describe);
    all[0].rig.sees_a_link();
    let new = Authority::new();
    for replica in &all {
        replica.identity.send_replace(new.identity(replica.name));
    }
    assert_eq!(status_of(&all[0].get("/")), 200);
    let dialled = |authority: &Authority| {
        let identity = authority.identity("z");
        let runtime = &all[1].rig.runtime;
        runtime.block_on(dial(&all[1], &identity.client, "b"))
    };
    assert!(dialled(&old).is_err());
    assert!(dialled(&new).is_ok());
    // A replica that is one no more, and is one again, is connected to with the new one.
    all[0].rig.edge.edge.set_peers(Vec::new());
    eventually("nobody is known", || all[0].addresses().is_empty());
    introduce(&all);
    all[0].rig.sees_a_link();
    assert_eq!(status_of(&all[0].get("/")), 200);
}

#[test]
fn visitors_wait_for_an_agent_that_moves_between_replicas() {
    let all = replicas(&["a", "b"], PATIENCE);
    let (here, there) = (&all[0], &all[1]);
    for back_at in [there, here] {
        let (tell, begins) = mpsc::channel();
        let agent = there.rig.connect(Way::Direct, move |_| {
            tell.send(()).unwrap();
            std::future::pending()
        });
        eventually("it is known", || here.addresses() == [there.peer().address]);
        let mut visitor = here.rig.edge.connect();
        visitor.write_all(get("/").as_bytes()).unwrap();
        begins.recv_timeout(PATIENCE).unwrap();
        agent.link.cut();
        eventually("it is known to be gone", || here.addresses().is_empty());
        // A GET harms nobody twice; a POST that comes now waits too.
        let mut late = here.rig.edge.connect();
        let post = "POST / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
        late.write_all(post.as_bytes()).unwrap();
        let next = back_at.rig.connect(Way::WebSocket, describe);
        for stream in [&mut visitor, &mut late] {
            let answer = read_to_end(stream);
            assert_eq!(status_of(&answer), 200, "{answer}");
        }
        next.link.cut();
        eventually("it is gone", || {
            here.addresses().is_empty() && here.rig.sessions() + there.rig.sessions() == 0
        });
    }
}

#[test]
fn a_replica_that_drains_serves_the_others_until_they_know_another_way() {
    let all = replicas(&["a", "b"], PATIENCE);
    let (here, there) = (&all[0], &all[1]);
    let (go, gate) = tokio::sync::watch::channel(false);
    let agent = there
        .rig
        .connect(Way::Direct, move |request: Request<Incoming>| {
            let mut gate = gate.clone();
            async move {
                if request.uri().path() == "/late" {
                    gate.wait_for(|open| *open).await.unwrap();
                }
                Response::new(full("old"))
            }
        });
    here.rig.sees_a_link();
    let mut visitor = here.rig.edge.connect();
    visitor.write_all(get("/late").as_bytes()).unwrap();
    eventually("it is on its way", || agent.link.in_flight() == 1);
    let draining = {
        let edge = there.rig.edge.edge.clone();
        here.rig
            .runtime
            .spawn(async move { edge.drain(PATIENCE).await })
    };
    eventually("others know", || {
        here.rig.edge.edge.channels().iter().all(|it| it.draining)
    });
    assert!(here.get("/").ends_with("old"), "there is no other way");
    let new = here
        .rig
        .connect(Way::WebSocket, |_| async { Response::new(full("new")) });
    eventually("there is one", || {
        here.addresses() != [there.peer().address]
    });
    assert!(here.get("/").ends_with("new"));
    assert!(!draining.is_finished());
    go.send(true).unwrap();
    assert!(read_to_end(&mut visitor).ends_with("old"));
    assert_eq!(here.rig.runtime.block_on(draining).unwrap(), 0);
    assert_eq!(status_of(&here.get("/")), 200);
    assert_eq!(new.link.requests(), 2);
}

#[test]
fn a_sticky_cookie_names_a_process_of_the_agent_wherever_it_is() {
    let sticky = || {
        let mut cluster = Cluster::clone(&behind_agent());
        cluster.load_balancing = LoadBalancing::StickyCookie {
            name: "edge".to_owned(),
            max_age: None,
        };
        forward_to(&[Arc::new(cluster)])
    };
    let all = replicas_from(&["a", "b"], PATIENCE, |name, identity| {
        Replica::start(name, identity, sticky(), PATIENCE)
    });
    let named = |name: &'static str| move |_| async move { Response::new(full(name)) };
    let mut all = all;
    all[1].rig.instance = "cd".repeat(16);
    let _one = all[0].rig.connect(Way::Direct, named("one"));
    let two = all[1].rig.connect(Way::Direct, named("two"));
    eventually("all know both", || {
        all.iter().all(|replica| replica.addresses().len() == 2)
    });
    let cookie = Mutex::new(String::new());
    eventually("the second process is chosen", || {
        let answer = all[0].get("/");
        let value = answer.split("set-cookie: ").nth(1).unwrap();
        *cookie.lock().unwrap() = value.split(';').next().unwrap().to_owned();
        answer.ends_with("two")
    });
    let cookie = cookie.into_inner().unwrap();
    let ask = |replica: &Replica| {
        let request = get("/").replace("\r\n\r\n", &format!("\r\nCookie: {cookie}\r\n\r\n"));
        replica.rig.edge.exchange(&request)
    };
    let back = |replica: &Replica| {
        let answer = ask(replica);
        assert!(!answer.contains("set-cookie"), "{answer}");
        answer.ends_with("two")
    };
    for _ in 0..10 {
        assert!(all.iter().all(back));
    }
    // The same process over another link, at the other replica.
    all[0].rig.instance = "cd".repeat(16);
    let again = all[0].rig.connect(Way::WebSocket, named("two"));
    two.link.cut();
    eventually("it is gone", || all[1].rig.sessions() == 0);
    // Whoever asks before they know gets the other process.
    eventually("all know", || {
        all.iter().all(|replica| ask(replica).ends_with("two"))
    });
    for _ in 0..10 {
        assert!(all.iter().all(back));
    }
    assert!(again.link.requests() >= 20);
}
