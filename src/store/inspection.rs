//! What a database tells of itself to people: to those who look for the cause of a trouble, and to those who want to know
//! how much there is.

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{MigrationStatus, Result};

/// What is right and wrong with a database, read without writing anything.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Such as `PostgreSQL 15.8`.
    pub version: String,
    /// The oldest version that will do, if this one is older.
    pub needs: Option<&'static str>,
    /// What its clock says; `None` if it has none of its own.
    pub now: Option<DateTime<Utc>>,
    /// Whether it is a copy that takes no writes.
    pub standby: bool,
    /// Whether it is set to be read only.
    pub read_only: bool,
    /// What we may not do, and would have to.
    pub missing: Vec<Missing>,
    /// [`ErrorKind::Schema`](super::ErrorKind::Schema) if another version of this program has been here; `None` if we may not look.
    pub migrations: Option<Result<Vec<MigrationStatus>>>,
    /// Whether tables with our names are ours. Only looked at if nothing is missing.
    pub tables: Result<()>,
    /// Tables of which row level security may hide rows from us; `None` if the database knows nothing like it.
    pub hidden: Option<Vec<Missing>>,
    /// Rules that rewrite what we do with our tables, such as `audit_copy ON clerk.users`, and the statement that removes each.
    pub rules: Vec<Missing>,
    /// Foreign keys that refer to tables of synced objects.
    pub references: Vec<Reference>,
    /// How its sessions are reached; `None` if it has none.
    pub route: Option<Route>,
    /// Identity sequences that are behind the rows of their tables, or that we may not read.
    pub sequences: Vec<BehindSequence>,
    /// Settings of the server by which it can lose what it has committed, and what mends each.
    pub settings: Vec<Missing>,
    /// In a sentence, what changes the audit trail past its triggers, where an account such as ours may do it.
    pub bypass: Option<&'static str>,
    /// How much there is, unless somebody holds a lock on it.
    pub size: Result<Size>,
}

/// What we may not do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Missing {
    /// Such as `INSERT on clerk.users`.
    pub what: String,
    /// What mends it, mostly a statement.
    pub remedy: String,
}

/// A foreign key of the application's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reference {
    /// Such as `public.orders (user_id)`.
    pub place: String,
    /// The table of ours that it refers to: `users`.
    pub to: String,
    /// The statement that makes the index that it lacks.
    pub remedy: Option<String>,
}

/// How a session of a database's server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The server sees our own ends of the connection.
    Straight,
    /// It sees another address, and the session is ours alone all the same.
    Translated,
    /// Somebody stands between who may hand it to others as well: a pooler.
    Shared,
}

/// An identity sequence that hands out numbers which are in use, as a restore may leave it, or that we may not read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BehindSequence {
    pub table: String,
    /// With its schema, quoted where SQL wants it.
    pub sequence: String,
    /// The highest number that is in use.
    pub highest: i64,
    /// The number that it hands out next; `None` if we may not read it.
    pub next: Option<i64>,
    /// Whether we may set it forward.
    pub ours_to_set: bool,
}

impl BehindSequence {
    /// What is wrong, in words.
    pub fn found(&self) -> String {
        let Self { table, sequence, highest, .. } = self;
        format!("the identity sequence {sequence} is behind the rows of {table}, which go up to {highest}")
    }

    /// The statement that mends it.
    pub fn remedy(&self) -> String {
        format!("SELECT setval('{}', {});", self.sequence.replace('\'', "''"), self.highest)
    }
}

/// How much there is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Size {
    pub database: u64,
    /// Our tables and their indexes; `None` if that cannot be told apart.
    pub ours: Option<u64>,
}

/// How much there is of everything.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Every table of ours.
    pub tables: Vec<(&'static str, Count)>,
    /// Rows of users who are not deleted.
    pub standing: Count,
    /// People who were erased here.
    pub erased: u64,
    /// Deliveries that were processed since the given time, by outcome, the most frequent first; `None` if counting them
    /// takes too long.
    pub outcomes: Option<Vec<(String, u64)>>,
    /// When a delivery was last processed.
    pub last_event: Option<DateTime<Utc>>,
    /// Of the whole database.
    pub bytes: u64,
}

/// A number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub rows: u64,
    /// By what the database remembers of the table, rather than one by one.
    pub estimated: bool,
}

impl Count {
    /// Counted one by one.
    pub(super) fn exact(rows: u64) -> Self {
        Self { rows, estimated: false }
    }
}
