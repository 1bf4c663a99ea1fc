//! Secrets with certificates that are deleted, damaged or exchanged: only their own host is affected.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::support::edge::PATIENCE;
use crate::support::operator::{anywhere, route_with, service};
use crate::support::{Client, Cluster, Deployment, Kubectl, Origin, client, eventually};

/// A certificate that signs itself, with its key.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) der: Vec<u8>,
    key: String,
}

impl Pair {
    pub(super) fn new(hosts: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let params = CertificateParams::new(hosts).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.pem(),
            der: certificate.der().to_vec(),
            key: key.serialize_pem(),
        }
    }

    /// The Secret.
    pub(super) fn secret(&self, name: &str) -> String {
        tls_secret(name, &self.certificate, &self.key)
    }
}

fn tls_secret(name: &str, certificate: &str, key: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\ndata:\n  tls.crt: {}\n  tls.key: {}\n",
        STANDARD.encode(certificate),
        STANDARD.encode(key)
    )
}

#[test]
fn a_bad_secret_affects_its_own_host_only_and_the_last_good_certificate_stays() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(cluster, space);
    let one = edge.replica("one").start();
    let origin = Origin::text_at(anywhere(), "here");
    kubectl.apply(space, &service("web", &[origin.address()]));
    let (a, b) = ("a.example.com", "b.example.com");
    let (first, other) = (Pair::new(&[a]), Pair::new(&[b]));
    for (name, host, pair) in [("a", a, &first), ("b", b, &other)] {
        kubectl.apply(space, &pair.secret(name));
        let tls = format!("secretName: {name}");
        kubectl.apply(space, &route_with(name, host, "web", &tls));
    }
    let client = one.client();
    let shown = |host: &str| {
        // Its own root is not what signs these, so the certificate is looked at and not believed.
        let client = client.clone().with_config(believe_anything);
        shown_to(&client, host)
    };
    edge.wait_for("a", "Ready", "True", "Ready");
    edge.wait_for("b", "Ready", "True", "Ready");
    let before = edge.route("b").unwrap().status;

    let untouched = |when: &str| {
        assert_eq!(shown(b).unwrap(), other.der, "{when}");
        let now = edge.route("b").unwrap().status;
        assert_eq!(now, before, "{when}");
    };
    let still = |when: &str| assert_eq!(shown(a).unwrap(), first.der, "{when}");

    kubectl.run(&["delete", "-n", space, "secret/a"]);
    edge.wait_for("a", "ResolvedRefs", "False", "SecretNotFound");
    still("deleted");
    untouched("deleted");

    kubectl.apply(space, &tls_secret("a", "garbage", "garbage"));
    let (_, said) = wait_until_not(&edge, "a", "SecretNotFound");
    assert!(said.contains("no PEM block"), "{said}");
    still("garbage");
    untouched("garbage");

    kubectl.apply(space, &tls_secret("a", &first.certificate, &other.key));
    let (_, said) = wait_until_says(&edge, "a", "does not belong");
    assert!(said.contains("key"), "{said}");
    still("another's key");

    kubectl.apply(space, &other.secret("a"));
    let (reason, said) = wait_until_says(&edge, "a", "does not cover");
    assert_eq!(reason, "NameMismatch");
    assert!(said.contains(a) && said.contains(b), "{said}");
    still("another host's");
    untouched("another host's");

    let mended = Pair::new(&[a]);
    kubectl.apply(space, &mended.secret("a"));
    edge.wait_for("a", "Ready", "True", "Ready");
    assert_eq!(shown(a).unwrap(), mended.der);
    untouched("mended");
    assert_eq!(
        one.client_with(&mended.certificate).get(a, "/").text(),
        "here"
    );
}

/// Traffic that an older replica serves well must not go to a new one that would show another certificate.
#[test]
fn a_replica_is_ready_once_it_has_the_certificates_that_objects_name() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(cluster, space);
    let _one = edge.replica("one").start();
    let host = "a.example.com";
    let pair = Pair::new(&[host]);
    kubectl.apply(space, &pair.secret("a"));
    kubectl.apply(space, &route_with("a", host, "web", "secretName: a"));
    edge.wait_for("a", "CertificateReady", "True", "CertificateReady");

    // Every list can be read, and the certificate cannot.
    let roles = ["get", "roles", "-n", space, "-o", "json"];
    let roles: Value = serde_json::from_str(&kubectl.run(&roles)).unwrap();
    replace(kubectl, roles.clone(), |verb| verb != "get");
    let account = format!("system:serviceaccount:{space}:tidegate");
    let may = [
        "auth", "can-i", "get", "secrets", "-n", space, "--as", &account,
    ];
    eventually("the smaller role", PATIENCE, || {
        match kubectl.attempt(&may) {
            (false, said) if said.starts_with("no") => Ok(()),
            (_, said) => Err(said),
        }
    });
    let two = edge.replica("two").start_unready();
    eventually("an attempt to read it", PATIENCE, || {
        let log = two.log();
        let tried = log.contains("every list was read")
            && log.contains("cannot fetch what an object names");
        if tried { Ok(()) } else { Err(log) }
    });
    let said = two.ask_admin("/readyz").unwrap();
    assert!(said.starts_with("503 starting"), "{said}");

    replace(kubectl, roles, |_| true);
    two.wait_until_ready();
    let client = two.client_with(&pair.certificate);
    let shown = shown_to(&client, host).unwrap();
    assert_eq!(shown, pair.der);
}

/// Puts the roles back with those verbs on Secrets.
#[track_caller]
fn replace(kubectl: &Kubectl, mut roles: Value, keep: impl Fn(&str) -> bool) {
    for role in roles["items"].as_array_mut().unwrap() {
        // Whatever version it has by now.
        let metadata = role["metadata"].as_object_mut().unwrap();
        metadata.remove("resourceVersion");
        for rule in role["rules"].as_array_mut().unwrap() {
            if rule["resources"] == json!(["secrets"]) {
                let verbs = rule["verbs"].as_array_mut().unwrap();
                verbs.retain(|verb| keep(verb.as_str().unwrap()));
            }
        }
    }
    let (ok, said) = kubectl.attempt_with(&["replace", "-f", "-"], &roles.to_string());
    assert!(ok, "{said}");
}

/// Reason and message of Ready when the reason is another than this.
#[track_caller]
fn wait_until_not(edge: &Deployment<'_>, route: &str, before: &str) -> (String, String) {
    eventually("another reason", PATIENCE, || {
        match edge.condition(route, "Ready") {
            Some((status, reason, message)) if status == "False" && reason != before => {
                Ok((reason, message))
            }
            other => Err(format!("{other:?}")),
        }
    })
}

/// Reason and message of Ready when the message contains this.
#[track_caller]
fn wait_until_says(edge: &Deployment<'_>, route: &str, words: &str) -> (String, String) {
    eventually(words, PATIENCE, || match edge.condition(route, "Ready") {
        Some((status, reason, message)) if status == "False" && message.contains(words) => {
            Ok((reason, message))
        }
        other => Err(format!("{other:?}")),
    })
}

/// The certificate that this client is shown for the host.
fn shown_to(client: &Client, host: &str) -> Result<Vec<u8>, String> {
    client::block_on(async {
        let stream = client.connect(host, &["http/1.1"]).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let shown = stream.get_ref().1.peer_certificates();
        let first = shown.and_then(<[_]>::first).ok_or("no certificate")?;
        Ok(first.to_vec())
    })
}

/// For those who want to see a certificate before they judge it.
pub(super) fn believe_anything(config: rustls::ClientConfig) -> rustls::ClientConfig {
    let mut config = config;
    config
        .dangerous()
        .set_certificate_verifier(std::sync::Arc::new(Believer));
    config
}

#[derive(Debug)]
struct Believer;

impl rustls::client::danger::ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
