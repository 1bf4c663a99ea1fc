//! Files of a folder on the edge.

use std::fs;

use crate::support::program::succeed;
use crate::support::{Edge, missing, route_of};

const HOST: &str = "site.test";

/// An edge over a folder with an index, a text and a file outside.
fn edge(options: &str) -> (tempfile::TempDir, Edge) {
    let folder = tempfile::tempdir().unwrap();
    let site = folder.path().join("site");
    fs::create_dir_all(site.join("sub")).unwrap();
    fs::write(site.join("index.html"), "<h1>hello</h1>").unwrap();
    fs::write(site.join("digits.txt"), "0123456789").unwrap();
    fs::write(site.join("sub/a b.txt"), "spaced").unwrap();
    fs::write(folder.path().join("secret.txt"), "secret").unwrap();
    let spec = format!(
        "hostnames: [{HOST}]\nrules:\n- backends: [{{static: {{path: \"{}\"{options}}}}}]\n",
        site.display()
    );
    let edge = Edge::start(&[route_of("site", &spec)]);
    (folder, edge)
}

#[test]
fn files_have_type_length_and_validator() {
    let (_folder, edge) = edge("");
    let index = edge.get(HOST, "/");
    assert_eq!(
        (index.status, index.text().as_str()),
        (200, "<h1>hello</h1>")
    );
    assert!(index.header("content-type").starts_with("text/html"));
    let file = edge.get(HOST, "/digits.txt");
    assert_eq!(file.header("content-length"), "10");
    let etag = file.header("etag").to_owned();
    assert!(!etag.is_empty(), "{file:?}");
    let again = edge.request(HOST, "GET", "/digits.txt", &[("If-None-Match", &etag)]);
    assert_eq!((again.status, again.body.len()), (304, 0));
    let head = edge.request(HOST, "HEAD", "/digits.txt", &[]);
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, "10", 0)
    );
    assert_eq!(edge.get(HOST, "/sub/a%20b.txt").text(), "spaced");
    assert_eq!(edge.get(HOST, "/none").status, 404);
    assert_eq!(edge.request(HOST, "POST", "/digits.txt", &[]).status, 405);
}

#[test]
fn ranges_are_served_and_impossible_ones_refused() {
    let (_folder, edge) = edge("");
    let get = |range: &str| edge.request(HOST, "GET", "/digits.txt", &[("Range", range)]);
    let part = get("bytes=2-4");
    assert_eq!((part.status, part.text().as_str()), (206, "234"));
    assert_eq!(part.header("content-range"), "bytes 2-4/10");
    assert_eq!(get("bytes=-3").text(), "789");
    assert_eq!(get("bytes=7-").text(), "789");
    assert_eq!(get("bytes=20-").status, 416);
}

#[test]
fn curl_gets_several_ranges_over_every_http_version() {
    if missing(&["curl"]) {
        return;
    }
    let (folder, edge) = edge("");
    // More than is read at once.
    let digits = (0..50_000).fold(String::new(), |text, n| text + &format!("{n:05}\n"));
    fs::write(folder.path().join("site/large.txt"), &digits).unwrap();
    edge.wait_for_status(HOST, "/large.txt", 200);
    for version in ["--http1.1", "--http2"] {
        let text = succeed(
            edge.curl(&[HOST])
                .args([version, "--range", "240000-299999,0-5,-6", "-D", "-"])
                .arg(edge.url(HOST, "/large.txt")),
        );
        // The last range lies in the first: that is no set to serve as parts.
        assert!(
            text.contains(" 200") && text.ends_with(&digits),
            "{version}"
        );
        let text = succeed(
            edge.curl(&[HOST])
                .args([version, "--range", "240000-299993,0-5,-6", "-D", "-"])
                .arg(edge.url(HOST, "/large.txt")),
        );
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 206"), "{head}");
        let (_, boundary) = head.split_once("boundary=").unwrap();
        let boundary = boundary.lines().next().unwrap();
        let part = |start: usize, end: usize| {
            format!(
                "\r\n--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Range: bytes {start}-{end}/300000\r\n\r\n{}",
                &digits[start..=end]
            )
        };
        let expected = [
            part(240_000, 299_993),
            part(0, 5),
            part(299_994, 299_999),
            format!("\r\n--{boundary}--\r\n"),
        ];
        assert!(body == expected.concat(), "{version}: {head}");
    }
}

#[test]
fn nothing_outside_the_folder_is_served() {
    let (folder, edge) = edge("");
    std::os::unix::fs::symlink(
        folder.path().join("secret.txt"),
        folder.path().join("site/link"),
    )
    .unwrap();
    for path in [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/sub/../../secret.txt",
        "/sub/..%2f..%2fsecret.txt",
        "//secret.txt",
        "/%2e%2e%2fsecret.txt",
        "/..\\secret.txt",
        "/sub/%00/../../../secret.txt",
        "/link",
    ] {
        let reply = edge.request(HOST, "GET", path, &[]);
        assert_ne!(reply.text(), "secret", "{path}");
    }
}

#[test]
fn a_listing_is_given_only_when_asked_for() {
    let (_folder, plain) = edge("");
    assert!(matches!(plain.get(HOST, "/sub/").status, 403 | 404));
    let (_folder, listing) = edge(", listing: true");
    let page = listing.get(HOST, "/sub/");
    assert_eq!(page.status, 200);
    assert!(page.text().contains("a%20b.txt"), "{}", page.text());
}

#[test]
fn a_single_page_application_gets_its_page_for_every_path() {
    let (_folder, edge) = edge(", fallback: index.html");
    assert_eq!(edge.get(HOST, "/deep/link").text(), "<h1>hello</h1>");
    assert_eq!(edge.get(HOST, "/digits.txt").text(), "0123456789");
}
