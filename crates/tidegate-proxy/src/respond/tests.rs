//! Negotiation tables, escaping, and what every page must have.

use http_body::Body as _;

use super::*;

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap()
}

fn page(status: u16, accept: &str, language: &str) -> (http::response::Parts, String) {
    let (accept, language) = (value(accept), value(language));
    let status = StatusCode::from_u16(status).unwrap();
    let page = error_page(
        status,
        "SomeReason",
        "id-1",
        Some(&accept),
        Some(&language),
        false,
        None,
    );
    let (parts, body) = page.into_parts();
    let Body::Full(Some(bytes)) = body else {
        panic!("a page has a body")
    };
    (parts, String::from_utf8(bytes.to_vec()).unwrap())
}

#[test]
fn the_form_is_what_the_client_prefers() {
    for (accept, expected) in [
        (
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            Form::Html,
        ),
        ("*/*", Form::Text),
        ("application/json", Form::Json),
        ("application/problem+json, text/html;q=0.5", Form::Json),
        ("application/json, text/plain, */*", Form::Json),
        ("text/html;q=0.3, application/json;q=0.7", Form::Json),
        ("text/html;q=0, */*;q=0", Form::Text),
        ("image/webp", Form::Text),
        ("text/html;q=2", Form::Text),
        ("TEXT/HTML; level=1; q=0.9", Form::Html),
        ("", Form::Text),
    ] {
        assert_eq!(form(Some(&value(accept))), expected, "{accept}");
    }
    assert_eq!(form(None), Form::Text);
}

#[test]
fn the_language_is_what_the_client_prefers() {
    for (accept, expected) in [
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("ja, fr-CH;q=0.5, en;q=0.4", "fr"),
        ("ES", "es"),
        ("*", "en"),
        ("ja", "en"),
        ("de;q=0, en;q=0.1", "en"),
    ] {
        assert_eq!(language(Some(&value(accept))).tag(), expected, "{accept}");
    }
    assert_eq!(language(None).tag(), "en");
}

#[test]
fn every_form_names_status_reason_and_request() {
    for (accept, content_type) in [
        ("text/html", "text/html; charset=utf-8"),
        ("application/json", "application/problem+json"),
        ("*/*", "text/plain; charset=utf-8"),
    ] {
        let (parts, body) = page(502, accept, "de");
        assert_eq!(parts.status, 502);
        assert_eq!(parts.headers["content-type"], content_type);
        assert_eq!(parts.headers["content-language"], "de");
        assert_eq!(parts.headers["cache-control"], "no-store");
        assert_eq!(parts.headers["content-length"], body.len().to_string());
        for word in ["502", "Der Dienst antwortet nicht", "SomeReason", "id-1"] {
            assert!(body.contains(word), "{accept}: {word}");
        }
    }
}

#[test]
fn the_html_page_loads_nothing_and_its_policy_allows_its_style() {
    let (parts, body) = page(404, "text/html", "fr");
    let policy = parts.headers["content-security-policy"].to_str().unwrap();
    let style = body
        .split("<style>")
        .nth(1)
        .unwrap()
        .split("</style>")
        .next()
        .unwrap();
    let hash = STANDARD.encode(Sha256::digest(style.as_bytes()));
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
    assert!(policy.contains(&hash));
    for forbidden in ["http:", "https:", "src=", "href=", "<script", "url("] {
        assert!(!body.contains(forbidden), "{forbidden}");
    }
    assert!(body.starts_with("<!doctype html>\n<html lang=\"fr\">"));
}

#[test]
fn nothing_from_outside_reaches_a_page_unescaped() {
    let hostile = "\"><script>alert('x')</script>&\\\n";
    let render = |accept: &str| {
        let accept = value(accept);
        let response = error_page(
            StatusCode::NOT_FOUND,
            "R",
            hostile,
            Some(&accept),
            None,
            false,
            None,
        );
        match response.into_body() {
            Body::Full(Some(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => String::new(),
        }
    };
    let html = render("text/html");
    assert!(html.contains("&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;\\"));
    assert!(!html.contains("<script"));
    assert!(render("application/json").contains("\\\"><script>alert('x')</script>&\\\\\\u000a\"}"));
}

#[test]
fn an_answer_to_head_has_the_length_and_no_body() {
    let full = error_page(StatusCode::NOT_FOUND, "R", "id", None, None, false, None);
    let head = error_page(StatusCode::NOT_FOUND, "R", "id", None, None, true, None);
    assert_eq!(full.headers(), head.headers());
    assert!(head.body().is_end_stream() && !full.body().is_end_stream());
}

#[test]
fn every_status_of_the_edge_has_words_in_every_language() {
    for code in [
        400, 401, 403, 404, 405, 408, 413, 414, 417, 421, 429, 431, 500, 501, 502, 503, 504, 418,
        599,
    ] {
        let status = StatusCode::from_u16(code).unwrap();
        let all: Vec<_> = Language::ALL
            .iter()
            .map(|language| catalog::words(status, "", *language))
            .collect();
        for (i, words) in all.iter().enumerate() {
            assert!(
                !words.title.is_empty() && words.explanation.ends_with('.'),
                "{code}"
            );
            assert!(!all[..i].contains(words), "{code}");
        }
    }
}
