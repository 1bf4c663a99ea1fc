//! The exact request for each kind of receiver, and what settings are refused.

use super::*;
use crate::notices::NoticeKind;
use crate::plan::moment::parse_rfc3339;

fn notice() -> Notice {
    Notice {
        subject: "default/blog".into(),
        kind: NoticeKind::Expiring,
        severity: Severity::Error,
        title: "Certificate for a.example expires in 5 days".into(),
        body: "Route: default/blog\nLast error: got <html> & \"404\" @everyone".into(),
        at: parse_rfc3339("2026-11-01T12:00:00Z").unwrap(),
    }
}

fn webhook(url: &str, template: Template, token: Option<&str>) -> WebhookTarget {
    WebhookTarget {
        name: "phone".into(),
        url: Secret::new(url.into()),
        template,
        token: token.map(|token| Secret::new(token.into())),
        ca_bundle: None,
        timeout: DEFAULT_TIMEOUT,
        least: Severity::Info,
        reach: Arc::default(),
    }
}

fn matrix() -> Template {
    Template::Matrix {
        room: "!abc:example.org".into(),
    }
}

fn written(target: &WebhookTarget, notice: &Notice) -> String {
    let request = target.request(notice).unwrap();
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text = format!("{text}{name}: {}\n", value.to_str().unwrap());
    }
    let body = std::str::from_utf8(request.body()).unwrap();
    match serde_json::from_str::<serde_json::Value>(body) {
        Ok(json) => text + "\n" + &serde_json::to_string_pretty(&json).unwrap(),
        Err(_) => text + "\n" + body,
    }
}

#[test]
fn ntfy_gets_title_priority_and_tags() {
    let target = webhook("https://ntfy.sh/edge", Template::Ntfy, Some("tk_secret"));
    assert_eq!(
        written(&target, &notice()),
        "POST /edge\n\
         host: ntfy.sh\n\
         user-agent: tidegate\n\
         content-type: text/plain; charset=utf-8\n\
         title: Certificate for a.example expires in 5 days\n\
         priority: 4\n\
         tags: warning\n\
         authorization: Bearer tk_secret\n\
         \n\
         Route: default/blog\nLast error: got <html> & \"404\" @everyone"
    );
    let foreign = Notice {
        title: "Zertifikat für ä läuft ab".into(),
        ..notice()
    };
    let request = target.request(&foreign).unwrap();
    assert_eq!(
        request.headers()["title"],
        "=?UTF-8?B?WmVydGlmaWthdCBmw7xyIMOkIGzDpHVmdCBhYg==?="
    );
    assert!(request.headers()["authorization"].is_sensitive());
}

#[test]
fn slack_gets_escaped_text() {
    let target = webhook(
        "https://hooks.slack.com/services/T0/B0/xyz",
        Template::Slack,
        None,
    );
    assert_eq!(
        written(&target, &notice()),
        "POST /services/T0/B0/xyz\n\
         host: hooks.slack.com\n\
         user-agent: tidegate\n\
         content-type: application/json\n\
         \n\
         {\n  \"text\": \"*Certificate for a.example expires in 5 days*\\nRoute: default/blog\\nLast error: \
         got &lt;html&gt; &amp; \\\"404\\\" @everyone\"\n}"
    );
}

#[test]
fn discord_gets_an_embed_and_calls_nobody_by_name() {
    let target = webhook(
        "https://discord.com/api/webhooks/1/xyz?thread_id=2",
        Template::Discord,
        None,
    );
    let request = target.request(&notice()).unwrap();
    assert_eq!(request.uri(), "/api/webhooks/1/xyz?thread_id=2");
    let body: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!(
        body,
        json!({
            "embeds": [{
                "title": "Certificate for a.example expires in 5 days",
                "description": "Route: default/blog\nLast error: got <html> & \"404\" @everyone",
                "color": 0xdb_6d_28,
                "timestamp": "2026-11-01T12:00:00Z",
            }],
            "allowed_mentions": { "parse": [] },
        })
    );
}

#[test]
fn matrix_gets_one_message_however_often_it_is_sent() {
    let target = webhook("https://matrix.example.org/", matrix(), Some("syt_secret"));
    let first = target.request(&notice()).unwrap();
    let second = target.request(&notice()).unwrap();
    assert_eq!(first.method(), Method::PUT);
    assert_eq!(first.uri(), second.uri(), "the transaction is the same");
    let path = first.uri().to_string();
    let (room, transaction) = path.rsplit_once('/').unwrap();
    assert_eq!(
        room,
        "/_matrix/client/v3/rooms/%21abc%3Aexample.org/send/m.room.message"
    );
    assert_eq!(transaction.len(), 24);
    let later = Notice {
        at: notice().at + Duration::from_secs(86_400),
        ..notice()
    };
    assert_ne!(target.request(&later).unwrap().uri(), first.uri());
    let body: serde_json::Value = serde_json::from_slice(first.body()).unwrap();
    assert_eq!(
        body["formatted_body"],
        "<strong>Certificate for a.example expires in 5 days</strong><br>Route: default/blog<br>Last error: \
         got &lt;html&gt; &amp; &quot;404&quot; @everyone"
    );
}

#[test]
fn json_has_everything() {
    let target = webhook("http://127.0.0.1:9/hook?a=b", Template::Json, Some("t0ken"));
    let request = target.request(&notice()).unwrap();
    assert_eq!(
        (
            request.uri().to_string().as_str(),
            &request.headers()["host"]
        ),
        ("/hook?a=b", &HeaderValue::from_static("127.0.0.1:9"))
    );
    let body: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!(
        body,
        json!({
            "version": 1,
            "id": identity(&notice()),
            "kind": "CertificateExpiring",
            "severity": "error",
            "subject": "default/blog",
            "title": "Certificate for a.example expires in 5 days",
            "body": "Route: default/blog\nLast error: got <html> & \"404\" @everyone",
            "at": "2026-11-01T12:00:00Z",
        })
    );
}

#[test]
fn receivers_limits_are_kept() {
    let long = Notice {
        title: "ä".repeat(2000),
        body: "line ".repeat(20).trim().to_owned() + "\n" + &"x".repeat(100_000),
        ..notice()
    };
    for (template, token, longest) in [
        (Template::Ntfy, None, 4096),
        (Template::Slack, None, 9000),
        (Template::Discord, None, 9000),
        (matrix(), Some("t"), 60_000),
    ] {
        let target = webhook("https://r.example/topic", template, token);
        let request = target.request(&long).unwrap();
        assert!(
            request.body().len() <= longest,
            "{:?}: {}",
            target.template,
            request.body().len()
        );
    }
    assert_eq!(bounded_lines("a\nb", 100), "a\nb");
}

#[test]
fn settings_that_cannot_work_are_refused_with_their_mend() {
    for (url, template, token, problem) in [
        ("no url", Template::Json, None, "cannot be read"),
        ("/only/path", Template::Json, None, "no scheme or host"),
        (
            "ftp://r.example/",
            Template::Json,
            None,
            "neither http nor https",
        ),
        (
            "https://user:pw@r.example/",
            Template::Json,
            None,
            "user name or password",
        ),
        (
            "http://r.example/hook",
            Template::Json,
            Some("t"),
            "clear text",
        ),
        (
            "http://hooks.slack.com/services/x",
            Template::Slack,
            None,
            "clear text",
        ),
        ("https://ntfy.sh/", Template::Ntfy, None, "no topic"),
        ("https://m.example", matrix(), None, "access token"),
        (
            "https://m.example",
            Template::Matrix {
                room: "#room:m.example".into(),
            },
            Some("t"),
            "no room identifier",
        ),
        (
            "https://r.example/",
            Template::Json,
            Some("a\nb"),
            "characters no header may",
        ),
    ] {
        let target = webhook(url, template, token);
        let error = target.request(&notice()).unwrap_err();
        assert!(error.to_string().contains(problem), "{url}: {error}");
        assert!(!error.to_string().contains("pw@"), "{error}");
        assert!(!error.is_temporary());
    }
    for (url, token) in [
        ("http://127.0.0.1/x", Some("t")),
        ("http://[::1]:8080/x", Some("t")),
        ("http://localhost/x", Some("t")),
        ("http://192.168.1.2/x", None),
    ] {
        webhook(url, Template::Json, token)
            .request(&notice())
            .unwrap();
    }
}

#[test]
fn secrets_are_in_no_error_and_no_debug() {
    let url = "https://discord.com/api/webhooks/123/Zm9vYmFyYmF6cXV4cXV1eA";
    let target = webhook(url, Template::Discord, Some("t0ken-t0ken"));
    let said = format!(
        "404 for {url}: /api/webhooks/123/Zm9vYmFyYmF6cXV4cXV1eA, Zm9vYmFyYmF6cXV4cXV1eA, t0ken-t0ken"
    );
    let redacted = target.redacted(&said);
    let debug = format!("{target:?}");
    for secret in ["Zm9vYmFyYmF6cXV4cXV1eA", "t0ken-t0ken"] {
        assert!(!redacted.contains(secret), "{redacted}");
        assert!(!debug.contains(secret), "{debug}");
    }
    assert!(redacted.starts_with("404 for"), "{redacted}");
    // Also a short one, where it is the whole path.
    let short = webhook("https://r.example/hook/abc123", Template::Json, None);
    assert_eq!(short.redacted("no /hook/abc123 here"), "no [redacted] here");
}

fn smtp() -> SmtpTarget {
    SmtpTarget {
        name: "mail".into(),
        host: "mail.example.com".into(),
        port: None,
        security: SmtpSecurity::StartTls,
        credentials: Some(("edge".into(), Secret::new("pa55word".into()))),
        from: "Tidegate <edge@example.com>".into(),
        to: vec!["me@example.com".into(), "You <you@example.com>".into()],
        ca_bundle: None,
        timeout: DEFAULT_TIMEOUT,
        least: Severity::Info,
        reach: Arc::default(),
    }
}

#[test]
fn a_mail_is_marked_as_automatic_and_dated() {
    let mail = crate::notices::mail::message(&smtp(), &notice()).unwrap();
    let text = String::from_utf8(mail.formatted()).unwrap();
    for line in [
        "From: Tidegate <edge@example.com>\r\n",
        "Subject: [Tidegate] Certificate for a.example expires in 5 days\r\n",
        "Date: Sun, 01 Nov 2026 12:00:00 +0000\r\n",
        "Auto-Submitted: auto-generated\r\n",
        "Importance: high\r\n",
        "To: me@example.com, You <you@example.com>\r\n",
        "\r\n\r\nRoute: default/blog\r\nLast error: got <html> & \"404\" @everyone\r\n",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert!(
        text.contains(&format!(
            "Message-ID: <{}@example.com>\r\n",
            identity(&notice())
        )),
        "{text}"
    );
}

#[test]
fn a_header_cannot_be_smuggled_into_a_mail() {
    let evil = Notice {
        title: bounded("x\r\nBcc: all@example.com", 400),
        ..notice()
    };
    let mail = crate::notices::mail::message(&smtp(), &evil).unwrap();
    assert!(
        !String::from_utf8(mail.formatted())
            .unwrap()
            .contains("\r\nBcc:")
    );
    let raw = Notice {
        title: "x\r\nBcc: all@example.com".into(),
        ..notice()
    };
    if let Ok(mail) = crate::notices::mail::message(&smtp(), &raw) {
        assert!(
            !String::from_utf8(mail.formatted())
                .unwrap()
                .contains("\r\nBcc:")
        );
    }
}

#[test]
fn mail_settings_are_checked() {
    Target::Smtp(smtp()).check().unwrap();
    assert_eq!(smtp().port(), 587);
    let local = SmtpTarget {
        host: "127.0.0.1".into(),
        security: SmtpSecurity::Plain,
        ..smtp()
    };
    Target::Smtp(local).check().unwrap();
    for (target, problem) in [
        (
            SmtpTarget {
                security: SmtpSecurity::Plain,
                ..smtp()
            },
            "clear text",
        ),
        (
            SmtpTarget {
                to: Vec::new(),
                ..smtp()
            },
            "1 to 50 receivers",
        ),
        (
            SmtpTarget {
                to: vec!["me".into()],
                ..smtp()
            },
            "\"me\" is no mail address",
        ),
        (
            SmtpTarget {
                from: "nobody".into(),
                ..smtp()
            },
            "\"nobody\" is no mail address",
        ),
    ] {
        let error = Target::Smtp(target).check().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    assert!(!format!("{:?}", smtp()).contains("pa55word"));
}
