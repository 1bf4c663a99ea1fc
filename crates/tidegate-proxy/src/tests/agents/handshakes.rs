//! Who is let in and who is not, and what strangers can find out or break.

use super::*;

/// What the edge answers to a handshake.
fn told(rig: &Rig, way: Way, change: impl FnOnce(&mut Authorization)) -> (u16, String) {
    rig.runtime.block_on(async {
        let (mut io, binding) = rig.dial_bound(way).await;
        let mut authorization = rig.authorization(&binding);
        change(&mut authorization);
        let upgrade = match way {
            Way::Direct => Upgrade::Direct,
            _ => Upgrade::websocket(),
        };
        let request = handshake::request(HOST, &upgrade, &authorization).unwrap();
        let answered = shake(&mut io, &request).await;
        let mut body = Vec::new();
        if answered.status() != 101 {
            // The end may come without a farewell.
            let _ = io.read_to_end(&mut body).await;
        }
        (answered.status().as_u16(), String::from_utf8(body).unwrap())
    })
}

#[test]
fn every_wrong_handshake_is_refused_in_words_that_tell_strangers_nothing() {
    let rig = Rig::new();
    let stranger = Token::generate().unwrap();
    let reason = |(status, body): (u16, String)| {
        let refusal = handshake::Refusal::parse(body.as_bytes());
        (status, refusal.map_or(body, |it| it.reason))
    };
    let refused = || (401, "CredentialRefused".to_owned());
    for way in [Way::Direct, Way::WebSocket] {
        // With the token of another agent, or none.
        let wrong = told(&rig, way, |it| sign(it, &stranger, b""));
        assert_eq!(reason(wrong.clone()), refused());
        let unknown = told(&rig, way, |it| {
            it.agent = "default/other".to_owned();
            sign(it, &stranger, b"");
        });
        assert_eq!(unknown, wrong, "as if there were no difference");
        // Bound to another connection, or to none where there is one.
        let moved = told(&rig, way, |it| sign(it, &rig.token, &[1; 32]));
        assert_eq!(reason(moved), refused(), "{way:?}");
        // Changed on its way.
        assert_eq!(reason(told(&rig, way, |it| it.link = 1)), refused());
        assert_eq!(reason(told(&rig, way, |it| it.time += 1)), refused());
    }
    // What some other server was told.
    let relayed = told(&rig, Way::WebSocket, |it| {
        it.edge = "evil.test".to_owned();
        sign(it, &rig.token, b"");
    });
    assert_eq!(reason(relayed), refused());
    let skewed = told(&rig, Way::WebSocket, |it| {
        it.time += 3600;
        sign(it, &rig.token, b"");
    });
    assert_eq!(reason(skewed), (401, "ClockSkew".to_owned()));
    // The same proof on a second connection.
    let nonce = "once";
    let once = |it: &mut Authorization| {
        it.nonce = nonce.to_owned();
        it.time = rig_time();
        sign(it, &rig.token, b"");
    };
    assert_eq!(told(&rig, Way::WebSocket, once).0, 101);
    assert_eq!(reason(told(&rig, Way::WebSocket, once)), refused());
    // A suspended agent is told so, a stranger is not.
    let mut agent = agent_with(vec![rig.token.stored_key()]);
    agent.suspended = true;
    rig.publish(Some(agent));
    let suspended = told(&rig, Way::Direct, |_| {});
    assert_eq!(reason(suspended), (403, "Suspended".to_owned()));
    let wrong = told(&rig, Way::WebSocket, |it| sign(it, &stranger, b""));
    assert_eq!(reason(wrong), refused());
    eventually("nobody is in", || rig.sessions() == 0);
    for why in ["WrongProof", "UnknownAgent", "OtherEdge", "NonceUsedBefore"] {
        let counted = format!("tidegate_agent_handshakes_total{{result=\"{why}\"}}");
        assert!(rig.edge.metric(&counted) > 0, "{why}");
    }
}

fn rig_time() -> u64 {
    // One moment for two handshakes, and not before the edge began.
    static TIME: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *TIME.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_secs()
    })
}

#[test]
fn versions_and_forms_that_are_not_ours_are_refused() {
    let rig = Rig::new();
    let ask = |way, change: &dyn Fn(&mut Request<()>)| {
        rig.runtime.block_on(async {
            let (mut io, binding) = rig.dial_bound(way).await;
            let upgrade = match way {
                Way::Direct => Upgrade::Direct,
                _ => Upgrade::websocket(),
            };
            let authorization = rig.authorization(&binding);
            let mut request = handshake::request(HOST, &upgrade, &authorization).unwrap();
            change(&mut request);
            shake(&mut io, &request).await
        })
    };
    let version = ask(Way::WebSocket, &|it| {
        it.headers_mut().insert(handshake::VERSIONS, 2.into());
    });
    assert_eq!(version.status(), 426);
    assert_eq!(version.headers()[handshake::VERSIONS], "1");
    let oversized = rig.runtime.block_on(async {
        let mut io = rig.dial(Way::WebSocket).await;
        let large = "x".repeat(200_000);
        let head = format!("GET {} HTTP/1.1\r\nX: {large}\r\n", handshake::PATH);
        // The edge closes before it has read all of it, so the answer may be lost.
        let _ = io.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = io.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    });
    assert!(
        oversized.is_empty() || status_of(&oversized) == 431,
        "{oversized}"
    );
    let long = format!("Tidegate edge=\"{}\"", "x".repeat(5000));
    let long = ask(Way::WebSocket, &|it| {
        let value = long.parse().unwrap();
        it.headers_mut().insert("authorization", value);
    });
    assert_eq!(long.status(), 401);
    // A connection of agents is for nothing else.
    let visitor = ask(Way::Direct, &|it| {
        it.headers_mut().remove("authorization");
        *it.uri_mut() = "/".parse().unwrap();
    });
    assert_eq!(visitor.status(), 401);
    let websocket = ask(Way::Direct, &|it| {
        let ours = Upgrade::websocket();
        let authorization = rig.authorization(b"");
        *it = handshake::request(HOST, &ours, &authorization).unwrap();
    });
    assert_eq!(websocket.status(), 401);
    assert_eq!(rig.sessions(), 0);
}

#[test]
fn what_is_no_handshake_is_a_visitors_request_like_any_other() {
    let origin = Origin::echo();
    let rig = Rig::with(forward_to(&[cluster(origin.address)]), |_| {});
    let ask = |way: Way, authorization: Option<&str>| {
        rig.runtime.block_on(async {
            let mut io = rig.dial(way).await;
            let upgrade = Upgrade::websocket();
            let good = rig.authorization(b"");
            let mut request = handshake::request(HOST, &upgrade, &good).unwrap();
            if let Some(other) = authorization {
                let value = other.parse().unwrap();
                request.headers_mut().insert("authorization", value);
            }
            shake(&mut io, &request).await.status()
        })
    };
    assert_eq!(ask(Way::WebSocket, None), 101);
    assert_eq!(
        ask(Way::WebSocket, Some("Basic eDp5")),
        200,
        "another scheme"
    );
    assert_eq!(ask(Way::Plain, None), 200, "over plain HTTP");
    rig.publish(None);
    assert_eq!(ask(Way::WebSocket, None), 200, "an edge without agents");
    let alpn = rig.runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(rig.edge.https)
            .await
            .unwrap();
        let mut config = rustls::ClientConfig::clone(&tls::client(roots(&[&rig.certificate])));
        config.alpn_protocols = vec![handshake::ALPN.to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(HOST.try_into().unwrap(), tcp).await
    });
    assert!(alpn.is_err(), "it is not offered");
}

#[test]
fn a_trusted_proxy_may_bring_agents_over_plain_http() {
    let rig = Rig::with(forward_to(&[behind_agent()]), |settings| {
        settings.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    });
    let _agent = rig.connect(Way::Plain, describe);
    assert_eq!(status_of(&rig.edge.exchange(&get("/"))), 200);
}

#[test]
fn junk_at_the_door_does_not_disturb_who_is_inside() {
    let rig = Rig::new();
    let agent = rig.connect(Way::Direct, describe);
    let stranger = Token::generate().unwrap();
    let mut told_so = BTreeMap::new();
    for round in 0..100 {
        let (status, _) = told(&rig, Way::WebSocket, |it| sign(it, &stranger, b""));
        *told_so.entry(status).or_insert(0) += 1;
        if round % 10 == 0 {
            assert_eq!(status_of(&rig.edge.exchange(&get("/"))), 200);
        }
    }
    assert!(told_so[&401] >= 50 && told_so[&429] > 0, "{told_so:?}");
    assert_eq!(rig.sessions(), 1);
    assert!(!agent.ended.is_finished());
}
