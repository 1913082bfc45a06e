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
    error::{explain, is_full, is_of_the_statement},
    statement::{bound, rows},
};
use crate::{
    model::{ClerkId, Kinds},
    store::{
        Mark, Patience, Result, RowFate, Session, StoreError, Way,
        sql::{
            Dialect, Row, SqlSession, Statement, Value,
            ask::Ask as _,
            attempt::{self, Attempts, Open},
            removal::Removal,
            values,
        },
    },
};

pub(super) struct SqliteSession {
    pub(super) kinds: Kinds,
    open: Open<sqlx::Sqlite>,
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
        Self { kinds, open: Open::new(connection), reads, erased: false, housekeeping }
    }

    pub(super) async fn begin(&mut self, patience: Patience) -> Result<()> {
        // The lock covers the whole database, so a change of any other user also blocks. A short wait only keeps many small
        // transactions together within the sender's timeout. It is set every time, so that no old value remains.
        let begin = match patience {
            Patience::Normal | Patience::Long => "PRAGMA busy_timeout = 3000; BEGIN IMMEDIATE",
            Patience::Short => "PRAGMA busy_timeout = 50; BEGIN IMMEDIATE",
        };
        self.connection()?.run(begin).await.map(drop)
    }

    /// The connection, unless an error has ended the transaction.
    pub(super) fn connection(&mut self) -> Result<&mut SqliteConnection> {
        self.open.connection()
    }
}

impl Drop for SqliteSession {
    fn drop(&mut self) {
        if let Some(connection) = self.open.connection.as_mut().filter(|_| !self.reads) {
            connection.close_on_drop();
        }
    }
}

#[async_trait]
impl Session for SqliteSession {
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        let housekeeping = Arc::clone(&self.housekeeping);
        housekeeping.removal.erase(self, ids, ways, at).await
    }

    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()> {
        let housekeeping = Arc::clone(&self.housekeeping);
        housekeeping.removal.mark(self, marks, mark).await
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        if self.reads {
            return Ok(());
        }
        let committed = match self.connection() {
            Ok(connection) => connection.run("COMMIT").await,
            Err(error) => Err(error),
        };
        // A deferred foreign key fails here, and leaves the transaction open.
        if let Err(error) = committed {
            self.housekeeping.disk_is_full.fetch_or(is_full(&error), Ordering::Relaxed);
            self.rollback().await;
            return Err(error);
        }
        self.housekeeping.disk_is_full.store(false, Ordering::Relaxed);
        // The commit may have added work.
        self.housekeeping.bell.notify_one();
        if let Some(mut connection) = self.open.connection.take() {
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
        let Some(connection) = self.open.connection.as_deref_mut() else { return };
        if connection.run("ROLLBACK").await.is_ok() {
            drop(self.open.connection.take());
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
        rows(self.connection()?, kinds, statement, values).await.map_err(|error| self.fail(error))
    }

    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        if statement.is_void(Dialect::Sqlite, values) {
            return Ok(0);
        }
        let written =
            bound(statement.sql(Dialect::Sqlite), values).execute(self.connection()?).await.map_err(explain);
        written.map(|written| written.rows_affected()).map_err(|error| self.fail(error))
    }

    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
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
        self.housekeeping.disk_is_full.fetch_or(is_full(&reason), Ordering::Relaxed);
        self.open.fail(reason)
    }

    fn leaves_work(&mut self) {
        // Every commit notifies the workers anyway.
    }

    fn removed_personal_data(&mut self) {
        self.erased = true;
    }
}

#[async_trait]
impl Attempts for SqliteSession {
    type Database = sqlx::Sqlite;
    const UNDOES_A_STATEMENT: bool = false;
    const IS_OF_THE_STATEMENT: fn(&StoreError) -> bool = is_of_the_statement;

    fn open(&mut self) -> &mut Open<sqlx::Sqlite> {
        &mut self.open
    }

    async fn unjudged(
        &mut self,
        _table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>> {
        let kinds = self.kinds;
        rows(self.connection()?, kinds, statement, values).await
    }
}

/// State that the writer keeps between transactions.
pub(super) struct Housekeeping {
    removal: Removal,
    /// Whether the write-ahead log may still hold data of an erased user.
    log_is_stale: AtomicBool,
    /// Whether the last transaction found no room on the disk.
    pub(super) disk_is_full: AtomicBool,
    /// Notified after each commit.
    pub(super) bell: Arc<Notify>,
}

impl Housekeeping {
    pub(super) fn new(removal: Removal) -> Self {
        // A process may have died between the commit of an erasure and its checkpoint.
        Self {
            removal,
            log_is_stale: AtomicBool::new(true),
            disk_is_full: AtomicBool::new(false),
            bell: Arc::default(),
        }
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
        if connection.run(patience).await.is_ok() && matches!(checkpoint(connection).await, Ok(true)) {
            self.log_is_stale.store(false, Ordering::Relaxed);
        }
    }
}

/// Move the write-ahead log into the database and empty it; returns whether that succeeded.
async fn checkpoint(connection: &mut SqliteConnection) -> Result<bool> {
    let busy: i64 = connection.one("PRAGMA wal_checkpoint(TRUNCATE)", values![]).await?.get(0)?;
    Ok(busy == 0)
}
