//! `erasure_receipts`, and erasures that are held back.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    model::{ClerkId, Receipt},
    store::{OpenErasures, Result, Tombstone},
};

/// Mark rows as deleted, unless they are.
pub(super) async fn mark_users(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
    at: DateTime<Utc>,
) -> Result<Vec<ClerkId>> {
    let rows = sqlx::query(
        "UPDATE users SET deleted_at = ?2
         WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND deleted_at IS NULL
         RETURNING clerk_id",
    )
    .bind(text::clerk_ids(ids)?)
    .bind(text::time(at))
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(text::read_clerk_id).collect()
}

/// Take just this mark from rows.
pub(super) async fn unmark_users(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
    at: DateTime<Utc>,
) -> Result<Vec<ClerkId>> {
    let rows = sqlx::query(
        "UPDATE users SET deleted_at = NULL
         WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND deleted_at = ?2
         RETURNING clerk_id",
    )
    .bind(text::clerk_ids(ids)?)
    .bind(text::time(at))
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(text::read_clerk_id).collect()
}

/// Write receipts; of one that stands already the older request counts, and once completed it stays so.
pub(super) async fn write_receipts(connection: &mut SqliteConnection, receipts: &[Receipt]) -> Result<()> {
    let rows = text::rows(receipts.iter().map(|receipt| {
        json!({
            "clerk_id": receipt.clerk_id.as_str(),
            "destination": receipt.destination,
            "requested_at": text::time(receipt.requested_at),
            "completed_at": receipt.completed_at.map(text::time),
            "attempts": receipt.attempts,
            "last_error": receipt.last_error,
        })
    }))?;
    sqlx::query(
        "INSERT INTO erasure_receipts (clerk_id, destination, requested_at, completed_at, attempts, last_error)
         SELECT n.value ->> 'clerk_id', n.value ->> 'destination', n.value ->> 'requested_at',
                n.value ->> 'completed_at', n.value ->> 'attempts', n.value ->> 'last_error'
         FROM json_each(?1) AS n
         -- Without a WHERE, the parser takes ON for a join's.
         WHERE true
         ON CONFLICT (clerk_id, destination) DO UPDATE SET
             requested_at = min(requested_at, excluded.requested_at),
             completed_at = coalesce(completed_at, excluded.completed_at),
             attempts = attempts + excluded.attempts,
             -- What is done has no error.
             last_error = CASE WHEN completed_at IS NULL THEN excluded.last_error END",
    )
    .bind(rows)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Complete receipts that are open.
pub(super) async fn close_receipts(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
    destination: &str,
    at: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "UPDATE erasure_receipts SET completed_at = ?3, last_error = NULL
         WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND destination = ?2 AND completed_at IS NULL",
    )
    .bind(text::clerk_ids(ids)?)
    .bind(destination)
    .bind(text::time(at))
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Users whose erasure was held back until now or before.
pub(super) async fn held_due(
    connection: &mut SqliteConnection,
    now: DateTime<Utc>,
    after: Option<&ClerkId>,
    limit: u32,
) -> Result<Vec<ClerkId>> {
    let rows = sqlx::query(
        "SELECT clerk_id FROM entity_versions
         WHERE kind = 'user' AND held_until IS NOT NULL AND held_until <= ?1 AND clerk_id > ?2
         ORDER BY clerk_id
         LIMIT ?3",
    )
    .bind(text::time(now))
    .bind(after.map_or("", ClerkId::as_str))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(text::read_clerk_id).collect()
}

/// Every receipt of one user.
pub(super) async fn receipts_of(connection: &mut SqliteConnection, id: &ClerkId) -> Result<Vec<Receipt>> {
    let rows = sqlx::query("SELECT * FROM erasure_receipts WHERE clerk_id = ?1 ORDER BY destination")
        .bind(id.as_str())
        .fetch_all(connection)
        .await
        .map_err(explain)?;
    rows.iter().map(receipt).collect()
}

/// Receipts that are not completed, the oldest first.
pub(super) async fn open_receipts(
    connection: &mut SqliteConnection,
    before: Option<DateTime<Utc>>,
    after: Option<&Receipt>,
    limit: u32,
) -> Result<Vec<Receipt>> {
    let rows = sqlx::query(
        "SELECT * FROM erasure_receipts
         WHERE completed_at IS NULL AND (?1 IS NULL OR requested_at < ?1)
           AND (requested_at, clerk_id, destination) > (?2, ?3, ?4)
         ORDER BY requested_at, clerk_id, destination
         LIMIT ?5",
    )
    .bind(before.map(text::time))
    .bind(after.map(|receipt| text::time(receipt.requested_at)).unwrap_or_default())
    .bind(after.map_or("", |receipt| receipt.clerk_id.as_str()))
    .bind(after.map_or("", |receipt| receipt.destination.as_str()))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(receipt).collect()
}

/// How many receipts of each destination are not completed.
pub(super) async fn open_erasures(connection: &mut SqliteConnection) -> Result<Vec<OpenErasures>> {
    let rows = sqlx::query(
        "SELECT destination, count(*) AS receipts, min(requested_at) AS oldest FROM erasure_receipts
         WHERE completed_at IS NULL
         GROUP BY destination",
    )
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    let open = |row| {
        Ok(OpenErasures {
            destination: text::read(row, "destination")?.unwrap_or_default(),
            receipts: text::read_integer(row, "receipts")?.unwrap_or_default().unsigned_abs(),
            oldest: text::read_time(row, "oldest")?.ok_or_else(|| text::unreadable("requested_at"))?,
        })
    };
    rows.iter().map(open).collect()
}

/// Who is erased, or will be.
pub(super) async fn tombstones(
    connection: &mut SqliteConnection,
    since: DateTime<Utc>,
    after: Option<&ClerkId>,
    limit: u32,
) -> Result<Vec<Tombstone>> {
    let since = since.max(DateTime::UNIX_EPOCH);
    let rows = sqlx::query(
        "SELECT e.clerk_id, e.event_at, e.held_until
         FROM entity_versions AS e
         LEFT JOIN erasure_receipts AS r ON e.deleted AND r.clerk_id = e.clerk_id AND r.destination = 'database'
         LEFT JOIN processed_webhooks AS p ON e.deleted AND p.svix_id = e.tie
         WHERE e.kind = 'user' AND e.clerk_id > ?1
           AND (e.held_until IS NOT NULL
                -- It is not done yet.
                OR e.deleted AND r.clerk_id IS NOT NULL AND r.completed_at IS NULL
                OR e.deleted AND r.completed_at >= ?2
                -- Of whom nothing was here: when we were told, as long as that is known.
                OR e.deleted AND r.clerk_id IS NULL AND CASE
                       WHEN p.processed_at IS NOT NULL THEN p.processed_at >= ?2 ELSE e.event_at >= ?3 END)
         ORDER BY e.clerk_id
         LIMIT ?4",
    )
    .bind(after.map_or("", ClerkId::as_str))
    .bind(text::time(since))
    .bind(since.timestamp_millis())
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    let tombstone = |row| {
        let held_until = text::read_time(row, "held_until")?;
        let erased_at = text::read_integer(row, "event_at")?.and_then(DateTime::from_timestamp_millis);
        let erased_at = held_until.is_none().then_some(erased_at.unwrap_or_default());
        Ok(Tombstone { clerk_id: text::read_clerk_id(row)?, erased_at, held_until })
    };
    rows.iter().map(tombstone).collect()
}

fn receipt(row: &SqliteRow) -> Result<Receipt> {
    let attempts = text::read_integer(row, "attempts")?.and_then(|attempts| attempts.try_into().ok());
    Ok(Receipt {
        clerk_id: text::read_clerk_id(row)?,
        destination: text::read(row, "destination")?.unwrap_or_default(),
        requested_at: text::read_time(row, "requested_at")?
            .ok_or_else(|| text::unreadable("requested_at"))?,
        completed_at: text::read_time(row, "completed_at")?,
        attempts: attempts.unwrap_or_default(),
        last_error: text::read(row, "last_error")?,
    })
}
