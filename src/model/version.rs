//! The order of events, which Svix does not keep: a version per entity decides what is news.

use chrono::{DateTime, Utc};

/// When an event happened, as a triple that is compared from left to right.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// `data.updated_at`, Clerk: unix milliseconds.
    pub version: i64,
    /// The envelope's `timestamp`, in unix milliseconds; for a read from the Backend API the time of the request.
    pub event_at: i64,
    /// The `svix-id`, so that two events of one millisecond have an order that every replica agrees on.
    pub tie: String,
}

impl Version {
    /// Older than any event.
    pub const BLANK: Self = Self { version: i64::MIN, event_at: i64::MIN, tie: String::new() };

    /// Of a row that came from somewhere else than Clerk. Whatever Clerk says is newer.
    pub const UNKNOWN: Self = Self { version: 0, event_at: 0, tie: String::new() };

    /// Of an object that changed then, told by an event of that time.
    pub fn at(updated_at: DateTime<Utc>, event_at: DateTime<Utc>, tie: String) -> Self {
        Self { version: updated_at.timestamp_millis(), event_at: event_at.timestamp_millis(), tie }
    }
}

/// What the register knows of one entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The newest version that was applied.
    pub version: Version,
    /// Deletion is terminal: nothing is news any more, whatever its time.
    pub deleted: bool,
    /// When the user is to be erased, whom Clerk has deleted. Until then updates are news, and it can be taken back.
    pub held_until: Option<DateTime<Utc>>,
    /// Since when that is held back: the time with which the row is marked, unless the application had marked it.
    pub held_since: Option<DateTime<Utc>>,
}

impl Register {
    /// Whether it was only locked, for a child or for a delivery that was parked: then it says nothing.
    pub fn is_blank(&self) -> bool {
        !self.deleted && self.version == Version::BLANK
    }
}
