//! Rules that answer over plain HTTP whatever their host says of it.

use http::StatusCode;
use rustls::RootCertStore;
use tidegate_model::{ClientAuth, ClientAuthMode, Fingerprint, PathMatch, PlainRules};

use super::filters::field;
use super::*;

fn named(name: &str, plain: bool, origin: &Origin) -> Arc<Rule> {
    Arc::new(Rule {
        name: name.to_owned(),
        plain,
        ..forward_to(&[cluster(origin.address)])
    })
}

fn entry(rule: &Arc<Rule>, prefix: &str) -> RouteEntry {
    RouteEntry {
        request: RequestMatch {
            path: Some(PathMatch::Prefix(prefix.to_owned())),
            ..RequestMatch::default()
        },
        rule: Arc::clone(rule),
    }
}

/// A host whose rules answer over plain HTTP only.
fn plain_host(name: &str, plain: Vec<(Option<u16>, Vec<RouteEntry>)>) -> VirtualHost {
    let nothing = rule(Action::Unavailable("nothing".to_owned()));
    let tls = TlsMode::Terminate(TlsPolicy {
        certificate: None,
        min_version: TlsVersion::Tls12,
        client_auth: None,
    });
    VirtualHost {
        plain_http: PlainHttp::Refuse,
        entries: Vec::new(),
        plain: plain
            .into_iter()
            .map(|(port, entries)| PlainRules {
                port,
                entries,
                guards_by_path: true,
            })
            .collect(),
        ..virtual_host(name, nothing, tls)
    }
}

#[test]
fn a_port_picks_the_rule_and_the_most_specific_one_says_whether_plain_http_is_served() {
    let [one, two, secure] = [Origin::echo(), Origin::echo(), Origin::echo()];
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let edge = TestEdge::start_hosts(Vec::new(), |settings| {
        settings.http = vec![any, any, any];
        settings.public_https_port = Some(443);
    });
    let ports: Vec<u16> = (edge.edge.observe().listeners.iter())
        .filter(|listener| listener.name == "http")
        .map(|listener| listener.address.port())
        .collect();
    let ask = |port: u16, request: &str| {
        let mut stream = connect(SocketAddr::from(([127, 0, 0, 1], port)));
        stream.write_all(request.as_bytes()).unwrap();
        read_to_end(&mut stream)
    };
    let served = |port: u16, request: &str, origin: &Origin| {
        let before = origin.connections.load(Ordering::SeqCst);
        let answer = ask(port, request);
        assert_eq!(status_of(&answer), 200, "{request}{answer}");
        assert!(
            answer.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"),
            "{answer}"
        );
        assert!(
            answer.contains("\r\nX-Forwarded-Proto: http\r\n"),
            "{answer}"
        );
        let header = format!("\r\nX-Forwarded-Port: {port}\r\n");
        assert!(answer.contains(&header), "{answer}");
        let new = origin.connections.load(Ordering::SeqCst) - before;
        assert!(new <= 1, "{new}");
        answer
    };

    let (first, second) = (named("one", true, &one), named("two", true, &two));
    let over_tls = named("secure", false, &secure);
    // HOST has both ways; its rules over TLS are among those of each port.
    let mut both = virtual_host(
        HOST,
        forward_to(&[cluster(secure.address)]),
        policy(certificate(&[HOST])),
    );
    both.plain_http = PlainHttp::Redirect(StatusCode::PERMANENT_REDIRECT);
    both.entries = vec![entry(&over_tls, "/api")];
    both.plain = vec![
        PlainRules {
            port: Some(ports[0]),
            entries: vec![entry(&over_tls, "/api"), entry(&first, "/")],
            guards_by_path: true,
        },
        PlainRules {
            port: Some(ports[1]),
            entries: vec![entry(&over_tls, "/api"), entry(&second, "/announce")],
            guards_by_path: true,
        },
    ];
    edge.store.publish(snapshot(vec![both]));

    served(ports[0], &get("/announce?info_hash=%0e"), &one);
    served(ports[1], &get("/announce?info_hash=%0e"), &two);
    for (port, path) in [
        (ports[0], "/api/v1"),
        (ports[1], "/api/v1"),
        // Nothing of this port matches, and the third has nothing of its own.
        (ports[1], "/other"),
        (ports[2], "/announce"),
    ] {
        let answer = ask(port, &get(path));
        assert_eq!(status_of(&answer), 308, "{path}: {answer}");
        let location = format!("https://{HOST}{path}");
        assert_eq!(field(&answer, "location"), Some(&*location));
    }
    let ambiguous = ask(ports[0], &get("/x%2f../api"));
    assert_eq!(status_of(&ambiguous), 400, "{ambiguous}");
    assert_eq!(secure.connections.load(Ordering::SeqCst), 0);
    // The only host with rules of its own on a port is meant by those that name none.
    let old = "GET /announce HTTP/1.0\r\n\r\n";
    let answer = served(ports[0], old, &one);
    assert!(
        answer.contains(&format!("\r\nHost: {HOST}\r\n")),
        "{answer}"
    );
    assert_eq!(status_of(&ask(ports[2], old)), 400);
    assert_eq!(status_of(&edge.exchange("GET / HTTP/1.1\r\n\r\n")), 400);

    // Two hosts on one port: nobody knows who is meant. An address is a host like any other.
    edge.store.publish(snapshot(vec![
        plain_host("a.test", vec![(Some(ports[0]), vec![entry(&first, "/")])]),
        plain_host("192.0.2.1", vec![(None, vec![entry(&second, "/announce")])]),
    ]));
    assert_eq!(status_of(&ask(ports[0], old)), 400);
    let answer = served(ports[1], old, &two);
    assert!(answer.contains("\r\nHost: 192.0.2.1\r\n"), "{answer}");
    let to = |host: &str| get("/announce").replace(HOST, host);
    served(ports[0], &to("a.test"), &one);
    served(ports[2], &to("192.0.2.1:7070"), &two);
    assert_eq!(status_of(&ask(ports[2], &to("a.test"))), 404);
    let none = ask(ports[2], &get("/none").replace(HOST, "192.0.2.1"));
    assert_eq!(status_of(&none), 404, "{none}");
    // Over TLS they are nobody's.
    let own = certificate(&["a.test"]);
    let config = tls::client(tls::roots(&[&own]));
    let refused = tls::ask(&mut tls::tls(&edge, &config, "a.test"), "a.test");
    assert!(refused.is_err(), "{refused:?}");
}

#[test]
fn who_came_to_a_trusted_front_by_https_is_served_and_nobody_else() {
    let origin = Origin::echo();
    let host = |guarded: bool| {
        let mut tls = policy(certificate(&[HOST]));
        if let TlsMode::Terminate(wants) = &mut tls
            && guarded
        {
            wants.client_auth = Some(Arc::new(ClientAuth {
                fingerprint: Fingerprint([7; 32]),
                roots: Arc::new(RootCertStore::empty()),
                mode: ClientAuthMode::Required,
            }));
        }
        VirtualHost {
            plain_http: PlainHttp::Redirect(StatusCode::PERMANENT_REDIRECT),
            hsts: Some("max-age=1".parse().unwrap()),
            ..virtual_host(HOST, forward_to(&[cluster(origin.address)]), tls)
        }
    };
    let ask = |trusted: &str, guarded: bool, fields: &str| {
        let edge = TestEdge::start_hosts(vec![host(guarded)], |settings| {
            settings.trusted_proxies = vec![trusted.parse().unwrap()];
        });
        let request =
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n");
        let mut stream = connect(edge.http);
        stream.write_all(request.as_bytes()).unwrap();
        read_to_end(&mut stream)
    };
    let (front, other) = ("127.0.0.1/32", "127.0.0.2/32");
    let says = "X-Forwarded-Proto: https\r\n";
    let answer = ask(front, false, says);
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(
        answer.contains("\r\nX-Forwarded-Proto: https\r\n"),
        "{answer}"
    );
    assert_eq!(
        field(&answer, "strict-transport-security"),
        Some("max-age=1")
    );
    for (trusted, guarded, fields) in [
        (other, false, says),
        (front, false, ""),
        (front, false, "X-Forwarded-Proto: http\r\n"),
        (
            front,
            false,
            "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n",
        ),
        // Who ended TLS has not asked for the certificate that this host wants.
        (front, true, says),
    ] {
        let answer = ask(trusted, guarded, fields);
        assert_eq!(status_of(&answer), 308, "{fields}{answer}");
    }
}
