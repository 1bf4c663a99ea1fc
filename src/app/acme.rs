//! The ACME engine of an edge: its start, its end, and what passes between it and a refresh.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_acme::answers::AnswerSet;
use tidegate_acme::engine::{Engine, State, Surroundings};
use tidegate_acme::settings::{Issuer, Wanted};
use tidegate_acme::store::{Store, StoreError};
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control;
use crate::source::Refreshed;

/// A running engine.
pub(super) struct Acme {
    pub(super) engine: Engine,
    stop: CancellationToken,
    state: watch::Receiver<Arc<State>>,
    answers: watch::Receiver<AnswerSet>,
    control: TaskTracker,
}

/// What a refresh asks of the engine once its snapshot is published.
pub(super) struct Asked {
    wanted: Vec<Wanted>,
    issuers: Vec<Arc<Issuer>>,
    answers: u64,
}

impl Acme {
    /// Starts on what the store holds. Answers commands on a socket in `folder`, unless somebody else does.
    pub(super) async fn start(
        store: Arc<dyn Store>,
        folder: Option<&Path>,
        surroundings: Surroundings,
    ) -> Result<Self, StoreError> {
        let stop = CancellationToken::new();
        let (engine, problems) = Engine::start(store, surroundings, stop.clone()).await?;
        for problem in problems {
            tracing::error!(error = %chain(&problem), "a document of the store is lost; the rest is used");
        }
        let tasks = TaskTracker::new();
        if let Some(folder) = folder {
            control::serve(folder, Arc::new(engine.clone()), stop.clone(), &tasks);
        }
        Ok(Self {
            control: tasks,
            state: engine.state(),
            answers: engine.answers().subscribe(),
            engine,
            stop,
        })
    }

    /// Returns when a refresh would see something new.
    pub(super) async fn changed(&mut self) {
        let changed = tokio::select! {
            changed = self.state.changed() => changed,
            changed = self.answers.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn asked_by(refreshed: &Refreshed) -> Asked {
        Asked {
            wanted: refreshed.wanted.clone(),
            issuers: refreshed.translation.issuers.values().cloned().collect(),
            answers: refreshed.answers,
        }
    }

    /// To be called when the snapshot is published, and this is the only edge: from now on its answers are
    /// served.
    pub(super) fn served(&self, asked: &Asked) {
        self.engine.answers().mark_served(asked.answers);
    }

    /// To be called when the snapshot is published.
    pub(super) fn tell(&self, asked: Asked) {
        self.engine.know(asked.issuers);
        self.engine.want(asked.wanted);
    }

    /// Stops ordering. What is under way is in the store and goes on at the next start.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        // Whoever takes over binds the control socket anew.
        self.control.close();
        self.control.wait().await;
        if tokio::time::timeout(Duration::from_secs(5), self.engine.stopped())
            .await
            .is_err()
        {
            tracing::warn!("an order is still under way");
        }
    }
}
