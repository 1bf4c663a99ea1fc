//! What others may try: to take a hostname, to use what they have stolen or overheard, to bother the door.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use serde_json::Value;
use tidegate_tunnel::credential::{Claims, Token};
use tidegate_tunnel::handshake::{Authorization, SPOKEN, Upgrade, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::life::Load;
use super::service::Service;
use super::{APP, Pair, agent_at, agent_does, agent_object, links};
use crate::support::client::block_on;
use crate::support::edge::PATIENCE;
use crate::support::{Client, Edge, Origin, Program, eventually, secret};

fn ids(links: &[Value]) -> BTreeSet<String> {
    links.iter().map(|it| it["id"].to_string()).collect()
}

#[test]
fn a_hostname_stays_with_its_agent() {
    let service = Service::start();
    let asked = Arc::<Mutex<BTreeSet<String>>>::default();
    let hosts = Arc::clone(&asked);
    let thiefs = Origin::serve(move |request| {
        let host = request.headers().get("host").map(|it| format!("{it:?}"));
        hosts.lock().unwrap().extend(host);
        async { Response::new(Full::<Bytes>::from("the thief's")) }
    });
    let (token, hash) = Edge::agent_token();
    // It may serve names of the same kind, and has one.
    let [thief, kept] = agent_object("thief", "", &hash);
    let pair = Pair::with(&service.url(), |edge| edge.object(thief).object(kept));
    let url = format!("https://localhost:{}", pair.edge.https);
    let mut command = agent_does(None, "thief", &url, &pair.edge.ca_file(), &token);
    command
        .args(["--expose", &format!("{APP}=http://{}", thiefs.address())])
        .args([
            "--expose",
            &format!("own.home.example.com=http://{}", thiefs.address()),
        ]);
    let mut load = Load::start(&pair.edge.client());
    let thief = Program::start(&mut command);
    let own = pair.edge.wait_for_status("own.home.example.com", "/", 200);
    assert_eq!(own.text(), "the thief's");
    eventually("the verdict", PATIENCE, || {
        let log = thief.log();
        if log.contains("HostnameConflict") {
            Ok(())
        } else {
            Err(log)
        }
    });
    load.some(25);
    let (sent, failed) = load.end();
    assert!(failed.is_empty(), "{failed:?}");
    println!(
        "{sent} requests meanwhile; the thief was asked for {:?}",
        asked.lock().unwrap()
    );
    // While its owner is away it is nobody's.
    let Pair { edge, agent, .. } = pair;
    drop(agent);
    let reply = edge.wait_for_status(APP, "/page", 503);
    assert!(!reply.text().contains("thief"), "{}", reply.text());
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|host| !host.contains(APP)), "{asked:?}");
}

#[test]
fn a_stolen_token_is_seen_and_taken_away_without_an_outage() {
    let service = Service::start();
    let pair = Pair::start(&service.url());
    let (edge, mut owner) = (&pair.edge, pair.agent);
    let url = format!("https://localhost:{}", edge.https);
    let start = |token: &str| Program::start(&mut agent_at(&url, &edge.ca_file(), token));
    let instances = || -> BTreeSet<String> {
        let all = links(edge);
        all.iter().map(|it| it["instance"].to_string()).collect()
    };
    let wait_for = |count: usize| {
        eventually("instances", PATIENCE, || match instances() {
            all if all.len() == count && links(edge).len() == 2 * count => Ok(all),
            all => Err(format!("{all:?}")),
        })
    };
    let first = wait_for(1);
    let thief = start(&pair.token);
    let both = wait_for(2);
    println!("a second process with the same token is a second instance: {both:?}");

    // A new token; the old one holds until everybody has the new one.
    let mut load = Load::start(&edge.client());
    let (token, hash) = Edge::agent_token();
    let old = tidegate_tunnel::credential::stored_key_text(
        &Token::parse(&pair.token).unwrap().stored_key(),
    );
    let kept = |values: &[(&str, &str)]| {
        edge.write("object-1.yaml", &secret("homelab-agent", "Opaque", values));
    };
    kept(&[("tokenHash", &hash), ("previousTokenHash", &old)]);
    let renewed = eventually("the new token is known", PATIENCE, || {
        let renewed = start(&token);
        eventually("its links or its refusal", PATIENCE, || {
            if renewed.log().contains("CredentialRefused") {
                Ok(Err("refused".to_owned()))
            } else if instances().len() == 3 && links(edge).len() == 6 {
                Ok(Ok(()))
            } else {
                Err(renewed.log())
            }
        })?;
        Ok(renewed)
    });
    let newest: BTreeSet<String> = instances().difference(&both).cloned().collect();
    owner.signal("TERM");
    let status = owner.wait(PATIENCE);
    assert!(status.success(), "{status}");
    let begin = Instant::now();
    kept(&[("tokenHash", &hash)]);
    eventually(
        "the end of the thief's links",
        PATIENCE,
        || match instances() {
            all if all == newest => Ok(()),
            all => Err(format!("{all:?}")),
        },
    );
    println!(
        "the thief's links ended {:?} after the file was saved",
        begin.elapsed()
    );
    eventually("it is told", PATIENCE, || {
        let log = thief.log();
        if log.contains("CredentialRevoked") {
            Ok(())
        } else {
            Err(log)
        }
    });
    load.some(25);
    let (sent, failed) = load.end();
    println!("{sent} requests meanwhile, {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:?}");
    assert!(newest.is_disjoint(&first) && instances() == newest);
    for log in [renewed.log(), thief.log(), edge.log()] {
        assert!(
            !log.contains(&pair.token) && !log.contains(&token),
            "a token is in a log"
        );
    }
}

/// Ends TLS as a proxy in front does, and listens: the first request of each connection.
struct Listener {
    port: u16,
    ca: std::path::PathBuf,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _folder: tempfile::TempDir,
}

impl Listener {
    fn start(edge: u16) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.crt");
        std::fs::write(&ca, certificate.pem()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let all = Arc::clone(&heard);
        // Ends with the process.
        std::thread::spawn(move || {
            block_on(async move {
                let acceptor = TlsAcceptor::from(Arc::new(config));
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((client, _)) = listener.accept().await {
                    let (acceptor, all) = (acceptor.clone(), Arc::clone(&all));
                    tokio::spawn(async move {
                        let mut client = acceptor.accept(client).await.ok()?;
                        let to = ("127.0.0.1", edge);
                        let mut server = tokio::net::TcpStream::connect(to).await.ok()?;
                        let mut first = Vec::new();
                        while !first.ends_with(b"\r\n\r\n") {
                            first.push(client.read_u8().await.ok()?);
                        }
                        server.write_all(&first).await.ok()?;
                        all.lock().unwrap().push(first);
                        tokio::io::copy_bidirectional(&mut client, &mut server)
                            .await
                            .ok()
                    });
                }
            });
        });
        Self {
            port,
            ca,
            heard,
            _folder: folder,
        }
    }
}

#[test]
fn what_was_overheard_opens_no_door() {
    let service = Service::start();
    let mut pair = Pair::with(&service.url(), |edge| {
        edge.args(&["--trusted-proxies", "127.0.0.1/32"])
    });
    let listener = Listener::start(pair.edge.http);
    let url = format!("https://localhost:{}", listener.port);
    let victim = Program::start(&mut agent_at(&url, &listener.ca, &pair.token));
    eventually("the victim's links", PATIENCE, || {
        let all = links(&pair.edge);
        let there = all.iter().filter(|it| it["carrier"] == "WebSocket").count();
        if there == 2 {
            Ok(())
        } else {
            Err(victim.log())
        }
    });
    let heard = listener.heard.lock().unwrap().clone();
    let text = String::from_utf8(heard[0].clone()).unwrap();
    assert!(
        text.starts_with("GET /.tunnel/v1 ") && text.contains("proof="),
        "{text}"
    );

    // To the same listener, to the one with TLS, over the other carrier; whole, and with another link's number.
    let tries = |edge: &Edge| {
        let client = edge.client();
        let other = text.replace("link=0", "link=3").replace("link=1", "link=2");
        for said in [&text, &other] {
            let mut plain = TcpStream::connect(("127.0.0.1", edge.http)).unwrap();
            plain.set_read_timeout(Some(PATIENCE)).unwrap();
            plain.write_all(said.as_bytes()).unwrap();
            let mut answer = String::new();
            plain.read_to_string(&mut answer).unwrap();
            let mut answers = vec![answer];
            for alpn in ["http/1.1", "tidegate-tunnel/1"] {
                answers.push(ask(&client, alpn, said.as_bytes()));
            }
            for answer in answers {
                let refused =
                    answer.starts_with("HTTP/1.1 401") && answer.contains("CredentialRefused");
                // After a restart what is older than the edge itself is as good as late.
                let late = answer.contains("ClockSkew");
                assert!(refused || late, "{answer}");
            }
        }
    };
    let before = links(&pair.edge);
    tries(&pair.edge);
    assert_eq!(ids(&links(&pair.edge)), ids(&before));
    let metrics = pair.edge.admin("/metrics").unwrap();
    assert!(metrics.contains("NonceUsedBefore"), "{metrics}");

    // A restart forgets nonces, and does not open the door to what was overheard before it.
    let (_, time) = text.split_once("time=").unwrap();
    let time: u64 = time.split(',').next().unwrap().parse().unwrap();
    eventually("another second", PATIENCE, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        if now.as_secs() > time {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    });
    pair.edge.start_again();
    tries(&pair.edge);
}

/// Sends the bytes over TLS and reads until the edge ends the connection.
fn ask(client: &Client, alpn: &str, bytes: &[u8]) -> String {
    block_on(async {
        let mut tls = client.connect("localhost", &[alpn]).await.unwrap();
        // It may have had enough of it in the middle.
        let _ = tls.write_all(bytes).await;
        let mut answer = Vec::new();
        let reading = tls.read_to_end(&mut answer);
        let ended = tokio::time::timeout(PATIENCE, reading).await;
        assert!(ended.is_ok(), "a connection was held: {alpn}");
        String::from_utf8_lossy(&answer).into_owned()
    })
}

/// A handshake over WebSocket, as an agent with this token makes it.
fn handshake(port: u16, agent: &str, token: &str) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut authorization = Authorization {
        edge: format!("localhost:{port}"),
        agent: agent.to_owned(),
        instance: format!("{:032x}", fastrand::u128(..)),
        link: 0,
        time: now.as_secs(),
        nonce: format!("{:032x}", fastrand::u128(..)),
        proof: tidegate_model::Secret::new(String::new()),
    };
    let proof = Token::parse(token).unwrap().prove(&Claims {
        version: SPOKEN[0],
        edge: &authorization.edge,
        agent: &authorization.agent,
        instance: &authorization.instance,
        link: 0,
        time: authorization.time,
        nonce: &authorization.nonce,
        binding: &[],
    });
    authorization.proof = proof.text();
    let made = request(&authorization.edge, &Upgrade::websocket(), &authorization).unwrap();
    let mut text = format!("GET {} HTTP/1.1\r\n", made.uri());
    for (name, value) in made.headers() {
        let _ = write!(text, "{name}: {}\r\n", value.to_str().unwrap());
    }
    (text + "\r\n").into_bytes()
}

#[test]
fn junk_at_the_door_disturbs_nobody() {
    const EACH: usize = 25;
    let service = Service::start();
    let (token, hash) = Edge::agent_token();
    let [hostile, kept] = agent_object("hostile", "", &hash);
    let mut pair = Pair::with(&service.url(), |edge| {
        edge.object(hostile).object(kept).args(&[
            "--header-timeout",
            "3s",
            "--handshake-timeout",
            "3s",
        ])
    });
    let (port, before) = (pair.edge.https, ids(&links(&pair.edge)));
    let memory = pair.edge.program().peak_memory();
    let client = pair.edge.client();
    let mut load = Load::start(&client);
    let mut random = fastrand::Rng::with_seed(7);
    let mut noise = |count: usize| -> Vec<u8> { (0..count).map(|_| random.u8(..)).collect() };

    // One who may connect and then speaks nonsense: it is rid of, and told from the others.
    for _ in 0..5 {
        let mut said = handshake(port, "default/hostile", &token);
        said.extend(noise(50_000));
        let answer = ask(&client, "http/1.1", &said);
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    }
    // Strangers: a proof of nothing with frames behind it, noise, half a handshake, one without end, no TLS at all.
    let (stranger, _) = Edge::agent_token();
    let mut wrong = handshake(port, "default/homelab", &stranger);
    wrong.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let half = b"GET /.tunnel/v1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Tidegate edge=\"loc"
        .to_vec();
    let mut endless = half.clone();
    endless.resize(1 << 20, b'x');
    let mut told = Vec::new();
    for _ in 0..EACH {
        told.push(ask(&client, "http/1.1", &wrong));
        told.push(ask(&client, "tidegate-tunnel/1", &noise(5_000)));
        told.push(ask(&client, "tidegate-tunnel/1", &endless));
        told.push(ask(&client, "http/1.1", &endless));
        let mut bare = TcpStream::connect(("127.0.0.1", port)).unwrap();
        bare.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = bare.write_all(&noise(5_000));
        let _ = bare.read_to_end(&mut Vec::new());
    }
    assert!(
        told.iter().all(|it| !it.starts_with("HTTP/1.1 101")),
        "{told:?}"
    );
    // Those who say half of it and wait are waited for all at once, and no longer than for others.
    block_on(async {
        let mut slow = Vec::new();
        for _ in 0..EACH {
            let mut tls = client
                .connect("localhost", &["tidegate-tunnel/1"])
                .await
                .unwrap();
            tls.write_all(&half).await.unwrap();
            slow.push(tls);
        }
        for mut tls in slow {
            let mut answer = Vec::new();
            let reading = tls.read_to_end(&mut answer);
            assert!(
                tokio::time::timeout(PATIENCE, reading).await.is_ok(),
                "held"
            );
        }
    });
    // Floods of wrong proofs are cut short.
    let mut refused = 0;
    while !ask(&client, "http/1.1", &wrong).starts_with("HTTP/1.1 429") {
        refused += 1;
        assert!(refused < 200, "no end of wrong proofs");
    }
    load.some(25);
    let slowest = load.slowest();
    let (sent, failed) = load.end();
    let grown = pair.edge.program().peak_memory() - memory;
    println!(
        "{sent} requests meanwhile, {} failed, the slowest took {slowest:?}; the edge grew by {} KiB",
        failed.len(),
        grown / 1024
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(grown < 32 << 20, "{grown} bytes");
    assert_eq!(ids(&links(&pair.edge)), before, "links were lost");
}
