//! `tidegate explain`: what would happen to a request, and why.
//!
//! Asks the same translation and the same router as the edge; sends nothing anywhere.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use http::{HeaderMap, Method, Uri};
use tidegate_model::{
    Action, Certificate, HeaderEdits, HostName, PlainHttp, RedirectPath, RouteEntry, RouteId, Rule,
    Snapshot, Target, TlsMode, TlsVersion, UpstreamProtocol, VirtualHost,
};
use tidegate_proxy::{ExplainRequest, Verdict};

use super::report::problem_view;
use crate::admin::{ProblemView, rfc3339};
use crate::standalone::Source;
use crate::translate::mapping_in_words;

/// The request to explain.
#[derive(Debug, Clone)]
pub struct Question {
    /// `https://host/path?query` or `http://…`.
    pub url: Uri,
    /// Method.
    pub method: Method,
    /// The client's address, for rules that look at it.
    pub from: Option<IpAddr>,
    /// Header fields.
    pub headers: HeaderMap,
}

/// The answer, in the order in which the edge decides.
#[derive(Debug)]
pub struct Explanation {
    /// Title and lines.
    pub sections: Vec<(&'static str, Vec<String>)>,
    /// Whether a rule answers.
    pub answered: bool,
    /// What is wrong with the objects, which may be why.
    pub problems: Vec<ProblemView>,
}

/// Explains what the objects of the folder make of the request.
pub fn explain(folder: &Path, question: &Question, now: SystemTime) -> Explanation {
    let mut source = Source::folder(
        folder,
        Some(folder.join(crate::source::state::DEFAULT_NAME)),
    );
    let refreshed = source.refresh(now);
    let mut explanation = Explanation {
        sections: Vec::new(),
        answered: false,
        problems: refreshed
            .findings
            .iter()
            .filter(|finding| !super::check::is_unissued(finding))
            .map(problem_view)
            .collect(),
    };
    decide(&refreshed.translation.snapshot, question, &mut explanation);
    explanation
}

fn decide(snapshot: &Snapshot, question: &Question, out: &mut Explanation) {
    let secure = question.url.scheme_str() != Some("http");
    let host = question.url.host().unwrap_or_default();
    let host = match HostName::parse(host) {
        Ok(host) => host,
        Err(error) => {
            out.sections
                .push(("host", vec![format!("{error}: 400 Bad Request")]));
            return;
        }
    };
    let Some(virtual_host) = snapshot.hosts.lookup(&host) else {
        out.sections
            .push(("host", unknown_host(snapshot, &host, secure)));
        return;
    };
    out.sections.push((
        "host",
        vec![format!(
            "{} belongs to {}",
            virtual_host.pattern,
            owner(&virtual_host.route)
        )],
    ));
    if secure {
        out.sections.push(("listener", vec!["https".to_owned()]));
        if virtual_host.entries.is_empty() && !virtual_host.plain.is_empty() {
            let line = "every rule of this host answers over plain HTTP only (tracker.exposure: HTTP): the TLS handshake is refused";
            out.sections.push(("tls", vec![line.to_owned()]));
            return;
        }
        match &virtual_host.tls {
            TlsMode::Terminate(policy) => {
                let mut lines = certificate(policy.certificate.as_deref());
                if policy.min_version == TlsVersion::Tls13 {
                    lines.push("TLS 1.3 only".to_owned());
                }
                if let Some(auth) = &policy.client_auth {
                    lines.push(format!("client certificates: {:?}", auth.mode));
                }
                out.sections.push(("certificate", lines));
            }
            TlsMode::Passthrough(cluster) => {
                out.sections.push((
                    "tls",
                    vec![format!("not opened here: the bytes go to {}", cluster.name)],
                ));
                out.answered = true;
                return;
            }
        }
    } else {
        let port = question.url.port_u16().unwrap_or(80);
        out.sections.push((
            "listener",
            vec![match port {
                80 => "http".to_owned(),
                _ => format!("http, port {port}"),
            }],
        ));
        // Some rules answer over plain HTTP whatever the host says of it.
        if let Some(plain) = virtual_host.plain_rules(port) {
            let all = tidegate_proxy::explain(virtual_host, Some(port), &request(question));
            let chosen = (all.iter().zip(&plain.entries))
                .find(|(it, _)| matches!(it.verdict, Verdict::Matched | Verdict::Refused { .. }));
            if chosen.is_some_and(|(_, entry)| entry.rule.plain) || virtual_host.entries.is_empty()
            {
                rules(virtual_host, &plain.entries, Some(port), question, out);
                return;
            }
        }
        match virtual_host.plain_http {
            PlainHttp::Redirect(status) => {
                let path = question
                    .url
                    .path_and_query()
                    .map_or("/", |path| path.as_str());
                out.sections.push((
                    "answer",
                    vec![format!("{status} to https://{host}{path} (spec.http)")],
                ));
                out.answered = true;
                return;
            }
            PlainHttp::Refuse => {
                out.sections.push((
                    "answer",
                    vec!["404 Not Found: the route refuses plain HTTP".to_owned()],
                ));
                return;
            }
            PlainHttp::Serve => {}
        }
    }
    rules(virtual_host, &virtual_host.entries, None, question, out);
}

fn request(question: &Question) -> ExplainRequest {
    ExplainRequest {
        method: question.method.clone(),
        path: question.url.path().to_owned(),
        query: question.url.query().map(str::to_owned),
        headers: question.headers.clone(),
    }
}

/// What the rules make of the request: those on the listener for plain HTTP with that port, or those over TLS.
fn rules(
    host: &VirtualHost,
    served: &[RouteEntry],
    plain: Option<u16>,
    question: &Question,
    out: &mut Explanation,
) {
    let entries = tidegate_proxy::explain(host, plain, &request(question));
    let mut winner = None;
    let mut lines = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let conditions = if entry.conditions.is_empty() {
            "everything"
        } else {
            &entry.conditions
        };
        let verdict = match &entry.verdict {
            Verdict::Matched => {
                winner = Some(index);
                "answers".to_owned()
            }
            Verdict::Shadowed { by } => format!("would match, but {by} comes first"),
            Verdict::Failed { condition, found } => format!("no: {condition}, found {found}"),
            Verdict::Refused { path } => format!(
                "400 Bad Request: the path can be read in two ways, and rules of this host decide by path ({path:?})"
            ),
        };
        let mark = if matches!(entry.verdict, Verdict::Matched) {
            "→"
        } else {
            " "
        };
        lines.push(format!("{mark} {} ({conditions}): {verdict}", entry.rule));
    }
    if winner.is_none()
        && !entries
            .iter()
            .any(|entry| matches!(entry.verdict, Verdict::Refused { .. }))
    {
        lines.push("no rule matches: 404 Not Found".to_owned());
    }
    out.sections.push(("rules, in order of precedence", lines));
    let Some(rule) = winner
        .and_then(|index| served.get(index))
        .map(|entry| &entry.rule)
    else {
        return;
    };
    out.answered = true;
    let filters = filters(rule, question);
    if !filters.is_empty() {
        out.sections.push(("filters", filters));
    }
    out.sections.push(("action", action(&rule.action)));
    let headers = header_changes(host, rule, question);
    if !headers.is_empty() {
        out.sections.push(("header changes", headers));
    }
}

fn unknown_host(snapshot: &Snapshot, host: &HostName, secure: bool) -> Vec<String> {
    let mut lines = vec![if secure {
        format!(
            "no route has the hostname {host}: the TLS handshake is refused, or answered with the default certificate and 421"
        )
    } else {
        format!("no route has the hostname {host}: 404 Not Found")
    }];
    let known: Vec<String> = snapshot
        .hosts
        .values()
        .map(|known| known.pattern.to_string())
        .collect();
    let near = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known, host.as_str()), known))
        .filter(|(distance, _)| *distance <= host.as_str().len() / 3)
        .min();
    match near {
        Some((_, near)) => lines.push(format!("the nearest that exists is {near}")),
        None if known.is_empty() => lines.push("no route exists at all".to_owned()),
        None => {}
    }
    if let Some(parent) = host.parent()
        && let Some((_, grand_parent)) = parent.split_once('.')
        && snapshot
            .hosts
            .values()
            .any(|known| known.pattern.to_string() == format!("*.{grand_parent}"))
    {
        lines.push(format!("*.{grand_parent} stands for one label only"));
    }
    lines
}

fn certificate(certificate: Option<&Certificate>) -> Vec<String> {
    match certificate {
        None => vec![
            "issued by `tidegate run` when it starts (internal CA); until then the handshake is refused".to_owned(),
        ],
        Some(certificate) => {
            let names: Vec<String> = certificate.names.iter().map(ToString::to_string).collect();
            vec![format!(
                "{} until {}, issued by {}",
                names.join(", "),
                rfc3339(certificate.not_after),
                certificate.issuer
            )]
        }
    }
}

fn filters(rule: &Rule, question: &Question) -> Vec<String> {
    let filters = &rule.filters;
    let mut lines = Vec::new();
    if let Some(access) = &filters.ip_access {
        lines.push(match question.from {
            None => format!(
                "ip access: {} allowed, {} denied networks; say --from IP to see the outcome",
                access.allow.len(),
                access.deny.len()
            ),
            Some(from) => {
                let from = from.to_canonical();
                if let Some(net) = access.deny.iter().find(|net| net.contains(&from)) {
                    format!("ip access: 403 Forbidden, {from} is in the denied {net}")
                } else if access.allow.is_empty()
                    || access.allow.iter().any(|net| net.contains(&from))
                {
                    format!("ip access: {from} may come")
                } else {
                    format!("ip access: 403 Forbidden, {from} is in none of the allowed networks")
                }
            }
        });
    }
    for limit in &filters.rate_limits {
        lines.push(format!(
            "rate limit: {} requests per {:?}, {} at once, counted by {:?}; beyond that 429",
            limit.requests, limit.period, limit.burst, limit.key
        ));
    }
    if filters.cors.is_some() {
        lines.push("cors: answers preflights itself".to_owned());
    }
    if let Some(auth) = &filters.basic_auth {
        lines.push(format!(
            "basic auth: one of {} users, else 401",
            auth.users.len()
        ));
    }
    if let Some(auth) = &filters.forward_auth {
        lines.push(format!(
            "forward auth: {} at {} decides",
            auth.cluster.name, auth.path
        ));
    }
    if let Some(rewrite) = &filters.rewrite {
        if let Some(host) = &rewrite.hostname {
            lines.push(format!(
                "rewrite: host becomes {}",
                host.to_str().unwrap_or("?")
            ));
        }
        if let Some(path) = &rewrite.path {
            lines.push(match path {
                tidegate_model::PathRewrite::Replace(path) => {
                    format!("rewrite: {}", path_change(path))
                }
                tidegate_model::PathRewrite::Regex {
                    pattern,
                    substitution,
                } => {
                    format!("rewrite: {pattern} becomes {substitution:?}")
                }
            });
        }
    }
    for mirror in &filters.mirrors {
        lines.push(format!(
            "mirror: {}% to {}",
            mirror.percent, mirror.cluster.name
        ));
    }
    if filters.compression.is_some() {
        lines.push("compression: of responses that can be compressed".to_owned());
    }
    lines
}

/// The object that a route came from.
fn owner(route: &RouteId) -> String {
    mapping_in_words(route).unwrap_or_else(|| format!("TlsRoute {route}"))
}

fn path_change(path: &RedirectPath) -> String {
    match path {
        RedirectPath::Full(path) => format!("the path becomes {path}"),
        RedirectPath::Prefix {
            matched,
            replacement,
        } => {
            format!("{matched} at the start of the path becomes {replacement}")
        }
    }
}

fn action(action: &Action) -> Vec<String> {
    match action {
        Action::Forward(group) => {
            let total: u32 = group.backends.iter().map(|backend| backend.weight).sum();
            group
                .backends
                .iter()
                .map(|backend| {
                    let cluster = &backend.cluster;
                    let mut line = format!("backend {}", cluster.name);
                    if group.backends.len() > 1 {
                        let _ = write!(line, ", weight {} of {total}", backend.weight);
                    }
                    if matches!(cluster.target, Target::Agent { .. }) {
                        line.push_str(", which the agent connects to");
                        return line;
                    }
                    let _ = write!(line, ", {}", protocol(cluster.protocol));
                    if let Some(tls) = &cluster.tls {
                        line.push_str(if tls.insecure_skip_verify {
                            " over TLS, not verified"
                        } else {
                            " over TLS"
                        });
                    }
                    if let Some(version) = cluster.proxy_protocol {
                        let _ = write!(line, ", PROXY protocol {version:?}");
                    }
                    line
                })
                .collect()
        }
        Action::Redirect(redirect) => {
            let mut line = format!("redirect {}", redirect.status);
            if let Some(scheme) = &redirect.scheme {
                let _ = write!(line, ", scheme {scheme}");
            }
            if let Some(host) = &redirect.hostname {
                let _ = write!(line, ", host {host}");
            }
            if let Some(port) = redirect.port {
                let _ = write!(line, ", port {port}");
            }
            if let Some(path) = &redirect.path {
                let _ = write!(line, ", {}", path_change(path));
            }
            vec![line]
        }
        Action::Respond(response) => {
            vec![format!(
                "responds {} with {} bytes",
                response.status,
                response.body.len()
            )]
        }
        Action::Static(folder) => vec![format!("files of {}", folder.root.display())],
        Action::Unavailable(why) => vec![format!("503 Service Unavailable: {why}")],
    }
}

fn protocol(protocol: UpstreamProtocol) -> &'static str {
    match protocol {
        UpstreamProtocol::Auto => "HTTP/1.1, or HTTP/2 where its TLS agrees to it",
        UpstreamProtocol::Http1 => "HTTP/1.1",
        UpstreamProtocol::Http2 => "HTTP/2",
    }
}

fn header_changes(host: &VirtualHost, rule: &Rule, question: &Question) -> Vec<String> {
    let mut lines = Vec::new();
    if matches!(rule.action, Action::Forward(_)) {
        let from = question.from.map_or_else(
            || "the client's address".to_owned(),
            |from| from.to_canonical().to_string(),
        );
        lines.push(format!("request  X-Forwarded-For, X-Real-IP: {from}"));
        let scheme = question.url.scheme_str().unwrap_or("https");
        lines.push(format!("request  X-Forwarded-Proto: {scheme}"));
        let name = question.url.host().unwrap_or_default();
        lines.push(format!("request  X-Forwarded-Host: {name}"));
        let well_known = if scheme == "http" { 80 } else { 443 };
        let port = question.url.port_u16().unwrap_or(well_known);
        lines.push(format!("request  X-Forwarded-Port: {port}"));
    }
    edits("request ", &rule.filters.request_headers, &mut lines);
    edits("response", &rule.filters.response_headers, &mut lines);
    if let Some(hsts) = &host.hsts
        && question.url.scheme_str() != Some("http")
    {
        lines.push(format!(
            "response Strict-Transport-Security: {}",
            hsts.to_str().unwrap_or_default()
        ));
    }
    lines
}

fn edits(side: &str, edits: &HeaderEdits, lines: &mut Vec<String>) {
    lines.extend(
        edits
            .remove
            .iter()
            .map(|name| format!("{side} {name} removed")),
    );
    // Values may be credentials for the backend: names are enough.
    lines.extend(
        edits
            .set
            .iter()
            .map(|(name, _)| format!("{side} {name} set")),
    );
    lines.extend(
        edits
            .add
            .iter()
            .map(|(name, _)| format!("{side} {name} added")),
    );
}
