//! One transaction, and how statements run in it.
//!
//! After a refusal, the server undoes only the statement and the transaction continues. After a deadlock, it has undone the
//! whole transaction, and later statements would commit on their own. So every error ends the session, except refusals where
//! the caller expects them. A session that is dropped before its end closes its connection.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::{
    AssertSqlSafe, Executor as _, MySqlConnection,
    mysql::{MySql, MySqlArguments},
    query::Query,
};
use tokio::sync::Notify;

use super::error::{explain, is_of_the_statement, objects_error};
use crate::{
    model::{ClerkId, Kinds},
    store::{
        ErrorKind, Mark, Migration, Result, RowFate, Session, StoreError, Way,
        migration::MYSQL,
        prefix,
        sql::{
            Dialect, Row, RowCells, SqlSession, Statement, Step, Value,
            ask::Ask,
            attempt::{self, Attempts, Open},
            removal::Removal,
        },
        token,
    },
};

/// The latest time that both servers store, in Unix milliseconds. MariaDB rejects later ones.
const LATEST: i64 = 253_402_300_799_999;

/// The approximate size of the rows in one statement, in bytes. The default of `max_allowed_packet` is 16 MiB.
const PORTION: usize = 4 << 20;

/// The time as the tables store it: truncated to milliseconds, where MySQL would round.
fn time(at: DateTime<Utc>) -> NaiveDateTime {
    DateTime::from_timestamp_millis(at.timestamp_millis().min(LATEST)).unwrap_or_default().naive_utc()
}

fn written(at: DateTime<Utc>) -> String {
    time(at).format("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

pub(super) struct MysqlSession {
    pub(super) open: Open<MySql>,
    pub(super) dialect: Dialect,
    pub(super) kinds: Kinds,
    pub(super) removal: Arc<Removal>,
    pub(super) bell: Arc<Notify>,
    pub(super) leaves_work: bool,
    /// Whether to fail at once if another session has locked a row.
    pub(super) is_hurried: bool,
}

impl MysqlSession {
    /// Run a statement; returns the rows that its parts read, and how many rows they wrote.
    async fn run(
        &mut self,
        statement: &Statement,
        values: &[Value<'_>],
        explain: impl Fn(sqlx::Error) -> StoreError,
    ) -> Result<(Vec<Row>, u64)> {
        let (mut rows, mut affected) = (Vec::new(), 0);
        if statement.is_void(self.dialect, values) {
            return Ok((rows, affected));
        }
        let steps = statement.steps(self.dialect);
        for values in portions(&steps, values) {
            let given: Vec<Option<String>> = values.iter().map(json).collect();
            let token = token();
            for step in &*steps {
                let sql = if self.is_hurried && step.sql.ends_with(" FOR UPDATE") {
                    format!("{} NOWAIT", step.sql).into()
                } else {
                    Arc::clone(&step.sql)
                };
                let query = bound(sql, &step.parameters, &values, &given, &token);
                let connection = self.open.connection()?;
                if step.sql.starts_with("SELECT") && !step.sql.contains(" INTO @") {
                    // Fetch all rows, because an error may follow the first one.
                    let more = connection.fetch_all(query).await.map_err(&explain)?;
                    rows.extend(Row::all(more, RowCells::Mysql, self.kinds));
                } else {
                    affected += connection.execute(query).await.map_err(&explain)?.rows_affected();
                }
            }
        }
        Ok((rows, affected))
    }
}

impl Drop for MysqlSession {
    fn drop(&mut self) {
        if let Some(connection) = self.open.connection.take() {
            // Removed from the pool, and closed by being dropped.
            drop(connection.detach());
        }
    }
}

#[async_trait]
impl Session for MysqlSession {
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        let removal = Arc::clone(&self.removal);
        removal.erase(self, ids, ways, at).await
    }

    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()> {
        let removal = Arc::clone(&self.removal);
        removal.mark(self, marks, mark).await
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        self.open.connection()?.run("COMMIT").await?;
        drop(self.open.connection.take());
        if self.leaves_work {
            self.bell.notify_one();
        }
        Ok(())
    }

    async fn rollback(mut self: Box<Self>) {
        // A rollback frees the locks at once. If the connection is only closed, they remain until the server notices.
        let is_usable = self.open.over.take().is_none_or(|error| error.kind != ErrorKind::Unavailable);
        if let Ok(connection) = self.open.connection()
            && is_usable
            && connection.run("ROLLBACK").await.is_ok()
        {
            drop(self.open.connection.take());
        }
    }
}

#[async_trait]
impl SqlSession for MysqlSession {
    fn takes_steps(&self, statement: &Statement) -> bool {
        statement.sql(self.dialect).is_empty()
    }

    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let (rows, _) = self.run(statement, values, explain).await.map_err(|error| self.fail(error))?;
        Ok(rows)
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        let done = self.run(statement, values, explain).await;
        let (rows, affected) = done.map_err(|error| self.fail(error))?;
        // A statement that needs the number counts rows itself: the server's count for an upsert says nothing.
        rows.first().map_or(Ok(affected), |row| row.get(0))
    }

    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        let removal = Arc::clone(&self.removal);
        if self.is_hurried
            && let [ids @ Value::Batch(_), ..] = values
            && let Some(locking) = removal.locking(table, self.kinds)
        {
            // The batch of a statement that writes rows begins with their ids.
            self.rows(locking, std::slice::from_ref(ids)).await?;
        }
        attempt::written(self, table, statement, values).await.map_err(|error| self.fail(error))
    }

    async fn try_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()> {
        attempt::tried(self, table, statement, values).await
    }

    fn fail(&mut self, reason: StoreError) -> StoreError {
        self.open.fail(reason)
    }

    fn leaves_work(&mut self) {
        self.leaves_work = true;
    }

    fn removed_personal_data(&mut self) {}
}

#[async_trait]
impl Attempts for MysqlSession {
    type Database = MySql;
    const UNDOES_A_STATEMENT: bool = true;
    const IS_OF_THE_STATEMENT: fn(&StoreError) -> bool = is_of_the_statement;

    fn open(&mut self) -> &mut Open<MySql> {
        &mut self.open
    }

    async fn unjudged(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        self.run(statement, values, |error| objects_error(error, table)).await.map(|(rows, _)| rows)
    }
}

#[async_trait]
impl Ask for MySqlConnection {
    const DIALECT: Dialect = Dialect::Mysql;
    const MIGRATIONS: &'static [Migration] = MYSQL;

    async fn verbatim(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let parameters: Vec<usize> = (1..=values.len()).collect();
        let query = bound(sql.into(), &parameters, values, &[], "");
        Ok(Row::all(self.fetch_all(query).await.map_err(explain)?, RowCells::Mysql, &[]))
    }

    async fn run(&mut self, text: &str) -> Result<Vec<Row>> {
        let text = prefix::in_text(text, Dialect::Mysql).into_owned();
        let rows = self.fetch_all(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(explain)?;
        Ok(Row::all(rows, RowCells::Mysql, &[]))
    }
}

/// The values of a statement, split so that the rows of each portion fit into a packet if it writes rows.
fn portions<'v, 'a>(steps: &[Step], values: &'v [Value<'a>]) -> Vec<Cow<'v, [Value<'a>]>> {
    let writes = ["INSERT", "UPDATE"].iter().any(|verb| steps[0].sql.starts_with(verb));
    let is_batch = |value: &Value<'_>| matches!(value, Value::Batch(_));
    let portions = match values {
        [Value::Batch(batch), rest @ ..] if writes && !rest.iter().any(is_batch) => batch.portions(PORTION),
        _ => Vec::new(),
    };
    if portions.is_empty() {
        return vec![Cow::Borrowed(values)];
    }
    let whole = |batch| Cow::Owned([&[Value::Batch(batch)], &values[1..]].concat());
    portions.into_iter().map(whole).collect()
}

/// A batch in the form that its statement reads.
fn json(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Batch(batch) => Some(batch.json(written)),
        _ => None,
    }
}

/// A statement with its values.
fn bound<'a>(
    sql: Arc<str>,
    parameters: &[usize],
    values: &'a [Value<'a>],
    given: &'a [Option<String>],
    token: &'a str,
) -> Query<'a, MySql, MySqlArguments> {
    let query = sqlx::query(AssertSqlSafe(sql));
    parameters.iter().fold(query, |query, number| {
        let Some(place) = number.checked_sub(1) else { return query.bind(token) };
        match &values[place] {
            Value::Text(text) => query.bind(*text),
            Value::Int(number) => query.bind(*number),
            Value::Bool(truth) => query.bind(*truth),
            Value::Time(at) => query.bind(at.map(time)),
            Value::Bytes(bytes) => query.bind(*bytes),
            Value::Batch(_) => query.bind(given[place].as_deref()),
        }
    })
}
