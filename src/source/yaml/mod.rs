//! Objects as people write them: YAML or JSON documents, checked as the API server would check them.
//!
//! ```text
//! text ─► documents (with lines) ─► schema of the kind ─► CEL rules ─► typed object, or every problem with its place
//! ```
//!
//! Reads text only: which file it came from, and what is kept when it is wrong, is the caller's.

pub(crate) mod document;
pub(crate) mod kinds;
pub(crate) mod schema;
