//! `processed_webhooks`: which deliveries are done.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::SqliteConnection;

use super::{error::explain, text};
use crate::{
    model::{ClerkId, Outcome, SvixId},
    store::{Record, Result},
};

/// Record deliveries; returns those that were not recorded before.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    records: &[Record<'_>],
) -> Result<HashSet<SvixId>> {
    let rows = text::rows(records.iter().map(|record| {
        json!({
            "svix_id": record.svix_id.as_str(),
            "event_type": record.event_type,
            "outcome": record.outcome.name(),
            "clerk_id": record.clerk_id.map(ClerkId::as_str),
            "event_at": text::time(record.event_at),
            "processed_at": text::time(record.processed_at),
        })
    }))?;
    let fresh = sqlx::query(
        "INSERT INTO processed_webhooks (svix_id, event_type, outcome, clerk_id, event_at, processed_at)
         SELECT n.value ->> 'svix_id', n.value ->> 'event_type', n.value ->> 'outcome',
                n.value ->> 'clerk_id', n.value ->> 'event_at', n.value ->> 'processed_at'
         FROM json_each(?1) AS n
         -- Without a WHERE, the parser takes ON for a join's.
         WHERE true
         ON CONFLICT (svix_id) DO NOTHING
         RETURNING svix_id",
    )
    .bind(rows)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    fresh.iter().map(text::read_svix_id).collect()
}

/// Which of these are recorded.
pub(super) async fn recorded(connection: &mut SqliteConnection, ids: &str) -> Result<HashSet<SvixId>> {
    let rows = sqlx::query(
        "SELECT p.svix_id FROM json_each(?1) AS n CROSS JOIN processed_webhooks AS p ON p.svix_id = n.value",
    )
    .bind(ids)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(text::read_svix_id).collect()
}

/// See [`settle`].
pub(super) const SETTLE: &str = "
    UPDATE processed_webhooks
    SET outcome = n.value ->> 'outcome'
    FROM json_each(?1) AS n
    WHERE processed_webhooks.svix_id = n.value ->> 'svix_id'";

/// Correct outcomes.
pub(super) async fn settle(connection: &mut SqliteConnection, outcomes: &[(SvixId, Outcome)]) -> Result<()> {
    let rows = text::rows(
        outcomes.iter().map(|(id, outcome)| json!({ "svix_id": id.as_str(), "outcome": outcome.name() })),
    )?;
    sqlx::query(SETTLE).bind(rows).execute(connection).await.map_err(explain)?;
    Ok(())
}

/// Forget deliveries, so that they can be recorded again.
pub(super) async fn remove(connection: &mut SqliteConnection, ids: &str) -> Result<()> {
    sqlx::query("DELETE FROM processed_webhooks WHERE svix_id IN (SELECT value FROM json_each(?1))")
        .bind(ids)
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(())
}

/// Forget the oldest; returns how many.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    before: DateTime<Utc>,
    limit: u32,
) -> Result<u64> {
    let done = sqlx::query(
        "DELETE FROM processed_webhooks
         WHERE svix_id IN (
             SELECT svix_id FROM processed_webhooks
             WHERE processed_at < ?1
             ORDER BY processed_at
             LIMIT ?2
         )",
    )
    .bind(text::time(before))
    .bind(limit)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(done.rows_affected())
}
