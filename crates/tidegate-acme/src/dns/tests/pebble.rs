//! What we publish is what an authority accepts: Pebble validates against BIND.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use instant_acme::{
    Account, ChallengeType, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rustls::RootCertStore;
use tempfile::TempDir;
use tidegate_model::Secret;

use super::bind::{Bind, KEY, KEY_NAME, zone};
use crate::client::AcmeClient;
use crate::dns::persist::PersistRecord;
use crate::dns::propagation::{self, Propagation};
use crate::dns::rfc2136::{Rfc2136, Settings, TsigAlgorithm};
use crate::dns::zone::challenge_fqdn;
use crate::dns::{DnsSolver as _, TxtRecord};
use crate::settings::TrustedRoots;

struct Pebble {
    child: Child,
    directory: String,
    client: AcmeClient,
    _folder: TempDir,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(tools)
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join("pebble"))
        .find(|program| program.is_file());
    if found.is_none() {
        super::missing("pebble");
    }
    found
}

impl Pebble {
    fn start(program: &Path, dns: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let file = |name: &str, content: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let free = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap()
        };
        let (listen, management) = (free(), free());
        let config = serde_json::json!({"pebble": {
            "listenAddress": listen.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": file("cert.pem", key.cert.pem()),
            "privateKey": file("key.pem", key.signing_key.serialize_pem()),
            "httpPort": 1, "tlsPort": 1,
            "profiles": {"default": {"description": "one", "validityPeriod": 86400}},
        }});
        let config = file("config.json", config.to_string());
        let child = Command::new(program)
            .args([
                "-strict",
                "-config",
                &config,
                "-dnsserver",
                &dns.to_string(),
            ])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "0")
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(key.cert.der().clone()).unwrap();
        let trusted = TrustedRoots {
            roots: Arc::new(roots),
            fingerprint: [0; 32],
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(listen).is_err() {
            assert!(Instant::now() < deadline, "pebble does not listen");
            super::breathe();
        }
        Self {
            child,
            directory: format!("https://localhost:{}/dir", listen.port()),
            client: AcmeClient::new(Some(&trusted)).unwrap(),
            _folder: folder,
        }
    }

    async fn account(&self) -> Account {
        let request = NewAccount {
            contact: &[],
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let builder = Account::builder_with_http(Box::new(self.client.clone()));
        let created = builder.create(&request, self.directory.clone(), None).await;
        created.unwrap().0
    }
}

/// An order for the name and its wildcard.
async fn order(account: &Account, name: &str) -> Order {
    let names = [
        Identifier::Dns(name.to_owned()),
        Identifier::Dns(format!("*.{name}")),
    ];
    account.new_order(&NewOrder::new(&names)).await.unwrap()
}

/// Says that the challenge can be looked at, and waits for the verdict, which may come with any answer.
async fn validate(order: &mut Order, kind: &ChallengeType) -> Result<OrderStatus, String> {
    let text = |error: instant_acme::Error| error.to_string();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(text)?;
        let mut challenge = authorization.challenge(kind.clone()).unwrap();
        challenge.set_ready().await.map_err(text)?;
    }
    let patience = RetryPolicy::new().timeout(Duration::from_secs(60));
    order.poll_ready(&patience).await.map_err(text)
}

fn solver(bind: &Bind) -> Rfc2136 {
    Rfc2136::new(&Settings {
        server: bind.address,
        zone: None,
        key_name: KEY_NAME.to_owned(),
        key: Secret::new(KEY.to_owned()),
        algorithm: TsigAlgorithm::HmacSha256,
        timeout: Duration::from_secs(5),
    })
    .unwrap()
}

#[tokio::test]
async fn name_and_wildcard_are_proven_in_one_order() {
    let Some(program) = program() else { return };
    let Some(bind) = Bind::start(&[zone("own.test", "")], &[], "hmac-sha256") else {
        return;
    };
    let pebble = Pebble::start(&program, bind.address);
    let account = pebble.account().await;
    let solver = solver(&bind);
    let now = SystemTime::now();
    let name = "own.test";
    let mut order = order(&account, name).await;
    let fqdn = challenge_fqdn(&bind.client(), name).await.unwrap();
    let mut records = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.unwrap();
        let challenge = authorization.challenge(ChallengeType::Dns01).unwrap();
        let value = challenge.key_authorization().dns_value();
        records.push(TxtRecord::new(&fqdn, value));
    }
    assert_eq!(records.len(), 2);
    assert_ne!(records[0].value, records[1].value);
    for record in &records {
        solver.present(record, now).await.unwrap();
    }
    let settings = propagation::Settings {
        servers: vec![bind.address],
        ..propagation::Settings::default()
    };
    for record in &records {
        let seen = propagation::wait(&bind.client(), record, &settings).await;
        assert_eq!(seen.unwrap(), Propagation::Everywhere { servers: 1 });
    }
    let status = validate(&mut order, &ChallengeType::Dns01).await;
    assert_eq!(status, Ok(OrderStatus::Ready));
    for record in &records {
        solver.remove(record, now).await.unwrap();
    }
}

#[tokio::test]
async fn the_lasting_record_is_accepted_as_we_write_it() {
    let Some(program) = program() else { return };
    let Some(bind) = Bind::start(&[zone("own.test", "")], &[], "hmac-sha256") else {
        return;
    };
    let pebble = Pebble::start(&program, bind.address);
    let account = pebble.account().await;
    let now = SystemTime::now();
    let kind = ChallengeType::Unknown("dns-persist-01".to_owned());
    let mut record = PersistRecord {
        domain: "own.test".to_owned(),
        issuer_domain: "pebble.letsencrypt.org".to_owned(),
        account_uri: account.id().to_owned(),
        wildcard: false,
        persist_until: Some(now + Duration::from_secs(3600)),
    };
    // Without the policy the wildcard is not proven: we and Pebble agree on both.
    for wildcard in [false, true] {
        record.wildcard = wildcard;
        let text = TxtRecord::new(&record.fqdn(), record.value());
        solver(&bind).present(&text, now).await.unwrap();
        let asked = PersistRecord {
            wildcard: true,
            ..record.clone()
        };
        let ours = asked.look(&bind.client(), now).await.unwrap();
        assert_eq!(ours.is_ok(), wildcard, "{ours:?}");
        let mut order = order(&account, "own.test").await;
        match validate(&mut order, &kind).await {
            Ok(status) => assert_eq!(status == OrderStatus::Ready, wildcard, "{status:?}"),
            Err(error) => assert!(!wildcard && error.contains("policy mismatch"), "{error}"),
        }
    }
}
