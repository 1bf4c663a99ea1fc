//! Tables for matching and explaining.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request, StatusCode};
use regex::Regex;
use tidegate_model::{
    Action, Filters, HostName, HostPattern, Limits, PlainHttp, RouteId, Rule, Timeouts, TlsMode,
    TlsPolicy, TlsVersion, ValueMatch,
};

use super::*;

fn rule(name: &str) -> Arc<Rule> {
    Arc::new(Rule {
        route: RouteId::new("default", "app"),
        name: name.to_owned(),
        filters: Filters::default(),
        action: Action::Unavailable(String::new()),
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        tracker: None,
        plain: false,
    })
}

fn host(entries: Vec<(&str, RequestMatch)>) -> VirtualHost {
    let guards_by_path = entries.iter().any(|(_, request)| request.path.is_some());
    VirtualHost {
        pattern: HostPattern::Exact(HostName::parse("app.example").unwrap()),
        route: RouteId::new("default", "app"),
        tls: TlsMode::Terminate(TlsPolicy {
            certificate: None,
            min_version: TlsVersion::Tls12,
            client_auth: None,
        }),
        plain_http: PlainHttp::Redirect(StatusCode::PERMANENT_REDIRECT),
        hsts: None,
        entries: entries
            .into_iter()
            .map(|(name, request)| RouteEntry {
                request,
                rule: rule(name),
            })
            .collect(),
        guards_by_path,
        plain: Vec::new(),
    }
}

fn on_path(path: PathMatch) -> RequestMatch {
    RequestMatch {
        path: Some(path),
        ..RequestMatch::default()
    }
}

fn prefix(path: &str) -> RequestMatch {
    on_path(PathMatch::Prefix(path.to_owned()))
}

fn get(target: &str) -> http::request::Parts {
    let request = Request::builder().uri(target.to_owned());
    request.body(()).unwrap().into_parts().0
}

/// Name of the rule, `-` for none, `!` for a refusal.
fn chosen(host: &VirtualHost, parts: &http::request::Parts) -> String {
    let canonical = path::canonical(parts.uri.path());
    match choose(host, &canonical, parts) {
        Ok(Some(entry)) => entry.rule.name.clone(),
        Ok(None) => "-".to_owned(),
        Err(_) => "!".to_owned(),
    }
}

#[test]
fn prefixes_match_whole_segments() {
    let host = host(vec![
        ("exact", on_path(PathMatch::Exact("/foo".to_owned()))),
        ("prefix", prefix("/foo")),
        (
            "regex",
            on_path(PathMatch::Regex(Regex::new("^(?:/v[0-9]+/.*)$").unwrap())),
        ),
        ("slash", prefix("/bar/")),
    ]);
    for (target, expected) in [
        ("/foo", "exact"),
        ("/foo?x=1", "exact"),
        ("/%66oo", "exact"),
        ("/foo/", "prefix"),
        ("/foo/bar", "prefix"),
        ("/foobar", "-"),
        ("/Foo", "-"),
        ("/v2/x", "regex"),
        ("/vx/x", "-"),
        ("/bar", "slash"),
        ("/bar/x", "slash"),
        ("/barx", "-"),
        ("/", "-"),
    ] {
        assert_eq!(chosen(&host, &get(target)), expected, "{target}");
    }
}

#[test]
fn no_spelling_of_a_guarded_path_reaches_the_open_rule() {
    let guarded = host(vec![("guard", prefix("/admin")), ("open", prefix("/"))]);
    for target in [
        "/admin",
        "/admin/",
        "/admin/x",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/admin%2e/..",
    ] {
        let found = chosen(&guarded, &get(target));
        assert!(found == "guard" || found == "!", "{target}: {found}");
    }
    for target in [
        "/x/../admin",
        "/./admin",
        "/x/%2e%2e/admin",
        "/x/.%2e/admin",
        "/x/%2E./admin",
        "/%2e/admin",
        "//admin",
        "///admin",
        "/x/..//admin",
        "/%2fadmin",
        "/%2Fadmin",
        "/x%2f..%2fadmin",
        "/x%2f../admin",
        "/\\admin",
        "/%5cadmin",
        "/x\\..\\admin",
        "/x%5c..%5cadmin",
        "/admin%00",
        "/%00/admin",
        "/admin%00.html",
        "/admin/../admin",
        "/..;/admin",
        "/x/..;/admin",
        "/x/..;a=b/admin",
        "/;/admin",
        "/;x/admin",
        "/admin;x",
        "/admin;x=1/y",
        "/.;/admin",
        "/%c0%afadmin",
        "/x/%c0%ae%c0%ae/admin",
        "/adm%in",
        "/%",
        "/%zz/admin",
        "/admin/..",
        "/admin/../x",
        "/x/./../admin",
        "/../admin",
        "/admin%2f",
        "/admin%2fx",
        "/admin%5cx",
    ] {
        assert_eq!(chosen(&guarded, &get(target)), "!", "{target}");
    }
    // Odd but with one meaning for this host.
    for target in [
        "/x//y",
        "/x/;a=1",
        "/web/https://example.com/",
        "/x;jsessionid=1",
        "/a%20b",
    ] {
        assert_eq!(chosen(&guarded, &get(target)), "open", "{target}");
    }
    for target in ["/admin//x", "/admin/x;v=1"] {
        assert_eq!(chosen(&guarded, &get(target)), "guard", "{target}");
    }
    let open = host(vec![("all", RequestMatch::default())]);
    for target in ["/a/../b", "//a", "/a%2fb", "/a%00"] {
        assert_eq!(chosen(&open, &get(target)), "all", "{target}");
    }
}

#[test]
fn headers_queries_and_methods_are_joined_by_and() {
    let exact = |value: &str| ValueMatch::Exact(value.to_owned());
    let host = host(vec![(
        "all",
        RequestMatch {
            path: None,
            method: Some(Method::GET),
            headers: vec![HeaderMatch {
                name: HeaderName::from_static("x-env"),
                value: exact("a,b"),
            }],
            query: vec![QueryMatch {
                name: "user name".to_owned(),
                value: ValueMatch::Regex(Regex::new("^(?:an+a é)$").unwrap()),
            }],
        },
    )]);
    let with = |target: &str, env: &[&str]| {
        let mut parts = get(target);
        for value in env {
            parts
                .headers
                .append("x-env", HeaderValue::from_str(value).unwrap());
        }
        chosen(&host, &parts)
    };
    let target = "/?x=1&user%20name=anna%20%C3%A9&user%20name=other";
    assert_eq!(with(target, &["a,b"]), "all");
    assert_eq!(with(target, &["a", "b"]), "all");
    assert_eq!(with(target, &["b", "a"]), "-");
    assert_eq!(with(target, &[]), "-");
    assert_eq!(with("/?user%20name=other&user%20name=anna", &["a,b"]), "-");
    assert_eq!(with("/?user+name=anna%20%C3%A9", &["a,b"]), "-");
    assert_eq!(with("/", &["a,b"]), "-");
    let mut post = get(target);
    post.method = Method::POST;
    post.headers
        .append("x-env", HeaderValue::from_static("a,b"));
    assert_eq!(chosen(&host, &post), "-");
}

#[test]
fn explain_tells_why_each_rule_lost() {
    let post = RequestMatch {
        method: Some(Method::POST),
        ..prefix("/api")
    };
    let host = host(vec![
        ("rules[0]", post),
        ("rules[1]", prefix("/api")),
        ("rules[2]", prefix("/")),
    ]);
    let request = |path: &str| ExplainRequest {
        method: Method::GET,
        path: path.to_owned(),
        query: None,
        headers: HeaderMap::new(),
    };
    let found: Vec<_> = explain(&host, None, &request("/api/x"))
        .into_iter()
        .map(|entry| (entry.conditions, entry.verdict))
        .collect();
    assert_eq!(
        found,
        [
            (
                "path prefix /api, method POST".to_owned(),
                Verdict::Failed {
                    condition: "method POST".to_owned(),
                    found: "GET".to_owned(),
                }
            ),
            ("path prefix /api".to_owned(), Verdict::Matched),
            (
                "path prefix /".to_owned(),
                Verdict::Shadowed {
                    by: "default/app rules[1]".to_owned()
                }
            ),
        ]
    );
    for path in ["/x/../api", "//api"] {
        let refused = explain(&host, None, &request(path))
            .iter()
            .any(|entry| matches!(entry.verdict, Verdict::Refused { .. }));
        assert!(refused, "{path}");
        assert_eq!(chosen(&host, &get(path)), "!");
    }
}
