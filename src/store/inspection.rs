//! What a database reports about itself, for people who look for the cause of a problem or want to know sizes.

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{MigrationStatus, Result};

/// The state of a database and its problems, determined without writing anything.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// For example `PostgreSQL 15.8`.
    pub version: String,
    /// The minimum supported version, if this one is older.
    pub needs: Option<&'static str>,
    /// The time of its clock; `None` if it has no clock of its own.
    pub now: Option<DateTime<Utc>>,
    /// Whether it is a read-only replica.
    pub standby: bool,
    /// Whether it is configured as read-only.
    pub read_only: bool,
    /// Privileges that clerk-sync needs but does not have.
    pub missing: Vec<Missing>,
    /// [`ErrorKind::Schema`](super::ErrorKind::Schema) if another version of clerk-sync migrated it; `None` if clerk-sync may
    /// not read it.
    pub migrations: Option<Result<Vec<MigrationStatus>>>,
    /// Whether clerk-sync created the tables with its names. Checked only if no privilege is missing.
    pub tables: Result<()>,
    /// Tables whose rows row level security may hide from clerk-sync; `None` if the database has no such feature.
    pub hidden: Option<Vec<Missing>>,
    /// Rules that rewrite statements on clerk-sync's tables, for example `audit_copy ON clerk.users`, and the statement that
    /// drops each.
    pub rules: Vec<Missing>,
    /// Foreign keys that refer to tables of synced objects.
    pub references: Vec<Reference>,
    /// How sessions reach the server; `None` if there are no sessions.
    pub route: Option<Route>,
    /// Identity sequences that are behind the rows of their tables, or that clerk-sync may not read.
    pub sequences: Vec<BehindSequence>,
    /// Server settings under which committed data can be lost, and the remedy for each.
    pub settings: Vec<Missing>,
    /// One sentence on how the audit trail can be changed despite its triggers, if clerk-sync's account may do so.
    pub bypass: Option<&'static str>,
    /// The sizes, unless another session holds a lock on a table.
    pub size: Result<Size>,
}

impl Inspection {
    /// A database of this version, in which nothing is found.
    pub fn of(version: String, size: Result<Size>) -> Self {
        Self {
            version,
            needs: None,
            now: None,
            standby: false,
            read_only: false,
            missing: Vec::new(),
            migrations: None,
            tables: Ok(()),
            hidden: None,
            rules: Vec::new(),
            references: Vec::new(),
            route: None,
            sequences: Vec::new(),
            settings: Vec::new(),
            bypass: None,
            size,
        }
    }
}

/// A missing privilege or another problem.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Missing {
    /// For example `INSERT on clerk.users`.
    pub what: String,
    /// The fix, usually a statement.
    pub remedy: String,
}

/// A foreign key of the application.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reference {
    /// For example `public.orders (user_id)`.
    pub place: String,
    /// The clerk-sync table that it refers to, for example `users`.
    pub to: String,
    /// The statement that creates the missing index.
    pub remedy: Option<String>,
}

/// How a session reaches the database server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The server sees the same addresses of the connection as clerk-sync does.
    Straight,
    /// The server sees another address, but no other client shares the session.
    Translated,
    /// A pooler sits between clerk-sync and the server, and may share the session with other clients.
    Shared,
}

/// An identity sequence that hands out numbers that are in use, for example after a restore, or that clerk-sync may not read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BehindSequence {
    pub table: String,
    /// With its schema, quoted where SQL requires it.
    pub sequence: String,
    /// The highest number in use.
    pub highest: i64,
    /// The next number that it hands out; `None` if clerk-sync may not read it.
    pub next: Option<i64>,
    /// Whether clerk-sync may advance it.
    pub ours_to_set: bool,
}

impl BehindSequence {
    /// A description of the problem.
    pub fn found(&self) -> String {
        let Self { table, sequence, highest, .. } = self;
        format!("the identity sequence {sequence} is behind the rows of {table}, which go up to {highest}")
    }

    /// The statement that fixes it.
    pub fn remedy(&self) -> String {
        format!("SELECT setval('{}', {});", self.sequence.replace('\'', "''"), self.highest)
    }
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Size {
    pub database: u64,
    /// clerk-sync's tables and their indexes; `None` if their size cannot be determined.
    pub ours: Option<u64>,
}

/// Row counts and sizes.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Every table of clerk-sync.
    pub tables: Vec<(&'static str, Count)>,
    /// Rows of live users.
    pub standing: Count,
    /// Number of erased people.
    pub erased: u64,
    /// Deliveries processed since the given time, by outcome, the most frequent first; `None` if counting them takes too long.
    pub outcomes: Option<Vec<(String, u64)>>,
    /// When the last delivery was processed.
    pub last_event: Option<DateTime<Utc>>,
    /// Size of the whole database.
    pub bytes: u64,
}

/// A number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub rows: u64,
    /// Whether it is the database's estimate rather than a count.
    pub estimated: bool,
}

impl Count {
    /// An exact count.
    pub(super) fn exact(rows: u64) -> Self {
        Self { rows, estimated: false }
    }
}
