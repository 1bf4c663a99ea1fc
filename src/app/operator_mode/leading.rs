//! What only the replica that leads does: orders, statuses, Secrets, Services of trackers.
//!
//! Begun and ended as a whole: everything hangs on one token.

use std::sync::Arc;

use tidegate_model::ObjectName;
use tidegate_telemetry::{chain, spawn_named};
use tokio_util::sync::CancellationToken;

use super::Running;
use crate::app::acme::Acme;
use crate::app::operator_desk::answering;
use crate::app::tracker_probes::TrackerProbes;
use crate::operator::credentials::Credentials;
use crate::operator::documents::DocumentStore;
use crate::operator::inquiry::Inquiry;
use crate::operator::published::Publisher;
use crate::operator::relay::Clerk;
use crate::operator::replicas::{Presenter, Replicas};
use crate::operator::status::StatusWriter;
use crate::operator::tickets::Rotator;
use crate::operator::unused::Janitor;
use crate::source::Issuance;

/// What runs while this replica leads.
pub(super) struct Leader {
    pub(super) acme: Acme,
    pub(super) probes: TrackerProbes,
    stop: CancellationToken,
}

impl Running {
    /// Begins what only the leader does. None when it is to be tried again.
    pub(super) async fn lead(&mut self) -> Option<Leader> {
        let store = Arc::new(DocumentStore::new(
            self.cluster.client.clone(),
            self.cluster.namespace.clone(),
        ));
        let surroundings = self.options.surroundings.clone();
        let acme = match Acme::start(Arc::clone(&store) as _, None, surroundings).await {
            Ok(acme) => acme,
            Err(error) => {
                tracing::error!(error = %chain(&error), "cannot begin to order certificates; trying again");
                return None;
            }
        };
        let stop = self.stop.child_token();
        self.engine.send_replace(Some(acme.engine.clone()));
        self.lock_source()
            .set_acme(Some(Issuance::new(&acme.engine)));
        let writer = StatusWriter {
            cluster: self.cluster.clone(),
            world: Arc::clone(&self.world),
            class: self.options.class.clone(),
            wanted: self.statuses.subscribe(),
            tenure: self.tenure.clone(),
        };
        spawn_named(
            "status-writer",
            self.tasks.track_future(writer.run(stop.clone())),
        );
        let publisher = Publisher::new(
            self.cluster.clone(),
            Arc::clone(&self.world),
            self.publications.subscribe(),
            self.published.clone(),
        );
        spawn_named(
            "publisher",
            self.tasks.track_future(publisher.run(stop.clone())),
        );
        let presenter = Presenter {
            answers: acme.engine.answers().clone(),
            store: Arc::new(DocumentStore::new(
                self.cluster.client.clone(),
                self.cluster.namespace.clone(),
            )),
            world: Arc::clone(&self.world),
            served: self.served_answers.subscribe(),
            replicas: self.options.replicas_service.as_ref().map(|name| Replicas {
                service: ObjectName::new(self.cluster.namespace.as_str(), name.as_str()),
                own: self.options.own_addresses.clone(),
            }),
            inquiry: Inquiry::default(),
        };
        spawn_named(
            "challenge-answers",
            self.tasks.track_future(presenter.run(stop.clone())),
        );
        let clerk = Clerk {
            store: Arc::clone(&self.documents),
            world: Arc::clone(&self.world),
            identity: self.cluster.identity.clone(),
            answering: answering(acme.engine.clone()),
        };
        spawn_named("relay", self.tasks.track_future(clerk.run(stop.clone())));
        let janitor = Janitor {
            cluster: self.cluster.clone(),
            world: Arc::clone(&self.world),
            store,
            keep: self.options.keep_unused,
        };
        spawn_named("unused", self.tasks.track_future(janitor.run(stop.clone())));
        let rotator = Rotator {
            store: Arc::clone(&self.documents),
            world: Arc::clone(&self.world),
        };
        spawn_named(
            "ticket-keys",
            self.tasks.track_future(rotator.run(stop.clone())),
        );
        let credentials = Credentials {
            cluster: self.cluster.clone(),
            world: Arc::clone(&self.world),
            class: self.options.class.clone(),
            tenure: self.tenure.clone(),
        };
        let credentials = credentials.run(stop.clone());
        spawn_named("agent-credentials", self.tasks.track_future(credentials));
        if self.options.tracker_services {
            let keeper =
                self.tracker_services
                    .keeper(&self.cluster, &self.world, self.tenure.clone());
            let keeper = keeper.run(stop.clone());
            spawn_named("tracker-services", self.tasks.track_future(keeper));
        }
        Some(Leader {
            acme,
            probes: TrackerProbes::start(),
            stop,
        })
    }

    /// Ends it.
    pub(super) async fn follow(&mut self, leader: Leader) {
        leader.stop.cancel();
        self.engine.send_replace(None);
        self.lock_source().set_acme(None);
        leader.acme.stop().await;
    }
}
