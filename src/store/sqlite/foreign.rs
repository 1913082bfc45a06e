//! Reading a table that is not ours.

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::{error::explain, migrations, text::ask};
use crate::store::{
    ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError, Trouble, foreign,
    schema::quoted,
    sql::{Row, only},
};

/// What SQLite says to a statement that would write. Source: <https://sqlite.org/rescode.html>
const READONLY: &str = "8";

/// The table, its columns and what is in them.
pub(super) async fn describe(connection: &mut SqliteConnection, table: &str) -> Result<ForeignTable> {
    let table = bare(table);
    let columns = migrations::columns(connection, table).await?;
    if columns.is_empty() {
        return Err(StoreError::schema(format!("there is no table {table} in this database")));
    }
    let mut found = Vec::new();
    let mut rows = 0;
    for column in columns {
        let name = quoted(&column.name);
        // Assembled because the names are not ours; they are quoted, and each was found in the database.
        let statement = format!(
            "SELECT count(*), count(CASE WHEN {name} <> '' THEN 1 END), count(CASE WHEN {name} GLOB 'user_*' THEN 1 END),
                    count(CASE WHEN {name} GLOB 'user_*' AND length({name}) = 32
                                AND substr({name}, 6) NOT GLOB '*[^0-9A-Za-z]*' THEN 1 END)
             FROM {}",
            quoted(table)
        );
        let counts = ask(connection, sqlx::query(AssertSqlSafe(statement)).persistent(false)).await?;
        let row = only(&counts)?;
        rows = row.get(0)?;
        found.push(ForeignColumn {
            name: column.name,
            // Its types do not tell.
            lacks_zone: false,
            filled: row.get(1)?,
            like_ids: row.get(2)?,
            ids: row.get(3)?,
        });
    }
    // The zone of CURRENT_TIMESTAMP.
    Ok(ForeignTable { columns: found, rows, zone: Some("UTC".to_owned()), hides_rows: false })
}

/// Up to `limit` rows in the order of their ids, after this one.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    reading: &ForeignReading,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignRow>> {
    // A condition that ends our statement and begins another one changes nothing.
    read_only(connection, true).await?;
    let query = sqlx::query(AssertSqlSafe(statement(reading))).persistent(false).bind(after).bind(limit);
    let rows = ask(connection, query).await;
    read_only(connection, false).await?;
    let rows = rows.map_err(|error| {
        let writes = error.code.as_deref() == Some(READONLY);
        let error = if writes { StoreError { trouble: Trouble::Refused, ..error } } else { error };
        foreign::explained(error, reading)
    })?;
    let read = |row: &Row| {
        Ok(ForeignRow {
            id: row.get(0)?,
            values: serde_json::from_str(&row.get::<String>(1)?).unwrap_or_default(),
            meets_condition: row.get(2)?,
        })
    };
    rows.iter().map(read).collect()
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

/// Assembled because the names are not ours; they are quoted, and each was found in the database. The condition is that of
/// the user, whose file it is.
fn statement(reading: &ForeignReading) -> String {
    let read = |column: &String| {
        let (name, value) = (column.replace('\'', "''"), quoted(column));
        // JSON has no bytes.
        format!("'{name}', CASE typeof({value}) WHEN 'blob' THEN CAST({value} AS TEXT) ELSE {value} END")
    };
    let pairs = reading.columns.iter().map(read).collect::<Vec<_>>().join(", ");
    let id = format!("CAST({} AS TEXT) COLLATE BINARY", quoted(&reading.id));
    format!(
        "SELECT {id} AS id, json_object({pairs}) AS json, (
             {condition}
         ) IS TRUE AS meets
         FROM {table}
         WHERE {id} <> '' AND (?1 IS NULL OR {id} > ?1)
         -- Ids that differ only in case are two users, whatever the column says.
         ORDER BY {id}
         LIMIT ?2",
        condition = reading.condition.as_deref().unwrap_or("0"),
        table = quoted(bare(&reading.table)),
    )
}
