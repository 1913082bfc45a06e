//! `processed_webhooks`: which deliveries are done.

use std::collections::HashSet;

use serde_json::json;
use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    model::{ClerkId, Outcome, SvixId},
    store::{DeliveryFilter, LOOKED_THROUGH, Processed, Record, Result},
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

/// The newest, as [`deliveries`](crate::store::Store::deliveries) promises.
pub(super) async fn newest(
    connection: &mut SqliteConnection,
    filter: &DeliveryFilter,
    limit: u32,
) -> Result<Vec<Processed>> {
    let (at, id) = filter.before.as_ref().map(|(at, id)| (text::time(*at), id.as_str())).unzip();
    let filtered = filter.event_type.is_some() || filter.outcome.is_some();
    let rows = sqlx::query(
        "SELECT * FROM (
             SELECT * FROM processed_webhooks
             WHERE processed_at <= coalesce(?1, '~') AND (?1 IS NULL OR (processed_at, svix_id) < (?1, ?2))
             ORDER BY processed_at DESC, svix_id DESC
             LIMIT ?3
         )
         WHERE (?4 IS NULL OR event_type = ?4) AND (?5 IS NULL OR outcome = ?5)
         LIMIT ?6",
    )
    .bind(at)
    .bind(id)
    .bind(if filtered { LOOKED_THROUGH } else { limit })
    .bind(filter.event_type.as_deref())
    .bind(filter.outcome.as_deref())
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(processed).collect()
}

/// These, as far as they are recorded.
pub(super) async fn these(connection: &mut SqliteConnection, ids: &[SvixId]) -> Result<Vec<Processed>> {
    let rows = sqlx::query(
        "SELECT p.* FROM json_each(?1) AS n CROSS JOIN processed_webhooks AS p ON p.svix_id = n.value",
    )
    .bind(text::svix_ids(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(processed).collect()
}

fn processed(row: &SqliteRow) -> Result<Processed> {
    let time_of = |column| text::read_time(row, column)?.ok_or_else(|| text::unreadable(column));
    Ok(Processed {
        svix_id: text::read_svix_id(row)?,
        event_type: text::read(row, "event_type")?,
        outcome: text::read(row, "outcome")?.ok_or_else(|| text::unreadable("outcome"))?,
        clerk_id: text::read(row, "clerk_id")?,
        event_at: time_of("event_at")?,
        processed_at: time_of("processed_at")?,
    })
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
