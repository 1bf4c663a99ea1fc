//! A notice as a mail, and handing it to a submission server (RFC 6409).
//!
//! TLS or STARTTLS is required except to this machine; a server that does not offer STARTTLS gets neither
//! password nor mail.

use std::time::Duration;

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};

use super::target::{NoticeError, SmtpSecurity, SmtpTarget, identity, without};
use super::{Notice, Severity};
use crate::oneshot;
use crate::plan::moment::bounded;

/// The mail that tells of a notice.
pub(super) fn message(target: &SmtpTarget, notice: &Notice) -> Result<Message, NoticeError> {
    let wrong = |problem: String, fix| NoticeError::settings(&target.name, &problem, fix);
    let mailbox = |address: &str| {
        address.parse::<Mailbox>().map_err(|_| {
            wrong(
                format!("{address:?} is no mail address"),
                "write it as name@example.com or Name <name@example.com>",
            )
        })
    };
    let from = mailbox(&target.from)?;
    let domain = from.email.domain().to_owned();
    let mut builder = Message::builder()
        .from(from)
        .subject(format!("[Tidegate] {}", notice.title))
        .date(notice.at)
        .message_id(Some(format!("<{}@{domain}>", identity(notice))))
        .header(ContentType::TEXT_PLAIN)
        // RFC 3834: nobody's holiday answers this.
        .raw_header(raw("Auto-Submitted", "auto-generated"));
    if notice.severity >= Severity::Error {
        builder = builder.raw_header(raw("Importance", "high"));
    }
    for receiver in &target.to {
        builder = builder.to(mailbox(receiver)?);
    }
    builder.body(format!("{}\n", notice.body)).map_err(|error| {
        wrong(
            format!("the mail cannot be written: {error}"),
            "check from and to",
        )
    })
}

fn raw(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}

/// Hands a mail over.
pub(super) async fn send(target: &SmtpTarget, notice: &Notice) -> Result<(), NoticeError> {
    let mail = message(target, notice)?;
    let host = format!("{}:{}", target.host, target.port());
    let unreachable = |problem: String| NoticeError::Unreachable {
        target: target.name.clone(),
        host: host.clone(),
        problem,
    };
    let server = if target.reach.is_limited() {
        // Looked up here, so that the connection is made to the very address that was judged.
        let (name, port) = (target.host.as_str(), target.port());
        let found = oneshot::addresses(&target.reach, name, port, target.timeout).await;
        match found.map_err(&unreachable)?.first() {
            Some(first) => first.ip().to_string(),
            None => return Err(unreachable("the host has no address".to_owned())),
        }
    } else {
        target.host.clone()
    };
    let transport = transport(target, &server)?;
    match tokio::time::timeout(target.timeout, transport.send(mail)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            let text = redacted(target, &chain(&error));
            if error.is_permanent() || error.is_transient() {
                return Err(NoticeError::Refused {
                    target: target.name.clone(),
                    host,
                    temporary: error.is_transient(),
                    answer: text,
                    retry_after: None,
                });
            }
            Err(unreachable(text))
        }
        Err(_) => Err(unreachable(format!(
            "no answer within {} s",
            target.timeout.as_secs_f32()
        ))),
    }
}

fn transport(
    target: &SmtpTarget,
    server: &str,
) -> Result<AsyncSmtpTransport<Tokio1Executor>, NoticeError> {
    // A single command may not use up the whole time.
    let per_command = target.timeout.max(Duration::from_secs(1));
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(server)
        .port(target.port())
        .timeout(Some(per_command))
        .tls(match target.security {
            SmtpSecurity::Plain => Tls::None,
            SmtpSecurity::StartTls => Tls::Required(tls(target)?),
            SmtpSecurity::Tls => Tls::Wrapper(tls(target)?),
        });
    if let Some((user, password)) = &target.credentials {
        builder = builder
            .credentials(Credentials::new(user.clone(), password.expose().clone()))
            .authentication(vec![Mechanism::Plain, Mechanism::Login]);
    }
    Ok(builder.build())
}

fn tls(target: &SmtpTarget) -> Result<TlsParameters, NoticeError> {
    let wrong = |problem: String| {
        NoticeError::settings(
            &target.name,
            &problem,
            "give certificates in PEM, each between BEGIN CERTIFICATE and END CERTIFICATE",
        )
    };
    let mut builder = TlsParameters::builder(target.host.clone());
    if let Some(bundle) = &target.ca_bundle {
        let certificate = Certificate::from_pem(bundle.as_bytes())
            .map_err(|error| wrong(format!("the caBundle: {}", chain(&error))))?;
        builder = builder
            .certificate_store(CertificateStore::None)
            .add_root_certificate(certificate);
    }
    builder
        .build()
        .map_err(|error| wrong(format!("prepare TLS: {}", chain(&error))))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

fn redacted(target: &SmtpTarget, text: &str) -> String {
    use base64::Engine as _;
    let Some((user, password)) = &target.credentials else {
        return bounded(text, 300);
    };
    let coded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let password = password.expose();
    let mut text = without(text, password);
    for form in [coded(password), coded(&format!("\0{user}\0{password}"))] {
        text = without(&text, &form);
    }
    bounded(&text, 300)
}
