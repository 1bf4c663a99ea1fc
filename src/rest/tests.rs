//! The API over its router, with files of a folder behind it where a change is made.

use super::*;

#[test]
fn the_description_names_every_operation_and_the_entry_of_a_mapping() {
    let api = description();
    assert_eq!(api["openapi"], "3.1.0");
    let paths: Vec<_> = api["paths"].as_object().unwrap().keys().collect();
    assert_eq!(
        paths,
        [
            "/api/v1/agents",
            "/api/v1/agents/{namespace}/{name}",
            "/api/v1/agents/{namespace}/{name}/reconnect",
            "/api/v1/connections",
            "/api/v1/events",
            "/api/v1/mappings",
            "/api/v1/mappings/{namespace}/{agent}/{name}",
            "/api/v1/mappings/{namespace}/{agent}/{name}/enabled",
            "/api/v1/requests",
            "/api/v1/session",
        ]
    );
    let entry = &api["components"]["schemas"]["MappingEntry"];
    assert!(entry["properties"]["hostname"].is_object(), "{entry}");
    // Every reference leads somewhere.
    let text = api.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(api["components"]["schemas"][name].is_object(), "{name}");
    }
}
