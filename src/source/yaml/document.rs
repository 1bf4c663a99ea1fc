//! One YAML or JSON document as a tree that remembers where each value stands.
//!
//! Text is cut into documents before it is parsed, so that a syntax error in one leaves the others alone. The
//! tree is checked against a schema ([`super::schema`]) and only then turned into typed objects: every
//! problem can name its line and field, and all problems are found at once.
//!
//! Values may be credentials: no type here prints its content.

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A document as it stands in its file.
pub(crate) struct RawDocument<'a> {
    /// Position in the file, from 1; empty documents are not counted.
    pub(crate) number: usize,
    /// Line of the file on which the text begins, from 1.
    pub(crate) first_line: u64,
    /// The document without its `---`.
    pub(crate) text: &'a str,
}

/// A value with its place.
pub(crate) struct Node {
    /// The value.
    pub(crate) value: Value,
    /// Line in the file, from 1; 0 when unknown.
    pub(crate) line: u64,
}

/// What YAML and JSON can say.
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    List(Vec<Node>),
    /// In the order of the text; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping with its place.
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) line: u64,
}

/// Why a document cannot be read at all.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    /// Line in the file, if known.
    pub(crate) line: Option<u64>,
    /// Column, from 1, if known.
    pub(crate) column: Option<u64>,
    /// What is wrong.
    pub(crate) message: String,
}

/// Cuts a file into its documents. A line that begins with `---` always ends a document, even inside a block
/// scalar (YAML 1.2 §9.1.2), so this needs no parser. Documents of nothing but comments are left out.
pub(crate) fn split(text: &str) -> Vec<RawDocument<'_>> {
    let mut documents = Vec::new();
    let mut begin = 0;
    let mut first_line = 1;
    let mut offset = 0;
    let mut push = |text: &'_ str, range: std::ops::Range<usize>, first_line: u64| {
        let (start, end) = (range.start, range.end);
        if has_content(&text[start..end]) {
            documents.push((start, end, first_line));
        }
    };
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        let bare = content.trim_end_matches(['\n', '\r']);
        if let Some(rest) = bare.strip_prefix("---")
            && (rest.is_empty() || rest.starts_with([' ', '\t']))
        {
            push(text, begin..offset, first_line);
            // What follows the marker on its line belongs to the document.
            begin = offset + 3;
            first_line = line;
        } else if bare == "..." {
            push(text, begin..offset, first_line);
            begin = offset + content.len();
            first_line = line + 1;
        }
        offset += content.len();
    }
    push(text, begin..text.len(), first_line);
    (1..)
        .zip(documents)
        .map(|(number, (start, end, first_line))| RawDocument {
            number,
            first_line,
            text: &text[start..end],
        })
        .collect()
}

fn has_content(text: &str) -> bool {
    text.lines()
        .map(str::trim_start)
        .any(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with('%'))
}

impl RawDocument<'_> {
    /// Whether it says that it is a list of objects; a look at the text, before anything is parsed.
    pub(crate) fn is_list(&self) -> bool {
        self.text.lines().any(|line| {
            let line = line.trim_end_matches([',', ' ', '\r']);
            let kind = line.strip_prefix("kind:").or_else(|| {
                let json = line.trim_start().trim_start_matches('{').trim_start();
                json.strip_prefix("\"kind\":")
            });
            kind.is_some_and(|kind| kind.trim_matches([' ', '"', '\'']).ends_with("List"))
        })
    }

    /// Parses the text into a tree whose lines count from the start of the file.
    pub(crate) fn parse(&self) -> Result<Node, SyntaxError> {
        // The parser's own bounds are meant for one configuration; a list of ten thousand objects is fine here,
        // where the size of a file is bounded before.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_events: 20_000_000, max_nodes: 10_000_000 },
        };
        let parsed = serde_saphyr::from_str_with_options(self.text, options);
        let mut node: Node = parsed.map_err(|error| {
            let location = error.location();
            SyntaxError {
                line: location.map(|location| location.line() + self.first_line - 1),
                column: location.map(|location| location.column()),
                message: first_line_of(&error.without_snippet().to_string()),
            }
        })?;
        node.shift(self.first_line - 1);
        Ok(node)
    }
}

/// The parser's messages may carry a picture of the text, which may be a credential: only the first line,
/// without the position that is told apart, is passed on.
fn first_line_of(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match line.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest.to_owned(),
        _ => match line.find(" at line ") {
            Some(end) => line[..end].to_owned(),
            None => line.to_owned(),
        },
    }
}

impl Node {
    fn shift(&mut self, lines: u64) {
        if lines == 0 {
            return;
        }
        if self.line > 0 {
            self.line += lines;
        }
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => {
                for (key, value) in entries {
                    key.line += lines;
                    value.shift(lines);
                }
            }
            _ => {}
        }
    }

    /// The value under a key of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(name, _)| name.text == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text of a string value.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list.
    pub(crate) fn into_list(self) -> Vec<Self> {
        match self.value {
            Value::List(items) => items,
            _ => Vec::new(),
        }
    }

    /// Removes a key of a mapping and returns its value.
    pub(crate) fn take(&mut self, key: &str) -> Option<Self> {
        match &mut self.value {
            Value::Map(entries) => {
                let at = entries.iter().position(|(name, _)| name.text == key)?;
                Some(entries.remove(at).1)
            }
            _ => None,
        }
    }

    /// Adds a string under a key that a mapping does not have.
    pub(crate) fn default_entry(&mut self, key: &str, text: &str) {
        if self.get(key).is_some() {
            return;
        }
        let line = self.line;
        if let Value::Map(entries) = &mut self.value {
            let key = Key {
                text: key.to_owned(),
                line,
            };
            let value = Value::String(text.to_owned());
            entries.push((key, Self { value, line }));
        }
    }

    /// Line of the value, if known.
    pub(crate) fn line(&self) -> Option<u64> {
        (self.line > 0).then_some(self.line)
    }

    /// The line of a field such as `spec.rules[0].backends`, or of the nearest parent that is there.
    pub(crate) fn line_of(&self, path: &str) -> Option<u64> {
        let mut here = self;
        let mut line = self.line;
        for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            let next = match &here.value {
                Value::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| key.text == step)
                    .map(|(key, value)| (key.line, value)),
                Value::List(items) => step
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get(index))
                    .map(|item| (item.line, item)),
                _ => None,
            };
            let Some((found, node)) = next else { break };
            if found > 0 {
                line = found;
            }
            here = node;
        }
        (line > 0).then_some(line)
    }

    /// What kind of value it is, in the words of the schema.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(number) if number.is_f64() => "a number",
            Value::Number(_) => "an integer",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// Bytes of all keys and values together.
    pub(crate) fn text_bytes(&self) -> usize {
        match &self.value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 4,
            Value::String(text) => text.len(),
            Value::List(items) => items.iter().map(Self::text_bytes).sum(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, value)| key.text.len() + value.text_bytes())
                .sum(),
        }
    }

    /// A value that stands nowhere.
    pub(crate) fn from_json(json: &serde_json::Value) -> Self {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(value) => Value::Number(value.clone()),
            serde_json::Value::String(value) => Value::String(value.clone()),
            serde_json::Value::Array(items) => {
                Value::List(items.iter().map(Self::from_json).collect())
            }
            serde_json::Value::Object(entries) => Value::Map(
                (entries.iter())
                    .map(|(key, value)| {
                        let text = key.clone();
                        (Key { text, line: 0 }, Self::from_json(value))
                    })
                    .collect(),
            ),
        };
        Self { value, line: 0 }
    }

    /// The same without places.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(value) => serde_json::Value::Number(value.clone()),
            Value::String(value) => value.clone().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, value)| (key.text.clone(), value.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a mapping, a list or a plain value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("numbers must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let key = Key {
                line: key.referenced.line(),
                text: key.value,
            };
            entries.push((key, access.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Node {
        let documents = split(text);
        documents[0]
            .parse()
            .unwrap_or_else(|error| panic!("{error:?}"))
    }

    #[test]
    fn documents_are_cut_with_their_lines() {
        let text = "# comment only\n---\na: 1\n--- # second\nb: |\n  x\n\n...\n---\n\n--- {c: 3}\n";
        let documents = split(text);
        let shown: Vec<_> = documents
            .iter()
            .map(|document| {
                (
                    document.number,
                    document.parse().unwrap().to_json().to_string(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (1, r#"{"a":1}"#.to_owned()),
                (2, r#"{"b":"x\n"}"#.to_owned()),
                (3, r#"{"c":3}"#.to_owned()),
            ]
        );
        assert_eq!(documents[0].parse().unwrap().line_of("a"), Some(3));
        assert_eq!(documents[1].parse().unwrap().line_of("b"), Some(5));
        assert_eq!(documents[2].parse().unwrap().line_of("c"), Some(11));
    }

    #[test]
    fn values_keep_type_and_line() {
        // A plain `yes` is a boolean, as kubectl reads it.
        let node = parse("a:\n  - 'yes'\n  - yes\n  - 1\n  - 1.5\n  - null\n  - b: x\n");
        assert_eq!(
            node.to_json().to_string(),
            r#"{"a":["yes",true,1,1.5,null,{"b":"x"}]}"#
        );
        assert_eq!(node.line_of("a[2]"), Some(4));
        assert_eq!(node.line_of("a[5].b"), Some(7));
        assert_eq!(node.line_of("a[5].b.c.d"), Some(7));
    }

    #[test]
    fn a_syntax_error_names_its_line_in_the_file() {
        let text = "ok: 1\n---\nfine: 1\nbad: [1, 2\nmore: 3\n";
        let documents = split(text);
        assert!(documents[0].parse().is_ok());
        let error = documents[1].parse().err().unwrap();
        assert!(error.line.unwrap() >= 4, "{error:?}");
        assert!(!error.message.contains('\n'), "{error:?}");
    }

    #[test]
    fn duplicate_keys_are_refused() {
        let error = split("a: 1\na: 2\n")[0].parse().err().unwrap();
        assert!(error.message.contains("duplicate"), "{error:?}");
        assert_eq!(error.line, Some(2));
    }

    #[test]
    fn json_is_read_too() {
        assert_eq!(
            parse("{\"a\": [true, \"\\u00e4\"]}").to_json().to_string(),
            "{\"a\":[true,\"ä\"]}"
        );
    }
}
