//! Credentials of agents: Secrets in, stored keys out.
//!
//! A token is read here and nowhere else, and only what it is recognised by leaves this file; no message quotes
//! what a Secret holds.

use tidegate_model::{Agent, AgentId, StoredKey};
use tidegate_tunnel::credential::{CredentialError, Token, parse_stored_key};

use super::references::References;
use super::report::{Field, Report};
use super::status::{Conditions, joined};
use super::{Inputs, SecretData};
use crate::api::AgentCredential;
use crate::api::conditions::{ConditionType, Reason};

/// Keys of the Secret: the name, whether it holds a token and not its hash.
const KEYS: [(&str, bool); 4] = [
    ("token", true),
    ("tokenHash", false),
    ("previousToken", true),
    ("previousTokenHash", false),
];
const HINT: &str = "`tidegate agent token` prints a new token and its hash";

/// The keys that an agent's proofs may be made with, newest first. What is wrong is reported; what is right counts
/// all the same.
pub(super) fn keys(
    report: &mut Report,
    inputs: &Inputs,
    id: &AgentId,
    wire: &AgentCredential,
) -> Vec<StoredKey> {
    let references = References { inputs, id };
    let credential = Field::SPEC.at("credential");
    let field = credential.at("secretName");
    let before = report.count();
    let Some(secret) = references.secret(report, &field, &wire.secret_name) else {
        if !inputs.environment.is_shared() {
            for problem in report.since(before) {
                problem.hint = Some(format!("make it with the key token; {HINT}"));
            }
        }
        return Vec::new();
    };
    let name = references.sibling(&wire.secret_name);
    let mut found: Vec<StoredKey> = Vec::new();
    for (key, is_token) in KEYS {
        match value(secret, key, is_token) {
            None => {}
            Some(Ok(stored)) if found.contains(&stored) => {}
            Some(Ok(stored)) => found.push(stored),
            Some(Err(error)) => report.add(
                field,
                Reason::InvalidSecret,
                format!("key {key:?} of Secret {name}: {error}"),
                HINT,
            ),
        }
    }
    if found.is_empty() && report.count() == before {
        let present: Vec<_> = secret.data.keys().map(String::as_str).collect();
        let present = match present.as_slice() {
            [] => "none".to_owned(),
            present => present.join(", "),
        };
        report.add(
            field,
            Reason::InvalidSecret,
            format!(
                "Secret {name} has neither key \"token\" nor \"tokenHash\" (it has: {present})"
            ),
            HINT,
        );
    }
    found.truncate(Agent::KEYS);
    found
}

fn value(
    secret: &SecretData,
    key: &str,
    is_token: bool,
) -> Option<Result<StoredKey, CredentialError>> {
    let bytes = secret.data.get(key)?;
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Some(Err(if is_token {
            CredentialError::Token
        } else {
            CredentialError::Hash
        }));
    };
    Some(if is_token {
        Token::parse(text).map(|token| token.stored_key())
    } else {
        parse_stored_key(text)
    })
}

/// Whether the agent can log in.
pub(super) fn judge(conditions: &mut Conditions, report: &Report, keys: usize) {
    let type_ = ConditionType::CredentialReady;
    let wrong = || report.of(ConditionType::ResolvedRefs);
    match (wrong().next(), keys) {
        (Some(first), _) => conditions.set(type_, false, first.reason, joined(wrong())),
        (None, 1) => conditions.set(type_, true, Reason::CredentialReady, "the token is there"),
        (None, count) => conditions.set(
            type_,
            true,
            Reason::CredentialReady,
            format!("{count} tokens are valid"),
        ),
    }
}
