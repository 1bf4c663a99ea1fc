//! Requests of BitTorrent clients, told from their targets (BEP 3, BEP 21, BEP 48).
//!
//! Targets carry raw hashes: byte for byte what the client wrote, in upper- or lower-case escapes or none. So
//! nothing here decodes and encodes again; what is taken out is cut out and the rest stays. Names are compared
//! decoded, as trackers do, so that nobody gets past a rule by writing `%69p` for `ip`.

use std::borrow::Cow;

/// What a client asks a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// For peers, with what happened.
    Announce(Event),
    /// For counts.
    Scrape,
}

/// What an announce says has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing: one of the regular ones.
    None,
    /// The download began.
    Started,
    /// The download has ended.
    Completed,
    /// The client leaves.
    Stopped,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 4] = [Self::None, Self::Started, Self::Completed, Self::Stopped];

    /// As clients write it; `none` for nothing.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Stopped => "stopped",
        }
    }
}

/// Names of the parameters by which a client claims an address.
const ADDRESS_PARAMETERS: [&str; 3] = ["ip", "ipv4", "ipv6"];

/// From this length on a segment of letters, digits and hyphens is a key and no name.
const KEY_LENGTH: usize = 16;

/// What the target (path with query) asks, if it is a request to a tracker: `/announce`, `/announce/<key>`,
/// `/<key>/announce`, below any path, with or without `.php`, and the same for `scrape`.
pub fn classify(target: &str) -> Option<Request> {
    let (path, query) = split(target);
    match verb_of(path)?.verb {
        Verb::Scrape => Some(Request::Scrape),
        Verb::Announce => Some(Request::Announce(event(query.unwrap_or_default()))),
    }
}

/// Takes `ip`, `ipv4` and `ipv6` out of an announce, which is what has such a path or names an `info_hash`.
/// None if there is nothing to take out.
pub fn strip_addresses(target: &str) -> Option<String> {
    let (path, query) = split(target);
    let query = query?;
    let is_address = |pair: &&str| {
        let name = name_of(pair);
        ADDRESS_PARAMETERS.iter().any(|known| reads(name, known))
    };
    if !query.split('&').any(|pair| is_address(&pair)) {
        return None;
    }
    let announces = matches!(classify(target), Some(Request::Announce(_)))
        || query
            .split('&')
            .any(|pair| reads(name_of(pair), "info_hash"));
    if !announces {
        return None;
    }
    let mut left = String::with_capacity(target.len());
    left.push_str(path);
    let kept = query.split('&').filter(|pair| !is_address(pair));
    for (index, pair) in kept.enumerate() {
        left.push(if index == 0 { '?' } else { '&' });
        left.push_str(pair);
    }
    Some(left)
}

/// The path with the keys of private trackers replaced: what stands beside `announce` or `scrape`, and every
/// long segment of letters and digits.
pub fn hide_keys<'a>(path: &'a str, by: &str) -> Cow<'a, str> {
    let verb = verb_of(path);
    let is_key = |index: usize, segment: &str| {
        let long = segment.len() >= KEY_LENGTH && segment.bytes().all(is_key_byte);
        let beside = verb.as_ref().is_some_and(|verb| {
            // What follows is a key however short; what precedes may be the tracker's name.
            index == verb.index + 1
                || (index + 1 == verb.index && segment.len() >= 8 && has_digit_and_letter(segment))
        });
        !segment.is_empty() && (long || beside)
    };
    let segments = || path.split('/').enumerate();
    if !segments().any(|(index, segment)| is_key(index, segment)) {
        return Cow::Borrowed(path);
    }
    let mut shown = String::with_capacity(path.len());
    for (index, segment) in segments() {
        if index > 0 {
            shown.push('/');
        }
        shown.push_str(if is_key(index, segment) { by } else { segment });
    }
    Cow::Owned(shown)
}

/// A tracker's own words with everything in them replaced that could be a key: they quote what they refuse.
pub fn hide_keys_in_text<'a>(text: &'a str, by: &str) -> Cow<'a, str> {
    let mut shown: Option<String> = None;
    let mut done = 0;
    for (start, word) in words(text) {
        if word.len() < KEY_LENGTH || !word.bytes().any(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let shown = shown.get_or_insert_default();
        shown.push_str(&text[done..start]);
        shown.push_str(by);
        done = start + word.len();
    }
    match shown {
        None => Cow::Borrowed(text),
        Some(mut shown) => {
            shown.push_str(&text[done..]);
            Cow::Owned(shown)
        }
    }
}

/// Runs of what keys consist of, with where they begin.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split(|c: char| !u8::try_from(c).is_ok_and(is_key_byte))
        .map(move |word| {
            // From one word to the next there is one character, of whatever length.
            let start = at;
            at += word.len()
                + text[at + word.len()..]
                    .chars()
                    .next()
                    .map_or(0, char::len_utf8);
            (start, word)
        })
}

const fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

fn has_digit_and_letter(segment: &str) -> bool {
    let bytes = || segment.bytes();
    bytes().any(|byte| byte.is_ascii_digit()) && bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Announce,
    Scrape,
}

/// The verb of a path and which segment it is.
struct Placed {
    verb: Verb,
    index: usize,
}

/// The verb is the last segment, or the last but one with a key behind it.
fn verb_of(path: &str) -> Option<Placed> {
    let count = path.split('/').count();
    let mut segments = path.rsplit('/');
    let (last, before) = (segments.next()?, segments.next());
    let placed = |segment: &str, index| verb(segment).map(|verb| Placed { verb, index });
    placed(last, count - 1).or_else(|| placed(before?, count.checked_sub(2)?))
}

fn verb(segment: &str) -> Option<Verb> {
    let segment = segment.strip_suffix(".php").unwrap_or(segment);
    if reads(segment, "announce") {
        Some(Verb::Announce)
    } else if reads(segment, "scrape") {
        Some(Verb::Scrape)
    } else {
        None
    }
}

fn event(query: &str) -> Event {
    let found = query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        reads(name, "event").then_some(value)
    });
    let Some(value) = found else {
        return Event::None;
    };
    let known = Event::ALL
        .into_iter()
        .find(|event| reads(value, event.as_str()));
    known.unwrap_or(Event::None)
}

fn split(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

fn name_of(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

/// Whether the text says this once its escapes are decoded.
fn reads(text: &str, expected: &str) -> bool {
    if !text.contains('%') {
        return text == expected;
    }
    let mut rest = text.as_bytes();
    for wanted in expected.bytes() {
        let (found, tail) = match rest {
            [b'%', high, low, tail @ ..] => match hex(*high).zip(hex(*low)) {
                Some((high, low)) => (high << 4 | low, tail),
                None => return false,
            },
            [byte, tail @ ..] => (*byte, tail),
            [] => return false,
        };
        if found != wanted {
            return false;
        }
        rest = tail;
    }
    rest.is_empty()
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests;
