//! Who is told of certificates in danger: receivers as issuers name them become targets of the engine.
//!
//! A receiver that cannot be used is left out and said; it is never a reason not to issue certificates.

use std::sync::Arc;

use tidegate_acme::notices::target::DEFAULT_TIMEOUT;
use tidegate_acme::notices::{
    NoticeError, NoticeKind, Severity, SmtpSecurity, SmtpTarget, Target, Template, WebhookTarget,
};
use tidegate_acme::settings::Notification;
use tidegate_model::Secret;

use super::references::References;
use super::report::{Field, Report};
use super::status::Conditions;
use super::words::one_of;
use super::{Inputs, IssuerReport, ObjectRef};
use crate::api::conditions::{ConditionType, Reason};
use crate::api::{AcmeIssuerSpec, Notification as Wire, SecretKeyRef};
use crate::api::{SmtpNotification, WebhookNotification};

/// The receivers of an issuer that can be used; the report says what is wrong with the others.
pub(super) fn targets(
    inputs: &Inputs,
    report: &mut Report,
    object: ObjectRef,
    spec: &AcmeIssuerSpec,
) -> Vec<Notification> {
    let id = super::issuance::secrets_of(inputs, &object.name);
    let references = References { inputs, id: &id };
    // Apart, because nothing here makes the issuer itself invalid.
    let mut own = Report::new(object);
    let list = Field::SPEC.at("notifications");
    let mut all: Vec<Notification> = Vec::new();
    for (index, wire) in spec.notifications.iter().enumerate() {
        let field = list.index(index);
        if all.iter().any(|one| one.target.name() == wire.name) {
            own.invalid(
                field.at("name"),
                format!("{:?} is the name of another one", wire.name),
                "give each its own name",
            );
            continue;
        }
        all.extend(notification(&references, &mut own, &field, wire));
    }
    own.rename(Reason::Invalid, Reason::InvalidNotification);
    report.append(own);
    all
}

/// Sets what is said of deliveries. `known` is what the engine tells of the issuer.
pub(super) fn judge(
    report: &mut Report,
    conditions: &mut Conditions,
    spec: &AcmeIssuerSpec,
    known: Option<&IssuerReport>,
) {
    if spec.notifications.is_empty() {
        conditions.remove(ConditionType::NotificationsDelivered);
        return;
    }
    let list = Field::SPEC.at("notifications");
    let mut delivered = 0;
    for (index, wire) in spec.notifications.iter().enumerate() {
        let states = known.map(|known| known.notices.as_slice());
        let state = states
            .unwrap_or_default()
            .iter()
            .find(|state| state.target == wire.name);
        let Some(state) = state else { continue };
        delivered += state.delivered;
        if let Some(error) = &state.last_error {
            report.add(
                list.index(index),
                Reason::NoticesNotDelivered,
                error.to_string(),
                "mend it, then try it with `tidegate notify-test`",
            );
        }
    }
    let message = match delivered {
        0 => "nobody had to be told of anything since the start",
        _ => "the last notices arrived",
    };
    conditions.judge(
        report,
        ConditionType::NotificationsDelivered,
        Reason::NoticesDelivered,
        message,
    );
}

fn notification(
    references: &References<'_>,
    report: &mut Report,
    field: &Field<'_>,
    wire: &Wire,
) -> Option<Notification> {
    let before = report.count();
    let mut on = Vec::new();
    let events = field.at("events");
    for (index, word) in wire.events.iter().enumerate() {
        let at = events.index(index);
        let kinds: &[NoticeKind] = one_of(
            report,
            &at,
            Some(word),
            &[][..],
            &[
                (
                    "Expiring",
                    &[
                        NoticeKind::Expiring,
                        NoticeKind::Expired,
                        NoticeKind::Revoked,
                    ][..],
                ),
                (
                    "Failing",
                    &[NoticeKind::Failing, NoticeKind::LongTermFailing][..],
                ),
                ("Recovered", &[NoticeKind::Recovered][..]),
            ],
        )
        .unwrap_or_default();
        on.extend_from_slice(kinds);
    }
    let target = match (&wire.webhook, &wire.smtp) {
        (Some(webhook_wire), None) => {
            let at = field.at("webhook");
            webhook(references, report, &at, &wire.name, webhook_wire).map(Target::Webhook)
        }
        (None, Some(smtp_wire)) => {
            let at = field.at("smtp");
            smtp(references, report, &at, &wire.name, smtp_wire).map(Target::Smtp)
        }
        _ => {
            report.invalid(
                field,
                "it does not say in one way how notices are sent",
                "set exactly one of webhook and smtp",
            );
            None
        }
    }?;
    if let Err(error) = target.check() {
        match error {
            NoticeError::Settings { problem, fix, .. } => report.invalid(field, problem, fix),
            other => report.invalid(field, other.to_string(), ""),
        }
    }
    (report.count() == before).then_some(Notification { target, on })
}

fn webhook(
    references: &References<'_>,
    report: &mut Report,
    field: &Field<'_>,
    name: &str,
    wire: &WebhookNotification,
) -> Option<WebhookTarget> {
    let room = wire.matrix_room.clone();
    let template = match wire.template.as_str() {
        "matrix" => Some(Template::Matrix {
            room: room.clone().unwrap_or_default(),
        }),
        word => one_of(
            report,
            &field.at("template"),
            Some(word),
            0,
            &[
                ("ntfy", 0),
                ("slack", 1),
                ("discord", 2),
                ("json", 3),
                ("matrix", 4),
            ],
        )
        .map(|index| match index {
            0 => Template::Ntfy,
            1 => Template::Slack,
            2 => Template::Discord,
            _ => Template::Json,
        }),
    };
    if room.is_some() && wire.template != "matrix" {
        report.invalid(
            field.at("matrixRoom"),
            "only template matrix has a room",
            "leave it out, or set template: matrix",
        );
    }
    let url = match (&wire.url, &wire.url_secret_ref) {
        (Some(url), None) => Some(url.clone()),
        (None, Some(wire)) => text(references, report, &field.at("urlSecretRef"), wire),
        _ => {
            report.invalid(
                field,
                "it does not say in one way where to",
                "set exactly one of url and urlSecretRef",
            );
            None
        }
    };
    let token = match &wire.authorization_secret_ref {
        None => Some(None),
        Some(wire) => {
            let at = field.at("authorizationSecretRef");
            text(references, report, &at, wire).map(|token| Some(Secret::new(token)))
        }
    };
    let ca_bundle = bundle(references, report, field, wire.ca_secret_name.as_deref());
    Some(WebhookTarget {
        name: name.to_owned(),
        url: Secret::new(url?),
        template: template?,
        token: token?,
        ca_bundle: ca_bundle?,
        timeout: DEFAULT_TIMEOUT,
        least: Severity::Info,
        reach: Arc::clone(&references.inputs.environment.reach),
    })
}

fn smtp(
    references: &References<'_>,
    report: &mut Report,
    field: &Field<'_>,
    name: &str,
    wire: &SmtpNotification,
) -> Option<SmtpTarget> {
    let port = match wire.port.map(u16::try_from) {
        None => Some(None),
        Some(Ok(port)) if port > 0 => Some(Some(port)),
        Some(_) => {
            report.invalid(
                field.at("port"),
                "it is no port",
                "write a number from 1 to 65535",
            );
            None
        }
    };
    let security = one_of(
        report,
        &field.at("security"),
        wire.security.as_deref(),
        SmtpSecurity::Tls,
        &[
            ("TLS", SmtpSecurity::Tls),
            ("StartTLS", SmtpSecurity::StartTls),
            ("Plain", SmtpSecurity::Plain),
        ],
    );
    let credentials = match (&wire.username, &wire.password_secret_ref) {
        (None, None) => Some(None),
        (Some(user), Some(wire)) => {
            let at = field.at("passwordSecretRef");
            text(references, report, &at, wire)
                .map(|password| Some((user.clone(), Secret::new(password))))
        }
        _ => {
            report.invalid(
                field,
                "username and passwordSecretRef belong together",
                "set both or neither",
            );
            None
        }
    };
    let ca_bundle = bundle(references, report, field, wire.ca_secret_name.as_deref());
    Some(SmtpTarget {
        name: name.to_owned(),
        host: wire.host.clone(),
        port: port?,
        security: security?,
        credentials: credentials?,
        from: wire.from.clone(),
        to: wire.to.clone(),
        ca_bundle: ca_bundle?,
        timeout: DEFAULT_TIMEOUT,
        least: Severity::Info,
        reach: Arc::clone(&references.inputs.environment.reach),
    })
}

/// A text of a Secret, without the line break that editors leave at its end.
fn text(
    references: &References<'_>,
    report: &mut Report,
    field: &Field<'_>,
    wire: &SecretKeyRef,
) -> Option<String> {
    let bytes = references.secret_key(report, field, &wire.name, &[&wire.key])?;
    let text = std::str::from_utf8(bytes.trim_ascii()).ok();
    let text = text.filter(|text| !text.is_empty());
    if text.is_none() {
        report.add(
            field,
            Reason::InvalidSecret,
            format!(
                "key {:?} of Secret {} is empty or no text",
                wire.key, wire.name
            ),
            "write the value as the receiver's provider shows it",
        );
    }
    text.map(str::to_owned)
}

/// CAs in PEM: outer None when the Secret is missing, inner None for the system's.
#[allow(clippy::option_option, reason = "absent and missing differ")]
fn bundle(
    references: &References<'_>,
    report: &mut Report,
    field: &Field<'_>,
    secret: Option<&str>,
) -> Option<Option<String>> {
    let Some(name) = secret else {
        return Some(None);
    };
    let wire = SecretKeyRef {
        name: name.to_owned(),
        key: "ca.crt".to_owned(),
    };
    text(references, report, &field.at("caSecretName"), &wire).map(Some)
}
