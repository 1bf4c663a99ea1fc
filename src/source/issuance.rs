//! What the ACME engine has, as inputs of a translation; and what it must get, from the result.

use std::sync::Arc;

use tidegate_acme::answers::{AnswerSet, for_data_plane};
use tidegate_acme::engine::{Engine, State};
use tidegate_acme::plan::moment::rfc3339_text;
use tidegate_acme::record::Issued;
use tidegate_acme::settings::Wanted;
use tidegate_model::{ChallengeAnswers, RouteId};
use tokio::sync::watch;

use super::parsed::Parsed;
use crate::translate::{Inputs, IssuerChoice, IssuerReport, OrderReport, Translation};

/// The engine as the source sees it.
#[derive(Debug)]
pub struct Issuance {
    state: watch::Receiver<Arc<State>>,
    answers: watch::Receiver<AnswerSet>,
    challenges: Arc<ChallengeAnswers>,
}

impl Issuance {
    /// Follows an engine.
    pub fn new(engine: &Engine) -> Self {
        Self {
            state: engine.state(),
            answers: engine.answers().subscribe(),
            challenges: Arc::default(),
        }
    }

    /// Fills in what is known now. Returns the version of the answers among it.
    pub fn fill(&mut self, inputs: &mut Inputs, parsed: &mut Parsed) -> u64 {
        let state = Arc::clone(&self.state.borrow());
        for (id, certificate) in &state.certificates {
            let Some((namespace, name)) = id.split_once('/') else {
                continue;
            };
            let route = RouteId::new(namespace, name);
            if let Some(issued) = &certificate.issued {
                match parsed.of(id, issued) {
                    Ok(certificate) => {
                        inputs.issued.insert(route.clone(), certificate);
                    }
                    Err(error) => {
                        tracing::error!(certificate = %id, error = %error, "the certificate in the store cannot be used");
                    }
                }
            }
            let report = &certificate.report;
            let order = OrderReport {
                reason: report.reason.clone(),
                message: report.message.clone(),
                failed: report.failed,
                revoked: certificate.issued.as_deref().and_then(revocation),
                url: report.order_url.clone(),
                started_at: report.started_at,
                attempts: report.attempts,
                next_attempt: report.next_attempt,
                renew_at: report.renew_at,
                preflight: report.preflight.clone(),
            };
            inputs.orders.insert(route, order);
        }
        parsed.forget_unused();
        for (name, issuer) in &state.issuers {
            let report = IssuerReport {
                account_url: issuer.account_url.clone(),
                problem: issuer.problem.as_ref().map(|(_, message)| message.clone()),
                notices: issuer.notices.clone(),
            };
            inputs.issuer_reports.insert(name.clone(), report);
        }
        let set = self.answers.borrow().clone();
        match for_data_plane(&set.answers, &self.challenges) {
            Ok(challenges) if challenges != *self.challenges => {
                self.challenges = Arc::new(challenges);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(error = %error, "cannot make the certificate of a challenge");
            }
        }
        inputs.challenges = Arc::clone(&self.challenges);
        set.version
    }
}

/// That a certificate is revoked, in one sentence.
fn revocation(issued: &Issued) -> Option<String> {
    let at = rfc3339_text(issued.revoked?);
    Some(match &issued.revoked_because {
        Some(reason) => format!("its authority has revoked it ({reason}, known since {at})"),
        None => format!("its authority has revoked it (known since {at})"),
    })
}

/// What the engine must get and keep.
pub fn wanted(translation: &Translation) -> Vec<Wanted> {
    translation
        .wanted_certificates
        .iter()
        .filter_map(|certificate| {
            let IssuerChoice::Acme(name) = &certificate.issuer else {
                return None;
            };
            let issuer = translation.issuers.get(name)?;
            let fallback = issuer.fallback.as_ref();
            let mut names = certificate.names.clone();
            names.sort();
            names.dedup();
            Some(Wanted {
                id: certificate.route.to_string(),
                names,
                issuer: Arc::clone(issuer),
                fallback: fallback.and_then(|name| translation.issuers.get(name).cloned()),
            })
        })
        .collect()
}
