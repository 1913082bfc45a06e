//! Values as SQLite stores them: times are RFC 3339 UTC text with milliseconds, booleans are 0 or 1, JSON is text.

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::{Row as _, sqlite::SqliteRow};

use super::error::explain;
use crate::store::Result;

/// For example `2026-11-21T20:57:27.123Z`. The length is always the same, so text order is time order.
pub(super) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// An integer column.
pub(super) fn read_integer(row: &SqliteRow, column: &str) -> Result<Option<i64>> {
    row.try_get_unchecked(column).map_err(explain)
}
