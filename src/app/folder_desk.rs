//! What the API does where the objects are files of a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use tidegate_model::ObjectName;
use tokio::sync::watch;

use crate::api::TunnelAgent;
use crate::rest::change::{Change, field_error};
use crate::rest::desk::{AgentRecord, Desk};
use crate::rest::problem::Problem;
use crate::standalone::edit::{EditError, Editor};
use crate::standalone::{Identity, ObjectKind};
use crate::translate::{Inputs, Kind, Severity, Statuses, translate};

/// A folder whose objects may be changed.
#[derive(Debug)]
pub(super) struct FolderDesk {
    /// None for objects that are no files.
    editor: Option<Arc<Editor>>,
    statuses: watch::Receiver<Arc<Statuses>>,
}

impl FolderDesk {
    pub(super) fn new(
        root: Option<&Path>,
        state: PathBuf,
        statuses: watch::Receiver<Arc<Statuses>>,
    ) -> Self {
        Self {
            editor: root.map(|root| Arc::new(Editor::new(root, Some(state)))),
            statuses,
        }
    }
}

#[async_trait]
impl Desk for FolderDesk {
    async fn agents(&self) -> Result<Vec<AgentRecord>, Problem> {
        let Some(editor) = self.editor.clone() else {
            return Ok(Vec::new());
        };
        let all = blocking(move || editor.all(ObjectKind::TunnelAgent)).await?;
        let statuses = self.statuses.borrow().clone();
        Ok(all
            .into_iter()
            .map(|standing| {
                let name = standing.identity.object_name();
                AgentRecord {
                    status: status_of(&statuses, &name),
                    name,
                    spec: standing.object["spec"].clone(),
                    file: Some(standing.file.display().to_string()),
                    read_only: standing.read_only,
                }
            })
            .collect())
    }

    async fn change(&self, agent: &ObjectName, change: &Change) -> Result<(), Problem> {
        let identity = Identity {
            kind: ObjectKind::TunnelAgent,
            namespace: agent.namespace.to_string(),
            name: agent.name.to_string(),
        };
        let editor = self.editor.clone();
        let editor = editor.ok_or_else(|| Problem::not_found("such agent"))?;
        let change = change.clone();
        blocking(move || {
            let mut at = None;
            let edited = editor.edit(&identity, |object| {
                at = change.apply(&mut object["spec"])?;
                judged(object, at)
            });
            match edited {
                Ok(_) => Ok(()),
                Err(error) => Err(problem(error, at)),
            }
        })
        .await?
    }
}

fn status_of(statuses: &Statuses, agent: &ObjectName) -> Json {
    let status = statuses.agents.get(agent);
    status.map_or(Json::Null, |status| json!(status))
}

/// What a schema cannot say: that hostnames are hostnames and allowed, targets targets.
pub(super) fn judged(object: &Json, at: Option<usize>) -> Result<(), Problem> {
    // What does not fit the schema is told field by field after this.
    let Ok(agent) = serde_json::from_value::<TunnelAgent>(object.clone()) else {
        return Ok(());
    };
    let inputs = Inputs {
        agents: vec![Arc::new(agent)],
        ..Inputs::default()
    };
    let found = translate(&inputs, SystemTime::now()).problems.into_iter();
    let errors: Vec<_> = found
        .filter(|it| it.object.kind == Kind::TunnelAgent && it.severity() == Severity::Error)
        .map(|it| {
            let reason = it.reason.to_string();
            field_error(at, &it.field, &reason, &it.message, it.hint.as_deref())
        })
        // Mistakes elsewhere in the object were there before, and are told by its status.
        .filter(|error| !error.field.starts_with("spec."))
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(errors))
    }
}

fn problem(error: EditError<Problem>, at: Option<usize>) -> Problem {
    let detail = error.to_string();
    let reason = error.reason();
    match error {
        EditError::Refused(problem) => problem,
        EditError::Invalid { problems, .. } => {
            let errors = problems
                .iter()
                .map(|it| field_error(at, &it.path, it.reason, &it.message, it.hint.as_deref()));
            Problem::invalid(errors.collect())
        }
        EditError::NotFound(_) => Problem::new(StatusCode::NOT_FOUND, reason, detail),
        EditError::File { .. } => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, reason, detail),
        EditError::Twice { .. }
        | EditError::ReadOnly { .. }
        | EditError::Unusual { .. }
        | EditError::Changed(_) => Problem::new(StatusCode::CONFLICT, reason, detail),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        let detail = "the files could not be looked at";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", detail)
    })
}
