//! Reading an application's table.

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::{error::explain, migrations, text::ask};
use crate::store::{
    ErrorKind, ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError,
    foreign::{self, STANDARD},
    prefix,
    schema::{Column, quoted},
};

/// SQLite's code for a write in a read-only mode. Source: <https://sqlite.org/rescode.html>
const READONLY: &str = "8";

/// The table, its columns and counts of their values.
pub(super) async fn describe(connection: &mut SqliteConnection, table: &str) -> Result<ForeignTable> {
    let table = bare(table);
    let columns = migrations::columns_of(connection, table).await?;
    if table == prefix::of_table("users") && columns.iter().any(|column| column.name == "synced_at") {
        return Err(StoreError::schema(format!(
            "{table} is clerk-sync's own table: name the application's table"
        )));
    }
    if columns.is_empty() {
        return Err(StoreError::schema(format!("there is no table {table} in this database")));
    }
    // SQLite's types do not show whether times have a zone.
    let column =
        |Column { name, .. }: Column| ForeignColumn { name, is_text: true, ..ForeignColumn::default() };
    let columns: Vec<ForeignColumn> = columns.into_iter().map(column).collect();
    let statement = foreign::counting(&columns, &quoted(table), &STANDARD);
    let counts = ask(connection, sqlx::query(AssertSqlSafe(statement)).persistent(false)).await?;
    // The zone of CURRENT_TIMESTAMP.
    Ok(ForeignTable { zone: Some("UTC".to_owned()), ..foreign::counted(&counts, columns)? })
}

/// Up to `limit` rows after this id, ordered by id.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    reading: &ForeignReading,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignRow>> {
    let pair = |column: &String| {
        let (name, value) = (column.replace('\'', "''"), quoted(column));
        // JSON has no bytes.
        format!("'{name}', CASE typeof({value}) WHEN 'blob' THEN CAST({value} AS TEXT) ELSE {value} END")
    };
    let pairs = reading.columns.iter().map(pair).collect::<Vec<_>>().join(", ");
    let id = format!("CAST({} AS TEXT) COLLATE BINARY", quoted(&reading.id));
    let (json, table) = (format!("json_object({pairs})"), quoted(bare(&reading.table)));
    let statement = foreign::page(reading, &id, &json, &table, &STANDARD);
    // A condition that ends the statement and begins another one cannot change anything.
    read_only(connection, true).await?;
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(after).bind(limit);
    let rows = ask(connection, query).await;
    read_only(connection, false).await?;
    let refused = |error: StoreError| match error.code.as_deref() {
        Some(READONLY) => StoreError { kind: ErrorKind::Refused, ..error },
        _ => error,
    };
    foreign::rows(rows.map_err(refused), reading, &STANDARD)
}

async fn read_only(connection: &mut SqliteConnection, on: bool) -> Result<()> {
    let pragma = if on { "PRAGMA query_only = ON" } else { "PRAGMA query_only = OFF" };
    sqlx::raw_sql(pragma).execute(connection).await.map_err(explain)?;
    Ok(())
}

/// The name of a table that was written as in SQL: `"User"`, `main."User"`, `[User]`.
fn bare(table: &str) -> &str {
    let quotes = [('"', '"'), ('[', ']'), ('`', '`')];
    let name = table.strip_prefix("main.").unwrap_or(table);
    quotes.iter().find_map(|(open, close)| name.strip_prefix(*open)?.strip_suffix(*close)).unwrap_or(name)
}
