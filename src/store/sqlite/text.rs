//! Values as SQLite stores them: times are RFC 3339 UTC text with milliseconds, booleans are 0 or 1, JSON is text.

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::{
    Row as _, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::error::explain;
use crate::store::{
    ErrorKind, Result, StoreError,
    sql::{Row, RowCells},
};

/// For example `2026-11-21T20:57:27.123Z`. The length is always the same, so text order is time order.
pub(super) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The rows of a query that is specific to SQLite.
pub(super) async fn ask(
    connection: &mut SqliteConnection,
    query: Query<'_, sqlx::Sqlite, SqliteArguments>,
) -> Result<Vec<Row>> {
    Ok(Row::all(query.fetch_all(connection).await.map_err(explain)?, RowCells::Sqlite, &[]))
}

/// An integer column.
pub(super) fn read_integer(row: &SqliteRow, column: &str) -> Result<Option<i64>> {
    row.try_get_unchecked(column).map_err(explain)
}

/// The error for a value in clerk-sync's tables that another program must have written.
pub(super) fn unreadable(column: &str) -> StoreError {
    StoreError {
        place: Some(format!("column {column} cannot be read")),
        ..StoreError::new(ErrorKind::Broken)
    }
}
