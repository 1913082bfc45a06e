//! The order of events, which Svix does not keep: a version per entity decides what is news.

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

/// What the register knows of one entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The newest version that was applied.
    pub version: Version,
    /// Deletion is terminal: nothing is news any more, whatever its time.
    pub deleted: bool,
}
