//! Times as people and JSON read them: RFC 3339 in what is stored, "3 days" in what is said.
//!
//! Everything saturates: a certificate may carry any date, and none of them may panic or wrap here.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// One minute.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
/// One hour.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// One day.
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// How long from `earlier` to `later`; zero when the order is the other way round.
pub fn between(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or(Duration::ZERO)
}

/// `time + by`, or `time` when the sum cannot be represented.
pub fn after(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_add(by).unwrap_or(time)
}

/// `time - by`, or the epoch when the difference cannot be represented.
pub fn before(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The time without its fraction of a second.
///
/// Certificates and stored state have whole seconds; a time that is compared with them must too, or a
/// decision flips back and forth within one second.
pub fn truncated(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

/// The next whole second, or the time itself if it is one: for what must not happen earlier.
pub fn rounded_up(time: SystemTime) -> SystemTime {
    match truncated(time) {
        whole if whole == time => time,
        whole => after(whole, Duration::from_secs(1)),
    }
}

/// Part of a duration, `fraction` between 0 and 1.
pub fn part(of: Duration, fraction: f64) -> Duration {
    of.mul_f64(unit_interval(fraction))
}

/// The number within `0..=1`; what is no number is 0.
pub fn unit_interval(number: f64) -> f64 {
    if number.is_finite() {
        number.clamp(0.0, 1.0)
    } else {
        0.0
    }
}

/// A number in `0..1` that is the same whenever the bytes are: the place of one certificate in a spread.
pub fn jitter_of(fingerprint: &[u8]) -> f64 {
    // FNV-1a over all bytes: any identifier will do, also one that is no hash.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in fingerprint {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // FNV leaves short inputs close together: splitmix64's finish spreads them. 32 bits fit an f64 exactly.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let low = u32::try_from((hash ^ (hash >> 31)) & 0xffff_ffff).unwrap_or(0);
    f64::from(low) / (f64::from(u32::MAX) + 1.0)
}

/// The time as `2026-11-21 15:08 UTC`, for sentences.
pub fn stamp(time: SystemTime) -> String {
    let text = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    date_time(time)
        .format(text)
        .unwrap_or_else(|_| "an unknown time".to_owned())
}

/// The time in RFC 3339, whole seconds, UTC.
pub fn rfc3339_text(time: SystemTime) -> String {
    date_time(truncated(time))
        .format(&Rfc3339)
        .unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}

/// Reads RFC 3339 in any offset.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .map(SystemTime::from)
}

fn date_time(time: SystemTime) -> OffsetDateTime {
    // `OffsetDateTime::from` panics outside of its years.
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(error) => {
            i64::try_from(error.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds)
        }
    };
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A duration in the one or two units that matter: `45 seconds`, `2 hours 5 minutes`, `12 days`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours) = (seconds / 86_400, seconds % 86_400 / 3600);
    let (minutes, rest) = (seconds % 3600 / 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => unit(rest, "second"),
        (0, 0, _) if minutes < 10 && rest > 0 => two(minutes, "minute", rest, "second"),
        (0, 0, _) => unit(minutes, "minute"),
        (0, _, _) => two(hours, "hour", minutes, "minute"),
        (1..=3, _, _) => two(days, "day", hours, "hour"),
        _ => unit(days, "day"),
    }
}

fn two(first: u64, first_unit: &str, second: u64, second_unit: &str) -> String {
    if second == 0 {
        unit(first, first_unit)
    } else {
        format!("{} {}", unit(first, first_unit), unit(second, second_unit))
    }
}

fn unit(count: u64, name: &str) -> String {
    if count == 1 {
        format!("1 {name}")
    } else {
        format!("{count} {name}s")
    }
}

/// At most `longest` bytes of a text from outside, cut at a character, without control characters.
pub fn bounded(text: &str, longest: usize) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if clean.len() <= longest {
        return clean;
    }
    let mut end = longest.saturating_sub('…'.len_utf8());
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &clean[..end])
}

/// `#[serde(with = "moment::rfc3339")]`: a time as RFC 3339 text.
pub mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// Writes whole seconds, UTC.
    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::rfc3339_text(*time))
    }

    /// Reads any offset.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_rfc3339(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no RFC 3339 time")))
    }
}

/// `#[serde(with = "moment::rfc3339_option", default)]`: a time that may be absent.
pub mod rfc3339_option {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// Writes whole seconds, UTC, or null.
    pub fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::rfc3339::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads any offset, or null.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        super::parse_rfc3339(&text)
            .map(Some)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no RFC 3339 time")))
    }
}

/// `#[serde(with = "moment::rfc3339_list", default)]`: several times.
pub mod rfc3339_list {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// Writes whole seconds, UTC.
    pub fn serialize<S: Serializer>(
        times: &[SystemTime],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(times.iter().map(|time| super::rfc3339_text(*time)))
    }

    /// Reads any offset.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<SystemTime>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| {
                super::parse_rfc3339(text)
                    .ok_or_else(|| D::Error::custom(format!("{text:?} is no RFC 3339 time")))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_said_in_the_units_that_matter() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "1 minute 1 second"),
            (600, "10 minutes"),
            (3661, "1 hour 1 minute"),
            (7200, "2 hours"),
            (86_400 + 3600, "1 day 1 hour"),
            (12 * 86_400 + 7000, "12 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_time_survives_its_text() {
        for text in [
            "2026-11-21T15:08:04Z",
            "1969-12-31T23:59:59Z",
            "9999-12-31T23:59:59Z",
        ] {
            let time = parse_rfc3339(text).unwrap();
            if text > "1970" {
                assert_eq!(rfc3339_text(time), text);
            }
        }
        assert_eq!(
            parse_rfc3339("2026-11-21T16:08:04+01:00"),
            parse_rfc3339("2026-11-21T15:08:04Z")
        );
        assert_eq!(
            stamp(parse_rfc3339("2026-11-21T15:08:04Z").unwrap()),
            "2026-11-21 15:08 UTC"
        );
    }

    #[test]
    fn absurd_times_do_not_panic() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 1_000_000);
        for time in [
            far,
            before(SystemTime::UNIX_EPOCH, DAY),
            SystemTime::UNIX_EPOCH - DAY,
        ] {
            stamp(time);
            rfc3339_text(time);
            truncated(time);
            after(time, Duration::MAX);
            before(time, Duration::MAX);
        }
        assert_eq!(part(DAY, f64::NAN), Duration::ZERO);
        assert_eq!(part(DAY, 7.0), DAY);
    }

    #[test]
    fn jitter_is_stable_and_spread() {
        assert!((jitter_of(b"a") - jitter_of(b"a")).abs() < f64::EPSILON);
        let mut tenths = [0_u32; 10];
        for index in 0..10_000_u32 {
            let jitter = jitter_of(&index.to_be_bytes());
            assert!((0.0..1.0).contains(&jitter));
            let tenth = (0..10)
                .rev()
                .find(|n| jitter >= f64::from(*n) / 10.0)
                .unwrap();
            tenths[usize::try_from(tenth).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|n| (800..1200).contains(n)), "{tenths:?}");
    }

    #[test]
    fn a_text_from_outside_is_cut_at_a_character() {
        assert_eq!(bounded("short\nline", 20), "short line");
        assert_eq!(bounded("äääää", 7), "ää…");
        assert!(bounded(&"x".repeat(100), 10).len() <= 10);
    }
}
