//! Operations that every backend implements itself, whether or not it shares the SQL operations.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use super::{
    Count, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Mark, Migration, MigrationStatus,
    Missing, Readiness, Result, RowFate, Space, Statistics, StoreError, Way,
};
use crate::model::{ClerkId, Kinds};

/// The operations that every backend implements itself.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// How many transactions can usefully run in parallel. If only one can, the caller first checks whether there is
    /// anything to write.
    fn writers(&self) -> usize;

    /// Apply pending migrations in one transaction and check that the tables match the expected schema. Several processes may
    /// do this at once. Returns the migrations that were applied.
    async fn migrate(&self) -> Result<Vec<Migration>>;

    /// Every known migration, and whether it is applied.
    async fn migration_status(&self) -> Result<Vec<MigrationStatus>>;

    /// Whether the database is reachable, writable and fully migrated.
    async fn ready(&self) -> Result<Readiness>;

    /// clerk-sync's tables with rows that its account may not see, and the remedy for each.
    async fn hidden(&self) -> Result<Vec<Missing>> {
        Ok(Vec::new())
    }

    /// Notified after each commit of this process that added work.
    fn bell(&self) -> Arc<Notify>;

    /// Start listening for work that other processes add; `None` if the database cannot notify, so that the caller must poll.
    async fn listen(&self) -> Result<Option<Box<dyn Listener>>>;

    /// The disk space of the database. Expensive: do not call it often.
    async fn space(&self) -> Result<Space>;

    /// Approximate number of live users. Large tables are estimated, so the call is always cheap.
    async fn estimate_standing(&self) -> Result<Count>;

    /// Rewrite the database file to remove the remains of deleted rows; returns whether that happened. A file is only
    /// rewritten if it has at most this many bytes and a user was erased since the given time; without a time, the size
    /// alone decides. No other process can write during the rewrite.
    async fn compact(&self, _at_most: u64, _erased_since: Option<DateTime<Utc>>) -> Result<bool> {
        Ok(false)
    }

    /// Describe an application's table. Reads the whole table.
    async fn foreign_table(&self, table: &str) -> Result<ForeignTable>;

    /// Up to `limit` rows of an application's table after the id `after`, ordered by id. Rows without an id are skipped.
    async fn foreign_rows(
        &self,
        reading: &ForeignReading,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ForeignRow>>;

    /// Look for problems that stop clerk-sync from working, without writing anything.
    async fn inspect(&self) -> Result<Inspection>;

    /// Row counts and sizes, with the deliveries processed at `since` or later. Large tables may be estimated.
    async fn statistics(&self, since: DateTime<Utc>) -> Result<Statistics>;

    /// Finish running work and close every connection.
    async fn close(&self);
}

/// A backend's transaction. It is rolled back if it is dropped before its end.
#[async_trait]
pub trait Session: Send {
    /// The kinds of objects that this database stores.
    fn kinds(&self) -> Kinds;

    /// Why the database may hide rows of clerk-sync's tables, so that clerk-sync cannot conclude that a row is gone; `None` if
    /// it hides nothing, as where there is no row level security.
    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        Ok(None)
    }

    /// Remove rows of one kind. Each row is removed in the first of these ways that the application's constraints and triggers
    /// allow. A refusal for one row does not affect the others. Rows that cannot be removed are marked as deleted if the
    /// application allows it. An earlier `deleted_at` is kept.
    ///
    /// Returns the fate of each row that existed, as read afterwards. A row that never identified its user may be missing from
    /// the result. An error that [is about the data](StoreError::is_about_the_data) refers to earlier writes of this
    /// transaction: where the database supports it, the application's deferred constraints are checked first.
    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>>;

    /// Set `deleted_at` of these rows to the given times, or clear it. Setting keeps a value that is already there, and
    /// clearing keeps a value that differs from the given one, because both belong to the application. A refusal by the
    /// application is ignored.
    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()>;

    /// Commit. The commit may have happened even if this returns an error, because the answer can be lost.
    async fn commit(self: Box<Self>) -> Result<()>;

    /// Roll back and return the connection to the pool.
    async fn rollback(self: Box<Self>);
}
