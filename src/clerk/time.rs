//! Times in Clerk's bodies: milliseconds on the wire, seconds in published examples, and text in bodies that other software has
//! rewritten.

use chrono::{DateTime, Utc};

use crate::model::object::Decimal;

/// A smaller number is in seconds: as milliseconds it would be in 1973 or earlier. A negative number is in milliseconds.
const FIRST_MILLISECONDS: i64 = 100_000_000_000;

/// The time in this JSON: a whole number in any notation, or RFC 3339 text. `None` for anything else, and for years that some
/// store cannot hold. Fractions of a millisecond are cut off.
pub(super) fn instant(json: &str) -> Option<DateTime<Utc>> {
    if json.starts_with('"') {
        let text: String = serde_json::from_str(json).ok()?;
        return within_years(DateTime::parse_from_rfc3339(&text).ok()?.timestamp_millis());
    }
    let number = whole(json)?;
    within_years(if (0..FIRST_MILLISECONDS).contains(&number) { number * 1000 } else { number })
}

/// A time from Unix milliseconds, within the years that every store can hold.
fn within_years(milliseconds: i64) -> Option<DateTime<Utc>> {
    const YEAR_1: i64 = -62_135_596_800_000;
    const YEAR_9999: i64 = 253_402_300_799_999;
    (YEAR_1..=YEAR_9999).contains(&milliseconds).then(|| DateTime::from_timestamp_millis(milliseconds))?
}

/// A number without a fraction, exactly: `17`, `17.0`, `1.7e1`. `None` if it has a fraction, or too many digits for a time.
fn whole(number: &str) -> Option<i64> {
    const MOST_DIGITS: usize = 18;
    let Decimal { negative, digits, power } = Decimal::parse(number)?;
    let zeros = usize::try_from(power).ok()?;
    if digits.len().checked_add(zeros)? > MOST_DIGITS {
        return None;
    }
    let number: i64 = format!("0{digits}{}", "0".repeat(zeros)).parse().ok()?;
    Some(if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(json: &str) -> Option<i64> {
        instant(json).map(|at| at.timestamp_millis())
    }

    #[test]
    fn a_time_is_the_same_however_it_is_written() {
        for json in [
            "1716883200000",
            "1716883200",
            "1716883200.0",
            "1716883200000.000",
            "1.7168832e12",
            "1.7168832E+9",
            "17168832e5",
            "171688320000000e-2",
            "1716883200000000.0e-003",
            r#""2024-05-28T08:00:00Z""#,
            r#""2024-05-28T10:00:00+02:00""#,
            r#""2024-05-28T08:00:00.000999Z""#,
            r#""2024\u002d05-28t08:00:00z""#,
        ] {
            assert_eq!(milliseconds(json), Some(1_716_883_200_000), "{json}");
        }
        assert_eq!(milliseconds("1716883200123.0"), Some(1_716_883_200_123));
        assert_eq!(milliseconds(r#""2021-01-05T14:29:48.385449Z""#), Some(1_609_856_988_385));
        for (json, expected) in [
            ("0", 0),
            ("-0.0e9", 0),
            ("0e999999999999999999", 0),
            ("-5", -5),
            ("99999999999", 99_999_999_999_000),
            ("100000000000", 100_000_000_000),
            ("-62135596800000", -62_135_596_800_000),
        ] {
            assert_eq!(milliseconds(json), Some(expected), "{json}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for json in [
            "1.5",
            "1716883200000.5",
            "17e-1",
            "1e400000",
            "1e-400000",
            "1e99999999999999999999",
            "253402300800000",
            "99999999999999999999999",
            "true",
            "[1]",
            "{}",
            r#""""#,
            r#""now""#,
            r#""1716883200000""#,
            r#""2024-05-28""#,
            r#""2024-05-28T08:00:00""#,
            r#""2024-13-28T08:00:00Z""#,
        ] {
            assert_eq!(milliseconds(json), None, "{json}");
        }
    }
}
