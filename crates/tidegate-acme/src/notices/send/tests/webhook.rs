//! Webhooks against a real HTTP server.

use std::collections::VecDeque;

use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tidegate_model::Secret;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::notices::Template;

type Seen = Arc<Mutex<Vec<String>>>;

/// Answers with the scripted statuses in turn, then 200; notes what came.
async fn serve(script: &[u16], answer: &'static str) -> (SocketAddr, Seen) {
    serve_over(script, answer, None).await
}

async fn serve_over(
    script: &[u16],
    answer: &'static str,
    tls: Option<TlsAcceptor>,
) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(Mutex::new(script.iter().copied().collect::<VecDeque<_>>()));
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (script, seen) = (Arc::clone(&script), Arc::clone(&noted));
            let service = service_fn(move |request: Request<Incoming>| {
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let body = String::from_utf8_lossy(&body).into_owned();
                    seen.lock()
                        .unwrap()
                        .push(format!("{} {} {body}", parts.method, parts.uri));
                    let status = script.lock().unwrap().pop_front().unwrap_or(200);
                    Response::builder()
                        .status(status)
                        .header("retry-after", if answer == "wait" { "7" } else { "0" })
                        .header("location", "http://127.0.0.1:1/elsewhere")
                        .body(Full::new(Bytes::from_static(answer.as_bytes())))
                        .map_err(|_| std::io::Error::other("response"))
                        .map(Ok::<_, hyper::Error>)
                        .unwrap()
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let tls = tls.clone();
            tokio::spawn(async move {
                match tls {
                    None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                }
            });
        }
    });
    (address, seen)
}

fn target(address: SocketAddr, template: Template) -> WebhookTarget {
    WebhookTarget {
        name: "phone".into(),
        url: Secret::new(format!(
            "http://{address}/services/secret-path-of-this-hook"
        )),
        template,
        token: Some(Secret::new("t0ken-t0ken".into())),
        ca_bundle: None,
        timeout: Duration::from_secs(10),
        least: Severity::Warning,
        reach: Arc::default(),
    }
}

/// Waits until the state of a target fulfils a condition.
async fn eventually(notifier: &Notifier, lane: usize, holds: impl Fn(&DeliveryState) -> bool) {
    let mut state = notifier.lanes[lane].state.subscribe();
    let fulfilled = state.wait_for(|state| holds(state));
    let waited = tokio::time::timeout(Duration::from_secs(20), fulfilled).await;
    assert!(waited.is_ok(), "{:?}", notifier.states());
}

#[tokio::test]
async fn every_template_arrives() {
    let matrix = Template::Matrix {
        room: "!r:example.org".into(),
    };
    for template in [
        Template::Ntfy,
        Template::Slack,
        Template::Discord,
        matrix,
        Template::Json,
    ] {
        let (address, seen) = serve(&[], "ok").await;
        let target = Target::Webhook(target(address, template.clone()));
        deliver(&target, &notice(Severity::Warning)).await.unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 1, "{template:?}");
        let method = if matches!(template, Template::Matrix { .. }) {
            "PUT"
        } else {
            "POST"
        };
        assert!(
            seen[0].starts_with(&format!("{method} /services/secret-path")),
            "{}",
            seen[0]
        );
    }
}

#[tokio::test]
async fn an_answer_of_no_is_told_without_secrets() {
    for (status, temporary) in [
        (404, false),
        (401, false),
        (302, false),
        (429, true),
        (503, true),
    ] {
        let (address, seen) = serve(
            &[status],
            "no /services/secret-path-of-this-hook with t0ken-t0ken",
        )
        .await;
        let target = Target::Webhook(target(address, Template::Json));
        let error = deliver(&target, &notice(Severity::Warning))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert_eq!(error.is_temporary(), temporary, "{text}");
        assert!(
            text.starts_with(&format!("tell \"phone\" at 127.0.0.1: status {status}")),
            "{text}"
        );
        assert!(
            !text.contains("secret-path") && !text.contains("t0ken"),
            "{text}"
        );
        assert_eq!(seen.lock().unwrap().len(), 1, "redirects are not followed");
    }
}

#[tokio::test]
async fn a_silent_receiver_is_left_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let quiet = WebhookTarget {
        timeout: Duration::from_millis(100),
        ..target(listener.local_addr().unwrap(), Template::Json)
    };
    let error = deliver(&Target::Webhook(quiet), &notice(Severity::Warning))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tell \"phone\" at 127.0.0.1: no answer within 0.1 s"
    );
    assert!(error.is_temporary());
}

#[tokio::test]
async fn a_delivery_is_repeated_until_it_arrives() {
    let (address, seen) = serve(&[503, 429], "later").await;
    let settings = NotifierSettings {
        retries: vec![Duration::from_millis(1); 4],
        ..NotifierSettings::default()
    };
    let targets = vec![Target::Webhook(target(address, Template::Json))];
    let (notifier, tasks) = Notifier::start(targets, &settings);
    notifier.tell(notice(Severity::Info));
    notifier.tell(notice(Severity::Critical));
    eventually(&notifier, 0, |state| state.delivered == 1).await;
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 3);
    let critical = seen
        .iter()
        .all(|request| request.contains("\"severity\":\"critical\""));
    assert!(
        critical,
        "what is below its severity was not sent: {seen:?}"
    );
    assert_eq!(notifier.states()[0].last_error, None);
    drop(notifier);
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_succeed_is_given_up() {
    let (bad, seen) = serve(&[404; 9], "gone").await;
    let (good, arrived) = serve(&[], "ok").await;
    let (sick, tried) = serve(&[500; 9], "ill").await;
    let settings = NotifierSettings {
        retries: vec![Duration::from_millis(1); 2],
        ..NotifierSettings::default()
    };
    let targets = [bad, good, sick].map(|address| Target::Webhook(target(address, Template::Json)));
    let (notifier, _tasks) = Notifier::start(targets.into(), &settings);
    notifier.tell(notice(Severity::Error));
    eventually(&notifier, 0, |state| state.failed == 1).await;
    eventually(&notifier, 1, |state| state.delivered == 1).await;
    eventually(&notifier, 2, |state| state.failed == 1).await;
    let counts = [seen, arrived, tried].map(|seen| seen.lock().unwrap().len());
    assert_eq!(counts, [1, 1, 3]);
}

#[tokio::test]
async fn a_full_queue_drops_and_never_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Target::Webhook(target(listener.local_addr().unwrap(), Template::Json));
    let (notifier, tasks) = Notifier::start(vec![silent], &NotifierSettings::default());
    for _ in 0..QUEUE * 2 {
        notifier.tell(notice(Severity::Error));
    }
    let dropped = notifier.states()[0].dropped;
    assert!((60..=64).contains(&dropped), "{dropped}");
    tasks[0].abort();
}

#[tokio::test]
async fn over_tls_only_the_trusted_receiver_is_told() {
    let (acceptor, ca) = certificate();
    let (_, other) = certificate();
    let (address, seen) = serve_over(&[], "ok", Some(acceptor)).await;
    let secure = |ca_bundle: &str| WebhookTarget {
        url: Secret::new(format!("https://localhost:{}/hook", address.port())),
        ca_bundle: Some(ca_bundle.to_owned()),
        ..target(address, Template::Json)
    };
    let told = deliver(&Target::Webhook(secure(&ca)), &notice(Severity::Error)).await;
    told.unwrap();
    for (bundle, reason) in [
        (other.as_str(), "TargetUnreachable"),
        ("no PEM", "InvalidTarget"),
    ] {
        let error = deliver(&Target::Webhook(secure(bundle)), &notice(Severity::Error)).await;
        assert_eq!(error.unwrap_err().reason(), reason);
    }
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_receiver_may_ask_to_wait() {
    let (address, _) = serve(&[429], "wait").await;
    let target = Target::Webhook(target(address, Template::Json));
    let error = deliver(&target, &notice(Severity::Error))
        .await
        .unwrap_err();
    assert!(error.is_temporary());
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
}

/// A proxy that leads every tunnel to one address; notes what was asked of it.
async fn proxy(to: SocketAddr) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut client = BufReader::new(stream);
            let mut asked = String::new();
            while !asked.ends_with("\r\n\r\n") && client.read_line(&mut asked).await.unwrap() > 0 {}
            noted.lock().unwrap().push(asked);
            let mut server = TcpStream::connect(to).await.unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn secure_receivers_are_reached_through_the_proxy() {
    let (acceptor, ca) = certificate();
    let (address, seen) = serve_over(&[200, 500], "ok", Some(acceptor)).await;
    let (proxy, asked) = proxy(address).await;
    let secure = WebhookTarget {
        // Nobody listens there: only the proxy knows the way.
        url: Secret::new("https://localhost:1/hook".to_owned()),
        ca_bundle: Some(ca),
        ..target(address, Template::Json)
    };
    let by_proxy = || Proxied::by(format!("http://{proxy}"));
    let notice = notice(Severity::Error);
    call(by_proxy(), &secure, &notice).await.unwrap();
    let error = call(by_proxy(), &secure, &notice).await.unwrap_err();
    assert_eq!(error.reason(), "TargetRefused");
    assert_eq!(seen.lock().unwrap().len(), 2);
    let asked = asked.lock().unwrap().clone();
    assert!(asked[0].starts_with("CONNECT localhost:1 "), "{asked:?}");
    assert!(!asked[0].contains("t0ken"), "{asked:?}");
    let plain = target(address, Template::Json);
    let error = call(by_proxy(), &plain, &notice).await.unwrap_err();
    assert_eq!(
        error.reason(),
        "TargetUnreachable",
        "plain HTTP goes there itself"
    );
}
