//! Values as SQLite holds them: times are RFC 3339 UTC text with milliseconds, booleans 0/1, JSON text.

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::{Row, sqlite::SqliteRow};

use super::error::explain;
use crate::store::{Result, StoreError, Trouble};

/// Such as `2026-11-21T20:57:27.123Z`: always as long, so that the order of the text is the order of time.
pub(super) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A text column. What is no UTF-8 is read as far as it goes: the application may have written it.
pub(super) fn read(row: &SqliteRow, column: &str) -> Result<Option<String>> {
    let bytes: Option<Vec<u8>> = row.try_get_unchecked(column).map_err(explain)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// An integer column.
pub(super) fn read_integer(row: &SqliteRow, column: &str) -> Result<Option<i64>> {
    row.try_get_unchecked(column).map_err(explain)
}

/// A time column; what is no time counts as none.
pub(super) fn read_time(row: &SqliteRow, column: &str) -> Result<Option<DateTime<Utc>>> {
    let time = read(row, column)?;
    Ok(time.and_then(|time| DateTime::parse_from_rfc3339(&time).ok()).map(|time| time.to_utc()))
}

/// Something of ours that somebody else must have written.
pub(super) fn unreadable(column: &str) -> StoreError {
    StoreError { place: Some(format!("column {column} cannot be read")), ..StoreError::new(Trouble::Broken) }
}
