//! One transaction, and how statements run in it.
//!
//! After a refusal, the server undoes only the statement and the transaction continues. After a deadlock, it has undone the
//! whole transaction, and later statements would commit on their own. So every error ends the session, except refusals where
//! the caller expects them. A session that is dropped before its end closes its connection.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::{
    AssertSqlSafe, Executor as _, MySqlConnection,
    mysql::{MySql, MySqlArguments, MySqlRow},
    pool::PoolConnection,
    query::Query,
};
use tokio::sync::Notify;

use super::{
    error::{explain, is_of_the_statement, objects_error},
    removal::Removal,
};
use crate::{
    model::{ClerkId, FieldSet, Kinds, Selection},
    store::{
        ErrorKind, Ledger as _, Mark, Result, RowFate, Session, StoreError, Way,
        sql::{
            Dialect, Row, RowCells, SqlSession, Statement, Step, Value, batch, objects::Statements, telling,
            values,
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

    /// Run a text without parameters.
    pub(super) async fn control(&mut self, text: &str) -> Result<()> {
        let done =
            self.connection()?.execute(sqlx::raw_sql(AssertSqlSafe(text.to_owned()))).await.map_err(explain);
        self.noted(done.map(|_| ()))
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

    /// Run a statement that writes rows of this table, where the application's code may run. If it cannot run although the
    /// table has all of clerk-sync's columns, the fault is a trigger, or something else that the application added to the
    /// table.
    async fn written(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        let kinds = self.kinds;
        let written = self.run(statement, values, |error| objects_error(error, table)).await;
        match written.map(|(rows, _)| Row::all(rows, RowCells::Mysql, kinds)) {
            Err(error) if is_of_the_statement(&error) && self.all_is_there(table).await => {
                Err(StoreError { kind: ErrorKind::Refused, place: Some(format!("table {table}")), ..error })
            }
            written => written,
        }
    }

    /// Whether the table has all of clerk-sync's columns.
    async fn all_is_there(&mut self, table: &str) -> bool {
        let Some(entity) = self.kinds.iter().find(|entity| entity.table == table) else { return false };
        let statements = Statements::of(entity, FieldSet::ALL);
        let nobody = [String::new()];
        self.run(&statements.load, values![batch(&nobody).text(String::as_str)], explain).await.is_ok()
    }

    /// Run a statement that the application may refuse. A refusal leaves the transaction as it was.
    async fn refusable(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        match self.written(table, statement, values).await {
            Err(refused) if refused.is_about_the_data() => Err(refused),
            result => self.noted(result),
        }
    }

    /// Remove these rows in one way, all at once or, if the application refuses, one by one. Returns the refusals.
    async fn take(
        &mut self,
        way: Way,
        ids: &[ClerkId],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, StoreError>> {
        let mut refusals = HashMap::new();
        let Err(refused) = self.refused(way, ids, at).await? else { return Ok(refusals) };
        if ids.len() == 1 {
            return Ok(HashMap::from([(ids[0].clone(), refused)]));
        }
        for id in ids {
            if let Err(error) = self.refused(way, std::slice::from_ref(id), at).await? {
                refusals.insert(id.clone(), error);
            }
        }
        Ok(refusals)
    }

    /// Remove these rows of one kind in this way; returns the reason if the application refuses. `DELETE IGNORE` would skip
    /// rows that a foreign key protects, but MySQL 9.7 then keeps the completed part of a cascade.
    async fn refused(
        &mut self,
        way: Way,
        ids: &[ClerkId],
        at: DateTime<Utc>,
    ) -> Result<std::result::Result<(), StoreError>> {
        let Some(entity) = ids.first().map(ClerkId::entity) else { return Ok(Ok(())) };
        let removal = Arc::clone(&self.removal);
        let statements = removal.of(entity);
        let values = values![batch(ids).text(ClerkId::as_str), at];
        let statement = match way {
            Way::Delete => &statements.delete,
            Way::Anonymize => &statements.anonymize,
        };
        let mut numbers: Vec<i64> = Vec::new();
        if way == Way::Anonymize {
            self.control("SAVEPOINT erasure").await?;
            // By row number, because a trigger can also change the ids.
            let rows = self.rows(&statements.numbers, values).await?;
            numbers = rows.iter().map(|row| row.get(0)).collect::<Result<_>>()?;
        }
        match self.refusable(entity.table, statement, values).await {
            Ok(_) => {}
            Err(error) if self.over.is_some() => return Err(error),
            Err(error) => return Ok(Err(error)),
        }
        // A trigger can restore the old values.
        if self.rows(&statements.kept, values![batch(&numbers).int(|number| *number)]).await?.is_empty() {
            return Ok(Ok(()));
        }
        self.control("ROLLBACK TO SAVEPOINT erasure").await?;
        Ok(Err(StoreError::unmoved()))
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
        let (mut fates, mut refusals) = (HashMap::new(), HashMap::new());
        let mut there: HashSet<ClerkId> = self.load(ids, &Selection::default()).await?.into_keys().collect();
        let mut standing = ids.to_vec();
        for way in ways {
            let refused = self.take(*way, &standing, at).await?;
            // A trigger can also keep a row silently.
            let left = telling(self, &standing).await?;
            let fate = match way {
                Way::Delete => RowFate::Deleted,
                Way::Anonymize => RowFate::Anonymized,
            };
            // A row that was anonymised before does not identify its user either, but still exists if a key protects it.
            for id in standing.into_iter().filter(|id| !left.contains(id) && !refused.contains_key(id)) {
                if there.remove(&id) {
                    fates.insert(id, fate.clone());
                }
            }
            refusals.extend(refused);
            standing = left;
        }
        if ways.is_empty() {
            standing = telling(self, &standing).await?;
        }
        let marks: Vec<(ClerkId, DateTime<Utc>)> = standing.iter().map(|id| (id.clone(), at)).collect();
        // The mark does not decide whether a row counts as deleted, so a refusal by the application does not matter.
        self.mark(&marks, Mark::Set).await?;
        for id in standing {
            let reason = refusals.remove(&id).unwrap_or_else(StoreError::unmoved);
            fates.insert(id, RowFate::Stands(reason));
        }
        Ok(fates)
    }

    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()> {
        let removal = Arc::clone(&self.removal);
        for (id, at) in marks {
            let statements = removal.of(id.entity());
            let statement = match mark {
                Mark::Set => &statements.mark,
                Mark::Unset => &statements.unmark,
            };
            let this = batch(std::slice::from_ref(id)).text(ClerkId::as_str);
            let values = values![this, *at];
            self.control("SAVEPOINT mark").await?;
            self.try_objects(id.entity().table, statement, values).await?;
            // A trigger may have changed the row's `clerk_id`.
            if self.rows(&statements.numbers, values).await?.is_empty() {
                self.control("ROLLBACK TO SAVEPOINT mark").await?;
            }
        }
        Ok(())
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
            Some(_) => crate::store::sql::only(&Row::all(rows, RowCells::Mysql, self.kinds))?.get(0),
            None => Ok(affected),
        }
    }

    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        if self.is_hurried
            && let [Value::Batch(_), ..] = values
            && let Some(entity) = self.kinds.iter().find(|entity| entity.table == table)
        {
            // The batch of a statement that writes rows begins with their ids.
            let removal = Arc::clone(&self.removal);
            self.rows(&removal.of(entity).numbers, &values[..1]).await?;
        }
        let written = self.written(table, statement, values).await;
        self.noted(written)
    }

    async fn try_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()> {
        match self.refusable(table, statement, values).await {
            Err(error) if self.over.is_some() => Err(error),
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
