//! The part that all SQL databases share: each operation of the contract, and its statement, is written once.
//!
//! A SQL backend implements [`Database`](super::Database), [`Session`], [`SqlDatabase`] and [`SqlSession`]. It opens
//! transactions and runs statements in its dialect. It writes by hand only the operations that its database does better
//! than others, or differently. All other operations are derived from these.
//!
//! `ask`, `attempt`, `driver` and `removal` hold what some backends do in the same way, but not all of them.

pub(in crate::store) mod ask;
pub(in crate::store) mod attempt;
mod batch;
pub mod ddl;
mod driver;
mod ledger;
mod looks;
mod notes;
pub(in crate::store) mod objects;
mod outbox;
pub(in crate::store) mod queue;
pub(in crate::store) mod removal;
mod retention;
mod row;
pub(in crate::store) mod statement;
pub(in crate::store) mod statistics;
pub(in crate::store) mod unique_email;
mod value;

use async_trait::async_trait;

pub(in crate::store) use self::{
    batch::{Batch, Cells, batch},
    driver::of_driver,
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

/// What a SQL backend writes by hand in addition to [`Database`](super::Database).
#[async_trait]
pub trait SqlDatabase: Store {
    /// Open a transaction for this purpose.
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn SqlTransaction>>;

    /// Run one statement in its own transaction; returns its rows.
    async fn fetch(&self, purpose: Purpose, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let mut session = self.session(purpose).await?;
        let rows = session.rows(statement, values).await?;
        session.commit().await?;
        Ok(rows)
    }

    /// Run one statement in its own transaction; returns how many rows it wrote.
    async fn run(&self, purpose: Purpose, statement: &Statement, values: &[Value<'_>]) -> Result<u64> {
        let mut session = self.session(purpose).await?;
        let written = session.execute(statement, values).await?;
        session.commit().await?;
        Ok(written)
    }
}

/// The purpose of a transaction. It decides how long the transaction waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Look up rows by an index.
    Read,
    /// Read a page of rows in the order of an index, never by sorting.
    Page,
    /// Count rows, or list them for people. It may read whole tables, and is cancelled after some seconds.
    Count,
    /// Read a whole table when no client waits for the result.
    Scan,
    Write(Patience),
    /// Write with few statements. A backend may open the transaction together with the first one.
    WriteAtOnce,
    /// Write to a whole table when no client waits for the result.
    WriteMany,
    /// Write data that may be lost if the server dies within the next second.
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

    /// Write, with the normal time limit for locks.
    pub(in crate::store) const WRITE: Self = Self::Write(Patience::Normal);
}

/// A transaction of a SQL backend.
#[async_trait]
pub trait SqlSession: Session {
    /// Whether this statement, which combines several steps, is empty for this database.
    fn takes_steps(&self, statement: &Statement) -> bool;

    /// The rows that a statement returns. A statement that is empty for this database, or has only empty batches, is not sent.
    async fn rows(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>>;

    /// Run a statement; returns how many rows it wrote. Empty statements are not sent, as with [`rows`](Self::rows).
    async fn execute(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<u64>;

    /// Run the last statement of a transaction, which fails if it did not write what it should. A backend may send it together
    /// with the commit; then it fails during the commit.
    async fn last(&mut self, statement: &Statement, values: &[Value<'_>]) -> Result<()> {
        self.rows(statement, values).await.map(drop)
    }

    /// Write rows of a table that may have triggers and constraints of the application; returns the statement's rows. An error
    /// counts as the application's refusal unless it is known to be clerk-sync's fault.
    async fn write_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>>;

    /// Write such rows if the application allows it. If it refuses, the transaction is as it was before.
    async fn try_objects(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<()>;

    /// Mark the transaction as failed for this reason, because it did not write what was requested. It cannot be committed.
    fn fail(&mut self, reason: StoreError) -> StoreError;

    /// Note that this transaction writes new work. Other processes are notified after the commit.
    fn leaves_work(&mut self);

    /// Note that this transaction removes personal data. After the commit no file of the database contains it, where
    /// clerk-sync can ensure that.
    fn removed_personal_data(&mut self);
}

/// A transaction with all operations, and the statements that they use.
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

    /// Once some thousands of messages wait, MariaDB would otherwise read all of them for each row of the outer statement.
    #[test]
    fn a_search_of_messages_for_each_row_names_its_index_on_mysql() {
        let mut searches = 0;
        for (name, statement) in outbox::STATEMENTS {
            let text = statement.sql(Dialect::Mariadb);
            for (start, _) in text.match_indices("(SELECT").chain(text.match_indices("(\n")) {
                let mut depth = 0;
                let end = text[start..].find(|c| {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    depth == 0
                });
                let inner = &text[start..start + end.expect("parentheses match")];
                let is_for_each_row = ["n", "m", "o", "r"].iter().any(|row| {
                    inner.contains(&format!("clerk_id = {row}.clerk_id"))
                        && !inner.contains(&format!(" AS {row} "))
                });
                let is_of_messages = inner.split_whitespace().any(|word| word == "outbox");
                if is_for_each_row && is_of_messages && !inner[1..].contains("(SELECT") {
                    assert!(inner.contains("FORCE INDEX"), "{name}: {inner}");
                    searches += 1;
                }
            }
        }
        assert!(searches >= 6, "{searches}");
    }

    /// Makes the SQL reviewable: `cargo insta review` shows how a change affects it.
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
