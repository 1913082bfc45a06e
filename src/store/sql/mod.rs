//! What all databases that speak SQL share: each verb of the contract is written once here, and so is its statement.
//!
//! A keeper opens [`Session`]s, knows its kind of SQL, and writes by hand only what its database can do better than others.

mod batch;
pub mod ddl;
pub(in crate::store) mod erasures;
mod inbox;
pub(in crate::store) mod ledger;
mod notes;
pub(in crate::store) mod objects;
pub(in crate::store) mod outbox;
pub(in crate::store) mod queue;
mod retention;
mod row;
mod seals;
mod sinks;
mod statement;
pub(in crate::store) mod statistics;
mod value;

use async_trait::async_trait;

pub use self::statement::Dialect;
pub(in crate::store) use self::{
    batch::{Batch, Cells, batch},
    row::{Kinds, Row, RowCells, only},
    statement::{Statement, statements},
    value::{Value, values},
};
use super::{Patience, Result};

/// A database that speaks SQL.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// Open a transaction for this purpose.
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn Session>>;

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

    /// The kinds of objects that it keeps.
    fn kinds(&self) -> Kinds;

    /// Whether one transaction writes at a time, so that it is worth a look first whether there is anything to write.
    fn has_one_writer(&self) -> bool;
}

/// What a transaction is for, so that it waits as long as it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// To write to a whole table while nobody waits.
    WriteMany,
    /// To write what may be lost if the server dies within the next second.
    WriteUnhurried,
}

impl Purpose {
    /// To write, and to wait for locks as long as somebody who works is waited for.
    pub(in crate::store) const WRITE: Self = Self::Write(Patience::Normal);
}

/// A transaction. Dropped before its end, it is rolled back.
#[async_trait]
pub trait Session: Send {
    /// The kinds of objects that the database keeps.
    fn kinds(&self) -> Kinds;

    /// The rows that a statement gives.
    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>>;

    /// Run a statement; gives how many rows it wrote. One that is empty for this database is not sent.
    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64>;

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

    /// What is written is to be worked on: others are told of it after the commit.
    fn leaves_work(&mut self);

    /// Something of a person was removed: after the commit no file of the database has it any more, as far as that is ours
    /// to do.
    fn removed_personal_data(&mut self);

    /// Make it last. An error may also mean that the answer was lost.
    async fn commit(self: Box<Self>) -> Result<()>;

    /// Undo it all.
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
                ("erasures", erasures::STATEMENTS),
                ("inbox", inbox::STATEMENTS),
                ("ledger", ledger::STATEMENTS),
                ("notes", notes::STATEMENTS),
                ("outbox", outbox::STATEMENTS),
                ("queue", queue::STATEMENTS),
                ("retention", retention::STATEMENTS),
                ("seals", seals::STATEMENTS),
                ("sinks", sinks::STATEMENTS),
                ("statistics", statistics::STATEMENTS),
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
