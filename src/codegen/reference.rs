//! The reference page of a kind: its schema as tables, with the doc comments of the types.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray,
};

/// A sample per kind.
const EXAMPLES: [(&str, &str); 3] = [
    (
        "AcmeIssuer",
        include_str!("../../manifests/samples/issuer.yaml"),
    ),
    (
        "TlsRoute",
        include_str!("../../manifests/samples/minimal.yaml"),
    ),
    (
        "TunnelAgent",
        include_str!("../../manifests/samples/tunnel.yaml"),
    ),
];

/// The sections of a page: one per shape, at the path where the shape comes first.
#[derive(Default)]
struct Page<'a> {
    text: String,
    sections: Vec<(String, &'a JSONSchemaProps)>,
}

pub(super) fn page(crd: &CustomResourceDefinition) -> String {
    let names = &crd.spec.names;
    let mut page = Page::default();
    page.line("<!-- Generated from src/api, do not edit: cargo xtask codegen -->");
    page.line("");
    page.line(&format!("# {}", names.kind));
    page.line("");
    let version = crd.spec.versions.first();
    let root = version
        .and_then(|version| version.schema.as_ref())
        .and_then(|schema| schema.open_api_v3_schema.as_ref());
    let Some(root) = root else {
        return page.text;
    };
    page.line(&prose(root));
    page.line("");
    let short = names.short_names.clone().unwrap_or_default().join(", ");
    page.line("| | |");
    page.line("| --- | --- |");
    let version = version.map_or("", |version| version.name.as_str());
    page.line(&format!("| apiVersion | `{}/{version}` |", crd.spec.group));
    page.line(&format!("| kind | `{}` |", names.kind));
    page.line(&format!(
        "| names for kubectl | `{}`, `{short}` |",
        crd.metadata.name.clone().unwrap_or_default()
    ));
    page.line(&format!("| scope | {} |", crd.spec.scope));
    page.line("");
    page.line("Durations are written as `500ms`, `30s` or `1h30m`, sizes as `64Ki` or `50Mi`.");
    page.line("Fields marked with * are required.");
    if let Some((_, example)) = EXAMPLES.iter().find(|(kind, _)| *kind == names.kind) {
        page.line("");
        page.line("## Example");
        page.line("");
        page.line("```yaml");
        page.text.push_str(example);
        page.line("```");
    }
    for (name, schema) in root.properties.iter().flatten() {
        if name == "spec" || name == "status" {
            page.collect(name, schema);
        }
    }
    for (path, schema) in page.sections.clone() {
        page.section(&path, schema);
    }
    page.text
}

// === impl Page ===

impl<'a> Page<'a> {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Finds the sections below, in the order of the page.
    fn collect(&mut self, path: &str, schema: &'a JSONSchemaProps) {
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            self.collect(&format!("{path}[]"), items);
        } else if is_object(schema) && self.known(schema).is_none() {
            self.sections.push((path.to_owned(), schema));
            for (name, field) in schema.properties.iter().flatten() {
                self.collect(&format!("{path}.{name}"), field);
            }
        }
    }

    fn known(&self, schema: &JSONSchemaProps) -> Option<&str> {
        let wanted = shape(schema);
        self.sections
            .iter()
            .find(|(_, known)| shape(known) == wanted)
            .map(|(path, _)| path.as_str())
    }

    fn section(&mut self, path: &str, schema: &JSONSchemaProps) {
        self.line("");
        self.line(&format!("## {path}"));
        self.line("");
        let words = prose(schema);
        if !words.is_empty() {
            self.line(&words);
            self.line("");
        }
        let mut shown: Vec<String> = Vec::new();
        for rule in schema.x_kubernetes_validations.iter().flatten() {
            let message = rule.message.clone().unwrap_or_default();
            if !shown.contains(&message) {
                self.line(&format!("- Rule: {message}."));
                shown.push(message);
            }
        }
        if !shown.is_empty() {
            self.line("");
        }
        let required = schema.required.clone().unwrap_or_default();
        if schema.properties.iter().flatten().next().is_none() {
            self.line("It has no fields.");
            return;
        }
        self.line("| Field | Type | Description |");
        self.line("| --- | --- | --- |");
        for (name, field) in schema.properties.iter().flatten() {
            let star = if required.contains(name) { "*" } else { "" };
            let type_ = self.type_of(field);
            self.line(&format!(
                "| `{name}`{star} | {type_} | {} |",
                prose(field).replace('|', "\\|")
            ));
        }
    }

    /// The words for a type.
    fn type_of(&self, schema: &JSONSchemaProps) -> String {
        if schema.x_kubernetes_int_or_string == Some(true) {
            return "size".to_owned();
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            let count = range(schema.min_items, schema.max_items);
            return format!("list of {}{count}", self.type_of(items));
        }
        if is_object(schema) {
            let target = self.known(schema).unwrap_or_default();
            return format!("[object](#{})", anchor(target));
        }
        if schema.enum_.is_some() {
            return values(schema);
        }
        match schema.type_.as_deref() {
            Some("string") if schema.format.as_deref() == Some("date-time") => "time".to_owned(),
            Some("string") => format!("string{}", range(None, schema.max_length)),
            Some("integer") => match (schema.minimum, schema.maximum) {
                (Some(low), Some(high)) => format!("integer, {low} to {high}"),
                _ => "integer".to_owned(),
            },
            Some(other) => other.to_owned(),
            None => "any".to_owned(),
        }
    }
}

fn is_object(schema: &JSONSchemaProps) -> bool {
    schema.type_.as_deref() == Some("object")
}

/// A schema without the words about the place it stands in.
fn shape(schema: &JSONSchemaProps) -> JSONSchemaProps {
    JSONSchemaProps {
        description: None,
        default: None,
        ..schema.clone()
    }
}

fn prose(schema: &JSONSchemaProps) -> String {
    schema
        .description
        .as_deref()
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn values(schema: &JSONSchemaProps) -> String {
    schema
        .enum_
        .iter()
        .flatten()
        .map(|JSON(value)| format!("`{}`", value.to_string().trim_matches('"')))
        .collect::<Vec<_>>()
        .join(", ")
}

fn range(min: Option<i64>, max: Option<i64>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match (min, max) {
        (Some(min), Some(max)) => write!(text, ", {min} to {max}"),
        (None, Some(max)) => write!(text, ", at most {max}"),
        _ => Ok(()),
    };
    text
}

/// The anchor that Markdown viewers make of a heading.
fn anchor(heading: &str) -> String {
    heading
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == '-')
        .collect::<String>()
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_of_a_page_leads_to_a_heading() {
        for crd in crate::api::all_crds() {
            let page = page(&crd);
            let headings: Vec<String> = page
                .lines()
                .filter_map(|line| line.strip_prefix("## "))
                .map(anchor)
                .collect();
            let links: Vec<&str> = page
                .split("](#")
                .skip(1)
                .filter_map(|rest| rest.split(')').next())
                .collect();
            assert!(links.len() > 3, "{page}");
            for link in links {
                assert!(headings.iter().any(|heading| heading == link), "{link}");
            }
        }
    }
}
