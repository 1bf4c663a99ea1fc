//! `tidegate doctor`: the pre-flight of one certificate, now.
//!
//! A running edge is asked to do it itself, because only it can put up a challenge of its own and look for it
//! from outside. Without one everything else is looked at. Orders nothing, and writes nothing that stays.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_acme::engine::{Surroundings, preflight};
use tidegate_acme::preflight::{Finding, blocks};
use tidegate_acme::settings::Wanted;
use tidegate_acme::store::tested;
use tidegate_model::{HostName, HostPattern};
use tidegate_telemetry::chain;

use super::control::{Control, ControlError, Preflight};
use super::portability::act_as_owner;
use crate::source::AcmeStore;
use crate::source::state::StateFolder;
use crate::standalone::Source;

/// What was found; also the answer of the control socket. What `--output json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Examined {
    /// The certificate, as `NAMESPACE/NAME` of its route.
    pub certificate: String,
    /// Name of the AcmeIssuer that is asked.
    pub issuer: String,
    /// Names of the certificate.
    pub names: Vec<String>,
    /// Whether a running edge looked, so that ports were tried too.
    pub running: bool,
    /// Whether nothing stands in the way of an order.
    pub ok: bool,
    /// Everything that was looked at: what concerns the whole order first, then name by name.
    pub findings: Vec<Finding>,
}

impl Examined {
    /// The findings of a certificate.
    pub(super) fn new(wanted: &Wanted, findings: Vec<Finding>, running: bool) -> Self {
        Self {
            certificate: wanted.id.clone(),
            issuer: wanted.issuer.name.clone(),
            names: wanted.names.iter().map(ToString::to_string).collect(),
            running,
            ok: !blocks(&findings),
            findings,
        }
    }
}

/// Why nothing can be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// The edge does not answer, or refuses.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No certificate is meant, or several are.
    #[error("find the certificate: {0}")]
    Unknown(NotOne),
    /// No runtime.
    #[error("set up the command")]
    Runtime(#[source] std::io::Error),
}

/// A name that does not mean one certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOne {
    /// None.
    #[error(
        "no route gets one for {name:?} from an AcmeIssuer{}; `tidegate explain` tells where its certificate comes from",
        among(known)
    )]
    None {
        /// As it was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Several.
    #[error("{name:?} can mean {}; say which", ids.join(", "))]
    Several {
        /// As it was asked for.
        name: String,
        /// What it can mean.
        ids: Vec<String>,
    },
}

fn among(known: &[String]) -> String {
    if known.is_empty() {
        ", nor for any other name".to_owned()
    } else {
        format!("; there are {}", known.join(", "))
    }
}

/// The certificate that a person means: by id, by the name of its route, or by a hostname that it covers.
pub(super) fn find<'a>(name: &str, wanted: &'a [Wanted]) -> Result<&'a Wanted, NotOne> {
    let pattern = HostPattern::parse(name).ok();
    let host = HostName::parse(name).ok();
    let by_id = |one: &&Wanted| one.id == name;
    let by_route = |one: &&Wanted| {
        let route = one.id.split_once('/').map(|(_, route)| route);
        route == Some(name)
    };
    let by_exact_name = |one: &&Wanted| {
        pattern
            .as_ref()
            .is_some_and(|pattern| one.names.contains(pattern))
    };
    let by_wildcard = |one: &&Wanted| {
        host.as_ref()
            .is_some_and(|host| one.names.iter().any(|own| own.matches(host)))
    };
    let ways: [&dyn Fn(&&Wanted) -> bool; 4] = [&by_id, &by_route, &by_exact_name, &by_wildcard];
    for way in ways {
        let found: Vec<&Wanted> = wanted.iter().filter(|one| way(one)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Ok(one),
            several => {
                return Err(NotOne::Several {
                    name: name.to_owned(),
                    ids: several.iter().map(|one| one.id.clone()).collect(),
                });
            }
        }
    }
    Err(NotOne::None {
        name: name.to_owned(),
        known: wanted.iter().map(|one| one.id.clone()).collect(),
    })
}

/// Looks at the certificate that is meant by the name. `surroundings` are for when no edge runs.
pub fn doctor(
    folder: &Path,
    state: &Path,
    name: &str,
    surroundings: &Surroundings,
    now: SystemTime,
) -> Result<Examined, DoctorError> {
    let asked = Preflight {
        id: name.to_owned(),
    };
    match Control::of(state).preflight(&asked) {
        Err(ControlError::NotRunning(_)) => {}
        other => return Ok(other?),
    }
    let refreshed = Source::folder(folder, Some(state.to_owned()))
        .with_name_servers(surroundings.name_servers.clone())
        .refresh(now);
    let wanted = find(name, &refreshed.wanted).map_err(DoctorError::Unknown)?;
    let store = AcmeStore::new(Arc::new(StateFolder::peek(state)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DoctorError::Runtime)?;
    let tested = write_test(&store, state);
    let findings = runtime.block_on(preflight(surroundings, &store, None, tested, wanted));
    Ok(Examined::new(wanted, findings, false))
}

/// Whether the edge that would run here could keep a certificate; None when only its own user can find out, or
/// when the folder is yet to be made.
fn write_test(store: &AcmeStore, state: &Path) -> Option<Result<(), String>> {
    let owner = std::fs::metadata(state).ok()?.uid();
    let me = rustix::process::geteuid();
    if !me.is_root() && me.as_raw() != owner {
        return None;
    }
    // What root makes there could not be removed or replaced by the edge.
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            act_as_owner(state).map_err(|error| chain(&error).to_string())?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .map_err(|error| error.to_string())?;
            runtime.block_on(tested(store))
        });
        test.join().ok()
    })
}

#[cfg(test)]
mod tests {
    use tidegate_acme::settings::{Issuer, KeyType, RenewalSource};

    use super::*;

    fn wanted(id: &str, names: &[&str]) -> Wanted {
        Wanted {
            id: id.to_owned(),
            names: names
                .iter()
                .map(|name| HostPattern::parse(name).unwrap())
                .collect(),
            issuer: Arc::new(Issuer {
                name: "ca".to_owned(),
                directory: "https://ca.example/dir".to_owned(),
                staging_directory: None,
                contact: Vec::new(),
                profile: None,
                key_type: KeyType::P256,
                external_account: None,
                roots: None,
                renewal: RenewalSource::Ari,
                notifications: Vec::new(),
                fallback: None,
                solvers: Vec::new(),
            }),
            fallback: None,
        }
    }

    #[test]
    fn a_certificate_is_found_by_id_route_or_name() {
        let all = [
            wanted("default/blog", &["blog.example.com"]),
            wanted("default/all", &["*.example.com", "example.com"]),
            wanted("other/blog", &["blog.example.org"]),
        ];
        for (name, id) in [
            ("default/blog", "default/blog"),
            ("all", "default/all"),
            ("blog.example.com", "default/blog"),
            ("www.example.com", "default/all"),
            ("*.example.com", "default/all"),
        ] {
            assert_eq!(find(name, &all).unwrap().id, id, "{name}");
        }
        let several = find("blog", &all).unwrap_err();
        assert_eq!(
            several.to_string(),
            "\"blog\" can mean default/blog, other/blog; say which"
        );
        let none = find("x.example.net", &all).unwrap_err();
        assert!(none.to_string().contains("default/all"), "{none}");
    }
}
