//! `tidegate certs`: every certificate of an edge, from its state folder, and from itself while it runs.
//!
//! Only looks: nothing is written, moved or locked, and no key leaves this module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use tidegate_acme::plan::moment::parse_rfc3339;
use tidegate_acme::record::CertificateRecord;
use tidegate_acme::store::{Kind, Store as _, StoreError, peek};

use super::control::{Certificate, Control, Held, Kept};
use super::status::{StatusError, status};
use crate::admin::{ControlView, rfc3339};
use crate::source::AcmeStore;
use crate::source::ca::read_leaf;
use crate::source::state::StateFolder;

/// How a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CertState {
    /// It is served, and will be renewed.
    Ok,
    /// The last attempt to get one failed.
    Failing,
    /// It is being got, or will be when an edge runs.
    Ordering,
    /// It is over.
    Expired,
    /// The authority takes it back.
    Revoked,
    /// It was imported and no route wants it yet.
    Waiting,
    /// No route wants it any more.
    Unused,
    /// The route has none, for the reason that is told.
    Missing,
    /// Its file cannot be understood.
    Damaged,
}

impl CertState {
    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failing => "failing",
            Self::Ordering => "ordering",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Waiting => "waiting for a route",
            Self::Unused => "unused",
            Self::Missing => "missing",
            Self::Damaged => "damaged",
        }
    }

    /// Whether somebody should do something.
    pub const fn is_bad(self) -> bool {
        matches!(
            self,
            Self::Failing | Self::Expired | Self::Revoked | Self::Missing | Self::Damaged
        )
    }
}

/// One certificate. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cert {
    /// Its route as `NAMESPACE/NAME`, or its name if it has none.
    pub id: String,
    /// Names of the certificate; those of the route while there is none.
    pub names: Vec<String>,
    /// Name of the AcmeIssuer, `internal CA` or `imported`.
    pub issuer: Option<String>,
    /// How it is.
    pub state: CertState,
    /// Why so, if there is more to say.
    pub message: Option<String>,
    /// Start of validity.
    pub not_before: Option<String>,
    /// End of validity.
    pub not_after: Option<String>,
    /// When it will be renewed.
    pub renew_at: Option<String>,
    /// When the next attempt is made, after one that failed.
    pub next_attempt: Option<String>,
    /// When a person went back to it from a newer one.
    pub rolled_back_at: Option<String>,
    /// End of the certificate that a rollback would go back to.
    pub previous_not_after: Option<String>,
    /// Failed attempts since the last success.
    pub attempts: u32,
    /// The end, to be counted down.
    #[serde(skip)]
    pub ends: Option<SystemTime>,
    /// The renewal, to be counted down; two thirds of the life where no edge says better.
    #[serde(skip)]
    pub renews: Option<SystemTime>,
}

/// All of them; what `--output json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certs {
    /// Whether an edge runs.
    pub running: bool,
    /// By id.
    pub certificates: Vec<Cert>,
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// The state folder tells nothing.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The certificates cannot be read.
    #[error("list the certificates")]
    Store(#[from] StoreError),
    /// No runtime.
    #[error("set up the command")]
    Runtime(#[source] std::io::Error),
}

/// Finds out.
pub fn certs(state: &Path, now: SystemTime) -> Result<Certs, CertsError> {
    let folder = Arc::new(StateFolder::peek(state));
    let records = records(&folder)?;
    let found = match status(state) {
        Ok(found) => Some(found),
        // An import makes a state folder before any edge does.
        Err(StatusError::None(_) | StatusError::Damaged(_)) if !records.is_empty() => None,
        Err(error) => return Err(error.into()),
    };
    let running = found.as_ref().is_some_and(|found| found.running);
    let live: BTreeMap<String, Certificate> = match Control::of(state).certificates() {
        Ok(all) if running => all.into_iter().map(|one| (one.id.clone(), one)).collect(),
        // An edge that is starting or ending: its files tell enough.
        _ => BTreeMap::new(),
    };
    let routes = found.as_ref().map(|found| routes(&found.last));
    let mut ids: BTreeSet<&String> = records.keys().chain(live.keys()).collect();
    ids.extend(routes.iter().flat_map(BTreeMap::keys));
    let certificates = ids
        .into_iter()
        .filter_map(|id| {
            let route = routes.as_ref().map(|routes| routes.get(id));
            let one = One {
                id,
                live: live.get(id),
                route: route.flatten(),
                routes_known: route.is_some(),
                now,
            };
            // In a cluster what is kept is not in the folder; the edge tells it.
            let told = live.get(id).and_then(|live| live.kept.as_ref());
            match (records.get(id), told) {
                (Some(Ok(kept)), _) | (None, Some(kept)) => Some(one.of_kept(kept)),
                (Some(Err(why)), _) => Some(one.damaged(why)),
                (None, None) => one.without_record(&folder),
            }
        })
        .collect();
    Ok(Certs {
        running,
        certificates,
    })
}

type Records = BTreeMap<String, Result<Kept, String>>;

fn records(folder: &Arc<StateFolder>) -> Result<Records, CertsError> {
    let store = AcmeStore::new(Arc::clone(folder));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(CertsError::Runtime)?;
    runtime.block_on(async {
        let mut records = Records::new();
        for key in store.list(Kind::Certificate).await? {
            if let Some(record) = peek::<CertificateRecord>(&store, &key).await? {
                records.insert(key.name, record.map(|record| Kept::of(&record)));
            }
        }
        Ok(records)
    })
}

/// What the status says of a route.
struct Route {
    hostnames: Vec<String>,
    /// Whether its certificate is ready, why not, and in words; None when it needs none.
    ready: Option<(bool, String, String)>,
}

fn routes(view: &ControlView) -> BTreeMap<String, Route> {
    let of = |route: &crate::admin::RouteView| {
        let ready = route
            .conditions
            .iter()
            .find(|condition| condition.type_ == "CertificateReady")
            .filter(|condition| condition.reason != "NotNeeded");
        Route {
            hostnames: route.hostnames.clone(),
            ready: ready.map(|condition| {
                let ready = condition.status == "True";
                (ready, condition.reason.clone(), condition.message.clone())
            }),
        }
    };
    view.routes
        .iter()
        .map(|route| (format!("{}/{}", route.namespace, route.name), of(route)))
        .collect()
}

/// One id with everything that is said about it.
struct One<'a> {
    id: &'a str,
    live: Option<&'a Certificate>,
    route: Option<&'a Route>,
    routes_known: bool,
    now: SystemTime,
}

impl One<'_> {
    fn empty(&self, state: CertState) -> Cert {
        Cert {
            id: self.id.to_owned(),
            names: self
                .route
                .map(|route| route.hostnames.clone())
                .unwrap_or_default(),
            issuer: None,
            state,
            message: None,
            not_before: None,
            not_after: None,
            renew_at: None,
            next_attempt: None,
            rolled_back_at: None,
            previous_not_after: None,
            attempts: 0,
            ends: None,
            renews: None,
        }
    }

    fn damaged(&self, why: &str) -> Cert {
        Cert {
            message: Some(why.to_owned()),
            ..self.empty(CertState::Damaged)
        }
    }

    fn of_kept(&self, kept: &Kept) -> Cert {
        let mut cert = self.empty(CertState::Ordering);
        cert.attempts = kept.attempts;
        cert.message.clone_from(&kept.last_error);
        cert.next_attempt.clone_from(&kept.next_attempt);
        if let Some(held) = &kept.current {
            self.fill(&mut cert, held);
        }
        cert.rolled_back_at.clone_from(&kept.rolled_back_at);
        cert.previous_not_after.clone_from(&kept.previous_not_after);
        if let Some(live) = self.live {
            if !live.message.is_empty() {
                cert.message = Some(live.message.clone());
            }
            cert.next_attempt.clone_from(&live.next_attempt);
        }
        let failing = kept.attempts > 0 || self.live.is_some_and(|live| live.failed);
        cert.state = match &kept.current {
            _ if !self.id.contains('/') => CertState::Waiting,
            _ if self.routes_known && self.route.is_none() => CertState::Unused,
            Some(_) if cert.ends.is_none_or(|ends| ends <= self.now) => CertState::Expired,
            Some(held) if held.revoked => CertState::Revoked,
            _ if failing => CertState::Failing,
            Some(_) => CertState::Ok,
            None => CertState::Ordering,
        };
        cert
    }

    fn fill(&self, cert: &mut Cert, held: &Held) {
        let told = self.live.and_then(|live| live.renew_at.as_deref());
        cert.names.clone_from(&held.names);
        cert.issuer = Some(match &held.issuer {
            Some(issuer) => issuer.clone(),
            None => "imported".to_owned(),
        });
        cert.not_before = Some(held.not_before.clone());
        cert.not_after = Some(held.not_after.clone());
        cert.ends = parse_rfc3339(&held.not_after);
        if self.id.contains('/') {
            cert.renews = told.and_then(parse_rfc3339).or_else(|| {
                let (from, to) = (parse_rfc3339(&held.not_before)?, cert.ends?);
                Some(from + to.duration_since(from).unwrap_or_default() * 2 / 3)
            });
            cert.renew_at = cert.renews.map(rfc3339);
        }
    }

    /// A route that never had one from an AcmeIssuer; None when it needs none.
    fn without_record(&self, folder: &StateFolder) -> Option<Cert> {
        if let Some(live) = self.live {
            let state = if live.failed {
                CertState::Failing
            } else {
                CertState::Ordering
            };
            return Some(Cert {
                message: Some(live.message.clone()).filter(|message| !message.is_empty()),
                next_attempt: live.next_attempt.clone(),
                ..self.empty(state)
            });
        }
        let (ready, reason, message) = self.route?.ready.as_ref()?;
        if !ready {
            let state = if reason == "Issuing" {
                CertState::Ordering
            } else {
                CertState::Missing
            };
            return Some(Cert {
                message: Some(message.clone()),
                ..self.empty(state)
            });
        }
        let mut cert = self.empty(CertState::Ok);
        match read_leaf(folder, self.id) {
            Some(leaf) => {
                cert.issuer = Some("internal CA".to_owned());
                cert.not_after = Some(rfc3339(leaf.not_after));
                cert.renew_at = Some(rfc3339(leaf.renew_at));
                cert.ends = Some(leaf.not_after);
                cert.renews = Some(leaf.renew_at);
            }
            None => cert.issuer = Some("Secret".to_owned()),
        }
        Some(cert)
    }
}
