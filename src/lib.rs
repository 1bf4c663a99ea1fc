//! Tidegate: the TLS edge for people who host their own services.

pub mod api;
pub mod standalone;
pub mod translate;
