//! Rules across objects as validating admission policies: refused by the API server when they are written.
//!
//! A comfort, not the authority: the API server sees one namespace, and an informer behind it is late, so two
//! objects of the same moment pass. What passes gets the condition that says the same. Mistakes of the policies
//! themselves never stop anybody (`failurePolicy: Ignore`).

use serde_json::{Value, json};

use super::uniform::{self, IS_DIRECT, is_direct, is_through};
use super::{GROUP, VERSION};

/// What stands between a hostname and whose it is.
pub const TAKEN: &str = "already belongs to";
/// What is said of an owner that was there before.
pub const OLDER: &str = ", which is older";
/// How a hostname that is taken is mended.
pub const TAKEN_HINT: &str =
    "take the hostname out of one of the two, or put all rules into one route";
/// Every policy with its binding, in the order of their names.
pub fn all_policies() -> Vec<Value> {
    [
        (
            "tlsroute-hostnames.edge.tidegate.dev",
            hostname_variables(),
            "variables.other || size(variables.taken) == 0".to_owned(),
            hostname_message(),
            "a hostname already belongs to another TlsRoute of this namespace",
        ),
        (
            "tlsroute-trackers.edge.tidegate.dev",
            tracker_variables(),
            "variables.other || !variables.joined || !variables.mixed".to_owned(),
            tracker_message(),
            "HTTP trackers of one process are mixed in two TlsRoutes of this namespace",
        ),
    ]
    .into_iter()
    .flat_map(|(name, variables, expression, said, message)| {
        let variables: Vec<Value> = variables
            .into_iter()
            .map(|(name, expression)| json!({"name": name, "expression": expression}))
            .collect();
        [
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicy",
                "metadata": metadata(name),
                "spec": {
                    "failurePolicy": "Ignore",
                    // Each other TlsRoute of the namespace in turn.
                    "paramKind": {"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "TlsRoute"},
                    "matchConstraints": {"resourceRules": [{
                        "apiGroups": [GROUP],
                        "apiVersions": [VERSION],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["tlsroutes"],
                    }]},
                    "variables": variables,
                    "validations": [{
                        "expression": expression,
                        "messageExpression": said,
                        "message": message,
                        "reason": "Invalid",
                    }],
                },
            }),
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": metadata(name),
                "spec": {
                    "policyName": name,
                    "paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"},
                    "validationActions": ["Deny"],
                },
            }),
        ]
    })
    .collect()
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {
            "app.kubernetes.io/name": "tidegate",
            "app.kubernetes.io/part-of": "tidegate",
        },
    })
}

/// Whether the two have nothing to do with each other: the same object, one that is out of service, or those of
/// two edges.
fn other() -> String {
    let suspended = |of: &str| format!("{of}.spec.?suspend.orValue(false)");
    let class = |of: &str| format!("{of}.spec.?className.orValue('')");
    format!(
        "params.metadata.name == object.metadata.name || {} || {} || {} != {}",
        suspended("object"),
        suspended("params"),
        class("object"),
        class("params")
    )
}

/// The hostnames that an object claims, a list for each rule.
fn claimed(of: &str) -> String {
    format!(
        "{of}.spec.rules.filter(r, !(has(r.tracker) && {IS_DIRECT})).map(r, size(r.?hostnames.orValue([])) > 0 ? r.hostnames.map(h, h.lowerAscii()) : {of}.spec.?hostnames.orValue([]).map(h, h.lowerAscii()))"
    )
}

type Variables = Vec<(&'static str, String)>;

fn hostname_variables() -> Variables {
    vec![
        ("other", other()),
        ("mine", claimed("object")),
        ("theirs", claimed("params")),
        // Whoever has slipped through can still be edited.
        (
            "before",
            format!("oldObject == null ? [] : {}", claimed("oldObject")),
        ),
        (
            "taken",
            "variables.mine.map(l, l.filter(h, variables.theirs.exists(t, h in t) && !variables.before.exists(b, h in b))).filter(l, size(l) > 0)".to_owned(),
        ),
    ]
}

fn hostname_message() -> String {
    // In an update the other one may be the younger.
    format!(
        "variables.taken[0][0] + ' {TAKEN} TlsRoute ' + params.metadata.namespace + '/' + params.metadata.name + (has(object.metadata.creationTimestamp) && string(params.metadata.creationTimestamp) > string(object.metadata.creationTimestamp) ? '' : '{OLDER}') + '; {TAKEN_HINT}'"
    )
}

fn tracker_variables() -> Variables {
    let http = uniform::IS_HTTP;
    let backends =
        |of: &str| format!("{of}.spec.rules.filter(r, {http}).map(r, r.?backends.orValue([])");
    let services = |of: &str| {
        let backends = backends(of);
        format!("{backends}.filter(b, has(b.service)).map(b, b.service.name))")
    };
    let ports = |of: &str| {
        let backends = backends(of);
        format!(
            "{backends}.filter(b, has(b.service) || has(b.address)).map(b, has(b.service) ? b.service.name + ':' + string(b.service.port) : b.address.lowerAscii()))"
        )
    };
    let exists = |of: &str, condition: &str| format!("{of}.spec.rules.exists(r, {condition})");
    let labels = |condition: &str| {
        let of = |of: &str| {
            let labels = uniform::labels(&format!("{of}.spec"), condition);
            let name = format!("{of}.metadata.namespace + '/' + {of}.metadata.name");
            format!("{labels}.map(l, l + ' of ' + {name})")
        };
        format!("({} + {}).join(', ')", of("params"), of("object"))
    };
    let (through, direct) = (is_through(), is_direct());
    vec![
        ("other", other()),
        ("mine", services("object")),
        ("theirs", services("params")),
        ("myPorts", ports("object")),
        ("theirPorts", ports("params")),
        // One process: what the user says it is, else one Service; the same port in any case.
        (
            "joined",
            "variables.myPorts.exists(l, l.exists(p, variables.theirPorts.exists(t, p in t))) || (has(object.spec.trackerGroup) || has(params.spec.trackerGroup) ? object.spec.?trackerGroup.orValue('') == params.spec.?trackerGroup.orValue('') : variables.mine.exists(l, l.exists(s, variables.theirs.exists(t, s in t))))".to_owned(),
        ),
        (
            "mixed",
            format!(
                "({} && {}) || ({} && {})",
                exists("object", &through),
                exists("params", &direct),
                exists("object", &direct),
                exists("params", &through)
            ),
        ),
        ("through", labels(&through)),
        ("direct", labels(&direct)),
    ]
}

fn tracker_message() -> String {
    uniform::sentence(["variables.through", "variables.direct"])
}
