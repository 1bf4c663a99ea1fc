//! Wiring: builds the parts of each mode, joins them, ends them in order. The only area that sees both the
//! source of objects and the data plane.

mod acme;
mod agents;
pub mod certs;
pub mod check;
mod cluster_desk;
pub mod control;
pub mod doctor;
pub mod explain;
mod folder_desk;
mod handover;
mod happenings;
mod opening;
mod operator_desk;
pub mod operator_mode;
pub mod portability;
mod ports;
pub mod probe;
mod process;
mod publish;
mod report;
mod signals;
pub mod standalone_mode;
pub mod status;
pub mod take_over;
mod tracker_probes;
mod upgrade;

pub use crate::admin::{
    BackendView, CertificateView, ConditionView, ControlView, FindingView, ProblemView, RouteView,
    SeverityView, StatusView,
};
pub use crate::rest::accounts;
pub use tidegate_proxy::{
    AccessLogSettings, EdgeLimits, EdgeTimeouts, ProxyProtocolMode, Settings,
};
