//! Who owns a hostname when several routes claim it: the oldest, then the first by name.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::SystemTime;

use tidegate_model::{HostPattern, RouteId};

use super::report::Report;
use super::{Inputs, agents};
use crate::api::conditions::Reason;
use crate::api::policies::{OLDER, TAKEN, TAKEN_HINT};
use crate::api::{TlsRoute, TlsRouteSpec};

/// Namespace and name of a route; files may leave the namespace out.
pub(super) fn id_of(metadata: &kube::core::ObjectMeta) -> RouteId {
    RouteId::new(
        metadata.namespace.as_deref().unwrap_or("default"),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// When a route came to be: its creation as Kubernetes knows it, else when it was first seen here, so
/// that a new file cannot take a hostname from one that was served before.
pub(super) fn age_of(
    inputs: &Inputs,
    route: &TlsRoute,
    id: &RouteId,
    now: SystemTime,
) -> SystemTime {
    match &route.metadata.creation_timestamp {
        Some(time) => SystemTime::from(time.0),
        None => inputs.last_good.first_seen.get(id).copied().unwrap_or(now),
    }
}

/// The hostnames taken so far.
#[derive(Debug, Default)]
pub(super) struct Claims {
    owners: BTreeMap<HostPattern, (SystemTime, RouteId)>,
    /// Whether the owners of other namespaces are not named.
    discreet: bool,
}

// === impl Claims ===

impl Claims {
    /// `discreet` is for where those who write in one namespace must learn nothing of another.
    pub(super) fn new(discreet: bool) -> Self {
        Self {
            owners: BTreeMap::new(),
            discreet,
        }
    }

    /// Gives the hostname to the route, unless an older one has it; then the report names that one.
    pub(super) fn claim(
        &mut self,
        report: &mut Report,
        id: &RouteId,
        age: SystemTime,
        spec: &TlsRouteSpec,
        host: &HostPattern,
    ) -> bool {
        match self.owners.get(host) {
            None => {
                self.owners.insert(host.clone(), (age, id.clone()));
                true
            }
            Some((since, owner)) => {
                let why = match (*since).cmp(&age) {
                    Ordering::Less => OLDER,
                    Ordering::Equal => ", which comes first by name",
                    // Only wishes of agents come after what is younger.
                    Ordering::Greater => ", and objects count before what an agent asks for",
                };
                let hidden = self.discreet && owner.namespace != id.namespace;
                let owner = match (hidden, agents::in_words(owner)) {
                    (true, None) => "a TlsRoute of another namespace".to_owned(),
                    (true, Some(_)) => "a TunnelAgent of another namespace".to_owned(),
                    (false, None) => format!("TlsRoute {owner}"),
                    (false, Some(mapping)) => mapping,
                };
                report.add(
                    field_of(spec, host),
                    Reason::HostnameConflict,
                    format!("{host} {TAKEN} {owner}{why}"),
                    TAKEN_HINT,
                );
                false
            }
        }
    }
}

/// Where the object names the hostname first.
fn field_of(spec: &TlsRouteSpec, host: &HostPattern) -> String {
    let is_it = |name: &String| HostPattern::parse(name).is_ok_and(|pattern| pattern == *host);
    if let Some(index) = spec.hostnames.iter().position(is_it) {
        return format!("spec.hostnames[{index}]");
    }
    spec.rules
        .iter()
        .enumerate()
        .find_map(|(rule, wire)| {
            let index = wire.hostnames.iter().position(is_it)?;
            Some(format!("spec.rules[{rule}].hostnames[{index}]"))
        })
        .unwrap_or_else(|| "spec.hostnames".to_owned())
}
