//! What the store keeps of people, and the proof that it erased them: registers, the audit trail, receipts of erasures.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::model::{ClerkId, Object, Register};

/// What is stored of some users.
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

/// A line of the audit trail, as it stands in `audit_log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLine {
    /// In the order in which they were written.
    pub id: i64,
    pub at: DateTime<Utc>,
    pub action: String,
    /// Of what kind of object it is about.
    pub kind: String,
    /// The delivery that caused it, if one did.
    pub svix_id: Option<String>,
    pub source: String,
    /// Names of fields.
    pub changed_fields: Vec<String>,
    /// When it happened at Clerk.
    pub event_at: DateTime<Utc>,
}

/// Receipts of one destination that are not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenErasures {
    pub destination: String,
    pub receipts: u64,
    /// When the oldest was asked for.
    pub oldest: DateTime<Utc>,
}

/// Somebody who is erased, or will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub clerk_id: ClerkId,
    /// When Clerk deleted them; `None` as long as the erasure is held back.
    pub erased_at: Option<DateTime<Utc>>,
    /// Until when it is held back.
    pub held_until: Option<DateTime<Utc>>,
}

/// What a page of rows lost to the allow-list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minimized {
    /// The `id` of the last row of the page.
    pub last: i64,
    /// Rows that lost anything.
    pub rows: u64,
    /// Values by column, of those that are not kept, in their order.
    pub columns: Vec<u64>,
}

impl Minimized {
    /// The same page, left alone.
    #[must_use]
    pub fn skipped(self) -> Self {
        Self { rows: 0, columns: Vec::new(), ..self }
    }
}
