//! What the API does where the objects are custom resources.

use async_trait::async_trait;
use axum::http::StatusCode;
use kube::ResourceExt as _;
use serde_json::json;
use tidegate_model::ObjectName;

use super::folder_desk::judged;
use crate::operator::edit::{AgentEditor, EditError};
use crate::rest::change::{Change, field_error};
use crate::rest::desk::{AgentRecord, Desk};
use crate::rest::problem::Problem;

/// A cluster whose objects may be changed, as far as the roles allow.
#[derive(Debug)]
pub(super) struct ClusterDesk {
    editor: AgentEditor,
}

impl ClusterDesk {
    pub(super) fn new(editor: AgentEditor) -> Self {
        Self { editor }
    }
}

#[async_trait]
impl Desk for ClusterDesk {
    async fn agents(&self) -> Result<Vec<AgentRecord>, Problem> {
        let all = self.editor.all().await.map_err(|error| {
            let detail = format!("cannot {}", tidegate_telemetry::chain(&error));
            Problem::new(StatusCode::BAD_GATEWAY, "ApiServer", detail)
        })?;
        Ok(all
            .into_iter()
            .map(|agent| AgentRecord {
                name: ObjectName::new(agent.namespace().unwrap_or_default(), agent.name_any()),
                spec: json!(agent.spec),
                status: json!(agent.status),
                file: None,
                read_only: None,
            })
            .collect())
    }

    async fn change(&self, agent: &ObjectName, change: &Change) -> Result<(), Problem> {
        let mut at = None;
        let edited = self.editor.edit(agent, |spec| {
            at = change.apply(spec)?;
            let object = json!({
                "apiVersion": "edge.tidegate.dev/v1alpha1",
                "kind": "TunnelAgent",
                "metadata": {"name": &*agent.name, "namespace": &*agent.namespace},
                "spec": spec,
            });
            judged(&object, at)
        });
        edited.await.map_err(|error| problem(error, at))
    }
}

fn problem(error: EditError<Problem>, at: Option<usize>) -> Problem {
    let detail = error.to_string();
    match error {
        EditError::Refused(problem) => problem,
        EditError::NotFound(_) => Problem::new(StatusCode::NOT_FOUND, "NotFound", detail),
        EditError::Owned { .. } => Problem::new(StatusCode::CONFLICT, "OwnedByOther", detail),
        EditError::Invalid { causes, .. } => {
            let errors = causes.iter();
            let errors = errors
                .map(|(field, message)| field_error(at, field, "InvalidValue", message, None));
            let mut problem = Problem::invalid(errors.collect());
            problem.detail = detail;
            problem
        }
        EditError::Api { .. } => Problem::new(StatusCode::BAD_GATEWAY, "ApiServer", detail),
    }
}
