//! The store contract: the operations that every database backend must provide.
//!
//! The rules are in `sync`; a store only executes them. The first five traits in the table define most operations. For SQL
//! databases each of these is written once, in `sql`; other backends implement them directly. Every backend implements
//! [`Session`] and [`Database`] itself.
//!
//! | trait | subject | operations of |
//! |---|---|---|
//! | [`Ledger`] | synced objects, and the records that belong to a change of them | a transaction |
//! | [`Inbox`] | deliveries | a transaction |
//! | [`Outbox`] | messages, and the systems that receive them | the store |
//! | [`Notes`] | leases, runs, seals, activity, and the removal of old data | the store |
//! | [`Looks`] | what people and programs read | the store |
//! | [`Session`] | how a transaction removes rows and ends | a transaction |
//! | [`Database`] | migrations, health, sizes, and the application's tables | the store |
//!
//! Each backend has its own folder below `store`. One test suite (`tests/it/promises.rs`) is this contract in executable form.
//!
//! A dropped transaction is rolled back, even if its task was cancelled or timed out. Its connection is closed instead of being
//! returned to the pool.

mod database;
mod erasures;
mod error;
mod foreign;
mod inbox;
mod inspection;
mod ledger;
mod looks;
mod migration;
#[cfg(feature = "mongodb")]
pub mod mongodb;
pub mod mysql;
mod notes;
mod outbox;
mod polling;
pub mod postgres;
pub mod prefix;
mod relay;
pub mod schema;
pub mod sql;
pub mod sqlite;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

pub use database::{Database, Session};
pub use erasures::{AuditLine, Known, Minimized, OpenErasures, Tombstone};
pub use error::{ErrorKind, StoreError};
pub use inbox::{
    DeliveryFilter, Inbox, LOOKED_THROUGH, Old, Parked, Processed, QueueDepth, QueueFilter, QueueState,
    Queued, Waiting,
};
pub use inspection::{BehindSequence, Count, Inspection, Missing, Reference, Route, Size, Statistics};
pub use ledger::{Closing, Ledger, Opened};
pub use looks::Looks;
pub use migration::{Migration, MigrationStatus};
pub use notes::Notes;
pub use outbox::{
    Claimed, Deed, Elsewhere, Finished, Lease, MessageFilter, MessageState, Outbox, Outgoing, ReceiptStep,
    SinkDepth, StoredMessage,
};

use crate::model::{ClerkId, Field, LineHash, Object, Outcome, Register, Seal, SvixId};

/// The result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A database with the synced data. [`Outbox`], [`Notes`] and [`Looks`] cover messages to other systems, the service's own
/// state, and what people and programs read. [`Ledger`] and [`Inbox`] are the operations of its transactions.
#[async_trait]
pub trait Store: Outbox + Notes + Looks {
    /// Begin a transaction that writes.
    async fn begin(&self, patience: Patience) -> Result<Box<dyn Transaction>>;

    /// Begin a short transaction of a few statements. An error in opening it may only appear at its first statement.
    async fn begin_at_once(&self) -> Result<Box<dyn Transaction>>;
}

/// A transaction: operations on synced objects and on deliveries.
pub trait Transaction: Ledger + Inbox {}

impl<S: Ledger + Inbox> Transaction for S {}

/// Waits for notifications of new work.
#[async_trait]
pub trait Listener: Send {
    /// Wait until new work is announced. After an error the listener receives no further notifications.
    async fn heard(&mut self) -> Result<()>;
}

/// The index that `UNIQUE_EMAIL` creates and drops. No other code touches it, and `UNIQUE_EMAIL` touches no other index.
pub const UNIQUE_EMAIL_INDEX: &str = "users_unique_email";

/// An e-mail address and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// As the caller wrote it.
    pub given: String,
    /// As the database compares it.
    pub folded: String,
    /// A live user with this address.
    pub owner: Option<ClerkId>,
}

/// Whether [`Session::mark`] sets or clears `deleted_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Set,
    Unset,
}

/// A way to remove a user's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Delete,
    Anonymize,
}

/// What happened to a row that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowFate {
    Deleted,
    Anonymized,
    /// The row still exists and identifies its user, for this reason.
    Stands(StoreError),
}

/// How long a transaction waits for locks. The times are those of PostgreSQL; other databases differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patience {
    /// 1.5 s: another session is working and is expected to finish soon.
    Normal,
    /// 50 ms: for one of many small steps that together must stay within the sender's timeout.
    Short,
    /// As `Normal`, but a statement may take 20 s, because no client waits for an answer.
    Long,
}

/// Whether a store can work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Reachable, but migrations are pending.
    SchemaNotCurrent,
    /// Reachable, but it currently accepts no writes.
    ReadOnly,
    /// Row level security may hide rows of clerk-sync's tables: see [`Database::hidden`].
    RowsHidden,
}

/// An object's row, with the columns that only readers need.
#[derive(Clone)]
pub struct Row {
    /// The value of the `id` column.
    pub id: i64,
    pub object: Object,
    /// The application's preferences as JSON text, if the table has that column.
    pub preferences: Option<String>,
}

impl Row {
    /// The row, or `None` if the object is marked as deleted.
    pub fn standing(self) -> Option<Self> {
        self.object.deleted_at.is_none().then_some(self)
    }
}

/// A filter for rows.
#[derive(Clone, Default)]
pub struct RowFilter {
    /// Rows with this value in this column. An address matches in any case; other values are ids of parents.
    pub with: Option<(Field, String)>,
    /// Rows whose `id` is greater.
    pub after: Option<i64>,
}

/// The interval by which sign-ups are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    Day,
    /// From Monday.
    Week,
    Month,
}

impl Bucket {
    /// The public name. The databases use the same one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// The bucket with this public name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Day, Self::Week, Self::Month].into_iter().find(|bucket| bucket.name() == name)
    }
}

/// A processed delivery.
#[derive(Debug)]
pub struct Record<'a> {
    pub svix_id: &'a SvixId,
    pub event_type: Option<&'a str>,
    pub outcome: Outcome,
    pub clerk_id: Option<&'a ClerkId>,
    pub event_at: DateTime<Utc>,
    pub processed_at: DateTime<Utc>,
}

/// Upper bounds of [`Activity::within`], in milliseconds.
pub const WITHIN: [u32; 6] = [5, 25, 100, 500, 2_000, 10_000];

/// Number of webhooks answered in one interval, per event type, outcome and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// When the interval began.
    pub at: DateTime<Utc>,
    /// The event type, as in the metrics.
    pub event: String,
    /// The outcome, as in the metrics.
    pub outcome: String,
    /// Why the webhooks were rejected or failed; empty otherwise.
    pub reason: String,
    /// When the last of them was answered.
    pub latest: DateTime<Utc>,
    pub count: u64,
    /// How many of them were answered within each of [`WITHIN`].
    pub within: [u64; WITHIN.len()],
}

/// The newest seal, and the audit lines that the next seals can cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToSeal {
    pub newest: Option<Seal>,
    pub lines: Vec<LineHash>,
}

/// When pending work becomes due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// When the first delivery in the queue is due.
    pub delivery: Option<DateTime<Utc>>,
    /// When the first message is due.
    pub message: Option<DateTime<Utc>>,
    /// When the grace period of the first delayed erasure ends.
    pub erasure: Option<DateTime<Utc>>,
    /// Counted up to [`Seal::LINES`].
    pub unsealed: Unsealed,
}

/// Audit lines that no seal covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsealed {
    pub lines: u64,
    /// When the oldest was written.
    pub since: Option<DateTime<Utc>>,
}

/// A new value for one object's version register.
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    pub clerk_id: ClerkId,
    pub register: Register,
    /// Whether the register did not exist when it was read.
    pub new: bool,
}

/// The disk space of a database, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Used by the whole database, including the application's tables.
    pub taken: u64,
    /// Still available on its volume; `None` if only the server can know.
    pub free: Option<u64>,
}

/// The Clerk instance that the users belong to, and the last refusal of another instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// For example `ins_2fZ…`.
    pub instance: String,
    /// The previous instance after a change, until it is decided what happens to its users.
    pub previous: Option<String>,
    /// The instance whose event was refused last, and when.
    pub refused: Option<(String, DateTime<Utc>)>,
    /// Whether a Backend API key confirmed the instance; false if only the first event named it.
    pub confirmed: bool,
}

/// What the tables show about the time before this process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// The tables never held a user or a webhook.
    Empty,
    /// The last webhook and the last finished run over all users are older than the requested time.
    Silent,
    /// There was a webhook or a finished run since then.
    Recent,
}

/// The purpose of a run.
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

/// A backfill or reconcile run over Clerk's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub id: String,
    pub kind: RunKind,
    /// The process that works on it.
    pub owner: String,
    /// A digest of the requested parameters.
    pub parameters: String,
    /// Whether the run covers all users rather than some.
    pub everybody: bool,
    /// JSON.
    pub progress: String,
    pub started_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// A table of the application.
#[derive(Clone, Debug)]
pub struct ForeignTable {
    pub columns: Vec<ForeignColumn>,
    pub rows: u64,
    /// The time zone of times that are stored without one; `None` if only the operator can know.
    pub zone: Option<String>,
    /// Whether a row level security policy hides rows from clerk-sync.
    pub hides_rows: bool,
}

/// A column of an application's table.
#[derive(Clone, Debug, Default)]
pub struct ForeignColumn {
    pub name: String,
    /// Whether it can hold text. Other types may hold large values, so those are only counted.
    pub is_text: bool,
    /// Whether it holds times without a zone.
    pub lacks_zone: bool,
    /// Number of rows with a value. An empty text does not count.
    pub filled: u64,
    /// Number of rows whose text begins like a Clerk user id.
    pub like_ids: u64,
    /// Number of those rows whose text also has the length and the characters of an id.
    pub ids: u64,
}

/// What to read from an application's table.
#[derive(Clone, Debug)]
pub struct ForeignReading {
    /// The table name, as the operator wrote it.
    pub table: String,
    /// The column that holds the ids.
    pub id: String,
    /// The other columns.
    pub columns: Vec<String>,
    /// A condition in SQL.
    pub condition: Option<String>,
}

/// A row of an application's table.
#[derive(Clone, Debug)]
pub struct ForeignRow {
    /// The id as stored; it may be unusable.
    pub id: String,
    /// The values, by column name.
    pub values: serde_json::Map<String, serde_json::Value>,
    /// Whether the row meets the condition.
    pub meets_condition: bool,
}

/// A random, unique text.
pub(crate) fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}
