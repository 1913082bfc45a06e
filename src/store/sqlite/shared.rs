//! How the statements that all databases share run here.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection, pool::PoolConnection, query::Query, sqlite::SqliteArguments};

use super::{Sqlite, error::explain, text, transaction::SqliteTransaction};
use crate::store::{
    Patience, Result, Transaction,
    sql::{Database, Dialect, Purpose, Row, Session, Statement, Value, batch, objects::Statements, values},
};
use crate::{
    entity::USER,
    model::{ClerkId, FieldSet},
};

#[async_trait]
impl Database for Sqlite {
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn Session>> {
        Ok(match purpose {
            Purpose::Write(patience) => Box::new(self.write(patience).await?),
            Purpose::WriteMany | Purpose::WriteUnhurried => Box::new(self.write(Patience::Normal).await?),
            Purpose::Read | Purpose::Page | Purpose::Count | Purpose::Scan => {
                Box::new(Reader(self.read().await?))
            }
        })
    }

    fn has_one_writer(&self) -> bool {
        true
    }
}

/// A connection that only reads: each statement sees what was committed before it.
struct Reader(PoolConnection<sqlx::Sqlite>);

#[async_trait]
impl Session for Reader {
    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        rows(&mut self.0, statement, values).await
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        execute(&mut self.0, statement, values).await
    }

    async fn write_objects(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        self.rows(statement, values).await
    }

    fn leaves_work(&mut self) {}

    fn removed_personal_data(&mut self) {}

    async fn commit(self: Box<Self>) -> Result<()> {
        Ok(())
    }

    async fn rollback(self: Box<Self>) {}
}

#[async_trait]
impl Session for SqliteTransaction {
    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let rows = rows(self.connection()?, statement, values).await;
        self.noted(rows)
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        let written = execute(self.connection()?, statement, values).await;
        self.noted(written)
    }

    async fn write_objects(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let written = rows(self.connection()?, statement, values).await;
        let written = self.judged(written).await;
        self.noted(written)
    }

    fn leaves_work(&mut self) {
        // The bell is rung after every commit.
    }

    fn removed_personal_data(&mut self) {
        self.note_erasure();
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        Transaction::commit(self).await
    }

    async fn rollback(self: Box<Self>) {
        Transaction::rollback(self).await;
    }
}

/// Whether all that is ours of the table is there.
pub(super) async fn all_is_there(connection: &mut SqliteConnection) -> bool {
    let statements = Statements::of(&USER, FieldSet::ALL);
    rows(connection, &statements.load, values![batch::<ClerkId>(&[]).text(ClerkId::as_str)]).await.is_ok()
}

async fn rows(
    connection: &mut SqliteConnection,
    statement: &Statement,
    values: &[Value<'_>],
) -> Result<Vec<Row>> {
    let rows = bound(statement, values).fetch_all(connection).await.map_err(explain)?;
    Ok(rows.into_iter().map(Row::Sqlite).collect())
}

async fn execute(
    connection: &mut SqliteConnection,
    statement: &Statement,
    values: &[Value<'_>],
) -> Result<u64> {
    Ok(bound(statement, values).execute(connection).await.map_err(explain)?.rows_affected())
}

fn bound<'a>(statement: &Statement, values: &'a [Value<'a>]) -> Query<'a, sqlx::Sqlite, SqliteArguments> {
    let query = sqlx::query(AssertSqlSafe(statement.sql(Dialect::Sqlite)));
    values.iter().fold(query, |query, value| match value {
        Value::Text(text) => query.bind(*text),
        Value::Int(number) => query.bind(*number),
        Value::Bool(truth) => query.bind(*truth),
        Value::Time(time) => query.bind(time.map(text::time)),
        Value::Bytes(bytes) => query.bind(*bytes),
        Value::Batch(batch) => query.bind(batch.json()),
    })
}
