//! Reads JSON by path: every mistake says where it is, and fields nobody knows are remembered by name.
//!
//! Values are quoted only by whoever knows that they are no secrets; this file tells types.

use serde_json::{Map, Value};

use super::Mistake;

/// What was found on the way.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) mistakes: Vec<Mistake>,
    /// Paths of fields that are not known.
    pub(super) unknown: Vec<String>,
}

impl Findings {
    pub(super) fn mistake(
        &mut self,
        path: impl Into<String>,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.mistakes.push(Mistake {
            path: path.into(),
            found: found.into(),
            fix: fix.into(),
        });
    }

    fn wrong_type(&mut self, path: String, value: &Value, wanted: &str) {
        self.mistake(
            path,
            format!("is {}", type_name(value)),
            format!("write {wanted}"),
        );
    }
}

/// One object of the document. No `Debug`: it borrows secrets.
#[derive(Clone)]
pub(super) struct Section<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(super) fn root(value: &'a Value, findings: &mut Findings) -> Option<Self> {
        Self::of(String::new(), value, findings)
    }

    fn of(path: String, value: &'a Value, findings: &mut Findings) -> Option<Self> {
        if let Value::Object(fields) = value {
            return Some(Self { path, fields });
        }
        findings.wrong_type(path, value, "an object in braces");
        None
    }

    /// The path of a field.
    pub(super) fn at(&self, field: &str) -> String {
        match self.path.as_str() {
            "" => field.to_owned(),
            path => format!("{path}.{field}"),
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// A field that is there; null is as good as absent, as the deployer has it.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    pub(super) fn section(&self, field: &str, findings: &mut Findings) -> Option<Self> {
        Self::of(self.at(field), self.get(field)?, findings)
    }

    /// The objects of a list; none when it is absent.
    pub(super) fn list(&self, field: &str, findings: &mut Findings) -> Vec<Self> {
        let path = self.at(field);
        match self.get(field) {
            None => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| Self::of(format!("{path}[{index}]"), item, findings))
                .collect(),
            Some(other) => {
                findings.wrong_type(path, other, "a list in square brackets");
                Vec::new()
            }
        }
    }

    pub(super) fn text(&self, field: &str, findings: &mut Findings) -> Option<&'a str> {
        match self.get(field)? {
            Value::String(text) => Some(text),
            other => {
                findings.wrong_type(self.at(field), other, "it in quotes");
                None
            }
        }
    }

    /// The same for one that must be there; `fix` says what to write.
    pub(super) fn needed_text(
        &self,
        field: &str,
        fix: &str,
        findings: &mut Findings,
    ) -> Option<&'a str> {
        if !self.has(field) {
            findings.mistake(self.at(field), "is missing", fix);
        }
        self.text(field, findings)
    }

    pub(super) fn flag(&self, field: &str, findings: &mut Findings) -> Option<bool> {
        match self.get(field)? {
            Value::Bool(flag) => Some(*flag),
            other => {
                findings.wrong_type(self.at(field), other, "true or false, without quotes");
                None
            }
        }
    }

    /// Remembers fields that are not among these.
    pub(super) fn knows(&self, known: &[&str], findings: &mut Findings) {
        let unknown = self
            .fields
            .keys()
            .filter(|field| !known.contains(&field.as_str()))
            .map(|field| self.at(&shown(field)));
        findings.unknown.extend(unknown);
    }
}

/// A field's name, which may hold anything, on one line.
fn shown(field: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-$".contains(c);
    if field.len() <= 64 && field.chars().all(plain) {
        field.to_owned()
    } else {
        let start: String = field.chars().take(64).collect();
        format!("{start:?}")
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
