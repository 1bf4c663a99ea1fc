//! Filters through the whole edge: what the backend sees of them, and the client.

use std::io::Read;
use std::sync::mpsc;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use tidegate_model::{
    BasicAuth, Compression, CompressionAlgorithm, Cors, ForwardAuth, HeaderEdits, Mirror,
    OriginPattern, RateLimit, RateLimitKey, Secret, StaticFolder,
};

use super::*;

fn with(head: &str, fields: &str) -> String {
    head.replace("Connection:", &format!("{fields}Connection:"))
}

pub(super) fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer
        .split_once("\r\n\r\n")
        .map_or(answer, |(head, _)| head);
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

fn answering(answer: &'static str) -> (Origin, mpsc::Receiver<String>) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |_, mut stream| {
        loop {
            let head = read_head(&mut stream);
            if head.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
            let _ = tell.send(head);
        }
    });
    (origin, told)
}

fn forward_auth(service: SocketAddr) -> ForwardAuth {
    ForwardAuth {
        cluster: cluster(service),
        path: "/verify?for=app".to_owned(),
        request_headers: vec![],
        response_headers: vec![
            HeaderName::from_static("remote-user"),
            HeaderName::from_static("remote-groups"),
        ],
        timeout: Duration::from_millis(500),
    }
}

#[test]
fn a_service_that_says_yes_lets_the_request_pass_with_its_headers() {
    let (service, asked) =
        answering("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nRemote-User: anna\r\n\r\nyes");
    let origin = Origin::echo();
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.filters.forward_auth = Some(Arc::new(forward_auth(service.address)));
    let edge = TestEdge::start(rule);
    for _ in 0..3 {
        let body = "POST /app?x=1 HTTP/1.1\r\nHost: app.test\r\nContent-Length: 2\r\nCookie: s=1\r\n\
                    Remote-User: eve\r\nRemote-Groups: admin\r\nX-Forwarded-Method: GET\r\n\
                    X-Forwarded-Uri: /public\r\nConnection: close\r\n\r\nhi";
        let answer = edge.exchange(body);
        assert_eq!(status_of(&answer), 200);
        assert!(answer.contains("\r\nRemote-User: anna\r\n"), "{answer}");
        for lie in ["eve", "admin"] {
            assert!(!answer.contains(lie), "{lie}: {answer}");
        }
        let question = asked.recv_timeout(PATIENCE).unwrap();
        assert!(
            question.starts_with("GET /verify?for=app HTTP/1.1\r\n"),
            "{question}"
        );
        for (name, expected) in [
            ("x-forwarded-method", Some("POST")),
            ("x-forwarded-uri", Some("/app?x=1")),
            ("x-forwarded-host", Some("app.test")),
            ("x-forwarded-proto", Some("http")),
            ("x-forwarded-for", Some("127.0.0.1")),
            ("cookie", Some("s=1")),
            ("content-length", None),
            ("transfer-encoding", None),
        ] {
            assert_eq!(field(&question, name), expected, "{name}: {question}");
        }
    }
}

#[test]
fn a_service_that_says_anything_else_is_the_answer() {
    let origin = Origin::echo();
    let edge = |service: SocketAddr| {
        let mut rule = forward_to(&[cluster(origin.address)]);
        rule.filters.forward_auth = Some(Arc::new(forward_auth(service)));
        TestEdge::start(rule)
    };
    let (login, _) = answering(
        "HTTP/1.1 302 Found\r\nLocation: https://login.test/\r\nSet-Cookie: a=1\r\n\
         Set-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
    );
    let answer = edge(login.address).exchange(&get("/"));
    assert_eq!(status_of(&answer), 302);
    assert_eq!(field(&answer, "location"), Some("https://login.test/"));
    assert_eq!(answer.matches("set-cookie").count(), 2, "{answer}");
    let (refusing, _) = answering(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 2\r\n\r\nno",
    );
    let answer = edge(refusing.address).exchange(&get("/"));
    assert_eq!(status_of(&answer), 401);
    assert_eq!(field(&answer, "www-authenticate"), Some("Bearer"));
    assert!(answer.ends_with("\r\n\r\nno"), "{answer}");
    let silent = Origin::scripted(|_, mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!(status_of(&edge(silent.address).exchange(&get("/"))), 504);
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    assert_eq!(status_of(&edge(nobody).exchange(&get("/"))), 502);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 0);
}

fn basic_auth() -> Arc<BasicAuth> {
    let hash = bcrypt::hash("secret", 4).unwrap();
    Arc::new(BasicAuth {
        realm: "Tides".to_owned(),
        users: vec![("anna".to_owned(), Secret::new(hash))],
        user_header: Some(HeaderName::from_static("x-user")),
    })
}

#[test]
fn a_password_opens_the_door_and_stays_outside() {
    let origin = Origin::echo();
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.filters.basic_auth = Some(basic_auth());
    let edge = TestEdge::start(rule);
    let refused = edge.exchange(&get("/"));
    assert_eq!(status_of(&refused), 401);
    let challenge = field(&refused, "www-authenticate").unwrap();
    assert!(
        challenge.starts_with("Basic realm=\"Tides\""),
        "{challenge}"
    );
    // anna:wrong, then anna:secret
    let wrong = with(&get("/"), "Authorization: Basic YW5uYTp3cm9uZw==\r\n");
    assert_eq!(status_of(&edge.exchange(&wrong)), 401);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 0);
    let good = "Authorization: Basic YW5uYTpzZWNyZXQ=\r\nX-User: eve\r\n";
    let answer = edge.exchange(&with(&get("/"), good));
    assert_eq!(status_of(&answer), 200);
    assert!(answer.contains("\r\nX-User: anna\r\n"), "{answer}");
    assert!(!answer.contains("eve"), "{answer}");
    assert!(!answer.contains("Authorization"), "{answer}");
}

fn cors() -> Cors {
    Cors {
        allow_origins: vec![OriginPattern::Exact("https://ui.test".to_owned())],
        allow_methods: vec![Method::PUT],
        allow_any_method: false,
        allow_headers: vec![],
        allow_any_header: true,
        expose_headers: vec![HeaderName::from_static("x-total")],
        allow_credentials: true,
        max_age: Duration::from_secs(600),
    }
}

const FROM_UI: &str = "Origin: https://ui.test\r\n";

#[test]
fn a_preflight_never_reaches_the_backend_and_every_answer_may_be_read() {
    let origin = Origin::echo();
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let edge = |backend, change: &dyn Fn(&mut Rule)| {
        let mut rule = forward_to(&[cluster(backend)]);
        rule.filters.cors = Some(cors());
        rule.filters.response_headers = HeaderEdits {
            set: vec![(
                HeaderName::from_static("x-edited"),
                HeaderValue::from_static("1"),
            )],
            ..HeaderEdits::default()
        };
        change(&mut rule);
        TestEdge::start(rule)
    };
    let allowed = |answer: &str, status| {
        assert_eq!(status_of(answer), status, "{answer}");
        let origin = field(answer, "access-control-allow-origin");
        assert_eq!(origin, Some("https://ui.test"), "{answer}");
        assert_eq!(field(answer, "x-edited"), Some("1"), "{answer}");
    };
    let closed = edge(origin.address, &|rule| {
        rule.filters.basic_auth = Some(basic_auth());
    });
    let preflight = with(
        &get("/").replacen("GET", "OPTIONS", 1),
        &format!(
            "{FROM_UI}Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-a\r\n"
        ),
    );
    let answer = closed.exchange(&preflight);
    allowed(&answer, 204);
    assert_eq!(field(&answer, "access-control-allow-methods"), Some("PUT"));
    assert_eq!(field(&answer, "access-control-allow-headers"), Some("x-a"));
    assert_eq!(field(&answer, "access-control-max-age"), Some("600"));
    assert_eq!(origin.connections.load(Ordering::SeqCst), 0);
    allowed(&closed.exchange(&with(&get("/"), FROM_UI)), 401);
    let stranger = closed.exchange(&with(&get("/"), "Origin: https://evil.test\r\n"));
    assert_eq!(field(&stranger, "access-control-allow-origin"), None);
    drop(closed);

    let open = edge(origin.address, &|_| {});
    let answer = open.exchange(&with(&get("/"), FROM_UI));
    allowed(&answer, 200);
    assert_eq!(
        field(&answer, "access-control-expose-headers"),
        Some("x-total")
    );
    drop(open);
    let broken = edge(nobody, &|_| {});
    allowed(&broken.exchange(&with(&get("/"), FROM_UI)), 502);
    drop(broken);
    let limited = edge(origin.address, &|rule| {
        rule.filters.rate_limits = vec![once_an_hour()];
    });
    allowed(&limited.exchange(&with(&get("/"), FROM_UI)), 200);
    allowed(&limited.exchange(&with(&get("/"), FROM_UI)), 429);
}

fn once_an_hour() -> RateLimit {
    RateLimit {
        id: "default/test/0".into(),
        requests: 1,
        period: Duration::from_secs(3600),
        burst: 1,
        key: RateLimitKey::ClientIp,
    }
}

#[test]
fn a_client_that_asks_too_often_is_told_when_to_come_back() {
    let origin = Origin::echo();
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.filters.rate_limits = vec![once_an_hour()];
    let edge = TestEdge::start(rule);
    assert_eq!(status_of(&edge.exchange(&get("/"))), 200);
    let refused = edge.exchange(&get("/"));
    assert_eq!(status_of(&refused), 429);
    let wait: u64 = field(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((3000..=3600).contains(&wait), "{wait}");
}

#[test]
fn a_client_has_a_number_of_requests_at_once() {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let _ = released.lock().unwrap().recv_timeout(PATIENCE);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.limits.requests_per_client = Some(1);
    let edge = TestEdge::start(rule);
    let mut first = edge.connect();
    first.write_all(get("/").as_bytes()).unwrap();
    while origin.connections.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    let refused = edge.exchange(&get("/"));
    assert_eq!(status_of(&refused), 429);
    assert_eq!(field(&refused, "retry-after"), Some("1"));
    release.send(()).unwrap();
    assert_eq!(status_of(&read_to_end(&mut first)), 200);
    release.send(()).unwrap();
    assert_eq!(status_of(&edge.exchange(&get("/"))), 200);
}

#[test]
fn a_mirror_gets_what_the_backend_gets_and_slows_nobody() {
    let (tell, told) = mpsc::channel();
    let copies = Origin::scripted(move |_, mut stream| {
        let head = read_head(&mut stream);
        let length = field(&head, "content-length").map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        tell.send((head, body)).unwrap();
        // It never answers.
        let _ = stream.read(&mut [0]);
    });
    let origin = Origin::echo();
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.filters.mirrors = vec![Mirror {
        cluster: cluster(copies.address),
        percent: 100,
    }];
    let edge = TestEdge::start(rule);
    assert_eq!(status_of(&edge.exchange(&get("/a?b=c"))), 200);
    let (head, body) = told.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nHost: app.test\r\n"), "{head}");
    assert!(body.is_empty());
    let put = format!(
        "PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    );
    // The origin reads heads only, so it takes the body for the next one and says nothing to it.
    assert_eq!(status_of(&edge.exchange(&put)), 200);
    let (_, body) = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(body, b"hello");
}

#[test]
fn a_compressed_stream_is_not_held_back() {
    let (go_on, gone_on) = mpsc::channel::<()>();
    let gone_on = std::sync::Mutex::new(gone_on);
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"1\"\r\n\
                    Transfer-Encoding: chunked\r\n\r\n7\r\nfirst\n\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        gone_on.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        stream.write_all(b"8\r\nsecond\n\n\r\n0\r\n\r\n").unwrap();
    });
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.filters.compression = Some(Compression {
        algorithms: vec![CompressionAlgorithm::Gzip],
        min_size: 0,
        content_types: vec![],
    });
    let edge = TestEdge::start(rule);
    let mut client = edge.connect();
    let request = with(&get("/"), "Accept-Encoding: gzip\r\n");
    client.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut client);
    assert_eq!(field(&head, "content-encoding"), Some("gzip"));
    assert_eq!(field(&head, "etag"), Some("W/\"1\""));
    edge.block_on(async {
        use tokio::io::AsyncReadExt;
        client.set_nonblocking(true).unwrap();
        let stream = tokio::net::TcpStream::from_std(client).unwrap();
        let chunks = Chunks::new(tokio::io::BufReader::new(stream));
        let mut plain = async_compression::tokio::bufread::GzipDecoder::new(chunks);
        let mut first = [0; 7];
        plain.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first\n\n");
        go_on.send(()).unwrap();
        let mut rest = String::new();
        plain.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "second\n\n");
    });
}

/// Takes the chunked coding off.
struct Chunks;

impl Chunks {
    #[expect(clippy::new_ret_no_self, reason = "a pipe is all that is needed")]
    fn new<R>(mut from: R) -> tokio::io::BufReader<tokio::io::DuplexStream>
    where
        R: tokio::io::AsyncBufRead + Send + Unpin + 'static,
    {
        use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
        let (mut to, pipe) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            loop {
                let mut line = String::new();
                from.read_line(&mut line).await.unwrap();
                let size = usize::from_str_radix(line.trim(), 16).unwrap();
                if size == 0 {
                    return;
                }
                let mut chunk = vec![0; size + 2];
                from.read_exact(&mut chunk).await.unwrap();
                to.write_all(&chunk[..size]).await.unwrap();
            }
        });
        tokio::io::BufReader::new(pipe)
    }
}

#[test]
fn files_have_ranges_and_etags() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), "0123456789").unwrap();
    let edge = TestEdge::start(rule(Action::Static(StaticFolder {
        root: folder.path().to_owned(),
        strip_prefix: "/files".to_owned(),
        index: vec![],
        listing: false,
        fallback: None,
    })));
    let whole = edge.exchange(&get("/files/a.txt"));
    assert_eq!(status_of(&whole), 200);
    assert!(whole.ends_with("\r\n\r\n0123456789"), "{whole}");
    let etag = field(&whole, "etag").unwrap();
    let part = edge.exchange(&with(&get("/files/a.txt"), "Range: bytes=2-4\r\n"));
    assert_eq!(status_of(&part), 206);
    assert_eq!(field(&part, "content-range"), Some("bytes 2-4/10"));
    assert!(part.ends_with("\r\n\r\n234"), "{part}");
    let known = format!("If-None-Match: {etag}\r\n");
    let same = edge.exchange(&with(&get("/files/a.txt"), &known));
    assert_eq!(status_of(&same), 304);
    assert!(same.ends_with("\r\n\r\n"), "{same}");
    assert_eq!(status_of(&edge.exchange(&get("/files/b.txt"))), 404);
    let outside = edge.exchange(&get("/files/..%2f..%2fetc/passwd"));
    assert!(matches!(status_of(&outside), 400 | 404), "{outside}");
}

#[test]
fn plain_http_is_redirected_with_path_and_query() {
    let origin = Origin::echo();
    let serving = forward_to(&[cluster(origin.address)]);
    let unavailable = rule(Action::Unavailable("no such backend".to_owned()));
    let own = certificate(&[HOST, "down.test"]);
    let mut host = virtual_host(HOST, serving, policy(Arc::clone(&own)));
    host.plain_http = PlainHttp::Redirect(StatusCode::PERMANENT_REDIRECT);
    host.hsts = Some(HeaderValue::from_static("max-age=300"));
    let mut down = virtual_host("down.test", unavailable, policy(Arc::clone(&own)));
    down.hsts.clone_from(&host.hsts);
    let edge = TestEdge::start_hosts(vec![host, down], |settings| {
        settings.public_https_port = Some(8443);
    });
    let answer = edge.exchange(&get("/a%20b?c=d&e=%2F"));
    assert_eq!(status_of(&answer), 308);
    assert_eq!(
        field(&answer, "location"),
        Some("https://app.test:8443/a%20b?c=d&e=%2F")
    );
    assert_eq!(field(&answer, "strict-transport-security"), None);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 0);
    let config = tls::client(tls::roots(&[&own]));
    let secure = tls::ask(&mut tls::tls(&edge, &config, HOST), HOST).unwrap();
    assert_eq!(
        field(&secure, "strict-transport-security"),
        Some("max-age=300")
    );
    let page = tls::ask(&mut tls::tls(&edge, &config, "down.test"), "down.test").unwrap();
    assert_eq!(status_of(&page), 503);
    assert_eq!(
        field(&page, "strict-transport-security"),
        Some("max-age=300")
    );
}
