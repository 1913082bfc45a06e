//! Writes that the application may refuse by its constraints and triggers, in databases whose transaction survives a refusal.

use async_trait::async_trait;

use super::{Row, SqlSession, Statement, Value, batch, objects::Statements, values};
use crate::{
    model::FieldSet,
    store::{ErrorKind, Result, StoreError},
};

/// A session whose transaction survives a refusal. Any other error ends it, once [`SqlSession::fail`] has noted the error.
#[async_trait]
pub(in crate::store) trait Attempts: SqlSession {
    /// Whether an error has ended the transaction.
    fn is_over(&self) -> bool;

    /// Whether the statement cannot run because something that it names does not exist, or because a function in it fails.
    fn is_of_the_statement(error: &StoreError) -> bool;

    /// Run a text without parameters. An error is not noted.
    async fn control(&mut self, text: &str) -> Result<()>;

    /// The rows of a statement on this table, where the application's code may run. An error is not noted.
    async fn unjudged(
        &mut self,
        table: &'static str,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>>;
}

/// Run a statement that writes rows of this table. If it cannot run although the table has all of clerk-sync's columns, the
/// fault is a trigger, or something else that the application added to the table. An error is not noted.
pub(in crate::store) async fn written<S: Attempts>(
    session: &mut S,
    table: &'static str,
    statement: &Statement,
    values: &[Value<'_>],
) -> Result<Vec<Row>> {
    match session.unjudged(table, statement, values).await {
        Err(error) if S::is_of_the_statement(&error) && all_is_there(session, table).await => {
            Err(StoreError { kind: ErrorKind::Refused, place: Some(format!("table {table}")), ..error })
        }
        written => written,
    }
}

/// Whether the table has all of clerk-sync's columns.
async fn all_is_there(session: &mut impl Attempts, table: &'static str) -> bool {
    let Some(entity) = session.kinds().iter().find(|entity| entity.table == table) else { return false };
    let statements = Statements::of(entity, FieldSet::ALL);
    let nobody = [String::new()];
    session.unjudged(table, &statements.load, values![batch(&nobody).text(String::as_str)]).await.is_ok()
}

/// Begin an attempt, which [`end`] ends.
pub(in crate::store) async fn begin(session: &mut impl Attempts) -> Result<()> {
    session.control("SAVEPOINT attempt").await.map_err(|error| session.fail(error))
}

/// End an attempt. After a refusal, which is returned inside, the transaction is as it was before.
pub(in crate::store) async fn end<T>(
    session: &mut impl Attempts,
    done: Result<T>,
) -> Result<std::result::Result<T, StoreError>> {
    match done {
        Ok(done) => {
            let left = session.control("RELEASE SAVEPOINT attempt").await;
            left.map_err(|error| session.fail(error))?;
            Ok(Ok(done))
        }
        Err(refused) if refused.is_about_the_data() && !session.is_over() => {
            let undone = session.control("ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt").await;
            // A trigger of SQLite with RAISE(ROLLBACK) removes the savepoint and the transaction. Then the refusal is final.
            if undone.is_err() { Err(session.fail(refused)) } else { Ok(Err(refused)) }
        }
        Err(error) => Err(session.fail(error)),
    }
}
