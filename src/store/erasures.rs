//! What the store keeps of people, and the proof that it erased them: registers, the audit trail, receipts of erasures.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::Result;
use crate::model::{ClerkId, Entity, FieldSet, Receipt, Register, Selection, User};

/// See the head of this file.
#[async_trait]
pub trait Erasures: Send + Sync {
    /// What is stored of these objects, read without locks: registers and rows, as far as there are any.
    async fn known(&self, ids: &[ClerkId], selection: &Selection) -> Result<Known>;

    /// Up to `limit` ids of objects of a kind whose erasure nobody has asked for, and which we last wrote before
    /// `untouched_since` or never, in the order of the ids, after this one. What the application has marked as deleted is
    /// among them.
    async fn standing(
        &self,
        entity: &'static Entity,
        untouched_since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<ClerkId>>;

    /// How many objects of a kind there are whose erasure nobody has asked for.
    async fn count_standing(&self, entity: &'static Entity) -> Result<u64>;

    /// Up to `limit` lines of the audit trail about one user, the oldest first, behind this one.
    async fn audit_trail(&self, id: &ClerkId, after: Option<i64>, limit: u32) -> Result<Vec<AuditLine>>;

    /// Up to `limit` users whose erasure was held back until now or before, by id, from behind `after` on.
    async fn held_due(&self, now: DateTime<Utc>, after: Option<&ClerkId>, limit: u32)
    -> Result<Vec<ClerkId>>;

    /// Up to `limit` users who were erased here at this time or later, whenever that happened at Clerk, or are not wholly
    /// erased yet, and those whose erasure is held back, in the order of their ids, after this one.
    async fn tombstones(
        &self,
        since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<Tombstone>>;

    /// Every receipt of one user.
    async fn receipts_of(&self, id: &ClerkId) -> Result<Vec<Receipt>>;

    /// Up to `limit` receipts that are not completed, asked for before this time, the oldest first, behind this one.
    async fn open_receipts(
        &self,
        before: Option<DateTime<Utc>>,
        after: Option<&Receipt>,
        limit: u32,
    ) -> Result<Vec<Receipt>>;

    /// How many receipts of each destination are not completed.
    async fn open_erasures(&self) -> Result<Vec<OpenErasures>>;

    /// Set all columns of a kind that can be synced but those of `keep` to NULL, in the next `limit` rows behind this `id`
    /// that are not anonymised; on a dry run only count. `None` if there is no further row. Refusals of the application are as in
    /// [`Transaction::erase`](super::Transaction::erase).
    async fn minimize(
        &self,
        entity: &'static Entity,
        keep: FieldSet,
        after: i64,
        limit: u32,
        dry_run: bool,
    ) -> Result<Option<Minimized>>;
}

/// What is stored of some users.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub registers: HashMap<ClerkId, Register>,
    pub users: HashMap<ClerkId, User>,
}

/// A line of the audit trail, as it stands in `audit_log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLine {
    /// In the order in which they were written.
    pub id: i64,
    pub at: DateTime<Utc>,
    pub action: String,
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
