//! What people and programs read: rows, what is known about people and their erasures, and deliveries. Reads take no locks.

use async_trait::async_trait;
use chrono::{DateTime, NaiveDate, Utc};

use super::{
    AuditLine, Bucket, Database, DeliveryFilter, Known, OpenErasures, Parked, Processed, QueueDepth,
    QueueFilter, Queued, Result, Row, RowFilter, Tombstone,
};
use crate::model::{ClerkId, Entity, Receipt, Selection, SvixId};

/// Read-only queries. They take no locks.
#[async_trait]
pub trait Looks: Database {
    /// One object's row, deleted or not.
    async fn row(&self, id: &ClerkId) -> Result<Option<Row>>;

    /// Up to `limit` rows of a kind ordered by `id`, without those of deleted objects. Reading all pages returns each row that
    /// existed at the start exactly once.
    async fn rows(&self, entity: &'static Entity, filter: &RowFilter, limit: u32) -> Result<Vec<Row>>;

    /// The rows of these objects of a kind, without deleted ones.
    async fn these(&self, entity: &'static Entity, ids: &[ClerkId]) -> Result<Vec<Row>>;

    /// Number of users who signed up in each bucket, by its first day in UTC, from `from` until before `to`. Empty buckets are
    /// left out; rows of anonymised users count. Users whose time cannot be read are not counted.
    async fn signups(
        &self,
        bucket: Bucket,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Vec<(NaiveDate, u64)>>;

    /// The stored registers and rows of these objects, where they exist, read without locks.
    async fn known(&self, ids: &[ClerkId], selection: &Selection) -> Result<Known>;

    /// The stored parts of these objects that have no tombstone, read without locks.
    async fn parts_of(&self, owners: &[ClerkId]) -> Result<Vec<ClerkId>>;

    /// Up to `limit` ids of objects of a kind, greater than `after` and ordered by id. The erasure of these objects was
    /// never requested, and clerk-sync last wrote them before `untouched_since`, or never. Objects that the application
    /// has marked as deleted are included.
    async fn standing(
        &self,
        entity: &'static Entity,
        untouched_since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<ClerkId>>;

    /// Number of objects of a kind whose erasure was never requested.
    async fn count_standing(&self, entity: &'static Entity) -> Result<u64>;

    /// When an object of this kind was last written; `None` if there are none. Reads the whole table, so use it only for small
    /// ones.
    async fn last_written(&self, entity: &'static Entity) -> Result<Option<DateTime<Utc>>>;

    /// Up to `limit` audit lines about one user with ids greater than `after`, the oldest first.
    async fn audit_trail(&self, id: &ClerkId, after: Option<i64>, limit: u32) -> Result<Vec<AuditLine>>;

    /// Up to `limit` audit lines about one user, the newest first.
    async fn newest_lines(&self, id: &ClerkId, limit: u32) -> Result<Vec<AuditLine>>;

    /// Up to `limit` users whose grace period ended at `now` or earlier, with ids greater than `after`, ordered by id.
    async fn held_due(&self, now: DateTime<Utc>, after: Option<&ClerkId>, limit: u32)
    -> Result<Vec<ClerkId>>;

    /// Up to `limit` users with ids greater than `after`, ordered by id: users that clerk-sync erased at `since` or
    /// later, whenever Clerk deleted them; users that are not completely erased yet; and users whose erasure is delayed.
    async fn tombstones(
        &self,
        since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<Tombstone>>;

    /// Every receipt of one user.
    async fn receipts_of(&self, id: &ClerkId) -> Result<Vec<Receipt>>;

    /// Up to `limit` open receipts that were requested before `before` and come after `after`, the oldest first.
    async fn open_receipts(
        &self,
        before: Option<DateTime<Utc>>,
        after: Option<&Receipt>,
        limit: u32,
    ) -> Result<Vec<Receipt>>;

    /// Number of open receipts of each destination.
    async fn open_erasures(&self) -> Result<Vec<OpenErasures>>;

    /// When the first waiting delivery is due, among those due at `since` or later. The caller uses it to decide whether to
    /// begin a claiming transaction.
    async fn first_due(&self, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>>;

    /// Number of waiting and dead deliveries, and when the first one is due. Counts every row: do not call it often.
    async fn queue_depth(&self) -> Result<QueueDepth>;

    /// Up to `limit` deliveries of `webhook_queue` without their bodies, ordered by id.
    async fn queued(&self, filter: &QueueFilter, limit: u32) -> Result<Vec<Queued>>;

    /// One delivery of `webhook_queue`, including its body.
    async fn parked(&self, id: &SvixId) -> Result<Option<Parked>>;

    /// Up to `limit` processed deliveries, the newest first. With an event type or outcome, only the newest
    /// [`LOOKED_THROUGH`](super::LOOKED_THROUGH) are searched.
    async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<Processed>>;
}
