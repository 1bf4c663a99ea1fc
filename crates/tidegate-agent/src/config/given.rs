//! What flags and the environment say, and how it is joined with the file.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use hyper_util::client::proxy::matcher::Matcher;
use tidegate_model::{
    AgentId, AgentTarget, HostPattern, ProxyProtocolVersion, RequestedMapping, Secret,
};

use super::file::{File, FileMapping};
use super::{
    Config, Edge, LINKS, MOST_LINKS, MOST_MAPPINGS, Problem, Proxies, STATUS, TargetRule,
    TokenSource,
};

/// What was given outside the file. It wins over the file.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// File of YAML.
    pub config: Option<PathBuf>,
    /// Edges.
    pub edge: Vec<String>,
    /// `NAMESPACE/NAME`
    pub agent: Option<String>,
    /// The token itself; from the environment only.
    pub token: Option<Secret<String>>,
    /// File of the token.
    pub token_file: Option<PathBuf>,
    /// URL of a proxy, or `none`.
    pub proxy: Option<String>,
    /// File of authorities in PEM.
    pub ca_file: Option<PathBuf>,
    /// How many links.
    pub links: Option<u64>,
    /// Address of the status page, or `off`.
    pub status: Option<String>,
    /// Where the agent may connect.
    pub allow_target: Vec<String>,
    /// Mappings as `HOSTNAME=TARGET`.
    pub expose: Vec<String>,
}

impl Given {
    /// A configuration, or everything that is wrong.
    pub(super) fn join(&self, file: File) -> Result<Config, Vec<Problem>> {
        let mut problems = Vec::new();
        let edges = self.edges(file.edge.0, &mut problems);
        let agent = agent(self.agent.clone().or(file.agent), &mut problems);
        let token = self.token(file.token_file, &mut problems);
        let proxy = proxy(self.proxy.clone().or(file.proxy), &mut problems);
        let ca_file = self.ca_file.clone().or(file.ca_file);
        let links = links(self.links.or(file.links), &mut problems);
        let status = status(self.status.clone().or(file.status), &mut problems);
        let rules = if self.allow_target.is_empty() {
            file.allow_targets.0
        } else {
            self.allow_target.clone()
        };
        let allow_targets = allow_targets(&rules, &mut problems);
        let mut mappings = Vec::new();
        for (index, mapping) in file.mappings.into_iter().enumerate() {
            let place = format!("mappings[{index}]");
            mappings.extend(check_mapping(&place, mapping, &mut problems));
        }
        for exposed in &self.expose {
            mappings.extend(expose(exposed, &mut problems));
        }
        unique(&mappings, &mut problems);
        match (agent, token) {
            (Some(agent), Some(token)) if problems.is_empty() => Ok(Config {
                edges,
                agent,
                token,
                proxy,
                ca_file,
                links,
                status,
                allow_targets,
                mappings,
            }),
            _ => Err(problems),
        }
    }

    fn edges(&self, file: Vec<String>, problems: &mut Vec<Problem>) -> Vec<Edge> {
        let given = if self.edge.is_empty() {
            file
        } else {
            self.edge.clone()
        };
        if given.is_empty() {
            problems.push(Problem::new(
                "edge",
                "no edge is given",
                "write edge: https://edge.example.com, or give --edge or TIDEGATE_AGENT_EDGE",
            ));
        }
        let mut edges = Vec::new();
        for text in given {
            match Edge::parse(text.trim()) {
                Ok(edge) if !edges.contains(&edge) => edges.push(edge),
                Ok(_) => {}
                Err(found) => problems.push(Problem::new(
                    "edge",
                    found,
                    "write one such as https://edge.example.com or https://edge.example.com:8443",
                )),
            }
        }
        edges
    }

    fn token(&self, file: Option<PathBuf>, problems: &mut Vec<Problem>) -> Option<TokenSource> {
        if let Some(path) = &self.token_file {
            return Some(TokenSource::File(path.clone()));
        }
        if let Some(token) = &self.token {
            return Some(TokenSource::Environment(token.clone()));
        }
        if file.is_none() {
            problems.push(Problem::new(
                "tokenFile",
                "no token is given",
                "write tokenFile: /path/of/the/token, or give --token-file, or TIDEGATE_AGENT_TOKEN \
                 in the environment; `tidegate agent token` makes one",
            ));
        }
        file.map(TokenSource::File)
    }
}

fn agent(text: Option<String>, problems: &mut Vec<Problem>) -> Option<AgentId> {
    let mend = "write NAMESPACE/NAME of its TunnelAgent, such as default/homelab";
    let Some(text) = text else {
        problems.push(Problem::new(
            "agent",
            "it is not said who the agent is",
            mend,
        ));
        return None;
    };
    let (namespace, name) = text.split_once('/').unwrap_or(("default", &text));
    let is_name = |part: &str| {
        let inside = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        (1..=253).contains(&part.len())
            && part.bytes().all(inside)
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    if !is_name(namespace) || !is_name(name) {
        problems.push(Problem::new(
            "agent",
            format!("{text:?} is no name of an object"),
            mend,
        ));
        return None;
    }
    Some(AgentId::new(namespace, name))
}

fn proxy(text: Option<String>, problems: &mut Vec<Problem>) -> Proxies {
    let Some(text) = text else {
        return environment(problems);
    };
    if matches!(&*text, "none" | "off") {
        return Proxies::None;
    }
    let scheme = match text.split_once("://") {
        Some((scheme, _)) => scheme.to_ascii_lowercase(),
        None => "http".to_owned(),
    };
    let known = matches!(&*scheme, "http" | "https" | "socks5" | "socks5h");
    let uri = http::Uri::from_static("https://edge.invalid");
    // It may hold a password, so nothing of it is repeated but its scheme.
    if !known {
        problems.push(Problem::new(
            "proxy",
            format!("its scheme is {scheme:?}"),
            "write http://, https:// or socks5://, or none",
        ));
    } else if Matcher::builder()
        .all(text.as_str())
        .build()
        .intercept(&uri)
        .is_none()
    {
        problems.push(Problem::new(
            "proxy",
            "it is not a URL",
            "write one such as http://proxy.example.com:3128 or socks5://user:password@10.0.0.1:1080; \
             signs such as @ in a password are written as %40",
        ));
    }
    Proxies::Fixed(Secret::new(text))
}

/// Other programs pass over what they cannot read in these variables; the agent would then dial without proxy where
/// one was meant.
fn environment(problems: &mut Vec<Problem>) -> Proxies {
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        let Ok(value) = std::env::var(name) else {
            continue;
        };
        if !value.is_empty() {
            let mut found = Vec::new();
            proxy(Some(value), &mut found);
            problems.extend(found.into_iter().map(|problem| Problem {
                field: name.to_owned(),
                ..problem
            }));
            break;
        }
    }
    Proxies::Environment
}

fn links(number: Option<u64>, problems: &mut Vec<Problem>) -> u8 {
    let Some(number) = number else {
        return LINKS;
    };
    if let Ok(links @ 1..=MOST_LINKS) = u8::try_from(number) {
        return links;
    }
    problems.push(Problem::new(
        "links",
        format!("{number} is not from 1 to {MOST_LINKS}"),
        "leave it out for 2, which lets one end without anybody noticing",
    ));
    LINKS
}

fn status(text: Option<String>, problems: &mut Vec<Problem>) -> Option<SocketAddr> {
    let text = text.unwrap_or_else(|| STATUS.to_owned());
    if text == "off" {
        return None;
    }
    let address = text.parse();
    if address.is_err() {
        problems.push(Problem::new(
            "status",
            format!("{text:?} is no address with a port"),
            format!("write one such as {STATUS}, or off"),
        ));
    }
    address.ok()
}

fn allow_targets(rules: &[String], problems: &mut Vec<Problem>) -> Vec<TargetRule> {
    let mut parsed = Vec::new();
    for rule in rules {
        match TargetRule::parse(rule) {
            Some(rule) => parsed.push(rule),
            None => problems.push(Problem::new(
                "allowTargets",
                format!("{rule:?} is no rule for targets"),
                "write names, networks or both with a port, such as nas.lan, *.lan, 192.168.1.0/24 or \
                 192.168.1.10:443",
            )),
        }
    }
    parsed
}

/// `HOSTNAME=TARGET` or `PORT=TARGET`; the name is the hostname with hyphens for dots, or the port.
fn expose(text: &str, problems: &mut Vec<Problem>) -> Option<RequestedMapping> {
    let Some((hostname, target)) = text.split_once('=') else {
        problems.push(Problem::new(
            "expose",
            format!("{text:?} has no ="),
            "write HOSTNAME=TARGET or PORT=TARGET, such as nas.example.com=http://192.168.1.10:5000",
        ));
        return None;
    };
    if let Ok(port) = hostname.parse::<u16>() {
        // TCP and UDP of one number are two mappings.
        let scheme = target
            .split_once("://")
            .map_or("port", |(scheme, _)| scheme);
        let mapping = FileMapping {
            name: Some(format!("{}-{port}", scheme.to_ascii_lowercase())),
            port: Some(port),
            target: target.to_owned(),
            ..FileMapping::default()
        };
        return check_mapping("expose", mapping, problems);
    }
    let name = hostname.replace("*.", "any-").replace('.', "-");
    let mapping = FileMapping {
        name: Some(name.chars().take(63).collect()),
        hostname: hostname.to_owned(),
        target: target.to_owned(),
        ..FileMapping::default()
    };
    check_mapping("expose", mapping, problems)
}

fn check_mapping(
    place: &str,
    mapping: FileMapping,
    problems: &mut Vec<Problem>,
) -> Option<RequestedMapping> {
    let before = problems.len();
    let mut wrong = |field: &str, found: String, mend: &str| {
        problems.push(Problem::new(format!("{place}.{field}"), found, mend));
    };
    let name = mapping.name.unwrap_or_default();
    let letter = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(letter) {
        wrong(
            "name",
            format!("{name:?} is no name of a mapping"),
            "write up to 63 of a-z, 0-9 and -, such as nas",
        );
    }
    let target = AgentTarget::parse(&mapping.target);
    match (mapping.port, HostPattern::parse(&mapping.hostname)) {
        (Some(_), _) if !mapping.hostname.is_empty() => wrong(
            "port",
            "it has a hostname too".to_owned(),
            "leave out one; a hostname is for HTTP, or for TLS that the service speaks itself",
        ),
        (Some(0), _) => wrong(
            "port",
            "0 is no port".to_owned(),
            "write one from 1 to 65535, such as 25565",
        ),
        (Some(port), _) => {
            if let Ok(target) = target.as_ref()
                && target.is_http()
            {
                let found = format!("{target} is a target for requests, not for port {port}");
                wrong(
                    "target",
                    found,
                    "write tcp:// or udp://, or a hostname instead of the port",
                );
            }
        }
        (None, Err(error)) => wrong(
            "hostname",
            error.to_string(),
            "write the name that visitors ask for, such as nas.example.com, or a port",
        ),
        (None, Ok(_)) => {
            if let Ok(target @ AgentTarget::Udp { .. }) = &target {
                wrong(
                    "target",
                    format!("datagrams to {target} have no hostname"),
                    "write a port instead of the hostname",
                );
            }
        }
    }
    let proxy_protocol = match mapping.proxy_protocol.as_deref() {
        None => None,
        Some("v1") if !matches!(target, Ok(AgentTarget::Udp { .. })) => {
            Some(ProxyProtocolVersion::V1)
        }
        Some("v2") => Some(ProxyProtocolVersion::V2),
        Some(other) => {
            wrong(
                "proxyProtocol",
                format!("{other:?} is no PROXY protocol for this target"),
                "write v1 or v2, for udp:// v2",
            );
            None
        }
    };
    match &target {
        Err(error) => wrong(
            "target",
            error.to_string(),
            "write a URL without path, such as https://192.168.1.10:5001, http://nas.lan:8080, \
             tcp://10.0.0.1:22 or udp://10.0.0.1:53",
        ),
        Ok(target) if mapping.insecure_skip_verify && target.scheme() != "https" => wrong(
            "insecureSkipVerify",
            format!("{target} has no certificate to verify"),
            "leave it out, or write an https target",
        ),
        Ok(_) => {}
    }
    if mapping
        .description
        .as_ref()
        .is_some_and(|words| words.len() > 1024)
    {
        wrong(
            "description",
            "it has more than 1024 bytes".to_owned(),
            "write less",
        );
    }
    (problems.len() == before).then(|| RequestedMapping {
        name,
        hostname: mapping.hostname,
        port: mapping.port,
        target: target.map(|target| target.to_string()).unwrap_or_default(),
        proxy_protocol,
        insecure_skip_verify: mapping.insecure_skip_verify,
        description: mapping.description,
    })
}

fn unique(mappings: &[RequestedMapping], problems: &mut Vec<Problem>) {
    let mut names = BTreeSet::new();
    for mapping in mappings {
        if !names.insert(&mapping.name) {
            problems.push(Problem::new(
                "mappings",
                format!("two are named {:?}", mapping.name),
                "give each a name of its own",
            ));
        }
    }
    if mappings.len() > MOST_MAPPINGS {
        problems.push(Problem::new(
            "mappings",
            format!("{} are more than {MOST_MAPPINGS}", mappings.len()),
            "use a second agent",
        ));
    }
}
