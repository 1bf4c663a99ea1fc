//! Replicas as the hub sees them: what they say, what they are told, and how links are evened out.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tidegate_model::{AgentTarget, Carrier, StoredKey, UpstreamProtocol};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use super::*;
use crate::link::agent::{self, AgentControl, Incoming};
use crate::link::edge::{self, LinkFacts};
use crate::wire::{FromEdge, Hello, MappingsReady, Registration, Registrations};

type TestBody = Full<Bytes>;

fn id(name: &str) -> AgentId {
    AgentId::new("default", name)
}

fn mapping(number: u8) -> MappingId {
    MappingId::from_hash([number; 8])
}

fn agent(name: &str) -> Arc<Agent> {
    let mapping = |number| {
        Arc::new(Mapping {
            id: mapping(number),
            target: AgentTarget::parse("http://nas").unwrap(),
            protocol: UpstreamProtocol::Auto,
            tls: None,
            proxy_protocol: None,
            connect_timeout: Duration::from_secs(5),
            names: vec![name.to_owned()],
        })
    };
    Arc::new(Agent {
        id: id(name),
        keys: vec![StoredKey([1; 32])],
        suspended: false,
        mappings: vec![mapping(1), mapping(2)],
        verdicts: Vec::new(),
        hold: Duration::from_secs(7),
        probe_interval: None,
    })
}

fn hub(names: &[&str]) -> Hub<TestBody> {
    let hub = Hub::new(HubSettings {
        replica: "here".to_owned(),
        replicas: 1,
        version: "1",
    });
    let agents = names.iter().map(|name| (id(name), agent(name)));
    hub.apply(1, &agents.collect());
    hub
}

async fn within<F: Future>(future: F) -> F::Output {
    let bounded = tokio::time::timeout(Duration::from_secs(60), future);
    bounded.await.expect("it never ends")
}

fn far_end(io: DuplexStream, instance: &str, link: u8) -> (AgentControl, JoinHandle<()>) {
    let hello = Hello {
        instance: instance.to_owned(),
        link,
        ..Hello::default()
    };
    let service = |_: Request<Incoming>| async { Response::new(TestBody::default()) };
    let (control, driver) = agent::serve(io, hello, service);
    let ended = tokio::spawn(async {
        driver.await;
    });
    (control, ended)
}

/// Connects an agent; it says that it has the mappings it is told of.
async fn connect(
    hub: &Hub<TestBody>,
    name: &str,
    link: u8,
) -> tokio::sync::mpsc::Receiver<FromEdge> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (control, _) = far_end(far, name, link);
    let admitted = Admitted {
        agent: agent(name),
        key: StoredKey([1; 32]),
    };
    let address = SocketAddr::from(([192, 0, 2, 1], 1000 + u16::from(link)));
    let arrival = Arrival {
        instance: name.to_owned(),
        link,
        carrier: Carrier::Direct,
        address,
        protocol: 1,
    };
    let before = hub.sessions();
    let serving = hub.clone();
    tokio::spawn(async move { serving.serve(admitted, arrival, address, near).await });
    let AgentControl {
        mut from_edge,
        to_edge,
        ..
    } = control;
    let (tell, said) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(message) = from_edge.recv().await {
            if let FromEdge::Mappings(mappings) = &message {
                let ready = MappingsReady {
                    version: mappings.version,
                    refused: Vec::new(),
                };
                to_edge.send(ready.into()).await.unwrap();
            }
            let _ = tell.send(message).await;
        }
    });
    let mut here = hub.here();
    within(async {
        while hub.sessions() == before
            || hub.links_here(&id(name), &mapping(1), None).len() <= usize::from(link)
        {
            here.changed().await.unwrap();
        }
    })
    .await;
    said
}

/// A channel to a replica that says nothing by itself.
async fn channel(hub: &Hub<TestBody>, name: &str, last: u8) -> (Channel<TestBody>, AgentControl) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (control, _) = far_end(far, name, 0);
    let facts = LinkFacts {
        session: name.to_owned(),
        agent: AgentId::new("replicas", name),
        instance: name.to_owned(),
        link: 0,
    };
    let (link, _control, driver) = within(edge::open(near, facts)).await.unwrap();
    tokio::spawn(driver);
    let address = SocketAddr::from(([10, 0, 0, last], 8444));
    (hub.join(name, address, link), control)
}

fn says(agents: &[(&str, &str, &[u8])], draining: bool) -> Registrations {
    let agents = agents
        .iter()
        .map(|(agent, instance, mappings)| Registration {
            agent: id(agent).to_string(),
            instance: (*instance).to_owned(),
            mappings: mappings.iter().map(|it| mapping(*it).to_string()).collect(),
        });
    Registrations {
        agents: agents.collect(),
        draining,
        ..Registrations::default()
    }
}

/// Addresses that requests take.
fn ways(hub: &Hub<TestBody>, agent: &str, number: u8, everywhere: bool) -> Vec<String> {
    let links = hub.links(&id(agent)).borrow().clone();
    let usable = usable(&links, &mapping(number), everywhere);
    let mut found: Vec<_> = usable.iter().map(|it| it.address.to_string()).collect();
    found.sort();
    found
}

#[tokio::test]
async fn what_is_near_comes_first_and_what_drains_last() {
    let hub = hub(&["nas"]);
    let ways = |number, everywhere| ways(&hub, "nas", number, everywhere);
    let (mut b, _b) = channel(&hub, "b", 1).await;
    let (mut c, _c) = channel(&hub, "c", 2).await;
    assert_eq!(ways(1, false), [""; 0]);
    b.heard(says(&[("nas", "x", &[1]), ("nas", "y", &[1, 2])], false));
    // Two processes at one replica are two endpoints, which need two names.
    assert_eq!(ways(1, false), ["10.0.0.1:8444", "10.0.0.1:8445"]);
    assert_eq!(ways(2, false), ["10.0.0.1:8445"]);
    c.heard(says(&[("nas", "x", &[1]), ("other", "z", &[9])], true));
    assert_eq!(ways(2, false), ["10.0.0.1:8445"]);
    let session = |hub: &Hub<TestBody>| {
        let links = hub.links(&id("nas")).borrow().clone();
        let mut links = links.iter();
        let first = SocketAddr::from(([10, 0, 0, 1], 8444));
        links.find(|it| it.address == first).unwrap().session
    };
    let before = session(&hub);
    b.heard(says(&[("nas", "x", &[1, 2])], false));
    assert_eq!(session(&hub), before, "it is the same link");
    assert_eq!(ways(1, false), ["10.0.0.1:8444"]);
    // What comes and goes is another one.
    b.heard(says(&[], false));
    assert_eq!(ways(1, false), ["10.0.0.2:8444"], "nobody else has it");
    b.heard(says(&[("nas", "x", &[1])], false));
    assert_ne!(session(&hub), before);
    let _said = connect(&hub, "nas", 0).await;
    assert_eq!(ways(1, false), ["192.0.2.1:1000"]);
    assert_eq!(ways(1, true), ["10.0.0.1:8444", "192.0.2.1:1000"]);
    b.heard(says(&[("nas", "nas", &[1])], false));
    assert_eq!(
        ways(1, true),
        ["10.0.0.2:8444", "192.0.2.1:1000"],
        "x is only there"
    );
    drop((b, c));
    assert_eq!(ways(1, true), ["192.0.2.1:1000"]);
    assert!(hub.joined().is_empty());
}

#[tokio::test]
async fn an_agent_of_another_replica_counts_as_connected_lately() {
    let hub = hub(&["nas"]);
    let long = LATELY + Duration::from_secs(1);
    // As after a minute: this process itself knows of no agent.
    let patience = |hub: &Hub<TestBody>| {
        let table = hub.table();
        table.get(&id("nas")).is_some_and(Entry::was_here_lately)
    };
    assert!(!patience(&hub));
    let (mut b, _b) = channel(&hub, "b", 1).await;
    b.heard(says(&[("nas", "x", &[1])], false));
    assert!(patience(&hub));
    drop(b);
    assert!(patience(&hub), "it is about to be back");
    let past = Instant::now().checked_sub(long);
    hub.table().get_mut(&id("nas")).unwrap().left_elsewhere = past;
    assert!(past.is_none() || !patience(&hub));
    assert_eq!(hub.observe(), [], "it was never here");
}

#[tokio::test]
async fn replicas_are_told_of_every_process_and_its_mappings() {
    let hub = hub(&["nas", "pi"]);
    let mut here = hub.here();
    assert_eq!(hub.registrations(), [Registrations::default()]);
    let _said = (
        connect(&hub, "nas", 0).await,
        connect(&hub, "nas", 1).await,
        connect(&hub, "pi", 0).await,
    );
    assert!(here.has_changed().unwrap());
    let mut expected = says(&[("nas", "nas", &[1, 2]), ("pi", "pi", &[1, 2])], false);
    expected.links = 3;
    assert_eq!(hub.registrations(), [expected.clone()]);
    here.mark_unchanged();
    hub.begin_drain(Duration::from_secs(5));
    assert!(here.has_changed().unwrap());
    expected.draining = true;
    assert_eq!(hub.registrations(), [expected]);
    // What others have said is not passed on.
    let (mut b, _b) = channel(&hub, "b", 1).await;
    b.heard(says(&[("else", "x", &[1])], false));
    assert_eq!(hub.registrations()[0].agents.len(), 2);
}

#[tokio::test]
async fn a_crowded_replica_asks_one_agent_after_the_other_to_move_a_link() {
    let names = ["one", "two", "three", "four"];
    let hub = hub(&names);
    let mut all = Vec::new();
    for name in names {
        all.push((name, connect(&hub, name, 0).await));
    }
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut balance = Rebalance::new(start);
    assert_eq!(
        balance.look(&hub, after(1000)),
        None,
        "there is nobody else"
    );
    let (mut b, _b) = channel(&hub, "b", 1).await;
    b.heard(says(&[], false));
    assert_eq!(
        balance.look(&hub, after(1001)),
        None,
        "others may just have come"
    );
    let first = balance.look(&hub, after(1062)).unwrap();
    // Four links: one in a hundred per second is one in 25 seconds.
    assert_eq!(balance.look(&hub, after(1086)), None);
    let second = balance.look(&hub, after(1088)).unwrap();
    assert_ne!(first, second);
    for (name, said) in &mut all {
        if id(name) != first {
            continue;
        }
        let reason = within(async {
            loop {
                if let Some(FromEdge::Drain(drain)) = said.recv().await {
                    return drain.reason;
                }
            }
        });
        assert_eq!(reason.await, "Rebalance");
    }
    // Nobody is asked twice soon, and nobody at all where it is even.
    let even = Registrations {
        links: 4,
        ..says(&[], false)
    };
    b.heard(even);
    assert_eq!(balance.look(&hub, after(1200)), None);
}

#[tokio::test]
async fn agents_are_told_when_the_number_of_replicas_changes() {
    let hub = hub(&["nas"]);
    let mut said = connect(&hub, "nas", 0).await;
    let mut next = async || {
        within(async {
            loop {
                if let Some(FromEdge::Welcome(welcome)) = said.recv().await {
                    return welcome;
                }
            }
        })
        .await
    };
    let first = next().await;
    hub.set_replicas(1);
    hub.set_replicas(3);
    let second = next().await;
    assert_eq!((first.replicas, second.replicas), (1, 3));
    assert_eq!(
        (first.session, first.replica),
        (second.session, second.replica)
    );
}
