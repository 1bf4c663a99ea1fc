//! Redirects by a rule: every part that can be named, through the real edge.

use std::fmt::Write as _;

use crate::support::{Edge, route_of};

const HOST: &str = "redirect.test";

/// An edge with a rule `/<n>` for each of the redirects.
fn edge(redirects: &[&str]) -> Edge {
    let mut spec = format!("hostnames: [{HOST}]\nrules:\n");
    for (n, redirect) in redirects.iter().enumerate() {
        let _ = writeln!(
            spec,
            "- match: {{pathPrefix: /{n}}}\n  filters: [{{type: RequestRedirect, requestRedirect: {{{redirect}}}}}]"
        );
    }
    Edge::start(&[route_of("redirect", &spec)])
}

#[test]
fn every_part_is_replaced_that_a_redirect_names_and_no_other() {
    // {} is the port of the listener. The scheme alone brings its own port, as in Gateway API.
    let cases = [
        (
            "hostname: www.test",
            302,
            "https://www.test:{}/0/a%20b?q=%2F+'",
        ),
        ("scheme: http", 302, "http://redirect.test/1/a%20b?q=%2F+'"),
        (
            "scheme: https",
            302,
            "https://redirect.test/2/a%20b?q=%2F+'",
        ),
        (
            "scheme: http, port: 8080",
            302,
            "http://redirect.test:8080/3/a%20b?q=%2F+'",
        ),
        ("port: 443", 302, "https://redirect.test/4/a%20b?q=%2F+'"),
        ("port: 80", 302, "https://redirect.test:80/5/a%20b?q=%2F+'"),
        (
            "path: {type: ReplaceFullPath, replaceFullPath: /new}",
            302,
            "https://redirect.test:{}/new?q=%2F+'",
        ),
        (
            "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}",
            302,
            "https://redirect.test:{}/new/a%20b?q=%2F+'",
        ),
        (
            "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}",
            302,
            "https://redirect.test:{}/a%20b?q=%2F+'",
        ),
        (
            "scheme: https, statusCode: 301",
            301,
            "https://redirect.test/9/a%20b?q=%2F+'",
        ),
        (
            "scheme: https, statusCode: 303",
            303,
            "https://redirect.test/10/a%20b?q=%2F+'",
        ),
        (
            "scheme: https, statusCode: 307",
            307,
            "https://redirect.test/11/a%20b?q=%2F+'",
        ),
        (
            "scheme: https, hostname: www.test, port: 444, path: {type: ReplaceFullPath, replaceFullPath: /x}, statusCode: 308",
            308,
            "https://www.test:444/x?q=%2F+'",
        ),
    ];
    let edge = edge(&cases.map(|(redirect, ..)| redirect));
    let port = edge.https.to_string();
    let host = format!("{HOST}:{port}");
    for (n, (redirect, status, location)) in cases.into_iter().enumerate() {
        let expected = location.replace("{}", &port);
        for method in ["GET", "HEAD", "POST"] {
            let path = format!("/{n}/a%20b?q=%2F+'");
            let reply = edge.request(HOST, method, &path, &[("Host", &host)]);
            assert_eq!(
                (reply.status, reply.header("location")),
                (status, expected.as_str()),
                "{method} {redirect}"
            );
        }
    }
    // Without a query there is none; the whole prefix leaves a slash.
    let reply = edge.request(HOST, "GET", "/8", &[("Host", &host)]);
    assert_eq!(reply.header("location"), format!("https://{host}/"));
    let reply = edge.request(HOST, "GET", "/7", &[("Host", &host)]);
    assert_eq!(reply.header("location"), format!("https://{host}/new"));
}
