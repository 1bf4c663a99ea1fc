//! Pure: the text of one document and what it shall say, to a text that says it and is otherwise as it was.
//!
//! What differs is found value by value, so that comments, order and style stay wherever nothing changed. The
//! result is read again and compared before anybody gets it: a document that is written in a way which cannot
//! be edited in place is refused, never spoiled.

use serde_json::{Map, Value as Json};
use yamlpatch::{Op, Patch, apply_yaml_patches};
use yamlpath::{Component, Document, Feature, Route};

use crate::source::yaml::document;

/// Why a document was not edited.
#[derive(Debug, thiserror::Error)]
pub(super) enum PatchError {
    #[error("it is not readable as YAML")]
    Unreadable,
    #[error("the way it is written cannot be edited without touching other parts of it")]
    Unusual,
}

/// The document with `new` in place of `old` under the path of keys and indices that `base` is.
pub(super) fn patch(
    text: &str,
    base: &[Step],
    old: &Json,
    new: &Json,
) -> Result<String, PatchError> {
    let before = json_of(text).ok_or(PatchError::Unreadable)?;
    let mut wanted = before;
    *at_mut(&mut wanted, base).ok_or(PatchError::Unreadable)? = new.clone();
    // The finer an edit, the more stays as it was; the coarser, the more ways of writing it can cope with.
    for depth in [Depth::Values, Depth::Items, Depth::Sections] {
        let mut changes = Vec::new();
        changes_of(old, new, &mut base.to_vec(), depth, &mut changes);
        if changes.is_empty() {
            return Ok(text.to_owned());
        }
        if let Some(patched) = apply(text, &changes)
            && json_of(&patched).as_ref() == Some(&wanted)
        {
            return Ok(patched);
        }
    }
    Err(PatchError::Unusual)
}

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// How fine an edit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Each value for itself.
    Values,
    /// Items of lists as a whole.
    Items,
    /// Lists, and everything else below `spec`, as a whole.
    Sections,
}

#[derive(Debug)]
enum Change {
    Replace(Vec<Step>, Json),
    Add(Vec<Step>, String, Json),
    Append(Vec<Step>, Json),
    Remove(Vec<Step>),
}

fn changes_of(
    old: &Json,
    new: &Json,
    path: &mut Vec<Step>,
    depth: Depth,
    changes: &mut Vec<Change>,
) {
    match (old, new) {
        _ if old == new => {}
        (Json::Object(old), Json::Object(new)) if !new.is_empty() => {
            for (key, before) in old {
                path.push(Step::Key(key.clone()));
                match new.get(key) {
                    Some(after) => changes_of(before, after, path, depth, changes),
                    None => changes.push(Change::Remove(path.clone())),
                }
                path.pop();
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                changes.push(Change::Add(path.clone(), key.clone(), value.clone()));
            }
        }
        (Json::Array(before), Json::Array(after))
            if depth != Depth::Sections && !before.is_empty() && !after.is_empty() =>
        {
            items(before, after, path, depth, changes);
        }
        _ => changes.push(Change::Replace(path.clone(), new.clone())),
    }
}

/// Lists whose items have names are compared by name (`x-kubernetes-list-map-keys`); others stay a whole.
fn items(
    old: &[Json],
    new: &[Json],
    path: &mut Vec<Step>,
    depth: Depth,
    changes: &mut Vec<Change>,
) {
    let name = |item: &Json| item.get("name").and_then(Json::as_str).map(str::to_owned);
    let names = |items: &[Json]| items.iter().map(name).collect::<Option<Vec<_>>>();
    let (Some(before), Some(after)) = (names(old), names(new)) else {
        changes.push(Change::Replace(path.clone(), Json::Array(new.to_vec())));
        return;
    };
    let mut removed = Vec::new();
    for (index, (name, item)) in before.iter().zip(old).enumerate() {
        path.push(Step::Index(index));
        match after.iter().position(|other| other == name) {
            Some(at) if depth == Depth::Values => {
                changes_of(item, &new[at], path, depth, changes);
            }
            Some(at) if *item != new[at] => {
                changes.push(Change::Replace(path.clone(), new[at].clone()));
            }
            Some(_) => {}
            None => removed.push(Change::Remove(path.clone())),
        }
        path.pop();
    }
    for (name, item) in after.iter().zip(new) {
        if !before.contains(name) {
            changes.push(Change::Append(path.clone(), item.clone()));
        }
    }
    // The last first, so that the numbers of those before stay right.
    changes.extend(removed.into_iter().rev());
}

fn apply(text: &str, changes: &[Change]) -> Option<String> {
    let mut document = Document::new(text).ok()?;
    for change in changes {
        let (at, operation) = match change {
            Change::Replace(at, value) => (at, Op::Replace(yaml(value)?)),
            Change::Add(at, key, value) => (
                at,
                Op::Add {
                    key: key.clone(),
                    value: yaml(value)?,
                },
            ),
            // The library's own ways run into comments that follow.
            Change::Append(path, value) => {
                document = Document::new(appended(&document, path, value)?).ok()?;
                continue;
            }
            Change::Remove(path) => {
                document = Document::new(removed(&document, path)?).ok()?;
                continue;
            }
        };
        let patch = Patch {
            route: route(at),
            operation,
        };
        document = apply_yaml_patches(&document, &[patch]).ok()?;
    }
    Some(document.source().to_owned())
}

/// The text with one item more at the end of a list in block style.
fn appended(document: &Document, path: &[Step], value: &Json) -> Option<String> {
    let text = document.source();
    let list = document.query_exact(&route(path)).ok()??;
    let (start, _) = list.location.byte_span;
    let end = content_end(document, &list);
    let indent = indent_of(text, start);
    if !text[start..].starts_with('-') {
        return None;
    }
    let mut item = String::new();
    for (index, line) in yaml_serde::to_string(value).ok()?.lines().enumerate() {
        item += "\n";
        item += indent;
        item += if index == 0 { "- " } else { "  " };
        item += line;
    }
    let (before, after) = text.split_at(line_end(text, end));
    Some(format!("{before}{item}{after}"))
}

/// The text without an item of a list or a member of a mapping, each on lines of its own, and without the
/// comment that stands directly above it.
fn removed(document: &Document, path: &[Step]) -> Option<String> {
    let text = document.source();
    let feature = document.query_pretty(&route(path)).ok()?;
    let (start, _) = feature.location.byte_span;
    let mut first = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let lead = text[first..start].trim_start();
    let own_lines = match path.last()? {
        Step::Index(_) => lead
            .strip_prefix('-')
            .is_some_and(|rest| rest.trim().is_empty()),
        Step::Key(_) => lead.is_empty(),
    };
    if !own_lines {
        return None;
    }
    let indent = indent_of(text, start);
    while let Some(above) = text[..first].strip_suffix('\n') {
        let begin = above.rfind('\n').map_or(0, |at| at + 1);
        let comment = above[begin..].strip_prefix(indent);
        if !comment.is_some_and(|comment| comment.starts_with('#')) {
            break;
        }
        first = begin;
    }
    let mut end = line_end(text, content_end(document, &feature));
    end += usize::from(text[end..].starts_with('\n'));
    // Of two blank lines around it one is enough.
    if text[..first].ends_with("\n\n") && text[end..].starts_with('\n') {
        end += 1;
    }
    Some(format!("{}{}", &text[..first], &text[end..]))
}

/// Where a value ends, without the blank lines and comments that the parser counts to it.
fn content_end(document: &Document, feature: &Feature<'_>) -> usize {
    let (start, end) = feature.location.byte_span;
    let mut text = document.source()[start..end].trim_end();
    while let Some((above, last)) = text.rsplit_once('\n')
        && last.trim_start().starts_with('#')
    {
        text = above.trim_end();
    }
    start + text.len()
}

fn line_end(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    at + rest.find('\n').unwrap_or(rest.len())
}

/// The blanks at the beginning of the line.
fn indent_of(text: &str, at: usize) -> &str {
    let begin = text[..at].rfind('\n').map_or(0, |at| at + 1);
    let line = &text[begin..];
    &line[..line.len() - line.trim_start_matches(' ').len()]
}

fn route(path: &[Step]) -> Route<'static> {
    path.iter().fold(Route::default(), |route, step| {
        route.with_keys([match step {
            Step::Key(key) => Component::Key(key.clone().into()),
            Step::Index(index) => Component::Index(*index),
        }])
    })
}

fn yaml(value: &Json) -> Option<yaml_serde::Value> {
    yaml_serde::to_value(value).ok()
}

/// What the text says, if it is exactly one document.
fn json_of(text: &str) -> Option<Json> {
    match &document::split(text)[..] {
        [only] => Some(only.parse().ok()?.to_json()),
        _ => None,
    }
}

fn at_mut<'a>(root: &'a mut Json, path: &[Step]) -> Option<&'a mut Json> {
    path.iter().try_fold(root, |here, step| match step {
        Step::Key(key) => here
            .as_object_mut()
            .and_then(|map: &mut Map<_, _>| map.get_mut(key)),
        Step::Index(index) => here.as_array_mut().and_then(|items| items.get_mut(*index)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AGENT: &str = "\
# The house.
apiVersion: edge.tidegate.dev/v1alpha1
kind: TunnelAgent
metadata:
  name: homelab   # as on the label
spec:
  credential: {secretName: homelab-agent}
  allowedHostnames: [\"*.home.example.com\"]
  mappings:
    # The disk station.
    - name: nas
      hostname: nas.home.example.com # not the old one
      target: https://192.168.1.10:5001
      tls: {insecureSkipVerify: true}

    # Paper.
    - name: printer
      hostname: printer.home.example.com
      target: http://192.168.1.11
# end
";

    fn edited(text: &str, change: impl Fn(&mut Json)) -> Result<String, PatchError> {
        let old = json_of(text).unwrap();
        let mut new = old.clone();
        change(&mut new);
        let patched = patch(text, &[], &old, &new)?;
        assert_eq!(json_of(&patched).unwrap(), new, "{patched}");
        Ok(patched)
    }

    /// Lines that only one of the two has.
    fn difference<'a>(before: &'a str, after: &'a str) -> (Vec<&'a str>, Vec<&'a str>) {
        let gone = before
            .lines()
            .filter(|line| !after.lines().any(|other| other == *line));
        let come = after
            .lines()
            .filter(|line| !before.lines().any(|other| other == *line));
        (gone.map(str::trim).collect(), come.map(str::trim).collect())
    }

    #[test]
    fn a_value_changes_and_nothing_else() {
        let patched = edited(AGENT, |agent| {
            agent["spec"]["mappings"][0]["target"] = json!("https://192.168.1.12:5001");
        });
        let patched = patched.unwrap();
        let (gone, come) = difference(AGENT, &patched);
        assert_eq!(gone, ["target: https://192.168.1.10:5001"]);
        assert_eq!(come, ["target: https://192.168.1.12:5001"]);
    }

    #[test]
    fn items_come_and_go_and_comments_of_others_stay() {
        let patched = edited(AGENT, |agent| {
            let mappings = agent["spec"]["mappings"].as_array_mut().unwrap();
            mappings.push(json!({
                "name": "photos",
                "hostname": "photos.home.example.com",
                "target": "http://192.168.1.20:2342",
                "enabled": false,
            }));
        });
        let patched = patched.unwrap();
        let (gone, come) = difference(AGENT, &patched);
        assert!(gone.is_empty(), "{gone:?}");
        assert_eq!(come.len(), 4, "{patched}");

        let patched = edited(AGENT, |agent| {
            agent["spec"]["mappings"].as_array_mut().unwrap().remove(0);
        });
        let patched = patched.unwrap();
        for kept in ["# The house.", "# as on the label", "# Paper.", "# end"] {
            assert!(patched.contains(kept), "{kept}: {patched}");
        }
        assert!(!patched.contains("192.168.1.10"), "{patched}");
        assert!(!patched.contains("disk station"), "{patched}");

        let patched = edited(AGENT, |agent| {
            agent["spec"]["mappings"].as_array_mut().unwrap().remove(1);
        });
        let patched = patched.unwrap();
        let (gone, come) = difference(AGENT, &patched);
        let printer = [
            "# Paper.",
            "- name: printer",
            "hostname: printer.home.example.com",
            "target: http://192.168.1.11",
        ];
        assert_eq!((gone.as_slice(), come.len()), (printer.as_slice(), 0));
    }

    #[test]
    fn members_are_added_and_taken_away() {
        let patched = edited(AGENT, |agent| {
            let nas = agent["spec"]["mappings"][0].as_object_mut().unwrap();
            nas.insert("enabled".to_owned(), json!(false));
            nas.remove("tls");
        });
        let patched = patched.unwrap();
        assert!(patched.contains("# not the old one"), "{patched}");
        let (gone, come) = difference(AGENT, &patched);
        assert_eq!(gone, ["tls: {insecureSkipVerify: true}"]);
        assert_eq!(come, ["enabled: false"]);
    }

    #[test]
    fn the_first_and_the_last_item_are_cases_of_their_own() {
        let bare = "kind: TunnelAgent\nspec:\n  credential:\n    secretName: x # here\n";
        let item = json!([{"name": "a", "hostname": "a.example.com", "target": "http://a"}]);
        let with = edited(bare, |agent| agent["spec"]["mappings"] = item.clone()).unwrap();
        assert!(with.contains("secretName: x # here"), "{with}");
        let without = edited(&with, |agent| {
            agent["spec"].as_object_mut().unwrap().remove("mappings");
        });
        assert_eq!(without.unwrap(), bare);
    }

    #[test]
    fn other_ways_of_writing_are_edited_too_or_refused() {
        let change = |agent: &mut Json| {
            let mappings = agent["spec"]["mappings"].as_array_mut().unwrap();
            mappings.push(json!({"name": "b", "hostname": "b.example.com", "target": "http://b"}));
        };
        for text in [
            "spec:\n  mappings: [{name: a, hostname: a.example.com, target: 'http://a'}]\n",
            "spec:\n  mappings:\n  - name: a\n    hostname: a.example.com\n    target: http://a",
            "spec:\r\n  mappings:\r\n  - name: a\r\n    hostname: a.example.com\r\n    target: http://a\r\n",
            "spec: {mappings: [{name: a, hostname: a.example.com, target: 'http://a'}]}\n",
            "{\"spec\": {\"mappings\": [{\"name\": \"a\"}]}}",
            "spec:\n  mappings:\n  - &a\n    name: a\n    hostname: a.example.com\n    target: http://a\n",
        ] {
            // What comes out was compared; a refusal is right too.
            match edited(text, change) {
                Ok(_) | Err(PatchError::Unusual) => {}
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }
}
