//! Prints an error with everything that caused it, as `a: b: c`.
//!
//! Errors of this project never repeat their source in their own text, so this is the only place that joins
//! them.

use std::error::Error;
use std::fmt;

/// An error and its sources, joined by `: ` when displayed.
#[derive(Clone, Copy)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

/// Joins the error with its sources: `tracing::warn!(error = %chain(&error), "…")`.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            // Errors of other crates often repeat their source.
            if !text.is_empty() && !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn sources_are_joined_and_repetitions_left_out() {
        let error = Layer(
            "read the folder",
            Some(Box::new(Layer(
                "open it: permission denied",
                Some(Box::new(Layer("permission denied", None))),
            ))),
        );
        assert_eq!(
            chain(&error).to_string(),
            "read the folder: open it: permission denied"
        );
    }
}
