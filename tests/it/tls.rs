//! Handshakes: versions, key exchange, names, client certificates, passthrough, changed certificates.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::client::block_on;
use crate::support::{Client, Edge, Origin, eventually, route, route_of, secret};

const HOST: &str = "tls.test";

/// A CA of the test's own.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A leaf and its key.
pub(crate) struct Leaf {
    der: CertificateDer<'static>,
    pub(crate) pem: String,
    pub(crate) key: KeyPair,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn leaf(&self, name: &str) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            der: leaf.der().clone(),
            pem: leaf.pem(),
            key,
        }
    }
}

fn tls_secret(name: &str, leaf: &Leaf) -> String {
    let key = leaf.key.serialize_pem();
    secret(
        name,
        "kubernetes.io/tls",
        &[("tls.crt", &leaf.pem), ("tls.key", &key)],
    )
}

fn config(ca_pem: &str, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(Client::roots(ca_pem.as_bytes()))
        .with_no_client_auth()
}

#[test]
fn both_versions_are_spoken_and_the_post_quantum_group_is_preferred() {
    let origin = Origin::text("x");
    let edge = Edge::start(&[route("tls", HOST, origin.address())]);
    edge.wait_for_status(HOST, "/", 200);
    block_on(async {
        let stream = edge
            .client()
            .connect(HOST, &["h2", "http/1.1"])
            .await
            .unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(
            connection.protocol_version(),
            Some(ProtocolVersion::TLSv1_3)
        );
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        let group = connection.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), NamedGroup::X25519MLKEM768);

        let ca = std::fs::read_to_string(edge.ca_file()).unwrap();
        let old = edge
            .client()
            .with_config(|_| config(&ca, &[&rustls::version::TLS12]));
        let stream = old.connect(HOST, &[]).await.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(
            connection.protocol_version(),
            Some(ProtocolVersion::TLSv1_2)
        );
        assert_eq!(connection.alpn_protocol(), None);
    });
}

#[test]
fn a_route_may_refuse_the_old_version() {
    let origin = Origin::text("x");
    let spec = format!(
        "hostnames: [{HOST}]\ntls: {{minVersion: '1.3'}}\nrules:\n- backends: [{{address: \"{}\"}}]\n",
        origin.address()
    );
    let edge = Edge::start(&[
        route_of("tls", &spec),
        route("other", "other.test", origin.address()),
    ]);
    edge.wait_for_status(HOST, "/", 200);
    let ca = std::fs::read_to_string(edge.ca_file()).unwrap();
    let old = edge
        .client()
        .with_config(|_| config(&ca, &[&rustls::version::TLS12]));
    assert!(block_on(old.connect(HOST, &[])).is_err());
    assert!(block_on(old.connect("other.test", &[])).is_ok());
}

#[test]
fn an_unknown_name_gets_no_handshake() {
    let origin = Origin::text("x");
    let edge = Edge::start(&[route("tls", HOST, origin.address())]);
    edge.wait_for_status(HOST, "/", 200);
    assert!(block_on(edge.client().connect("stranger.test", &[])).is_err());
}

#[test]
fn clients_need_a_certificate_where_the_route_says_so() {
    let ca = Ca::new();
    let origin = Origin::text("x");
    let spec = format!(
        "hostnames: [{HOST}]\ntls: {{clientAuth: {{caSecretName: clients}}}}\nrules:\n- backends: [{{address: \"{}\"}}]\n",
        origin.address()
    );
    let edge = Edge::start(&[
        secret("clients", "Opaque", &[("ca.crt", &ca.pem)]),
        route_of("tls", &spec),
        route("open", "open.test", origin.address()),
    ]);
    edge.wait_for_status("open.test", "/", 200);
    assert!(
        edge.client().try_get(HOST, "/").is_err(),
        "served without a certificate"
    );
    // Neither by the other host's handshake.
    assert_eq!(
        edge.request("open.test", "GET", "/", &[("host", HOST)])
            .status,
        421
    );

    let edge_ca = std::fs::read(edge.ca_file()).unwrap();
    let with = |leaf: &Leaf| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(leaf.key.serialize_der()).unwrap();
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Client::roots(&edge_ca))
            .with_client_auth_cert(vec![leaf.der.clone()], key)
            .unwrap();
        edge.client().with_config(|_| config)
    };
    let reply = with(&ca.leaf("client.test")).get(HOST, "/");
    assert_eq!((reply.status, reply.text().as_str()), (200, "x"));
    let stranger = with(&Ca::new().leaf("client.test")).try_get(HOST, "/");
    assert!(
        stranger.is_err(),
        "a certificate of another CA was accepted: {stranger:?}"
    );
}

#[test]
fn a_changed_certificate_is_served_and_closes_nothing() {
    let ca = Ca::new();
    let origin = Origin::text("x");
    let spec = format!(
        "hostnames: [{HOST}]\ntls: {{secretName: site-tls}}\nrules:\n- backends: [{{address: \"{}\"}}]\n",
        origin.address()
    );
    let (first, second) = (ca.leaf(HOST), ca.leaf(HOST));
    let edge = Edge::builder()
        .object(route_of("tls", &spec))
        .object(tls_secret("site-tls", &first))
        .start();
    let client = Client::new(edge.https, ca.pem.as_bytes());
    block_on(async {
        let served = async || {
            let stream = client
                .connect(HOST, &[])
                .await
                .map_err(|error| error.to_string())?;
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            chain
                .first()
                .map(|leaf| leaf.clone().into_owned())
                .ok_or_else(|| "no certificate".to_owned())
        };
        assert_eq!(served().await.unwrap(), first.der);
        let mut kept = client.connect(HOST, &["http/1.1"]).await.unwrap();
        edge.write("object-1.yaml", &tls_secret("site-tls", &second));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while served().await != Ok(second.der.clone()) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the new certificate is not served"
            );
            tokio::task::yield_now().await;
        }
        // The connection from before still answers.
        kept.write_all(b"GET / HTTP/1.1\r\nHost: tls.test\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        kept.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
    // A key that does not belong to the certificate changes nothing.
    let mixed = Leaf {
        der: first.der.clone(),
        pem: first.pem.clone(),
        key: KeyPair::generate().unwrap(),
    };
    edge.write("object-1.yaml", &tls_secret("site-tls", &mixed));
    eventually("the mistake is told", Duration::from_secs(20), || {
        let log = edge.log();
        if log.contains("site-tls") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(client.get(HOST, "/").status, 200);
}

/// A backend that speaks TLS itself, and says `behind`. Before TLS it takes this line, if any.
fn tls_backend(ca: &Ca, proxy_line: &'static str) -> std::net::SocketAddr {
    let leaf = ca.leaf(HOST);
    let key = PrivateKeyDer::try_from(leaf.key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der.clone()], key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut line = vec![0; proxy_line.len()];
                if stream.read_exact(&mut line).await.is_err() || line != proxy_line.as_bytes() {
                    continue;
                }
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream
                    .write_all(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nbehind",
                    )
                    .await;
                let _ = stream.shutdown().await;
            }
        });
    });
    address
}

#[test]
fn passthrough_leaves_tls_to_the_backend() {
    let ca = Ca::new();
    let address = tls_backend(&ca, "");
    let spec = format!(
        "hostnames: [{HOST}]\ntls: {{mode: Passthrough}}\nrules:\n- backends: [{{address: \"{address}\"}}]\n"
    );
    let origin = Origin::text("x");
    let edge = Edge::start(&[
        route_of("tls", &spec),
        route("other", "other.test", origin.address()),
    ]);
    edge.wait_for_status("other.test", "/", 200);
    // Only the backend's own CA vouches for what is served.
    let client = Client::new(edge.https, ca.pem.as_bytes());
    assert_eq!(client.get(HOST, "/").text(), "behind");
    assert!(edge.client().try_get(HOST, "/").is_err());
}

/// A TLS connection from 127.0.0.2 that begins with these bytes, and the answer to `GET /`.
fn behind_a_balancer(edge: &Edge, ca_pem: &str, host: &str, first: &[u8]) -> Option<String> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let from = std::net::SocketAddr::from(([127, 0, 0, 2], 0));
    socket.bind(&from.into()).unwrap();
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], edge.https));
    socket.connect(&to.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    block_on(async {
        let mut stream = tokio::net::TcpStream::from_std(socket.into()).unwrap();
        // In two pieces, as slow balancers send it.
        let (one, two) = first.split_at(first.len() / 2);
        stream.write_all(one).await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(two).await.unwrap();
        let config = config(ca_pem, rustls::ALL_VERSIONS);
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await.ok()?;
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    })
}

#[test]
fn a_proxy_header_stands_before_tls_that_is_opened_here_or_behind() {
    let ca = Ca::new();
    let behind = tls_backend(&ca, "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n");
    let spec = format!(
        "hostnames: [{HOST}]\ntls: {{mode: Passthrough}}\nrules:\n- backends: [{{address: \"{behind}\", proxyProtocol: v1}}]\n"
    );
    let origin = Origin::echo();
    let edge = Edge::builder()
        .object(route_of("behind", &spec))
        .object(route("here", "here.test", origin.address()))
        .arg("--trusted-proxies=127.0.0.2/32")
        .arg("--proxy-protocol=required")
        .start();
    // Strangers send no header, and none is taken from them.
    edge.wait_for_status("here.test", "/", 200);
    let own = std::fs::read_to_string(edge.ca_file()).unwrap();
    let mut version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    version_2.extend([203, 0, 113, 9, 198, 51, 100, 1]);
    version_2.extend(4711_u16.to_be_bytes());
    version_2.extend(443_u16.to_be_bytes());
    let version_1 = b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n".to_vec();
    for header in [version_1, version_2] {
        let answer = behind_a_balancer(&edge, &ca.pem, HOST, &header).unwrap();
        assert!(answer.ends_with("behind"), "{answer}");
        let answer = behind_a_balancer(&edge, &own, "here.test", &header).unwrap();
        // Who came, and where to: the balancer's own port.
        for (name, value) in [("for", "203.0.113.9"), ("port", "443")] {
            let field = format!("[\"x-forwarded-{name}\",\"{value}\"]");
            assert!(answer.contains(&field), "{field} in {answer}");
        }
    }
    for host in [HOST, "here.test"] {
        assert_eq!(behind_a_balancer(&edge, &ca.pem, host, b""), None, "{host}");
    }
}

#[test]
fn sessions_outlive_a_restart() {
    let origin = Origin::text("x");
    let mut edge = Edge::start(&[route("tls", HOST, origin.address())]);
    edge.wait_for_status(HOST, "/", 200);
    let ca = std::fs::read_to_string(edge.ca_file()).unwrap();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        // Remembers sessions from one connection to the next.
        let client = edge.client().with_config(|_| config(&ca, &[version]));
        let handshake = || {
            block_on(async {
                let mut stream = client.connect(HOST, &["http/1.1"]).await.unwrap();
                let request =
                    format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                // Tickets come after the handshake.
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                stream.get_ref().1.handshake_kind().unwrap()
            })
        };
        assert_ne!(handshake(), rustls::HandshakeKind::Resumed);
        edge.start_again();
        edge.wait_for_status(HOST, "/", 200);
        assert_eq!(handshake(), rustls::HandshakeKind::Resumed, "{version:?}");
    }
    let keys = edge.folder().join("state/tickets.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&keys.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
