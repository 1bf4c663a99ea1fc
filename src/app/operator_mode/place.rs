//! Where clients reach the edge, for DNS records.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use tidegate_acme::preflight::own::is_public;
use tidegate_model::ObjectName;

use super::Running;
use crate::translate::{Exposure, PublicPlace};

impl Running {
    /// Where clients reach the edge: what a person says, else the chosen addresses that it listens on, else its Service, else the replicas themselves, which in
    /// the networks of nodes have addresses that the Internet routes to.
    pub(super) fn place(&self, exposure: &Exposure) -> PublicPlace {
        let told = &self.options.surroundings.addresses;
        if !told.is_empty() {
            return PublicPlace {
                addresses: told.iter().copied().collect(),
                ..PublicPlace::default()
            };
        }
        let listening = self.options.settings.https.iter().map(SocketAddr::ip);
        let chosen: BTreeSet<IpAddr> = listening.filter(|it| is_public(*it)).collect();
        if !chosen.is_empty() {
            return PublicPlace {
                addresses: chosen,
                ..PublicPlace::default()
            };
        }
        if let Some(service) = &exposure.service
            && !(service.addresses.is_empty() && service.names.is_empty())
        {
            return PublicPlace {
                addresses: service.addresses.iter().copied().collect(),
                names: service.names.iter().cloned().collect(),
            };
        }
        let replicas = self.options.replicas_service.as_ref().map(|name| {
            let name = ObjectName::new(self.cluster.namespace.as_str(), name.as_str());
            self.world.replicas(&name)
        });
        let replicas = replicas.into_iter().flatten();
        PublicPlace {
            addresses: replicas.filter(|it| is_public(*it)).collect(),
            ..PublicPlace::default()
        }
    }
}
