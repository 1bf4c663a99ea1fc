//! Pure: changes of an agent's mappings, the same for a file and for an API server.

use axum::http::StatusCode;
use serde_json::{Map, Value as Json};
use sha2::{Digest as _, Sha256};

use super::problem::{FieldError, Problem};

/// A change of one mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Name of the mapping.
    pub name: String,
    /// What is done with it.
    pub what: What,
    /// What it must be now, as [`revision`] says; None where it does not matter.
    pub expected: Option<String>,
}

/// What is done with a mapping.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// It begins to be: the whole entry.
    Create(Map<String, Json>),
    /// It says something else from now on: the whole entry.
    Replace(Map<String, Json>),
    /// It is served, or not.
    Enable(bool),
    /// It ceases to be.
    Delete,
}

impl What {
    /// One word.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Create(_) => "created",
            Self::Replace(_) => "replaced",
            Self::Enable(true) => "enabled",
            Self::Enable(false) => "disabled",
            Self::Delete => "deleted",
        }
    }
}

impl Change {
    /// Applies the change to a `spec`, and says where the entry is in the list afterwards.
    pub fn apply(&self, spec: &mut Json) -> Result<Option<usize>, Problem> {
        let at = position(spec, &self.name);
        if let (Some(expected), Some(at)) = (&self.expected, at)
            && *expected != revision(&spec["mappings"][at])
        {
            return Err(Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "Changed",
                "the mapping has changed since it was read; read it again",
            ));
        }
        let missing = || Problem::not_found(&format!("mapping {:?}", self.name));
        match &self.what {
            What::Create(entry) => {
                if at.is_some() {
                    let detail = format!("the agent has a mapping {:?} already", self.name);
                    return Err(Problem::new(StatusCode::CONFLICT, "AlreadyExists", detail));
                }
                let mut entry = entry.clone();
                entry.insert("name".to_owned(), self.name.clone().into());
                match &mut spec["mappings"] {
                    Json::Array(mappings) => mappings.push(entry.into()),
                    none => *none = Json::Array(vec![entry.into()]),
                }
                Ok(position(spec, &self.name))
            }
            What::Replace(entry) => {
                let at = at.ok_or_else(missing)?;
                let mut entry = entry.clone();
                entry.insert("name".to_owned(), self.name.clone().into());
                spec["mappings"][at] = entry.into();
                Ok(Some(at))
            }
            What::Enable(enabled) => {
                let at = at.ok_or_else(missing)?;
                spec["mappings"][at]["enabled"] = (*enabled).into();
                Ok(Some(at))
            }
            What::Delete => {
                let at = at.ok_or_else(missing)?;
                if let Json::Array(mappings) = &mut spec["mappings"] {
                    mappings.remove(at);
                    if mappings.is_empty()
                        && let Json::Object(spec) = spec
                    {
                        // The schema knows no empty list.
                        spec.remove("mappings");
                    }
                }
                Ok(None)
            }
        }
    }
}

fn position(spec: &Json, name: &str) -> Option<usize> {
    let mappings = spec["mappings"].as_array()?;
    mappings.iter().position(|entry| entry["name"] == name)
}

/// What changes whenever the mapping changes.
pub(super) fn revision(entry: &Json) -> String {
    let digest = Sha256::digest(entry.to_string());
    let half = u128::from_be_bytes(digest[..16].try_into().unwrap_or_default());
    format!("{half:032x}")
}

/// A mistake in the object, as one in the request: `spec.mappings[2].target` is its `target`.
pub fn field_error(
    at: Option<usize>,
    path: &str,
    reason: &str,
    message: &str,
    hint: Option<&str>,
) -> FieldError {
    let own = at.map(|at| format!("spec.mappings[{at}]"));
    let field = match own.as_deref().and_then(|own| path.strip_prefix(own)) {
        Some(rest) => rest.trim_start_matches('.'),
        None => path,
    };
    FieldError {
        field: field.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        hint: hint.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change(name: &str, what: What) -> Change {
        Change {
            name: name.to_owned(),
            what,
            expected: None,
        }
    }

    fn entry(value: &Json) -> Map<String, Json> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn mappings_come_change_and_go() {
        let mut spec = json!({"credential": {"secretName": "x"}});
        let create = What::Create(entry(
            &json!({"hostname": "a.example.com", "target": "http://a"}),
        ));
        assert_eq!(
            change("a", create.clone()).apply(&mut spec).unwrap(),
            Some(0)
        );
        let twice = change("a", create).apply(&mut spec).unwrap_err();
        assert_eq!(
            (twice.status, twice.reason.as_str()),
            (409, "AlreadyExists")
        );
        change("a", What::Enable(false)).apply(&mut spec).unwrap();
        assert_eq!(
            spec["mappings"],
            json!([{"name": "a", "hostname": "a.example.com", "target": "http://a", "enabled": false}])
        );
        let replace = What::Replace(entry(
            &json!({"hostname": "b.example.com", "target": "http://b"}),
        ));
        assert_eq!(
            change("b", replace.clone())
                .apply(&mut spec)
                .unwrap_err()
                .status,
            404
        );
        change("a", replace).apply(&mut spec).unwrap();
        assert_eq!(spec["mappings"][0]["hostname"], "b.example.com");
        assert_eq!(spec["mappings"][0].get("enabled"), None);
        change("a", What::Delete).apply(&mut spec).unwrap();
        assert_eq!(spec, json!({"credential": {"secretName": "x"}}));
    }

    #[test]
    fn an_outdated_change_is_refused() {
        let before = json!({"name": "a", "target": "http://a"});
        let mut spec = json!({"mappings": [before]});
        let mut change = change("a", What::Enable(false));
        change.expected = Some(revision(&before));
        change.apply(&mut spec).unwrap();
        assert_eq!(change.apply(&mut spec).unwrap_err().status, 412);
    }

    #[test]
    fn fields_are_named_as_in_the_request() {
        let field = |at, path| field_error(at, path, "", "", None).field;
        assert_eq!(
            field(Some(2), "spec.mappings[2].tls.serverName"),
            "tls.serverName"
        );
        assert_eq!(field(Some(2), "spec.mappings[2]"), "");
        assert_eq!(
            field(Some(2), "spec.mappings[12].name"),
            "spec.mappings[12].name"
        );
        assert_eq!(field(None, "spec.suspend"), "spec.suspend");
    }
}
