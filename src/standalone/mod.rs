//! Objects from a folder: read, checked, watched; certificates kept beside them.
pub mod ca;
mod document;
mod schema;
pub mod state;
