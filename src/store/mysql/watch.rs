//! Detecting work that another process has added. Neither server sends notifications, so clerk-sync polls.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::MySqlPool;
use tokio::time::sleep;

use super::{error::connect_error, inspect::ask, migrations::named};
use crate::store::{Listener, Result, sql::only};

/// The polling interval.
const POLL: Duration = Duration::from_millis(500);

/// A text that changes when another process adds work. Each part reads one entry of an index.
const MARKS: &str = "SELECT concat_ws(' ',
        (SELECT max(id) FROM outbox),
        (SELECT max(id) FROM audit_log),
        (SELECT svix_id FROM webhook_queue WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1),
        (SELECT min(held_until) FROM entity_versions WHERE held_until IS NOT NULL))";

/// Polls the newest rows.
pub(super) struct Watch {
    pool: MySqlPool,
    seen: String,
}

impl Watch {
    /// Detects changes from now on.
    pub(super) async fn of(pool: MySqlPool) -> Result<Self> {
        let seen = marks(&pool).await?;
        Ok(Self { pool, seen })
    }
}

#[async_trait]
impl Listener for Watch {
    async fn heard(&mut self) -> Result<()> {
        loop {
            sleep(POLL).await;
            let now = marks(&self.pool).await?;
            if now != self.seen {
                self.seen = now;
                return Ok(());
            }
        }
    }
}

async fn marks(pool: &MySqlPool) -> Result<String> {
    let mut connection = pool.acquire().await.map_err(connect_error)?;
    only(&ask(&mut connection, sqlx::query(named(MARKS))).await?)?.get(0)
}
