//! One transaction, with all control by hand.
//!
//! It never gives its connection back while a transaction is open on it. Dropped without an end, by whatever
//! cancelled the task, it closes the connection, and SQLite rolls back.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{SqliteConnection, pool::PoolConnection};
use tokio::sync::Notify;

use super::{
    error::{explain, is_of_the_statement},
    removal::{Removal, Step, are_others},
    shared,
};
use crate::{
    model::{AuditEntry, ClerkId, Entity, Outcome, Receipt, Register, Selection, SvixId, User},
    store::{
        Address, Advance, Outgoing, Parked, Patience, Record, Result, RowFate, StoreError, Transaction,
        Trouble, Waiting, Way,
        sql::{
            Kinds, erasures, ledger, objects,
            objects::{Write, by_kind},
            outbox, queue,
        },
    },
};

pub(super) struct SqliteTransaction {
    pub(super) kinds: Kinds,
    /// `None` once it is given back.
    connection: Option<PoolConnection<sqlx::Sqlite>>,
    /// Why it cannot go on. After an error SQLite may have rolled back by itself, and then every further statement
    /// would commit on its own.
    over: Option<StoreError>,
    /// Whether something of a person was removed.
    erased: bool,
    housekeeping: Arc<Housekeeping>,
}

impl SqliteTransaction {
    pub(super) async fn begin(
        connection: PoolConnection<sqlx::Sqlite>,
        kinds: Kinds,
        patience: Patience,
        housekeeping: Arc<Housekeeping>,
    ) -> Result<Self> {
        // First the guard, then the transaction: from here on a cancelled task closes the connection.
        let mut this = Self { kinds, connection: Some(connection), over: None, erased: false, housekeeping };
        // The lock is the whole database's, so to wait briefly does not spare one user the other's lock; it only
        // keeps many small transactions from outlasting the sender together. Set every time, it is never left over.
        let begin = match patience {
            Patience::Normal | Patience::Long => "PRAGMA busy_timeout = 3000; BEGIN IMMEDIATE",
            Patience::Short => "PRAGMA busy_timeout = 50; BEGIN IMMEDIATE",
        };
        control(this.connection()?, begin).await?;
        Ok(this)
    }

    /// The connection, as long as the transaction can go on.
    pub(super) fn connection(&mut self) -> Result<&mut SqliteConnection> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        self.connection.as_deref_mut().ok_or_else(|| StoreError::new(Trouble::Broken))
    }

    /// Remember an error: the transaction ends with it.
    pub(super) fn noted<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.over.get_or_insert_with(|| error.clone());
        }
        result
    }

    /// Whether it cannot go on.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// What was done to rows of this table, where code of the application may run. If the statement cannot run though all that
    /// is ours is there, it is a trigger that cannot, or something else that the application has put on the table.
    pub(super) async fn judged<T>(&mut self, table: &str, written: Result<T>) -> Result<T> {
        let kinds = self.kinds;
        match written {
            Err(error)
                if is_of_the_statement(&error)
                    && shared::all_is_there(self.connection()?, kinds, table).await =>
            {
                Err(StoreError { trouble: Trouble::Refused, place: Some(format!("table {table}")), ..error })
            }
            written => written,
        }
    }

    /// A trigger may have changed whose rows were written.
    async fn are_theirs(&mut self, entity: &Entity, objects: &[User]) -> Result<()> {
        let ids = objects.iter().map(|object| &object.clerk_id);
        let others = are_others(self.connection()?, entity.table, ids).await;
        let result = others.and_then(|others| if others { Err(StoreError::changed_id()) } else { Ok(()) });
        self.noted(result)
    }

    async fn write(&mut self, objects: &[User], selection: &Selection, how: Write) -> Result<()> {
        for (entity, objects) in by_kind(objects, |object| object.clerk_id.entity()) {
            let written = objects::write(self, objects, selection.fields(entity), how).await;
            self.noted(written)?;
            self.are_theirs(entity, objects).await?;
        }
        Ok(())
    }

    /// Note that something of a person was removed without a verb of its own.
    pub(super) fn note_erasure(&mut self) {
        self.erased = true;
    }

    /// Do it to all of these of one kind, or to each of them as far as the application lets us. Gives to whom it was done, and who
    /// refused.
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

    /// Do what the application may refuse, so that a refusal leaves the transaction as it was.
    pub(super) async fn refusable<T>(
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
                // A trigger with RAISE(ROLLBACK) leaves no savepoint and no transaction. Then the refusal is final.
                if undone.is_err() {
                    self.over = Some(refused.clone());
                }
                Err(refused)
            }
            error => self.noted(error),
        }
    }

    /// Those whose row stands and tells who they were.
    async fn still_here(&mut self, ids: &[ClerkId]) -> Result<Vec<ClerkId>> {
        let rows = self.load(ids, &Selection::default()).await?;
        let stands = |id: &&ClerkId| rows.get(*id).is_some_and(|user| !user.is_anonymized());
        Ok(ids.iter().filter(stands).cloned().collect())
    }

    /// Roll back and give the connection back; if that fails, it is closed.
    async fn undo(mut self: Box<Self>) {
        let Some(connection) = self.connection.as_deref_mut() else { return };
        if control(connection, "ROLLBACK").await.is_ok() {
            drop(self.connection.take());
        }
    }
}

impl Drop for SqliteTransaction {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.close_on_drop();
        }
    }
}

#[async_trait]
impl Transaction for SqliteTransaction {
    async fn claim(&mut self, now: DateTime<Utc>, limit: u32, bytes: u64) -> Result<Vec<Parked>> {
        queue::claim(self, now, limit, bytes).await
    }

    async fn claim_these(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<Vec<Parked>> {
        queue::claim_these(self, ids, now).await
    }

    async fn enqueue(&mut self, queued: &[Parked]) -> Result<HashSet<SvixId>> {
        queue::enqueue(self, queued).await
    }

    async fn revive(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64> {
        queue::revive(self, ids, now).await
    }

    async fn postpone(&mut self, ids: &[SvixId], until: DateTime<Utc>) -> Result<()> {
        queue::postpone(self, ids, until).await
    }

    async fn record(&mut self, records: &[Record<'_>]) -> Result<HashSet<SvixId>> {
        queue::record(self, records).await
    }

    async fn settle(&mut self, outcomes: &[(SvixId, Outcome)]) -> Result<()> {
        queue::settle(self, outcomes).await
    }

    async fn registers(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        ledger::registers(self, ids).await
    }

    async fn hold(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        let held = ledger::hold(self, ids).await;
        self.noted(held)
    }

    async fn advance(&mut self, registers: &[Advance]) -> Result<()> {
        let written = ledger::advance(self, registers).await;
        self.noted(written)
    }

    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>> {
        ledger::addresses(self, addresses).await
    }

    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()> {
        ledger::release_addresses(self, ids).await
    }

    async fn load(&mut self, ids: &[ClerkId], selection: &Selection) -> Result<HashMap<ClerkId, User>> {
        objects::load(self, ids, selection).await
    }

    async fn children(&mut self, parents: &[ClerkId], limit: u32) -> Result<Vec<ClerkId>> {
        objects::children(self, parents, limit).await
    }

    async fn mark_children(&mut self, parents: &[ClerkId], at: DateTime<Utc>) -> Result<()> {
        objects::mark_children(self, parents, at).await
    }

    async fn rivals(&mut self, entity: &'static Entity, keys: &[Vec<String>]) -> Result<Vec<ClerkId>> {
        objects::rivals(self, entity, keys).await
    }

    async fn insert(&mut self, objects: &[User], selection: &Selection) -> Result<()> {
        self.write(objects, selection, Write::Insert).await
    }

    async fn update(&mut self, objects: &[User], selection: &Selection) -> Result<()> {
        self.write(objects, selection, Write::Update).await
    }

    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        // There is no such thing here.
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
            // A trigger can also keep a row without a word.
            standing = self.still_here(&standing).await?;
        }
        if ways.is_empty() {
            standing = self.still_here(&standing).await?;
        }
        // Whether they are deleted is not for the mark to say, so it does not matter if the application lets us.
        self.each(Step::Mark, &standing, at).await?;
        for id in standing {
            let reason = refusals.remove(&id).unwrap_or_else(StoreError::unmoved);
            fates.insert(id, RowFate::Stands(reason));
        }
        Ok(fates)
    }

    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()> {
        for (id, at) in marks {
            self.each(Step::Mark, std::slice::from_ref(id), *at).await?;
        }
        Ok(())
    }

    async fn unmark(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()> {
        for (id, at) in marks {
            self.each(Step::Unmark, std::slice::from_ref(id), *at).await?;
        }
        Ok(())
    }

    async fn receipts(&mut self, receipts: &[Receipt]) -> Result<()> {
        erasures::write_receipts(self, receipts).await
    }

    async fn close_receipts(&mut self, ids: &[ClerkId], destination: &str, at: DateTime<Utc>) -> Result<()> {
        erasures::close_receipts(self, ids, destination, at).await
    }

    async fn forget(&mut self, ids: &[ClerkId], deliveries: &[SvixId]) -> Result<()> {
        queue::forget(self, ids, deliveries).await
    }

    async fn unattributed(&mut self, ids: &[ClerkId]) -> Result<Vec<(SvixId, Bytes)>> {
        queue::unattributed(self, ids).await
    }

    async fn waiting(&mut self, ids: &[SvixId]) -> Result<HashMap<SvixId, Waiting>> {
        queue::waiting(self, ids).await
    }

    async fn park(&mut self, parked: &[Parked]) -> Result<()> {
        queue::park(self, parked).await
    }

    async fn tell(&mut self, messages: &[Outgoing]) -> Result<()> {
        outbox::tell(self, messages).await
    }

    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>> {
        outbox::recall(self, ids, now).await
    }

    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let lines = ledger::audit(self, entries).await?;
        ledger::attribute(self, entries, &lines).await
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        let committed = match self.connection() {
            Ok(connection) => control(connection, "COMMIT").await,
            Err(error) => Err(error),
        };
        // A deferred foreign key refuses here, and leaves the transaction open.
        if let Err(error) = committed {
            self.undo().await;
            return Err(error);
        }
        // What was written may have to be worked on.
        self.housekeeping.bell.notify_one();
        if let Some(mut connection) = self.connection.take() {
            // A cancelled task may end here; the connection is no longer in a transaction.
            self.housekeeping.tidy(&mut connection, self.erased).await;
        }
        Ok(())
    }

    async fn rollback(self: Box<Self>) {
        self.undo().await;
    }
}

/// What the writer keeps in mind from one transaction to the next.
pub(super) struct Housekeeping {
    removal: Removal,
    /// Whether the write-ahead log may still hold something of an erased user.
    log_is_stale: AtomicBool,
    /// Rung after each commit.
    pub(super) bell: Arc<Notify>,
}

impl Housekeeping {
    pub(super) fn new(removal: Removal) -> Self {
        // Somebody may have died between an erasure's commit and its checkpoint.
        Self { removal, log_is_stale: AtomicBool::new(true), bell: Arc::default() }
    }

    /// Empty the write-ahead log of whatever it holds. It waits for readers that still need the log.
    pub(super) async fn empty_log(&self, connection: &mut SqliteConnection) {
        self.tidy(connection, true).await;
    }

    /// Empty the write-ahead log after an erasure. It waits a little for readers that still need the log; if they
    /// take longer, each following commit tries once, without waiting.
    async fn tidy(&self, connection: &mut SqliteConnection, erased: bool) {
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

/// Move the write-ahead log into the database and empty it; returns whether that could be done.
async fn checkpoint(connection: &mut SqliteConnection) -> Result<bool> {
    let busy: i64 =
        sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection).await.map_err(explain)?;
    Ok(busy == 0)
}

/// Run transaction control, which takes no parameters and gives no rows that matter.
async fn control(connection: &mut SqliteConnection, statements: &'static str) -> Result<()> {
    sqlx::raw_sql(statements).execute(connection).await.map_err(explain)?;
    Ok(())
}
