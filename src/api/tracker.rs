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

    /// What becomes of the parameters `ip`, `ipv4` and `ipv6` of announces, by which clients claim addresses.
    /// `Pass`: they go on; a tracker that believes them lets clients name anybody. `Strip`: they are taken
    /// out, and every other byte of the target stays. Default: `Pass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Pass", "Strip"]))]
    pub address_parameters: Option<String>,
}
