//! What is wrong with a configuration, for people.

use std::fmt;
use std::path::PathBuf;

/// Why there is no [`super::Config`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no YAML, or not of this form. The text names line and field.
    #[error("read {}: {found}", path.display())]
    Form {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        found: String,
    },
    /// Values that cannot be used.
    #[error("use the configuration: {}", list(.0))]
    Invalid(Vec<Problem>),
}

/// One wrong value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, such as `mappings[2].target`.
    pub field: String,
    /// What was found there.
    pub found: String,
    /// What to write instead.
    pub mend: String,
}

impl Problem {
    pub(super) fn new(
        field: impl Into<String>,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            found: found.into(),
            mend: mend.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.found, self.mend)
    }
}

fn list(problems: &[Problem]) -> String {
    match problems {
        [one] => one.to_string(),
        many => many.iter().fold(String::new(), |text, problem| {
            format!("{text}\n  {problem}")
        }),
    }
}
