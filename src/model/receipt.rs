//! Receipts: proof that an erasure reached a destination, or a reminder that it has not yet.

use chrono::{DateTime, Utc};

use super::ClerkId;

/// A row of `erasure_receipts`: one person and one destination that held their data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub clerk_id: ClerkId,
    /// [`DATABASE`](Self::DATABASE), or the name of a sink.
    pub destination: String,
    /// The earliest known time of the request for erasure. The legal deadline counts from this time.
    pub requested_at: DateTime<Utc>,
    /// `None` while it is open.
    pub completed_at: Option<DateTime<Utc>>,
    pub attempts: u32,
    /// Why it is not completed, without personal data.
    pub last_error: Option<String>,
}

impl Receipt {
    /// The destination name of this database.
    pub const DATABASE: &str = "database";
}
