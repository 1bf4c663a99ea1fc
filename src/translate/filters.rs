//! Filters of a rule, from the list in the object to the fixed phases of the model.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode};
use tidegate_model::{
    Compression, CompressionAlgorithm, Cors, Filters, FixedResponse, HeaderEdits, Mirror,
    OriginPattern, PathRewrite, Redirect, RedirectPath, Rewrite,
};

use super::access::{forward_auth, ip_access, rate_limit};
use super::backends::{plain_cluster, port};
use super::balancing::count_or;
use super::matches::{canonical_path, regex};
use super::quantities::quantity;
use super::references::{Found, References, basic_auth_filter};
use super::report::{Field, Report};
use super::words::{
    editable_header, header_field, header_name, header_value, host_name, is_authority, method,
    nearest, one_of,
};
use crate::api::{
    CompressionFilter, CorsFilter, Filter, FixedResponseFilter, HeaderModifier, PathModifier,
    RedirectFilter, RewriteFilter,
};

/// What the filters of a rule come to.
#[derive(Debug, Clone, Default)]
pub(super) struct Compiled {
    /// What is done around the action. Paths relative to the matched prefix hold an empty `matched`.
    pub(super) filters: Filters,
    /// The answer, if a filter gives one.
    pub(super) answer: Option<Answer>,
    /// Whether the matched prefix matters, so that each match needs its own copy.
    pub(super) needs_prefix: Option<String>,
    /// Something named here is missing: the rule must answer 503, because it would be too open without.
    pub(super) unresolved: bool,
}

/// An answer without backend.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Redirect(Redirect),
    Respond(FixedResponse),
}

/// Type, member, and whether the member is set.
fn members(wire: &Filter) -> [(&'static str, &'static str, bool); 12] {
    [
        (
            "RequestHeaderModifier",
            "requestHeaderModifier",
            wire.request_header_modifier.is_some(),
        ),
        (
            "ResponseHeaderModifier",
            "responseHeaderModifier",
            wire.response_header_modifier.is_some(),
        ),
        (
            "RequestRedirect",
            "requestRedirect",
            wire.request_redirect.is_some(),
        ),
        ("URLRewrite", "urlRewrite", wire.url_rewrite.is_some()),
        (
            "RequestMirror",
            "requestMirror",
            wire.request_mirror.is_some(),
        ),
        ("CORS", "cors", wire.cors.is_some()),
        ("RateLimit", "rateLimit", wire.rate_limit.is_some()),
        ("IPAccess", "ipAccess", wire.ip_access.is_some()),
        ("BasicAuth", "basicAuth", wire.basic_auth.is_some()),
        ("ForwardAuth", "forwardAuth", wire.forward_auth.is_some()),
        ("Compression", "compression", wire.compression.is_some()),
        (
            "FixedResponse",
            "fixedResponse",
            wire.fixed_response.is_some(),
        ),
    ]
}

/// Reads all filters of a rule. `bucket` names the rule among all rules of all routes.
pub(super) fn compile(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &[Filter],
    bucket: &str,
) -> Option<Compiled> {
    let mut good = true;
    let mut compiled = Compiled::default();
    let mut seen: Vec<&str> = Vec::new();
    for (index, filter) in wire.iter().enumerate() {
        let at = field.index(index);
        let Some(type_) = checked_type(report, &at, filter) else {
            good = false;
            continue;
        };
        let repeatable = matches!(
            type_,
            "RateLimit" | "RequestMirror" | "RequestHeaderModifier" | "ResponseHeaderModifier"
        );
        if !repeatable && seen.contains(&type_) {
            report.invalid(
                at.at("type"),
                format!("{type_} comes twice in this rule"),
                "join the two into one",
            );
            good = false;
            continue;
        }
        seen.push(type_);
        let bucket = format!("{bucket}/{index}");
        good &= one(report, references, &at, filter, &bucket, &mut compiled).is_some();
    }
    if let Some(first) = seen.iter().position(|t| *t == "RequestRedirect")
        && seen.contains(&"FixedResponse")
    {
        report.invalid(
            field.index(first),
            "RequestRedirect and FixedResponse both answer the request",
            "keep one of them",
        );
        good = false;
    }
    good.then_some(compiled)
}

fn checked_type(report: &mut Report, field: &Field<'_>, wire: &Filter) -> Option<&'static str> {
    let members = members(wire);
    let Some((type_, member, set)) = members.iter().find(|(type_, ..)| *type_ == wire.type_) else {
        let types = members.map(|(type_, ..)| type_);
        let hint = match nearest(&wire.type_, types.iter().copied()) {
            Some(near) => format!("did you mean {near}? Known: {}", types.join(", ")),
            None => format!("write one of {}", types.join(", ")),
        };
        report.invalid(
            field.at("type"),
            format!("{:?} is not a type of filter", wire.type_),
            hint,
        );
        return None;
    };
    let mut good = true;
    if !set {
        report.invalid(
            field.at(member),
            "it is missing",
            format!("a filter of type {type_} needs {member}"),
        );
        good = false;
    }
    for (other, extra, set) in members {
        if set && other != *type_ {
            report.invalid(
                field.at(extra),
                format!("it does not belong to type {type_}"),
                format!("leave it out, or make it a filter of type {other}"),
            );
            good = false;
        }
    }
    good.then_some(*type_)
}

fn one(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &Filter,
    bucket: &str,
    into: &mut Compiled,
) -> Option<()> {
    let filters = &mut into.filters;
    if let Some(wire) = &wire.request_header_modifier {
        let at = field.at("requestHeaderModifier");
        header_edits(report, &at, wire, &mut filters.request_headers)?;
    } else if let Some(wire) = &wire.response_header_modifier {
        let at = field.at("responseHeaderModifier");
        header_edits(report, &at, wire, &mut filters.response_headers)?;
    } else if let Some(wire) = &wire.request_redirect {
        let at = field.at("requestRedirect");
        let redirect = redirect(report, &at, wire)?;
        if matches!(redirect.path, Some(RedirectPath::Prefix { .. })) {
            into.needs_prefix = Some(at.at("path").to_string());
        }
        into.answer = Some(Answer::Redirect(redirect));
    } else if let Some(wire) = &wire.url_rewrite {
        let at = field.at("urlRewrite");
        let rewrite = rewrite(report, &at, wire)?;
        if let Some(PathRewrite::Replace(RedirectPath::Prefix { .. })) = rewrite.path {
            into.needs_prefix = Some(at.at("path").to_string());
        }
        filters.rewrite = Some(rewrite);
    } else if let Some(wire) = &wire.request_mirror {
        let at = field.at("requestMirror");
        let backend = at.at("backend");
        let cluster = plain_cluster(report, references, &backend, &wire.backend, None);
        let percent = at.at("percent");
        let percent = match wire.percent {
            None => Some(100),
            Some(share @ 1..=100) => u8::try_from(share).ok(),
            Some(other) => {
                report.invalid(percent, format!("{other} is not a share"), "write 1 to 100");
                None
            }
        };
        // A mirror that is missing changes nothing for clients, so the rule goes on without it.
        if let (Found::Here(cluster), percent) = (cluster?, percent?) {
            filters.mirrors.push(Mirror { cluster, percent });
        }
    } else if let Some(wire) = &wire.cors {
        filters.cors = Some(cors(report, &field.at("cors"), wire)?);
    } else if let Some(wire) = &wire.rate_limit {
        let limit = rate_limit(report, &field.at("rateLimit"), wire, bucket)?;
        filters.rate_limits.push(limit);
    } else if let Some(wire) = &wire.ip_access {
        filters.ip_access = Some(ip_access(report, &field.at("ipAccess"), wire)?);
    } else if let Some(wire) = &wire.basic_auth {
        let at = field.at("basicAuth");
        let header = match &wire.user_header {
            None => None,
            Some(name) => Some(editable_header(report, &at.at("userHeader"), name)?),
        };
        if wire
            .realm
            .as_deref()
            .is_some_and(|realm| realm.contains(char::is_control))
        {
            report.invalid(
                at.at("realm"),
                "it has control characters",
                "write plain text",
            );
            return None;
        }
        match references.basic_auth(report, &at, wire) {
            Some(users) => {
                let auth = basic_auth_filter(users, wire.realm.as_deref(), header);
                filters.basic_auth = Some(auth);
            }
            None => into.unresolved = true,
        }
    } else if let Some(wire) = &wire.forward_auth {
        match forward_auth(report, references, &field.at("forwardAuth"), wire)? {
            Found::Here(auth) => filters.forward_auth = Some(Arc::new(auth)),
            Found::Missing => into.unresolved = true,
        }
    } else if let Some(wire) = &wire.compression {
        filters.compression = Some(compression(report, &field.at("compression"), wire)?);
    } else if let Some(wire) = &wire.fixed_response {
        let response = fixed_response(report, &field.at("fixedResponse"), wire)?;
        into.answer = Some(Answer::Respond(response));
    }
    Some(())
}

fn header_edits(
    report: &mut Report,
    field: &Field<'_>,
    wire: &HeaderModifier,
    into: &mut HeaderEdits,
) -> Option<()> {
    let mut good = true;
    for (member, fields, target) in [
        ("set", &wire.set, &mut into.set),
        ("add", &wire.add, &mut into.add),
    ] {
        let at = field.at(member);
        for (index, wire) in fields.iter().enumerate() {
            match header_field(report, &at.index(index), wire, editable_header) {
                Some(header) => target.push(header),
                None => good = false,
            }
        }
    }
    let at = field.at("remove");
    for (index, name) in wire.remove.iter().enumerate() {
        match editable_header(report, &at.index(index), name) {
            Some(name) => into.remove.push(name),
            None => good = false,
        }
    }
    good.then_some(())
}

fn redirect(report: &mut Report, field: &Field<'_>, wire: &RedirectFilter) -> Option<Redirect> {
    let scheme = one_of(
        report,
        &field.at("scheme"),
        wire.scheme.as_deref(),
        None,
        &[("http", Some("http")), ("https", Some("https"))],
    );
    let hostname = match &wire.hostname {
        None => Some(None),
        Some(name) => host_name(report, &field.at("hostname"), name).map(Some),
    };
    let number = match wire.port {
        None => Some(None),
        Some(number) => port(report, &field.at("port"), number).map(Some),
    };
    let path = match &wire.path {
        None => Some(None),
        Some(path) => match path_modifier(report, &field.at("path"), path) {
            Some(PathRewrite::Replace(path)) => Some(Some(path)),
            Some(PathRewrite::Regex { .. }) => {
                report.invalid(
                    field.at("path").at("type"),
                    "\"RegularExpression\" cannot be used in a redirect",
                    "use ReplaceFullPath or ReplacePrefixMatch",
                );
                None
            }
            None => None,
        },
    };
    let status = match wire.status_code.unwrap_or(302) {
        301 => Some(StatusCode::MOVED_PERMANENTLY),
        302 => Some(StatusCode::FOUND),
        303 => Some(StatusCode::SEE_OTHER),
        307 => Some(StatusCode::TEMPORARY_REDIRECT),
        308 => Some(StatusCode::PERMANENT_REDIRECT),
        other => {
            report.invalid(
                field.at("statusCode"),
                format!("{other} is not a redirect"),
                "write 301, 302, 303, 307 or 308",
            );
            None
        }
    };
    let redirect = Redirect {
        status: status?,
        scheme: scheme?.map(str::to_owned),
        hostname: hostname?.map(|host| host.in_url()),
        port: number?,
        path: path?,
    };
    if redirect.scheme.is_none()
        && redirect.hostname.is_none()
        && redirect.port.is_none()
        && redirect.path.is_none()
    {
        report.invalid(
            field,
            "it changes nothing, so clients would go round in circles",
            "set scheme, hostname, port or path",
        );
        return None;
    }
    Some(redirect)
}

fn rewrite(report: &mut Report, field: &Field<'_>, wire: &RewriteFilter) -> Option<Rewrite> {
    let hostname = match &wire.hostname {
        None => Some(None),
        Some(name) => {
            if is_authority(name) {
                header_value(report, &field.at("hostname"), name).map(Some)
            } else {
                report.invalid(
                    field.at("hostname"),
                    format!("{name:?} is not a hostname"),
                    "write one such as internal.example.com",
                );
                None
            }
        }
    };
    let path = match &wire.path {
        None => Some(None),
        Some(path) => path_modifier(report, &field.at("path"), path).map(Some),
    };
    Some(Rewrite {
        hostname: hostname?,
        path: path?,
    })
}

fn path_modifier(
    report: &mut Report,
    field: &Field<'_>,
    wire: &PathModifier,
) -> Option<PathRewrite> {
    let members = [
        (
            "ReplaceFullPath",
            "replaceFullPath",
            wire.replace_full_path.is_some(),
        ),
        (
            "ReplacePrefixMatch",
            "replacePrefixMatch",
            wire.replace_prefix_match.is_some(),
        ),
        (
            "RegularExpression",
            "regularExpression",
            wire.regular_expression.is_some(),
        ),
    ];
    let words = members.map(|(word, ..)| (word, word));
    let type_ = one_of(report, &field.at("type"), Some(&wire.type_), "", &words)?;
    for (owner, member, set) in members {
        if set != (owner == type_) {
            let (found, hint) = if set {
                (
                    format!("it does not belong to type {type_}"),
                    "leave it out".to_owned(),
                )
            } else {
                (
                    "it is missing".to_owned(),
                    format!("type {type_} needs {member}"),
                )
            };
            report.invalid(field.at(member), found, hint);
            return None;
        }
    }
    if let Some(path) = &wire.replace_full_path {
        let path = canonical_path(report, &field.at("replaceFullPath"), path)?;
        return Some(PathRewrite::Replace(RedirectPath::Full(path)));
    }
    if let Some(path) = &wire.replace_prefix_match {
        let replacement = match path.as_str() {
            "" => "/".to_owned(),
            path => canonical_path(report, &field.at("replacePrefixMatch"), path)?,
        };
        return Some(PathRewrite::Replace(RedirectPath::Prefix {
            matched: String::new(),
            replacement,
        }));
    }
    let wire = wire.regular_expression.as_ref()?;
    let at = field.at("regularExpression");
    Some(PathRewrite::Regex {
        pattern: regex(report, &at.at("pattern"), &wire.pattern)?,
        substitution: wire.substitution.clone(),
    })
}

fn cors(report: &mut Report, field: &Field<'_>, wire: &CorsFilter) -> Option<Cors> {
    let mut good = true;
    let mut allow_origins = Vec::new();
    let at = field.at("allowOrigins");
    if wire.allow_origins.is_empty() {
        report.invalid(
            at,
            "it is missing",
            "name origins such as https://app.example.com, or *",
        );
        good = false;
    }
    for (index, origin) in wire.allow_origins.iter().enumerate() {
        if let Some(pattern) = origin_pattern(origin) {
            allow_origins.push(pattern);
        } else {
            report.invalid(
                at.index(index),
                format!("{origin:?} is not an origin"),
                "write scheme and host, such as https://app.example.com or https://*.example.com, without path",
            );
            good = false;
        }
    }
    let any = |list: &[String]| list.iter().any(|word| word == "*");
    let allow_any_method = any(&wire.allow_methods);
    let mut allow_methods: Vec<Method> = Vec::new();
    let at = field.at("allowMethods");
    for (index, word) in wire
        .allow_methods
        .iter()
        .enumerate()
        .filter(|(_, w)| *w != "*")
    {
        match method(report, &at.index(index), word) {
            Some(method) => allow_methods.push(method),
            None => good = false,
        }
    }
    let mut names = |member: &str, list: &[String]| {
        let at = field.at(member);
        let mut names: Vec<HeaderName> = Vec::new();
        for (index, word) in list.iter().enumerate().filter(|(_, w)| *w != "*") {
            match header_name(report, &at.index(index), word) {
                Some(name) => names.push(name),
                None => good = false,
            }
        }
        names
    };
    let allow_any_header = any(&wire.allow_headers);
    let allow_headers = names("allowHeaders", &wire.allow_headers);
    let expose_headers = names("exposeHeaders", &wire.expose_headers);
    if wire.allow_credentials == Some(true) && allow_origins.contains(&OriginPattern::Any) {
        report.invalid(
            field.at("allowCredentials"),
            "every origin could act in the name of whoever is logged in",
            "name the origins instead of *, or leave allowCredentials out",
        );
        good = false;
    }
    let max_age = count_or(report, &field.at("maxAge"), wire.max_age, 5, 0)?;
    good.then_some(Cors {
        allow_origins,
        allow_methods,
        allow_any_method,
        allow_headers,
        allow_any_header,
        expose_headers,
        allow_credentials: wire.allow_credentials.unwrap_or(false),
        max_age: Duration::from_secs(max_age.into()),
    })
}

fn origin_pattern(origin: &str) -> Option<OriginPattern> {
    if origin == "*" {
        return Some(OriginPattern::Any);
    }
    let lower = origin.to_ascii_lowercase();
    let (scheme, rest) = lower.split_once("://")?;
    let plain = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
    };
    if scheme.is_empty() || rest.is_empty() || !plain(scheme) {
        return None;
    }
    match rest.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 && plain(suffix) => {
            Some(OriginPattern::Wildcard {
                prefix: format!("{scheme}://"),
                suffix: suffix.to_owned(),
            })
        }
        None if plain(rest) => Some(OriginPattern::Exact(lower)),
        _ => None,
    }
}

fn compression(
    report: &mut Report,
    field: &Field<'_>,
    wire: &CompressionFilter,
) -> Option<Compression> {
    const ALL: [(&str, CompressionAlgorithm); 3] = [
        ("zstd", CompressionAlgorithm::Zstd),
        ("br", CompressionAlgorithm::Brotli),
        ("gzip", CompressionAlgorithm::Gzip),
    ];
    let mut good = true;
    let mut algorithms = Vec::new();
    let at = field.at("algorithms");
    for (index, word) in wire.algorithms.iter().enumerate() {
        let at = at.index(index);
        match one_of(report, &at, Some(word), CompressionAlgorithm::Gzip, &ALL) {
            Some(algorithm) if !algorithms.contains(&algorithm) => algorithms.push(algorithm),
            Some(_) => {}
            None => good = false,
        }
    }
    if wire.algorithms.is_empty() {
        algorithms = ALL.map(|(_, algorithm)| algorithm).to_vec();
    }
    let at = field.at("contentTypes");
    for (index, text) in wire.content_types.iter().enumerate() {
        if !is_media_type(text) {
            report.invalid(
                at.index(index),
                format!("{text:?} is not a media type"),
                "write one such as text/html or text/*",
            );
            good = false;
        }
    }
    let min_size = match &wire.min_size {
        None => Some(1024),
        written => quantity(report, &field.at("minSize"), written.as_ref()),
    };
    let compression = Compression {
        algorithms,
        min_size: min_size?,
        content_types: wire
            .content_types
            .iter()
            .map(|text| text.to_ascii_lowercase())
            .collect(),
    };
    good.then_some(compression)
}

fn is_media_type(text: &str) -> bool {
    let token = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+*".contains(&byte))
    };
    text.split_once('/')
        .is_some_and(|(main, sub)| token(main) && token(sub))
}

fn fixed_response(
    report: &mut Report,
    field: &Field<'_>,
    wire: &FixedResponseFilter,
) -> Option<FixedResponse> {
    let status = wire.status.unwrap_or(200);
    let found = u16::try_from(status)
        .ok()
        .filter(|status| (200..600).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok());
    let Some(status) = found else {
        report.invalid(
            field.at("status"),
            format!("{status} is not a final status"),
            "write one from 200 to 599",
        );
        return None;
    };
    let body = wire.body.clone().unwrap_or_default();
    if !body.is_empty() && matches!(status.as_u16(), 204 | 304) {
        report.invalid(
            field.at("body"),
            format!("a response with status {} has no body", status.as_u16()),
            "leave body out or use another status",
        );
        return None;
    }
    let content_type = match (&wire.content_type, body.is_empty()) {
        (None, true) => None,
        (written, _) => Some(header_value(
            report,
            &field.at("contentType"),
            written.as_deref().unwrap_or("text/plain; charset=utf-8"),
        )?),
    };
    Some(FixedResponse {
        status,
        content_type,
        body: Bytes::from(body),
    })
}
