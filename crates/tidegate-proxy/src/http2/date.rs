//! The Date field of responses (RFC 9110 §6.6.1), written once a second and thread.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

thread_local! {
    static LAST: RefCell<(u64, HeaderValue)> = RefCell::new((0, at(0)));
}

/// The present second.
pub(super) fn now() -> HeaderValue {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let second = since.map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|last| {
        if last.0 != second {
            *last = (second, at(second));
        }
        last.1.clone()
    })
}

fn at(second: u64) -> HeaderValue {
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
    // A date is letters, digits and spaces.
    HeaderValue::try_from(date)
        .unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_imf_fixdate() {
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(now().len(), 29);
    }
}
