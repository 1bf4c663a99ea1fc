//! One whole pre-flight: our own challenge served, the facts collected, the verdicts made.
//!
//! What the engine does before an order and `tidegate doctor` on demand. The tokens are random and belong to
//! no account; they are withdrawn when the probe ends, however it ends.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::Uri;
use tidegate_model::{HostName, HostPattern};

use super::facts::{Authority, Budget, ChallengeKind, Facts, OwnAddresses};
use super::loopback::{OwnChallenge, digest};
use super::own::is_public;
use super::probe::{Probe, Wanted};
use super::{Finding, judge};
use crate::answers::{Answer, Answers, Presented};
use crate::client::AcmeClient;
use crate::dns::DnsClient;
use crate::settings::Issuer;

/// What a pre-flight needs to know.
#[derive(Debug)]
pub struct Preflight<'a> {
    /// Who is going to be asked for the certificate.
    pub issuer: &'a Issuer,
    /// Its client.
    pub client: &'a AcmeClient,
    /// The names and how each is going to be proven.
    pub names: &'a [Wanted],
    /// Who is asked for DNS.
    pub dns: DnsClient,
    /// Where answers are served; without it ports are not tried.
    pub answers: Option<&'a Answers>,
    /// Addresses that lead to this edge.
    pub own: OwnAddresses,
    /// URL of our account, when there is one.
    pub account_uri: Option<String>,
    /// Result of the write test of the store.
    pub store: Option<Result<(), String>>,
    /// A limit that is used up.
    pub budget: Option<Budget>,
    /// Ports that an authority connects to for http-01 and tls-alpn-01: 80 and 443 but in tests.
    pub ports: (u16, u16),
    /// Time for the name checks.
    pub deadline: Duration,
}

impl Preflight<'_> {
    /// Looks and judges. `random` names the probe's token.
    pub async fn run(self, now: SystemTime, random: u128) -> Vec<Finding> {
        let authority = self.authority(now).await;
        let challenge = OwnChallenge {
            token: format!("tidegate-preflight-{random:032x}"),
            key_authorization: format!("tidegate-preflight-{random:032x}.{:032x}", !random),
            http_port: self.ports.0,
            tls_port: self.ports.1,
            timeout: Duration::from_secs(5),
        };
        let served = self.serve(&challenge).await;
        let probe = Probe {
            dns: self.dns.clone(),
            challenge: served.is_some().then_some(challenge),
            deadline: self.deadline,
            parallel: 8,
        };
        let names = probe.names(self.names, now).await;
        drop(served);
        judge(&Facts {
            now,
            names,
            own: self.own,
            authority,
            store: self.store,
            budget: self.budget,
        })
    }

    /// Publishes the answers for all names; none when the edge does not serve them.
    async fn serve(&self, challenge: &OwnChallenge) -> Option<Presented> {
        let mut wanted_answers = Vec::new();
        for wanted in self.names {
            let HostPattern::Exact(host) = &wanted.name else {
                continue;
            };
            let answer = match wanted.challenge {
                ChallengeKind::Http01 => Answer::Http01 {
                    host: host.clone(),
                    token: challenge.token.clone(),
                    key_authorization: challenge.key_authorization.clone(),
                },
                ChallengeKind::TlsAlpn01 => Answer::TlsAlpn01 {
                    host: host.clone(),
                    digest: digest(&challenge.key_authorization),
                },
                _ => continue,
            };
            wanted_answers.push(answer);
        }
        self.answers?.present(wanted_answers).await.ok()
    }

    async fn authority(&self, now: SystemTime) -> Authority {
        let issuer = self.issuer;
        let mut authority = Authority {
            name: issuer.name.clone(),
            public: is_public_host(&issuer.directory).await,
            terms_agreed: true,
            external_account_given: issuer.external_account.is_some() || self.account_uri.is_some(),
            profile: issuer.profile.clone(),
            account_uri: self.account_uri.clone(),
            ..Authority::default()
        };
        match self.client.directory(&issuer.directory).await {
            Err(error) => authority.unreachable = Some(causes(&error)),
            Ok(directory) => {
                let meta = directory.meta;
                authority.caa_identities = meta.caa_identities;
                authority.terms_of_service = meta.terms_of_service;
                authority.external_account_required = meta.external_account_required;
                authority.profiles = meta.profiles.into_keys().collect();
                authority.date = self.client.hints().clock_ahead.and_then(|ahead| {
                    let by = Duration::from_secs(ahead.unsigned_abs());
                    if ahead >= 0 {
                        now.checked_add(by)
                    } else {
                        now.checked_sub(by)
                    }
                });
            }
        }
        authority
    }
}

/// Whether the directory is on the Internet; one that cannot be resolved is taken for it.
async fn is_public_host(url: &str) -> bool {
    let host = url.parse::<Uri>().ok().and_then(|uri| {
        let host = uri.host()?.trim_matches(['[', ']']);
        HostName::parse(host).ok()
    });
    let Some(host) = host else {
        return true;
    };
    let lookup = tokio::net::lookup_host((host.as_str(), 443));
    match tokio::time::timeout(Duration::from_secs(5), lookup).await {
        Ok(Ok(addresses)) => {
            let found: Vec<IpAddr> = addresses.map(|address| address.ip()).collect();
            found.is_empty() || found.into_iter().any(is_public)
        }
        _ => true,
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
