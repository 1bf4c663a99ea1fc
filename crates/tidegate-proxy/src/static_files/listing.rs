//! The page that lists a folder.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::SystemTime;

use http::Response;
use http::header::{self, HeaderValue};
use percent_encoding::percent_decode_str;

use super::encode;
use crate::body::Body;
use crate::respond::{html_escape, policy};

/// Entries that are shown at most.
pub(super) const MAX_ENTRIES: usize = 10_000;

/// A line of the page.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) is_folder: bool,
    pub(super) length: u64,
    pub(super) modified: Option<SystemTime>,
}

const STYLE: &str = ":root{color-scheme:light dark}\
body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:15px/1.6 system-ui,sans-serif}\
h1{font-size:1.3rem;overflow-wrap:anywhere}table{width:100%;border-collapse:collapse}\
td,th{padding:.3rem .5rem;text-align:left;border-bottom:1px solid #8883;overflow-wrap:anywhere}\
td+td,th+th{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}";

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy(STYLE));

/// Lists the entries of the folder that is shown at the request path.
pub(super) fn page(path: &str, entries: &[Entry]) -> Response<Body> {
    let mut page = String::with_capacity(STYLE.len() + 512 + entries.len() * 160);
    let name = percent_decode_str(path).decode_utf8_lossy();
    page.push_str(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>",
    );
    html_escape(&mut page, &name);
    let _ = write!(
        page,
        "</title><style>{STYLE}</style></head><body><main><h1>"
    );
    html_escape(&mut page, &name);
    page.push_str(
        "</h1><table><thead><tr><th scope=\"col\">Name</th><th scope=\"col\">Size</th>\
         <th scope=\"col\">Changed (UTC)</th></tr></thead><tbody>",
    );
    if !path.trim_matches('/').is_empty() {
        page.push_str("<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>");
    }
    for entry in entries {
        row(&mut page, entry);
    }
    page.push_str("</tbody></table></main></body></html>\n");
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(page.len()));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    *response.body_mut() = Body::full(page);
    response
}

fn row(page: &mut String, entry: &Entry) {
    let slash = if entry.is_folder { "/" } else { "" };
    // `./` keeps a name with a colon from being read as a scheme.
    page.push_str("<tr><td><a href=\"./");
    html_escape(page, &encode(&entry.name));
    let _ = write!(page, "{slash}\">");
    html_escape(page, &entry.name);
    let _ = write!(page, "{slash}</a></td><td>");
    if !entry.is_folder {
        page.push_str(&size(entry.length));
    }
    page.push_str("</td><td>");
    if let Some(modified) = entry.modified {
        page.push_str(&changed(modified));
    }
    page.push_str("</td></tr>");
}

fn changed(modified: SystemTime) -> String {
    let time = time::OffsetDateTime::from(modified);
    let (date, clock) = (time.date(), time.time());
    format!("{date} {:02}:{:02}", clock.hour(), clock.minute())
}

/// Binary units with one decimal.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024, "1.0 MiB"),
            (5_368_709_120, "5.0 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }
}
