//! The store contract: what every database must be able to do for us, in verbs.
//!
//! The rules stay in `sync`; a store only carries out. The verbs stand in five traits. For databases that speak SQL each is written
//! once, in `sql`; another one implements them itself.
//!
//! | trait | what it is about | whose verbs |
//! |---|---|---|
//! | [`Ledger`] | synced objects, and what belongs to a change of them | a transaction's |
//! | [`Inbox`] | deliveries | a transaction's |
//! | [`Outbox`] | messages, and the systems that they are for | the store's |
//! | [`Notes`] | leases, runs, seals, activity, and what is no longer kept | the store's |
//! | [`Looks`] | what people and programs read | the store's |
//! | [`Session`] | how a transaction takes out rows and ends | a transaction's |
//! | [`Database`] | migrations, health, sizes, and tables that are not ours | the store's |
//!
//! The keepers stand here, each in a folder of its own, and one suite of promises (`tests/it/promises.rs`) is this contract in
//! executable form.
//!
//! A transaction that is dropped is rolled back, also when the task that held it was cancelled or ran out of time:
//! its connection is closed rather than handed to anybody else.

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

/// What a store call gives.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A database that keeps what we sync, in three parts: what other systems are told, what the service remembers, and what people
/// and programs read. [`Ledger`] and [`Inbox`] are the verbs of its transactions.
#[async_trait]
pub trait Store: Outbox + Notes + Looks {
    /// Begin a transaction that writes.
    async fn begin(&self, patience: Patience) -> Result<Box<dyn Transaction>>;

    /// Begin one of a few statements. Its first statement may fail with what its opening would have failed with.
    async fn begin_at_once(&self) -> Result<Box<dyn Transaction>>;
}

/// A transaction: what it does with synced objects, and with deliveries.
pub trait Transaction: Ledger + Inbox {}

impl<S: Ledger + Inbox> Transaction for S {}

/// Hears when somebody leaves something to be worked on.
#[async_trait]
pub trait Listener: Send {
    /// Wait until something was left. After an error nothing is heard any more.
    async fn heard(&mut self) -> Result<()>;
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

/// What is done with marks of deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Set,
    Unset,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Row level security may hide rows of our tables: see [`Database::hidden`].
    RowsHidden,
}

/// A row with what only others see of it.
#[derive(Clone)]
pub struct Row {
    /// The database's own number of the row.
    pub id: i64,
    pub object: Object,
    /// The application's own, as JSON text, where the table has such a column.
    pub preferences: Option<String>,
}

impl Row {
    /// The row, unless its user is deleted: then the person is gone.
    pub fn standing(self) -> Option<Self> {
        self.object.deleted_at.is_none().then_some(self)
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
    /// Whether it can hold text. Values of other types may be large, and are only counted.
    pub is_text: bool,
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
