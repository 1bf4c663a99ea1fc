//! Telling people: before a certificate expires and when renewal keeps failing.
//!
//! ```text
//! certificates' state ─► decide (pure: what is worth a message, told once) ─► Notice
//!                                                                             │
//!          target (pure: the request or mail for each kind of receiver) ◄─────┘
//!               └─► send (bounded queues, retries, never in the way of a renewal)
//!                     └─► pending (what has not arrived yet, kept for after a restart)
//! ```
//!
//! Messages hold names, times and the authority's words; tokens and passwords are in no message, error
//! or log.

pub mod decide;
mod mail;
pub mod pending;
pub mod send;
pub mod target;

pub use decide::{Notice, NoticeKind, NoticeMemory, Severity, Stage, Subject};
pub use pending::Pending;
pub use send::{DeliveryState, Notifier, NotifierSettings, deliver};
pub use target::{NoticeError, SmtpSecurity, SmtpTarget, Target, Template, WebhookTarget};
