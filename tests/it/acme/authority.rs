//! Pebble and its DNS server: a certification authority of the test's own, strict and full of faults.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::edge::Builder;
use crate::support::{Edge, Program, missing, ports, program, secret};

/// A program that `cargo xtask tools` built.
pub(crate) fn tool(name: &str) -> PathBuf {
    program::tools().join("bin").join(name)
}

/// The authority whose limits are known by its name; its certificate has that one too.
pub(crate) const LETS_ENCRYPT: &str = "acme-v02.api.letsencrypt.org";

/// How Pebble is to behave.
#[derive(Clone)]
pub(crate) struct Behaviour {
    /// Life of certificates, in seconds.
    pub(crate) lifetime: u64,
    /// Percentage of requests whose nonce is refused for no reason.
    pub(crate) bad_nonces: u8,
    /// Percentage of orders for which a valid authorization is used again.
    pub(crate) reused_authorizations: u8,
    /// External keys by identifier; if there are any, one is required.
    pub(crate) external_keys: Vec<(String, String)>,
    /// Names that it refuses.
    pub(crate) refused_names: Vec<String>,
    /// Port of another name server on loopback that it asks instead of its own.
    pub(crate) name_server: Option<u16>,
}

impl Behaviour {
    /// Without faults of its own, so that every exchange means something.
    pub(crate) fn calm() -> Self {
        Self {
            bad_nonces: 0,
            reused_authorizations: 0,
            ..Self::default()
        }
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            lifetime: 7_776_000,
            bad_nonces: 15,
            reused_authorizations: 50,
            external_keys: Vec::new(),
            refused_names: vec!["refused.example".to_owned()],
            name_server: None,
        }
    }
}

/// A running authority. Dropping ends it.
pub(crate) struct Authority {
    pebble: Option<Program>,
    command: Command,
    _dns: Program,
    folder: TempDir,
    /// Port of the directory.
    pub(crate) port: u16,
    management: u16,
    /// Port at which its own name server is told what to answer.
    pub(crate) dns_management: u16,
    /// Port of the name server.
    pub(crate) dns: u16,
    /// Port at which it looks for http-01 answers.
    pub(crate) http: u16,
    /// Port at which it looks for tls-alpn-01 answers.
    pub(crate) https: u16,
}

impl Authority {
    /// Starts one; None, said loudly, where the programs are missing.
    pub(crate) fn start(behaviour: &Behaviour) -> Option<Self> {
        let (pebble, dns_server) = (tool("pebble"), tool("pebble-challtestsrv"));
        if missing(&[&pebble, &dns_server]) {
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("tidegate-acme-")
            .tempdir()
            .unwrap();
        make_certificates(folder.path());
        let (port, management) = (ports::free(), ports::free());
        let (dns, dns_management) = (ports::free(), ports::free());
        let (http, https) = (ports::free(), ports::free());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let external: serde_json::Map<String, Value> = behaviour
            .external_keys
            .iter()
            .map(|(id, key)| (id.clone(), json!(key)))
            .collect();
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": path("server.pem"),
            "privateKey": path("server.key"),
            "httpPort": http,
            "tlsPort": https,
            "externalAccountBindingRequired": !external.is_empty(),
            "externalAccountMACKeys": external,
            "domainBlocklist": behaviour.refused_names,
            "retryAfter": {"authz": 1, "order": 1},
            "keyAlgorithm": "ecdsa",
            "profiles": {
                "default": {
                    "description": "the usual",
                    "validityPeriod": behaviour.lifetime
                },
                "shortlived": {"description": "six days", "validityPeriod": 518_400},
            },
        }});
        fs::write(folder.path().join("pebble.json"), config.to_string()).unwrap();
        let dns_program = Program::start(
            Command::new(dns_server)
                .args(["-dnsserver", &format!("127.0.0.1:{dns}")])
                .args(["-management", &format!("127.0.0.1:{dns_management}")])
                .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""])
                .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]),
        )
        .wait_for_port(dns_management);
        let dns = behaviour.name_server.unwrap_or(dns);
        let mut command = Command::new(pebble);
        command
            .args(["-strict", "-config", &path("pebble.json")])
            .args(["-dnsserver", &format!("127.0.0.1:{dns}")])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", behaviour.bad_nonces.to_string())
            .env(
                "PEBBLE_AUTHZREUSE",
                behaviour.reused_authorizations.to_string(),
            );
        let pebble = Program::start(&mut command).wait_for_port(port);
        Some(Self {
            pebble: Some(pebble),
            command,
            _dns: dns_program,
            folder,
            port,
            management,
            dns_management,
            dns,
            http,
            https,
        })
    }

    /// How many orders it has made since it was started.
    pub(crate) fn orders(&self) -> usize {
        let log = self.pebble.as_ref().map(Program::log).unwrap_or_default();
        log.matches("Added order").count()
    }

    /// Ends it. Its memory is gone.
    pub(crate) fn stop(&mut self) {
        self.pebble = None;
    }

    /// Starts it again after [`Self::stop`], without accounts and with another root.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.pebble = Some(Program::start(&mut self.command).wait_for_port(self.port));
    }

    /// An edge that this authority can reach and that asks its name server.
    pub(crate) fn edge(&self) -> Builder {
        Edge::builder()
            .ports(self.http, self.https)
            .arg("--name-server")
            .arg(&format!("127.0.0.1:{}", self.dns))
            .arg("--acme-http-port")
            .arg(&self.http.to_string())
            .arg("--acme-tls-port")
            .arg(&self.https.to_string())
            .object(self.trust())
    }

    /// The Secret with the CA of the directory's own certificate.
    pub(crate) fn trust(&self) -> String {
        let ca = fs::read_to_string(self.folder.path().join("ca.pem")).unwrap();
        secret("authority-ca", "Opaque", &[("ca.crt", &ca)])
    }

    /// An AcmeIssuer for it, with further lines of the spec.
    pub(crate) fn issuer(&self, name: &str, more: &str) -> String {
        Self::issuer_at(name, self.port, more)
    }

    /// The same behind another port.
    pub(crate) fn issuer_at(name: &str, port: u16, more: &str) -> String {
        // Left to itself, Pebble takes any of its profiles.
        let profile = if more.contains("  profile: ") {
            ""
        } else {
            "  profile: default\n"
        };
        format!(
            "apiVersion: edge.tidegate.dev/v1alpha1\nkind: AcmeIssuer\nmetadata: {{name: {name}}}\nspec:\n  \
             directory: https://localhost:{port}/dir\n  termsOfServiceAgreed: true\n  caSecretName: authority-ca\n{profile}{more}"
        )
    }

    /// A file of the authority's folder, such as `ca.pem`, `server.pem` or `server.key`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The root that issued certificates lead to.
    pub(crate) fn root(&self) -> String {
        self.manage("GET", "/roots/0", "")
    }

    /// Asks the authority's management interface.
    pub(crate) fn manage(&self, method: &str, path: &str, body: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "30", "-X", method, "--cacert"])
            .arg(self.file("ca.pem"))
            .arg(format!("https://localhost:{}{path}", self.management));
        if !body.is_empty() {
            curl.args(["--data-binary", body]);
        }
        program::succeed(&mut curl)
    }

    /// Changes what the name server answers: `add-a`, `set-default-ipv4`, `add-caa`, `set-servfail` ….
    pub(crate) fn dns(&self, action: &str, body: &Value) {
        program::succeed(
            Command::new("curl")
                .args(["-sS", "--fail", "--max-time", "30", "-d", &body.to_string()])
                .arg(format!("http://127.0.0.1:{}/{action}", self.dns_management)),
        );
    }
}

/// A CA and a certificate for localhost signed by it.
fn make_certificates(folder: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.distinguished_name
        .push(DnType::CommonName, "authority of a test");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    fs::write(folder.join("ca.pem"), ca_certificate.pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let names = ["localhost", "127.0.0.1", LETS_ENCRYPT].map(str::to_owned);
    let names = Vec::from(names);
    let server = CertificateParams::new(names).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    fs::write(folder.join("server.pem"), server.pem()).unwrap();
    fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
}

/// step-ca: another authority, whose certificates live five minutes.
pub(crate) struct StepCa {
    _program: Program,
    folder: TempDir,
    port: u16,
}

impl StepCa {
    /// Starts one that looks where the other authority looks; None, said loudly, where it is missing.
    pub(crate) fn start(beside: &Authority) -> Option<Self> {
        let program = tool("step-ca");
        if missing(&[&program]) {
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("tidegate-step-")
            .tempdir()
            .unwrap();
        let root_key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name
            .push(DnType::CommonName, "step root");
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let issuer = Issuer::new(root, root_key);
        let key = KeyPair::generate().unwrap();
        let mut signer = CertificateParams::new(Vec::new()).unwrap();
        signer.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        signer
            .distinguished_name
            .push(DnType::CommonName, "step signer");
        signer.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signer_pem = signer.signed_by(&key, &issuer).unwrap().pem();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("root.pem"), root_pem).unwrap();
        fs::write(path("signer.pem"), signer_pem).unwrap();
        fs::write(path("signer.key"), key.serialize_pem()).unwrap();
        let (port, lists) = (ports::free(), ports::free());
        let list = format!("http://127.0.0.1:{lists}/crl");
        let template = format!(
            r#"{{"subject": {{{{ toJson .Subject }}}}, "sans": {{{{ toJson .SANs }}}},
                "keyUsage": ["digitalSignature"], "extKeyUsage": ["serverAuth", "clientAuth"],
                "crlDistributionPoints": ["{list}"]}}"#
        );
        let config = json!({
            "insecureAddress": format!("127.0.0.1:{lists}"),
            "crl": {"enabled": true, "generateOnRevoke": true, "idpURL": list},
            "root": path("root.pem"),
            "crt": path("signer.pem"),
            "key": path("signer.key"),
            "address": format!("127.0.0.1:{port}"),
            "dnsNames": ["localhost"],
            "db": {"type": "badgerv2", "dataSource": path("db")},
            "authority": {"provisioners": [{
                "type": "ACME",
                "name": "acme",
                "options": {"x509": {"template": template}},
                "claims": {
                    "minTLSCertDuration": "1m",
                    "defaultTLSCertDuration": "5m",
                    "maxTLSCertDuration": "10m",
                },
            }]},
        });
        fs::write(path("ca.json"), config.to_string()).unwrap();
        let program = Program::start(
            Command::new(program)
                .arg(path("ca.json"))
                .args(["--resolver", &format!("127.0.0.1:{}", beside.dns)])
                .args(["--acme-http-port", &beside.http.to_string()])
                .args(["--acme-tls-port", &beside.https.to_string()])
                .arg("--insecure"),
        )
        .wait_for_port(port);
        Some(Self {
            _program: program,
            folder,
            port,
        })
    }

    /// Revokes a certificate in the name of whoever has its key, by step-ca's own interface.
    pub(crate) fn revoke(&self, chain_pem: &str, key_pem: &str, serial: &str) {
        let path = |name: &str| self.folder.path().join(name);
        fs::write(path("revoked.pem"), chain_pem).unwrap();
        fs::write(path("revoked.key"), key_pem).unwrap();
        let request = json!({"serial": serial, "reasonCode": 1, "passive": true});
        program::succeed(
            Command::new("curl")
                .args(["-sS", "--fail-with-body", "--max-time", "30"])
                .arg("--cacert")
                .arg(path("root.pem"))
                .arg("--cert")
                .arg(path("revoked.pem"))
                .arg("--key")
                .arg(path("revoked.key"))
                .args(["-H", "content-type: application/json"])
                .args(["-d", &request.to_string()])
                .arg(format!("https://localhost:{}/1.0/revoke", self.port)),
        );
    }

    /// The root of its certificates and of its directory.
    pub(crate) fn root(&self) -> String {
        fs::read_to_string(self.folder.path().join("root.pem")).unwrap()
    }

    /// The Secret with its root, and an AcmeIssuer for it.
    pub(crate) fn issuer(&self, name: &str) -> String {
        let trust = secret("step-ca", "Opaque", &[("ca.crt", &self.root())]);
        format!(
            "{trust}---\napiVersion: edge.tidegate.dev/v1alpha1\nkind: AcmeIssuer\nmetadata: {{name: {name}}}\nspec:\n  \
             directory: https://localhost:{}/acme/acme/directory\n  termsOfServiceAgreed: true\n  caSecretName: step-ca\n",
            self.port
        )
    }
}
