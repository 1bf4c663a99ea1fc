//! A value that must not be printed.

use std::fmt;

/// Holds a credential; `Debug` shows that something is there and nothing of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps the value from the moment it is parsed.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, at the moment of use.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
