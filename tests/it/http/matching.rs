//! Which rule answers.

use crate::support::{Edge, route_of};

/// A rule that answers with its own name.
fn rule(name: &str, matching: &str) -> String {
    format!(
        "- name: {name}\n  {matching}\n  filters: [{{type: FixedResponse, fixedResponse: {{body: {name}}}}}]\n"
    )
}

#[test]
fn the_most_specific_rule_answers_whatever_its_place() {
    let rules = [
        rule("everything", "match: {pathPrefix: /}"),
        rule("prefix", "match: {pathPrefix: /a}"),
        rule("longer-prefix", "match: {pathPrefix: /a/b}"),
        rule(
            "expression",
            "match: {path: {type: RegularExpression, value: '/a/[0-9]+'}}",
        ),
        rule("exact", "match: {path: {type: Exact, value: /a/b/c}}"),
        rule("method", "match: {pathPrefix: /m, method: POST}"),
        rule(
            "header",
            "match: {pathPrefix: /h, headers: [{name: X-Version, value: beta}]}",
        ),
        rule(
            "query",
            "match: {pathPrefix: /q, queryParams: [{name: version, value: '2'}]}",
        ),
    ];
    let rules: Vec<_> = rules
        .concat()
        .lines()
        .map(|line| format!("  {line}\n"))
        .collect();
    let rules = rules.concat();
    let edge = Edge::start(&[route_of(
        "match",
        &format!("hostnames: [match.test]\nrules:\n{rules}"),
    )]);
    for (method, path, header, expected) in [
        ("GET", "/", None, "everything"),
        ("GET", "/ab", None, "everything"),
        ("GET", "/a", None, "prefix"),
        ("GET", "/a/", None, "prefix"),
        ("GET", "/a/x", None, "prefix"),
        ("GET", "/a/b", None, "longer-prefix"),
        ("GET", "/a/b/x", None, "longer-prefix"),
        ("GET", "/a/bc", None, "prefix"),
        ("GET", "/a/12", None, "expression"),
        ("GET", "/a/12/x", None, "prefix"),
        ("GET", "/a/b/c", None, "exact"),
        ("GET", "/a/b/c?x=y", None, "exact"),
        ("POST", "/m", None, "method"),
        ("GET", "/m", None, "everything"),
        ("GET", "/h", Some("beta"), "header"),
        ("GET", "/h", Some("alpha"), "everything"),
        ("GET", "/q?version=2", None, "query"),
        ("GET", "/q?version=%32", None, "query"),
        ("GET", "/q?version=1&version=2", None, "everything"),
    ] {
        let headers: Vec<_> = header
            .map(|value| ("X-Version", value))
            .into_iter()
            .collect();
        let reply = edge.request("match.test", method, path, &headers);
        assert_eq!(reply.text(), expected, "{method} {path} {header:?}");
    }
}

#[test]
fn hostnames_are_compared_without_case_and_a_wildcard_covers_one_label() {
    let edge = Edge::start(&[
        route_of(
            "exact",
            &format!(
                "hostnames: [one.wild.test]\nrules:\n{}",
                rule("exact", "match: {pathPrefix: /}")
            ),
        ),
        route_of(
            "wild",
            &format!(
                "hostnames: ['*.wild.test']\nrules:\n{}",
                rule("wild", "match: {pathPrefix: /}")
            ),
        ),
    ]);
    for (sni, host, expected) in [
        ("one.wild.test", "one.wild.test", "exact"),
        ("one.wild.test", "ONE.Wild.Test", "exact"),
        ("two.wild.test", "two.wild.test", "wild"),
        ("two.wild.test", "two.wild.test:443", "wild"),
    ] {
        let reply = edge.request(sni, "GET", "/", &[("host", host)]);
        assert_eq!(reply.text(), expected, "{host}");
    }
    let deep = edge.client().try_get("a.b.wild.test", "/");
    assert!(
        !matches!(&deep, Ok(reply) if reply.status < 400),
        "two labels under a wildcard: {deep:?}"
    );
}

#[test]
fn a_path_that_hides_where_it_leads_does_not_pass_a_guard() {
    let spec = "
        hostnames: [guard.test]
        rules:
        - name: open
          filters: [{type: FixedResponse, fixedResponse: {body: open}}]
        - name: admin
          match: {pathPrefix: /admin}
          filters: [{type: FixedResponse, fixedResponse: {status: 403, body: closed}}]
    ";
    let edge = Edge::start(&[route_of("guard", spec)]);
    assert_eq!(edge.get("guard.test", "/x").text(), "open");
    for path in [
        "/admin",
        "/admin/",
        "/admin/x",
        "//admin",
        "/x/../admin",
        "/./admin",
        "/x/./../admin",
        "/%61dmin",
        "/a%64min/x",
        "/x/%2e%2e/admin",
        "/x/..%2fadmin",
        "/x%2f..%2fadmin",
        "/admin%2fx",
        "/%2fadmin",
        "/x/.%2e/admin",
        "/admin%00",
        "/admin;x",
        "/x\\..\\admin",
        "/%5cadmin",
        "/admin//x",
        "/%25%36%31dmin/../admin",
        "/x/%2E%2E/admin",
    ] {
        let reply = edge.request("guard.test", "GET", path, &[]);
        let passed = reply.status == 200 && reply.text() == "open";
        // `;x` is a name of its own, as every backend here reads it.
        assert!(!passed || path == "/admin;x", "{path} passed the guard");
    }
}
