//! Reading users from a table that is not ours, as Prisma or Drizzle made it.

use sqlx::{AssertSqlSafe, SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, migrations, text};
use crate::store::{ForeignUser, Result, StoreError, foreign, schema::quoted};

/// Up to `limit` users in the order of their ids, after this one.
pub(super) async fn users(
    connection: &mut SqliteConnection,
    table: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignUser>> {
    let columns = columns(connection, table).await?;
    let id = foreign::id_column(table, &columns)?;
    let rows = sqlx::query(AssertSqlSafe(statement(table, id, &columns)))
        .persistent(false)
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(explain)?;
    let read = |row: &SqliteRow| {
        Ok((text::read(row, "id")?.unwrap_or_default(), text::read(row, "json")?.unwrap_or_default()))
    };
    foreign::users(rows.iter().map(read).collect::<Result<_>>()?)
}

/// How many rows have no id.
pub(super) async fn count_without_id(connection: &mut SqliteConnection, table: &str) -> Result<u64> {
    let columns = columns(connection, table).await?;
    let id = quoted(foreign::id_column(table, &columns)?);
    let statement = format!("SELECT count(*) FROM {} WHERE {id} IS NULL", quoted(table));
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(statement))
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(explain)?;
    Ok(count.unsigned_abs())
}

/// The table's columns.
async fn columns(connection: &mut SqliteConnection, table: &str) -> Result<Vec<String>> {
    let columns = migrations::columns(connection, table).await?;
    if columns.is_empty() {
        return Err(StoreError::schema(format!("there is no table {table} in this database")));
    }
    Ok(columns.into_iter().map(|column| column.name).collect())
}

/// Assembled because the names are not ours; they are quoted, and each was found in the database.
fn statement(table: &str, id: &str, columns: &[String]) -> String {
    let read = |column: &String| {
        let (name, value) = (column.replace('\'', "''"), quoted(column));
        // JSON has no bytes.
        format!("'{name}', CASE typeof({value}) WHEN 'blob' THEN CAST({value} AS TEXT) ELSE {value} END")
    };
    let pairs =
        columns.iter().filter(|column| foreign::is_wanted(column)).map(read).collect::<Vec<_>>().join(", ");
    let (id, table) = (quoted(id), quoted(table));
    format!(
        "SELECT CAST({id} AS TEXT) AS id, json_object({pairs}) AS json
         FROM {table}
         -- Empty ids come too, to be counted.
         WHERE {id} COLLATE BINARY > ?1 OR (?1 IS NULL AND {id} IS NOT NULL)
         -- Ids that differ only in case are two users, whatever the column says.
         ORDER BY {id} COLLATE BINARY
         LIMIT ?2"
    )
}
