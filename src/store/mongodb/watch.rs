//! Detecting work that another process has added. Without a change stream the server sends no notifications, so
//! clerk-sync polls.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mongodb::bson::{Document, doc};
use tokio::time::sleep;

use super::session::{Alone, Commands as _, Server};
use crate::store::{Listener, Result};

/// The polling interval.
const POLL: Duration = Duration::from_millis(500);

/// Polls the documents that change when another process adds work.
pub(super) struct Watch {
    server: Arc<Server>,
    seen: Vec<Document>,
}

impl Watch {
    /// Detects changes from now on.
    pub(super) async fn of(server: &Arc<Server>) -> Result<Self> {
        Ok(Self { server: Arc::clone(server), seen: marks(server).await? })
    }
}

#[async_trait]
impl Listener for Watch {
    async fn heard(&mut self) -> Result<()> {
        loop {
            sleep(POLL).await;
            let now = marks(&self.server).await?;
            if now != self.seen {
                self.seen = now;
                return Ok(());
            }
        }
    }
}

/// The newest ids of the outbox and the audit trail, the next pending delivery, and the next delayed erasure. Each is
/// read from one entry of an index.
async fn marks(server: &Arc<Server>) -> Result<Vec<Document>> {
    let mut alone = Alone(server);
    let mut marks = Vec::new();
    for (collection, filter, sort) in [
        ("outbox", doc! {}, doc! { "_id": -1 }),
        ("audit_log", doc! {}, doc! { "_id": -1 }),
        ("webhook_queue", doc! { "state": "pending" }, doc! { "next_attempt_at": 1 }),
        ("entity_versions", doc! { "held_until": { "$type": "date" } }, doc! { "held_until": 1 }),
    ] {
        let name = crate::store::prefix::of_table(collection);
        let find =
            doc! { "find": name, "filter": filter, "sort": sort, "limit": 1, "projection": { "_id": 1 } };
        marks.extend(alone.rows(find).await?);
    }
    Ok(marks)
}
