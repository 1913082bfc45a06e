//! The documents that change when another process adds work. Without a change stream the server sends no notifications.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::bson::{Document, doc};

use super::session::{Alone, Commands as _, Server};
use crate::store::{Result, polling::Marks, prefix};

/// The newest ids of the outbox and the audit trail, the next pending delivery, and the next delayed erasure. Each is
/// read from one entry of an index.
pub(super) struct Newest(pub(super) Arc<Server>);

#[async_trait]
impl Marks for Newest {
    type Seen = Vec<Document>;

    async fn read(&self) -> Result<Vec<Document>> {
        let mut alone = Alone(&self.0);
        let mut marks = Vec::new();
        for (collection, filter, sort) in [
            ("outbox", doc! {}, doc! { "_id": -1 }),
            ("audit_log", doc! {}, doc! { "_id": -1 }),
            ("webhook_queue", doc! { "state": "pending" }, doc! { "next_attempt_at": 1 }),
            ("entity_versions", doc! { "held_until": { "$type": "date" } }, doc! { "held_until": 1 }),
        ] {
            let name = prefix::of_table(collection);
            let find =
                doc! { "find": name, "filter": filter, "sort": sort, "limit": 1, "projection": { "_id": 1 } };
            marks.extend(alone.rows(find).await?);
        }
        Ok(marks)
    }
}
