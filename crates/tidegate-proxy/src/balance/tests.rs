//! Fairness, stability and health of the choosers.

use std::sync::Arc;

use http::HeaderValue;
use proptest::prelude::*;
use tidegate_model::{
    CircuitLimits, Cluster, HashKey, PassiveHealthCheck, Target, UpstreamProtocol,
};

use super::*;

fn view(last: u8, healthy: bool, active: u32) -> EndpointView {
    let address = SocketAddr::from(([10, 0, 0, last], 80));
    EndpointView {
        address,
        identity: address_hash(address),
        healthy,
        active,
        near: true,
    }
}

fn idle(count: u8) -> Vec<EndpointView> {
    (0..count).map(|last| view(last, true, 0)).collect()
}

fn policies() -> Vec<LoadBalancing> {
    vec![
        LoadBalancing::LeastRequest,
        LoadBalancing::RoundRobin,
        LoadBalancing::Random,
        LoadBalancing::ConsistentHash(HashKey::ClientIp),
        LoadBalancing::StickyCookie {
            name: "edge".to_owned(),
            max_age: None,
        },
    ]
}

fn counts(policy: &LoadBalancing, endpoints: &[EndpointView], requests: usize) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut cursor = usize::MAX - 1;
    let mut counts = vec![0; endpoints.len()];
    for i in 0..requests {
        let key = Some(hash(&i.to_be_bytes()));
        counts[pick(policy, endpoints, &mut rng, key, &mut cursor).unwrap()] += 1;
    }
    counts
}

#[test]
fn every_policy_spreads_over_the_healthy() {
    let mut endpoints = idle(4);
    endpoints[1].healthy = false;
    for policy in policies() {
        let found = counts(&policy, &endpoints, 3000);
        assert_eq!(found[1], 0, "{policy:?}");
        for index in [0, 2, 3] {
            assert!((900..1100).contains(&found[index]), "{policy:?} {found:?}");
        }
    }
}

#[test]
fn with_nobody_healthy_all_are_used() {
    let sick: Vec<_> = (0..3).map(|last| view(last, false, 0)).collect();
    for policy in policies() {
        assert!(
            counts(&policy, &sick, 300).iter().all(|count| *count > 50),
            "{policy:?}"
        );
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!(pick(&policy, &[], &mut rng, None, &mut 0), None);
        assert_eq!(pick(&policy, &sick[..1], &mut rng, None, &mut 0), Some(0));
    }
}

#[test]
fn least_request_avoids_the_busiest() {
    let endpoints = [view(0, true, 9), view(1, true, 3), view(2, true, 0)];
    let found = counts(&LoadBalancing::LeastRequest, &endpoints, 3000);
    assert_eq!(found[0], 0);
    assert!(found[2] > found[1], "{found:?}");
}

#[test]
fn of_links_of_one_process_the_workers_own_is_taken_or_the_first_until_it_is_busier() {
    let link = |host, active, near| EndpointView {
        identity: 1,
        near,
        ..view(host, true, active)
    };
    for (actives, near, expected) in [
        ([0, 0], [true, true], [1000, 0]),
        ([3, 3], [false, false], [1000, 0]),
        ([3, 3], [true, false], [1000, 0]),
        ([3, 3], [false, true], [0, 1000]),
        ([1, 0], [true, true], [0, 1000]),
        ([1, 0], [true, false], [0, 1000]),
    ] {
        let endpoints = [link(0, actives[0], near[0]), link(1, actives[1], near[1])];
        let found = counts(&LoadBalancing::LeastRequest, &endpoints, 1000);
        assert_eq!(found, expected, "{actives:?} {near:?}");
    }
}

#[test]
fn round_robin_takes_turns() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut cursor = 0;
    let endpoints = idle(3);
    let mut next = || {
        pick(
            &LoadBalancing::RoundRobin,
            &endpoints,
            &mut rng,
            None,
            &mut cursor,
        )
    };
    let turns: Vec<_> = (0..6).map(|_| next().unwrap()).collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
}

fn hashed(endpoints: &[EndpointView], key: u64) -> SocketAddr {
    let policy = LoadBalancing::ConsistentHash(HashKey::Path);
    let mut rng = fastrand::Rng::with_seed(1);
    let index = pick(
        &policy,
        endpoints,
        &mut rng,
        Some(hash(&key.to_be_bytes())),
        &mut 0,
    );
    endpoints[index.unwrap()].address
}

proptest! {
    #[test]
    fn only_the_keys_of_a_lost_endpoint_move(count in 2_u8..20, lost in any::<prop::sample::Index>()) {
        let endpoints = idle(count);
        let mut fewer = endpoints.clone();
        let lost = fewer.remove(lost.index(endpoints.len())).address;
        let mut sick = endpoints.clone();
        sick.reverse();
        for view in &mut sick {
            view.healthy = view.address != lost;
        }
        for key in 0..200 {
            let before = hashed(&endpoints, key);
            if before != lost {
                prop_assert_eq!(hashed(&fewer, key), before);
                prop_assert_eq!(hashed(&sick, key), before);
            }
        }
    }
}

fn backend(key: &str, weight: u32) -> WeightedBackend {
    WeightedBackend {
        weight,
        cluster: Arc::new(Cluster {
            key: ClusterKey(key.into()),
            name: key.to_owned(),
            target: Target::Addresses(Vec::new()),
            protocol: UpstreamProtocol::Auto,
            tls: None,
            proxy_protocol: None,
            load_balancing: LoadBalancing::Random,
            active_health: None,
            passive_health: PassiveHealthCheck {
                consecutive_failures: 0,
                ejection_time: Duration::ZERO,
            },
            circuit: CircuitLimits { max_requests: None },
            connect_timeout: Duration::from_secs(1),
        }),
    }
}

#[test]
fn weights_are_shares() {
    let backends = [
        backend("a", 1),
        backend("b", 0),
        backend("c", 3),
        backend("d", u32::MAX),
    ];
    let shares: Vec<_> = (0..5)
        .map(|point| {
            &*at(&backends.iter().collect::<Vec<_>>(), point)
                .unwrap()
                .cluster
                .name
        })
        .collect();
    assert_eq!(shares, ["a", "c", "c", "c", "d"]);
    let total = 4 + u64::from(u32::MAX);
    assert_eq!(
        at(&backends.iter().collect::<Vec<_>>(), total - 1)
            .unwrap()
            .cluster
            .name,
        "d"
    );
    assert!(at(&backends.iter().collect::<Vec<_>>(), total).is_none());
    for _ in 0..100 {
        assert_ne!(
            choose_backend(&backends[..3], None, |_| true)
                .unwrap()
                .cluster
                .name,
            "b"
        );
    }
    assert!(choose_backend(&backends[1..2], None, |_| true).is_none());
    assert!(choose_backend(&[backend("a", 0), backend("b", 0)], None, |_| true).is_none());
    assert!(choose_backend(&[], None, |_| true).is_none());
}

#[test]
fn a_sticky_cookie_leads_back() {
    let endpoints = idle(5);
    let backends = [backend("a", 1), backend("b", 1), backend("c", 0)];
    for (cluster, expected) in [("a", Some("a")), ("b", Some("b")), ("c", None)] {
        let id = endpoint_id(&ClusterKey(cluster.into()), endpoints[3].identity);
        let cookie = sticky_cookie("edge", id, Some(Duration::from_hours(1)), true);
        let value = cookie.split(';').next().unwrap();
        assert_eq!(
            cookie,
            format!("{value}; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=3600")
        );
        assert!(!cookie.contains("10.0.0.3"));
        let mut headers = HeaderMap::new();
        let sent = format!("other=1; {value};edge2=0000000000000000");
        headers.insert(header::COOKIE, HeaderValue::try_from(sent).unwrap());
        assert_eq!(sticky_id(&headers, "edge"), Some(id));
        assert_eq!(sticky_endpoint(&endpoints, id), Some(3));
        // Of two links to what is meant, the one with less to do.
        let mut both = endpoints.clone();
        both[0].identity = both[3].identity;
        both[3].active = 1;
        assert_eq!(sticky_endpoint(&both, id), Some(0));
        for _ in 0..20 {
            let chosen = choose_backend(&backends, Some(id), |_| true).unwrap();
            assert!(expected.is_none_or(|name| chosen.cluster.name == name));
            assert_ne!(chosen.cluster.name, "c");
        }
    }
}

#[test]
fn a_cookie_that_names_nothing_is_ignored() {
    let mut endpoints = idle(3);
    let id = endpoint_id(&ClusterKey("a".into()), endpoints[1].identity);
    assert_eq!(sticky_endpoint(&endpoints, id ^ 1), None);
    endpoints[1].healthy = false;
    assert_eq!(sticky_endpoint(&endpoints, id), None);
    for bad in [
        "edge=",
        "edge=zz",
        "edge=+00000000000000f",
        "edge=00000000000000000",
        "Edge=0000000000000001",
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static(bad));
        assert_eq!(sticky_id(&headers, "edge"), None, "{bad}");
    }
}

#[test]
fn a_backend_that_is_down_is_chosen_only_when_all_are() {
    let backends = [backend("down", 100), backend("up", 1), backend("off", 0)];
    let up = |backend: &WeightedBackend| backend.cluster.name != "down";
    for _ in 0..200 {
        assert_eq!(
            choose_backend(&backends, None, up).unwrap().cluster.name,
            "up"
        );
    }
    let names = |_: &WeightedBackend| false;
    for _ in 0..200 {
        assert_ne!(
            choose_backend(&backends, None, names).unwrap().cluster.name,
            "off"
        );
    }
}
