//! What every keeper does, whatever its verbs are written over.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use super::{
    Count, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Mark, Migration, MigrationStatus,
    Missing, Readiness, Result, RowFate, Space, Statistics, StoreError, Way,
};
use crate::model::{ClerkId, Kinds};

/// What every keeper does by hand.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// How many transactions it can usefully run side by side. If it is one, it is worth a look first whether there is
    /// anything to write.
    fn writers(&self) -> usize;

    /// Apply pending migrations in one transaction, safe when several processes do it at once, and check that the
    /// tables are what we need. Returns what was applied.
    async fn migrate(&self) -> Result<Vec<Migration>>;

    /// Every migration we know, and whether it is applied.
    async fn migration_status(&self) -> Result<Vec<MigrationStatus>>;

    /// Reachable, writable, and every migration applied?
    async fn ready(&self) -> Result<Readiness>;

    /// Which of our tables may have rows that we cannot see, and what mends it.
    async fn hidden(&self) -> Result<Vec<Missing>> {
        Ok(Vec::new())
    }

    /// Rung after each commit of this process that left something to be worked on.
    fn bell(&self) -> Arc<Notify>;

    /// Begin to hear when other processes leave something to be worked on; `None` where that cannot be heard, and has to be
    /// looked for.
    async fn listen(&self) -> Result<Option<Box<dyn Listener>>>;

    /// How much room the database takes up. Not to be asked often.
    async fn space(&self) -> Result<Space>;

    /// About how many users are not deleted: of many an estimate, so that it can be asked for at any time.
    async fn estimate_standing(&self) -> Result<Count>;

    /// Rewrite the database without what its file still has of rows that are gone, if it is a file of at most so many
    /// bytes and anybody was erased since this time, or no time is given; returns whether it did. Nobody else can write
    /// meanwhile.
    async fn compact(&self, _at_most: u64, _erased_since: Option<DateTime<Utc>>) -> Result<bool> {
        Ok(false)
    }

    /// What a table that is not ours has. Reads the whole table.
    async fn foreign_table(&self, table: &str) -> Result<ForeignTable>;

    /// Up to `limit` rows of a table that is not ours, in the order of their ids, after this one. Rows without an id are
    /// left out.
    async fn foreign_rows(
        &self,
        reading: &ForeignReading,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ForeignRow>>;

    /// Look for what keeps us from working, without writing anything.
    async fn inspect(&self) -> Result<Inspection>;

    /// How much there is, with what was processed at `since` or later. Large tables may be estimated.
    async fn statistics(&self, since: DateTime<Utc>) -> Result<Statistics>;

    /// Finish what runs and close every connection.
    async fn close(&self);
}

/// A transaction, as a keeper runs it. Dropped before its end, it is rolled back.
#[async_trait]
pub trait Session: Send {
    /// The kinds of objects that the database keeps.
    fn kinds(&self) -> Kinds;

    /// Why rows of our tables may be there that we cannot see, so that nobody can say of one that it is gone; `None` if
    /// nothing hides any.
    async fn hidden(&mut self) -> Result<Option<StoreError>>;

    /// Take out rows of one kind in the first of these ways that the application's constraints and triggers allow for each; what they
    /// refuse for one row holds up no other. Rows that still stand are marked as deleted, if they let us. `deleted_at` stays
    /// if it is set already. Gives what became of each row that was there, judged by
    /// looking at it afterwards; of one that never told who it was it may say nothing. An error that
    /// [is about the data](StoreError::is_about_the_data) is about what was written before: the application's deferred
    /// constraints speak first, where the database can make them.
    async fn erase(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>>;

    /// Put these marks of deletion on rows, or take them away. Marks that are there already, and any other than these, are the
    /// application's, and stay. It does not matter if the application lets us.
    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)], mark: Mark) -> Result<()>;

    /// Make it last. An error may also mean that the answer was lost.
    async fn commit(self: Box<Self>) -> Result<()>;

    /// Undo it all and give the connection back.
    async fn rollback(self: Box<Self>);
}
