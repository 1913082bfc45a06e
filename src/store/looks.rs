//! What people and programs read: rows, what is known of people and of their erasures, and deliveries. Nothing is locked.

use async_trait::async_trait;
use chrono::{DateTime, NaiveDate, Utc};

use super::{
    AuditLine, Bucket, Database, DeliveryFilter, Known, OpenErasures, Parked, Processed, QueueDepth,
    QueueFilter, Queued, Result, Row, RowFilter, Tombstone,
};
use crate::model::{ClerkId, Entity, Receipt, Selection, SvixId};

/// See the head of this file.
#[async_trait]
pub trait Looks: Database {
    /// One object's row, deleted or not.
    async fn row(&self, id: &ClerkId) -> Result<Option<Row>>;

    /// Up to `limit` rows of a kind in the order of their `id`, without those of deleted objects. Rows that are there when a
    /// walk through the pages begins come exactly once.
    async fn rows(&self, entity: &'static Entity, filter: &RowFilter, limit: u32) -> Result<Vec<Row>>;

    /// The rows of these objects of a kind, without those that are deleted.
    async fn these(&self, entity: &'static Entity, ids: &[ClerkId]) -> Result<Vec<Row>>;

    /// How many users signed up in each bucket, by its first day in UTC, of those who signed up at `from` or later and
    /// before `to`. Empty buckets are left out, rows of anonymised users count. Times that cannot be read belong to no day.
    async fn signups(
        &self,
        bucket: Bucket,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Vec<(NaiveDate, u64)>>;

    /// What is stored of these objects, read without locks: registers and rows, as far as there are any.
    async fn known(&self, ids: &[ClerkId], selection: &Selection) -> Result<Known>;

    /// The parts that are kept of these objects, as far as they have no tombstone, read without locks.
    async fn parts_of(&self, owners: &[ClerkId]) -> Result<Vec<ClerkId>>;

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

    /// When an object of this kind, of which there are few, was last written; `None` if there is none. Reads the whole table.
    async fn last_written(&self, entity: &'static Entity) -> Result<Option<DateTime<Utc>>>;

    /// Up to `limit` lines of the audit trail about one user, the oldest first, behind this one.
    async fn audit_trail(&self, id: &ClerkId, after: Option<i64>, limit: u32) -> Result<Vec<AuditLine>>;

    /// Up to `limit` of the newest of these lines, the newest first.
    async fn newest_lines(&self, id: &ClerkId, limit: u32) -> Result<Vec<AuditLine>>;

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

    /// When the first delivery that waits is due, of those that are due at this time or later, so that it is known whether a
    /// transaction that claims is worth its beginning.
    async fn first_due(&self, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>>;

    /// How many deliveries wait, and since when the first of them is due. Counted one by one: not to be asked often.
    async fn queue_depth(&self) -> Result<QueueDepth>;

    /// Up to `limit` deliveries of `webhook_queue`, in the order of their ids, without their bodies.
    async fn queued(&self, filter: &QueueFilter, limit: u32) -> Result<Vec<Queued>>;

    /// One delivery of `webhook_queue`, whole.
    async fn parked(&self, id: &SvixId) -> Result<Option<Parked>>;

    /// Up to `limit` of the newest processed deliveries, the newest first. With an event type or outcome only so many of the
    /// newest are looked through as [`LOOKED_THROUGH`](super::LOOKED_THROUGH) says.
    async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<Processed>>;
}
