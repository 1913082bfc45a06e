//! Reading users from a table that is not ours, as Prisma or Drizzle made it.

use serde_json::{Map, Value as Json};
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::{error::explain, migrations, users::quoted};
use crate::store::{ForeignUser, Result, StoreError, foreign};

/// Up to `limit` users in the order of their ids, after this one.
pub(super) async fn users(
    connection: &mut SqliteConnection,
    table: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignUser>> {
    let columns: Vec<String> =
        migrations::columns(connection, table).await?.into_iter().map(|column| column.name).collect();
    if columns.is_empty() {
        return Err(StoreError::schema(format!("there is no table {table} in this database")));
    }
    let id = foreign::id_column(table, &columns)?;
    let rows = sqlx::query(AssertSqlSafe(statement(table, id, &columns)))
        .persistent(false)
        .bind(after.unwrap_or_default())
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(explain)?;
    let mut users = Vec::with_capacity(rows.len());
    for row in &rows {
        let json: String = row.try_get(0).map_err(explain)?;
        let columns: Map<String, Json> = serde_json::from_str(&json).unwrap_or_default();
        users.extend(foreign::user(&columns));
    }
    Ok(users)
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
        "SELECT json_object({pairs})
         FROM {table}
         WHERE {id} COLLATE BINARY > ?1
         -- Ids that differ only in case are two users, whatever the column says.
         ORDER BY {id} COLLATE BINARY
         LIMIT ?2"
    )
}
