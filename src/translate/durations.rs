//! Durations as Go and Kubernetes write them: `1h30m`, `500ms`, `0s`.

use std::time::Duration;

use super::report::{Field, Report};

/// Why a duration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Nothing was given.
    #[error("the duration is empty")]
    Empty,
    /// A number without unit.
    #[error("{0:?} has no unit")]
    NoUnit(String),
    /// A unit that does not exist.
    #[error("{input:?} has the unknown unit {unit:?}")]
    Unit {
        /// As written.
        input: String,
        /// What stood after the number.
        unit: String,
    },
    /// Not a duration at all.
    #[error("{0:?} is not a duration")]
    Malformed(String),
    /// More than ten years.
    #[error("{0:?} is too long")]
    TooLong(String),
}

impl DurationError {
    /// What to write instead.
    pub fn hint(&self) -> String {
        match self {
            Self::NoUnit(number) => format!("write {number}s for seconds"),
            Self::Unit { unit, .. } if unit.starts_with(['d', 'w', 'y']) => {
                "hours are the largest unit: 24h, 168h, 8760h".to_owned()
            }
            Self::TooLong(_) => "write 0s for no limit".to_owned(),
            _ => "write one such as 30s, 1h30m or 500ms".to_owned(),
        }
    }
}

/// Reads a duration: decimal numbers, each with a unit (`ns`, `us`, `ms`, `s`, `m`, `h`).
pub fn parse_duration(input: &str) -> Result<Duration, DurationError> {
    const LONGEST: f64 = 10.0 * 366.0 * 24.0 * 3600.0;
    if input.is_empty() {
        return Err(DurationError::Empty);
    }
    if input == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0_f64;
    let mut rest = input;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number
            .parse()
            .map_err(|_| DurationError::Malformed(input.to_owned()))?;
        let letters = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "" => return Err(DurationError::NoUnit(input.to_owned())),
                other if other.trim() != other => {
                    return Err(DurationError::Malformed(input.to_owned()));
                }
                other => {
                    return Err(DurationError::Unit {
                        input: input.to_owned(),
                        unit: other.to_owned(),
                    });
                }
            };
        rest = tail;
    }
    if seconds > LONGEST {
        return Err(DurationError::TooLong(input.to_owned()));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| DurationError::Malformed(input.to_owned()))
}

/// The duration of a field; `default` when absent.
pub(super) fn duration_or(
    report: &mut Report,
    field: &Field<'_>,
    written: Option<&str>,
    default: Duration,
) -> Option<Duration> {
    let Some(written) = written else {
        return Some(default);
    };
    match parse_duration(written) {
        Ok(duration) => Some(duration),
        Err(error) => {
            report.invalid(field, error.to_string(), error.hint());
            None
        }
    }
}

/// Like [`duration_or`], but `0s` is refused.
pub(super) fn positive_duration_or(
    report: &mut Report,
    field: &Field<'_>,
    written: Option<&str>,
    default: Duration,
) -> Option<Duration> {
    let duration = duration_or(report, field, written, default)?;
    if duration.is_zero() {
        report.invalid(
            field,
            format!("{:?} must be longer than zero", written.unwrap_or_default()),
            "write one such as 5s",
        );
        return None;
    }
    Some(duration)
}

/// A limit: `0s` means none.
pub(super) fn limit_or(
    report: &mut Report,
    field: &Field<'_>,
    written: Option<&str>,
    default: Option<Duration>,
) -> Option<Duration> {
    match written {
        None => default,
        Some(_) => duration_or(report, field, written, Duration::ZERO).filter(|d| !d.is_zero()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_does() {
        for (input, millis) in [
            ("0s", 0),
            ("0", 0),
            ("500ms", 500),
            ("1.5s", 1500),
            ("1h30m", 5_400_000),
            ("24h", 86_400_000),
        ] {
            assert_eq!(
                parse_duration(input).unwrap(),
                Duration::from_millis(millis),
                "{input}"
            );
        }
        for (input, error) in [
            ("", "the duration is empty"),
            ("10", "\"10\" has no unit"),
            ("10 s", "\"10 s\" is not a duration"),
            ("1d", "\"1d\" has the unknown unit \"d\""),
            ("-1s", "\"-1s\" is not a duration"),
            ("s", "\"s\" is not a duration"),
            ("1.2.3s", "\"1.2.3s\" is not a duration"),
            ("999999h", "\"999999h\" is too long"),
        ] {
            assert_eq!(parse_duration(input).unwrap_err().to_string(), error);
        }
        assert_eq!(
            parse_duration("10").unwrap_err().hint(),
            "write 10s for seconds"
        );
    }
}
