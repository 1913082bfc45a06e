//! What every database shares: each verb of the contract is written once here, and so is its statement.
//!
//! A keeper implements [`Database`](super::Database), [`Session`], [`SqlDatabase`] and [`SqlSession`]: it opens transactions, runs statements in its kind of SQL, and does by hand
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

use async_trait::async_trait;

pub(in crate::store) use self::{
    batch::{Batch, Cells, batch},
    ledger::telling,
    row::{RowCells, only},
    statement::{Step, statements},
    value::values,
};
pub use self::{
    row::Row,
    statement::{Dialect, Statement},
    value::Value,
};
use super::{Patience, Result, Session, Store, StoreError, Transaction};

/// What a keeper with SQL does by hand beside [`Database`](super::Database).
#[async_trait]
pub trait SqlDatabase: Store {
    /// Open a transaction for this purpose.
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn SqlTransaction>>;

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

/// A transaction, as a keeper with SQL runs it.
#[async_trait]
pub trait SqlSession: Session {
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

    /// What was written is not what was asked for, for this reason: nothing of the transaction must last.
    fn fail(&mut self, reason: StoreError) -> StoreError;

    /// What is written is to be worked on: others are told of it after the commit.
    fn leaves_work(&mut self);

    /// Something of a person was removed: after the commit no file of the database has it any more, as far as that is ours
    /// to do.
    fn removed_personal_data(&mut self);
}

/// A transaction with all its verbs, and the statements that they are written over.
pub trait SqlTransaction: SqlSession + Transaction {}

impl<S: SqlSession> SqlTransaction for S {}

#[async_trait]
impl<D: SqlDatabase + ?Sized> Store for D {
    async fn begin(&self, patience: Patience) -> Result<Box<dyn Transaction>> {
        Ok(self.session(Purpose::Write(patience)).await?)
    }

    async fn begin_at_once(&self) -> Result<Box<dyn Transaction>> {
        Ok(self.session(Purpose::WriteAtOnce).await?)
    }
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
