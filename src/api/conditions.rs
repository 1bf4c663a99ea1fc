//! The one list of condition types and reasons, and the helper that sets a condition.
//!
//! Whatever reports a state to people (statuses, events, metric labels, `check`) takes its words from
//! here; `docs/reference/conditions.md` is generated from the same tables.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;

/// Declares an enum whose variants carry their documentation as text, so that code and page agree.
macro_rules! words {
    ($(#[$outer:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl $name {
            /// Every variant, in the order of the reference page.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word as statuses show it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }

            /// What it means, in one or more sentences.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Types of conditions.
    ConditionType {
        /// The object is valid and its hostnames are its own.
        Accepted,
        /// Everything the object names exists: Secrets, ConfigMaps, agents, issuers.
        ResolvedRefs,
        /// A certificate that is valid now and covers the hostnames is being served.
        CertificateReady,
        /// The data plane serves this generation of the object.
        Programmed,
        /// Backends see the address of the client.
        ClientAddressPreserved,
        /// Every Service that the object names has an endpoint that is ready. Present only on Kubernetes, and no
        /// part of Ready: pods come and go.
        BackendsReady,
        /// The credential of an agent is there and usable.
        CredentialReady,
        /// At least one session of the agent is alive.
        Connected,
        /// The agent would stay connected if one of its links, or one replica of the edge, were lost. No part of
        /// Ready.
        Redundant,
        /// Everything that the agent's object maps, and everything that the agent itself asks for, is served.
        MappingsAccepted,
        /// Every service behind the agent answers the agent; the message names the part of the way that is broken:
        /// link, agent or service. No part of Ready.
        DataPathHealthy,
        /// The last notice to each receiver of an issuer arrived. Present only where there are receivers.
        NotificationsDelivered,
        /// All of the above that apply; the message is that of the first which fails, and tells when
        /// there is no certificate either.
        Ready,
        /// Present only while work is in progress.
        Reconciling,
        /// Present only while nothing will change until a person acts.
        Stalled,
    }
}

words! {
    /// Reasons of conditions.
    Reason {
        /// Nothing to complain about.
        Accepted,
        /// Every reference was found.
        ResolvedRefs,
        /// A valid certificate is served.
        CertificateReady,
        /// The TLS connection is not opened here, so no certificate is needed.
        NotNeeded,
        /// The data plane serves this object.
        Programmed,
        /// Everything is well.
        Ready,
        /// The client's address is sent in X-Forwarded-For and X-Real-IP.
        ForwardedHeaders,
        /// The client's address is sent in a PROXY protocol header.
        ProxyProtocol,
        /// The tracker's clients reach it without this edge, which neither keeps nor loses their addresses.
        NotRelayed,
        /// Datagrams reach the tracker with the address of their client. The message says how much of that a trial has shown.
        TransparentRelay,
        /// A Service with `externalTrafficPolicy: Local` leads clients to the UDP tracker, and leaves their addresses alone.
        ServiceLocal,
        /// A tracker takes the addresses of peers from X-Forwarded-For; False where peers reach it without the edge.
        TrackerReadsHeader,
        /// A tracker does not take the addresses of peers from X-Forwarded-For; True where peers reach it without the edge.
        TrackerIgnoresHeader,
        /// A tracker could not be asked whether it reads X-Forwarded-For, or its answer does not tell.
        TrackerProbeFailed,
        /// Peers reach every tracker of the route without this edge.
        NotProxied,
        /// TLS is passed through without a PROXY protocol header, so the backend sees the edge's address.
        AddressLost,
        /// The addresses of clients are replaced by the cluster's own before they reach the edge. The message names the switch that mends it.
        SourceAddressReplaced,
        /// The process may not send from the addresses of clients; nothing is relayed. The message says what it needs.
        RelayNotPermitted,
        /// The tracker's answers to clients do not come back through the edge; nothing is relayed. The message has the commands that mend it.
        RelayNoWayBack,
        /// The tracker lists another address than the one that a trial has announced from; nothing is relayed. The message tells which, and has the command that mends it.
        RelayAddressReplaced,
        /// The tracker does not read the PROXY protocol header; nothing is relayed.
        ProxyHeaderNotRead,
        /// The Service of a UDP tracker cannot be made: the program may not, or was told not to. The message has the manifest to apply by hand.
        ServiceNotManaged,
        /// Somebody else has a Service of the name that the Service of a UDP tracker needs; it is not touched.
        ServiceForeign,
        /// The Service of a UDP tracker has no selector, so that its pods cannot be found; or its backend is no Service.
        ServiceWithoutSelector,
        /// No load balancer has given the Service of a UDP tracker its address.
        LoadBalancerPending,
        /// No pod of the UDP tracker is ready.
        TrackerNotReady,
        /// The UDP tracker answers nobody, so that nothing can be said of addresses.
        TrackerSilent,
        /// The port or address of a UDP tracker cannot be listened on. The message says who has it.
        UdpPortUnavailable,
        /// The load balancer does not send the PROXY protocol header that the edge reads from it.
        ProxyHeaderMissing,
        /// The load balancer sends a PROXY protocol header that the edge does not read.
        ProxyHeaderUnexpected,
        /// `spec.suspend` is true: the object is not served and its certificate is not renewed.
        Suspended,
        /// A field has a value that cannot be used. The message names the field.
        Invalid,
        /// A value is valid, but this edge cannot do it.
        UnsupportedValue,
        /// An older object owns a hostname that this one also claims.
        HostnameConflict,
        /// Peers reach some HTTP trackers of one process through the edge and some directly.
        MixedTrackerProxy,
        /// A Secret does not exist.
        SecretNotFound,
        /// A Secret exists but lacks a key, or has the wrong type or content.
        InvalidSecret,
        /// A ConfigMap does not exist or lacks a key.
        ConfigMapNotFound,
        /// The certificate or key of a Secret cannot be used: unreadable, or the two do not belong together.
        InvalidCertificate,
        /// The certificate does not cover every hostname of the route.
        NameMismatch,
        /// The certificate's validity has ended.
        Expired,
        /// The certification authority has revoked the certificate; another is ordered.
        Revoked,
        /// The certificate's validity has not begun.
        NotYetValid,
        /// A TunnelAgent does not exist.
        AgentNotFound,
        /// A TunnelAgent exists, but no session of it is alive.
        AgentNotConnected,
        /// The credential is there; the edge knows the agent by it.
        CredentialReady,
        /// At least one session of the agent is alive.
        Connected,
        /// Several links of the agent are alive, on several replicas of the edge where there are several.
        Redundant,
        /// Only one link of the agent is alive.
        SingleLink,
        /// All links of the agent end at one replica of the edge, and there are others.
        SingleReplica,
        /// Every mapping of the agent is served.
        MappingsAccepted,
        /// Every service behind the agent answers it.
        ServicesAnswer,
        /// The agent cannot reach a service that it maps, or it does not answer as it should.
        ServiceUnreachable,
        /// The link of an agent is alive, but its program does not answer, or does not know what it was told.
        AgentSilent,
        /// The link of an agent takes no requests, because too many visitors do not read what they asked for.
        LinkBusy,
        /// The agent asks for a mapping of a name that its object has, which counts.
        DefinedByObject,
        /// The agent may not serve a hostname, because its `allowedHostnames` do not cover it.
        HostnameNotAllowed,
        /// A port of a mapping is not among those that the edge was started with (`--tunnel-ports`), or not among the agent's `allowedPorts`. The message says which.
        PortNotAllowed,
        /// A port of a mapping belongs to the edge itself, to a UDP tracker or to an older mapping.
        PortConflict,
        /// A port of a mapping cannot be listened on. The message says why; it is tried again.
        PortUnavailable,
        /// An AcmeIssuer does not exist.
        IssuerNotFound,
        /// The backend's name or Service does not exist.
        BackendNotFound,
        /// A backend leads to an address or a name that backends of this edge may not lead to.
        BackendNotAllowed,
        /// Every Service has an endpoint that is ready.
        BackendsReady,
        /// A Service has no endpoint that is ready; requests to it are answered with 503.
        NoReadyEndpoints,
        /// The certificate is being issued; a placeholder is served if there is one.
        Issuing,
        /// No certificate could be had from the issuer; the message has its words and the time of the next attempt.
        OrderFailed,
        /// The account at the certification authority is registered.
        Registered,
        /// The certification authority cannot be used; the message says why.
        AuthorityUnusable,
        /// A receiver of notices cannot be used as it is written; the others are told, and certificates are issued all the same.
        InvalidNotification,
        /// The last notices arrived, or there was nothing to tell.
        NoticesDelivered,
        /// The last notice to a receiver did not arrive; the message says why.
        NoticesNotDelivered,
        /// No listener for plain HTTP has the port of a tracker. The message has the option to start the edge with.
        PlainListenerMissing,
        /// Nothing of the object can be served.
        NothingToServe,
        /// The new version of the object is bad; the last good one stays in use.
        LastGoodKept,
        /// Not yet looked at.
        Pending,
    }
}

/// Sets a condition. `lastTransitionTime` moves only when the status changes, as Kubernetes' contract
/// says; conditions stay in the order of [`ConditionType::ALL`].
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    type_: ConditionType,
    status: bool,
    reason: Reason,
    message: impl Into<String>,
    observed_generation: Option<i64>,
    now: SystemTime,
) {
    let status = if status { "True" } else { "False" };
    put_condition(
        conditions,
        type_,
        status,
        reason,
        message.into(),
        observed_generation,
        now,
    );
}

/// Sets a condition of which nobody knows whether it holds.
pub fn set_unknown(
    conditions: &mut Vec<Condition>,
    type_: ConditionType,
    reason: Reason,
    message: impl Into<String>,
    observed_generation: Option<i64>,
    now: SystemTime,
) {
    let message = message.into();
    put_condition(
        conditions,
        type_,
        "Unknown",
        reason,
        message,
        observed_generation,
        now,
    );
}

fn put_condition(
    conditions: &mut Vec<Condition>,
    type_: ConditionType,
    status: &str,
    reason: Reason,
    message: String,
    observed_generation: Option<i64>,
    now: SystemTime,
) {
    let since = conditions
        .iter()
        .find(|existing| existing.type_ == type_.as_str() && existing.status == status)
        .map_or_else(
            || timestamp(now),
            |existing| existing.last_transition_time.clone(),
        );
    remove_condition(conditions, type_);
    conditions.push(Condition {
        last_transition_time: since,
        message: bounded(message),
        observed_generation,
        reason: reason.as_str().to_owned(),
        status: status.to_owned(),
        type_: type_.as_str().to_owned(),
    });
    conditions.sort_by_key(|condition| {
        ConditionType::ALL
            .iter()
            .position(|known| known.as_str() == condition.type_)
    });
}

/// Removes a condition, for those that are present only while true.
pub fn remove_condition(conditions: &mut Vec<Condition>, type_: ConditionType) {
    conditions.retain(|condition| condition.type_ != type_.as_str());
}

/// The condition of that type.
pub fn find_condition(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == type_.as_str())
}

/// Whether the condition of that type is there and true.
pub fn is_true(conditions: &[Condition], type_: ConditionType) -> bool {
    find_condition(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// A moment as Kubernetes writes it, to the second.
pub fn timestamp(moment: SystemTime) -> Time {
    let seconds = moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default();
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The API server refuses messages over 32 KiB; an object with very many mistakes must still get a status.
fn bounded(mut message: String) -> String {
    const LIMIT: usize = 32 * 1024;
    if message.len() > LIMIT {
        let mut end = LIMIT - 4;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str(" …");
    }
    message
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut conditions = Vec::new();
        let mut set = |status, message: &str, now| {
            set_condition(
                &mut conditions,
                ConditionType::Ready,
                status,
                Reason::Ready,
                message,
                Some(1),
                at(now),
            );
            (
                conditions[0].last_transition_time.clone(),
                conditions[0].message.clone(),
            )
        };
        assert_eq!(set(true, "a", 10), (timestamp(at(10)), "a".to_owned()));
        assert_eq!(set(true, "b", 20), (timestamp(at(10)), "b".to_owned()));
        assert_eq!(set(false, "c", 30), (timestamp(at(30)), "c".to_owned()));
    }

    #[test]
    fn a_message_is_cut_at_a_character() {
        let long = bounded("ä".repeat(40_000));
        assert!(long.len() <= 32 * 1024 && long.ends_with('…'));
    }
}
