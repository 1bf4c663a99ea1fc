//! Tidegate: the TLS edge for people who host their own services.

pub mod admin;
pub mod api;
pub mod app;
pub mod cli;
pub mod codegen;
pub mod import;
pub mod operator;
pub mod rest;
pub mod source;
pub mod standalone;
pub mod translate;
