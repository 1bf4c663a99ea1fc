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

/// Sections so far, so that a shape that comes again becomes a link.
#[derive(Default)]
struct Page {
    text: String,
    seen: Vec<(JSONSchemaProps, String)>,
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
            page.object(name, schema);
        }
    }
    page.text
}

// === impl Page ===

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Writes the section of an object, then those of its fields.
    fn object(&mut self, path: &str, schema: &JSONSchemaProps) {
        self.seen.push((shape(schema), path.to_owned()));
        self.line("");
        self.line(&format!("## {path}"));
        self.line("");
        let words = prose(schema);
        if !words.is_empty() {
            self.line(&words);
            self.line("");
        }
        let rules: Vec<String> = schema
            .x_kubernetes_validations
            .iter()
            .flatten()
            .filter_map(|rule| rule.message.clone())
            .collect();
        let mut shown: Vec<&String> = Vec::new();
        for rule in &rules {
            if !shown.contains(&rule) {
                shown.push(rule);
                self.line(&format!("- Rule: {rule}."));
            }
        }
        if !shown.is_empty() {
            self.line("");
        }
        let required = schema.required.clone().unwrap_or_default();
        let mut deeper: Vec<(String, &JSONSchemaProps)> = Vec::new();
        if schema.properties.iter().flatten().next().is_none() {
            self.line("It has no fields.");
            return;
        }
        self.line("| Field | Type | Description |");
        self.line("| --- | --- | --- |");
        for (name, field) in schema.properties.iter().flatten() {
            let star = if required.contains(name) { "*" } else { "" };
            let (type_, inner) = self.type_of(path, name, field);
            self.line(&format!(
                "| `{name}`{star} | {type_} | {} |",
                prose(field).replace('|', "\\|")
            ));
            deeper.extend(inner);
        }
        for (path, schema) in deeper {
            // A sibling may have had the same shape.
            if self.known(schema).is_none() {
                self.object(&path, schema);
            }
        }
    }

    fn known(&self, schema: &JSONSchemaProps) -> Option<&str> {
        let wanted = shape(schema);
        self.seen
            .iter()
            .find(|(known, _)| *known == wanted)
            .map(|(_, path)| path.as_str())
    }

    /// The words for a type, and the section that it needs.
    fn type_of<'a>(
        &self,
        path: &str,
        name: &str,
        schema: &'a JSONSchemaProps,
    ) -> (String, Option<(String, &'a JSONSchemaProps)>) {
        if schema.x_kubernetes_int_or_string == Some(true) {
            return ("size".to_owned(), None);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            let (inner, section) = self.type_of(path, &format!("{name}[]"), items);
            let count = range(schema.min_items, schema.max_items);
            return (format!("list of {inner}{count}"), section);
        }
        match schema.type_.as_deref() {
            Some("object") => {
                let target = self
                    .known(schema)
                    .map_or_else(|| format!("{path}.{name}"), str::to_owned);
                let link = format!("[object](#{})", anchor(&target));
                let section = (target == format!("{path}.{name}")).then_some((target, schema));
                (link, section)
            }
            Some("string" | "integer") if schema.enum_.is_some() => (values(schema), None),
            Some("string") if schema.format.as_deref() == Some("date-time") => {
                ("time".to_owned(), None)
            }
            Some("string") => (format!("string{}", range(None, schema.max_length)), None),
            Some("integer") => {
                let bounds = match (schema.minimum, schema.maximum) {
                    (Some(low), Some(high)) => format!(", {low} to {high}"),
                    _ => String::new(),
                };
                (format!("integer{bounds}"), None)
            }
            Some(other) => (other.to_owned(), None),
            None => ("any".to_owned(), None),
        }
    }
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
