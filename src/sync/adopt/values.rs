//! Lenient reading of the values of an application's table. A value that cannot be understood is left out: Clerk has
//! the correct one.

use std::collections::BTreeSet;

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;
use serde_json::Value as Json;

use crate::{
    model::{Field, Holds, Value},
    store::ForeignRow,
};

/// Whether this is an id that Clerk assigns to users. Ids that the application changed to mark a user as deleted do not
/// count.
pub(super) fn is_clerks(id: &str) -> bool {
    const LENGTH: usize = 27;
    const CHANGED: [&str; 7] = ["delet", "remov", "archiv", "anonym", "erase", "purge", "disable"];
    let Some(rest) = id.strip_prefix("user_").filter(|rest| !rest.is_empty()) else { return false };
    let of_clerk = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
    if of_clerk == rest.len() && of_clerk == LENGTH {
        return true;
    }
    let lower = rest.to_ascii_lowercase();
    (of_clerk == rest.len() || of_clerk < LENGTH) && !CHANGED.iter().any(|word| lower.contains(word))
}

/// Reads values, and remembers which columns have times without a zone.
pub(super) struct Reader {
    zone: Tz,
    /// The columns with times that have no zone.
    pub(super) zoneless: BTreeSet<String>,
}

impl Reader {
    pub(super) fn new(zone: Tz) -> Self {
        Self { zone, zoneless: BTreeSet::new() }
    }

    pub(super) fn time_in(&mut self, row: &ForeignRow, column: &str) -> Option<DateTime<Utc>> {
        self.time(row.values.get(column)?, column)
    }

    pub(super) fn value(&mut self, field: Field, json: &Json, column: &str) -> Option<Value> {
        match field.holds {
            // Some tables store the time of verification instead of a boolean.
            Holds::Bool => truth(json).or_else(|| self.time(json, column).map(|_| true)).map(Value::Bool),
            Holds::Time => self.time(json, column).map(Value::Time),
            Holds::Json => match json {
                Json::Null => None,
                // SQLite has no JSON type: the text is the JSON.
                Json::String(text) => serde_json::from_str::<serde::de::IgnoredAny>(text)
                    .ok()
                    .map(|_| Value::Json(text.clone())),
                other => Some(Value::Json(other.to_string())),
            },
            Holds::Int => json.as_i64().map(Value::Int),
            Holds::Text => json.as_str().map(|text| Value::Text(text.to_owned())),
        }
    }

    fn time(&mut self, json: &Json, column: &str) -> Option<DateTime<Utc>> {
        match time(json)? {
            Time::At(at) => Some(at),
            Time::WithoutZone(at) => {
                if !self.zoneless.contains(column) {
                    self.zoneless.insert(column.to_owned());
                }
                // When clocks go back, take the first of the two times. A local time that the clocks skip does not exist,
                // and is read as UTC.
                self.zone
                    .from_local_datetime(&at)
                    .earliest()
                    .map_or_else(|| Some(at.and_utc()), |at| Some(at.to_utc()))
            }
        }
    }
}

/// A time as the table stores it.
pub(super) enum Time {
    At(DateTime<Utc>),
    WithoutZone(NaiveDateTime),
}

/// Read RFC 3339, a database's format without a zone, or Unix time in seconds, milliseconds or microseconds.
pub(super) fn time(json: &Json) -> Option<Time> {
    let text = match json {
        Json::Number(number) => number.to_string(),
        other => other.as_str()?.trim().to_owned(),
    };
    if let Ok(number) = text.parse::<f64>() {
        return unix(number).map(Time::At);
    }
    // PostgreSQL writes: 2024-01-01 00:00:00+01.
    let with_minutes = format!("{text}:00");
    for text in [&text, &with_minutes] {
        let zoned = DateTime::parse_from_rfc3339(text)
            .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%:z"));
        if let Ok(at) = zoned {
            return Some(Time::At(at.to_utc()));
        }
    }
    let formats = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"];
    let naive = formats.iter().find_map(|format| NaiveDateTime::parse_from_str(&text, format).ok());
    let day = || NaiveDate::parse_from_str(&text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    naive.or_else(day).map(Time::WithoutZone)
}

fn unix(number: f64) -> Option<DateTime<Utc>> {
    const FIRST_MILLISECONDS: f64 = 1e11;
    const FIRST_MICROSECONDS: f64 = 1e14;
    let milliseconds = match number.abs() {
        size if size < FIRST_MILLISECONDS => number * 1000.0,
        size if size < FIRST_MICROSECONDS => number,
        _ => number / 1000.0,
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a number that is too large saturates and is not a valid time"
    )]
    DateTime::from_timestamp_millis(milliseconds.round() as i64)
}

/// Read a "yes" or "no" in any of the usual spellings.
pub(super) fn truth(json: &Json) -> Option<bool> {
    match json {
        Json::Bool(truth) => Some(*truth),
        Json::Number(number) => match number.as_f64()? {
            0.0 => Some(false),
            1.0 => Some(true),
            _ => None,
        },
        Json::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::entity::USER;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_that_was_changed_is_told_from_one_of_clerks() {
        let whole = "user_2d0000000000000000000000006";
        assert!(is_clerks(whole) && is_clerks("user_1") && is_clerks("user_gone_2"));
        for changed in [
            "deleted_user_2d0000000000000000000000006",
            "user_2d0000000000000000000000006_deleted",
            "user_2d0000000000000000000000006_1700000000",
            "user_2d0000000000000000000000006deleted",
            "user_2d0000000000000000000000006:old",
            "user_1_DELETED",
            "user_deleted_1",
            "user_",
            "guest_1",
            "",
        ] {
            assert!(!is_clerks(changed), "{changed}");
        }
    }

    #[test]
    fn times_are_read_in_all_the_ways_in_which_tables_hold_them() {
        let mut reader = Reader::new(Tz::Europe__Berlin);
        let mut at = |json: Json| reader.time(&json, "c").map(|at| at.timestamp_millis());
        let noon = 1_704_106_800_000;
        for same in [
            json!(1_704_106_800),
            json!(1_704_106_800_000_i64),
            json!(1_704_106_800_000_000_i64),
            json!(1_704_106_800.0),
            json!("1704106800000"),
            json!("2024-01-01T11:00:00Z"),
            json!("2024-01-01T12:00:00+01:00"),
            json!("2024-01-01 12:00:00+01"),
            json!("2024-01-01 12:00:00.000"),
            json!("2024-01-01T12:00"),
        ] {
            assert_eq!(at(same.clone()), Some(noon), "{same}");
        }
        assert_eq!(at(json!("2024-07-01 12:00:00")), Some(1_719_828_000_000), "in summer");
        assert_eq!(at(json!("2024-03-31 02:30:00")), Some(1_711_852_200_000), "an hour that does not exist");
        assert_eq!(
            (at(json!("infinity")), at(json!("")), at(json!(null)), at(json!(true))),
            (None, None, None, None)
        );
        assert_eq!(reader.zoneless.len(), 1);
    }

    #[test]
    fn a_time_of_verification_means_that_it_is_verified() {
        let mut reader = Reader::new(Tz::UTC);
        let mut verified =
            |json| reader.value(USER.field("email_verified"), &json, "c").and_then(|value| value.bool());
        assert_eq!(verified(json!("2024-01-01T11:00:00")), Some(true));
        assert_eq!(
            (verified(json!(0)), verified(json!("t")), verified(json!(null))),
            (Some(false), Some(true), None)
        );
    }
}
