//! Several replicas of an edge: agents are connected to some, visitors come to others.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio::sync::watch;

use super::*;
use crate::{Peer, PeerIdentity, PeeringSettings};

/// Signs replicas' certificates.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    pub(super) fn identity_as(&self, name: &str, believes: &Self) -> Arc<PeerIdentity> {
        let key = KeyPair::generate().unwrap();
        let names = vec![name.to_owned()];
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &self.0)
            .unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let root = believes.0.der().clone();
        Arc::new(PeerIdentity::new(vec![certificate.der().clone()], key, root).unwrap())
    }

    pub(super) fn identity(&self, replica: &str) -> Arc<PeerIdentity> {
        self.identity_as(&format!("{replica}.replicas.tidegate.internal"), self)
    }
}

/// A replica, and what it may be told to be.
pub(super) struct Replica {
    pub(super) rig: Rig,
    pub(super) name: &'static str,
    pub(super) identity: watch::Sender<Arc<PeerIdentity>>,
}

impl Replica {
    pub(super) fn start(
        name: &'static str,
        identity: Arc<PeerIdentity>,
        rule: Rule,
        hold: Duration,
    ) -> Self {
        let certificate = certificate(&[HOST]);
        let tls = policy(Arc::clone(&certificate));
        let hosts = vec![virtual_host(HOST, rule, tls)];
        Self::start_hosts(name, identity, hosts, &certificate, hold, |_| {})
    }

    /// Starts one that holds visitors for so long.
    pub(super) fn plain(hold: Duration) -> impl Fn(&'static str, Arc<PeerIdentity>) -> Self {
        move |name, identity| Self::start(name, identity, forward_to(&[behind_agent()]), hold)
    }

    pub(super) fn start_hosts(
        name: &'static str,
        identity: Arc<PeerIdentity>,
        hosts: Vec<VirtualHost>,
        certificate: &Arc<Certificate>,
        hold: Duration,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let (identity, known) = watch::channel(identity);
        let rig = Rig::hosts(hosts, Arc::clone(certificate), hold, |settings| {
            change(settings);
            // What is on its way when an edge begins to drain may take as long as the machine does.
            settings.timeouts.request_grace = PATIENCE;
            settings.replica = name.to_owned();
            settings.peering = Some(PeeringSettings {
                listen: vec![([127, 0, 0, 1], 0).into()],
                identity: known,
            });
        });
        Self {
            rig,
            name,
            identity,
        }
    }

    pub(super) fn peer(&self) -> Peer {
        Peer {
            name: self.name.to_owned(),
            address: self.rig.edge.edge.peer_address().unwrap(),
        }
    }

    pub(super) fn get(&self, path: &str) -> String {
        self.rig.edge.exchange(&get(path))
    }

    /// Of the agent's links that requests take.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let clusters = self.rig.edge.edge.observe().clusters;
        let endpoints = clusters.iter().flat_map(|it| &it.endpoints);
        endpoints.map(|it| it.address).collect()
    }

    fn endpoints(&self) -> usize {
        self.addresses().len()
    }

    /// Requests to other replicas that came to this; all of them where the outcome is empty.
    pub(super) fn forwarded(&self, outcome: &str) -> u64 {
        let name = "tidegate_replica_forwarded_requests_total";
        if outcome.is_empty() {
            return self.rig.edge.metric(name);
        }
        self.rig
            .edge
            .metric(&format!("{name}{{outcome=\"{outcome}\"}}"))
    }
}

/// Replicas that know of each other, with one token for the agent.
pub(super) fn replicas(names: &[&'static str], hold: Duration) -> Vec<Replica> {
    replicas_from(names, hold, Replica::plain(hold))
}

pub(super) fn replicas_from(
    names: &[&'static str],
    hold: Duration,
    start: impl Fn(&'static str, Arc<PeerIdentity>) -> Replica,
) -> Vec<Replica> {
    replicas_of(&Authority::new(), names, hold, start)
}

pub(super) fn replicas_of(
    authority: &Authority,
    names: &[&'static str],
    hold: Duration,
    start: impl Fn(&'static str, Arc<PeerIdentity>) -> Replica,
) -> Vec<Replica> {
    let names = names.iter();
    let mut all: Vec<Replica> = names.map(|it| start(it, authority.identity(it))).collect();
    let token = all[0].rig.token.clone();
    for replica in &mut all {
        replica.rig.token = token.clone();
        replica.rig.publish(Some(Agent {
            hold,
            ..agent_with(vec![token.stored_key()])
        }));
    }
    introduce(&all);
    all
}

pub(super) fn introduce(all: &[Replica]) {
    let peers: Vec<Peer> = all.iter().map(Replica::peer).collect();
    for replica in all {
        replica.rig.edge.edge.set_peers(peers.clone());
    }
    eventually("all channels stand", || {
        let mut counts = all.iter().map(|it| it.rig.edge.edge.channels().len());
        counts.all(|count| count == all.len() - 1)
    });
}

#[test]
fn a_request_finds_its_agent_at_another_replica() {
    let all = replicas(&["a", "b"], PATIENCE);
    let (here, there) = (&all[0], &all[1]);
    let agent = there.rig.connect(Way::Direct, describe);
    eventually("the other one knows", || here.endpoints() == 1);
    let answer = here.rig.edge.exchange(&format!(
        "POST /a%2Fb?c=d HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\nConnection: close\r\n\
         Tidegate-Tunnel-Agent: default/other\r\nTidegate-Tunnel-Client: 203.0.113.1:1\r\n\
         X-Forwarded-For: 203.0.113.2\r\n\r\nbody"
    ));
    assert_eq!(status_of(&answer), 200, "{answer}");
    let asked = answer.split("\r\n\r\n").nth(1).unwrap();
    assert!(
        asked.starts_with("POST http://app.test/a%2Fb?c=d\n"),
        "{asked}"
    );
    assert!(asked.ends_with("\n\nbody"), "{asked}");
    for line in [
        "tidegate-tunnel-mapping: 0707070707070707\n",
        "tidegate-tunnel-client: 127.0.0.1:",
        &format!("tidegate-tunnel-local: {}\n", here.rig.edge.http),
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-host: app.test\n",
    ] {
        assert_eq!(asked.matches(line).count(), 1, "{line:?} in {asked}");
    }
    for gone in ["203.0.113", "tunnel-agent", "tunnel-instance"] {
        assert!(!asked.contains(gone), "{gone:?} in {asked}");
    }
    // It counts for the mapping where the visitor is, and for the link where that is.
    let mapping = "tidegate_agent_requests_total";
    let counts = all.iter().map(|it| it.rig.edge.metric(mapping));
    assert_eq!(counts.collect::<Vec<_>>(), [1, 0]);
    let link = &there.rig.agents()[0].sessions[0];
    assert_eq!((link.requests, link.bytes_sent), (1, 4));
    assert_eq!((here.forwarded("Answered"), agent.link.requests()), (1, 1));
    assert_eq!(here.rig.edge.metric("tidegate_replica_channels"), 1);
    assert_eq!(here.rig.edge.metric("tidegate_replica_peers"), 1);
    // A link that ends here is nearer.
    let near = here.rig.connect(Way::WebSocket, describe);
    eventually("it is in use", || {
        here.addresses() != [there.peer().address]
    });
    for _ in 0..10 {
        assert_eq!(status_of(&here.get("/")), 200);
    }
    assert_eq!((near.link.requests(), agent.link.requests()), (10, 1));
}
