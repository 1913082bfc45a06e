//! Reading an application's table.

use sqlx::SqliteConnection;

use super::migrations;
use crate::store::{
    ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError,
    foreign::{self, STANDARD},
    prefix,
    schema::{Column, quoted},
    sql::{ask::Ask as _, values},
};

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
    let counts = connection.verbatim(&statement, values![]).await?;
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
    connection.run("PRAGMA query_only = ON").await?;
    let rows = connection.verbatim(&statement, values![after, limit]).await;
    connection.run("PRAGMA query_only = OFF").await?;
    foreign::rows(rows, reading, &STANDARD)
}

/// The name of a table that was written as in SQL: `"User"`, `main."User"`, `[User]`.
fn bare(table: &str) -> &str {
    let quotes = [('"', '"'), ('[', ']'), ('`', '`')];
    let name = table.strip_prefix("main.").unwrap_or(table);
    quotes.iter().find_map(|(open, close)| name.strip_prefix(*open)?.strip_suffix(*close)).unwrap_or(name)
}
