//! How the statements that all databases share run on a connection.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection, query::Query, sqlite::SqliteArguments};

use super::{error::explain, text};
use crate::{
    model::Kinds,
    store::{
        Migration, Result,
        migration::SQLITE,
        prefix,
        sql::{Dialect, Row, RowCells, Statement, Value, ask::Ask},
    },
};

#[async_trait]
impl Ask for SqliteConnection {
    const DIALECT: Dialect = Dialect::Sqlite;
    const MIGRATIONS: &'static [Migration] = SQLITE;

    async fn verbatim(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let rows = bound(sql.into(), values).fetch_all(self).await.map_err(explain)?;
        Ok(Row::all(rows, RowCells::Sqlite, &[]))
    }

    async fn run(&mut self, text: &str) -> Result<Vec<Row>> {
        let text = prefix::in_text(text, Dialect::Sqlite).into_owned();
        let rows = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(self).await.map_err(explain)?;
        Ok(Row::all(rows, RowCells::Sqlite, &[]))
    }
}

/// The rows that a statement returns.
pub(super) async fn rows(
    connection: &mut SqliteConnection,
    kinds: Kinds,
    statement: &Statement,
    values: &[Value<'_>],
) -> Result<Vec<Row>> {
    let rows = bound(statement.sql(Dialect::Sqlite), values).fetch_all(connection).await.map_err(explain)?;
    Ok(Row::all(rows, RowCells::Sqlite, kinds))
}

/// The statement with its values.
pub(super) fn bound<'a>(sql: Arc<str>, values: &'a [Value<'a>]) -> Query<'a, sqlx::Sqlite, SqliteArguments> {
    let query = sqlx::query(AssertSqlSafe(sql));
    values.iter().fold(query, |query, value| match value {
        Value::Text(text) => query.bind(*text),
        Value::Int(number) => query.bind(*number),
        Value::Bool(truth) => query.bind(*truth),
        Value::Time(time) => query.bind(time.map(text::time)),
        Value::Bytes(bytes) => query.bind(*bytes),
        Value::Batch(batch) => query.bind(batch.json(text::time)),
    })
}
