//! What a tracker answered, told from the bytes as they pass (BEP 3, BEP 23, BEP 48).
//!
//! Trackers say 200 whatever happens; that an announce failed stands in the body as `failure reason`. The
//! scanner is fed the body in whatever pieces it comes and keeps nothing of it but the name of one key and the
//! text of a failure or warning, each cut to a bound. Contents of strings are counted and not looked at, so a
//! long list of peers costs nothing. Must not fail on any input: what is no answer of a tracker is a finding.

use std::fmt;

/// Bytes of a text that are kept.
pub const MAX_TEXT: usize = 256;

/// Bytes outside of strings after which the rest is not looked at any more. Keys are sorted, so what matters
/// stands in front of long lists; a scrape of hundreds of torrents need not be read to its end.
const MAX_LOOKED_AT: usize = 8 * 1024;

/// Lists and dictionaries within each other. Answers need four.
const MAX_DEPTH: u8 = 16;

/// The longest key that matters is `warning message`.
const MAX_KEY: usize = 16;

/// What the body was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To an announce: it has an interval or peers.
    Announce,
    /// To a scrape: it has `files`.
    Scrape,
    /// The tracker refused; its `failure reason`.
    Failure(Text),
    /// A dictionary without any key of a tracker's answer.
    OtherDictionary,
    /// Not bencoded, or nothing at all.
    NotBencode,
    /// It ended before its dictionary did.
    Cut,
}

/// Text of a tracker, fit for a line of a log: at most [`MAX_TEXT`] bytes of it were kept, control characters
/// are spaces, and what is not UTF-8 is marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    fn new(mut bytes: Vec<u8>) -> Self {
        if bytes.len() == MAX_TEXT {
            // A character may have been cut in two.
            let cut = bytes.iter().rposition(|byte| byte & 0xC0 != 0x80);
            if let Some(start) = cut
                && std::str::from_utf8(&bytes[start..]).is_err()
            {
                bytes.truncate(start);
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        Self(shown.collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where in the bytes the scanner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing came yet.
    Start,
    /// A value, a key, or the end of what is open.
    Item,
    /// The length of a string.
    Length(u64),
    /// Within a string: bytes still to come.
    Content(u64),
    /// Within a number, after this many characters.
    Number(u8),
    /// After the end of the dictionary; some trackers add an empty line.
    End,
    /// Looked at enough.
    Enough,
    /// It is not bencoded.
    Broken,
}

/// Keys of the outermost dictionary that say what an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Failure,
    Warning,
    Files,
    Announce,
    Other,
}

impl Key {
    fn of(name: &[u8]) -> Self {
        match name {
            b"failure reason" => Self::Failure,
            b"warning message" => Self::Warning,
            b"files" => Self::Files,
            b"interval" | b"peers" | b"peers6" => Self::Announce,
            _ => Self::Other,
        }
    }
}

/// Looks at a body as it streams.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    depth: u8,
    /// In the outermost dictionary: a key comes next.
    wants_key: bool,
    /// The key whose value is being read.
    key: Key,
    name: [u8; MAX_KEY],
    name_len: usize,
    looked_at: usize,
    failure: Option<Vec<u8>>,
    warning: Option<Vec<u8>>,
    files: bool,
    announce: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Start,
            depth: 0,
            wants_key: true,
            key: Key::Other,
            name: [0; MAX_KEY],
            name_len: 0,
            looked_at: 0,
            failure: None,
            warning: None,
            files: false,
            announce: false,
        }
    }
}

impl Scanner {
    /// Takes the next piece.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        loop {
            match self.state {
                State::Content(left) => {
                    let here = usize::try_from(left).map_or(bytes.len(), |n| n.min(bytes.len()));
                    let (content, rest) = bytes.split_at(here);
                    self.keep(content);
                    bytes = rest;
                    let left = left - here as u64;
                    if left > 0 {
                        self.state = State::Content(left);
                        return;
                    }
                    self.string_ended();
                }
                State::End | State::Enough | State::Broken => return,
                _ => {
                    let Some((&byte, rest)) = bytes.split_first() else {
                        return;
                    };
                    bytes = rest;
                    self.looked_at += 1;
                    self.state = if self.looked_at > MAX_LOOKED_AT {
                        State::Enough
                    } else {
                        self.next(byte)
                    };
                }
            }
        }
    }

    /// Whether the rest of the body can change nothing.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::End | State::Enough | State::Broken)
    }

    /// What it was, and the tracker's `warning message` if it sent one.
    pub fn finish(self) -> (Answer, Option<Text>) {
        let whole = match self.state {
            State::Start | State::Broken => return (Answer::NotBencode, None),
            State::End | State::Enough => true,
            _ => false,
        };
        // A reason that is there was meant, even if the rest is not.
        let answer = match self.failure {
            Some(reason) => Answer::Failure(Text::new(reason)),
            None if !whole => Answer::Cut,
            None if self.announce => Answer::Announce,
            None if self.files => Answer::Scrape,
            None => Answer::OtherDictionary,
        };
        (answer, self.warning.map(Text::new))
    }

    /// The state after a byte outside of strings.
    fn next(&mut self, byte: u8) -> State {
        match (self.state, byte) {
            (State::Start, b'd') => {
                self.depth = 1;
                State::Item
            }
            (State::Item, b'0'..=b'9') => State::Length(u64::from(byte - b'0')),
            (State::Item, b'e') => self.close(),
            // Keys are strings.
            (State::Item, _) if self.wants_key => State::Broken,
            (State::Item, b'i') => State::Number(0),
            (State::Item, b'd' | b'l') if self.depth < MAX_DEPTH => {
                self.value_begins();
                self.depth += 1;
                State::Item
            }
            (State::Length(length), b'0'..=b'9') => {
                // No string of an answer has gigabytes, and no sum of such lengths overflows.
                let length = length * 10 + u64::from(byte - b'0');
                if length < 1 << 32 {
                    State::Length(length)
                } else {
                    State::Broken
                }
            }
            (State::Length(length), b':') => {
                self.string_begins();
                State::Content(length)
            }
            (State::Number(digits), b'0'..=b'9') if digits < 24 => State::Number(digits + 1),
            (State::Number(0), b'-') => State::Number(1),
            (State::Number(1..), b'e') => {
                self.value_begins();
                self.value_ended();
                State::Item
            }
            _ => State::Broken,
        }
    }

    fn close(&mut self) -> State {
        self.depth -= 1;
        if self.depth > 0 {
            self.value_ended();
            return State::Item;
        }
        if self.wants_key {
            State::End
        } else {
            // A key without its value.
            State::Broken
        }
    }

    fn string_begins(&mut self) {
        if self.depth != 1 {
            return;
        }
        if self.wants_key {
            self.name_len = 0;
            return;
        }
        self.value_begins();
        match self.key {
            Key::Failure if self.failure.is_none() => self.failure = Some(Vec::new()),
            Key::Warning if self.warning.is_none() => self.warning = Some(Vec::new()),
            // Said twice: the first one counts.
            Key::Failure | Key::Warning => self.key = Key::Other,
            _ => {}
        }
    }

    /// Keeps what of a string matters.
    fn keep(&mut self, content: &[u8]) {
        if self.depth != 1 {
            return;
        }
        if self.wants_key {
            let room = MAX_KEY - self.name_len.min(MAX_KEY);
            let kept = content.len().min(room);
            let end = self.name_len.min(MAX_KEY) + kept;
            self.name[end - kept..end].copy_from_slice(&content[..kept]);
            // More than there is room for is no key that matters.
            self.name_len = self.name_len.saturating_add(content.len());
            return;
        }
        let text = match self.key {
            Key::Failure => self.failure.as_mut(),
            Key::Warning => self.warning.as_mut(),
            _ => None,
        };
        if let Some(text) = text {
            let kept = content.len().min(MAX_TEXT - text.len());
            text.extend_from_slice(&content[..kept]);
        }
    }

    fn string_ended(&mut self) {
        self.state = State::Item;
        if self.depth == 1 && self.wants_key {
            let name = self.name.get(..self.name_len).unwrap_or_default();
            self.key = Key::of(name);
            self.wants_key = false;
        } else {
            self.value_ended();
        }
    }

    /// A value of the outermost dictionary begins: its key says what the answer is.
    fn value_begins(&mut self) {
        if self.depth == 1 {
            self.files |= self.key == Key::Files;
            self.announce |= self.key == Key::Announce;
        }
    }

    fn value_ended(&mut self) {
        if self.depth == 1 {
            self.wants_key = true;
            self.key = Key::Other;
        }
    }
}

#[cfg(test)]
mod tests;
