//! The proxies under test, each set up to do the same: one worker, TLS with the same certificate,
//! the same forwarding headers, connections to the origin kept, no access log.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{shell, tools};

/// A proxy that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proxy {
    Tidegate,
    Nginx,
    Haproxy,
    Caddy,
    Traefik,
}

/// All of them, in the order of the report.
pub(super) const ALL: [Proxy; 5] = [
    Proxy::Tidegate,
    Proxy::Nginx,
    Proxy::Haproxy,
    Proxy::Caddy,
    Proxy::Traefik,
];

/// What a proxy is to serve.
pub(super) struct Setup<'a> {
    /// Where it listens, on 127.0.0.1.
    pub(super) port: u16,
    /// Where everything goes.
    pub(super) origin: u16,
    /// Hostnames, each with a route of its own.
    pub(super) hosts: &'a [String],
    /// Whether the origin is a tracker.
    pub(super) tracker: bool,
    /// Certificate chain and key, PEM.
    pub(super) certificate: &'a Path,
    pub(super) key: &'a Path,
    /// A folder for its files.
    pub(super) folder: &'a Path,
}

impl Proxy {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "tidegate",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
            Self::Traefik => "traefik",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Self> {
        ALL.into_iter()
            .find(|proxy| proxy.name() == name)
            .with_context(|| format!("no proxy {name:?}: {}", ALL.map(Self::name).join(", ")))
    }

    /// The version as the program tells it.
    pub(super) fn version(self) -> Result<String> {
        let program = self.program()?;
        let mut command = Command::new(&program);
        let text = match self {
            Self::Tidegate => shell::output(command.arg("--version"))?,
            Self::Nginx => {
                // nginx tells its version on stderr.
                let output = command.arg("-v").output().context("run nginx -v")?;
                String::from_utf8_lossy(&output.stderr).into_owned()
            }
            Self::Haproxy => shell::output(command.arg("-v"))?,
            Self::Caddy | Self::Traefik => shell::output(command.arg("version"))?,
        };
        let word = text
            .split(|c: char| c.is_whitespace() || c == '/')
            .map(|word| word.trim_start_matches('v'))
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        Ok(word.unwrap_or("?").to_owned())
    }

    pub(super) fn program(self) -> Result<PathBuf> {
        match self {
            Self::Tidegate => {
                let folder =
                    std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
                Ok(shell::root().join(folder).join("release/tidegate"))
            }
            Self::Nginx | Self::Haproxy => shell::find(self.name())
                .with_context(|| format!("{} is not installed", self.name())),
            Self::Caddy | Self::Traefik => {
                Ok(tools::python("bench", "xtask/bench/requirements.txt")?
                    .join("bin")
                    .join(self.name()))
            }
        }
    }

    /// Writes the configuration and returns the command that serves it.
    pub(super) fn command(self, setup: &Setup<'_>) -> Result<Command> {
        fs::create_dir_all(setup.folder).context("create the proxy's folder")?;
        let mut command = Command::new(self.program()?);
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = setup.folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        match self {
            Self::Tidegate => {
                let objects = setup.folder.join("objects");
                fs::create_dir_all(&objects).context("create the objects' folder")?;
                write("objects/certificate.yaml", &tidegate_certificate(setup)?)?;
                write("objects/routes.yaml", &tidegate_routes(setup))?;
                command
                    .arg("run")
                    .arg(&objects)
                    .args(["--https", &format!("127.0.0.1:{}", setup.port)])
                    .args(["--http", "off", "--admin", "off"])
                    .args(["--workers", "1", "--access-log", "off"])
                    .arg("--state-dir")
                    .arg(setup.folder.join("state"));
            }
            Self::Nginx => {
                let path = write("nginx.conf", &nginx(setup))?;
                command.arg("-p").arg(setup.folder).arg("-c").arg(path);
            }
            Self::Haproxy => {
                let pem = fs::read_to_string(setup.certificate)? + &fs::read_to_string(setup.key)?;
                write("both.pem", &pem)?;
                let mut map = String::new();
                for host in setup.hosts {
                    writeln!(map, "{host} origin")?;
                }
                write("hosts.map", &map)?;
                let path = write("haproxy.cfg", &haproxy(setup))?;
                command.arg("-db").arg("-f").arg(path);
            }
            Self::Caddy => {
                let path = write("Caddyfile", &caddy(setup))?;
                command
                    .args(["run", "--adapter", "caddyfile", "--config"])
                    .arg(path)
                    .env("GOMAXPROCS", "1")
                    .env("XDG_DATA_HOME", setup.folder)
                    .env("XDG_CONFIG_HOME", setup.folder);
            }
            Self::Traefik => {
                write("dynamic.yml", &traefik_dynamic(setup))?;
                let path = write("traefik.yml", &traefik(setup))?;
                command
                    .arg(format!("--configFile={}", path.display()))
                    .env("GOMAXPROCS", "1");
            }
        }
        Ok(command)
    }
}

fn tidegate_certificate(setup: &Setup<'_>) -> Result<String> {
    let indented = |path: &Path| -> Result<String> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Ok(text
            .lines()
            .fold(String::new(), |all, line| all + "    " + line + "\n"))
    };
    Ok(format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bench-tls}}\ntype: kubernetes.io/tls\nstringData:\n\
         \x20 tls.crt: |\n{}\x20 tls.key: |\n{}",
        indented(setup.certificate)?,
        indented(setup.key)?,
    ))
}

fn tidegate_routes(setup: &Setup<'_>) -> String {
    let mut text = String::new();
    for (index, host) in setup.hosts.iter().enumerate() {
        let _ = write!(
            text,
            "---\napiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {{name: r{index}}}\nspec:\n\
             \x20 hostnames: [{host}]\n\
             \x20 tls: {{secretName: bench-tls}}\n\
             \x20 rules:\n\
             \x20 - backends: [{{address: \"127.0.0.1:{}\"}}]\n{}",
            setup.origin,
            if setup.tracker {
                "    tracker: {type: HTTP}\n"
            } else {
                ""
            },
        );
    }
    text
}

fn nginx(setup: &Setup<'_>) -> String {
    let mut text = format!(
        "daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; server_tokens off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  server_names_hash_max_size 65536; server_names_hash_bucket_size 128;
  ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
  keepalive_requests 1000000; keepalive_timeout 600s; client_max_body_size 0;
  proxy_request_buffering off; proxy_http_version 1.1; proxy_read_timeout 600s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 64; keepalive_requests 1000000; }}
  proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;
  proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Port $server_port;
  proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
",
        certificate = setup.certificate.display(),
        key = setup.key.display(),
        origin = setup.origin,
    );
    for (index, host) in setup.hosts.iter().enumerate() {
        let backlog = if index == 0 { " backlog=4096" } else { "" };
        let _ = writeln!(
            text,
            "  server {{ listen 127.0.0.1:{} ssl http2{backlog}; server_name {host}; location / {{ proxy_pass http://origin; }} }}",
            setup.port
        );
    }
    text + "}\n"
}

fn haproxy(setup: &Setup<'_>) -> String {
    format!(
        "global
  nbthread 1
  maxconn 9000
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout tunnel 1h
  http-reuse always
frontend edge
  bind 127.0.0.1:{port} ssl crt {folder}/both.pem alpn h2,http/1.1
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Real-IP %[src]
  http-request set-header X-Forwarded-Proto https
  http-request set-header X-Forwarded-Port %[dst_port]
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  use_backend %[req.hdr(host),field(1,:),lower,map({folder}/hosts.map)]
backend origin
  server origin 127.0.0.1:{origin}
",
        port = setup.port,
        folder = setup.folder.display(),
        origin = setup.origin,
    )
}

fn caddy(setup: &Setup<'_>) -> String {
    let mut text =
        String::from("{\n  auto_https off\n  admin off\n  log {\n    level ERROR\n  }\n}\n");
    for host in setup.hosts {
        let _ = write!(
            text,
            "https://{host}:{port} {{
  bind 127.0.0.1
  tls {certificate} {key}
  reverse_proxy 127.0.0.1:{origin} {{
    header_up X-Real-IP {{remote_host}}
    header_up X-Forwarded-Port {port}
    transport http {{
      compression off
      keepalive_idle_conns_per_host 64
    }}
  }}
}}
",
            port = setup.port,
            certificate = setup.certificate.display(),
            key = setup.key.display(),
            origin = setup.origin,
        );
    }
    text
}

fn traefik(setup: &Setup<'_>) -> String {
    format!(
        "global: {{checkNewVersion: false, sendAnonymousUsage: false}}
log: {{level: ERROR}}
entryPoints:
  websecure:
    address: 127.0.0.1:{port}
    transport: {{respondingTimeouts: {{readTimeout: 0s, idleTimeout: 600s}}}}
providers:
  file: {{filename: {folder}/dynamic.yml, watch: false}}
serversTransport: {{maxIdleConnsPerHost: 64}}
",
        port = setup.port,
        folder = setup.folder.display(),
    )
}

fn traefik_dynamic(setup: &Setup<'_>) -> String {
    let mut text = format!(
        "tls:
  stores: {{default: {{defaultCertificate: {{certFile: {certificate}, keyFile: {key}}}}}}}
http:
  services:
    origin: {{loadBalancer: {{servers: [{{url: \"http://127.0.0.1:{origin}\"}}]}}}}
  routers:
",
        certificate = setup.certificate.display(),
        key = setup.key.display(),
        origin = setup.origin,
    );
    for (index, host) in setup.hosts.iter().enumerate() {
        let _ = writeln!(
            text,
            "    r{index}: {{entryPoints: [websecure], rule: \"Host(`{host}`)\", service: origin, tls: {{}}}}"
        );
    }
    text
}

/// What a tracker answers to an announce, with fifty peers.
fn announced() -> String {
    format!(
        "d8:completei20e10:incompletei30e8:intervali120e12:min intervali120e5:peers300:{}6:peers60:e",
        "p".repeat(300)
    )
}

/// The origin: nginx on one worker, with a file of 1 KiB, one of 1 MiB and a tracker's answer.
pub(super) fn origin(port: u16, folder: &Path) -> Result<Command> {
    let Some(program) = shell::find("nginx") else {
        bail!("nginx, which is the origin of every measurement, is not installed");
    };
    fs::create_dir_all(folder.join("www")).context("create the origin's folder")?;
    fs::write(folder.join("www/1k"), vec![b'x'; 1024]).context("write a file")?;
    fs::write(folder.join("www/1m"), vec![b'x'; 1 << 20]).context("write a file")?;
    let text = format!(
        "daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; tcp_nopush on; open_file_cache max=16;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  keepalive_requests 10000000; keepalive_timeout 600s;
  server {{
    listen 127.0.0.1:{port} backlog=4096; root {folder}/www;
    location = /announce {{ default_type text/plain; return 200 \"{peers}\"; }}
  }}
}}
",
        folder = folder.display(),
        peers = announced(),
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, text).context("write the origin's configuration")?;
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).arg("-c").arg(path);
    Ok(command)
}
