//! What the store keeps about people, and the proof that it erased them: registers, the audit trail, and erasure receipts.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::model::{ClerkId, Object, Register};

/// The stored state of some objects.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub registers: HashMap<ClerkId, Register>,
    pub objects: HashMap<ClerkId, Object>,
}

impl Known {
    /// Whether there is a row, or a register that is not blank.
    pub fn has(&self, id: &ClerkId) -> bool {
        self.objects.contains_key(id) || self.registers.get(id).is_some_and(|register| !register.is_blank())
    }
}

/// A line of the audit trail, as stored in `audit_log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLine {
    /// Increases in the order of writing.
    pub id: i64,
    pub at: DateTime<Utc>,
    pub action: String,
    /// The kind of the object that it is about.
    pub kind: String,
    /// The delivery that caused it, if one did.
    pub svix_id: Option<String>,
    pub source: String,
    /// Field names.
    pub changed_fields: Vec<String>,
    /// When the change happened at Clerk.
    pub event_at: DateTime<Utc>,
}

/// Open receipts of one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenErasures {
    pub destination: String,
    pub receipts: u64,
    /// When the oldest one was requested.
    pub oldest: DateTime<Utc>,
}

/// A user who is erased, or whose erasure is delayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub clerk_id: ClerkId,
    /// When Clerk deleted the user; `None` while the erasure is delayed.
    pub erased_at: Option<DateTime<Utc>>,
    /// When the grace period ends.
    pub held_until: Option<DateTime<Utc>>,
}

/// The result of removing the values that the allow-list does not keep from a page of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minimized {
    /// The `id` of the last row of the page.
    pub last: i64,
    /// Number of rows that lost a value.
    pub rows: u64,
    /// Number of removed values per column that is not kept, in the order of these columns.
    pub columns: Vec<u64>,
}

impl Minimized {
    /// The same page, with no change counted.
    #[must_use]
    pub fn skipped(self) -> Self {
        Self { rows: 0, columns: Vec::new(), ..self }
    }
}
