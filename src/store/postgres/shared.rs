//! How the statements that all databases share run on PostgreSQL.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{
    AssertSqlSafe, Postgres as Pg,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use super::{
    Session,
    error::{may_be_our_rights, objects_error, store_error},
    get,
    literals::written,
    removal, sight, sql,
};
use crate::{
    model::{ClerkId, Kinds},
    store::{
        self, ErrorKind, Mark, Result, Route, RowFate, StoreError, Way,
        sql::{Cells, Dialect, Row, RowCells, SqlSession, Statement, Value},
    },
};

#[async_trait]
impl store::Session for Session {
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        self.is_open().await?;
        let hidden = sight::hidden(self).await?;
        Ok((!hidden.is_empty()).then(|| sight::explained(&hidden)))
    }

    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        self.is_open().await?;
        let removal = Arc::clone(&self.removal);
        removal.erase(self, ids, ways, at).await
    }

    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()> {
        self.is_open().await?;
        removal::mark(self, marks, mark).await
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        self.is_open().await?;
        Self::commit(*self).await
    }

    async fn rollback(mut self: Box<Self>) {
        if self.opening.is_some() {
            // The transaction was never opened.
            self.connection.take();
            return;
        }
        // If this fails, the connection is closed, which also rolls back.
        let _ = self.end("ROLLBACK").await;
    }
}

#[async_trait]
impl SqlSession for Session {
    fn takes_steps(&self, statement: &Statement) -> bool {
        statement.sql(Dialect::Postgres).is_empty()
    }

    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        if statement.is_void(Dialect::Postgres, values) {
            return Ok(Vec::new());
        }
        let rows = self.given(statement, values, store_error).await;
        let rows = self.numbered(rows).await?;
        Ok(Row::all(rows, RowCells::Postgres, self.kinds))
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        if statement.is_void(Dialect::Postgres, values) {
            return Ok(0);
        }
        self.is_open().await?;
        let executed = if self.route == Route::Shared {
            self.executed(sqlx::raw_sql(AssertSqlSafe(written(statement, values)))).await
        } else {
            Self::execute(self, bound(statement, values)).await
        };
        self.numbered(executed).await
    }

    async fn last(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<()> {
        if self.is_at_once {
            self.ending = Some(written(statement, values));
            return Ok(());
        }
        SqlSession::rows(self, statement, values).await.map(drop)
    }

    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        let rows = self.given(statement, values, |error| objects_error(error, table)).await;
        match self.numbered(rows).await {
            Ok(rows) => Ok(Row::all(rows, RowCells::Postgres, self.kinds)),
            Err(error) if may_be_our_rights(&error, table) => {
                // The transaction is lost anyway, and its caller finds a new, empty one.
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
        self.is_open().await?;
        self.run("SAVEPOINT attempt").await?;
        match self.given(statement, values, |error| objects_error(error, table)).await {
            Ok(_) => self.run("RELEASE attempt").await,
            Err(error) if error.is_about_the_data() => self.run("ROLLBACK TO attempt; RELEASE attempt").await,
            Err(error) => Err(error),
        }
    }

    fn fail(&mut self, reason: StoreError) -> StoreError {
        reason
    }

    fn leaves_work(&mut self) {
        self.leaves_work = true;
    }

    fn removed_personal_data(&mut self) {
        // What a vacuum leaves of removed rows is the server's responsibility.
    }
}

impl Session {
    /// Open the transaction, unless its first statement already did.
    async fn is_open(&mut self) -> Result<()> {
        match self.opening.take() {
            Some(opening) => self.opened_with(&opening, "", store_error).await.map(drop),
            None => Ok(()),
        }
    }

    /// The rows that a statement returns.
    async fn given(
        &mut self,
        statement: &Statement,
        values: &[Value<'_>],
        explain: impl FnOnce(sqlx::Error) -> StoreError,
    ) -> Result<Vec<PgRow>> {
        if let Some(opening) = self.opening.take() {
            self.opened_with(&opening, &written(statement, values), explain).await
        } else if self.route == Route::Shared {
            let text = written(statement, values);
            self.fetched(sqlx::raw_sql(AssertSqlSafe(text)), explain).await
        } else {
            self.fetched(bound(statement, values), explain).await
        }
    }

    /// The result of a statement that may have inserted a row with an identity column.
    async fn numbered<T>(&mut self, written: Result<T>) -> Result<T> {
        let sequences = Arc::clone(&self.sequences);
        sequences.checked(self, written).await
    }

    /// Find out whose privilege is missing, after the server did not say. It may be one on the table itself, which belongs to
    /// clerk-sync. Otherwise it is one that a constraint, a default or a policy of the application needs.
    async fn whose_rights(&mut self, table: &str, error: StoreError) -> Result<StoreError> {
        let schema = self.others.schema.clone();
        let query =
            sql("SELECT bool_and(has_table_privilege(quote_ident($1) || '.' || quote_ident($2), needed))
             FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed")
            .bind(schema)
            .bind(table);
        let rows = Self::rows(self, query).await?;
        let row = rows.first().ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
        Ok(if get(row, 0)? { error } else { StoreError { kind: ErrorKind::Broken, ..error } })
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
            // `unnest` pads a shorter column with NULL, and most trace columns are empty.
            Cells::Text(texts) if texts.iter().all(Option::is_none) => query.bind(Vec::<&str>::new()),
            Cells::Text(texts) => query.bind(texts),
            Cells::Int(numbers) => query.bind(numbers),
            Cells::Bool(truths) => query.bind(truths),
            Cells::Time(times) => query.bind(times),
            Cells::Bytes(bytes) => query.bind(bytes),
        }),
    })
}
