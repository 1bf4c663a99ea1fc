//! Deliveries to real listeners on this machine: HTTP by hyper, SMTP by a scripted server.

mod smtp;
mod webhook;

use std::sync::Mutex;
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::notices::{NoticeKind, Severity};

pub(super) fn notice(severity: Severity) -> Notice {
    Notice {
        subject: "default/blog".into(),
        kind: NoticeKind::Failing,
        severity,
        title: "Getting a certificate for a.example keeps failing".into(),
        body: "Route: default/blog\n.a line with a dot first".into(),
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_534_400),
    }
}

/// A server certificate for `localhost`, and the PEM that trusts it.
fn certificate() -> (TlsAcceptor, String) {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], der)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), key.cert.pem())
}
