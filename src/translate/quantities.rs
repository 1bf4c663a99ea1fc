//! Sizes in bytes as Kubernetes writes them: `50Mi`, `1.5G`, `4096`.

use super::report::{Field, Report};
use crate::api::Quantity;

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// A suffix that is no unit of size.
    #[error("{input:?} has the unknown suffix {suffix:?}")]
    Suffix {
        /// As written.
        input: String,
        /// What stood after the number.
        suffix: String,
    },
    /// Not a number of bytes.
    #[error("{0:?} is not a size in bytes")]
    Malformed(String),
}

impl QuantityError {
    /// What to write instead.
    pub fn hint(&self) -> String {
        match self {
            Self::Suffix { suffix, .. } => {
                match suffix.to_ascii_lowercase().trim_end_matches('b') {
                    "k" | "ki" => "write k (1000) or Ki (1024)".to_owned(),
                    "m" | "mi" => "write M (1000²) or Mi (1024²)".to_owned(),
                    "g" | "gi" => "write G (1000³) or Gi (1024³)".to_owned(),
                    _ => "write a size such as 50Mi".to_owned(),
                }
            }
            Self::Malformed(_) => "write a size such as 50Mi".to_owned(),
        }
    }
}

/// Reads a size in bytes; fractions are rounded up.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked against the range just before"
)]
pub fn parse_quantity(input: &str) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed(input.to_owned());
    let digits = input
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(input.len());
    let (number, suffix) = input.split_at(digits);
    if number.is_empty() {
        return Err(malformed());
    }
    let factor: u64 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "T" => 1000_u64.pow(4),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        other => {
            return Err(QuantityError::Suffix {
                input: input.to_owned(),
                suffix: other.to_owned(),
            });
        }
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(malformed);
    }
    let fraction: f64 = number.parse().map_err(|_| malformed())?;
    #[expect(clippy::cast_precision_loss, reason = "factors are powers that fit")]
    let bytes = (fraction * factor as f64).ceil();
    if bytes > 1e18 {
        return Err(malformed());
    }
    Ok(bytes as u64)
}

/// The size of a field, if written.
pub(super) fn quantity(
    report: &mut Report,
    field: &Field<'_>,
    written: Option<&Quantity>,
) -> Option<u64> {
    match parse_quantity(&written?.0) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            report.invalid(field, error.to_string(), error.hint());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_does() {
        for (input, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("50Mi", 50 << 20),
            ("1.5Ki", 1536),
            ("2G", 2_000_000_000),
        ] {
            assert_eq!(parse_quantity(input), Ok(bytes), "{input}");
        }
        for (input, hint) in [
            ("50MB", "write M (1000²) or Mi (1024²)"),
            ("50m", "write M (1000²) or Mi (1024²)"),
            ("10kb", "write k (1000) or Ki (1024)"),
            ("-1", "write a size such as 50Mi"),
            ("", "write a size such as 50Mi"),
            ("1 Mi", "write a size such as 50Mi"),
            ("99999999999999999999", "write a size such as 50Mi"),
        ] {
            assert_eq!(parse_quantity(input).unwrap_err().hint(), hint, "{input}");
        }
    }
}
