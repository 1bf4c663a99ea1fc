//! The custom resources of group `edge.tidegate.dev`, as people write them.
//!
//! These are wire types: what YAML may say, with documentation, schema and CEL rules, and nothing parsed.
//! Words that have a meaning (`Redirect`, `10s`, `50Mi`) stay strings here and are read by `translate`,
//! so that one bad word becomes one message in the object's status instead of an object that cannot be
//! read at all. The doc comments of fields are user documentation: they become `kubectl explain` and the
//! pages under `docs/reference/`.
//!
//! This module must not know the data plane, clients or files.

#![allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "KubeSchema expands to public structs inside functions; printcolumn repeats its keys"
)]

mod acme_issuer;
mod acme_solver;
mod backend;
pub mod conditions;
mod crds;
mod filter;
mod notification;
pub mod policies;
mod quantity;
mod rule;
mod status;
mod tls_route;
mod tracker;
mod tunnel_agent;
pub mod uniform;
mod validate;

#[cfg(test)]
mod tests;

pub use acme_issuer::{AcmeIssuer, AcmeIssuerSpec, AcmeIssuerStatus, ExternalAccountBinding};
pub use acme_solver::{
    Dns01Solver, DnsPersist01Solver, ExecSolver, Http01Solver, ProviderCredentials, ProviderSolver,
    Rfc2136Solver, SecretKeyRef, Solver, SolverSelector, TlsAlpn01Solver, TsigKey, WebhookAuth,
    WebhookBasicAuth, WebhookBearerAuth, WebhookSolver,
};
pub use backend::{
    ActiveHealth, AgentRef, Backend, BackendTls, Circuit, HashPolicy, HealthCheck, HttpField,
    LoadBalancer, PassiveHealth, ServiceRef, StaticFiles, StickyCookie,
};
pub use conditions::Condition;
pub use crds::{GROUP, VERSION, all_crds};
pub use filter::{
    BasicAuthFilter, CompressionFilter, CorsFilter, Filter, FixedResponseFilter, ForwardAuthFilter,
    HeaderModifier, IpAccessFilter, MirrorFilter, PathModifier, PathSubstitution, RateLimitFilter,
    RedirectFilter, RewriteFilter,
};
pub use notification::{Notification, SmtpNotification, WebhookNotification};
pub use policies::all_policies;
pub use quantity::Quantity;
pub use rule::{
    HeaderCondition, Match, PathCondition, QueryCondition, RouteRule, RuleLimits, RuleTimeouts,
};
pub use status::{CertificateStatus, OrderStatus, PreflightStatus};
pub use tls_route::{
    ClientAuth, Hsts, HttpPolicy, IssuerRef, TlsPolicy, TlsRoute, TlsRouteSpec, TlsRouteStatus,
};
pub use tracker::{Tracker, TrackerProbe, UdpTracker};
pub use tunnel_agent::{
    AgentCredential, AgentMapping, AgentPort, AgentSession, MappingTls, RequestedMappingStatus,
    TunnelAgent, TunnelAgentSpec, TunnelAgentStatus,
};
pub use validate::{CelError, CelValidated, validate_cel};
