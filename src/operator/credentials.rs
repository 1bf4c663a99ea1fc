//! Makes the Secrets of agents' credentials that are absent.
//!
//! Made once and never written again: whoever wants another token replaces it, and a Secret that a person made is
//! left as it is. It belongs to its TunnelAgent and goes with it, unlike a certificate, which outlives its
//! route on purpose (`docs/adr/0047`). Tokens are in no log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Resource as _};
use tidegate_model::ObjectName;
use tidegate_telemetry::chain;
use tidegate_tunnel::credential::{CredentialError, Token};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, FIELD_MANAGER};
use super::lease::Tenure;
use super::published::MANAGED;
use super::watch::World;
use crate::api::TunnelAgent;

/// Type of these Secrets, so that nobody takes them for something else.
const TYPE: &str = "edge.tidegate.dev/agent-credential";
/// Annotation: the agent whose credential it is.
const AGENT: &str = "edge.tidegate.dev/agent";
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Quiet time after a change, in which a Secret that is applied with its agent comes to be.
const HOLD_OFF: Duration = Duration::from_secs(3);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// Makes them. One runs while this replica leads.
#[derive(Debug)]
pub struct Credentials {
    /// Where they are made.
    pub cluster: Cluster,
    /// What is known of the cluster.
    pub world: Arc<World>,
    /// The class of agents that they are made for.
    pub class: Option<String>,
    /// Until when this replica may make them.
    pub tenure: Tenure,
}

/// Why a Secret was not made.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error("make a token")]
    Token(#[from] CredentialError),
    #[error("write the Secret")]
    Write(#[source] Box<kube::Error>),
    #[error("write the Secret: the API server did not answer in time")]
    Late,
}

impl Credentials {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let making = async {
            let mut changes = self.world.changes();
            let mut absent = BTreeMap::new();
            loop {
                changes.mark_unchanged();
                let before = std::mem::replace(&mut absent, self.absent());
                let mut failed = false;
                // Only what was absent before the quiet time too.
                for (secret, agent) in &absent {
                    if before.contains_key(secret) && self.tenure.holds() {
                        failed |= !self.make(secret, agent).await;
                    }
                }
                let new = absent.keys().any(|secret| !before.contains_key(secret));
                let pause = match (new, failed) {
                    (true, _) => HOLD_OFF,
                    (false, true) => AGAIN,
                    (false, false) => Duration::MAX,
                };
                let later = async {
                    let more = changes.changed().await;
                    tokio::time::sleep(HOLD_OFF).await;
                    more
                };
                tokio::select! {
                    more = later => if more.is_err() { return },
                    () = tokio::time::sleep(pause) => {}
                }
            }
        };
        let _ = stop.run_until_cancelled(making).await;
    }

    /// Secrets that agents name and that do not exist.
    fn absent(&self) -> BTreeMap<ObjectName, Arc<TunnelAgent>> {
        let mut absent = BTreeMap::new();
        for (name, agent) in self.world.agents.all() {
            let Some(agent) = &agent.good else {
                continue;
            };
            let wanted = &agent.spec.credential.secret_name;
            let secret = ObjectName::new(Arc::clone(&name.namespace), wanted.as_str());
            let ours = agent.spec.class_name == self.class;
            if ours && self.world.secret_version(&secret).is_none() {
                absent.entry(secret).or_insert_with(|| Arc::clone(agent));
            }
        }
        absent
    }

    /// Returns whether it is there now.
    async fn make(&self, name: &ObjectName, agent: &TunnelAgent) -> bool {
        match self.create(name, agent).await {
            Ok(true) => {
                tracing::info!(secret = %name, "made the credential of an agent");
                true
            }
            Ok(false) => true,
            Err(error) => {
                tracing::warn!(secret = %name, error = %chain(&error), "cannot make the credential of an agent; trying again");
                false
            }
        }
    }

    async fn create(&self, name: &ObjectName, agent: &TunnelAgent) -> Result<bool, MakeError> {
        let wanted = secret(name, agent, &Token::generate()?);
        let api = Api::<KubeSecret>::namespaced(self.cluster.client.clone(), &name.namespace);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match tokio::time::timeout(PATIENCE, api.create(&params, &wanted)).await {
            Ok(Ok(_)) => Ok(true),
            // Somebody was quicker.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(false),
            Ok(Err(error)) => Err(MakeError::Write(Box::new(error))),
            Err(_) => Err(MakeError::Late),
        }
    }
}

fn secret(name: &ObjectName, agent: &TunnelAgent, token: &Token) -> KubeSecret {
    let text = |text: &str| text.to_owned();
    let owner = agent.metadata.uid.as_ref().map(|uid| OwnerReference {
        api_version: TunnelAgent::api_version(&()).into_owned(),
        kind: TunnelAgent::kind(&()).into_owned(),
        name: agent.metadata.name.clone().unwrap_or_default(),
        uid: uid.clone(),
        controller: None,
        block_owner_deletion: None,
    });
    let of = agent.metadata.name.as_deref().unwrap_or_default();
    KubeSecret {
        metadata: ObjectMeta {
            name: Some(name.name.to_string()),
            namespace: Some(name.namespace.to_string()),
            labels: Some(
                [
                    (text(MANAGED), text("true")),
                    (text("app.kubernetes.io/managed-by"), text(FIELD_MANAGER)),
                ]
                .into(),
            ),
            annotations: Some([(text(AGENT), format!("{}/{of}", name.namespace))].into()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        type_: Some(text(TYPE)),
        data: Some(
            [(
                text("token"),
                ByteString(token.text().expose().clone().into_bytes()),
            )]
            .into(),
        ),
        ..KubeSecret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::published::ours;

    #[test]
    fn a_credential_belongs_to_its_agent_and_is_no_certificate() {
        let mut agent = TunnelAgent::new("homelab", crate::api::TunnelAgentSpec::default());
        agent.metadata.uid = Some("uid".to_owned());
        let token = Token::generate().unwrap();
        let name = ObjectName::new("home", "homelab-agent");
        let made = secret(&name, &agent, &token);
        let data = made.data.as_ref().unwrap();
        let read = std::str::from_utf8(&data["token"].0).unwrap();
        assert_eq!(Token::parse(read).unwrap(), token);
        let owners = made.metadata.owner_references.as_ref().unwrap();
        assert_eq!((&*owners[0].kind, &*owners[0].uid), ("TunnelAgent", "uid"));
        assert_eq!(
            made.metadata.annotations.as_ref().unwrap()[AGENT],
            "home/homelab"
        );
        assert!(ours(&made.metadata).is_none());
    }
}
