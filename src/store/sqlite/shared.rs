//! How the statements that all databases share run here.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection, pool::PoolConnection, query::Query, sqlite::SqliteArguments};

use super::{Sqlite, error::explain, text, transaction::SqliteTransaction};
use crate::model::{ClerkId, FieldSet};
use crate::store::{
    Patience, Result, Transaction,
    sql::{
        Database, Dialect, Kinds, Purpose, Row, RowCells, Session, Statement, Value, batch,
        objects::Statements, values,
    },
};

#[async_trait]
impl Database for Sqlite {
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn Session>> {
        Ok(match purpose {
            Purpose::Write(patience) => Box::new(self.write(patience).await?),
            Purpose::WriteMany | Purpose::WriteUnhurried => Box::new(self.write(Patience::Normal).await?),
            Purpose::Read | Purpose::Page | Purpose::Count | Purpose::Scan => {
                Box::new(Reader { connection: self.read().await?, kinds: self.kinds })
            }
        })
    }

    fn kinds(&self) -> Kinds {
        self.kinds
    }

    fn has_one_writer(&self) -> bool {
        true
    }
}

/// A connection that only reads: each statement sees what was committed before it.
struct Reader {
    connection: PoolConnection<sqlx::Sqlite>,
    kinds: Kinds,
}

#[async_trait]
impl Session for Reader {
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        rows(&mut self.connection, self.kinds, statement, values).await
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        execute(&mut self.connection, statement, values).await
    }

    async fn write_objects(
        &mut self,
        _: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        self.rows(statement, values).await
    }

    async fn try_objects(
        &mut self,
        _: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()> {
        self.rows(statement, values).await.map(|_| ())
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
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let kinds = self.kinds;
        let rows = rows(self.connection()?, kinds, statement, values).await;
        self.noted(rows)
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        let written = execute(self.connection()?, statement, values).await;
        self.noted(written)
    }

    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        let kinds = self.kinds;
        let written = rows(self.connection()?, kinds, statement, values).await;
        let written = self.judged(table, written).await;
        self.noted(written)
    }

    async fn try_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()> {
        let tried = self
            .refusable(table, async |this: &mut Self| {
                let kinds = this.kinds;
                rows(this.connection()?, kinds, statement, values).await
            })
            .await;
        match tried {
            Err(error) if !error.is_about_the_data() || self.is_over() => Err(error),
            _ => Ok(()),
        }
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
pub(super) async fn all_is_there(connection: &mut SqliteConnection, kinds: Kinds, table: &str) -> bool {
    let Some(entity) = kinds.iter().find(|entity| entity.table == table) else { return false };
    let statements = Statements::of(entity, FieldSet::ALL);
    let nobody = values![batch::<ClerkId>(&[]).text(ClerkId::as_str)];
    rows(connection, kinds, &statements.load, nobody).await.is_ok()
}

pub(super) async fn rows(
    connection: &mut SqliteConnection,
    kinds: Kinds,
    statement: &Statement,
    values: &[Value<'_>],
) -> Result<Vec<Row>> {
    let rows = bound(statement, values).fetch_all(connection).await.map_err(explain)?;
    Ok(Row::all(rows, RowCells::Sqlite, kinds))
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
