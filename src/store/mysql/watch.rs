//! The newest rows, which change when another process adds work. Neither server sends notifications.

use async_trait::async_trait;
use sqlx::MySqlPool;

use super::error::connect_error;
use crate::store::{
    Result,
    polling::Marks,
    sql::{ask::Ask as _, values},
};

/// A text that changes when another process adds work. Each part reads one entry of an index.
const MARKS: &str = "SELECT concat_ws(' ',
        (SELECT max(id) FROM outbox),
        (SELECT max(id) FROM audit_log),
        (SELECT svix_id FROM webhook_queue WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1),
        (SELECT min(held_until) FROM entity_versions WHERE held_until IS NOT NULL))";

/// That text.
pub(super) struct Newest(pub(super) MySqlPool);

#[async_trait]
impl Marks for Newest {
    type Seen = String;

    async fn read(&self) -> Result<String> {
        let mut connection = self.0.acquire().await.map_err(connect_error)?;
        connection.one(MARKS, values![]).await?.get(0)
    }
}
