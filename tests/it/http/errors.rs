//! What a client is told when a request does not get through.

use crate::support::{Edge, Origin, route, route_of};

const HOST: &str = "error.test";

#[test]
fn errors_speak_the_language_asked_for_and_name_the_request() {
    let edge = Edge::start(&[route("error", HOST, "127.0.0.1:1")]);
    let get = |accept: &str| edge.request(HOST, "GET", "/", &[("Accept", accept)]);
    let html = get("text/html,application/xhtml+xml;q=0.9");
    assert_eq!(html.status, 502);
    assert!(
        html.header("content-type").starts_with("text/html"),
        "{html:?}"
    );
    let json = get("application/json");
    assert!(json.header("content-type").contains("json"), "{json:?}");
    assert!(json.json().is_object());
    let text = get("*/*");
    assert!(
        text.header("content-type").starts_with("text/plain"),
        "{text:?}"
    );
    let said = text.text();
    let id = said
        .lines()
        .find_map(|line| line.strip_prefix("Request id: "))
        .unwrap_or_default();
    assert!(id.len() >= 16, "no request id in {said}");
    crate::support::eventually(
        "the id in the log",
        std::time::Duration::from_secs(5),
        || {
            if edge.log().contains(id) {
                Ok(())
            } else {
                Err(edge.log())
            }
        },
    );
}

#[test]
fn an_authority_outside_the_certificate_is_misdirected() {
    let origin = Origin::text("x");
    let edge = Edge::start(&[
        route("one", "one.error.test", origin.address()),
        route("two", "two.error.test", origin.address()),
    ]);
    assert_eq!(edge.get("one.error.test", "/").status, 200);
    let crossed = edge.request("one.error.test", "GET", "/", &[("host", "two.error.test")]);
    assert_eq!(crossed.status, 421);
    assert_eq!(origin.requests(), 1);
}

#[test]
fn a_path_nobody_serves_is_404() {
    let spec = format!(
        "hostnames: [{HOST}]\nrules:\n- match: {{pathPrefix: /a}}\n  filters: [{{type: FixedResponse, fixedResponse: {{body: a}}}}]\n"
    );
    let edge = Edge::start(&[route_of("error", &spec)]);
    assert_eq!(edge.get(HOST, "/a").status, 200);
    assert_eq!(edge.get(HOST, "/b").status, 404);
}

#[test]
fn bounds_of_requests_have_their_own_statuses() {
    let origin = Origin::echo();
    let spec = format!(
        "hostnames: [{HOST}]\nrules:\n- limits: {{requestBody: 1Ki}}\n  backends: [{{address: \"{}\"}}]\n",
        origin.address()
    );
    let edge = Edge::start(&[route_of("error", &spec)]);
    assert_eq!(
        edge.send(HOST, "POST", "/", &[], vec![b'x'; 1024]).status,
        200
    );
    assert_eq!(
        edge.send(HOST, "POST", "/", &[], vec![b'x'; 1025]).status,
        413
    );
    let long = format!("/?{}", "x".repeat(60_000));
    assert_eq!(
        edge.get(HOST, &long).status,
        200,
        "60 kB of query are a large scrape"
    );
    let many: Vec<(String, String)> = (0..150)
        .map(|n| (format!("x-{n}"), "1".to_owned()))
        .collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(edge.request(HOST, "GET", "/", &many).status, 431);
    let large = "x".repeat(70_000);
    assert_eq!(
        edge.request(HOST, "GET", "/", &[("x-large", &large)])
            .status,
        431
    );
}

#[test]
fn secrets_in_queries_stay_out_of_the_log() {
    let origin = Origin::text("x");
    let edge = Edge::start(&[route("error", HOST, origin.address())]);
    assert_eq!(
        edge.get(HOST, "/a?token=hunter2&passkey=hunter3&page=7")
            .status,
        200
    );
    crate::support::eventually(
        "the request in the log",
        std::time::Duration::from_secs(5),
        || {
            if edge.log().contains("page=7") {
                Ok(())
            } else {
                Err(edge.log())
            }
        },
    );
    assert!(!edge.log().contains("hunter"), "{}", edge.log());
}
