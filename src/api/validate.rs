//! The CEL rules of the schema, evaluated here: what the API server would say about an object, without one.
//!
//! Standalone edges and `check` have no API server in front of them. The compiled schema is kept, because
//! making it takes longer than evaluating it.

use std::sync::OnceLock;

use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde::Serialize;
use serde_json::Value;

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
    /// The cached schema of the kind.
    fn cached_schema() -> &'static OnceLock<Value>;
}

macro_rules! cel_validated {
    ($($kind:ty),*) => {$(
        impl CelValidated for $kind {
            fn cached_schema() -> &'static OnceLock<Value> {
                static SCHEMA: OnceLock<Value> = OnceLock::new();
                &SCHEMA
            }
        }
    )*};
}

cel_validated!(TlsRoute, TunnelAgent, AcmeIssuer);

/// Returns every CEL rule of the schema that the object breaks.
pub fn validate_cel<T: CelValidated>(object: &T) -> Vec<CelError> {
    let schema = T::cached_schema().get_or_init(|| {
        T::crd()
            .spec
            .versions
            .first()
            .and_then(|version| version.schema.as_ref())
            .and_then(|schema| serde_json::to_value(&schema.open_api_v3_schema).ok())
            .unwrap_or_default()
    });
    let Ok(value) = serde_json::to_value(object) else {
        return Vec::new();
    };
    match Validator::new().validate(schema, &value, None) {
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
