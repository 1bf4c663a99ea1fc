//! A real folder with everything in it that must and must not be served.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use http_body_util::BodyExt;
use tempfile::TempDir;

use super::*;

struct Site {
    _outer: TempDir,
    folder: StaticFolder,
}

fn site() -> Site {
    let outer = TempDir::new().unwrap();
    let root = outer.path().join("root");
    for folder in ["sub/deep", "empty", ".well-known", ".git", "odd"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
    write("index.html", "<h1>home</h1>");
    write("app.js", "let a;");
    write("app.js.br", "BR");
    write("app.js.gz", "GZ");
    write("sub/index.html", "sub");
    write("sub/deep/a b.txt", "0123456789");
    write(".well-known/security.txt", "contact");
    write(".env", "SECRET");
    write(".git/config", "SECRET");
    write("odd/<b>&\"x'.txt", "odd");
    write("odd/.hidden", "SECRET");
    write("odd/a:b", "colon");
    fs::write(root.join("large.bin"), large()).unwrap();
    fs::write(outer.path().join("secret.txt"), "SECRET").unwrap();
    symlink(outer.path().join("secret.txt"), root.join("leak.txt")).unwrap();
    symlink(outer.path(), root.join("up")).unwrap();
    symlink(root.join("app.js"), root.join("link.js")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let folder = StaticFolder {
        root,
        strip_prefix: String::new(),
        index: vec!["index.html".to_owned()],
        listing: false,
        fallback: None,
    };
    Site {
        _outer: outer,
        folder,
    }
}

fn large() -> Vec<u8> {
    (0..300_000_u32)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect()
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Site {
    async fn ask(&self, method: Method, target: &str, fields: &[(&str, &str)]) -> Answer {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let target = target.parse().unwrap();
        match serve(&self.folder, &method, &target, &headers).await {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                Answer {
                    status: parts.status.as_u16(),
                    headers: parts.headers,
                    body: body.collect().await.unwrap().to_bytes().to_vec(),
                }
            }
            Err(refusal) => Answer {
                status: refusal.status.as_u16(),
                headers: HeaderMap::new(),
                body: Vec::new(),
            },
        }
    }

    async fn get(&self, target: &str, fields: &[(&str, &str)]) -> Answer {
        self.ask(Method::GET, target, fields).await
    }
}

#[tokio::test]
async fn files_are_served_with_their_type() {
    let site = site();
    for (target, content_type, body) in [
        ("/", "text/html; charset=utf-8", "<h1>home</h1>"),
        (
            "/index.html?v=1",
            "text/html; charset=utf-8",
            "<h1>home</h1>",
        ),
        ("/sub/", "text/html; charset=utf-8", "sub"),
        (
            "/sub/deep/a%20b.txt",
            "text/plain; charset=utf-8",
            "0123456789",
        ),
        (
            "/sub//deep/a%20b.txt",
            "text/plain; charset=utf-8",
            "0123456789",
        ),
        ("/app.js", "text/javascript; charset=utf-8", "let a;"),
        ("/link.js", "text/javascript; charset=utf-8", "let a;"),
        (
            "/.well-known/security.txt",
            "text/plain; charset=utf-8",
            "contact",
        ),
        ("/odd/a:b", "application/octet-stream", "colon"),
    ] {
        let found = site.get(target, &[]).await;
        assert_eq!(
            (found.status, found.body.as_slice()),
            (200, body.as_bytes()),
            "{target}"
        );
        assert_eq!(found.headers["content-type"], content_type, "{target}");
        assert_eq!(
            found.headers["content-length"],
            body.len().to_string(),
            "{target}"
        );
        assert_eq!(
            found.headers["x-content-type-options"], "nosniff",
            "{target}"
        );
    }
}

#[tokio::test]
async fn nothing_outside_of_the_folder_is_served() {
    let site = site();
    for target in [
        "/leak.txt",
        "/up/secret.txt",
        "/up/",
        "/loop",
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/sub/..%2f..%2fsecret.txt",
        "/%00",
        "/index.html%00",
        "/sub%2findex.html",
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/sub/.well-known",
        "/index.html/",
        "/missing",
        "/empty/",
        "/sub/deep/",
        "/odd/.hidden",
        "/..%5csecret.txt",
        "/./index.html",
    ] {
        let found = site.get(target, &[]).await;
        assert_eq!(found.status, 404, "{target}");
    }
    let long = format!("/{}", "a".repeat(300));
    assert_eq!(site.get(&long, &[]).await.status, 404);
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let site = site();
    let post = site.ask(Method::POST, "/", &[]).await;
    assert_eq!(post.status, 405);
    assert_eq!(post.headers["allow"], "GET, HEAD");
    for target in ["/", "/large.bin"] {
        let get = site.get(target, &[]).await;
        let head = site.ask(Method::HEAD, target, &[]).await;
        assert_eq!(
            (head.status, head.headers, head.body.len()),
            (200, get.headers, 0)
        );
    }
}

#[tokio::test]
async fn a_folder_gets_its_slash() {
    let site = site();
    let found = site.get("/sub?x=1", &[]).await;
    assert_eq!(
        (found.status, &found.headers["location"]),
        (308, &HeaderValue::from_static("/sub/?x=1"))
    );
    let found = site.get("//sub", &[]).await;
    assert_eq!(found.headers["location"], "/sub/");
}

#[tokio::test]
async fn large_files_come_in_chunks_and_parts() {
    let site = site();
    let whole = large();
    let found = site.get("/large.bin", &[]).await;
    assert!(found.status == 200 && found.body == whole);
    for (target, range, start, end) in [
        ("/large.bin", "bytes=0-0", 0, 0),
        ("/large.bin", "bytes=100000-270000", 100_000, 270_000),
        ("/large.bin", "bytes=-5", 299_995, 299_999),
        ("/large.bin", "bytes=299999-", 299_999, 299_999),
    ] {
        let found = site.get(target, &[("range", range)]).await;
        assert_eq!(found.status, 206, "{range}");
        assert_eq!(
            found.headers["content-range"],
            format!("bytes {start}-{end}/300000")
        );
        assert_eq!(
            found.headers["content-length"],
            (end - start + 1).to_string()
        );
        assert!(found.body == whole[start..=end], "{range}");
    }
    let small = site
        .get("/sub/deep/a%20b.txt", &[("range", "bytes=2-4")])
        .await;
    assert_eq!(
        (small.status, small.body.as_slice()),
        (206, b"234".as_slice())
    );
    let beyond = site.get("/large.bin", &[("range", "bytes=300000-")]).await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.headers["content-range"], "bytes */300000");
    let head = site
        .ask(Method::HEAD, "/large.bin", &[("range", "bytes=0-1")])
        .await;
    assert_eq!(head.status, 200);
}

/// What RFC 9110 §14.6 says such a body holds: range and bytes of each part.
fn parts_of(answer: &Answer, content_type: &str) -> Vec<(String, Vec<u8>)> {
    let boundary = answer.headers["content-type"]
        .to_str()
        .unwrap()
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = answer.body.strip_prefix(delimiter.as_bytes()).unwrap();
    let mut parts = Vec::new();
    while rest != b"--\r\n" {
        let find = |text: &[u8], what: &str| {
            let what = what.as_bytes();
            text.windows(what.len())
                .position(|window| window == what)
                .unwrap()
        };
        let head = find(rest, "\r\n\r\n") + 4;
        let end = head + find(&rest[head..], &delimiter);
        let text = std::str::from_utf8(&rest[..head]).unwrap();
        let prefix = format!("\r\nContent-Type: {content_type}\r\nContent-Range: ");
        let range = text.strip_prefix(&prefix).unwrap().trim_end();
        parts.push((range.to_owned(), rest[head..end].to_vec()));
        rest = &rest[end + delimiter.len()..];
    }
    parts
}

#[tokio::test]
async fn several_ranges_come_in_one_body_in_the_order_asked_for() {
    let site = site();
    let whole = large();
    let ask = ("range", "bytes=200000-299999, 5-5,-0, 70000-140000");
    let found = site.get("/large.bin", &[ask]).await;
    assert_eq!(found.status, 206);
    assert!(!found.headers.contains_key("content-range"));
    assert_eq!(
        found.headers["content-length"],
        found.body.len().to_string()
    );
    let parts = parts_of(&found, "application/octet-stream");
    let expected = [(200_000, 299_999), (5, 5), (70_000, 140_000)];
    assert_eq!(parts.len(), expected.len());
    for ((range, bytes), (start, end)) in parts.iter().zip(expected) {
        assert_eq!(*range, format!("bytes {start}-{end}/300000"));
        assert!(*bytes == whole[start..=end], "{range}");
    }
    // The same from a file that is read at once.
    let target = "/sub/deep/a%20b.txt";
    let small = site.get(target, &[("range", "bytes=8-,0-1")]).await;
    let expected = [("bytes 8-9/10", "89"), ("bytes 0-1/10", "01")]
        .map(|(range, text)| (range.to_owned(), text.as_bytes().to_vec()));
    assert_eq!(parts_of(&small, "text/plain; charset=utf-8"), expected);
    let head = [("range", "bytes=0-1,3-4"), ("if-range", "\"x\"")];
    let changed = site.get(target, &head).await;
    assert_eq!((changed.status, changed.body.len()), (200, 10));
    let overlapping = site.get(target, &[("range", "bytes=0-4,4-9")]).await;
    assert_eq!(
        (overlapping.status, overlapping.body.as_slice()),
        (200, b"0123456789".as_slice())
    );
}

#[tokio::test]
async fn several_ranges_of_a_coded_file_are_the_whole_file() {
    let site = site();
    let ask = [("range", "bytes=0-0,1-1"), ("accept-encoding", "br")];
    let found = site.get("/app.js", &ask).await;
    assert_eq!(
        (found.status, found.body.as_slice()),
        (200, b"BR".as_slice())
    );
    assert_eq!(found.headers["content-encoding"], "br");
}

#[tokio::test]
async fn validators_decide() {
    let site = site();
    let first = site.get("/app.js", &[]).await;
    let etag = first.headers["etag"].to_str().unwrap().to_owned();
    let modified = first.headers["last-modified"].to_str().unwrap().to_owned();
    let weak = format!("W/{etag}");
    let list = format!("\"x\", {etag}");
    let old = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (fields, expected) in [
        (vec![("if-none-match", etag.as_str())], 304),
        (vec![("if-none-match", weak.as_str())], 304),
        (vec![("if-none-match", list.as_str())], 304),
        (vec![("if-none-match", "*")], 304),
        (vec![("if-none-match", "\"x\"")], 200),
        (
            vec![("if-none-match", "\"x\""), ("if-modified-since", &modified)],
            200,
        ),
        (vec![("if-modified-since", modified.as_str())], 304),
        (vec![("if-modified-since", old)], 200),
        (vec![("if-modified-since", "nonsense")], 200),
        (vec![("if-match", etag.as_str())], 200),
        (vec![("if-match", "*")], 200),
        (vec![("if-match", weak.as_str())], 412),
        (vec![("if-match", "\"x\"")], 412),
        (vec![("if-unmodified-since", old)], 412),
        (vec![("if-unmodified-since", modified.as_str())], 200),
        (vec![("range", "bytes=0-1"), ("if-range", &etag)], 206),
        (vec![("range", "bytes=0-1"), ("if-range", &modified)], 206),
        (vec![("range", "bytes=0-1"), ("if-range", &weak)], 200),
        (vec![("range", "bytes=0-1"), ("if-range", "\"x\"")], 200),
        (vec![("range", "bytes=0-1"), ("if-none-match", &etag)], 304),
    ] {
        let found = site.get("/app.js", &fields).await;
        assert_eq!(found.status, expected, "{fields:?}");
        assert!(found.status != 304 || found.body.is_empty());
        assert_eq!(found.headers["etag"], etag, "{fields:?}");
    }
    fs::write(site.folder.root.join("app.js"), "let b = 2;").unwrap();
    let changed = site.get("/app.js", &[("if-none-match", &etag)]).await;
    assert_eq!(changed.status, 200);
}

#[tokio::test]
async fn precompressed_siblings_are_used() {
    let site = site();
    let plain = site.get("/app.js", &[]).await;
    assert_eq!(
        (plain.body.as_slice(), &plain.headers["vary"]),
        (
            b"let a;".as_slice(),
            &HeaderValue::from_static("accept-encoding")
        )
    );
    for (accept, coding, body) in [
        ("gzip, br", Some("br"), "BR"),
        ("gzip", Some("gzip"), "GZ"),
        ("br;q=0.1, gzip", Some("gzip"), "GZ"),
        ("zstd", None, "let a;"),
        ("zstd, gzip;q=0.1", Some("gzip"), "GZ"),
        ("br;q=0", None, "let a;"),
    ] {
        let found = site.get("/app.js", &[("accept-encoding", accept)]).await;
        assert_eq!(found.body, body.as_bytes(), "{accept}");
        assert_eq!(
            found
                .headers
                .get("content-encoding")
                .map(|v| v.to_str().unwrap()),
            coding
        );
        assert_eq!(
            found.headers["content-type"],
            "text/javascript; charset=utf-8"
        );
        assert_eq!(found.headers["vary"], "accept-encoding");
        assert_eq!(
            coding.is_some(),
            found.headers["etag"] != plain.headers["etag"]
        );
    }
    assert!(!site.get("/", &[]).await.headers.contains_key("vary"));
}

#[tokio::test]
async fn listings_escape_and_hide() {
    let mut site = site();
    site.folder.listing = true;
    let found = site.get("/odd/", &[]).await;
    let page = String::from_utf8(found.body).unwrap();
    assert_eq!(found.status, 200);
    assert!(
        page.contains("href=\"./%3Cb%3E&amp;%22x&#39;.txt\">&lt;b&gt;&amp;&quot;x&#39;.txt</a>"),
        "{page}"
    );
    assert!(page.contains("href=\"./a:b\""));
    assert!(page.contains("../"));
    assert!(!page.contains("hidden") && !page.contains("<b>"));
    let root = String::from_utf8(site.get("/", &[]).await.body).unwrap();
    assert_eq!(root, "<h1>home</h1>");
    site.folder.index.clear();
    let root = String::from_utf8(site.get("/", &[]).await.body).unwrap();
    assert!(root.contains("app.js") && root.find("sub/") < root.find("app.js"));
    for hidden in [".env", ".git", "leak.txt", "up/", "../"] {
        assert!(!root.contains(hidden), "{hidden}");
    }
    assert!(root.contains("293.0 KiB") || root.contains("292.9 KiB"));
}

#[tokio::test]
async fn a_fallback_answers_for_what_is_missing() {
    let mut site = site();
    site.folder.fallback = Some("index.html".to_owned());
    for target in ["/missing", "/deep/link", "/app.js/"] {
        let found = site.get(target, &[]).await;
        assert_eq!(
            (found.status, found.body.as_slice()),
            (200, b"<h1>home</h1>".as_slice()),
            "{target}"
        );
    }
    assert_eq!(site.get("/.env", &[]).await.status, 404);
    site.folder.fallback = Some("../secret.txt".to_owned());
    assert_eq!(site.get("/missing", &[]).await.status, 404);
}

#[tokio::test]
async fn a_prefix_stands_for_the_folder() {
    let mut site = site();
    site.folder.strip_prefix = "/files/x".to_owned();
    assert_eq!(site.get("/files/x/app.js", &[]).await.body, b"let a;");
    assert_eq!(site.get("/f%69les/x/app.js", &[]).await.body, b"let a;");
    assert_eq!(site.get("/files/x/", &[]).await.body, b"<h1>home</h1>");
    assert_eq!(
        site.get("/files/x", &[]).await.headers["location"],
        "/files/x/"
    );
    assert_eq!(site.get("/app.js", &[]).await.status, 404);
}

#[tokio::test]
async fn a_file_that_shrinks_breaks_off() {
    let site = site();
    let target = "/large.bin".parse().unwrap();
    let response = serve(&site.folder, &Method::GET, &target, &HeaderMap::new())
        .await
        .unwrap();
    truncate(&site.folder.root.join("large.bin"));
    assert!(response.into_body().collect().await.is_err());
}

fn truncate(path: &Path) {
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(10)
        .unwrap();
}
