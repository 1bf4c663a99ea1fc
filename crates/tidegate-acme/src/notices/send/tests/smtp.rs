//! Mail against a scripted submission server: it speaks SMTP as RFC 5321 and RFC 3207 have it, and notes
//! what it was told.

use base64::Engine as _;
use tidegate_model::Secret;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::*;
use crate::notices::{SmtpSecurity, SmtpTarget};

/// What the server does.
#[derive(Clone, Copy, Default)]
struct Script {
    /// Offers STARTTLS.
    starttls: bool,
    /// TLS from the first byte.
    wrapped: bool,
    /// Refuses the password, repeating it.
    refuses_password: bool,
    /// Answers to RCPT with this.
    recipient: Option<&'static str>,
}

type Log = Arc<Mutex<Vec<String>>>;

struct Server {
    port: u16,
    log: Log,
    ca: String,
}

async fn serve(script: Script) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, ca) = certificate();
    let log = Log::default();
    let noted = Arc::clone(&log);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, log) = (acceptor.clone(), Arc::clone(&noted));
            tokio::spawn(async move {
                if script.wrapped {
                    let stream = acceptor.accept(stream).await.ok()?;
                    talk(BufReader::new(stream), script, true, true, &log).await;
                    return Some(());
                }
                let stream = talk(BufReader::new(stream), script, false, true, &log).await?;
                let stream = acceptor.accept(stream.into_inner()).await.ok()?;
                talk(BufReader::new(stream), script, true, false, &log).await;
                Some(())
            });
        }
    });
    Server { port, log, ca }
}

/// One dialogue; gives the stream back when TLS is to begin on it.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: BufReader<S>,
    script: Script,
    secure: bool,
    greet: bool,
    log: &Log,
) -> Option<BufReader<S>> {
    if greet {
        stream.write_all(b"220 test ESMTP\r\n").await.ok()?;
    }
    let (mut data, mut message) = (false, String::new());
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if data {
            if line == ".\r\n" {
                data = false;
                log.lock().unwrap().push(std::mem::take(&mut message));
                stream.write_all(b"250 queued\r\n").await.ok()?;
            } else {
                message += line.strip_prefix('.').unwrap_or(&line);
            }
            continue;
        }
        let verb = line
            .split([' ', ':'])
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_uppercase();
        log.lock().unwrap().push(format!(
            "{}{}",
            if secure { "TLS " } else { "" },
            line.trim()
        ));
        let answer = match verb.as_str() {
            "EHLO" if script.starttls && !secure => "250-test\r\n250 STARTTLS\r\n".to_owned(),
            "EHLO" => "250-test\r\n250 AUTH PLAIN LOGIN\r\n".to_owned(),
            "STARTTLS" => {
                stream.write_all(b"220 go\r\n").await.ok()?;
                return Some(stream);
            }
            "AUTH" if script.refuses_password => {
                let coded = line.trim().rsplit(' ').next().unwrap_or_default();
                format!("535 5.7.8 bad pa55word {coded}\r\n")
            }
            "AUTH" => "235 welcome\r\n".to_owned(),
            "RCPT" => script.recipient.unwrap_or("250 ok").to_owned() + "\r\n",
            "DATA" => {
                data = true;
                "354 go on\r\n".to_owned()
            }
            "QUIT" => "221 bye\r\n".to_owned(),
            _ => "250 ok\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

fn target(server: &Server, security: SmtpSecurity) -> SmtpTarget {
    SmtpTarget {
        name: "mail".into(),
        host: "localhost".into(),
        port: Some(server.port),
        security,
        credentials: Some(("edge".into(), Secret::new("pa55word".into()))),
        from: "Tidegate <edge@example.com>".into(),
        to: vec!["me@example.com".into(), "you@example.com".into()],
        ca_bundle: Some(server.ca.clone()),
        timeout: Duration::from_secs(20),
        least: Severity::Info,
        reach: Arc::default(),
    }
}

fn log(server: &Server) -> Vec<String> {
    server.log.lock().unwrap().clone()
}

#[tokio::test]
async fn a_mail_arrives_each_allowed_way() {
    let starttls = Script {
        starttls: true,
        ..Script::default()
    };
    let wrapped = Script {
        wrapped: true,
        ..Script::default()
    };
    for (script, security) in [
        (starttls, SmtpSecurity::StartTls),
        (wrapped, SmtpSecurity::Tls),
        (Script::default(), SmtpSecurity::Plain),
    ] {
        let server = serve(script).await;
        let target = Target::Smtp(target(&server, security));
        deliver(&target, &notice(Severity::Error)).await.unwrap();
        let log = log(&server);
        let all = log.join("\n");
        assert!(
            all.contains("MAIL FROM:<edge@example.com>"),
            "{security:?}: {all}"
        );
        assert!(
            all.contains("RCPT TO:<me@example.com>") && all.contains("RCPT TO:<you@example.com>"),
            "{all}"
        );
        assert!(
            all.contains(
                "Subject: [Tidegate] Getting a certificate for a.example keeps failing\r\n"
            ),
            "{all}"
        );
        assert!(
            all.contains("\r\n.a line with a dot first\r\n"),
            "a leading dot survives: {all}"
        );
        let coded = base64::engine::general_purpose::STANDARD.encode("\0edge\0pa55word");
        let auth = log.iter().find(|line| line.contains("AUTH PLAIN")).unwrap();
        assert!(auth.ends_with(&coded), "{auth}");
        assert_eq!(
            auth.starts_with("TLS "),
            security != SmtpSecurity::Plain,
            "{auth}"
        );
    }
}

#[tokio::test]
async fn a_server_without_starttls_gets_neither_password_nor_mail() {
    let server = serve(Script::default()).await;
    let target = Target::Smtp(target(&server, SmtpSecurity::StartTls));
    let error = deliver(&target, &notice(Severity::Error))
        .await
        .unwrap_err();
    assert!(
        error.to_string().starts_with("tell \"mail\" at localhost:"),
        "{error}"
    );
    let all = log(&server).join("\n");
    assert!(!all.contains("AUTH") && !all.contains("MAIL"), "{all}");
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gets_nothing() {
    let script = Script {
        starttls: true,
        ..Script::default()
    };
    let (server, other) = (serve(script).await, serve(script).await);
    let target = SmtpTarget {
        ca_bundle: Some(other.ca.clone()),
        ..target(&server, SmtpSecurity::StartTls)
    };
    let error = deliver(&Target::Smtp(target), &notice(Severity::Error))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "TargetUnreachable", "{error}");
    assert!(!log(&server).join("\n").contains("AUTH"));
}

#[tokio::test]
async fn a_refusal_is_told_without_the_password() {
    let script = Script {
        refuses_password: true,
        ..Script::default()
    };
    let server = serve(script).await;
    let target = Target::Smtp(target(&server, SmtpSecurity::Plain));
    let error = deliver(&target, &notice(Severity::Error))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("535") || text.contains("5.7.8"), "{text}");
    let coded = base64::engine::general_purpose::STANDARD.encode("\0edge\0pa55word");
    assert!(
        !text.contains("pa55word") && !text.contains(&coded),
        "{text}"
    );
    assert!(!error.is_temporary());
}

#[tokio::test]
async fn a_temporary_refusal_is_worth_a_retry() {
    for (answer, temporary) in [("450 4.2.1 later", true), ("550 5.1.1 nobody", false)] {
        let server = serve(Script {
            recipient: Some(answer),
            ..Script::default()
        })
        .await;
        let target = Target::Smtp(target(&server, SmtpSecurity::Plain));
        let error = deliver(&target, &notice(Severity::Error))
            .await
            .unwrap_err();
        assert_eq!(
            (error.reason(), error.is_temporary()),
            ("TargetRefused", temporary),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_silent_server_is_left_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server {
        port: listener.local_addr().unwrap().port(),
        log: Log::default(),
        ca: String::new(),
    };
    let target = SmtpTarget {
        host: "127.0.0.1".into(),
        timeout: Duration::from_millis(200),
        ca_bundle: None,
        ..target(&server, SmtpSecurity::Plain)
    };
    let error = deliver(&Target::Smtp(target), &notice(Severity::Error))
        .await
        .unwrap_err();
    assert!(
        error.is_temporary() && error.reason() == "TargetUnreachable",
        "{error}"
    );
}
