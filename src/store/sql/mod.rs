//! What every database shares: each verb of the contract is written once here, and so is its statement.
//!
//! A keeper implements [`Database`] and [`Session`]: it opens transactions, runs statements in its kind of SQL, and does by hand
//! what its database can do better than others, or only in its own way. All other verbs follow from that.

mod batch;
pub mod ddl;
mod ledger;
mod looks;
mod notes;
pub(in crate::store) mod objects;
mod outbox;
pub(in crate::store) mod queue;
mod retention;
mod row;
pub(in crate::store) mod statement;
pub(in crate::store) mod statistics;
pub(in crate::store) mod unique_email;
mod value;

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::Notify;

pub(in crate::store) use self::{
    batch::{Batch, Cells, batch},
    ledger::telling,
    row::{RowCells, only},
    statement::{Step, statements},
    value::values,
};
pub use self::{
    ledger::{Closing, Ledger, Opened},
    looks::Looks,
    notes::Notes,
    outbox::Outbox,
    queue::Inbox,
    row::Row,
    statement::{Dialect, Statement},
    value::Value,
};
use super::{
    Count, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Mark, Migration, MigrationStatus,
    Missing, Patience, Readiness, Result, RowFate, Space, Statistics, StoreError, Transaction, Way,
};
use crate::model::{ClerkId, Kinds};

/// What every keeper does by hand.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// Open a transaction for this purpose.
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn Transaction>>;

    /// The rows that a statement gives which is a transaction of its own.
    async fn fetch(&self, purpose: Purpose, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let mut session = self.session(purpose).await?;
        let rows = session.rows(statement, values).await?;
        session.commit().await?;
        Ok(rows)
    }

    /// Run a statement which is a transaction of its own; gives how many rows it wrote.
    async fn run(&self, purpose: Purpose, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        let mut session = self.session(purpose).await?;
        let written = session.execute(statement, values).await?;
        session.commit().await?;
        Ok(written)
    }

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

/// What a transaction is for, so that it waits as long as it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To look rows up by an index.
    Read,
    /// To read a page of rows in the order of an index, never by sorting.
    Page,
    /// To count, or to list for people: it may read whole tables, and ends after some seconds.
    Count,
    /// To go through a whole table while nobody waits.
    Scan,
    Write(Patience),
    /// To write with few statements: a keeper may send what opens the transaction with the first of them.
    WriteAtOnce,
    /// To write to a whole table while nobody waits.
    WriteMany,
    /// To write what may be lost if the server dies within the next second.
    WriteUnhurried,
}

impl Purpose {
    /// Every purpose.
    pub(in crate::store) const ALL: [Self; 10] = [
        Self::Read,
        Self::Page,
        Self::Count,
        Self::Scan,
        Self::Write(Patience::Normal),
        Self::Write(Patience::Short),
        Self::Write(Patience::Long),
        Self::WriteAtOnce,
        Self::WriteMany,
        Self::WriteUnhurried,
    ];

    /// To write, and to wait for locks as long as somebody who works is waited for.
    pub(in crate::store) const WRITE: Self = Self::Write(Patience::Normal);
}

/// A transaction, as a keeper runs it. Dropped before its end, it is rolled back.
#[async_trait]
pub trait Session: Send {
    /// The kinds of objects that the database keeps.
    fn kinds(&self) -> Kinds;

    /// Whether this statement, which takes several steps at once, is empty for this database.
    fn takes_steps(&self, statement: &Statement) -> bool;

    /// The rows that a statement gives. One that is empty for this database, or whose batches are empty, is not sent.
    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>>;

    /// Run a statement; gives how many rows it wrote. It is sent as those that give rows are.
    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64>;

    /// Run the last statement of a transaction, which fails if it has not written what it was to write. A keeper may send it with the
    /// commit: then it fails there.
    async fn last(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<()> {
        self.rows(statement, values).await.map(drop)
    }

    /// Write rows of a table that the application may have put triggers and constraints on; gives the rows that a statement returns.
    /// What fails there is the application's refusal, unless it is known to be ours.
    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>>;

    /// Write such rows if the application lets us; if it does not, the transaction is as it was before.
    async fn try_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()>;

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

    /// What was written is not what was asked for, for this reason: nothing of the transaction must last.
    fn fail(&mut self, reason: StoreError) -> StoreError;

    /// What is written is to be worked on: others are told of it after the commit.
    fn leaves_work(&mut self);

    /// Something of a person was removed: after the commit no file of the database has it any more, as far as that is ours
    /// to do.
    fn removed_personal_data(&mut self);

    /// Make it last. An error may also mean that the answer was lost.
    async fn commit(self: Box<Self>) -> Result<()>;

    /// Undo it all and give the connection back.
    async fn rollback(self: Box<Self>);
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::model::FieldSet;

    /// So that what is sent can be read and reviewed: `cargo insta review` shows what a change makes of it.
    #[test]
    fn statements_are_as_they_were_reviewed() {
        for dialect in Dialect::ALL {
            let mut all = String::new();
            for (file, statements) in [
                ("ledger", ledger::STATEMENTS),
                ("looks", looks::STATEMENTS),
                ("notes", notes::STATEMENTS),
                ("outbox", outbox::STATEMENTS),
                ("queue", queue::STATEMENTS),
                ("retention", retention::STATEMENTS),
                ("statistics", statistics::STATEMENTS),
                ("unique_email", unique_email::STATEMENTS),
            ] {
                for (name, statement) in statements {
                    let _ = writeln!(all, "-- {file}: {name}\n{}\n", statement.sql(dialect));
                }
            }
            for entity in crate::entity::ALL {
                for (name, statement) in objects::Statements::of(entity, FieldSet::ALL).named() {
                    let _ = writeln!(all, "-- {}: {name}\n{}\n", entity.table, statement.sql(dialect));
                }
            }
            insta::with_settings!({ snapshot_path => "../../../tests/snapshots" }, {
                insta::assert_snapshot!(dialect.name(), all);
            });
        }
    }
}
