//! The record of dns-persist-01 (draft-ietf-acme-dns-persist-01): written once by a person, read by us.
//!
//! `_validation-persist.NAME` holds an issue-value in the form of RFC 8659 §4.2: the authority's domain and
//! `accounturi=…; policy=wildcard; persistUntil=…`. Nothing here writes DNS. The reading follows the
//! draft to the letter, so that "it is there" means that the authority will say so too.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{DnsClient, SolverError, parse_name};

/// The label under which the authority looks.
pub const PERSIST_LABEL: &str = "_validation-persist";

/// What the record must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersistRecord {
    /// The name to be certified, without `*.`.
    pub domain: String,
    /// One of the authority's `issuer-domain-names` from the challenge.
    pub issuer_domain: String,
    /// URL of the account.
    pub account_uri: String,
    /// Whether wildcards and subdomains are wanted (`policy=wildcard`).
    pub wildcard: bool,
    /// From when on it is void; never when not given.
    pub persist_until: Option<SystemTime>,
}

impl PersistRecord {
    /// The absolute name of the record.
    pub fn fqdn(&self) -> String {
        format!("{PERSIST_LABEL}.{}.", self.domain.trim_end_matches('.'))
    }

    /// The text to put there.
    pub fn value(&self) -> String {
        let mut text = format!("{}; accounturi={}", self.issuer_domain, self.account_uri);
        if self.wildcard {
            text.push_str("; policy=wildcard");
        }
        if let Some(until) = self.persist_until {
            let seconds = until.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            text.push_str("; persistUntil=");
            text.push_str(&seconds.to_string());
        }
        text
    }

    /// One line for a zone file; a text over 255 bytes is cut into strings as DNS wants it.
    pub fn zone_line(&self) -> String {
        let value = self.value();
        let strings: Vec<String> = value
            .as_bytes()
            .chunks(255)
            .map(|part| format!("\"{}\"", String::from_utf8_lossy(part)))
            .collect();
        format!("{} IN TXT {}", self.fqdn(), strings.join(" "))
    }

    /// Whether one of the texts found authorizes this account now; else why each does not.
    pub fn check(&self, found: &[String], now: SystemTime) -> Result<(), PersistProblem> {
        let mut problems = Vec::new();
        for text in found {
            match self.judge(text, now) {
                Ok(()) => return Ok(()),
                Err(Some(problem)) => problems.push(format!("{text:?}: {problem}")),
                Err(None) => {}
            }
        }
        Err(if problems.is_empty() {
            PersistProblem::Missing
        } else {
            PersistProblem::Unfit(problems)
        })
    }

    /// `Err(None)`: a record for another authority.
    fn judge(&self, text: &str, now: SystemTime) -> Result<(), Option<String>> {
        let mut parts = text.split(';').map(|part| part.trim_matches([' ', '\t']));
        if parts.next() != Some(self.issuer_domain.as_str()) {
            return Err(None);
        }
        let mut account = None;
        let mut wildcard = false;
        let mut seen: Vec<String> = Vec::new();
        for part in parts {
            let Some((tag, value)) = part.split_once('=') else {
                return Err(Some(format!("{part:?} is not tag=value")));
            };
            let tag = tag.trim_matches([' ', '\t']).to_ascii_lowercase();
            let value = value.trim_matches([' ', '\t']);
            if tag.is_empty() || !value.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
                return Err(Some(format!("{part:?} is malformed")));
            }
            if seen.contains(&tag) {
                return Err(Some(format!("{tag} stands twice")));
            }
            match tag.as_str() {
                "accounturi" => account = Some(value),
                "policy" => wildcard = value.eq_ignore_ascii_case("wildcard"),
                "persistuntil" => {
                    let seconds: u64 = value
                        .parse()
                        .map_err(|_| Some(format!("persistUntil {value:?} is not a number")))?;
                    if UNIX_EPOCH
                        .checked_add(Duration::from_secs(seconds))
                        .is_some_and(|until| now > until)
                    {
                        return Err(Some("persistUntil is past".to_owned()));
                    }
                }
                _ => {}
            }
            seen.push(tag);
        }
        match account {
            None => Err(Some("accounturi is missing".to_owned())),
            Some(uri) if uri != self.account_uri => {
                Err(Some(format!("accounturi is not {}", self.account_uri)))
            }
            Some(_) if self.wildcard && !wildcard => {
                Err(Some("policy=wildcard is missing".to_owned()))
            }
            Some(_) => Ok(()),
        }
    }

    /// Asks whether the record is there.
    pub async fn look(
        &self,
        client: &DnsClient,
        now: SystemTime,
    ) -> Result<Result<(), PersistProblem>, SolverError> {
        let fqdn = self.fqdn();
        let texts = client
            .texts(&parse_name(&fqdn)?)
            .await
            .map_err(|source| SolverError::Query { fqdn, source })?;
        Ok(self.check(&texts, now))
    }
}

/// Why the record does not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PersistProblem {
    /// There is none for this authority.
    Missing,
    /// There are some, each with what is wrong.
    Unfit(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "https://ca.example/acme/acct/4321";

    fn wanted(wildcard: bool) -> PersistRecord {
        PersistRecord {
            domain: "example.com".to_owned(),
            issuer_domain: "authority.example".to_owned(),
            account_uri: ACCOUNT.to_owned(),
            wildcard,
            persist_until: None,
        }
    }

    #[test]
    fn text_is_the_drafts() {
        let mut record = wanted(true);
        record.persist_until = Some(UNIX_EPOCH + Duration::from_secs(1_767_225_600));
        assert_eq!(
            record.zone_line(),
            "_validation-persist.example.com. IN TXT \"authority.example; \
             accounturi=https://ca.example/acme/acct/4321; policy=wildcard; \
             persistUntil=1767225600\""
        );
        assert_eq!(record.check(&[record.value()], UNIX_EPOCH), Ok(()));
    }

    #[test]
    fn long_text_is_cut_into_strings() {
        let mut record = wanted(false);
        record.account_uri = format!("https://ca.example/{}", "a".repeat(300));
        let line = record.zone_line();
        assert!(line.split('"').all(|part| part.len() <= 255), "{line}");
        assert_eq!(line.matches('"').count(), 4, "{line}");
    }

    #[test]
    fn each_unfit_record_says_why() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let table = [
            ("authority.example", "accounturi is missing"),
            ("authority.example;", "is not tag=value"),
            (
                "authority.example; accounturi=https://ca.example/acme/acct/1",
                "accounturi is not https://ca.example/acme/acct/4321",
            ),
            (
                "authority.example; accounturi=https://ca.example/acme/acct/4321",
                "policy=wildcard is missing",
            ),
            (
                "authority.example; accounturi=https://ca.example/acme/acct/4321; policy=wildcard; \
                 persistUntil=999999",
                "persistUntil is past",
            ),
            (
                "authority.example; accounturi=https://ca.example/acme/acct/4321; persistUntil=soon",
                "not a number",
            ),
            (
                "authority.example; policy=wildcard; policy=wildcard",
                "policy stands twice",
            ),
            ("authority.example; accounturi=a b", "is malformed"),
        ];
        for (text, why) in table {
            match wanted(true).check(&[text.to_owned()], now) {
                Err(PersistProblem::Unfit(problems)) => {
                    assert!(problems[0].contains(why), "{text}: {problems:?}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn others_records_are_passed_over_and_tags_have_no_case() {
        let found = [
            "other.example; accounturi=https://other.example/1".to_owned(),
            format!("authority.example ;ACCOUNTURI={ACCOUNT};\tPolicy=WildCard; later=1"),
        ];
        assert_eq!(wanted(true).check(&found, UNIX_EPOCH), Ok(()));
        assert_eq!(
            wanted(true).check(&found[..1], UNIX_EPOCH),
            Err(PersistProblem::Missing)
        );
    }
}
