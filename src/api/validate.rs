//! The CEL rules of the schema, evaluated here: what the API server would say about an object, without one.
//!
//! Standalone edges and `check` have no API server in front of them. The compiled rules are kept, because
//! compiling them takes a hundred times as long as evaluating them.

use std::sync::OnceLock;

use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use serde::Serialize;

use super::{AcmeIssuer, TlsRoute, TunnelAgent};

/// A rule that an object breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CelError {
    /// Where, such as `spec.rules[0].backends[1]`.
    pub field: String,
    /// What the rule says.
    pub message: String,
}

/// A kind whose schema has CEL rules.
pub trait CelValidated: CustomResourceExt + Serialize {
    /// The compiled schema of the kind.
    fn cached_schema() -> &'static OnceLock<CompiledSchema>;
}

macro_rules! cel_validated {
    ($($kind:ty),*) => {$(
        impl CelValidated for $kind {
            fn cached_schema() -> &'static OnceLock<CompiledSchema> {
                static SCHEMA: OnceLock<CompiledSchema> = OnceLock::new();
                &SCHEMA
            }
        }
    )*};
}

cel_validated!(TlsRoute, TunnelAgent, AcmeIssuer);

thread_local! {
    // Registering every CEL function costs more than most evaluations; the type is not Sync.
    static VALIDATOR: Validator = Validator::new();
}

/// Returns every CEL rule of the schema that the object breaks.
pub fn validate_cel<T: CelValidated>(object: &T) -> Vec<CelError> {
    let schema = T::cached_schema().get_or_init(|| {
        let schema = T::crd()
            .spec
            .versions
            .first()
            .and_then(|version| version.schema.as_ref())
            .and_then(|schema| serde_json::to_value(&schema.open_api_v3_schema).ok())
            .unwrap_or_default();
        compile_schema(&schema)
    });
    let Ok(value) = serde_json::to_value(object) else {
        return Vec::new();
    };
    match VALIDATOR.with(|validator| validator.validate_compiled(schema, &value, None)) {
        Ok(()) => Vec::new(),
        Err(errors) => errors
            .into_iter()
            .map(|error| CelError {
                field: error.field_path.trim_start_matches('.').to_owned(),
                message: error.message,
            })
            .collect(),
    }
}
