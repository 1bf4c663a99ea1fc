//! Objects from a folder: read, checked, watched; certificates kept beside them.
pub mod ca;
mod document;
mod folder;
mod kinds;
mod loader;
mod schema;
pub mod state;
