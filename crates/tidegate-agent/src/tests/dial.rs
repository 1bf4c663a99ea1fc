//! Ways to the edge: carriers, proxies, clocks, refusals.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use tidegate_model::Carrier;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::edge::{Edge, Ways, mapping};
use super::{Agent, given};
use crate::config::{Config, Given};
use crate::doctor;

#[tokio::test]
async fn the_direct_carrier_is_first_and_websocket_goes_where_it_does_not() {
    for (only_websocket, expected) in [(false, Carrier::Direct), (true, Carrier::WebSocket)] {
        let ways = Ways {
            only_websocket,
            ..Ways::default()
        };
        let mut edge = Edge::start(ways).await;
        let agent = Agent::of(&edge);
        let mut session = edge.session().await;
        assert_eq!(session.carrier, expected);
        assert_eq!(
            session.control.hello.instance,
            session.authorization.instance
        );
        assert_eq!(
            session
                .map(vec![mapping(1, "http://127.0.0.1:1")])
                .await
                .len(),
            0
        );
        let (status, error, _) = session.get(1, "/").await;
        assert_eq!((status, &*error), (502, "ConnectFailed"));
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_corrected_by_the_edges() {
    let ahead = Duration::from_secs(400 * 24 * 3600);
    let mut edge = Edge::start(Ways {
        ahead,
        ..Ways::default()
    })
    .await;
    let agent = Agent::of(&edge);
    edge.session().await;
    agent.stop().await;
}

#[tokio::test]
async fn a_busy_edge_is_asked_again() {
    let busy = (StatusCode::SERVICE_UNAVAILABLE, "Draining");
    let refusals = Arc::new(Mutex::new(vec![busy]));
    let mut edge = Edge::start(Ways {
        refusals,
        ..Ways::default()
    })
    .await;
    let agent = Agent::of(&edge);
    edge.session().await;
    agent.stop().await;
}

/// A proxy that speaks HTTP; tells what it was asked for. Wants the login of `user:pass word`.
async fn http_proxy() -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asks, asked) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let asks = asks.clone();
            tokio::spawn(async move {
                let mut client = BufReader::new(client);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if client.read_line(&mut head).await.unwrap() == 0 {
                        return;
                    }
                }
                let target = head.split(' ').nth(1).unwrap().to_owned();
                let login = "proxy-authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n";
                let right = head.to_lowercase().contains(&login.to_lowercase());
                let _ = asks.send(format!("{target} {right}")).await;
                if !right {
                    let refusal = b"HTTP/1.1 407 Login\r\ncontent-length: 0\r\n\r\n";
                    client.write_all(refusal).await.unwrap();
                    return;
                }
                client
                    .write_all(b"HTTP/1.1 200 Fine\r\n\r\n")
                    .await
                    .unwrap();
                let mut server = TcpStream::connect(&target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, asked)
}

/// A proxy that speaks SOCKS5 and wants user name and password.
async fn socks_proxy() -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asks, asked) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let asks = asks.clone();
            tokio::spawn(async move {
                let mut hello = [0; 3];
                client.read_exact(&mut hello).await.unwrap();
                assert_eq!(hello, [5, 1, 2]);
                client.write_all(&[5, 2]).await.unwrap();
                let mut login = [0; 16];
                client.read_exact(&mut login).await.unwrap();
                assert_eq!(&login, b"\x01\x04user\x09pass word");
                client.write_all(&[1, 0]).await.unwrap();
                let mut request = [0; 5];
                client.read_exact(&mut request).await.unwrap();
                // An IPv4 address: three bytes more, and the port.
                assert_eq!(request[..4], [5, 1, 0, 1]);
                let mut rest = [0; 5];
                client.read_exact(&mut rest).await.unwrap();
                let ip = [request[4], rest[0], rest[1], rest[2]];
                let target = SocketAddr::from((ip, u16::from_be_bytes([rest[3], rest[4]])));
                let _ = asks.send(target.to_string()).await;
                client
                    .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
                    .await
                    .unwrap();
                let mut server = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn both_kinds_of_proxies_lead_to_the_edge() {
    for (only_websocket, socks) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut edge = Edge::start(Ways {
            only_websocket,
            ..Ways::default()
        })
        .await;
        let (proxy, mut asked) = if socks {
            socks_proxy().await
        } else {
            http_proxy().await
        };
        let scheme = if socks { "socks5" } else { "http" };
        let url = format!("{scheme}://user:pass%20word@{proxy}");
        let agent = Agent::start(Given {
            proxy: Some(url),
            ..given(&edge)
        });
        let session = edge.session().await;
        assert_eq!(session.carrier == Carrier::WebSocket, only_websocket);
        let first = asked.recv().await.unwrap();
        assert!(first.starts_with(&edge.address.to_string()), "{first}");
        agent.stop().await;
    }
}

/// The steps that are not well, and the verdict.
async fn examine(given: &Given) -> (Vec<(&'static str, String)>, String) {
    let config = Config::load(given).unwrap();
    let examined = doctor::examine(&config).await.unwrap().remove(0);
    let bad = examined
        .steps
        .iter()
        .filter(|step| step.state == doctor::StepState::Bad);
    let bad = bad.map(|step| (step.name, step.found.clone())).collect();
    (bad, examined.verdict)
}

#[tokio::test]
async fn the_doctor_names_what_stands_in_the_way() {
    let edge = Edge::start(Ways::default()).await;
    let (bad, verdict) = examine(&given(&edge)).await;
    assert_eq!(
        (bad.len(), &*verdict),
        (0, "both carriers work; the agent uses the direct one")
    );

    let behind = Edge::start(Ways {
        only_websocket: true,
        ..Ways::default()
    })
    .await;
    let (bad, verdict) = examine(&given(&behind)).await;
    assert_eq!(bad[0].0, "direct", "{bad:?}");
    assert!(
        verdict.starts_with("WebSocket works; the direct carrier does not"),
        "{verdict}"
    );

    // Another edge's authority: as where a network opens TLS.
    let foreign = Given {
        ca_file: Some(behind.ca_file()),
        ..given(&edge)
    };
    let (bad, verdict) = examine(&foreign).await;
    let (step, found) = &bad[0];
    assert!(
        *step == "tls" && found.contains("issued by CN=rcgen self signed cert"),
        "{bad:?}"
    );
    assert!(verdict.contains("not trusted"), "{verdict}");

    let stranger = Given {
        token: Some(behind.token()),
        ..given(&edge)
    };
    let (bad, verdict) = examine(&stranger).await;
    assert!(
        bad.iter()
            .all(|(_, found)| found.contains("CredentialRefused")),
        "{bad:?}"
    );
    assert!(verdict.contains("CredentialRefused"), "{verdict}");

    let (proxy, _asked) = http_proxy().await;
    let no_login = Given {
        proxy: Some(format!("http://{proxy}")),
        ..given(&edge)
    };
    let (bad, _) = examine(&no_login).await;
    assert!(
        bad[0].1.contains("wants a user name and password"),
        "{bad:?}"
    );

    let gone = Given {
        edge: vec!["https://127.0.0.1:1".to_owned()],
        ..given(&edge)
    };
    let (bad, verdict) = examine(&gone).await;
    assert_eq!(
        (bad[0].0, &*verdict),
        ("tcp", "the edge cannot be reached from here")
    );
}
