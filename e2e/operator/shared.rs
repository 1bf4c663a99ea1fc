//! What replicas share besides certificates: keys of session tickets, and an issuer from a file.

use std::fs;
use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::edge::PATIENCE;
use crate::support::operator::{anywhere, route_to, service};
use crate::support::{Client, Cluster, Deployment, Origin, Replica, block_on, eventually};

const HOST: &str = "blog.example.com";

/// A client that remembers its sessions.
fn client(root: &[u8], version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(Client::roots(root))
        .with_no_client_auth()
}

/// Makes a request; how the handshake was made.
fn handshake(replica: &Replica, client: &ClientConfig) -> Result<HandshakeKind, String> {
    let client = replica.client().with_config(|_| client.clone());
    block_on(async {
        let mut stream = client.connect(HOST, &["http/1.1"]).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // Tickets come after the handshake.
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(stream.get_ref().1.handshake_kind().unwrap())
    })
    .map_err(|error: std::io::Error| error.to_string())
}

#[track_caller]
fn wait_for_resumption(at: &Replica, client: &ClientConfig) {
    eventually("a session that goes on", PATIENCE, || {
        match handshake(at, client)? {
            HandshakeKind::Resumed => Ok(()),
            other => Err(format!("{other:?}; log:\n{}", at.log())),
        }
    });
}

#[test]
fn sessions_go_on_at_any_replica() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(cluster, space);
    let mut one = edge.replica("one").start();
    edge.wait_for_leader("one", PATIENCE);
    let two = edge.replica("two").start();
    let origin = Origin::text_at(anywhere(), "blog");
    kubectl.apply(space, &service("blog", &[origin.address()]));
    kubectl.apply(space, &route_to("blog", HOST, "blog"));
    one.wait_for_text(&one.client(), HOST, "blog");
    two.wait_for_text(&two.client(), HOST, "blog");
    let root = one.root();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = client(&root, version);
        let resumed = |at| handshake(at, &client).map(|kind| kind == HandshakeKind::Resumed);
        eventually(
            "a session that goes on at another replica",
            PATIENCE,
            || {
                handshake(&one, &client)?;
                if resumed(&two)? && resumed(&one)? {
                    Ok(())
                } else {
                    Err("a full handshake".to_owned())
                }
            },
        );
    }

    // Whoever led is gone and has forgotten everything.
    let client = client(&root, &rustls::version::TLS13);
    handshake(&two, &client).unwrap();
    one.start_anew();
    one.wait_for_text(&one.client(), HOST, "blog");
    wait_for_resumption(&one, &client);

    // Without the Secret no ticket is good, and there are new keys soon.
    let label = "edge.tidegate.dev/document=session-tickets";
    kubectl.run(&["delete", "secret", "-n", space, "-l", label]);
    eventually(
        "a session that begins anew",
        PATIENCE,
        || match handshake(&two, &client)? {
            HandshakeKind::Resumed => Err(format!("resumed; log:\n{}", two.log())),
            _ => Ok(()),
        },
    );
    eventually("new keys", PATIENCE, || {
        let listed = kubectl.run(&["get", "secret", "-n", space, "-l", label, "-o", "name"]);
        (listed.lines().count() == 1).then_some(()).ok_or(listed)
    });
    eventually("a session with the new keys", PATIENCE, || {
        handshake(&two, &client)?;
        match handshake(&one, &client)? {
            HandshakeKind::Resumed => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn the_default_issuer_comes_from_a_file() {
    let Some(cluster) = Cluster::own() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("issuer.yaml");
    // Issuers belong to no namespace.
    let name = format!("of-{space}");
    let issuer = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: AcmeIssuer\nmetadata: {{name: {name}}}\nspec:\n  \
         directory: https://127.0.0.1:1/directory\n  termsOfServiceAgreed: true\n  solvers: [{{name: http, http01: {{}}}}]\n"
    );
    fs::write(&file, issuer.replace("directory:", "directry:")).unwrap();
    let edge =
        Deployment::new(&cluster, space).args(&["--default-issuer-file", file.to_str().unwrap()]);
    let one = edge.replica("one").start();
    let origin = Origin::text_at(anywhere(), "blog");
    kubectl.apply(space, &service("blog", &[origin.address()]));
    kubectl.apply(space, &route_to("blog", HOST, "blog"));
    let message = edge.wait_for("blog", "ResolvedRefs", "False", "IssuerNotFound");
    assert!(message.contains("issuer.yaml"), "{message}");
    let log = one.log();
    let told = log.lines().find(|line| line.contains("spec.directry"));
    assert!(
        told.is_some_and(|line| line.contains("issuer.yaml:5")),
        "{log}"
    );

    fs::write(&file, &issuer).unwrap();
    edge.wait_for("blog", "ResolvedRefs", "True", "ResolvedRefs");
    eventually("an order of the issuer", PATIENCE, || {
        match edge.condition("blog", "CertificateReady") {
            Some((_, _, message)) if message.contains(&name) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    kubectl.apply(space, &issuer);
    eventually("a word about the object", PATIENCE, || {
        let log = one.log();
        let said = log.contains("is used instead of this file");
        said.then_some(()).ok_or(log)
    });
    kubectl.run(&["delete", "acmeissuer", &name]);
}
