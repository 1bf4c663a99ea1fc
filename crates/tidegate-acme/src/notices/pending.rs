//! Notices that are yet to arrive, as they are kept: a restart or an edited object must not lose them.
//!
//! Pure. A notice that arrived just before a crash may arrive once more, with the same id; one that nobody can
//! be told within a day is dropped, because the next stage says more.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Notice;
use super::target::identity;
use crate::plan::moment::{DAY, between};

/// More notices than this are not kept; the oldest go first.
const KEPT: usize = 1000;

/// A notice on its way to one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The issuer that names the receiver.
    pub issuer: String,
    /// The receiver.
    pub target: String,
    /// What it is to be told.
    pub notice: Notice,
}

impl Pending {
    fn is_the_same(&self, other: &Self) -> bool {
        self.issuer == other.issuer
            && self.target == other.target
            && identity(&self.notice) == identity(&other.notice)
    }
}

/// What is still to be kept: what the receivers that exist have not got yet, and what those that do not exist
/// now, perhaps only while their object is edited, were not told.
pub(crate) fn kept(
    known: Vec<Pending>,
    waiting: Vec<Pending>,
    exists: impl Fn(&Pending) -> bool,
    now: SystemTime,
) -> Vec<Pending> {
    let mut kept: Vec<Pending> = known
        .into_iter()
        .filter(|pending| !exists(pending))
        .chain(waiting)
        .filter(|pending| between(pending.notice.at, now) < DAY)
        .collect();
    kept.sort_by(|one, other| {
        let key = |pending: &Pending| {
            let Pending { issuer, target, .. } = pending;
            (pending.notice.at, issuer.clone(), target.clone())
        };
        key(one).cmp(&key(other))
    });
    let excess = kept.len().saturating_sub(KEPT);
    kept.drain(..excess);
    kept
}

/// Both, each notice once.
pub(crate) fn joined(mine: &[Pending], theirs: &[Pending]) -> Vec<Pending> {
    let mut all = mine.to_vec();
    for pending in theirs {
        if !all.iter().any(|known| known.is_the_same(pending)) {
            all.push(pending.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pending(target: &str, hour: u64) -> Pending {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000 + hour * 3600);
        Pending {
            issuer: "le".to_owned(),
            target: target.to_owned(),
            notice: Notice::test("edge", at),
        }
    }

    #[test]
    fn what_arrived_and_what_is_old_is_not_kept() {
        let now = pending("", 30).notice.at;
        let known = vec![
            // Arrived since: the receiver exists and does not wait for it.
            pending("phone", 20),
            // Its issuer is being edited.
            pending("gone", 21),
            // Nobody could be told for longer than a day.
            pending("gone", 5),
        ];
        let waiting = vec![pending("phone", 29), pending("phone", 3)];
        let exists = |pending: &Pending| pending.target == "phone";
        assert_eq!(
            kept(known, waiting, exists, now),
            [pending("gone", 21), pending("phone", 29)]
        );
    }

    #[test]
    fn a_notice_is_joined_once() {
        let mine = [pending("phone", 1)];
        let theirs = [pending("phone", 1), pending("phone", 2), pending("mail", 1)];
        let all = joined(&mine, &theirs);
        assert_eq!(
            all,
            [pending("phone", 1), pending("phone", 2), pending("mail", 1)]
        );
        assert_eq!(joined(&all, &theirs), all);
    }
}
