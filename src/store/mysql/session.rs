//! One transaction, and how statements run in it.
//!
//! After a refusal, the server undoes only the statement and the transaction continues. After a deadlock, it has undone the
//! whole transaction, and later statements would commit on their own. So every error ends the session, except refusals where
//! the caller expects them. A session that is dropped before its end closes its connection.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::{
    AssertSqlSafe, Executor as _, MySqlConnection,
    mysql::{MySql, MySqlArguments, MySqlRow},
    pool::PoolConnection,
    query::Query,
};
use tokio::sync::Notify;

use super::error::{explain, is_of_the_statement, objects_error};
use crate::{
    model::{ClerkId, Kinds},
    store::{
        ErrorKind, Mark, Result, RowFate, Session, StoreError, Way,
        sql::{
            Dialect, Row, RowCells, SqlSession, Statement, Step, Value,
            attempt::{self, Attempts},
            only,
            removal::Removal,
        },
    },
};

/// The latest time that both servers store, in Unix milliseconds. MariaDB rejects later ones.
const LATEST: i64 = 253_402_300_799_999;

/// The approximate size of the rows in one statement, in bytes. The default of `max_allowed_packet` is 16 MiB.
const PORTION: usize = 4 << 20;

/// A text that is unique to one statement.
fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The time as the tables store it: truncated to milliseconds, where MySQL would round.
fn time(at: DateTime<Utc>) -> NaiveDateTime {
    DateTime::from_timestamp_millis(at.timestamp_millis().min(LATEST)).unwrap_or_default().naive_utc()
}

fn written(at: DateTime<Utc>) -> String {
    time(at).format("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

pub(super) struct MysqlSession {
    /// `None` after it was returned to the pool.
    connection: Option<PoolConnection<MySql>>,
    dialect: Dialect,
    kinds: Kinds,
    removal: Arc<Removal>,
    bell: Arc<Notify>,
    /// The error that ended the transaction.
    over: Option<StoreError>,
    leaves_work: bool,
    /// Whether to fail at once if another session has locked a row.
    is_hurried: bool,
}

impl MysqlSession {
    pub(super) fn new(
        connection: PoolConnection<MySql>,
        dialect: Dialect,
        kinds: Kinds,
        removal: Arc<Removal>,
        bell: Arc<Notify>,
        is_hurried: bool,
    ) -> Self {
        let connection = Some(connection);
        Self { connection, dialect, kinds, removal, bell, over: None, leaves_work: false, is_hurried }
    }

    /// The connection, unless an error has ended the transaction.
    pub(super) fn connection(&mut self) -> Result<&mut MySqlConnection> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        self.connection.as_deref_mut().ok_or_else(|| StoreError::new(ErrorKind::Broken))
    }

    /// Store an error: it ends the transaction.
    fn noted<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.over.get_or_insert_with(|| error.clone());
        }
        result
    }

    /// Run a statement; returns the rows that its parts read, and how many rows they wrote.
    async fn run(
        &mut self,
        statement: &Statement,
        values: &[Value<'_>],
        explain: impl Fn(sqlx::Error) -> StoreError,
    ) -> Result<(Vec<MySqlRow>, u64)> {
        if statement.is_void(self.dialect, values) {
            return Ok((Vec::new(), 0));
        }
        let steps = statement.steps(self.dialect);
        let portions = portions(&steps, values);
        if portions.is_empty() {
            return self.run_once(&steps, values, &explain).await;
        }
        let (mut rows, mut affected) = (Vec::new(), 0);
        for values in portions {
            let (more, written) = self.run_once(&steps, &values, &explain).await?;
            rows.extend(more);
            affected += written;
        }
        Ok((rows, affected))
    }

    async fn run_once(
        &mut self,
        steps: &[Step],
        values: &[Value<'_>],
        explain: &impl Fn(sqlx::Error) -> StoreError,
    ) -> Result<(Vec<MySqlRow>, u64)> {
        let given: Vec<Option<String>> = values.iter().map(json).collect();
        let token = token();
        let (mut rows, mut affected) = (Vec::new(), 0);
        for step in steps {
            let sql = if self.is_hurried && step.sql.ends_with(" FOR UPDATE") {
                format!("{} NOWAIT", step.sql).into()
            } else {
                Arc::clone(&step.sql)
            };
            let query = bound(sql, &step.parameters, values, &given, &token);
            let connection = self.connection()?;
            if step.sql.starts_with("SELECT") && !step.sql.contains(" INTO @") {
                // Fetch all rows, because an error may follow the first one.
                rows.extend(connection.fetch_all(query).await.map_err(explain)?);
            } else {
                affected += connection.execute(query).await.map_err(explain)?.rows_affected();
            }
        }
        Ok((rows, affected))
    }
}

impl Drop for MysqlSession {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
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

    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        // These servers have no row level security.
        Ok(None)
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
        self.control("COMMIT").await?;
        drop(self.connection.take());
        if self.leaves_work {
            self.bell.notify_one();
        }
        Ok(())
    }

    async fn rollback(mut self: Box<Self>) {
        // A rollback frees the locks at once. If the connection is only closed, they remain until the server notices.
        let is_usable = self.over.take().is_none_or(|error| error.kind != ErrorKind::Unavailable);
        if is_usable && self.control("ROLLBACK").await.is_ok() {
            drop(self.connection.take());
        }
    }
}

#[async_trait]
impl SqlSession for MysqlSession {
    fn takes_steps(&self, statement: &Statement) -> bool {
        statement.sql(self.dialect).is_empty()
    }

    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let rows = self.run(statement, values, explain).await;
        self.noted(rows).map(|(rows, _)| Row::all(rows, RowCells::Mysql, self.kinds))
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        let done = self.run(statement, values, explain).await;
        let (rows, affected) = self.noted(done)?;
        match rows.first() {
            // A statement that needs the number counts rows itself: the server's count for an upsert says nothing.
            Some(_) => only(&Row::all(rows, RowCells::Mysql, self.kinds))?.get(0),
            None => Ok(affected),
        }
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
        let written = attempt::written(self, table, statement, values).await;
        self.noted(written)
    }

    async fn try_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()> {
        // After a refusal, the server itself undoes the statement.
        match attempt::written(self, table, statement, values).await {
            Err(error) if !error.is_about_the_data() || self.is_over() => Err(self.fail(error)),
            _ => Ok(()),
        }
    }

    fn fail(&mut self, reason: StoreError) -> StoreError {
        self.over.get_or_insert_with(|| reason.clone());
        reason
    }

    fn leaves_work(&mut self) {
        self.leaves_work = true;
    }

    fn removed_personal_data(&mut self) {}
}

#[async_trait]
impl Attempts for MysqlSession {
    fn is_over(&self) -> bool {
        self.over.is_some()
    }

    fn is_of_the_statement(error: &StoreError) -> bool {
        is_of_the_statement(error)
    }

    async fn control(&mut self, text: &str) -> Result<()> {
        self.connection()?.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map(drop).map_err(explain)
    }

    async fn unjudged(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        let (rows, _) = self.run(statement, values, |error| objects_error(error, table)).await?;
        Ok(Row::all(rows, RowCells::Mysql, self.kinds))
    }
}

/// The values of a statement that writes rows, split so that the rows of each portion fit into a packet; empty for other
/// statements.
fn portions<'a>(steps: &[Step], values: &[Value<'a>]) -> Vec<Vec<Value<'a>>> {
    let writes = ["INSERT", "UPDATE"].iter().any(|verb| steps[0].sql.starts_with(verb));
    let [Value::Batch(batch), rest @ ..] = values else { return Vec::new() };
    if !writes || rest.iter().any(|value| matches!(value, Value::Batch(_))) {
        return Vec::new();
    }
    let portions = batch.portions(PORTION).into_iter();
    portions.map(|batch| [&[Value::Batch(batch)], rest].concat()).collect()
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
