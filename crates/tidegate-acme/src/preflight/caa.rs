//! CAA (RFC 8659) with the account and method binding of RFC 8657: which records apply, and what they say.
//!
//! The climbing is done by the rim; here records are read and judged. A value that cannot be read forbids,
//! as RFC 8659 §4.2 has it; property tags and parameter tags are compared without case.

use crate::plan::challenge::ChallengeType;

/// One CAA record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaaRecord {
    /// An authority that does not know the tag must refuse.
    pub critical: bool,
    /// The property.
    pub tag: String,
    /// Its value.
    pub value: String,
}

/// What the climbing found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CaaFacts {
    /// Not looked for: the name is an address.
    #[default]
    NotAsked,
    /// None at the name or above.
    None,
    /// The nearest set.
    Found {
        /// The name that holds it.
        level: String,
        /// The set.
        records: Vec<CaaRecord>,
    },
    /// The server failed at a level.
    Failed {
        /// The name asked for.
        level: String,
        /// Its code.
        code: String,
    },
    /// No answer at a level.
    NoAnswer {
        /// The name asked for.
        level: String,
        /// What happened.
        problem: String,
    },
}

/// Who asks.
#[derive(Debug)]
pub struct Asker<'a> {
    /// The authority's names; empty when it tells none.
    pub identities: &'a [String],
    /// Our account.
    pub account_uri: Option<&'a str>,
    /// How the name is proven.
    pub challenge: ChallengeType,
    /// Whether the name is a wildcard.
    pub wildcard: bool,
}

/// What a set of records says to the asker.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, by no record or by this value.
    Allowed(Option<String>),
    /// No: other authorities only, or none at all.
    OtherAuthority(Vec<String>),
    /// Our authority, but for another account.
    OtherAccount(String),
    /// Our authority, but by other methods.
    OtherMethod(String),
    /// A critical property that the authority may not know.
    Critical(String),
    /// The authority does not say its name; the values that would have to match.
    Unnamed(Vec<String>),
}

/// The issue-value of RFC 8659 §4.2: domain and parameters.
struct IssueValue<'a> {
    domain: &'a str,
    parameters: Vec<(String, &'a str)>,
}

/// Judges the set that applies.
pub fn verdict(records: &[CaaRecord], asker: &Asker<'_>) -> Verdict {
    let known = [
        "issue",
        "issuewild",
        "issuemail",
        "issuevmc",
        "iodef",
        "contactemail",
        "contactphone",
    ];
    let is = |record: &&CaaRecord, tag: &str| record.tag.eq_ignore_ascii_case(tag);
    if let Some(record) = records
        .iter()
        .find(|record| record.critical && !known.iter().any(|tag| is(record, tag)))
    {
        return Verdict::Critical(record.tag.clone());
    }
    // issuewild, where there is any, replaces issue for wildcards (RFC 8659 §4.3).
    let wild = asker.wildcard && records.iter().any(|record| is(&record, "issuewild"));
    let tag = if wild { "issuewild" } else { "issue" };
    let values: Vec<&CaaRecord> = records.iter().filter(|record| is(record, tag)).collect();
    if values.is_empty() {
        return Verdict::Allowed(None);
    }
    let texts = || values.iter().map(|record| record.value.clone()).collect();
    if asker.identities.is_empty() {
        return Verdict::Unnamed(texts());
    }
    let mut refusal = None;
    for record in &values {
        let Some(value) = parse(&record.value) else {
            continue;
        };
        let ours = asker
            .identities
            .iter()
            .any(|identity| identity.eq_ignore_ascii_case(value.domain));
        if !ours {
            continue;
        }
        match bound(&value, asker) {
            None => return Verdict::Allowed(Some(record.value.clone())),
            Some(make) => refusal = refusal.or(Some(make(record.value.clone()))),
        }
    }
    refusal.unwrap_or_else(|| Verdict::OtherAuthority(texts()))
}

/// Which refusal the parameters of RFC 8657 make; none when they let us pass.
fn bound(value: &IssueValue<'_>, asker: &Asker<'_>) -> Option<fn(String) -> Verdict> {
    for (tag, text) in &value.parameters {
        match tag.as_str() {
            "accounturi" if asker.account_uri.is_none_or(|uri| uri != *text) => {
                return Some(Verdict::OtherAccount);
            }
            "validationmethods"
                if !text
                    .split(',')
                    .any(|method| method.trim() == asker.challenge.as_str()) =>
            {
                return Some(Verdict::OtherMethod);
            }
            _ => {}
        }
    }
    None
}

fn parse(text: &str) -> Option<IssueValue<'_>> {
    let mut parts = text.split(';').map(|part| part.trim_matches([' ', '\t']));
    let domain = parts.next()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if domain.is_empty() || !domain.chars().all(allowed) {
        return None;
    }
    let mut parameters = Vec::new();
    for part in parts.filter(|part| !part.is_empty()) {
        let (tag, value) = part.split_once('=')?;
        let value = value.trim_matches([' ', '\t']);
        if !value.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
            return None;
        }
        let tag = tag.trim_matches([' ', '\t']);
        if tag.is_empty() || !tag.chars().all(|c| c.is_ascii_alphanumeric()) {
            return None;
        }
        parameters.push((tag.to_ascii_lowercase(), value));
    }
    Some(IssueValue { domain, parameters })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> CaaRecord {
        let (critical, rest) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (tag, value) = rest.split_once(' ').unwrap();
        CaaRecord {
            critical,
            tag: tag.to_owned(),
            value: value.to_owned(),
        }
    }

    /// `*` in front of the records: asked for a wildcard.
    fn ask(line: &str) -> Verdict {
        let (wildcard, line) = match line.strip_prefix('*') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let records: Vec<CaaRecord> = line.split(" | ").map(record).collect();
        verdict(
            &records,
            &Asker {
                identities: &["letsencrypt.org".to_owned()],
                account_uri: Some("https://ca.test/acct/1"),
                challenge: ChallengeType::Http01,
                wildcard,
            },
        )
    }

    #[test]
    fn sets_are_judged_as_the_rfcs_have_it() {
        let le = "letsencrypt.org".to_owned();
        let others =
            |v: &[&str]| Verdict::OtherAuthority(v.iter().map(ToString::to_string).collect());
        let table = [
            ("issue letsencrypt.org", Verdict::Allowed(Some(le.clone()))),
            (
                "ISSUE LetsEncrypt.ORG",
                Verdict::Allowed(Some("LetsEncrypt.ORG".to_owned())),
            ),
            (
                "issue sectigo.com | issue letsencrypt.org",
                Verdict::Allowed(Some(le.clone())),
            ),
            ("issue sectigo.com", others(&["sectigo.com"])),
            ("issue ;", others(&[";"])),
            ("issue %%%%", others(&["%%%%"])),
            (
                "issue letsencrypt.org; bad",
                others(&["letsencrypt.org; bad"]),
            ),
            ("iodef mailto:a@b.test", Verdict::Allowed(None)),
            ("issuewild sectigo.com", Verdict::Allowed(None)),
            (
                "*issuewild sectigo.com | issue letsencrypt.org",
                others(&["sectigo.com"]),
            ),
            ("*issue letsencrypt.org", Verdict::Allowed(Some(le.clone()))),
            (
                "*issue ; | issuewild letsencrypt.org",
                Verdict::Allowed(Some(le)),
            ),
            ("!tbs unknown", Verdict::Critical("tbs".to_owned())),
            ("tbs unknown", Verdict::Allowed(None)),
            (
                "!issue letsencrypt.org;",
                Verdict::Allowed(Some("letsencrypt.org;".to_owned())),
            ),
            (
                "issue letsencrypt.org; accounturi=https://ca.test/acct/2",
                Verdict::OtherAccount(
                    "letsencrypt.org; accounturi=https://ca.test/acct/2".to_owned(),
                ),
            ),
            (
                "issue letsencrypt.org; accounturi=https://ca.test/acct/2 | issue letsencrypt.org; accounturi=https://ca.test/acct/1",
                Verdict::Allowed(Some(
                    "letsencrypt.org; accounturi=https://ca.test/acct/1".to_owned(),
                )),
            ),
            (
                "issue letsencrypt.org; validationmethods=dns-01",
                Verdict::OtherMethod("letsencrypt.org; validationmethods=dns-01".to_owned()),
            ),
            (
                "issue letsencrypt.org; ValidationMethods=dns-01,http-01",
                Verdict::Allowed(Some(
                    "letsencrypt.org; ValidationMethods=dns-01,http-01".to_owned(),
                )),
            ),
        ];
        for (line, expected) in table {
            assert_eq!(ask(line), expected, "{line}");
        }
    }

    #[test]
    fn an_authority_without_a_name_is_not_judged() {
        let asker = Asker {
            identities: &[],
            account_uri: None,
            challenge: ChallengeType::Dns01,
            wildcard: false,
        };
        assert_eq!(
            verdict(&[record("issue a.test")], &asker),
            Verdict::Unnamed(vec!["a.test".to_owned()])
        );
        assert_eq!(
            verdict(&[record("iodef x")], &asker),
            Verdict::Allowed(None)
        );
    }
}
