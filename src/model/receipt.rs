//! Proof that an erasure reached a place, or the reminder that it did not yet.

use chrono::{DateTime, Utc};

use super::ClerkId;

/// A row of `erasure_receipts`: one person, one place that had something of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub clerk_id: ClerkId,
    /// [`DATABASE`](Self::DATABASE), or the name of a sink.
    pub destination: String,
    /// When the person asked for it, as far as we know; the time that the law gives runs from here.
    pub requested_at: DateTime<Utc>,
    /// `None` as long as it is not done.
    pub completed_at: Option<DateTime<Utc>>,
    pub attempts: u32,
    /// Why it is not done, without anybody's data.
    pub last_error: Option<String>,
}

impl Receipt {
    /// The destination that is this database itself.
    pub const DATABASE: &str = "database";
}
