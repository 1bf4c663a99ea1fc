//! Words of the API that stand for something: enumerations, header names, methods, host patterns.

use http::{HeaderName, HeaderValue, Method};
use tidegate_model::{HostName, HostPattern};

use super::report::{Field, Report};
use crate::api::HttpField;

/// The meaning of a word, or `default` when none was written. A wrong word names the nearest right one.
pub(super) fn one_of<T: Copy>(
    report: &mut Report,
    field: &Field<'_>,
    word: Option<&str>,
    default: T,
    words: &[(&str, T)],
) -> Option<T> {
    let Some(word) = word else {
        return Some(default);
    };
    if let Some((_, meaning)) = words.iter().find(|(known, _)| *known == word) {
        return Some(*meaning);
    }
    let all = words
        .iter()
        .map(|(known, _)| *known)
        .collect::<Vec<_>>()
        .join(", ");
    let hint = match nearest(word, words.iter().map(|(known, _)| *known)) {
        Some(near) => format!("did you mean {near}? Known: {all}"),
        None => format!("write one of {all}"),
    };
    report.invalid(field, format!("{word:?} is not known here"), hint);
    None
}

/// The known word that was probably meant.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    known
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| {
            let part = lower.len() > 3 && candidate.to_ascii_lowercase().contains(&lower);
            part || *distance <= 2.min(candidate.len() / 2).max(candidate.len() / 3)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

pub(super) fn header_name(
    report: &mut Report,
    field: &Field<'_>,
    name: &str,
) -> Option<HeaderName> {
    if let Ok(name) = name.parse() {
        Some(name)
    } else {
        report.invalid(
            field,
            format!("{name:?} is not a header name"),
            "use letters, digits and hyphens, such as X-Request-Id",
        );
        None
    }
}

/// Names of header fields that the edge sets or that frame messages, which nobody may edit.
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A header name that filters may edit.
pub(super) fn editable_header(
    report: &mut Report,
    field: &Field<'_>,
    name: &str,
) -> Option<HeaderName> {
    let name = header_name(report, field, name)?;
    if FRAMING.contains(&name.as_str()) {
        let hint = if name == http::header::HOST {
            "use a filter of type URLRewrite with hostname"
        } else {
            "the edge sets it itself"
        };
        report.invalid(field, format!("{name:?} may not be edited"), hint);
        return None;
    }
    Some(name)
}

/// Reads a header field of filters or probes. Values that may be credentials are marked, so that neither
/// logs nor `Debug` show them.
pub(super) fn header_field(
    report: &mut Report,
    field: &Field<'_>,
    wire: &HttpField,
    name: fn(&mut Report, &Field<'_>, &str) -> Option<HeaderName>,
) -> Option<(HeaderName, HeaderValue)> {
    let name = name(report, &field.at("name"), &wire.name);
    let value = header_value(report, &field.at("value"), &wire.value);
    let (name, mut value) = name.zip(value)?;
    value.set_sensitive(SECRETS.contains(&name.as_str()));
    Some((name, value))
}

/// Fields whose values are often credentials.
const SECRETS: [&str; 6] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-api-key",
    "x-auth-token",
];

/// The value is not quoted in the report, because it may be a credential.
pub(super) fn header_value(
    report: &mut Report,
    field: &Field<'_>,
    value: &str,
) -> Option<HeaderValue> {
    if let Ok(value) = HeaderValue::from_str(value) {
        Some(value)
    } else {
        report.invalid(
            field,
            "it has characters that no header may have",
            "leave out line breaks and other control characters",
        );
        None
    }
}

/// Whether the text may stand in a Host header: a host, perhaps with a port, and no user.
pub(super) fn is_authority(text: &str) -> bool {
    !text.contains('@')
        && text
            .parse::<http::uri::Authority>()
            .is_ok_and(|authority| !authority.host().is_empty())
}

pub(super) fn method(report: &mut Report, field: &Field<'_>, word: &str) -> Option<Method> {
    match Method::from_bytes(word.as_bytes()) {
        Ok(Method::CONNECT) => {
            report.invalid(field, "\"CONNECT\" is never served", "leave it out");
            None
        }
        Ok(method) if word.bytes().any(|byte| byte.is_ascii_lowercase()) => {
            report.invalid(
                field,
                format!("{word:?} is not a method: methods are case-sensitive"),
                format!("write {}", method.as_str().to_ascii_uppercase()),
            );
            None
        }
        Ok(method) => Some(method),
        Err(_) => {
            report.invalid(
                field,
                format!("{word:?} is not a method"),
                "write one such as GET",
            );
            None
        }
    }
}

pub(super) fn host_pattern(
    report: &mut Report,
    field: &Field<'_>,
    name: &str,
) -> Option<HostPattern> {
    let hint = if name.contains("://") {
        "leave out the scheme"
    } else if name.contains('/') {
        "leave out the path; use match.pathPrefix"
    } else if name.contains(':') && name.parse::<std::net::Ipv6Addr>().is_err() {
        "leave out the port"
    } else if !name.is_ascii() {
        "write international names in their ASCII form (xn--…)"
    } else {
        "write a name such as blog.example.com or *.example.com"
    };
    report.keep(field, HostPattern::parse(name), hint)
}

pub(super) fn host_name(report: &mut Report, field: &Field<'_>, name: &str) -> Option<HostName> {
    report.keep(
        field,
        HostName::parse(name),
        "write a name such as app.example.com or an IP address",
    )
}
