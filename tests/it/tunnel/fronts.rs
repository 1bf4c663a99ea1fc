//! Nginx and HAProxy in front of the edge, as docs/tunnel.md tells how: TLS ended there, or passed on by SNI with a
//! PROXY protocol header. Visitors and agents come the same way.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

use super::life::talk;
use super::service::Service;
use super::{APP, agent_does, homelab, links};
use crate::support::client::block_on;
use crate::support::edge::PATIENCE;
use crate::support::program::{find, run};
use crate::support::{Client, Edge, Program, eventually, missing, ports, route};

/// A visitor's address, which is not the front's.
const VISITOR: &str = "127.0.0.9";

/// How a front hands connections on.
#[derive(Clone, Copy, PartialEq)]
enum Hands {
    /// It ends TLS, and speaks HTTP with the edge.
    Http,
    /// It looks at the name in the ClientHello and passes bytes on.
    Tls,
}

/// A front on its own port, before an edge that trusts nothing but it.
struct Front {
    port: u16,
    edge: Edge,
    program: Program,
    /// What clients of the front trust.
    ca: std::path::PathBuf,
    service: Service,
    token: String,
}

impl Front {
    #[track_caller]
    fn start(
        hands: Hands,
        program: &str,
        config: impl FnOnce(&Path, u16, &Edge) -> (String, Vec<String>),
    ) -> Self {
        let service = Service::start();
        let (token, hash) = Edge::agent_token();
        let [agent, kept] = homelab(&service.url(), &hash);
        let proxy_protocol = match hands {
            Hands::Http => "off",
            Hands::Tls => "required",
        };
        let edge = Edge::builder()
            .object(agent)
            .object(kept)
            .object(route("dial", "localhost", "127.0.0.1:9"))
            .args(&["--trusted-proxies", "127.0.0.1/32"])
            .args(&["--proxy-protocol", proxy_protocol])
            .start();
        let port = ports::free();
        let folder = edge.folder();
        let names = ["localhost".to_owned(), APP.to_owned()];
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        fs::write(folder.join("front.crt"), certificate.pem()).unwrap();
        fs::write(folder.join("front.key"), key.serialize_pem()).unwrap();
        let both = certificate.pem() + &key.serialize_pem();
        fs::write(folder.join("front.pem"), both).unwrap();
        let (text, args) = config(folder, port, &edge);
        let file = folder.join(format!("{program}.conf"));
        fs::write(&file, text).unwrap();
        let mut command = Command::new(find(program).unwrap());
        command.args(args).arg(&file);
        let program = Program::start(&mut command).wait_for_port(port);
        let ca = match hands {
            Hands::Http => folder.join("front.crt"),
            Hands::Tls => edge.ca_file(),
        };
        Self {
            port,
            edge,
            program,
            ca,
            service,
            token,
        }
    }

    fn agent(&self, what: Option<&str>) -> Command {
        let url = format!("https://localhost:{}", self.port);
        agent_does(what, "homelab", &url, &self.ca, &self.token)
    }

    /// The page as a visitor from elsewhere gets it.
    fn page(&self) -> Result<Value, String> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "30", "--fail", "--interface", VISITOR])
            .args(["--resolve", &format!("{APP}:{}:127.0.0.1", self.port)])
            .args(["-H", "X-Forwarded-For: 6.6.6.6"])
            .arg("--cacert")
            .arg(&self.ca)
            .arg(format!("https://{APP}:{}/page", self.port));
        let (well, said) = run(&mut curl);
        if !well {
            return Err(format!(
                "{said}\n{}\n{}",
                self.program.log(),
                self.edge.log()
            ));
        }
        serde_json::from_str(&said).map_err(|error| format!("{error} in {said}"))
    }

    /// Doctor, agent, page, WebSocket.
    #[track_caller]
    fn serves(&self, verdict: &str, carrier: &str) {
        let (well, said) = run(&mut self.agent(Some("doctor")));
        eprintln!("{said}");
        assert!(well && said.contains(verdict), "{said}");
        let agent = Program::start(&mut self.agent(None));
        let page = eventually("the page", PATIENCE, || {
            self.page()
                .map_err(|error| format!("{error}\n{}", agent.log()))
        });
        let field = |name: &str| page["headers"][name].as_str().unwrap_or_default();
        assert_eq!(field("x-forwarded-for"), VISITOR, "{page}");
        assert_eq!(field("x-real-ip"), VISITOR, "{page}");
        assert_eq!(field("x-forwarded-proto"), "https", "{page}");
        assert_eq!(field("host"), format!("{APP}:{}", self.port), "{page}");
        eventually("two links", PATIENCE, || {
            let all = links(&self.edge);
            if all.len() == 2 && all.iter().all(|it| it["carrier"] == carrier) {
                Ok(())
            } else {
                Err(format!("{all:?}"))
            }
        });
        let client = Client::new(self.port, &fs::read(&self.ca).unwrap());
        let (stop, echoes) = (false.into(), std::sync::atomic::AtomicUsize::new(0));
        let talked = block_on(async {
            let talking = talk(&client, self.port, &stop, &echoes);
            tokio::pin!(talking);
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(50));
            loop {
                tokio::select! {
                    end = &mut talking => break end,
                    _ = looks.tick() => {
                        let enough = echoes.load(std::sync::atomic::Ordering::Relaxed) >= 5;
                        stop.store(enough, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            }
        });
        assert_eq!(talked, Ok(()));
        // Chunk by chunk: the end of this one is not in sight.
        let mut events = Command::new("curl");
        events
            .args(["-sSN", "--max-time", "30"])
            .args(["--resolve", &format!("{APP}:{}:127.0.0.1", self.port)])
            .arg("--cacert")
            .arg(&self.ca)
            .arg(format!("https://{APP}:{}/trickle", self.port));
        let events = Program::start(&mut events);
        eventually("events as they happen", PATIENCE, || {
            let log = events.log();
            if log.lines().count() >= 5 {
                Ok(())
            } else {
                Err(log)
            }
        });
        self.service.release();
    }
}

/// The part of docs/tunnel.md between two lines of a recipe, with the ports and files of this test.
fn recipe(name: &str, changes: &[(&str, &str)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tunnel.md");
    let text = fs::read_to_string(file).unwrap();
    let begin = format!("```text\n# {name}\n");
    let (_, rest) = text
        .split_once(&begin)
        .unwrap_or_else(|| panic!("no {begin:?} in docs/tunnel.md"));
    let (recipe, _) = rest.split_once("```").unwrap();
    let mut recipe = recipe.to_owned();
    for (from, to) in changes {
        assert!(recipe.contains(from), "no {from:?} in {recipe}");
        recipe = recipe.replace(from, to);
    }
    recipe
}

/// What belongs around a recipe for nginx in a test.
fn nginx(folder: &Path, recipe: &str) -> (String, Vec<String>) {
    let mut text =
        String::from("daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;\n");
    if recipe.trim_start().starts_with("stream") {
        text.push_str("load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n");
        let _ = writeln!(text, "events {{ }}\n{recipe}");
    } else {
        let _ = writeln!(
            text,
            "events {{ }}\nhttp {{ access_log off;\nclient_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; \
             uwsgi_temp_path u; scgi_temp_path s;\n{recipe} }}"
        );
    }
    let folder = folder.display().to_string();
    (text, ["-p", &folder, "-c"].map(str::to_owned).to_vec())
}

#[test]
fn an_edge_behind_nginx_serves_its_agents() {
    if missing(&["nginx", "curl"]) || missing(&["/usr/lib/nginx/modules/ngx_stream_module.so"]) {
        return;
    }
    let ended = Front::start(Hands::Http, "nginx", |folder, port, edge| {
        let at = |name: &str| folder.join(name).display().to_string();
        let recipe = recipe(
            "nginx, which ends TLS",
            &[
                (
                    "listen 443 ssl http2",
                    &format!("listen 127.0.0.1:{port} ssl http2"),
                ),
                ("/etc/ssl/example.com.pem", &at("front.crt")),
                ("/etc/ssl/example.com.key", &at("front.key")),
                (".example.com", &format!("localhost {APP}")),
                ("127.0.0.1:8080", &format!("127.0.0.1:{}", edge.http)),
            ],
        );
        nginx(folder, &recipe)
    });
    ended.serves(
        "WebSocket works; the direct carrier does not, because something in between opens TLS",
        "WebSocket",
    );
    let passed = Front::start(Hands::Tls, "nginx", |folder, port, edge| {
        let recipe = recipe(
            "nginx, which passes TLS on",
            &[
                ("listen 443;", &format!("listen 127.0.0.1:{port};")),
                ("127.0.0.1:8443", &format!("127.0.0.1:{}", edge.https)),
            ],
        );
        nginx(folder, &recipe)
    });
    passed.serves("both carriers work", "Direct");
}

#[test]
fn an_edge_behind_haproxy_serves_its_agents() {
    if missing(&["haproxy", "curl"]) {
        return;
    }
    let around = "defaults\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n";
    let ended = Front::start(Hands::Http, "haproxy", |folder, port, edge| {
        let recipe = recipe(
            "HAProxy, which ends TLS",
            &[
                ("bind :443 ", &format!("bind 127.0.0.1:{port} ")),
                (
                    "/etc/ssl/example.com.pem",
                    &folder.join("front.pem").display().to_string(),
                ),
                ("127.0.0.1:8080", &format!("127.0.0.1:{}", edge.http)),
            ],
        );
        (
            format!("{around}{recipe}"),
            vec!["-db".to_owned(), "-f".to_owned()],
        )
    });
    ended.serves(
        "WebSocket works; the direct carrier does not, because something in between opens TLS",
        "WebSocket",
    );
    let passed = Front::start(Hands::Tls, "haproxy", |_, port, edge| {
        let recipe = recipe(
            "HAProxy, which passes TLS on by name",
            &[
                ("bind :443\n", &format!("bind 127.0.0.1:{port}\n")),
                (".example.com", " localhost home.example.com"),
                ("127.0.0.1:8443", &format!("127.0.0.1:{}", edge.https)),
            ],
        );
        (
            format!("{around}{recipe}"),
            vec!["-db".to_owned(), "-f".to_owned()],
        )
    });
    passed.serves("both carriers work", "Direct");
}
