//! `erasure_receipts`, and erasures that are held back.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::{
    Postgres, Session, count, get, sql,
    transaction::{clerk_id, column, texts},
};
use crate::{
    model::{ClerkId, Receipt},
    store::{OpenErasures, Result, Tombstone},
};

pub(super) async fn write_receipts(session: &mut Session, receipts: &[Receipt]) -> Result<()> {
    if receipts.is_empty() {
        return Ok(());
    }
    let query = sql("INSERT INTO erasure_receipts AS r
             (clerk_id, destination, requested_at, completed_at, attempts, last_error)
         SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::integer[], $6::text[])
         ON CONFLICT (clerk_id, destination) DO UPDATE
         SET requested_at = least(r.requested_at, excluded.requested_at),
             completed_at = coalesce(r.completed_at, excluded.completed_at),
             attempts = r.attempts + excluded.attempts,
             -- What is done has no error.
             last_error = CASE WHEN r.completed_at IS NULL THEN excluded.last_error END")
    .bind(column(receipts, |receipt| receipt.clerk_id.as_str()))
    .bind(column(receipts, |receipt| receipt.destination.as_str()))
    .bind(column(receipts, |receipt| receipt.requested_at))
    .bind(column(receipts, |receipt| receipt.completed_at))
    .bind(column(receipts, |receipt| i32::try_from(receipt.attempts).unwrap_or(i32::MAX)))
    .bind(column(receipts, |receipt| receipt.last_error.as_deref()));
    session.execute(query).await?;
    Ok(())
}

pub(super) async fn close_receipts(
    session: &mut Session,
    ids: &[ClerkId],
    destination: &str,
    at: DateTime<Utc>,
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let query = sql("UPDATE erasure_receipts AS r SET completed_at = $3, last_error = NULL
         FROM unnest($1::text[]) AS n (clerk_id)
         WHERE r.clerk_id = n.clerk_id AND r.destination = $2 AND r.completed_at IS NULL")
    .bind(texts(ids))
    .bind(destination)
    .bind(at);
    session.execute(query).await?;
    Ok(())
}

pub(super) async fn held_due(
    store: &Postgres,
    now: DateTime<Utc>,
    after: Option<&ClerkId>,
    limit: u32,
) -> Result<Vec<ClerkId>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT clerk_id FROM entity_versions
                 WHERE kind = 'user' AND held_until <= $1 AND clerk_id > $2
                 ORDER BY clerk_id
                 LIMIT $3")
            .bind(now)
            .bind(after.map_or("", ClerkId::as_str))
            .bind(i64::from(limit)),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(|row| clerk_id(row, 0)).collect()
}

pub(super) async fn receipts_of(store: &Postgres, id: &ClerkId) -> Result<Vec<Receipt>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT clerk_id, destination, requested_at, completed_at, attempts, last_error
                 FROM erasure_receipts WHERE clerk_id = $1 ORDER BY destination")
            .bind(id.as_str()),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(receipt).collect()
}

pub(super) async fn open_receipts(
    store: &Postgres,
    before: Option<DateTime<Utc>>,
    after: Option<&Receipt>,
    limit: u32,
) -> Result<Vec<Receipt>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT clerk_id, destination, requested_at, completed_at, attempts, last_error
                 FROM erasure_receipts
                 WHERE completed_at IS NULL AND requested_at < coalesce($1, 'infinity'::timestamptz)
                   AND (requested_at, clerk_id, destination) > (coalesce($2, '-infinity'::timestamptz), $3, $4)
                 ORDER BY requested_at, clerk_id, destination
                 LIMIT $5")
            .bind(before)
            .bind(after.map(|receipt| receipt.requested_at))
            .bind(after.map_or("", |receipt| receipt.clerk_id.as_str()))
            .bind(after.map_or("", |receipt| receipt.destination.as_str()))
            .bind(i64::from(limit)),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(receipt).collect()
}

pub(super) async fn open_erasures(store: &Postgres) -> Result<Vec<OpenErasures>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(sql("SELECT destination, count(*), min(requested_at) FROM erasure_receipts
                   WHERE completed_at IS NULL
                   GROUP BY destination"))
        .await?;
    session.commit().await?;
    let open =
        |row| Ok(OpenErasures { destination: get(row, 0)?, receipts: count(row, 1)?, oldest: get(row, 2)? });
    rows.iter().map(open).collect()
}

pub(super) async fn tombstones(
    store: &Postgres,
    since: DateTime<Utc>,
    after: Option<&ClerkId>,
    limit: u32,
) -> Result<Vec<Tombstone>> {
    // No database has times without a beginning.
    let since = since.max(DateTime::UNIX_EPOCH);
    // Where nearly nobody was erased it looks through the whole table.
    let mut session = store.session(&store.begin_migration).await?;
    let rows = session
        .rows(
            sql("SELECT e.clerk_id, e.event_at, e.held_until
                 FROM entity_versions AS e
                 LEFT JOIN LATERAL (
                     SELECT clerk_id, completed_at FROM erasure_receipts
                     WHERE e.deleted AND clerk_id = e.clerk_id AND destination = 'database'
                 ) AS r ON true
                 LEFT JOIN LATERAL (
                     SELECT processed_at FROM processed_webhooks WHERE e.deleted AND svix_id = e.tie
                 ) AS p ON true
                 WHERE e.kind = 'user' AND e.clerk_id > $1
                   AND (e.held_until IS NOT NULL
                        -- It is not done yet.
                        OR e.deleted AND r.clerk_id IS NOT NULL AND r.completed_at IS NULL
                        OR e.deleted AND r.completed_at >= $2
                        -- Of whom nothing was here: when we were told, as long as that is known.
                        OR e.deleted AND r.clerk_id IS NULL AND CASE
                               WHEN p.processed_at IS NOT NULL THEN p.processed_at >= $2 ELSE e.event_at >= $4 END)
                 ORDER BY e.clerk_id
                 LIMIT $3")
            .bind(after.map_or("", ClerkId::as_str))
            .bind(since)
            .bind(i64::from(limit))
            .bind(since.timestamp_millis()),
        )
        .await?;
    session.commit().await?;
    let tombstone = |row| {
        let held_until: Option<DateTime<Utc>> = get(row, 2)?;
        let erased_at = DateTime::from_timestamp_millis(get(row, 1)?).unwrap_or_default();
        let erased_at = held_until.is_none().then_some(erased_at);
        Ok(Tombstone { clerk_id: clerk_id(row, 0)?, erased_at, held_until })
    };
    rows.iter().map(tombstone).collect()
}

fn receipt(row: &PgRow) -> Result<Receipt> {
    Ok(Receipt {
        clerk_id: clerk_id(row, 0)?,
        destination: get(row, 1)?,
        requested_at: get(row, 2)?,
        completed_at: get(row, 3)?,
        attempts: get::<i32>(row, 4)?.unsigned_abs(),
        last_error: get(row, 5)?,
    })
}
