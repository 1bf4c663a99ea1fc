//! Pure decisions: when to renew, when to try again, whether an order may be placed, how to prove control.
//!
//! ```text
//! what is wanted, what is held ─► policy ─► must something be issued?   renewal: when
//!                                   │                                   ledger:  may an order be placed
//!                                   └─► which issuer (fallback)         retry:   when to try again
//!                                                                       challenge: how to prove control
//! ```
//!
//! No I/O, no clock, no randomness: all three are arguments, so every rule here is a line in a table
//! test. What must outlive the process ([`retry::Attempts`], [`ledger::Ledger`], [`renewal::AriState`])
//! is plain serde data that the caller stores.

pub mod challenge;
pub mod ledger;
pub mod moment;
pub mod policy;
pub mod renewal;
pub mod retry;
