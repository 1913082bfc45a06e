//! Writes that the application may refuse by its constraints and triggers, in databases whose transaction survives a refusal.

use async_trait::async_trait;
use sqlx::{Database, pool::PoolConnection};

use super::{Row, SqlSession, Statement, Value, ask::Ask, batch, objects::Statements, values};
use crate::{
    model::FieldSet,
    store::{ErrorKind, Result, StoreError},
};

/// A connection in a transaction, until an error ends it. After some errors the database has undone the whole transaction by
/// itself, and later statements would commit on their own.
pub(in crate::store) struct Open<D: Database> {
    /// `None` after it was returned to the pool.
    pub(in crate::store) connection: Option<PoolConnection<D>>,
    /// The error that ended the transaction.
    pub(in crate::store) over: Option<StoreError>,
}

impl<D: Database> Open<D> {
    pub(in crate::store) fn new(connection: PoolConnection<D>) -> Self {
        Self { connection: Some(connection), over: None }
    }

    /// The connection, unless an error has ended the transaction.
    pub(in crate::store) fn connection(&mut self) -> Result<&mut D::Connection> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        self.connection.as_deref_mut().ok_or_else(|| StoreError::new(ErrorKind::Broken))
    }

    /// Note an error: it ends the transaction.
    pub(in crate::store) fn fail(&mut self, error: StoreError) -> StoreError {
        self.over.get_or_insert_with(|| error.clone());
        error
    }
}

/// A session whose transaction survives a refusal. Any other error ends it, once [`SqlSession::fail`] has noted the error.
#[async_trait]
pub(in crate::store) trait Attempts: SqlSession {
    type Database: Database<Connection: Ask>;

    /// Whether the database undoes a refused statement by itself, and replaces a savepoint of the same name. A trigger of SQLite
    /// can keep a part of its statement, and a second savepoint there hides the first.
    const UNDOES_A_STATEMENT: bool;

    /// Whether the statement cannot run because something that it names does not exist, or because a function in it fails.
    const IS_OF_THE_STATEMENT: fn(&StoreError) -> bool;

    fn open(&mut self) -> &mut Open<Self::Database>;

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
        Err(error) if S::IS_OF_THE_STATEMENT(&error) && all_is_there(session, table).await => {
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

/// How much an attempt consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Extent {
    OneStatement,
    SeveralStatements,
}

/// Begin an attempt, which [`end`] ends.
pub(in crate::store) async fn begin<S: Attempts>(session: &mut S, extent: Extent) -> Result<()> {
    if is_undone_by_itself::<S>(extent) {
        return Ok(());
    }
    let begun = session.open().connection()?.run("SAVEPOINT attempt").await;
    begun.map(drop).map_err(|error| session.fail(error))
}

/// End an attempt. After a refusal, which is returned inside, the transaction is as it was before.
pub(in crate::store) async fn end<S: Attempts, T>(
    session: &mut S,
    extent: Extent,
    done: Result<T>,
) -> Result<std::result::Result<T, StoreError>> {
    match done {
        // A later attempt replaces the savepoint, or the commit removes it.
        Ok(done) if S::UNDOES_A_STATEMENT => Ok(Ok(done)),
        Ok(done) => {
            let left = session.open().connection()?.run("RELEASE SAVEPOINT attempt").await;
            left.map_err(|error| session.fail(error))?;
            Ok(Ok(done))
        }
        Err(refused) if refused.is_about_the_data() && session.open().over.is_none() => {
            if is_undone_by_itself::<S>(extent) {
                return Ok(Err(refused));
            }
            let undo = "ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt";
            let undone = session.open().connection()?.run(undo).await;
            // A trigger of SQLite with RAISE(ROLLBACK) removes the savepoint and the transaction. Then the refusal is final.
            if undone.is_err() { Err(session.fail(refused)) } else { Ok(Err(refused)) }
        }
        Err(error) => Err(session.fail(error)),
    }
}

/// Whether the database undoes a refused attempt without a savepoint.
fn is_undone_by_itself<S: Attempts>(extent: Extent) -> bool {
    S::UNDOES_A_STATEMENT && extent == Extent::OneStatement
}

/// Run a statement that the application may refuse. A refusal leaves the transaction as it was and is not returned.
pub(in crate::store) async fn tried(
    session: &mut impl Attempts,
    table: &'static str,
    statement: &Statement,
    values: &[Value<'_>],
) -> Result<()> {
    begin(session, Extent::OneStatement).await?;
    let tried = written(session, table, statement, values).await;
    end(session, Extent::OneStatement, tried).await.map(drop)
}
