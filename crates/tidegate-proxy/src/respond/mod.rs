//! Answers that the edge writes itself: error pages in the form and language that the client prefers.
//!
//! One small page for browsers, problem details (RFC 9457) for programs, a few lines for everybody else.
//! Says what happened in plain words and which request id to look for in the log; never says anything
//! about backends, files or configuration beyond the reason.

mod catalog;

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use sha2::{Digest, Sha256};

use crate::body::Body;

use catalog::{Language, Words};

/// Seconds after which a page that reloads itself does so at the latest.
const MOST_RELOAD: u64 = 10;

/// Forms of an error page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Html,
    Json,
}

/// An error page. `reason` is the word that log and metrics have for it; `head_only` leaves the body out and
/// keeps its length, as an answer to HEAD must. With `reload` a browser asks again after that time, until
/// there is another answer.
pub(crate) fn error_page(
    status: StatusCode,
    reason: &str,
    request_id: &str,
    accept: Option<&HeaderValue>,
    accept_language: Option<&HeaderValue>,
    head_only: bool,
    reload: Option<Duration>,
) -> Response<Body> {
    let language = language(accept_language);
    let words = catalog::words(status, reason, language);
    let form = form(accept);
    let (content_type, body) = match form {
        Form::Text => (
            "text/plain; charset=utf-8",
            text(status, reason, request_id, language, words),
        ),
        Form::Html => (
            "text/html; charset=utf-8",
            html(status, reason, request_id, language, words, reload),
        ),
        Form::Json => (
            "application/problem+json",
            json(status, reason, request_id, words),
        ),
    };
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(
        header::CONTENT_LANGUAGE,
        HeaderValue::from_static(language.tag()),
    );
    headers.insert(
        header::VARY,
        HeaderValue::from_static("accept, accept-language"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if form == Form::Html {
        headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    }
    if !head_only {
        *response.body_mut() = Body::full(body);
    }
    response
}

// === negotiation ===

/// Items of a list header with their weights, in order; those that are refused (`q=0`) have weight 0.
pub(crate) fn weighted(value: &str) -> impl Iterator<Item = (&str, u16)> {
    value.split(',').filter_map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?;
        let weight = parts
            .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
            .map_or(1000, weight);
        Some((name, weight))
    })
}

/// Thousandths; what is no weight counts as nothing.
fn weight(text: &str) -> u16 {
    match text.parse::<f32>() {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 1000 by the guard"
        )]
        Ok(weight) if (0.0..=1.0).contains(&weight) => (weight * 1000.0) as u16,
        _ => 0,
    }
}

/// The form with the highest weight; then the one named most exactly, then the one named first. Programs
/// that take anything get text.
fn form(accept: Option<&HeaderValue>) -> Form {
    let Some(accept) = accept.and_then(|value| value.to_str().ok()) else {
        return Form::Text;
    };
    let mut best = (0, 0, Form::Text);
    for (range, weight) in weighted(accept) {
        let (exactness, form) = match range.to_ascii_lowercase().as_str() {
            "text/html" | "application/xhtml+xml" => (3, Form::Html),
            "text/plain" => (3, Form::Text),
            "text/*" => (2, Form::Text),
            "application/*" => (2, Form::Json),
            "*/*" => (1, Form::Text),
            "application/json" => (3, Form::Json),
            other if other.ends_with("+json") => (3, Form::Json),
            _ => continue,
        };
        if weight > 0 && (weight, exactness) > (best.0, best.1) {
            best = (weight, exactness, form);
        }
    }
    best.2
}

fn language(accept: Option<&HeaderValue>) -> Language {
    let Some(accept) = accept.and_then(|value| value.to_str().ok()) else {
        return Language::English;
    };
    let mut best = (0, Language::English);
    for (range, weight) in weighted(accept) {
        let primary = range.split('-').next().unwrap_or(range);
        if let Some(language) = Language::parse(primary)
            && weight > best.0
        {
            best = (weight, language);
        }
    }
    best.1
}

// === forms ===

fn text(
    status: StatusCode,
    reason: &str,
    request_id: &str,
    language: Language,
    words: Words,
) -> String {
    format!(
        "{} {}\n\n{}\n\n{}: {reason}\n{}: {request_id}\n",
        status.as_u16(),
        words.title,
        words.explanation,
        language.reason_label(),
        language.id_label(),
    )
}

fn json(status: StatusCode, reason: &str, request_id: &str, words: Words) -> String {
    let mut body = String::with_capacity(256);
    let _ = write!(
        body,
        "{{\"type\":\"about:blank\",\"status\":{},\"title\":",
        status.as_u16()
    );
    json_string(&mut body, words.title);
    body.push_str(",\"detail\":");
    json_string(&mut body, words.explanation);
    body.push_str(",\"reason\":");
    json_string(&mut body, reason);
    body.push_str(",\"requestId\":");
    json_string(&mut body, request_id);
    body.push_str("}\n");
    body
}

/// RFC 8259 §7.
fn json_string(into: &mut String, text: &str) {
    into.push('"');
    for c in text.chars() {
        match c {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(into, "\\u{:04x}", u32::from(c));
            }
            c => into.push(c),
        }
    }
    into.push('"');
}

/// Escapes text for HTML content and quoted attributes.
pub(crate) fn html_escape(into: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => into.push_str("&amp;"),
            '<' => into.push_str("&lt;"),
            '>' => into.push_str("&gt;"),
            '"' => into.push_str("&quot;"),
            '\'' => into.push_str("&#39;"),
            c => into.push(c),
        }
    }
}

const STYLE: &str = ":root{color-scheme:light dark}\
*{box-sizing:border-box}\
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;\
font:16px/1.6 system-ui,sans-serif;color:#1b2733;background:#f4f6f8}\
main{max-width:34rem;width:100%;padding:2.5rem 2.25rem;background:#fff;border:1px solid #dce3e9;border-radius:14px}\
p.s{margin:0;font-size:.95rem;font-weight:600;letter-spacing:.08em;color:#0b6a7c}\
h1{margin:.25rem 0 .75rem;font-size:1.6rem;line-height:1.25}\
p{margin:0 0 1.5rem}\
dl{margin:0;padding-top:1.25rem;border-top:1px solid #dce3e9;display:grid;grid-template-columns:auto 1fr;\
gap:.25rem 1rem;font-size:.85rem;color:#4a5a68}\
dd{margin:0;font-family:ui-monospace,monospace;overflow-wrap:anywhere}\
@media(prefers-color-scheme:dark){body{color:#e3eaf0;background:#11171c}\
main{background:#1a2228;border-color:#2c3840}p.s{color:#6cc5d6}dl{border-color:#2c3840;color:#a3b3bf}}";

/// Nothing may be loaded or run; only the page's own style, by its hash.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy(STYLE));

/// A policy for a page that consists of itself and one style element.
pub(crate) fn policy(style: &str) -> HeaderValue {
    let hash = STANDARD.encode(Sha256::digest(style.as_bytes()));
    HeaderValue::try_from(format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    ))
    .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
}

fn html(
    status: StatusCode,
    reason: &str,
    request_id: &str,
    language: Language,
    words: Words,
    reload: Option<Duration>,
) -> String {
    let mut page = String::with_capacity(STYLE.len() + 1024);
    let code = status.as_u16();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"{}\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"robots\" content=\"noindex\"><title>{code} ",
        language.tag()
    );
    html_escape(&mut page, words.title);
    page.push_str("</title>");
    if let Some(reload) = reload {
        // Not by a script: the page may run none, and not every browser does.
        let seconds = reload.as_secs().clamp(1, MOST_RELOAD);
        let _ = write!(page, "<meta http-equiv=\"refresh\" content=\"{seconds}\">");
    }
    let _ = write!(
        page,
        "<style>{STYLE}</style></head><body><main><p class=\"s\">{code}</p><h1>"
    );
    html_escape(&mut page, words.title);
    page.push_str("</h1><p>");
    html_escape(&mut page, words.explanation);
    page.push_str("</p><dl>");
    for (label, value) in [
        (language.reason_label(), reason),
        (language.id_label(), request_id),
    ] {
        page.push_str("<dt>");
        html_escape(&mut page, label);
        page.push_str("</dt><dd>");
        html_escape(&mut page, value);
        page.push_str("</dd>");
    }
    page.push_str("</dl></main></body></html>\n");
    page
}

#[cfg(test)]
mod tests;
