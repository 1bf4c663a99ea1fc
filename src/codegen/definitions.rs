//! CustomResourceDefinitions as YAML.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use super::CodegenError;
use crate::api::{all_crds, all_policies};

const HEADER: &str = "# Generated from src/api, do not edit: cargo xtask codegen\n";

/// One definition as a YAML document with the header of generated files.
pub fn definition_yaml(crd: &CustomResourceDefinition) -> Result<String, CodegenError> {
    let what = || {
        crd.metadata
            .name
            .clone()
            .unwrap_or_else(|| "a definition".to_owned())
    };
    let mut value = serde_json::to_value(crd).unwrap_or_default();
    whole_numbers(&mut value);
    let yaml = serde_saphyr::to_string(&value).map_err(|source| CodegenError {
        what: what(),
        source,
    })?;
    Ok(format!("{HEADER}{yaml}"))
}

/// All definitions as one YAML stream, for `kubectl apply -f -`.
pub fn crds_yaml() -> Result<String, CodegenError> {
    let documents = all_crds()
        .iter()
        .map(definition_yaml)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(documents.join("---\n"))
}

/// All policies and their bindings as one YAML stream.
pub fn policies_yaml() -> Result<String, CodegenError> {
    let documents = all_policies()
        .iter()
        .map(serde_saphyr::to_string)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| CodegenError {
            what: "a policy".to_owned(),
            source,
        })?;
    Ok(format!("{HEADER}{}", documents.join("---\n")))
}

/// The type of the definition holds bounds as floating-point numbers; `65535.0` reads badly.
#[expect(
    clippy::cast_possible_truncation,
    reason = "checked against the range of exact integers"
)]
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let exact = number
                .as_f64()
                .filter(|float| number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15);
            if let Some(float) = exact {
                *value = Value::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
