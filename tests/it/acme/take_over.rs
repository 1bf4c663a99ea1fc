//! What the real certbot, Caddy and Traefik leave after they got a certificate: taken over, served, renewed
//! with their account, revoked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidegate_acme::record::CertificateRecord;

use super::ORDER;
use super::authority::{Authority, Behaviour};
use crate::support::program::{Program, python, run, succeed};
use crate::support::{Edge, Origin, eventually, missing, route_of};

const HOST: &str = "blog.example.com";

/// Where programs of these tests keep things, and what they may trust.
struct Outside {
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Outside {
    fn new(program: &Path) -> Option<Self> {
        if missing(&[program]) {
            return None;
        }
        // certbot gives up at the second nonce that is refused.
        let behaviour = Behaviour {
            bad_nonces: 0,
            ..Behaviour::default()
        };
        Some(Self {
            authority: Authority::start(&behaviour)?,
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.authority.port)
    }

    /// Starts an edge that has taken over the store at `path`.
    fn take_over(&self, program: &'static str, path: PathBuf) -> (Edge, Origin) {
        let origin = Origin::echo();
        let route = route_of(
            "blog",
            &format!(
                "hostnames: [{HOST}]\ntls: {{issuerRef: {{name: pebble}}}}\nrules:\n- backends: [{{address: \"{}\"}}]\n",
                origin.address()
            ),
        );
        let import = move |folder: &Path| {
            let text = succeed(
                Edge::command()
                    .args(["import", "--from", program])
                    .arg(&path)
                    .arg("--dir")
                    .arg(folder.join("objects"))
                    .arg("--state-dir")
                    .arg(folder.join("state")),
            );
            let expected = format!("added   certificate default/blog: {HOST}, valid until");
            assert!(text.contains(&expected), "{text}");
        };
        let edge = self
            .authority
            .edge()
            .object(self.authority.issuer("pebble", ""))
            .object(route)
            .prepare(import)
            .start();
        (edge, origin)
    }
}

fn record(edge: &Edge) -> CertificateRecord {
    let file = edge
        .folder()
        .join("state/acme/certificate/default%2Fblog.json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// Waits until the certificate is another than this.
#[track_caller]
fn wait_for_another(edge: &Edge, chain_pem: &str) -> CertificateRecord {
    eventually("another certificate", ORDER, || {
        let record = record(edge);
        match &record.current {
            Some(current) if current.chain_pem != chain_pem => Ok(record),
            _ => Err(edge.log()),
        }
    })
}

fn ask(edge: &Edge, args: &[&str]) -> String {
    let mut command = Edge::command();
    command
        .args(args)
        .arg("--state-dir")
        .arg(edge.folder().join("state"));
    let (ok, text) = run(&mut command);
    assert!(ok, "{args:?}: {text}{}", edge.log());
    text
}

#[test]
fn caddys_certificate_is_renewed_with_its_account_and_revoked() {
    let caddy = python("caddy");
    let Some(outside) = Outside::new(&caddy) else {
        return;
    };
    let authority = &outside.authority;
    let file = outside.path("Caddyfile");
    let text = format!(
        "{{\n admin off\n http_port {}\n https_port {}\n acme_ca {}\n acme_ca_root {}\n email me@example.com\n}}\n{HOST} {{\n respond hello\n}}\napp.localhost {{\n respond hello\n}}\n",
        authority.http,
        authority.https,
        outside.directory(),
        authority.file("ca.pem").display()
    );
    fs::write(&file, text).unwrap();
    let data = outside.path("data");
    let key = format!("localhost-{}-dir", authority.port);
    let meta = data.join(format!("caddy/certificates/{key}/{HOST}/{HOST}.json"));
    {
        let program = Program::start(
            Command::new(&caddy)
                .args(["run", "--adapter", "caddyfile", "--config"])
                .arg(&file)
                .env("XDG_DATA_HOME", &data)
                .env("XDG_CONFIG_HOME", outside.path("config"))
                .env("HOME", outside.folder.path()),
        );
        eventually("Caddy's certificate", ORDER, || {
            if meta.exists() {
                Ok(())
            } else {
                Err(program.log())
            }
        });
    }
    let (edge, _origin) = outside.take_over("caddy", data);
    let imported = record(&edge).current.unwrap();
    assert!(imported.issuer.is_none());
    assert!(
        !edge.log().contains("ordering a certificate"),
        "{}",
        edge.log()
    );

    ask(&edge, &["renew", "blog"]);
    let renewed = wait_for_another(&edge, &imported.chain_pem);
    let current = renewed.current.unwrap();
    assert_eq!(current.issuer.as_deref(), Some("pebble"));
    let users = edge.folder().join("state/acme/account");
    let accounts: Vec<PathBuf> = fs::read_dir(users)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(accounts.len(), 1, "{accounts:?}");
    let account = fs::read_to_string(&accounts[0]).unwrap();
    let account: serde_json::Value = serde_json::from_str(&account).unwrap();
    let caddys = fs::read_to_string(meta).unwrap();
    let caddys: serde_json::Value = serde_json::from_str(&caddys).unwrap();
    assert_eq!(
        account["url"], caddys["issuer_data"]["account"],
        "the account is Caddy's"
    );

    let text = ask(&edge, &["revoke", HOST, "--reason", "superseded"]);
    assert!(text.contains("default/blog: is revoked"), "{text}");
    wait_for_another(&edge, &current.chain_pem);
    let leaf = current.leaf().unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let serial = parsed.raw_serial_as_string().replace(':', "");
    let path = format!("/cert-status-by-serial/{serial}");
    let status = authority.manage("GET", &path, "");
    assert!(
        status.contains("Revoked") && status.contains('4'),
        "{status}"
    );
}

#[test]
fn certbots_certificate_is_renewed_with_an_account_of_our_own() {
    let certbot = python("certbot");
    let Some(outside) = Outside::new(&certbot) else {
        return;
    };
    let folder = outside.path("letsencrypt");
    succeed(
        Command::new(&certbot)
            .args([
                "certonly",
                "--standalone",
                "--non-interactive",
                "--agree-tos",
            ])
            .args([
                "--email",
                "me@example.com",
                "--no-eff-email",
                "--domain",
                HOST,
            ])
            .args(["--server", &outside.directory()])
            .args(["--http-01-port", &outside.authority.http.to_string()])
            .arg("--config-dir")
            .arg(&folder)
            .arg("--work-dir")
            .arg(outside.path("work"))
            .arg("--logs-dir")
            .arg(outside.path("logs"))
            .env("REQUESTS_CA_BUNDLE", outside.authority.file("ca.pem")),
    );
    let (edge, _origin) = outside.take_over("certbot", folder);
    let imported = record(&edge).current.unwrap();
    ask(&edge, &["renew", "--all"]);
    let renewed = wait_for_another(&edge, &imported.chain_pem);
    assert_eq!(renewed.previous.unwrap().chain_pem, imported.chain_pem);
}

#[test]
fn traefiks_certificate_is_served_at_once() {
    let traefik = python("traefik");
    let Some(outside) = Outside::new(&traefik) else {
        return;
    };
    let routes = outside.path("routes.yaml");
    let text = format!(
        "http:\n  routers:\n    blog:\n      rule: Host(`{HOST}`)\n      service: blog\n      tls: {{certResolver: pebble}}\n  services:\n    blog: {{loadBalancer: {{servers: [{{url: \"http://127.0.0.1:9\"}}]}}}}\n"
    );
    fs::write(&routes, text).unwrap();
    let store = outside.path("acme.json");
    {
        let program = Program::start(
            Command::new(&traefik)
                .arg(format!("--providers.file.filename={}", routes.display()))
                .arg(format!(
                    "--entrypoints.web.address=127.0.0.1:{}",
                    outside.authority.http
                ))
                .arg(format!(
                    "--entrypoints.websecure.address=127.0.0.1:{}",
                    outside.authority.https
                ))
                .arg(format!(
                    "--certificatesresolvers.pebble.acme.caserver={}",
                    outside.directory()
                ))
                .arg(format!(
                    "--certificatesresolvers.pebble.acme.storage={}",
                    store.display()
                ))
                .arg("--certificatesresolvers.pebble.acme.email=me@example.com")
                .arg("--certificatesresolvers.pebble.acme.httpchallenge.entrypoint=web")
                .arg("--global.checknewversion=false")
                .arg("--global.sendanonymoususage=false")
                .env("LEGO_CA_CERTIFICATES", outside.authority.file("ca.pem"))
                .current_dir(outside.folder.path()),
        );
        eventually("Traefik's certificate", ORDER, || {
            let text = fs::read_to_string(&store).unwrap_or_default();
            if text.contains("\"certificate\"") {
                Ok(())
            } else {
                Err(program.log())
            }
        });
    }
    let (edge, _origin) = outside.take_over("traefik", store);
    let imported = record(&edge).current.unwrap();
    assert_eq!(imported.names, [HOST]);
    assert!(
        !edge.log().contains("ordering a certificate"),
        "{}",
        edge.log()
    );
    super::wait_for(
        &edge,
        "blog",
        "CertificateReady",
        "True",
        "CertificateReady",
    );
}
