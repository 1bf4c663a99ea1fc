//! The provider APIs' adapter against a real `PowerDNS`: the one provider that can be run at home.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use tidegate_model::Secret;

use crate::dns::providers::{Settings, solver};
use crate::dns::{DnsClient, TxtRecord, parse_name};

const SERVER: &str = "/usr/sbin/pdns_server";
const SCHEMA: &str = "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql";

struct PowerDns {
    child: Child,
    dns: SocketAddr,
    api: SocketAddr,
    _folder: TempDir,
}

impl Drop for PowerDns {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// Starts one; None, said loudly, where it is not installed.
fn start() -> Option<PowerDns> {
    for file in [SERVER, "/usr/bin/pdnsutil", "/usr/bin/sqlite3", SCHEMA] {
        if !std::path::Path::new(file).exists() {
            super::missing(file);
            return None;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().display();
    let (dns, api) = (free(), free());
    let base = format!("launch=gsqlite3\ngsqlite3-database={dir}/db\n");
    std::fs::write(folder.path().join("pdns.conf"), base).unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    };
    run(
        "sqlite3",
        &[&format!("{dir}/db"), &format!(".read {SCHEMA}")],
    );
    let config_dir = format!("--config-dir={dir}");
    run(
        "pdnsutil",
        &[
            &config_dir,
            "create-zone",
            "example.test",
            "ns.example.test",
        ],
    );
    let child = Command::new(SERVER)
        .args([
            config_dir.as_str(),
            "--daemon=no",
            "--guardian=no",
            &format!("--socket-dir={dir}"),
            "--local-address=127.0.0.1",
            &format!("--local-port={}", dns.port()),
            "--api=yes",
            "--api-key=api-key-1",
            "--webserver-address=127.0.0.1",
            &format!("--webserver-port={}", api.port()),
            "--cache-ttl=0",
            "--query-cache-ttl=0",
            "--negquery-cache-ttl=0",
            "--zone-cache-refresh-interval=0",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = PowerDns {
        child,
        dns,
        api,
        _folder: folder,
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    for address in [dns, api] {
        while std::net::TcpStream::connect(address).is_err() {
            assert!(
                Instant::now() < deadline,
                "pdns_server does not listen at {address}"
            );
            super::breathe();
        }
    }
    Some(server)
}

#[tokio::test]
async fn two_values_live_under_one_name_and_go_one_by_one() {
    let Some(server) = start() else { return };
    let resolver = DnsClient::new(vec![server.dns], Duration::from_secs(5));
    let mut settings = Settings {
        provider: "pdns".to_owned(),
        credentials: BTreeMap::from([
            ("apiKey".to_owned(), Secret::new("api-key-1".to_owned())),
            (
                "endpoint".to_owned(),
                Secret::new(format!("http://{}", server.api)),
            ),
        ]),
        // Found by SOA.
        zone: None,
        timeout: Duration::from_secs(10),
    };
    let pdns = solver(&settings, resolver.clone()).unwrap();
    let name = parse_name("_acme-challenge.example.test.").unwrap();
    let record = |value: &str| TxtRecord::new("_acme-challenge.example.test", value);
    let now = SystemTime::now();
    let texts = async || {
        let mut texts = resolver.texts(&name).await.unwrap();
        texts.sort();
        texts
    };
    pdns.present(&record("one"), now).await.unwrap();
    pdns.present(&record("two"), now).await.unwrap();
    pdns.present(&record("two"), now).await.unwrap();
    assert_eq!(texts().await, ["one", "two"]);
    pdns.remove(&record("one"), now).await.unwrap();
    assert_eq!(texts().await, ["two"]);
    pdns.remove(&record("two"), now).await.unwrap();
    pdns.remove(&record("two"), now).await.unwrap();
    assert!(texts().await.is_empty());

    settings
        .credentials
        .insert("apiKey".to_owned(), Secret::new("wrong-key".to_owned()));
    let error = solver(&settings, resolver.clone())
        .unwrap()
        .present(&record("x"), now)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "pdns: Unauthorized");
    assert!(error.fix().contains("may edit the zone's records"));
}
