//! What agents ask for, as it is written down, so that their hostnames outlive a restart of the edge.
//!
//! Agents say anything: texts and numbers of wishes are bounded here, and judged where all objects are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_model::{AgentId, ProxyProtocolVersion, RequestedMapping};
use tidegate_telemetry::chain;

use super::state::StateFolder;

/// What an agent may ask for at most.
pub const MOST: usize = 256;
/// Longest text of an agent, in characters.
const TEXT: usize = 1024;
/// In the state folder.
const FILE: &str = "agent-requests.json";

/// What agents ask for.
pub type Wishes = BTreeMap<AgentId, Vec<RequestedMapping>>;

/// A wish as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WrittenWish {
    name: String,
    hostname: String,
    #[serde(default)]
    port: Option<u16>,
    target: String,
    #[serde(default)]
    proxy_protocol: Option<u8>,
    #[serde(default)]
    insecure_skip_verify: bool,
    #[serde(default)]
    description: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    version: u32,
    agents: Vec<WrittenAgent>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenAgent {
    namespace: String,
    name: String,
    requested: Vec<WrittenWish>,
}

/// Text of an agent, no longer than it may be.
pub fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

/// What was written last; nothing where that cannot be used, for agents ask again.
pub fn load(state: &StateFolder) -> Wishes {
    let text = match state.read(FILE) {
        Ok(text) => text.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "cannot read what agents asked for; they will ask again");
            return Wishes::new();
        }
    };
    if text.is_empty() {
        return Wishes::new();
    }
    match serde_json::from_str::<Written>(&text) {
        Ok(written) => written.read(),
        Err(error) => {
            let aside = state.set_aside(FILE).ok();
            tracing::warn!(%error, ?aside, "what agents asked for is damaged and set aside; they will ask again");
            Wishes::new()
        }
    }
}

/// Writes it. What cannot be written is told in the log and lost with the process.
pub fn save(state: &StateFolder, wishes: &Wishes) {
    // Texts: this cannot fail.
    let text = serde_json::to_string(&Written::of(wishes)).unwrap_or_default();
    if let Err(error) = state.write(FILE, &text) {
        tracing::warn!(error = %chain(&error), "cannot write what agents ask for; after a restart their hostnames wait for them");
    }
}

impl WrittenWish {
    /// What an agent asks for, bounded.
    pub fn all_of(wishes: &[RequestedMapping]) -> Vec<Self> {
        wishes.iter().take(MOST).map(Self::of).collect()
    }

    fn of(wish: &RequestedMapping) -> Self {
        Self {
            name: cut(&wish.name),
            hostname: cut(&wish.hostname),
            port: wish.port,
            target: cut(&wish.target),
            proxy_protocol: wish.proxy_protocol.map(|version| match version {
                ProxyProtocolVersion::V1 => 1,
                ProxyProtocolVersion::V2 => 2,
            }),
            insecure_skip_verify: wish.insecure_skip_verify,
            description: wish.description.as_deref().map(cut),
        }
    }

    /// As it was asked for.
    pub fn read(self) -> RequestedMapping {
        RequestedMapping {
            name: self.name,
            hostname: self.hostname,
            port: self.port,
            target: self.target,
            proxy_protocol: match self.proxy_protocol {
                Some(1) => Some(ProxyProtocolVersion::V1),
                Some(2) => Some(ProxyProtocolVersion::V2),
                _ => None,
            },
            insecure_skip_verify: self.insecure_skip_verify,
            description: self.description,
        }
    }
}

impl Written {
    fn of(wishes: &Wishes) -> Self {
        let agents = wishes.iter().map(|(id, wishes)| WrittenAgent {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
            requested: WrittenWish::all_of(wishes),
        });
        Self {
            version: 1,
            agents: agents.collect(),
        }
    }

    fn read(self) -> Wishes {
        let agents = self.agents.into_iter().map(|agent| {
            let wishes = agent.requested.into_iter().map(WrittenWish::read);
            (
                AgentId::new(agent.namespace, agent.name),
                wishes.collect::<Vec<_>>(),
            )
        });
        agents.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_outlive_the_process_and_damage_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        assert_eq!(load(&state), Wishes::new());
        let wish = |name: &str| RequestedMapping {
            name: name.to_owned(),
            hostname: format!("{name}.home.test"),
            target: "http://127.0.0.1:80".to_owned(),
            insecure_skip_verify: true,
            description: Some("in the cellar".to_owned()),
            port: (name == "nas").then_some(25_565),
            proxy_protocol: Some(ProxyProtocolVersion::V2),
        };
        let id = AgentId::new("default", "homelab");
        let wishes = Wishes::from([(id.clone(), vec![wish("nas"), wish("tv")])]);
        save(&state, &wishes);
        assert_eq!(load(&state), wishes);
        let many = vec![wish(&"x".repeat(TEXT + 1)); MOST + 1];
        save(&state, &Wishes::from([(id.clone(), many)]));
        let kept = load(&state);
        assert_eq!((kept[&id].len(), kept[&id][0].name.len()), (MOST, TEXT));
        state.write(FILE, "{").unwrap();
        assert_eq!(load(&state), Wishes::new());
        assert!(folder.path().join(format!("{FILE}.corrupt-1")).exists());
        assert!(!folder.path().join(FILE).exists());
    }
}
