//! What a rule says of the BitTorrent tracker behind it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Says that a rule leads to a BitTorrent tracker.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracker {
    /// `HTTP`. UDP trackers are not proxied, because that would hide the addresses of peers.
    /// Default: `HTTP`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["HTTP"]))]
    pub type_: Option<String>,

    /// How announces reach an HTTP tracker. `HTTPS`: through this edge, which says in X-Forwarded-For who
    /// announces. `Direct`: without this edge; the rule lists such a tracker and is not served. All trackers
    /// of one process must say the same. Default: `HTTPS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["HTTPS", "Direct"]))]
    pub exposure: Option<String>,
}
