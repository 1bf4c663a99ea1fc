//! Who is told, and the exact request or mail that tells them.
//!
//! Building is pure, so that each receiver's form has a golden test. URLs of Slack and Discord are secrets
//! themselves: no error and no `Debug` shows more of a URL than its host. Redirects are never followed,
//! because tokens would go along.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tidegate_model::{Reach, Secret};

use super::{Notice, Severity};
use crate::oneshot;
use crate::plan::moment::{bounded, rfc3339_text};

/// Time for one delivery when nothing else is set.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// An HTTP request.
    Webhook(WebhookTarget),
    /// A mail.
    Smtp(SmtpTarget),
}

impl Target {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Webhook(target) => &target.name,
            Self::Smtp(target) => &target.name,
        }
    }

    /// Least severity that it is told of.
    pub fn least(&self) -> Severity {
        match self {
            Self::Webhook(target) => target.least,
            Self::Smtp(target) => target.least,
        }
    }

    /// Checks the settings; connects to nobody.
    ///
    /// # Errors
    ///
    /// What is wrong and how to mend it.
    pub fn check(&self) -> Result<(), NoticeError> {
        match self {
            Self::Webhook(target) => target.endpoint().map(drop),
            Self::Smtp(target) => target.check(),
        }
    }
}

/// Form of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// ntfy: the URL is server and topic, such as `https://ntfy.sh/my-topic`.
    Ntfy,
    /// Slack's incoming webhook, and what copies it (Mattermost, Rocket.Chat).
    Slack,
    /// Discord's webhook.
    Discord,
    /// Matrix: the URL is the homeserver, the token an access token.
    Matrix {
        /// Room identifier, such as `!abc:example.org`.
        room: String,
    },
    /// Our own JSON, for everything else.
    Json,
}

/// An HTTP receiver.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookTarget {
    /// Name for logs and status.
    pub name: String,
    /// Where to; may be a secret by itself.
    pub url: Secret<String>,
    /// Form of the request.
    pub template: Template,
    /// Sent as bearer token (RFC 6750).
    pub token: Option<Secret<String>>,
    /// Certification authorities in PEM that are trusted instead of the system's.
    pub ca_bundle: Option<String>,
    /// Time for one delivery.
    pub timeout: Duration,
    /// Least severity that is sent.
    pub least: Severity,
    /// Where the receiver may be.
    pub reach: Arc<Reach>,
}

/// How the connection to a mail server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpSecurity {
    /// TLS from the first byte (port 465, RFC 8314).
    Tls,
    /// STARTTLS, refused if the server does not offer it (port 587, RFC 3207).
    StartTls,
    /// None; only to this machine.
    Plain,
}

/// A mail server and who gets the mail.
#[derive(Debug, Clone, PartialEq)]
pub struct SmtpTarget {
    /// Name for logs and status.
    pub name: String,
    /// Host of the submission server.
    pub host: String,
    /// Its port; the usual one of the security when absent.
    pub port: Option<u16>,
    /// How the connection is protected.
    pub security: SmtpSecurity,
    /// User name and password.
    pub credentials: Option<(String, Secret<String>)>,
    /// Sender, such as `Tidegate <edge@example.com>`.
    pub from: String,
    /// Receivers.
    pub to: Vec<String>,
    /// Certification authorities in PEM that are trusted instead of the system's.
    pub ca_bundle: Option<String>,
    /// Time for one delivery.
    pub timeout: Duration,
    /// Least severity that is sent.
    pub least: Severity,
    /// Where the receiver may be.
    pub reach: Arc<Reach>,
}

impl SmtpTarget {
    /// The port in use.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.security {
            SmtpSecurity::Tls => 465,
            SmtpSecurity::StartTls => 587,
            SmtpSecurity::Plain => 25,
        })
    }

    fn check(&self) -> Result<(), NoticeError> {
        let wrong = |problem: &str, fix| Err(NoticeError::settings(&self.name, problem, fix));
        if self.security == SmtpSecurity::Plain && !is_local(&self.host) {
            return wrong(
                "mail would cross the network in clear text",
                "use startTls or tls, or a mail server on this machine",
            );
        }
        if let Some(refused) = oneshot::refused(&self.reach, &self.host, self.port()) {
            return wrong(&refused, oneshot::ALLOW);
        }
        if self.to.is_empty() || self.to.len() > 50 {
            return wrong("there must be 1 to 50 receivers", "name them under to");
        }
        super::mail::message(self, &Notice::test("the edge", SystemTime::UNIX_EPOCH)).map(drop)
    }
}

/// Why somebody was not told. Holds no secret: of a URL only the host, of an answer what is left after
/// every secret was cut out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoticeError {
    /// The settings cannot work.
    #[error("tell {target:?}: {problem}; {fix}")]
    Settings {
        /// Name of the target.
        target: String,
        /// What is wrong.
        problem: String,
        /// How to mend it.
        fix: &'static str,
    },
    /// No answer, or no connection.
    #[error("tell {target:?} at {host}: {problem}")]
    Unreachable {
        /// Name of the target.
        target: String,
        /// Host of the receiver.
        host: String,
        /// What happened.
        problem: String,
    },
    /// The receiver said no.
    #[error("tell {target:?} at {host}: {answer}")]
    Refused {
        /// Name of the target.
        target: String,
        /// Host of the receiver.
        host: String,
        /// Status and the begin of the answer.
        answer: String,
        /// Whether the same request may succeed later.
        temporary: bool,
        /// How long the receiver asked to wait.
        retry_after: Option<Duration>,
    },
}

impl NoticeError {
    pub(super) fn settings(target: &str, problem: &str, fix: &'static str) -> Self {
        Self::Settings {
            target: target.to_owned(),
            problem: problem.to_owned(),
            fix,
        }
    }

    /// One `PascalCase` name for log and metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Settings { .. } => "InvalidTarget",
            Self::Unreachable { .. } => "TargetUnreachable",
            Self::Refused { .. } => "TargetRefused",
        }
    }

    /// How long the receiver asked to wait before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether trying again can help.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Settings { .. } => false,
            Self::Unreachable { .. } => true,
            Self::Refused { temporary, .. } => *temporary,
        }
    }
}

/// Where a webhook goes, taken apart.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) authority: String,
    path: String,
}

impl WebhookTarget {
    /// Takes the URL apart and checks it.
    pub(super) fn endpoint(&self) -> Result<Endpoint, NoticeError> {
        let wrong = |problem: &str, fix| NoticeError::settings(&self.name, problem, fix);
        let https = "write it as https://host/path";
        let uri: Uri = self
            .url
            .expose()
            .parse()
            .map_err(|_| wrong("the URL cannot be read", https))?;
        let (Some(scheme), Some(authority), Some(host)) =
            (uri.scheme_str(), uri.authority(), uri.host())
        else {
            return Err(wrong("the URL has no scheme or host", https));
        };
        if authority.as_str().contains('@') {
            return Err(wrong(
                "the URL holds a user name or password",
                "put the token into its own field",
            ));
        }
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let secret = self.token.is_some()
            || matches!(
                self.template,
                Template::Slack | Template::Discord | Template::Matrix { .. }
            );
        let tls = match scheme {
            "https" => true,
            "http" if !secret || is_local(&host) => false,
            "http" => {
                return Err(wrong(
                    "the token would cross the network in clear text",
                    "use an https URL",
                ));
            }
            _ => return Err(wrong("the URL is neither http nor https", https)),
        };
        if let Template::Matrix { room } = &self.template {
            if !room.starts_with('!') || room.len() > 255 {
                return Err(wrong(
                    "the room is no room identifier",
                    "write it as !abc:example.org (an alias as #room:example.org does not do)",
                ));
            }
            if self.token.is_none() {
                return Err(wrong("Matrix needs an access token", "set the token"));
            }
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        if self.template == Template::Ntfy && path.trim_matches('/').is_empty() {
            return Err(wrong(
                "the URL has no topic",
                "write it as https://ntfy.sh/topic",
            ));
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if let Some(refused) = oneshot::refused(&self.reach, &host, port) {
            return Err(wrong(&refused, oneshot::ALLOW));
        }
        Ok(Endpoint {
            tls,
            port,
            authority: authority.as_str().to_owned(),
            host,
            path: path.to_owned(),
        })
    }

    /// The request that tells of a notice, its URI in origin form.
    pub(super) fn request(&self, notice: &Notice) -> Result<Request<Bytes>, NoticeError> {
        let endpoint = self.endpoint()?;
        let mut headers: Vec<(HeaderName, String)> = Vec::new();
        let (mut method, mut path) = (Method::POST, endpoint.path.clone());
        let mut content_type = "application/json";
        let body = match &self.template {
            Template::Ntfy => {
                content_type = "text/plain; charset=utf-8";
                let (priority, tag) = match notice.severity {
                    Severity::Info => ("2", "white_check_mark"),
                    Severity::Warning => ("3", "warning"),
                    Severity::Error => ("4", "warning"),
                    Severity::Critical => ("5", "rotating_light"),
                };
                headers.push((
                    HeaderName::from_static("title"),
                    encoded_word(&notice.title),
                ));
                headers.push((HeaderName::from_static("priority"), priority.to_owned()));
                headers.push((HeaderName::from_static("tags"), tag.to_owned()));
                // ntfy turns longer messages into attachments.
                bounded_lines(&notice.body, 4000)
            }
            Template::Slack => {
                let text = format!(
                    "*{}*\n{}",
                    slack_escaped(&notice.title),
                    slack_escaped(&notice.body)
                );
                json!({ "text": bounded_lines(&text, 3900) }).to_string()
            }
            Template::Discord => json!({
                "embeds": [{
                    "title": bounded(&notice.title, 250),
                    "description": bounded_lines(&notice.body, 4000),
                    "color": colour(notice.severity),
                    "timestamp": rfc3339_text(notice.at),
                }],
                // Nobody is notified by a name in an error text.
                "allowed_mentions": { "parse": [] },
            })
            .to_string(),
            Template::Matrix { room } => {
                method = Method::PUT;
                path = format!(
                    "{}/_matrix/client/v3/rooms/{}/send/m.room.message/{}",
                    endpoint.path.trim_end_matches('/'),
                    percent_encoded(room),
                    identity(notice),
                );
                json!({
                    "msgtype": "m.text",
                    "body": bounded_lines(&format!("{}\n{}", notice.title, notice.body), 8000),
                    "format": "org.matrix.custom.html",
                    "formatted_body": format!(
                        "<strong>{}</strong><br>{}",
                        html_escaped(&notice.title),
                        html_escaped(&bounded_lines(&notice.body, 8000)).replace('\n', "<br>")
                    ),
                })
                .to_string()
            }
            Template::Json => json!({
                "version": 1,
                "id": identity(notice),
                "kind": notice.kind.reason(),
                "severity": notice.severity.as_str(),
                "subject": notice.subject,
                "title": notice.title,
                "body": notice.body,
                "at": rfc3339_text(notice.at),
            })
            .to_string(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &endpoint.authority)
            .header(USER_AGENT, "tidegate")
            .header(CONTENT_TYPE, content_type);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            let mut value = value.map_err(|_| {
                NoticeError::settings(
                    &self.name,
                    "the token holds characters no header may",
                    "look for a line break at its end",
                )
            })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Bytes::from(body)).map_err(|_| {
            NoticeError::settings(
                &self.name,
                "the URL holds characters no request may",
                "percent-encode them",
            )
        })
    }

    /// The text without anything secret in it.
    pub(super) fn redacted(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if let Some(token) = &self.token {
            text = without(&text, token.expose());
        }
        if let Ok(endpoint) = self.endpoint() {
            text = without(&text, self.url.expose());
            text = without(&text, &endpoint.path);
            for part in endpoint.path.split(['/', '?', '&', '=']) {
                // Parts such as `api` are no secrets, and cutting them would make answers unreadable.
                if part.len() >= 16 {
                    text = without(&text, part);
                }
            }
        }
        bounded(&text, 300)
    }
}

pub(super) fn without(text: &str, secret: &str) -> String {
    if secret.len() < 4 {
        return text.to_owned();
    }
    text.replace(secret, "[redacted]")
}

pub(super) fn is_local(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Names one notice, the same for each attempt to send it.
pub(super) fn identity(notice: &Notice) -> String {
    let mut digest = Sha256::new();
    for part in [
        notice.subject.as_str(),
        notice.kind.reason(),
        &rfc3339_text(notice.at),
    ] {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let digest = digest.finalize();
    digest
        .iter()
        .take(12)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// At most `longest` bytes, keeping line breaks.
fn bounded_lines(text: &str, longest: usize) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        let room = longest.saturating_sub(lines.len() + 1);
        if room < 8 {
            break;
        }
        if !lines.is_empty() {
            lines.push('\n');
        }
        lines.push_str(&bounded(line, room));
    }
    lines
}

/// A header's text: as it is when it is ASCII, else an encoded word (RFC 2047), which ntfy reads.
fn encoded_word(text: &str) -> String {
    if text.is_ascii() {
        return text.to_owned();
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(text);
    format!("=?UTF-8?B?{encoded}?=")
}

fn slack_escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn html_escaped(text: &str) -> String {
    slack_escaped(text)
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// Everything but unreserved characters (RFC 3986 §2.3) as `%XX`.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded + &char::from(byte).to_string()
        } else {
            encoded + &format!("%{byte:02X}")
        }
    })
}

fn colour(severity: Severity) -> u32 {
    match severity {
        Severity::Info => 0x2e_a0_43,
        Severity::Warning => 0xd2_99_22,
        Severity::Error => 0xdb_6d_28,
        Severity::Critical => 0xda_36_33,
    }
}

#[cfg(test)]
mod tests;
