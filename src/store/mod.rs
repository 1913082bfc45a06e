//! The store contract: what every database must be able to do for us, in verbs.
//!
//! The rules stay in `sync`; a keeper only carries out. Two keepers stand here, [`postgres`] and [`sqlite`], and
//! one suite of promises (`tests/it/promises.rs`) is this contract in executable form.
//!
//! A transaction that is dropped is rolled back, also when the task that held it was cancelled or ran out of time:
//! its connection is closed rather than handed to anybody else.

mod erasures;
mod error;
mod foreign;
mod inbox;
mod inspection;
mod migration;
mod notes;
mod outbox;
pub mod postgres;
pub mod schema;
pub mod sql;
pub mod sqlite;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, NaiveDate, Utc};
use tokio::sync::Notify;

pub use erasures::{AuditLine, Erasures, Known, Minimized, OpenErasures, Tombstone};
pub use error::{StoreError, Trouble};
pub use inbox::{
    DeliveryFilter, Inbox, LOOKED_THROUGH, Old, Parked, Processed, QueueDepth, QueueFilter, QueueState,
    Queued, Waiting,
};
pub use inspection::{BehindSequence, Count, Inspection, Missing, Reference, Route, Size, Statistics};
pub use migration::{Migration, MigrationStatus};
pub use notes::Notes;
pub use outbox::{
    Claimed, Deed, Elsewhere, Ending, Lease, MessageFilter, MessageState, Outbox, Outgoing, SinkDepth,
    StoredMessage,
};

use crate::model::{
    AuditEntry, ClerkId, Entity, Field, LineHash, Outcome, Receipt, Register, Seal, Selection, SvixId, User,
};

/// What a store call gives.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A database that keeps users.
#[async_trait]
pub trait Store: Notes + Inbox + Outbox + Erasures + Send + Sync + 'static {
    /// How many transactions it can usefully run side by side.
    fn writers(&self) -> usize;

    /// Begin a transaction.
    async fn begin(&self, patience: Patience) -> Result<Box<dyn Transaction>>;

    /// Apply pending migrations in one transaction, safe when several processes do it at once, and check that the
    /// tables are what we need. Returns what was applied.
    async fn migrate(&self) -> Result<Vec<Migration>>;

    /// Every migration we know, and whether it is applied.
    async fn migration_status(&self) -> Result<Vec<MigrationStatus>>;

    /// Reachable, writable, and every migration applied?
    async fn ready(&self) -> Result<Readiness> {
        let current = self.migration_status().await?.iter().all(|status| status.applied);
        Ok(if current { Readiness::Ready } else { Readiness::SchemaNotCurrent })
    }

    /// Which of our tables may have rows that we cannot see, and what mends it.
    async fn hidden(&self) -> Result<Vec<Missing>> {
        Ok(Vec::new())
    }

    /// One object's row, deleted or not.
    async fn row(&self, id: &ClerkId) -> Result<Option<Row>>;

    /// Up to `limit` rows of a kind in the order of their `id`, without those of deleted objects. Rows that are there when a
    /// walk through the pages begins come exactly once.
    async fn rows(&self, entity: &'static Entity, filter: &RowFilter, limit: u32) -> Result<Vec<Row>>;

    /// The rows of these objects of a kind, without those that are deleted.
    async fn these(&self, entity: &'static Entity, ids: &[ClerkId]) -> Result<Vec<Row>>;

    /// How many users signed up in each bucket, by its first day in UTC, of those who signed up at `from` or later and
    /// before `to`. Empty buckets are left out, rows of anonymised users count.
    async fn signups(
        &self,
        bucket: Bucket,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Vec<(NaiveDate, u64)>>;

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
    async fn compact(&self, at_most: u64, erased_since: Option<DateTime<Utc>>) -> Result<bool>;

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

/// Hears when somebody leaves something to be worked on.
#[async_trait]
pub trait Listener: Send {
    /// Wait until something was left. After an error nothing is heard any more.
    async fn heard(&mut self) -> Result<()>;
}

/// One transaction. Ids are given sorted and each at most once; empty slices cost nothing.
#[async_trait]
pub trait Transaction: Send {
    /// Take deliveries that wait and whose time has come, the longest due first, at most `limit` of them, and none after
    /// their bodies together have `bytes`. Until this transaction ends nobody else gets them, and nobody waits for them;
    /// should its process die they are free at once.
    async fn claim(&mut self, now: DateTime<Utc>, limit: u32, bytes: u64) -> Result<Vec<Parked>>;

    /// The same with these, as far as they wait, are due, and are not taken by somebody else.
    async fn claim_these(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<Vec<Parked>>;

    /// Keep deliveries that are to be processed, and return those that were recorded as processed before, of which
    /// nothing is kept. What is kept already stays as it is, but if it was dead it is pending again.
    async fn enqueue(&mut self, queued: &[Parked]) -> Result<HashSet<SvixId>>;

    /// Make deliveries due at `now` that are dead, with a fresh count of attempts, or that are to be tried only later;
    /// returns how many. Those that somebody works on are left to them.
    async fn revive(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64>;

    /// Try deliveries that wait not before this time, though they have not failed. Those that somebody works on are left to
    /// them.
    async fn postpone(&mut self, ids: &[SvixId], until: DateTime<Utc>) -> Result<()>;

    /// Record deliveries as processed; returns those that were not recorded before. None of them is parked any more,
    /// also if it was recorded before: two replicas may have done both at once. One that somebody else works on at this
    /// moment is theirs to remove, so that nobody waits for it.
    async fn record(&mut self, records: &[Record<'_>]) -> Result<HashSet<SvixId>>;

    /// Correct the outcome of recorded deliveries.
    async fn settle(&mut self, outcomes: &[(SvixId, Outcome)]) -> Result<()>;

    /// Lock and read the version register of these objects, as far as there is one.
    async fn registers(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>>;

    /// Lock and read the registers of these objects, making a blank one where there is none.
    async fn hold(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>>;

    /// Write registers that are newer than what is stored. [`Trouble::Raced`] if an entity appeared since
    /// [`registers`](Self::registers) read; whether a blank one of [`hold`](Self::hold) counts is the keeper's choice.
    async fn advance(&mut self, registers: &[Advance]) -> Result<()>;

    /// Which live users have these addresses, as the database compares them without regard to case. Each address comes at
    /// least once.
    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>>;

    /// Take their addresses from these users, so that others can be given them in the next statements.
    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()>;

    /// Load the rows of these objects, with the columns that are selected and those that [tell](Entity::telling) whether one
    /// was anonymised.
    async fn load(&mut self, ids: &[ClerkId], selection: &Selection) -> Result<HashMap<ClerkId, User>>;

    /// Up to `limit` objects of all kinds that go with these parents and have no tombstone, sorted. One that goes with several
    /// of them may come once for each.
    async fn children(&mut self, parents: &[ClerkId], limit: u32) -> Result<Vec<ClerkId>>;

    /// Mark the rows of all objects that go with these parents as deleted. It does not matter if the application lets us.
    async fn mark_children(&mut self, parents: &[ClerkId], at: DateTime<Utc>) -> Result<()>;

    /// The live objects of a kind that have one of these values in the columns of which no two may have the same
    /// ([`Entity::unique`]).
    async fn rivals(&mut self, entity: &'static Entity, keys: &[Vec<String>]) -> Result<Vec<ClerkId>>;

    /// Insert rows with the selected columns. [`Trouble::Raced`] if one is there already.
    async fn insert(&mut self, objects: &[User], selection: &Selection) -> Result<()>;

    /// Update the selected columns of rows, and nothing else. [`Trouble::Raced`] if one is gone.
    async fn update(&mut self, objects: &[User], selection: &Selection) -> Result<()>;

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

    /// Mark rows as deleted at these times, but those that are marked already, by the application. It does not matter if the
    /// application lets us.
    async fn mark(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()>;

    /// Take just these marks from rows: any other is the application's. It does not matter if the application lets us.
    async fn unmark(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()>;

    /// Write receipts, each user and destination once. `attempts` are those that are new. Of one that stands already the
    /// older request counts, and once completed it stays so.
    async fn receipts(&mut self, receipts: &[Receipt]) -> Result<()>;

    /// Complete the receipts of these users and this destination, as far as there are any that are open.
    async fn close_receipts(&mut self, ids: &[ClerkId], destination: &str, at: DateTime<Utc>) -> Result<()>;

    /// Parked deliveries of no known object, and dead ones of objects that are no users, whose bytes contain one of these ids,
    /// perhaps as part of a longer one; and all whose bytes have escapes or NULs, so that an id may be hidden in them.
    async fn unattributed(&mut self, ids: &[ClerkId]) -> Result<Vec<(SvixId, Bytes)>>;

    /// Remove everything else that is kept of these users: parked deliveries, with these that name them, and audit actors.
    /// A delivery that somebody else works on at this moment is left to them: they will find the user deleted.
    async fn forget(&mut self, ids: &[ClerkId], deliveries: &[SvixId]) -> Result<()>;

    /// What is known of these deliveries if they are parked.
    async fn waiting(&mut self, ids: &[SvixId]) -> Result<HashMap<SvixId, Waiting>>;

    /// Keep deliveries for later, in place of a record that they were processed.
    async fn park(&mut self, parked: &[Parked]) -> Result<()>;

    /// Keep messages for other systems, in this order, and remember which sinks are told of which users. The registers
    /// of these users are locked.
    async fn tell(&mut self, messages: &[Outgoing]) -> Result<()>;

    /// Remove every message of these users but deletions. Of those on their way only what they say is removed: they
    /// still go before whatever is enqueued from now on. Returns which sinks were ever told of whom, and wait for no
    /// deletion yet. The registers of these users are locked.
    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>>;

    /// Append to the audit trail.
    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()>;

    /// Make it last. An error may also mean that the answer was lost.
    async fn commit(self: Box<Self>) -> Result<()>;

    /// Undo it all and give the connection back.
    async fn rollback(self: Box<Self>);
}

/// The index that `UNIQUE_EMAIL` makes and removes. Nothing else touches it, and it touches no other.
pub const UNIQUE_EMAIL_INDEX: &str = "users_unique_email";

/// An address, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// As it was asked for.
    pub given: String,
    /// As the database compares it.
    pub folded: String,
    /// A user who is not deleted.
    pub owner: Option<ClerkId>,
}

/// A way to take out a user's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Delete,
    Anonymize,
}

/// What became of a row that was to be taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowFate {
    Deleted,
    Anonymized,
    /// It is there and tells who it was, for this reason.
    Stands(StoreError),
}

/// How long a transaction waits for locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// 1.5 s: somebody is working, and will soon be done.
    Normal,
    /// 50 ms: one of many small steps, which together must not outlast the sender's patience.
    Short,
    /// As `Normal`, but a statement may take 20 s: nobody waits for an answer.
    Long,
}

/// Whether a store can work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Reachable, but migrations are pending.
    SchemaNotCurrent,
    /// Reachable, but nothing can be written for now.
    ReadOnly,
    /// Row level security may hide rows of our tables: see [`Store::hidden`].
    RowsHidden,
}

/// A row with what only others see of it.
#[derive(Clone)]
pub struct Row {
    /// The database's own number of the row.
    pub id: i64,
    pub user: User,
    /// The application's own, as JSON text, where the table has such a column.
    pub preferences: Option<String>,
}

impl Row {
    /// The row, unless its user is deleted: then the person is gone.
    pub fn standing(self) -> Option<Self> {
        self.user.deleted_at.is_none().then_some(self)
    }
}

/// Which rows are looked for.
#[derive(Clone, Default)]
pub struct RowFilter {
    /// Those with this value in this column: an address, in any case, or the id of a parent.
    pub with: Option<(Field, String)>,
    /// Those whose `id` is greater.
    pub after: Option<i64>,
}

/// How sign-ups are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    Day,
    /// From Monday.
    Week,
    Month,
}

impl Bucket {
    /// The public name, which databases know as well.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// The bucket of this public name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Day, Self::Week, Self::Month].into_iter().find(|bucket| bucket.name() == name)
    }
}

/// A delivery that was processed.
#[derive(Debug)]
pub struct Record<'a> {
    pub svix_id: &'a SvixId,
    pub event_type: Option<&'a str>,
    pub outcome: Outcome,
    pub clerk_id: Option<&'a ClerkId>,
    pub event_at: DateTime<Utc>,
    pub processed_at: DateTime<Utc>,
}

/// Bounds of [`Activity::within`], in milliseconds.
pub const WITHIN: [u32; 6] = [5, 25, 100, 500, 2_000, 10_000];

/// How many webhooks of one kind were answered in one stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// When the stretch began.
    pub at: DateTime<Utc>,
    /// The type of event, as in the metrics.
    pub event: String,
    /// As in the metrics.
    pub outcome: String,
    /// Why it was rejected or failed; else empty.
    pub reason: String,
    /// When the last of them was answered.
    pub latest: DateTime<Utc>,
    pub count: u64,
    /// How many of them were answered within each of [`WITHIN`].
    pub within: [u64; WITHIN.len()],
}

/// What a seal may be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToSeal {
    pub newest: Option<Seal>,
    pub lines: Vec<LineHash>,
}

/// What waits for its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// When the first delivery of the queue is due.
    pub delivery: Option<DateTime<Utc>>,
    /// When the first message is.
    pub message: Option<DateTime<Utc>>,
    /// Until when the first erasure is held back.
    pub erasure: Option<DateTime<Utc>>,
    /// Counted up to [`Seal::LINES`].
    pub unsealed: Unsealed,
}

/// Lines of the audit trail that no seal covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsealed {
    pub lines: u64,
    /// When the oldest was written.
    pub since: Option<DateTime<Utc>>,
}

/// A step of one user's register.
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    pub clerk_id: ClerkId,
    pub register: Register,
    /// Whether the register had no entry when it was read.
    pub new: bool,
}

/// The room that a database takes up, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it, whoever's tables they are.
    pub taken: u64,
    /// What is left for us where it is; `None` if only its server can know.
    pub free: Option<u64>,
}

/// Which instance of Clerk the users are of, and what came of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Such as `ins_2fZ…`.
    pub instance: String,
    /// The one before a change, until it is settled what becomes of its users.
    pub previous: Option<String>,
    /// Whose events were refused last, and when.
    pub refused: Option<(String, DateTime<Utc>)>,
    /// Whether a key of the Backend API said so, and not only the first event.
    pub confirmed: bool,
}

/// What the tables say of the time before a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// There never was a user or a webhook.
    Empty,
    /// The last webhook and the last finished run through all users are older than was asked.
    Silent,
    /// There was one since.
    Recent,
}

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    Backfill,
    Reconcile,
}

impl RunKind {
    /// `sync_runs.kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
        }
    }
}

/// A run through all users at Clerk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub id: String,
    pub kind: RunKind,
    /// Who works on it.
    pub owner: String,
    /// A digest of what was asked for.
    pub parameters: String,
    /// Whether it goes through all users, not only some.
    pub everybody: bool,
    /// JSON.
    pub progress: String,
    pub started_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// A table that is not ours.
#[derive(Clone, Debug)]
pub struct ForeignTable {
    pub columns: Vec<ForeignColumn>,
    pub rows: u64,
    /// In which zone the times are that have none; `None` if only the user can know.
    pub zone: Option<String>,
    /// Whether a policy hides rows from us.
    pub hides_rows: bool,
}

/// A column of a table that is not ours.
#[derive(Clone, Debug, Default)]
pub struct ForeignColumn {
    pub name: String,
    /// Whether its type is one of times without a zone.
    pub lacks_zone: bool,
    /// In how many rows there is something; an empty text is nothing.
    pub filled: u64,
    /// In how many rows there is a text that begins as ids of Clerk's users do.
    pub like_ids: u64,
    /// In how many of them it is as long as an id, and has no other characters.
    pub ids: u64,
}

/// What is read of a table that is not ours.
#[derive(Clone, Debug)]
pub struct ForeignReading {
    /// The table, as the user wrote it.
    pub table: String,
    /// The column of the ids.
    pub id: String,
    /// The other columns.
    pub columns: Vec<String>,
    /// A condition in SQL.
    pub condition: Option<String>,
}

/// A row of a table that is not ours.
#[derive(Clone, Debug)]
pub struct ForeignRow {
    /// As the table has it: it may be no usable id.
    pub id: String,
    /// The columns, by name.
    pub values: serde_json::Map<String, serde_json::Value>,
    /// Whether the condition holds.
    pub meets_condition: bool,
}
