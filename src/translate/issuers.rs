//! Issuers: what their objects say, checked, and which one a route means.

use std::time::SystemTime;

use tidegate_acme::settings::Issuer;

use super::report::{Field, Report};
use super::routes::CertificateSource;
use super::solvers::Made;
use super::status::Conditions;
use super::words::one_of;
use super::{Inputs, IssuerChoice, Kind, ObjectRef, Problem, issuance, notifications};
use crate::api::conditions::{Condition, ConditionType, Reason};
use crate::api::{AcmeIssuer, AcmeIssuerStatus};

/// The issuer that routes without `issuerRef` use: of those that say `default: true` the oldest.
pub(super) fn default_issuer(inputs: &Inputs) -> Option<&str> {
    inputs
        .own_issuers()
        .filter(|issuer| issuer.spec.default.unwrap_or(false))
        .min_by_key(|issuer| {
            let created = issuer
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| time.0);
            (created, issuer.metadata.name.clone())
        })
        .and_then(|issuer| issuer.metadata.name.as_deref())
}

/// Who issues the certificate of a route; None when it names an issuer that does not exist.
pub(super) fn choose(
    inputs: &Inputs,
    report: &mut Report,
    source: &CertificateSource,
) -> Option<IssuerChoice> {
    let name = match source {
        CertificateSource::Secret(_) => return None,
        CertificateSource::InternalCa => return Some(IssuerChoice::InternalCa),
        CertificateSource::DefaultIssuer => match default_issuer(inputs) {
            None => return without_default(inputs, report),
            Some(name) => name,
        },
        CertificateSource::Acme(name) => name,
    };
    let tls = Field::SPEC.at("tls");
    let issuer_ref = tls.at("issuerRef");
    let exists = exists(inputs, name);
    if !exists {
        let at = issuer_ref.at("name");
        not_found(inputs, report, at, name, "issuerRef");
    }
    exists.then(|| IssuerChoice::Acme(name.to_owned()))
}

/// Whether this edge has an issuer of that name.
fn exists(inputs: &Inputs, name: &str) -> bool {
    let mut own = inputs.own_issuers();
    own.any(|issuer| issuer.metadata.name.as_deref() == Some(name))
}

fn not_found(inputs: &Inputs, report: &mut Report, at: Field<'_>, name: &str, member: &str) {
    let mut all = inputs.issuers.iter();
    let other = all.find(|issuer| issuer.metadata.name.as_deref() == Some(name));
    if let Some(other) = other {
        let class = |class: &Option<String>| match class {
            Some(class) => format!("has className {class}"),
            None => "has no className".to_owned(),
        };
        let (its, ours) = (
            class(&other.spec.class_name),
            class(&inputs.environment.class_name),
        );
        report.add(
            at,
            Reason::IssuerNotFound,
            format!("AcmeIssuer {name} {its}, and this edge {ours}"),
            format!("name an issuer of this edge, or leave {member} out"),
        );
        return;
    }
    let known: Vec<_> = inputs
        .own_issuers()
        .filter_map(|issuer| issuer.metadata.name.as_deref())
        .collect();
    let hint = match super::words::nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if member == "issuerRef" => {
            "create it, or leave issuerRef out to use the default issuer".to_owned()
        }
        None => format!("create it, or leave {member} out"),
    };
    let message = format!("AcmeIssuer {name} does not exist");
    report.add(at, Reason::IssuerNotFound, message, hint);
}

/// Where an issuer was promised and its file cannot be used, the internal CA must not step in: clients would not
/// trust it, and certificates that were issued before stay in use without it.
fn without_default(inputs: &Inputs, report: &mut Report) -> Option<IssuerChoice> {
    let Some(file) = &inputs.issuer_file else {
        return Some(IssuerChoice::InternalCa);
    };
    report.add(
        "spec.tls",
        Reason::IssuerNotFound,
        format!("the default issuer cannot be read from {}", file.path),
        "mend the file, or defaultIssuer in the chart's values; the operator's log says what is wrong with it",
    );
    None
}

/// Why an issuer cannot be asked.
pub(super) fn what_is_wrong(report: &Report) -> String {
    let first = [ConditionType::Accepted, ConditionType::ResolvedRefs]
        .into_iter()
        .find_map(|condition| report.of(condition).next());
    first.map(Problem::summary).unwrap_or_default()
}

/// What somebody can do about it.
pub(super) fn how_to_mend(inputs: &Inputs, name: &str, wrong: Option<&String>) -> String {
    match &inputs.issuer_file {
        // There is no object whose status says it.
        Some(file) if file.issuer.as_deref() == Some(name) => {
            let wrong = wrong.map(String::as_str).unwrap_or_default();
            format!(
                "{wrong}; the issuer is that of {}, which the chart makes of its values",
                file.path
            )
        }
        _ => "mend what its own status says".to_owned(),
    }
}

/// Checks one issuer.
pub(super) fn check(
    inputs: &Inputs,
    issuer: &AcmeIssuer,
    name: &str,
    previous: &[Condition],
    now: SystemTime,
    made: &mut Made<'_>,
) -> (AcmeIssuerStatus, Report, Option<Issuer>) {
    let object = ObjectRef {
        kind: Kind::AcmeIssuer,
        namespace: None,
        name: name.to_owned(),
    };
    let mut report = Report::new(object.clone());
    let field = Field::SPEC;
    let spec = &issuer.spec;
    let directories = [
        ("directory", Some(&spec.directory)),
        ("stagingDirectory", spec.staging_directory.as_ref()),
    ];
    for (member, url) in directories {
        if let Some(url) = url
            && !is_https(url)
        {
            report.invalid(
                field.at(member),
                format!("{url:?} is not an https URL"),
                "write one such as https://acme-v02.api.letsencrypt.org/directory",
            );
        }
    }
    if spec.terms_of_service_agreed != Some(true) {
        report.invalid(
            field.at("termsOfServiceAgreed"),
            "the terms of service are not agreed to",
            "read them and set termsOfServiceAgreed: true",
        );
    }
    let at = field.at("contact");
    for (index, contact) in spec.contact.iter().enumerate() {
        let address = contact.strip_prefix("mailto:");
        if !address.is_some_and(|address| address.contains('@')) {
            report.invalid(
                at.index(index),
                format!("{contact:?} is not a contact"),
                format!("write mailto:{}", contact.trim_start_matches("mailto:")),
            );
        }
    }
    one_of(
        &mut report,
        &field.at("keyType"),
        spec.key_type.as_deref(),
        (),
        &[("P256", ()), ("P384", ()), ("RSA2048", ()), ("RSA4096", ())],
    );
    one_of(
        &mut report,
        &field.at("renewalInformationSource"),
        spec.renewal_information_source.as_deref(),
        (),
        &[("ARI", ()), ("Lifetime", ())],
    );
    if let Some(other) = &spec.fallback_issuer {
        let at = field.at("fallbackIssuer");
        if other == name {
            report.invalid(at, "it names the issuer itself", "name another one");
        } else if !exists(inputs, other) {
            not_found(inputs, &mut report, at, other, "fallbackIssuer");
        }
    }
    if spec.default == Some(true)
        && let Some(first) = default_issuer(inputs)
        && first != name
    {
        report.invalid(
            field.at("default"),
            format!("AcmeIssuer {first} already is the default"),
            "set default: true in one of them only",
        );
    }
    let valid = report.count() == 0;
    let settings = issuance::settings(inputs, &mut report, name, spec, made).filter(|_| valid);
    let receivers = notifications::targets(inputs, &mut report, object, spec);
    let settings = settings.map(|settings| Issuer {
        notifications: receivers,
        ..settings
    });
    let generation = issuer.metadata.generation;
    let mut conditions = Conditions::new(previous, generation, now);
    conditions.judge(&report, ConditionType::Accepted, Reason::Accepted, "valid");
    conditions.judge(
        &report,
        ConditionType::ResolvedRefs,
        Reason::ResolvedRefs,
        "everything named here exists",
    );
    let known = inputs.issuer_reports.get(name);
    notifications::judge(&mut report, &mut conditions, spec, known);
    let account_url = known.and_then(|report| report.account_url.clone());
    let problem = known.and_then(|report| report.problem.as_deref());
    let (ready, reason, message) = match (problem, &account_url) {
        (Some(problem), _) => (false, Reason::AuthorityUnusable, problem),
        (None, Some(_)) => (true, Reason::Registered, "the account is registered"),
        (None, None) => (
            false,
            Reason::Pending,
            "the account is registered with the first order",
        ),
    };
    conditions.set(ConditionType::Ready, ready, reason, message);
    let status = AcmeIssuerStatus {
        observed_generation: generation,
        conditions: conditions.into_inner(),
        account_url,
    };
    (status, report, settings)
}

fn is_https(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty())
    })
}
