//! Turns a checked document into an object of one of the kinds that a folder may hold.
//!
//! The schema of our own kinds is that of their CustomResourceDefinition; Secret and ConfigMap have a small
//! one here. A document that anything is wrong with becomes no object at all, and every problem is told.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use serde_json::{Value as Json, json};
use tidegate_model::ObjectName;

use super::document::{Node, Value};
use super::schema::{self, FieldProblem, nearest};
use crate::api::{self, AcmeIssuer, GROUP, TlsRoute, TunnelAgent};
use crate::translate::{ConfigMapData, SecretData};

/// Largest object, in bytes of text. The API server's own bound (etcd's request limit), so that what is
/// accepted here is accepted there.
pub(crate) const MAX_OBJECT_BYTES: usize = 1_572_864;

/// The reason of an object of another program's API group.
pub(crate) const FOREIGN_KIND: &str = "ForeignKind";

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `edge.tidegate.dev/v1alpha1`
    TlsRoute,
    /// `edge.tidegate.dev/v1alpha1`
    TunnelAgent,
    /// `edge.tidegate.dev/v1alpha1`, without namespace.
    AcmeIssuer,
    /// `v1`
    Secret,
    /// `v1`
    ConfigMap,
}

impl ObjectKind {
    const ALL: [Self; 5] = [
        Self::TlsRoute,
        Self::TunnelAgent,
        Self::AcmeIssuer,
        Self::Secret,
        Self::ConfigMap,
    ];

    /// The kind's name as objects write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TlsRoute => "TlsRoute",
            Self::TunnelAgent => "TunnelAgent",
            Self::AcmeIssuer => "AcmeIssuer",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::TlsRoute | Self::TunnelAgent | Self::AcmeIssuer => "edge.tidegate.dev/v1alpha1",
            Self::Secret | Self::ConfigMap => "v1",
        }
    }

    const fn is_namespaced(self) -> bool {
        !matches!(self, Self::AcmeIssuer)
    }
}

/// Kind and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.as_str())?;
        if self.namespace.is_empty() {
            write!(f, " {}", self.name)
        } else {
            write!(f, " {}/{}", self.namespace, self.name)
        }
    }
}

impl Identity {
    /// Namespace and name.
    pub(crate) fn object_name(&self) -> ObjectName {
        ObjectName::new(self.namespace.as_str(), self.name.as_str())
    }
}

/// A decoded object.
#[derive(Debug, Clone)]
pub(crate) enum Object {
    Route(Arc<TlsRoute>),
    Agent(Arc<TunnelAgent>),
    Issuer(Arc<AcmeIssuer>),
    Secret(Arc<SecretData>),
    ConfigMap(Arc<ConfigMapData>),
}

/// What became of a document or of an item of a list.
pub(crate) struct Decoded {
    /// Who it is, if it says so.
    pub(crate) identity: Option<Identity>,
    /// The object, if nothing is wrong with it.
    pub(crate) object: Option<Object>,
    /// Everything that is wrong with it.
    pub(crate) problems: Vec<FieldProblem>,
    /// Its first line.
    pub(crate) line: Option<u64>,
}

/// Decodes a document; a list gives one result per item.
pub(crate) fn decode(node: Node) -> Vec<Decoded> {
    let kind = node.get("kind").and_then(Node::as_str).unwrap_or_default();
    let is_list = kind.ends_with("List") && node.get("items").is_some();
    if !is_list {
        return vec![decode_one(&node)];
    }
    // Items of a typed list, as `kubectl get tlsroutes -o yaml` may write them, need not repeat their kind.
    let item_type = kind
        .strip_suffix("List")
        .filter(|kind| !kind.is_empty())
        .map(|kind| {
            let version = node.get("apiVersion").and_then(Node::as_str);
            (kind.to_owned(), version.unwrap_or_default().to_owned())
        });
    let mut node = node;
    let items = node.take("items").map(Node::into_list).unwrap_or_default();
    items
        .into_iter()
        .map(|mut item| {
            if let Some((kind, version)) = &item_type {
                item.default_entry("kind", kind);
                item.default_entry("apiVersion", version);
            }
            let mut decoded = decode_one(&item);
            let bytes = item.text_bytes();
            if bytes > MAX_OBJECT_BYTES {
                decoded.object = None;
                decoded.problems.push(FieldProblem {
                    path: String::new(),
                    line: item.line(),
                    reason: "TooLarge",
                    message: format!("the object has {bytes} bytes"),
                    hint: Some(format!(
                        "an object may have at most {MAX_OBJECT_BYTES} bytes, in Kubernetes too"
                    )),
                });
            }
            decoded
        })
        .collect()
}

/// Why an object of the API server cannot be read as this kind: what is missing, or of another type.
///
/// Fields that are not known are no reason: a later version may have them. `error` is what the decoder said.
pub(crate) fn misfits(
    kind: ObjectKind,
    object: &Json,
    error: &serde_json::Error,
) -> Vec<FieldProblem> {
    let all = schema::check(&Node::from_json(object), &SCHEMAS[&kind]);
    let of = |reasons: &[&str]| {
        let mut some = all.clone();
        some.retain(|problem| reasons.contains(&problem.reason));
        some
    };
    let mut found = of(&["WrongType", "MissingField"]);
    if found.is_empty() {
        // Such as a number that is too large.
        found = of(&["InvalidValue"]);
    }
    if found.is_empty() {
        found.push(unreadable(error, None));
    }
    found
}

fn unreadable(error: &serde_json::Error, line: Option<u64>) -> FieldProblem {
    FieldProblem {
        path: String::new(),
        line,
        reason: "InvalidValue",
        message: format!("cannot be read: {error}"),
        hint: None,
    }
}

fn decode_one(node: &Node) -> Decoded {
    let mut decoded = Decoded {
        identity: None,
        object: None,
        problems: Vec::new(),
        line: node.line(),
    };
    let kind = match kind_of(node) {
        Ok(kind) => kind,
        Err(problem) => {
            decoded.problems.push(problem);
            return decoded;
        }
    };
    let name = node
        .get("metadata")
        .and_then(|metadata| metadata.get("name"))
        .and_then(Node::as_str);
    let namespace = node
        .get("metadata")
        .and_then(|metadata| metadata.get("namespace"))
        .and_then(Node::as_str);
    decoded.identity = name.map(|name| Identity {
        kind,
        namespace: if kind.is_namespaced() {
            namespace.unwrap_or("default").to_owned()
        } else {
            String::new()
        },
        name: name.to_owned(),
    });
    decoded.problems = schema::check(node, &SCHEMAS[&kind]);
    if !kind.is_namespaced() && namespace.is_some() {
        decoded.problems.push(FieldProblem {
            path: "metadata.namespace".to_owned(),
            line: node.line_of("metadata.namespace"),
            reason: "UnknownField",
            message: format!("is set, but {} objects have no namespace", kind.as_str()),
            hint: Some("remove it".to_owned()),
        });
    }
    if !decoded.problems.is_empty() {
        return decoded;
    }
    match typed(kind, node) {
        Ok(object) => decoded.object = Some(object),
        Err(problems) => decoded.problems = problems,
    }
    decoded
}

fn kind_of(node: &Node) -> Result<ObjectKind, FieldProblem> {
    let problem = |path: &str, reason, message: String, hint: String| FieldProblem {
        path: path.to_owned(),
        line: node.line_of(path),
        reason,
        message,
        hint: Some(hint),
    };
    if !matches!(node.value, Value::Map(_)) {
        return Err(problem(
            "",
            "WrongType",
            format!(
                "the document should be a mapping, found {}",
                node.type_name()
            ),
            "an object begins with `apiVersion:` and `kind:`".to_owned(),
        ));
    }
    let known = || ObjectKind::ALL.map(ObjectKind::as_str).join(", ");
    let Some(kind) = node.get("kind").and_then(Node::as_str) else {
        return Err(problem(
            "kind",
            "MissingField",
            "is missing".to_owned(),
            format!("it is one of {}", known()),
        ));
    };
    let Some(found) = ObjectKind::ALL
        .into_iter()
        .find(|known| known.as_str() == kind)
    else {
        let version = node.get("apiVersion").and_then(Node::as_str);
        let ours = version.is_none_or(|version| version.starts_with(GROUP));
        let hint = match nearest(kind, ObjectKind::ALL.map(ObjectKind::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None if !ours => {
                return Err(problem(
                    "kind",
                    FOREIGN_KIND,
                    format!("{kind:?} is not a kind that tidegate reads, so it is left out"),
                    "nothing to mend if it is meant for another program".to_owned(),
                ));
            }
            None => format!("it is one of {}", known()),
        };
        return Err(problem(
            "kind",
            "UnknownKind",
            format!("{kind:?} is not a kind that tidegate reads"),
            hint,
        ));
    };
    match node.get("apiVersion").and_then(Node::as_str) {
        Some(version) if version == found.api_version() => Ok(found),
        Some(version) => Err(problem(
            "apiVersion",
            "UnknownVersion",
            format!("{version:?} is not the version of {kind}"),
            format!("write `apiVersion: {}`", found.api_version()),
        )),
        None => Err(problem(
            "apiVersion",
            "MissingField",
            "is missing".to_owned(),
            format!("write `apiVersion: {}`", found.api_version()),
        )),
    }
}

fn typed(kind: ObjectKind, node: &Node) -> Result<Object, Vec<FieldProblem>> {
    let mut json = node.to_json();
    prune_nulls(&mut json);
    match kind {
        ObjectKind::TlsRoute => custom::<TlsRoute>(node, json).map(|it| Object::Route(it.into())),
        ObjectKind::TunnelAgent => {
            custom::<TunnelAgent>(node, json).map(|it| Object::Agent(it.into()))
        }
        ObjectKind::AcmeIssuer => {
            custom::<AcmeIssuer>(node, json).map(|it| Object::Issuer(it.into()))
        }
        ObjectKind::Secret => secret(node).map(|it| Object::Secret(it.into())),
        ObjectKind::ConfigMap => Ok(Object::ConfigMap(Arc::new(ConfigMapData {
            data: strings(node.get("data")),
        }))),
    }
}

fn custom<T>(node: &Node, json: Json) -> Result<T, Vec<FieldProblem>>
where
    T: serde::de::DeserializeOwned + api::CelValidated,
{
    let object: T =
        serde_json::from_value(json).map_err(|error| vec![unreadable(&error, node.line())])?;
    let broken: Vec<FieldProblem> = api::validate_cel(&object)
        .into_iter()
        .map(|error| FieldProblem {
            line: node.line_of(&error.field),
            path: error.field,
            reason: "InvalidValue",
            message: error.message,
            hint: None,
        })
        .collect();
    if broken.is_empty() {
        Ok(object)
    } else {
        Err(broken)
    }
}

fn secret(node: &Node) -> Result<SecretData, Vec<FieldProblem>> {
    let mut problems = Vec::new();
    let mut data = BTreeMap::new();
    if let Some(Value::Map(entries)) = node.get("data").map(|data| &data.value) {
        for (key, value) in entries {
            // Line breaks within base64 are common and harmless.
            let text: String = value
                .as_str()
                .unwrap_or_default()
                .split_ascii_whitespace()
                .collect();
            match base64::engine::general_purpose::STANDARD.decode(text) {
                Ok(bytes) => {
                    data.insert(key.text.clone(), bytes);
                }
                Err(_) => problems.push(FieldProblem {
                    path: format!("data.{}", key.text),
                    line: value.line(),
                    reason: "InvalidValue",
                    message: "is not base64".to_owned(),
                    hint: Some(format!(
                        "encode it with `base64 -w0`, or write it plainly under stringData.{}",
                        key.text
                    )),
                }),
            }
        }
    }
    for (key, value) in strings(node.get("stringData")) {
        data.insert(key, value.into_bytes());
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(SecretData {
        type_: node
            .get("type")
            .and_then(Node::as_str)
            .unwrap_or("Opaque")
            .to_owned(),
        data,
    })
}

fn strings(node: Option<&Node>) -> BTreeMap<String, String> {
    match node.map(|node| &node.value) {
        Some(Value::Map(entries)) => entries
            .iter()
            .filter_map(|(key, value)| Some((key.text.clone(), value.as_str()?.to_owned())))
            .collect(),
        _ => BTreeMap::new(),
    }
}

/// The API server drops nulls of optional fields before anybody sees them.
fn prune_nulls(json: &mut Json) {
    match json {
        Json::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(prune_nulls);
        }
        Json::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

static SCHEMAS: LazyLock<BTreeMap<ObjectKind, Json>> = LazyLock::new(|| {
    let mut schemas: BTreeMap<ObjectKind, Json> = api::all_crds()
        .into_iter()
        .filter_map(|crd| {
            let kind = ObjectKind::ALL
                .into_iter()
                .find(|kind| kind.as_str() == crd.spec.names.kind)?;
            let schema = crd
                .spec
                .versions
                .into_iter()
                .next()?
                .schema?
                .open_api_v3_schema?;
            let mut schema = serde_json::to_value(schema).ok()?;
            // The status in a file is what somebody copied from a cluster; nobody reads it.
            schema["properties"]["status"] = json!({});
            Some((kind, schema))
        })
        .collect();
    let values = json!({"type": "object", "additionalProperties": {"type": "string"}});
    schemas.insert(
        ObjectKind::Secret,
        json!({"type": "object", "properties": {
            "type": {"type": "string"}, "data": values, "stringData": values, "immutable": {"type": "boolean"},
        }}),
    );
    schemas.insert(
        ObjectKind::ConfigMap,
        json!({"type": "object", "properties": {
            "data": values, "binaryData": values, "immutable": {"type": "boolean"},
        }}),
    );
    for schema in schemas.values_mut() {
        schema["properties"]["apiVersion"] = json!({"type": "string"});
        schema["properties"]["kind"] = json!({"type": "string"});
        schema["properties"]["metadata"] = metadata_schema();
        let mut required = schema["required"].as_array().cloned().unwrap_or_default();
        required.push("metadata".into());
        schema["required"] = required.into();
    }
    schemas
});

fn metadata_schema() -> Json {
    let name = |description: &str, length: u32| {
        json!({
            "type": "string", "maxLength": length, "description": description,
            "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        })
    };
    let strings = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": name("A name has lower-case letters, digits, `-` and `.`, and begins and ends with a letter or digit", 253),
            "namespace": name("A namespace has lower-case letters, digits and `-`", 63),
            "labels": strings,
            "annotations": strings,
            // What `kubectl get -o yaml` adds.
            "creationTimestamp": {}, "deletionTimestamp": {}, "deletionGracePeriodSeconds": {}, "finalizers": {}, "generateName": {}, "generation": {},
            "managedFields": {}, "ownerReferences": {}, "resourceVersion": {}, "selfLink": {}, "uid": {},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::document::split;
    use super::*;

    fn decoded(text: &str) -> Vec<Decoded> {
        decode(split(text)[0].parse().unwrap())
    }

    #[track_caller]
    fn first_problem(text: &str) -> String {
        let all = decoded(text);
        assert!(all[0].object.is_none());
        let problem = &all[0].problems[0];
        format!(
            "{} {}; {}",
            problem.path,
            problem.message,
            problem.hint.clone().unwrap_or_default()
        )
    }

    #[test]
    fn the_shortest_route_is_read() {
        let all = decoded(
            "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {name: blog}\nspec:\n  hostnames: [blog.example.com]\n  rules:\n    - backends:\n        - address: 127.0.0.1:3000\n",
        );
        assert_eq!(all[0].problems, []);
        let Some(Object::Route(route)) = &all[0].object else {
            panic!("not a route")
        };
        assert_eq!(route.metadata.name.as_deref(), Some("blog"));
        assert_eq!(
            all[0].identity.as_ref().unwrap().to_string(),
            "TlsRoute default/blog"
        );
    }

    #[test]
    fn unknown_kinds_and_versions_are_told_with_the_right_ones() {
        for (text, expected) in [
            (
                "kind: TLSRoute\napiVersion: edge.tidegate.dev/v1alpha1\n",
                "kind \"TLSRoute\" is not a kind that tidegate reads; did you mean \"TlsRoute\"?",
            ),
            (
                "kind: Deployment\napiVersion: apps/v1\n",
                "kind \"Deployment\" is not a kind that tidegate reads, so it is left out; nothing to mend if it is meant for another program",
            ),
            (
                "kind: Deployment\napiVersion: edge.tidegate.dev/v1alpha1\n",
                "kind \"Deployment\" is not a kind that tidegate reads; it is one of TlsRoute, TunnelAgent, AcmeIssuer, Secret, ConfigMap",
            ),
            (
                "kind: TlsRoute\napiVersion: edge.tidegate.dev/v1\n",
                "apiVersion \"edge.tidegate.dev/v1\" is not the version of TlsRoute; write `apiVersion: edge.tidegate.dev/v1alpha1`",
            ),
            (
                "- a\n",
                " the document should be a mapping, found a list; an object begins with `apiVersion:` and `kind:`",
            ),
            (
                "a: 1\n",
                "kind is missing; it is one of TlsRoute, TunnelAgent, AcmeIssuer, Secret, ConfigMap",
            ),
        ] {
            assert_eq!(first_problem(text), expected);
        }
    }

    #[test]
    fn secrets_are_decoded_and_never_quoted() {
        let all = decoded(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: prod}\ntype: kubernetes.io/tls\ndata: {a: aGVs\n    bG8=}\nstringData: {b: world}\n",
        );
        let Some(Object::Secret(secret)) = &all[0].object else {
            panic!("not a secret: {:?}", all[0].problems)
        };
        assert_eq!(secret.data["a"], b"hello");
        assert_eq!(secret.data["b"], b"world");
        assert_eq!(secret.type_, "kubernetes.io/tls");
        let problem = first_problem(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {pass: hunter2!}\n",
        );
        assert!(problem.contains("data.pass is not base64"), "{problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn lists_give_their_items() {
        let all = decoded(
            "apiVersion: v1\nkind: List\nitems:\n  - {apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {x: z}}\n  - {apiVersion: v1, kind: ConfigMap, metadata: {nam: b}}\n",
        );
        assert!(all[0].object.is_some());
        assert_eq!(all[1].problems.len(), 1);
        assert_eq!(all[1].problems[0].line, Some(5));
        let all =
            decoded("apiVersion: v1\nkind: ConfigMapList\nitems:\n  - {metadata: {name: a}}\n");
        assert!(all[0].object.is_some());
    }

    #[test]
    fn rules_across_fields_are_checked_too() {
        let problem = first_problem(
            "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {name: blog}\nspec:\n  hostnames: [blog.example.com]\n  tls: {secretName: a, issuerRef: {name: b}}\n  rules:\n    - backends:\n        - address: 127.0.0.1:3000\n",
        );
        assert!(problem.starts_with("spec.tls "), "{problem}");
    }
}
