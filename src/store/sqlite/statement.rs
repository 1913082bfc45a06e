//! How the statements that all databases share run on a connection.

use sqlx::{AssertSqlSafe, SqliteConnection, query::Query, sqlite::SqliteArguments};

use super::{error::explain, text};
use crate::{
    model::Kinds,
    store::{
        Result,
        sql::{Dialect, Row, RowCells, Statement, Value},
    },
};

/// The rows that a statement returns.
pub(super) async fn rows(
    connection: &mut SqliteConnection,
    kinds: Kinds,
    statement: &Statement,
    values: &[Value<'_>],
) -> Result<Vec<Row>> {
    let rows = bound(statement, values).fetch_all(connection).await.map_err(explain)?;
    Ok(Row::all(rows, RowCells::Sqlite, kinds))
}

/// The statement with its values.
pub(super) fn bound<'a>(
    statement: &Statement,
    values: &'a [Value<'a>],
) -> Query<'a, sqlx::Sqlite, SqliteArguments> {
    let query = sqlx::query(AssertSqlSafe(statement.sql(Dialect::Sqlite)));
    values.iter().fold(query, |query, value| match value {
        Value::Text(text) => query.bind(*text),
        Value::Int(number) => query.bind(*number),
        Value::Bool(truth) => query.bind(*truth),
        Value::Time(time) => query.bind(time.map(text::time)),
        Value::Bytes(bytes) => query.bind(*bytes),
        Value::Batch(batch) => query.bind(batch.json(text::time)),
    })
}
