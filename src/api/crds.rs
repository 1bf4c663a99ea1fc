//! The CustomResourceDefinitions as they are installed.
//!
//! The derive gives almost all; this adds what it cannot say: a default status by which tools know that
//! nobody has looked at a new object yet, and strict optional fields (an explicit null is pruned, as for
//! built-in kinds, instead of being kept and shown as a difference for ever).

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use super::{AcmeIssuer, TlsRoute, TunnelAgent};

/// API group of all kinds.
pub const GROUP: &str = "edge.tidegate.dev";

/// The only version so far.
pub const VERSION: &str = "v1alpha1";

/// Returns every CustomResourceDefinition, in the order of the file names under `crds/`.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    [AcmeIssuer::crd(), TlsRoute::crd(), TunnelAgent::crd()]
        .map(finished)
        .to_vec()
}

fn finished(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let labels = crd.metadata.labels.get_or_insert_default();
    labels.insert("app.kubernetes.io/name".to_owned(), "tidegate".to_owned());
    labels.insert(
        "app.kubernetes.io/part-of".to_owned(),
        "tidegate".to_owned(),
    );
    for version in &mut crd.spec.versions {
        let Some(root) = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
        else {
            continue;
        };
        strict(root);
        if let Some(status) = root
            .properties
            .as_mut()
            .and_then(|all| all.get_mut("status"))
        {
            // kstatus takes an object without conditions for finished, unless the observed generation
            // differs from the real one.
            status.default = Some(
                k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON(
                    serde_json::json!({ "observedGeneration": -1 }),
                ),
            );
        }
    }
    crd
}

/// Drops `nullable` everywhere below, and the line ends of descriptions: whoever shows these breaks lines itself.
fn strict(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if let Some(description) = &mut schema.description {
        *description = description.split('\n').collect::<Vec<_>>().join(" ");
    }
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|all| all.values_mut())
    {
        strict(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => strict(items),
        Some(JSONSchemaPropsOrArray::Schemas(all)) => all.iter_mut().for_each(strict),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        strict(values);
    }
}
