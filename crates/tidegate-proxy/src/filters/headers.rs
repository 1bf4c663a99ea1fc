//! Edits of header fields: remove, then set, then add.

use http::header::{self, HeaderMap, HeaderName};
use tidegate_model::HeaderEdits;

/// Applies the edits. Fields that frame the message are left alone whatever the object says, because a
/// wrong one would let the next request be read as part of this one.
pub(crate) fn edit(headers: &mut HeaderMap, edits: &HeaderEdits) {
    for name in edits.remove.iter().filter(|name| !is_framing(name)) {
        headers.remove(name);
    }
    for (name, value) in edits.set.iter().filter(|(name, _)| !is_framing(name)) {
        headers.insert(name, value.clone());
    }
    for (name, value) in edits.add.iter().filter(|(name, _)| !is_framing(name)) {
        headers.append(name, value.clone());
    }
}

fn is_framing(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONTENT_LENGTH
            | header::TRANSFER_ENCODING
            | header::CONNECTION
            | header::UPGRADE
            | header::TE
            | header::TRAILER
    )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn edits_run_in_order_and_spare_the_framing() {
        let name = HeaderName::from_static;
        let field = |n: &'static str, v: &'static str| (name(n), HeaderValue::from_static(v));
        let mut headers: HeaderMap = [
            field("server", "nginx"),
            field("x-a", "1"),
            field("content-length", "5"),
        ]
        .into_iter()
        .collect();
        let edits = HeaderEdits {
            remove: vec![name("server"), name("content-length")],
            set: vec![field("x-a", "2"), field("connection", "x-b")],
            add: vec![field("x-a", "3"), field("server", "edge")],
        };
        edit(&mut headers, &edits);
        let expected: HeaderMap = [
            field("x-a", "2"),
            field("x-a", "3"),
            field("server", "edge"),
            field("content-length", "5"),
        ]
        .into_iter()
        .collect();
        assert_eq!(headers, expected);
    }
}
