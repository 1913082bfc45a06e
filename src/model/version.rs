//! The order of events, which Svix does not guarantee. The version of an object decides which events are stale.

use chrono::{DateTime, Utc};

/// The version of an object: a triple that is compared from left to right.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Clerk's `data.updated_at`, in Unix milliseconds.
    pub version: i64,
    /// The envelope's `timestamp`, in Unix milliseconds; for data from the Backend API, the time of the request.
    pub event_at: i64,
    /// The `svix-id`, so that all replicas agree on the order of two events in the same millisecond.
    pub tie: String,
}

impl Version {
    /// Older than any event.
    pub const BLANK: Self = Self { version: i64::MIN, event_at: i64::MIN, tie: String::new() };

    /// The version of an adopted row. All data from Clerk is newer.
    pub const UNKNOWN: Self = Self { version: 0, event_at: 0, tie: String::new() };

    /// The version of an object that changed at `updated_at`, reported by an event at `event_at`.
    pub fn at(updated_at: DateTime<Utc>, event_at: DateTime<Utc>, tie: String) -> Self {
        Self { version: updated_at.timestamp_millis(), event_at: event_at.timestamp_millis(), tie }
    }
}

/// The version register's entry for one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The newest version that was applied.
    pub version: Version,
    /// A tombstone: every later event is stale, whatever its time.
    pub deleted: bool,
    /// When a user that Clerk deleted will be erased. Until then updates are applied, and the deletion can be cancelled.
    pub held_until: Option<DateTime<Utc>>,
    /// The start of the grace period. The row is marked with this time, unless the application had marked it.
    pub held_since: Option<DateTime<Utc>>,
    /// The [digest](super::Delivery::parts_digest) of the parts, if exactly those that the newest version showed are stored.
    pub parts_digest: Option<String>,
}

impl Register {
    /// The entry for an object at this version that is not deleted.
    pub fn at(version: Version) -> Self {
        Self { version, deleted: false, held_until: None, held_since: None, parts_digest: None }
    }

    /// Whether the entry exists only as a lock, for a child or a parked delivery, and contains no version.
    pub fn is_blank(&self) -> bool {
        !self.deleted && self.version == Version::BLANK
    }
}
