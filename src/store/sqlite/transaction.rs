//! One transaction with explicit control, and how statements run in it.
//!
//! A transaction never returns its connection to the pool while it is open. If it is dropped before its end, for example
//! because its task was cancelled, it closes the connection, and SQLite rolls back.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{SqliteConnection, pool::PoolConnection};
use tokio::sync::Notify;

use super::{
    error::{explain, is_of_the_statement},
    removal::{Removal, Step},
    statement::{bound, rows},
};
use crate::{
    model::{ClerkId, Entity, FieldSet, Kinds},
    store::{
        ErrorKind, Mark, Patience, Result, RowFate, Session, StoreError, Way,
        sql::{Dialect, Row, SqlSession, Statement, Value, batch, objects::Statements, telling, values},
    },
};

pub(super) struct SqliteSession {
    pub(super) kinds: Kinds,
    /// `None` after it was returned to the pool.
    connection: Option<PoolConnection<sqlx::Sqlite>>,
    /// The error that ended the transaction. After an error SQLite may have rolled back by itself, and then later statements
    /// would each commit on their own.
    over: Option<StoreError>,
    /// Whether it only reads: each statement then sees what was committed before it.
    reads: bool,
    /// Whether personal data was removed.
    erased: bool,
    housekeeping: Arc<Housekeeping>,
}

impl SqliteSession {
    /// Takes the connection, which is closed if the session is dropped in the middle of a transaction.
    pub(super) fn new(
        connection: PoolConnection<sqlx::Sqlite>,
        kinds: Kinds,
        reads: bool,
        housekeeping: Arc<Housekeeping>,
    ) -> Self {
        Self { kinds, connection: Some(connection), over: None, reads, erased: false, housekeeping }
    }

    pub(super) async fn begin(&mut self, patience: Patience) -> Result<()> {
        // The lock covers the whole database, so a change of any other user also blocks. A short wait only keeps many small
        // transactions together within the sender's timeout. It is set every time, so that no old value remains.
        let begin = match patience {
            Patience::Normal | Patience::Long => "PRAGMA busy_timeout = 3000; BEGIN IMMEDIATE",
            Patience::Short => "PRAGMA busy_timeout = 50; BEGIN IMMEDIATE",
        };
        control(self.connection()?, begin).await
    }

    /// The connection, unless an error has ended the transaction.
    pub(super) fn connection(&mut self) -> Result<&mut SqliteConnection> {
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

    /// Judge the result of a statement on this table, where the application's code may run. If the statement cannot run
    /// although the table has all of clerk-sync's columns, the fault is a trigger, or something else that the application added
    /// to the table.
    async fn judged<T>(&mut self, table: &str, written: Result<T>) -> Result<T> {
        let kinds = self.kinds;
        match written {
            Err(error)
                if is_of_the_statement(&error) && all_is_there(self.connection()?, kinds, table).await =>
            {
                Err(StoreError { kind: ErrorKind::Refused, place: Some(format!("table {table}")), ..error })
            }
            written => written,
        }
    }

    /// Apply a step to all of these rows of one kind together or, if the application refuses, to each alone. Returns the ids
    /// for which it succeeded, and the refusals.
    async fn each(
        &mut self,
        step: Step,
        ids: &[ClerkId],
        at: DateTime<Utc>,
    ) -> Result<(Vec<ClerkId>, Vec<(ClerkId, StoreError)>)> {
        let Some(entity) = ids.first().map(ClerkId::entity) else { return Ok((Vec::new(), Vec::new())) };
        match self.step(step, entity, ids, at).await {
            Ok(done) => return Ok((done, Vec::new())),
            Err(error) if error.is_about_the_data() && self.over.is_none() => {}
            Err(error) => return Err(error),
        }
        let (mut done, mut refused) = (Vec::new(), Vec::new());
        for id in ids {
            match self.step(step, entity, std::slice::from_ref(id), at).await {
                Ok(one) => done.extend(one),
                Err(error) if error.is_about_the_data() && self.over.is_none() => {
                    refused.push((id.clone(), error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((done, refused))
    }

    async fn step(
        &mut self,
        step: Step,
        entity: &'static Entity,
        ids: &[ClerkId],
        at: DateTime<Utc>,
    ) -> Result<Vec<ClerkId>> {
        let done = self
            .refusable(entity.table, async |this: &mut Self| {
                let housekeeping = Arc::clone(&this.housekeeping);
                housekeeping.removal.run(this.connection()?, entity, step, ids, at).await
            })
            .await?;
        self.erased |= matches!(step, Step::Take(_)) && !done.is_empty();
        Ok(done)
    }

    /// Run an operation that the application may refuse. A refusal leaves the transaction as it was.
    async fn refusable<T>(
        &mut self,
        table: &str,
        what: impl AsyncFnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let entered = control(self.connection()?, "SAVEPOINT erasure").await;
        self.noted(entered)?;
        let done = what(self).await;
        match self.judged(table, done).await {
            Ok(done) => {
                let left = control(self.connection()?, "RELEASE erasure").await;
                self.noted(left)?;
                Ok(done)
            }
            Err(refused) if refused.is_about_the_data() => {
                let undone = control(self.connection()?, "ROLLBACK TO erasure; RELEASE erasure").await;
                // A trigger with RAISE(ROLLBACK) removes the savepoint and the transaction. Then the refusal is final.
                if undone.is_err() {
                    self.over = Some(refused.clone());
                }
                Err(refused)
            }
            error => self.noted(error),
        }
    }
}

impl Drop for SqliteSession {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.as_mut().filter(|_| !self.reads) {
            connection.close_on_drop();
        }
    }
}

#[async_trait]
impl Session for SqliteSession {
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        // SQLite has no row level security.
        Ok(None)
    }

    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        let mut fates = HashMap::new();
        let mut refusals: HashMap<ClerkId, StoreError> = HashMap::new();
        let mut standing = ids.to_vec();
        for way in ways {
            let (done, refused) = self.each(Step::Take(*way), &standing, at).await?;
            let fate = match way {
                Way::Delete => RowFate::Deleted,
                Way::Anonymize => RowFate::Anonymized,
            };
            fates.extend(done.into_iter().map(|id| (id, fate.clone())));
            refusals.extend(refused);
            // A trigger can also keep a row silently.
            standing = telling(self, &standing).await?;
        }
        if ways.is_empty() {
            standing = telling(self, &standing).await?;
        }
        // The mark does not decide whether a row counts as deleted, so a refusal by the application does not matter.
        self.each(Step::Mark(Mark::Set), &standing, at).await?;
        for id in standing {
            let reason = refusals.remove(&id).unwrap_or_else(StoreError::unmoved);
            fates.insert(id, RowFate::Stands(reason));
        }
        Ok(fates)
    }

    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()> {
        for (id, at) in marks {
            self.each(Step::Mark(mark), std::slice::from_ref(id), *at).await?;
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        if self.reads {
            return Ok(());
        }
        let committed = match self.connection() {
            Ok(connection) => control(connection, "COMMIT").await,
            Err(error) => Err(error),
        };
        // A deferred foreign key fails here, and leaves the transaction open.
        if let Err(error) = committed {
            self.rollback().await;
            return Err(error);
        }
        // The commit may have added work.
        self.housekeeping.bell.notify_one();
        if let Some(mut connection) = self.connection.take() {
            // A cancelled task may end here; the connection is no longer in a transaction.
            self.housekeeping.tidy(&mut connection, self.erased).await;
        }
        Ok(())
    }

    async fn rollback(mut self: Box<Self>) {
        if self.reads {
            return;
        }
        // If the rollback fails, the connection is closed.
        let Some(connection) = self.connection.as_deref_mut() else { return };
        if control(connection, "ROLLBACK").await.is_ok() {
            drop(self.connection.take());
        }
    }
}

#[async_trait]
impl SqlSession for SqliteSession {
    fn takes_steps(&self, statement: &Statement) -> bool {
        statement.sql(Dialect::Sqlite).is_empty()
    }

    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        if statement.is_void(Dialect::Sqlite, values) {
            return Ok(Vec::new());
        }
        let kinds = self.kinds;
        let rows = rows(self.connection()?, kinds, statement, values).await;
        self.noted(rows)
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        if statement.is_void(Dialect::Sqlite, values) {
            return Ok(0);
        }
        let written = bound(statement, values).execute(self.connection()?).await.map_err(explain);
        self.noted(written).map(|written| written.rows_affected())
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
            Err(error) if !error.is_about_the_data() || self.over.is_some() => Err(error),
            _ => Ok(()),
        }
    }

    fn fail(&mut self, reason: StoreError) -> StoreError {
        self.over.get_or_insert_with(|| reason.clone());
        reason
    }

    fn leaves_work(&mut self) {
        // Every commit notifies the workers anyway.
    }

    fn removed_personal_data(&mut self) {
        self.erased = true;
    }
}

/// Whether the table has all of clerk-sync's columns.
async fn all_is_there(connection: &mut SqliteConnection, kinds: Kinds, table: &str) -> bool {
    let Some(entity) = kinds.iter().find(|entity| entity.table == table) else { return false };
    let statements = Statements::of(entity, FieldSet::ALL);
    let nobody = values![batch::<ClerkId>(&[]).text(ClerkId::as_str)];
    rows(connection, kinds, &statements.load, nobody).await.is_ok()
}

/// State that the writer keeps between transactions.
pub(super) struct Housekeeping {
    removal: Removal,
    /// Whether the write-ahead log may still hold data of an erased user.
    log_is_stale: AtomicBool,
    /// Notified after each commit.
    pub(super) bell: Arc<Notify>,
}

impl Housekeeping {
    pub(super) fn new(removal: Removal) -> Self {
        // A process may have died between the commit of an erasure and its checkpoint.
        Self { removal, log_is_stale: AtomicBool::new(true), bell: Arc::default() }
    }

    /// Empty the write-ahead log after an erasure. It waits briefly for readers that still need the log. If they take longer,
    /// each later commit tries once without waiting.
    pub(super) async fn tidy(&self, connection: &mut SqliteConnection, erased: bool) {
        let patience = match (erased, self.log_is_stale.load(Ordering::Relaxed)) {
            (true, _) => "PRAGMA busy_timeout = 500",
            (false, true) => "PRAGMA busy_timeout = 0",
            (false, false) => return,
        };
        self.log_is_stale.store(true, Ordering::Relaxed);
        if control(connection, patience).await.is_ok() && matches!(checkpoint(connection).await, Ok(true)) {
            self.log_is_stale.store(false, Ordering::Relaxed);
        }
    }
}

/// Move the write-ahead log into the database and empty it; returns whether that succeeded.
async fn checkpoint(connection: &mut SqliteConnection) -> Result<bool> {
    let busy: i64 =
        sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection).await.map_err(explain)?;
    Ok(busy == 0)
}

/// Run transaction control, which takes no parameters and whose rows do not matter.
async fn control(connection: &mut SqliteConnection, statements: &'static str) -> Result<()> {
    sqlx::raw_sql(statements).execute(connection).await.map_err(explain)?;
    Ok(())
}
