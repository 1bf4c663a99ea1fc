//! Pure: which part of an object a field manager owns (`managedFields`, KEP-555), and who else owns what.

use serde_json::{Map, Value as Json};

/// The part of `value` that the set of fields names: what its owner would apply to keep it as it is.
pub(super) fn part(value: &Json, fields: &Json) -> Json {
    let Some(fields) = fields.as_object() else {
        return value.clone();
    };
    // A leaf, or a whole that is owned as one.
    if fields.keys().all(|key| key == ".") {
        return match value {
            Json::Object(_) if !fields.is_empty() => Json::Object(Map::new()),
            whole => whole.clone(),
        };
    }
    match value {
        Json::Object(members) => {
            let owned = members.iter().filter_map(|(key, member)| {
                let below = fields.get(&format!("f:{key}"))?;
                Some((key.clone(), part(member, below)))
            });
            owned.collect::<Map<_, _>>().into()
        }
        Json::Array(items) => items
            .iter()
            .filter_map(|item| {
                let (_, below) = fields.iter().find(|(key, _)| names(key, item))?;
                let mut owned = part(item, below);
                // Whoever applies an item of a list must say which.
                if let (Json::Object(owned), Some(name)) = (&mut owned, item.get("name")) {
                    owned.insert("name".to_owned(), name.clone());
                }
                Some(owned)
            })
            .collect::<Vec<_>>()
            .into(),
        plain => plain.clone(),
    }
}

/// Whether a key such as `k:{"name":"nas"}` or `v:"a"` names the item.
fn names(key: &str, item: &Json) -> bool {
    if let Some(keys) = key.strip_prefix("k:") {
        let Ok(Json::Object(keys)) = serde_json::from_str::<Json>(keys) else {
            return false;
        };
        return keys
            .iter()
            .all(|(name, value)| item.get(name) == Some(value));
    }
    let value = key.strip_prefix("v:").map(serde_json::from_str::<Json>);
    matches!(value, Some(Ok(value)) if value == *item)
}

/// The fields of `spec.mappings` that an entry of `managedFields` owns.
pub(super) fn mappings(entry: &Json) -> &Json {
    &entry["fieldsV1"]["f:spec"]["f:mappings"]
}

/// Managers other than `own` that own anything of the mapping, or all mappings as a whole.
pub(super) fn others(managed: &Json, own: &str, name: &str) -> Vec<String> {
    let item = serde_json::json!({"name": name});
    let entries = managed.as_array().into_iter().flatten();
    let mut others: Vec<String> = entries
        .filter(|entry| entry["manager"] != own)
        .filter(|entry| {
            mappings(entry)
                .as_object()
                .is_some_and(|fields| fields.keys().any(|key| names(key, &item)))
        })
        .filter_map(|entry| entry["manager"].as_str().map(str::to_owned))
        .collect();
    others.sort();
    others.dedup();
    others
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_manager_owns_is_what_it_would_apply() {
        let spec = json!({"mappings": [
            {"name": "nas", "hostname": "nas.example.com", "target": "http://a", "enabled": false},
            {"name": "printer", "hostname": "printer.example.com", "target": "http://b", "tls": {"serverName": "x", "insecureSkipVerify": true}},
        ]});
        let managed = json!([
            {"manager": "argocd", "fieldsV1": {"f:spec": {"f:mappings": {
                "k:{\"name\":\"nas\"}": {".": {}, "f:name": {}, "f:hostname": {}, "f:target": {}}}}}},
            {"manager": "ours", "fieldsV1": {"f:spec": {"f:mappings": {
                "k:{\"name\":\"nas\"}": {"f:enabled": {}},
                "k:{\"name\":\"printer\"}": {".": {}, "f:name": {}, "f:hostname": {}, "f:target": {}, "f:tls": {"f:serverName": {}}}}}}},
        ]);
        assert_eq!(
            part(&spec["mappings"], mappings(&managed[1])),
            json!([
                {"name": "nas", "enabled": false},
                {"name": "printer", "hostname": "printer.example.com", "target": "http://b", "tls": {"serverName": "x"}},
            ])
        );
        assert_eq!(others(&managed, "ours", "nas"), ["argocd"]);
        assert_eq!(others(&managed, "ours", "printer"), [""; 0]);
        let nothing = json!({});
        assert_eq!(
            part(
                &json!([{"name": "a"}]),
                &json!({"k:{\"name\":\"b\"}": nothing})
            ),
            json!([])
        );
    }

    #[test]
    fn sets_and_wholes_are_owned_too() {
        let value = json!({"allow": ["a", "b"], "limits": {"requestBody": "1Mi"}});
        let fields = json!({"f:allow": {".": {}, "v:\"b\"": {}}, "f:limits": {}});
        assert_eq!(
            part(&value, &fields),
            json!({"allow": ["b"], "limits": {"requestBody": "1Mi"}})
        );
    }
}
