//! The uniform rule, in the words that people meet and in the expressions that refuse a mixed set.
//!
//! A tracker process has one switch for all of its HTTP trackers that says whether addresses of peers come from
//! X-Forwarded-For. One sentence tells of a mixed set wherever it is found: in an object, by a policy across
//! objects, by `tidegate check`, and in a condition.

use kube::core::{Message, Reason, Rule};

/// What was found; `%s` twice: the trackers through the edge, those that peers reach directly.
const FOUND: &str = "HTTP trackers of one process are mixed: %s through the edge, %s directly; the process has one switch for all of them (on_reverse_proxy in a Torrust tracker.toml), so the peers of one side would get wrong addresses or none";
/// How to mend it; `%s` three times: those directly, those through the edge, those directly.
const MEND: &str = "take tracker.exposure: Direct out of %s, or set it in %s as well, or lead %s through the edge without TLS by tracker.exposure: HTTP; trackers of different processes belong in routes with different trackerGroup";

/// CEL: whether a rule `r` leads to an HTTP tracker.
pub(super) const IS_HTTP: &str =
    "has(r.tracker) && (!has(r.tracker.type) || r.tracker.type != 'UDP')";
/// CEL: whether the tracker of a rule `r` is reached without the edge.
pub(super) const IS_DIRECT: &str = "has(r.tracker.exposure) && r.tracker.exposure == 'Direct'";

/// What was found and how to mend it. Both sides are lists such as `http1 (http1.example.com), http2.example.com`.
pub fn mixed(through: &str, direct: &str) -> (String, String) {
    let fill = |text: &str, parts: &[&str]| {
        let mut pieces = text.split("%s");
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for (part, piece) in parts.iter().zip(pieces) {
            out.push_str(part);
            out.push_str(piece);
        }
        out
    };
    (
        fill(FOUND, &[through, direct]),
        fill(MEND, &[direct, through, direct]),
    )
}

/// CEL: the whole sentence. `sides` is a list of two expressions: strings with those through the edge, and those
/// directly.
pub(super) fn sentence([through, direct]: [&str; 2]) -> String {
    let list = format!("[{through}, {direct}, {direct}, {through}, {direct}]");
    format!("'{FOUND}; {MEND}'.format({list})")
}

/// CEL: the labels of the rules of `spec` that satisfy `condition`, a list of strings.
///
/// Every string is joined from what the schema bounds: the API server does not know the length of anything else
/// and refuses the definition for what it might cost.
pub(super) fn labels(spec: &str, condition: &str) -> String {
    let hosts = format!(
        "(has(r.hostnames) ? r.hostnames.join(', ') : has({spec}.hostnames) ? {spec}.hostnames.join(', ') : '')"
    );
    format!(
        "{spec}.rules.map(r, {condition}, has(r.name) ? r.name + ' (' + {hosts} + ')' : {hosts})"
    )
}

/// CEL: whether an HTTP tracker of a rule `r` is reached through the edge.
pub(super) fn is_through() -> String {
    format!("{IS_HTTP} && !({IS_DIRECT})")
}

/// CEL: whether an HTTP tracker of a rule `r` is reached without the edge.
pub(super) fn is_direct() -> String {
    format!("{IS_HTTP} && {IS_DIRECT}")
}

/// The rule within one object.
pub(super) fn rule() -> Rule {
    let (through, direct) = (is_through(), is_direct());
    let joined =
        |condition: &str| format!("[{}].map(l, l.join(', '))[0]", labels("self", condition));
    Rule::new(format!(
        "!self.rules.exists(r, {direct}) || !self.rules.exists(r, {through})"
    ))
    .message(Message::Expression(sentence([
        &joined(&through),
        &joined(&direct),
    ])))
    .reason(Reason::FieldValueInvalid)
}
