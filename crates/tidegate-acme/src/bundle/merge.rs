//! What a store has and what comes to it, made one: the newer stays, and each step is said.
//!
//! Used for exports and for what other programs leave. Must not forget: a certificate that gives way
//! becomes the previous one, an account that is registered is never replaced.

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Mode;
use crate::notices::NoticeMemory;
use crate::plan::ledger::Ledger;
use crate::plan::moment;
use crate::record::{AccountRecord, CertificateRecord, Issued};
use crate::store::{Key, Kind, Store, StoreError, save};

/// What was done with one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The document.
    pub key: Key,
    /// What was done.
    pub done: Done,
    /// Why, or what exactly, in a fragment; may be empty.
    pub why: String,
}

/// What can be done with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// There was none.
    Added,
    /// It was joined with what was there.
    Merged,
    /// What was there says the same.
    Same,
    /// What was there is better.
    Kept,
}

impl Done {
    /// The word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Merged => "merged",
            Self::Same => "same",
            Self::Kept => "kept",
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A store that is merged into.
pub(crate) struct Merge<'a> {
    store: &'a dyn Store,
    mode: Mode,
    now: SystemTime,
    pub(crate) outcomes: Vec<Outcome>,
}

impl<'a> Merge<'a> {
    pub(crate) fn new(store: &'a dyn Store, mode: Mode, now: SystemTime) -> Self {
        Self {
            store,
            mode,
            now,
            outcomes: Vec::new(),
        }
    }

    /// An account. One that is registered stays, because only its key can revoke what it ordered. Whether
    /// the store now holds this one.
    pub(crate) async fn account(
        &mut self,
        name: String,
        theirs: AccountRecord,
    ) -> Result<bool, StoreError> {
        let key = Key::new(Kind::Account, name);
        let Some(mine) = self.read::<AccountRecord>(&key).await? else {
            let why = match &theirs.url {
                Some(url) => url.clone(),
                None => "not registered yet".to_owned(),
            };
            return self
                .put(key, &theirs, Done::Added, why)
                .await
                .map(|()| true);
        };
        let same_key = mine.key_pem == theirs.key_pem;
        if same_key && (mine.url.is_some() || theirs.url.is_none()) {
            self.say(key, Done::Same, String::new());
            return Ok(true);
        }
        if mine.url.is_none() {
            let why = "the one here was never registered".to_owned();
            return self
                .put(key, &theirs, Done::Merged, why)
                .await
                .map(|()| true);
        }
        let why = format!(
            "there is another account here, made on {}",
            moment::stamp(mine.created_at)
        );
        self.say(key, Done::Kept, why);
        Ok(false)
    }

    /// A ledger: of each limit the fuller.
    pub(crate) async fn ledger(
        &mut self,
        name: String,
        mut theirs: Ledger,
    ) -> Result<(), StoreError> {
        let key = Key::new(Kind::Ledger, name);
        theirs.prune(self.now);
        let Some(mut mine) = self.read::<Ledger>(&key).await? else {
            let why = format!("{} orders", theirs.orders().len());
            return self.put(key, &theirs, Done::Added, why).await;
        };
        // What no longer counts is no difference.
        mine.prune(self.now);
        let mut merged = mine.clone();
        merged.merge(&theirs, self.now);
        if merged == mine {
            self.say(key, Done::Same, String::new());
            return Ok(());
        }
        let more = merged.orders().len().saturating_sub(mine.orders().len());
        let why = format!("{more} orders that were not known here");
        self.put(key, &merged, Done::Merged, why).await
    }

    /// A certificate.
    pub(crate) async fn certificate(
        &mut self,
        name: String,
        theirs: CertificateRecord,
    ) -> Result<(), StoreError> {
        let key = Key::new(Kind::Certificate, name);
        let theirs = arriving(theirs);
        let Some(mine) = self.read::<CertificateRecord>(&key).await? else {
            let why = said(theirs.current.as_ref(), self.now);
            return self.put(key, &theirs, Done::Added, why).await;
        };
        let merged = join(&mine, &theirs, self.now);
        if merged == mine {
            let (done, why) = match (&mine.current, &theirs.current) {
                (Some(own), Some(other)) if own.chain_pem != other.chain_pem => (
                    Done::Kept,
                    match gave_way(&mine, other) {
                        Some(at) => format!(
                            "a person went back to the one here at {}",
                            moment::stamp(at)
                        ),
                        None => format!(
                            "the one here is newer, valid until {}",
                            moment::stamp(own.not_after)
                        ),
                    },
                ),
                _ => (Done::Same, String::new()),
            };
            self.say(key, done, why);
            return Ok(());
        }
        let why = if chain(merged.current.as_ref()) == chain(mine.current.as_ref()) {
            "what was known about it".to_owned()
        } else {
            said(merged.current.as_ref(), self.now)
        };
        self.put(key, &merged, Done::Merged, why).await
    }

    /// The memory of notices: what was told from either is told.
    pub(crate) async fn notices(
        &mut self,
        name: String,
        theirs: serde_json::Value,
    ) -> Result<(), StoreError> {
        let key = Key::new(Kind::Notices, name);
        let Ok(theirs) = serde_json::from_value::<NoticeMemory>(theirs) else {
            let why = "that of the export cannot be understood".to_owned();
            self.say(key, Done::Kept, why);
            return Ok(());
        };
        let Some(mine) = self.read::<NoticeMemory>(&key).await? else {
            return self.put(key, &theirs, Done::Added, String::new()).await;
        };
        let mut merged = mine.clone();
        merged.merge(&theirs);
        if merged == mine {
            self.say(key, Done::Same, String::new());
            return Ok(());
        }
        let why = "what was told there is not told again".to_owned();
        self.put(key, &merged, Done::Merged, why).await
    }

    /// What the store has. What cannot be understood is set aside, unless this only tells what would be done.
    async fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<T>, StoreError> {
        let Some(content) = self.store.read(key).await? else {
            return Ok(None);
        };
        if let Ok(document) = serde_json::from_slice(content.expose()) {
            return Ok(Some(document));
        }
        if self.mode == Mode::Apply {
            let aside = self.store.set_aside(key).await?;
            tracing::warn!(document = %key, aside, "it cannot be understood and was kept aside");
        }
        Ok(None)
    }

    async fn put<T: Serialize + Sync>(
        &mut self,
        key: Key,
        document: &T,
        done: Done,
        why: String,
    ) -> Result<(), StoreError> {
        if self.mode == Mode::Apply {
            save(self.store, &key, document).await?;
        }
        self.say(key, done, why);
        Ok(())
    }

    fn say(&mut self, key: Key, done: Done, why: String) {
        self.outcomes.push(Outcome { key, done, why });
    }
}

/// A record without what would make its new place order (a wish to renew, a key without an order) and
/// without what was only so at the old one.
fn arriving(mut record: CertificateRecord) -> CertificateRecord {
    record.forced = None;
    record.preflight.clear();
    record.pending = record.pending.filter(|pending| pending.order_url.is_some());
    record
}

fn chain(issued: Option<&Issued>) -> Option<&str> {
    issued.map(|issued| issued.chain_pem.as_str())
}

fn said(issued: Option<&Issued>, now: SystemTime) -> String {
    match issued {
        None => "without certificate".to_owned(),
        Some(issued) => {
            let word = if issued.not_after > now {
                "valid until"
            } else {
                "expired on"
            };
            format!(
                "{}, {word} {}",
                crate::plan::renewal::listed(&issued.names),
                moment::stamp(issued.not_after)
            )
        }
    }
}

/// When a person went back from this certificate to the one that the record has.
fn gave_way(record: &CertificateRecord, from: &Issued) -> Option<SystemTime> {
    let back = record.rolled_back.as_ref()?;
    (chain(record.previous.as_ref()) == chain(Some(from))).then_some(back.at)
}

/// Of the certificates the one that can be used, then the one that was issued last.
fn join(
    mine: &CertificateRecord,
    theirs: &CertificateRecord,
    now: SystemTime,
) -> CertificateRecord {
    let rank = |issued: &Issued| {
        let usable = issued.revoked.is_none() && issued.not_after > now;
        (usable, issued.not_before, issued.not_after)
    };
    let mut merged = mine.clone();
    let theirs_wins = match (&mine.current, &theirs.current) {
        (None, Some(_)) => true,
        (Some(own), Some(other)) if own.chain_pem != other.chain_pem => {
            match (gave_way(mine, other), gave_way(theirs, own)) {
                // Older, but a person went back to it.
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(mine), Some(theirs)) => theirs > mine,
                (None, None) => rank(other) > rank(own),
            }
        }
        _ => false,
    };
    if theirs_wins {
        merged.current.clone_from(&theirs.current);
        merged.previous = mine.current.clone().or_else(|| theirs.previous.clone());
        merged.ari.clone_from(&theirs.ari);
        merged.rolled_back.clone_from(&theirs.rolled_back);
    } else {
        if let (Some(current), Some(theirs)) = (&mut merged.current, &theirs.current)
            && current.chain_pem == theirs.chain_pem
        {
            current.revoked = current.revoked.or(theirs.revoked);
        }
        if merged.previous.is_none() {
            merged.previous = [&theirs.current, &theirs.previous]
                .into_iter()
                .flatten()
                .find(|other| chain(Some(other)) != chain(merged.current.as_ref()))
                .filter(|_| merged.current.is_some())
                .cloned();
        }
    }
    // Failures and an order belong to the time after the certificate that is kept.
    let theirs_is_later = theirs_wins || (mine.current.is_none() && theirs.current.is_none());
    if theirs_is_later {
        if theirs.attempts.last_failure > mine.attempts.last_failure {
            merged.attempts = theirs.attempts.clone();
        }
        if mine.pending.is_none() {
            merged.pending.clone_from(&theirs.pending);
        }
    }
    if merged.trial_passed.is_none() {
        merged.trial_passed.clone_from(&theirs.trial_passed);
    }
    merged
}
