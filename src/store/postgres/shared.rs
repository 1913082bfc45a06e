//! How the statements that all databases share run here.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Postgres as Pg, postgres::PgArguments, query::Query};

use super::{Postgres, Session, error::may_be_our_rights, get, sql};
use crate::store::{
    Patience, Result, StoreError, Trouble,
    sql::{self as shared, Cells, Database, Dialect, Kinds, Purpose, Row, RowCells, Statement, Value},
};

#[async_trait]
impl Database for Postgres {
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn shared::Session>> {
        let begin = match purpose {
            Purpose::Read | Purpose::Write(Patience::Normal) => &self.begin_normal,
            Purpose::Write(Patience::Short) => &self.begin_short,
            Purpose::Write(Patience::Long) => &self.begin_long,
            Purpose::WriteUnhurried => &self.begin_unhurried,
            Purpose::Page => &self.begin_page,
            Purpose::Count => &self.begin_count,
            Purpose::Scan | Purpose::WriteMany => &self.begin_migration,
        };
        Ok(Box::new(Self::session(self, begin).await?))
    }

    fn kinds(&self) -> Kinds {
        self.kinds
    }

    fn has_one_writer(&self) -> bool {
        false
    }
}

#[async_trait]
impl shared::Session for Session {
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let rows = Self::rows(self, bound(statement, values)).await?;
        Ok(Row::all(rows, RowCells::Postgres, self.kinds))
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        if statement.sql(Dialect::Postgres).is_empty() {
            return Ok(0);
        }
        Self::execute(self, bound(statement, values)).await
    }

    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        match self.rows_of_objects(table, bound(statement, values)).await {
            Ok(rows) => Ok(Row::all(rows, RowCells::Postgres, self.kinds)),
            Err(error) if may_be_our_rights(&error, table) => {
                // The transaction is lost anyway; its end finds a new one, in which nothing was done.
                self.run("ROLLBACK AND CHAIN").await?;
                Err(self.whose_rights(table, error).await?)
            }
            Err(error) => Err(error),
        }
    }

    async fn try_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()> {
        self.run("SAVEPOINT attempt").await?;
        match self.rows_of_objects(table, bound(statement, values)).await {
            Ok(_) => self.run("RELEASE attempt").await,
            Err(error) if error.is_about_the_data() => self.run("ROLLBACK TO attempt; RELEASE attempt").await,
            Err(error) => Err(error),
        }
    }

    fn leaves_work(&mut self) {
        Self::leaves_work(self);
    }

    fn removed_personal_data(&mut self) {
        // Its own vacuum sees to it.
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        Self::commit(*self).await
    }

    async fn rollback(self: Box<Self>) {
        Self::rollback(*self).await;
    }
}

impl Session {
    /// A right was missing in a statement on this table, and the server did not say for what: for the table itself, which is
    /// ours, or for something of the application's that a constraint, a default or a policy needs.
    async fn whose_rights(&mut self, table: &str, error: StoreError) -> Result<StoreError> {
        let schema = self.others.schema.clone();
        let query =
            sql("SELECT bool_and(has_table_privilege(quote_ident($1) || '.' || quote_ident($2), needed))
             FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed")
            .bind(schema)
            .bind(table);
        let rows = Self::rows(self, query).await?;
        let row = rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?;
        Ok(if get(row, 0)? { error } else { StoreError { trouble: Trouble::Broken, ..error } })
    }
}

fn bound<'a>(statement: &Statement, values: &'a [Value<'a>]) -> Query<'a, Pg, PgArguments> {
    let query = sqlx::query(AssertSqlSafe(statement.sql(Dialect::Postgres)));
    values.iter().fold(query, |query, value| match value {
        Value::Text(text) => query.bind(*text),
        Value::Int(number) => query.bind(*number),
        Value::Bool(truth) => query.bind(*truth),
        Value::Time(time) => query.bind(*time),
        Value::Bytes(bytes) => query.bind(*bytes),
        Value::Batch(batch) => batch.columns.iter().fold(query, |query, cells| match cells {
            // `unnest` fills a shorter column up with NULL, and most columns of traces are empty.
            Cells::Text(texts) if texts.iter().all(Option::is_none) => query.bind(Vec::<&str>::new()),
            Cells::Text(texts) => query.bind(texts),
            Cells::Int(numbers) => query.bind(numbers),
            Cells::Bool(truths) => query.bind(truths),
            Cells::Time(times) => query.bind(times),
            Cells::Bytes(bytes) => query.bind(bytes),
        }),
    })
}
