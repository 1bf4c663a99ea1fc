//! Issuance by ACME as objects say it and as statuses tell it.
//!
//! Issuers become the settings that the engine takes, their Secrets looked up; what the engine reports
//! becomes conditions.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tidegate_acme::preflight::Finding;
use tidegate_acme::settings::{
    ExternalAccount, Issuer, KeyType, Method, RenewalSource, Solver, TrustedRoots,
};
use tidegate_model::{ObjectName, Secret};

use super::references::References;
use super::report::{Field, Report};
use super::solvers::{self, Made};
use super::{Inputs, OrderReport};
use crate::api::conditions::{Reason, timestamp};
use crate::api::{AcmeIssuerSpec, OrderStatus, PreflightStatus};

/// The settings of an issuer whose fields were checked; None when a Secret that every order needs is missing
/// or unusable, which the report says then.
pub(super) fn settings(
    inputs: &Inputs,
    report: &mut Report,
    name: &str,
    spec: &AcmeIssuerSpec,
    made: &mut Made<'_>,
) -> Option<Issuer> {
    let id = secrets_of(inputs, name);
    let references = References { inputs, id: &id };
    let field = Field::SPEC;
    let mut complete = true;
    let mut external_account = None;
    if let Some(wire) = &spec.external_account_binding {
        let at = field.at("externalAccountBinding");
        let at = at.at("keySecretRef");
        let key = references.secret_key(
            report,
            &at,
            &wire.key_secret_ref.name,
            &[&wire.key_secret_ref.key],
        );
        match key.map(|key| URL_SAFE_NO_PAD.decode(key.trim_ascii().trim_ascii_end())) {
            Some(Ok(hmac_key)) => {
                external_account = Some(ExternalAccount {
                    key_id: wire.key_id.clone(),
                    hmac_key: Secret::new(hmac_key),
                });
            }
            Some(Err(_)) => {
                complete = false;
                report.add(
                    at,
                    Reason::InvalidSecret,
                    format!(
                        "key {:?} of Secret {} is not base64url",
                        wire.key_secret_ref.key, wire.key_secret_ref.name
                    ),
                    "write the HMAC key as the authority shows it, without `=` at the end",
                );
            }
            None => complete = false,
        }
    }
    let mut roots = None;
    if let Some(secret) = &spec.ca_secret_name {
        match references.roots(report, &field, Some(secret), None) {
            Some((store, fingerprint)) => {
                roots = Some(TrustedRoots {
                    roots: store,
                    fingerprint: fingerprint.0,
                });
            }
            None => complete = false,
        }
    }
    let mut solvers: Vec<Solver> = Vec::new();
    let at = field.at("solvers");
    for (index, wire) in spec.solvers.iter().enumerate() {
        solvers.push(solvers::build(
            &references,
            report,
            &at.index(index),
            wire,
            made,
        ));
    }
    if spec.solvers.is_empty() {
        solvers = [("tls-alpn", Method::TlsAlpn01), ("http", Method::Http01)]
            .map(|(name, method)| Solver {
                name: name.to_owned(),
                zones: Vec::new(),
                names: Vec::new(),
                method,
            })
            .into();
    }
    complete.then(|| Issuer {
        name: name.to_owned(),
        directory: spec.directory.clone(),
        staging_directory: spec.staging_directory.clone(),
        contact: spec.contact.clone(),
        profile: spec.profile.clone(),
        key_type: KeyType::ALL
            .iter()
            .find(|(word, _)| Some(*word) == spec.key_type.as_deref())
            .map_or(KeyType::default(), |(_, key_type)| *key_type),
        external_account,
        roots,
        renewal: match spec.renewal_information_source.as_deref() {
            Some("Lifetime") => RenewalSource::Lifetime,
            _ => RenewalSource::Ari,
        },
        fallback: spec.fallback_issuer.clone(),
        solvers,
        notifications: Vec::new(),
    })
}

/// An object's name as if it were in the namespace whose Secrets issuers name.
pub(super) fn secrets_of(inputs: &Inputs, name: &str) -> ObjectName {
    let namespace = match inputs.environment.system_namespace.as_str() {
        "" => "default",
        other => other,
    };
    ObjectName::new(namespace, name)
}

/// Notes that a route has no good certificate, and what is being done about it.
pub(super) fn missing(
    report: &mut Report,
    issuer: &str,
    message: &str,
    order: Option<&OrderReport>,
) {
    match order {
        Some(order) if order.failed => {
            let next = order.next_attempt.map(|next| {
                // What the authority counts and asks for outlives a change.
                let change = match order.reason.as_str() {
                    "RateLimited" => "",
                    // They are looked at all the time.
                    "DnsWrong" => {
                        ", or soon after the DNS records are changed, or at once when the route or its issuer is"
                    }
                    _ => ", or at once when the route or its issuer is changed",
                };
                format!("the next attempt is at {}{change}", timestamp(next).0)
            });
            let parts = [remedy(&order.reason), next.as_deref().unwrap_or_default()];
            let hint = parts.map(str::to_owned);
            let hint: Vec<String> = hint.into_iter().filter(|it| !it.is_empty()).collect();
            let hint = hint.join("; ");
            let message = format!(
                "AcmeIssuer {issuer} gave no certificate ({}): {}",
                order.reason, order.message
            );
            report.add("spec.tls", Reason::OrderFailed, message, hint);
        }
        Some(order) if !order.message.is_empty() => {
            let message = format!("AcmeIssuer {issuer}: {}", order.message);
            let hint = "a certificate of the internal CA stands in until then";
            report.add("spec.tls", Reason::Issuing, message, hint);
        }
        _ => {
            let hint = format!("AcmeIssuer {issuer} is asked for one");
            report.add("spec.tls", Reason::Issuing, message, hint);
        }
    }
}

/// Notes that what is served is revoked, if it is; whether it is.
pub(super) fn revoked(report: &mut Report, order: Option<&OrderReport>) -> bool {
    let Some(order) = order else { return false };
    let Some(message) = &order.revoked else {
        return false;
    };
    let hint = renewal_note(order).unwrap_or_else(|| "another is ordered".to_owned());
    report.add("spec.tls", Reason::Revoked, message.clone(), hint);
    true
}

/// What is said while a good certificate is being replaced and that fails.
pub(super) fn renewal_note(order: &OrderReport) -> Option<String> {
    if !order.failed {
        return None;
    }
    let next = match order.next_attempt {
        Some(next) => format!("; the next attempt is at {}", timestamp(next).0),
        None => String::new(),
    };
    Some(format!(
        "its renewal failed {} times, lastly: {} ({}); {}{next}",
        order.attempts,
        order.message,
        order.reason,
        remedy(&order.reason),
    ))
}

/// The order as the status shows it; None when nothing is under way.
pub(super) fn order_status(order: &OrderReport) -> Option<OrderStatus> {
    if order.url.is_none() && order.attempts == 0 && order.started_at.is_none() {
        return None;
    }
    Some(OrderStatus {
        url: order.url.clone(),
        started_at: order.started_at.map(timestamp),
        attempts: i32::try_from(order.attempts).ok(),
        next_attempt: order.next_attempt.map(timestamp),
    })
}

/// Findings that a status shows.
const MOST_FINDINGS: usize = 64;
/// Characters of a finding's text.
const LONGEST_FINDING: usize = 1024;

/// What was found before the last order, the worst first.
pub(super) fn preflight_status(order: &OrderReport) -> Vec<PreflightStatus> {
    let text = |text: &str| text.chars().take(LONGEST_FINDING).collect::<String>();
    let mut findings: Vec<&Finding> = order.preflight.iter().collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.state));
    findings
        .into_iter()
        .take(MOST_FINDINGS)
        .map(|finding| PreflightStatus {
            check: finding.check.as_str().to_owned(),
            name: finding.name.clone(),
            state: finding.state.as_str().to_owned(),
            message: text(&finding.message),
            fix: finding.fix.as_deref().map(text),
        })
        .collect()
}

/// How to mend what an order failed at.
fn remedy(reason: &str) -> &'static str {
    match reason {
        "CaUnreachable" => {
            "check `spec.directory` of the issuer and that this machine may connect to it"
        }
        "CaUntrusted" => {
            "give the issuer `caSecretName` with the CA that signed the directory's certificate"
        }
        "NotADirectory" => "correct `spec.directory` of the issuer",
        "ExternalAccountRequired" => "give the issuer `externalAccountBinding`",
        "Malformed" | "AccountUnknown" => {
            "check `externalAccountBinding` and `contact` of the issuer"
        }
        "ContactRefused" => "correct `contact` of the issuer",
        "ProfileUnknown" => "correct `profile` of the issuer",
        "NameRejected" => "this authority does not issue for that name: use another issuer",
        "CaaForbids" => "let a CAA record of the domain name this authority, or remove them",
        "DnsFailed" => "correct the DNS records of the name",
        "ChallengeUnreachable" => {
            "let the name's addresses be this machine's, with ports 80 and 443 open"
        }
        "ChallengeWrongAnswer" | "ChallengeTls" => {
            "let all addresses of the name lead here: another server answered"
        }
        "NoUsableSolver" => "give the issuer a solver for that name",
        "DnsWrong" | "NotReachable" | "DnsRecordMissing" | "AuthorityRefuses" | "ClockSkew" => {
            // The message says it.
            ""
        }
        "RateLimited" => "wait: nothing is ordered before then",
        "StoreUnwritable" | "StoreUnreadable" => "make the state folder writable, with room left",
        _ => "nothing has to be done if it passes by itself",
    }
}
