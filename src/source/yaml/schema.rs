//! Checks a document against the structural schema of its kind, as the Kubernetes API server would.
//!
//! serde stops at the first mistake and knows no bounds; this walks the whole tree, so that a person sees all
//! mistakes at once, each with its field, its line, what was found and how to mend it. Rules across fields
//! (CEL) and across objects are not checked here.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::Value as Json;

use super::document::{Node, Value};

/// A mistake at one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldProblem {
    /// Field path such as `spec.rules[0].backends`.
    pub(crate) path: String,
    /// Line in the file, if known.
    pub(crate) line: Option<u64>,
    /// `UnknownField`, `WrongType`, `MissingField`, `InvalidValue` or `DuplicateValue`.
    pub(crate) reason: &'static str,
    /// What is wrong.
    pub(crate) message: String,
    /// How to mend it, if that is known.
    pub(crate) hint: Option<String>,
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Checks the node against the schema and returns every mistake, in the order of the text.
pub(crate) fn check(node: &Node, schema: &Json) -> Vec<FieldProblem> {
    let mut checker = Checker {
        path: String::new(),
        problems: Vec::new(),
    };
    checker.check(node, schema);
    checker.problems
}

/// The candidate that the person most likely meant, if any is near.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wanted = name.to_ascii_lowercase();
    let allowed = (wanted.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_ascii_lowercase();
            let mut distance = strsim::damerau_levenshtein(&wanted, &lower);
            // `hosts` for `hostnames`: what was written is the start of the right name.
            if distance > allowed
                && wanted.len() >= 4
                && (lower.starts_with(&wanted) || wanted.starts_with(&lower))
            {
                distance = allowed;
            }
            // `host` for `hostnames`, `hosts`: the singular or a shared stem.
            if distance > allowed
                && wanted.len() >= 4
                && lower.starts_with(wanted.trim_end_matches('s'))
            {
                distance = allowed;
            }
            (distance, candidate)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

struct Checker {
    path: String,
    problems: Vec<FieldProblem>,
}

impl Checker {
    fn check(&mut self, node: &Node, schema: &Json) {
        if matches!(node.value, Value::Null) {
            // The API server drops nulls of optional fields; a required one is told by its parent.
            return;
        }
        if schema
            .get("x-kubernetes-int-or-string")
            .and_then(Json::as_bool)
            == Some(true)
        {
            if !matches!(&node.value, Value::String(_) | Value::Number(_)) {
                self.wrong_type(node, "an integer or a string");
            }
            return;
        }
        match schema.get("type").and_then(Json::as_str) {
            Some("object") => self.object(node, schema),
            Some("array") => self.list(node, schema),
            Some("string") => self.string(node, schema),
            Some("integer") => self.integer(node, schema),
            Some("number") => match &node.value {
                Value::Number(number) => self.bounds(node, number.as_f64(), schema),
                _ => self.wrong_type(node, "a number"),
            },
            Some("boolean") if !matches!(node.value, Value::Bool(_)) => {
                self.wrong_type(node, "true or false");
            }
            _ => {}
        }
    }

    fn object(&mut self, node: &Node, schema: &Json) {
        let Value::Map(entries) = &node.value else {
            self.wrong_type(node, "a mapping");
            return;
        };
        let properties = schema.get("properties").and_then(Json::as_object);
        let additional = schema.get("additionalProperties");
        let open = schema
            .get("x-kubernetes-preserve-unknown-fields")
            .and_then(Json::as_bool)
            == Some(true);
        // Names that a misspelt field stands for; they are not told again as missing.
        let mut meant = Vec::new();
        for (key, value) in entries {
            let length = self.path.len();
            self.enter(&key.text);
            match (
                properties.and_then(|properties| properties.get(&key.text)),
                additional,
            ) {
                (Some(property), _) => self.check(value, property),
                (None, Some(Json::Bool(true))) => {}
                (None, Some(other)) if other.is_object() => self.check(value, other),
                (None, _) if open || properties.is_none() => {}
                (None, _) => {
                    let known = properties
                        .into_iter()
                        .flatten()
                        .map(|(name, _)| name.as_str());
                    meant.extend(self.unknown(&key.text, key.line, known));
                }
            }
            self.path.truncate(length);
        }
        for required in schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
        {
            let given = entries
                .iter()
                .any(|(key, value)| key.text == required && !matches!(value.value, Value::Null));
            if !given && !meant.contains(&required) {
                let length = self.path.len();
                self.enter(required);
                let hint = properties
                    .and_then(|properties| properties.get(required))
                    .and_then(|property| property.get("description"))
                    .and_then(Json::as_str)
                    .map(first_sentence);
                self.problem(node.line, "MissingField", "is missing".to_owned(), hint);
                self.path.truncate(length);
            }
        }
    }

    fn list(&mut self, node: &Node, schema: &Json) {
        let Value::List(items) = &node.value else {
            self.wrong_type(node, "a list");
            return;
        };
        self.size(node, items.len(), "item", schema, "minItems", "maxItems");
        if let Some(item_schema) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                let length = self.path.len();
                let _ = write!(self.path, "[{index}]");
                if matches!(item.value, Value::Null) {
                    self.problem(
                        item.line,
                        "WrongType",
                        "is empty (null)".to_owned(),
                        Some("remove the item or give it a value".to_owned()),
                    );
                } else {
                    self.check(item, item_schema);
                }
                self.path.truncate(length);
            }
        }
        self.duplicates(items, schema);
    }

    fn duplicates(&mut self, items: &[Node], schema: &Json) {
        let keys: Vec<&str> = schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        let identity =
            |item: &Node| match schema.get("x-kubernetes-list-type").and_then(Json::as_str) {
                Some("set") => Some(item.to_json().to_string()),
                Some("map") => keys
                    .iter()
                    .map(|key| item.get(key).map(|value| value.to_json().to_string()))
                    .collect::<Option<Vec<_>>>()
                    .map(|values| values.join(", ")),
                _ => None,
            };
        let mut seen: Vec<(String, usize)> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(value) = identity(item) else {
                continue;
            };
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == value) {
                let length = self.path.len();
                let _ = write!(self.path, "[{index}]");
                self.problem(
                    item.line,
                    "DuplicateValue",
                    format!("repeats {value} of item {first}"),
                    Some("remove one of the two".to_owned()),
                );
                self.path.truncate(length);
            } else {
                seen.push((value, index));
            }
        }
    }

    fn string(&mut self, node: &Node, schema: &Json) {
        let Value::String(text) = &node.value else {
            self.wrong_type(node, "a string");
            return;
        };
        if let Some(allowed) = schema.get("enum").and_then(Json::as_array) {
            let allowed: Vec<&str> = allowed.iter().filter_map(Json::as_str).collect();
            if !allowed.contains(&text.as_str()) {
                let hint = match nearest(text, allowed.iter().copied()) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("it is one of {}", allowed.join(", ")),
                };
                self.problem(
                    node.line,
                    "InvalidValue",
                    format!("{text:?} is not a value it can have"),
                    Some(hint),
                );
                return;
            }
        }
        let count = text.chars().count();
        self.size(node, count, "character", schema, "minLength", "maxLength");
        if let Some(pattern) = schema.get("pattern").and_then(Json::as_str)
            && !matches(pattern, text)
        {
            let hint = schema
                .get("description")
                .and_then(Json::as_str)
                .map_or_else(|| format!("it must match {pattern}"), first_sentence);
            self.problem(
                node.line,
                "InvalidValue",
                format!("{:?} is not a valid value", shortened(text)),
                Some(hint),
            );
        }
    }

    fn integer(&mut self, node: &Node, schema: &Json) {
        match &node.value {
            Value::Number(number) if number.is_i64() || number.is_u64() => {
                self.bounds(node, number.as_f64(), schema);
            }
            _ => self.wrong_type(node, "an integer"),
        }
    }

    fn bounds(&mut self, node: &Node, found: Option<f64>, schema: &Json) {
        let bound = |name| schema.get(name).and_then(Json::as_f64);
        let (low, high) = (bound("minimum"), bound("maximum"));
        let Some(found) = found else { return };
        if low.is_some_and(|low| found < low) || high.is_some_and(|high| found > high) {
            let hint = match (low, high) {
                (Some(low), Some(high)) => format!("it may be {low} to {high}"),
                (Some(low), None) => format!("it must be at least {low}"),
                (None, Some(high)) => format!("it may be at most {high}"),
                (None, None) => return,
            };
            self.problem(
                node.line,
                "InvalidValue",
                format!("{found} is out of range"),
                Some(hint),
            );
        }
    }

    fn size(
        &mut self,
        node: &Node,
        found: usize,
        unit: &str,
        schema: &Json,
        low: &str,
        high: &str,
    ) {
        let bound = |name| schema.get(name).and_then(Json::as_u64);
        let found = found as u64;
        if let Some(low) = bound(low)
            && found < low
        {
            let message = if found == 0 {
                "is empty".to_owned()
            } else {
                format!("has {}", plural(found, unit))
            };
            let hint = format!("give it at least {}", plural(low, unit));
            self.problem(node.line, "InvalidValue", message, Some(hint));
        }
        if let Some(high) = bound(high)
            && found > high
        {
            self.problem(
                node.line,
                "InvalidValue",
                format!("has {}", plural(found, unit)),
                Some(format!("it may have at most {}", plural(high, unit))),
            );
        }
    }

    fn wrong_type(&mut self, node: &Node, expected: &str) {
        let found = match &node.value {
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Number(value) => format!("the number {value}"),
            // Never the text: it may be a credential in the wrong place.
            _ => node.type_name().to_owned(),
        };
        let hint = match (&node.value, expected) {
            (Value::Bool(_) | Value::Number(_), "a string") => Some("put it in quotes".to_owned()),
            (Value::String(_), "an integer" | "a number" | "true or false") => {
                Some("write it without quotes".to_owned())
            }
            (Value::Map(_) | Value::String(_) | Value::Number(_), "a list") => {
                Some("put `- ` in front of each item".to_owned())
            }
            _ => None,
        };
        self.problem(
            node.line,
            "WrongType",
            format!("should be {expected}, found {found}"),
            hint,
        );
    }

    fn unknown<'a>(
        &mut self,
        name: &str,
        line: u64,
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<&'a str> {
        let near = nearest(name, known.clone());
        let hint = if let Some(near) = near {
            format!("did you mean {near:?}?")
        } else {
            let mut names: Vec<&str> = known.collect();
            names.sort_unstable();
            format!("known here: {}", names.join(", "))
        };
        self.problem(
            line,
            "UnknownField",
            "is not a known field".to_owned(),
            Some(hint),
        );
        near
    }

    fn enter(&mut self, key: &str) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(key);
    }

    fn problem(&mut self, line: u64, reason: &'static str, message: String, hint: Option<String>) {
        self.problems.push(FieldProblem {
            path: self.path.clone(),
            line: (line > 0).then_some(line),
            reason,
            message,
            hint,
        });
    }
}

/// Whether the text matches the schema's pattern. A folder of many objects asks for few patterns often, and
/// compiling one takes far longer than matching it.
fn matches(pattern: &str, text: &str) -> bool {
    static COMPILED: LazyLock<Mutex<HashMap<String, Option<regex::Regex>>>> =
        LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if !compiled.contains_key(pattern) {
        compiled.insert(pattern.to_owned(), regex::Regex::new(pattern).ok());
    }
    compiled
        .get(pattern)
        .and_then(Option::as_ref)
        .is_none_or(|regex| regex.is_match(text))
}

fn plural(count: u64, unit: &str) -> String {
    match count {
        1 => format!("one {unit}"),
        _ => format!("{count} {unit}s"),
    }
}

fn first_sentence(text: &str) -> String {
    let line = text.split("\n\n").next().unwrap_or_default();
    let line = line.replace('\n', " ");
    match line.find(". ") {
        Some(end) => line[..end].to_owned(),
        None => line.trim_end_matches('.').to_owned(),
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 {
        return text.to_owned();
    }
    let start: String = text.chars().take(60).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::document::split;
    use super::*;

    fn schema() -> Json {
        json!({
            "type": "object",
            "required": ["spec"],
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["hostnames"],
                    "properties": {
                        "hostnames": {"type": "array", "minItems": 1, "x-kubernetes-list-type": "set", "items": {"type": "string", "pattern": "^[a-z.*]+$"}},
                        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                        "enabled": {"type": "boolean"},
                        "mode": {"type": "string", "enum": ["Terminate", "Passthrough"]},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "anyPort": {"x-kubernetes-int-or-string": true},
                        "mappings": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                    }
                }
            }
        })
    }

    #[track_caller]
    fn problems(text: &str) -> Vec<String> {
        let node = split(text)[0].parse().unwrap();
        check(&node, &schema())
            .into_iter()
            .map(|problem| {
                format!(
                    "{}:{} {} [{}] {}",
                    problem.line.unwrap_or(0),
                    problem.path,
                    problem.message,
                    problem.reason,
                    problem.hint.unwrap_or_default()
                )
            })
            .collect()
    }

    #[test]
    fn a_right_document_has_no_problem() {
        let text = "spec:\n  hostnames: [a.b, c.d]\n  port: 80\n  enabled: true\n  mode: Terminate\n  labels: {x: z}\n  anyPort: http\n  mappings: [{name: a}, {name: b}]\n";
        assert_eq!(problems(text), Vec::<String>::new());
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "spec:\n  hostname: [a]\n  port: '80'\n  enabled: 1\n  mode: terminate\n  labels:\n    x: 1\n  mappings: [{name: a}, {name: a}]\n  zzz: 1\n";
        assert_eq!(
            problems(text),
            [
                "2:spec.hostname is not a known field [UnknownField] did you mean \"hostnames\"?",
                "3:spec.port should be an integer, found a string [WrongType] write it without quotes",
                "4:spec.enabled should be true or false, found the number 1 [WrongType] ",
                "5:spec.mode \"terminate\" is not a value it can have [InvalidValue] did you mean \"Terminate\"?",
                "7:spec.labels.x should be a string, found the number 1 [WrongType] put it in quotes",
                "8:spec.mappings[1] repeats \"a\" of item 0 [DuplicateValue] remove one of the two",
                "9:spec.zzz is not a known field [UnknownField] known here: anyPort, enabled, hostnames, labels, mappings, mode, port",
            ]
        );
    }

    #[test]
    fn bounds_and_patterns_are_checked() {
        assert_eq!(
            problems("spec:\n  hostnames: [A, b, b]\n  port: 70000\n"),
            [
                "2:spec.hostnames[0] \"A\" is not a valid value [InvalidValue] it must match ^[a-z.*]+$",
                "2:spec.hostnames[2] repeats \"b\" of item 1 [DuplicateValue] remove one of the two",
                "3:spec.port 70000 is out of range [InvalidValue] it may be 1 to 65535",
            ]
        );
        assert_eq!(
            problems("spec:\n  hostnames: []\n"),
            ["2:spec.hostnames is empty [InvalidValue] give it at least one item"]
        );
        assert_eq!(
            problems("spec:\n  hostnames: a\n"),
            [
                "2:spec.hostnames should be a list, found a string [WrongType] put `- ` in front of each item"
            ]
        );
        assert_eq!(
            problems("spec:\n  port: 1\n"),
            ["2:spec.hostnames is missing [MissingField] "]
        );
    }

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["hostnames", "rules", "tls", "timeouts", "backends"];
        for (written, expected) in [
            ("hostname", Some("hostnames")),
            ("hosts", Some("hostnames")),
            ("Hostnames", Some("hostnames")),
            ("ruels", Some("rules")),
            ("backend", Some("backends")),
            ("timeout", Some("timeouts")),
            ("quux", None),
        ] {
            assert_eq!(nearest(written, known), expected, "{written}");
        }
    }
}
