//! `webhook_queue`: genuine deliveries that are to be processed, or could not be.

use std::collections::HashMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    entity::USER,
    model::{ClerkId, SvixId},
    store::{Parked, QueueDepth, QueueFilter, QueueState, Queued, Result, Waiting},
    telemetry::TraceContext,
};

/// Keep one delivery, or what is new about one that is kept.
pub(super) async fn put(connection: &mut SqliteConnection, parked: &Parked) -> Result<()> {
    sqlx::query(
        "INSERT INTO webhook_queue
             (svix_id, event_type, clerk_id, payload, state, attempts, next_attempt_at, received_at, last_error,
              trace_context, dead_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (svix_id) DO UPDATE SET
             event_type = excluded.event_type,
             clerk_id = excluded.clerk_id,
             payload = excluded.payload,
             state = excluded.state,
             attempts = excluded.attempts,
             next_attempt_at = excluded.next_attempt_at,
             -- received_at stays: it was received when it first came.
             last_error = excluded.last_error,
             dead_at = excluded.dead_at,
             trace_context = coalesce(excluded.trace_context, trace_context)",
    )
    .bind(parked.svix_id.as_str())
    .bind(parked.event_type.as_deref())
    .bind(parked.clerk_id.as_ref().map(ClerkId::as_str))
    .bind(&*parked.payload)
    .bind(parked.state().name())
    .bind(parked.attempts)
    .bind(parked.next_attempt_at.map(text::time))
    .bind(text::time(parked.received_at))
    .bind(parked.last_error.as_str())
    .bind(parked.trace.as_str())
    .bind(parked.dead_at.map(text::time))
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Remove deliveries; returns how many there were.
pub(super) async fn remove(connection: &mut SqliteConnection, ids: &str) -> Result<u64> {
    let done = sqlx::query("DELETE FROM webhook_queue WHERE svix_id IN (SELECT value FROM json_each(?1))")
        .bind(ids)
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(done.rows_affected())
}

/// Remove what is kept of these users; returns how many there were.
pub(super) async fn remove_of(connection: &mut SqliteConnection, users: &[ClerkId]) -> Result<u64> {
    let done = sqlx::query("DELETE FROM webhook_queue WHERE clerk_id IN (SELECT value FROM json_each(?1))")
        .bind(text::clerk_ids(users)?)
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(done.rows_affected())
}

/// Deliveries of no known user whose bytes contain one of these ids, or may hide one.
pub(super) async fn unattributed(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
) -> Result<Vec<(SvixId, Bytes)>> {
    let rows = sqlx::query(
        "SELECT q.svix_id, q.payload
         FROM webhook_queue AS q
         WHERE q.clerk_id IS NULL
           -- Both sides as bytes: a payload need not be text.
           AND (instr(q.payload, x'00') > 0
                -- A backslash and a u.
                OR instr(q.payload, x'5c75') > 0
                OR EXISTS (
                    SELECT 1 FROM json_each(?1) AS n
                    WHERE instr(q.payload, CAST(n.value AS BLOB)) > 0
                ))",
    )
    .bind(text::clerk_ids(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(|row| Ok((text::read_svix_id(row)?, payload(row)?))).collect()
}

/// What is known of these, as far as they are here.
pub(super) async fn waiting(
    connection: &mut SqliteConnection,
    ids: &[SvixId],
) -> Result<HashMap<SvixId, Waiting>> {
    let rows = sqlx::query(
        "SELECT q.svix_id, q.attempts, q.received_at
         FROM json_each(?1) AS n
         CROSS JOIN webhook_queue AS q ON q.svix_id = n.value",
    )
    .bind(text::svix_ids(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    let waiting = |row| Ok(Waiting { attempts: tried(row)?, received_at: received_at(row)? });
    rows.iter().map(|row| Ok((text::read_svix_id(row)?, waiting(row)?))).collect()
}

/// When the first delivery is due.
pub(super) async fn first_due(connection: &mut SqliteConnection) -> Result<Option<DateTime<Utc>>> {
    let query = "SELECT min(next_attempt_at) AS due FROM webhook_queue WHERE state = 'pending'";
    let row = sqlx::query(query).fetch_one(connection).await.map_err(explain)?;
    text::read_time(&row, "due")
}

/// The ids of the deliveries whose time has come, the longest due first, until their bodies have so many bytes.
pub(super) async fn due(
    connection: &mut SqliteConnection,
    now: DateTime<Utc>,
    limit: u32,
    bytes: u64,
) -> Result<Vec<SvixId>> {
    let rows = sqlx::query(
        "SELECT svix_id, length(payload) AS bytes FROM webhook_queue
         WHERE state = 'pending' AND next_attempt_at <= ?1
         ORDER BY next_attempt_at
         LIMIT ?2",
    )
    .bind(text::time(now))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    let (mut due, mut taken) = (Vec::with_capacity(rows.len()), 0);
    for row in rows {
        if taken >= bytes {
            break;
        }
        taken += length(&row)?;
        due.push(text::read_svix_id(&row)?);
    }
    Ok(due)
}

/// Those of these deliveries whose time has come, in their order.
pub(super) async fn these_due(
    connection: &mut SqliteConnection,
    ids: &[SvixId],
    now: DateTime<Utc>,
) -> Result<Vec<Parked>> {
    let rows = sqlx::query(
        "SELECT q.*
         FROM json_each(?1) AS n
         CROSS JOIN webhook_queue AS q ON q.svix_id = n.value
         WHERE q.state = 'pending' AND q.next_attempt_at <= ?2",
    )
    .bind(text::svix_ids(ids)?)
    .bind(text::time(now))
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(parked).collect()
}

/// Keep one delivery that is to be processed. One that is here already stays, but no longer dead.
pub(super) async fn enqueue(connection: &mut SqliteConnection, queued: &Parked) -> Result<()> {
    sqlx::query(
        "INSERT INTO webhook_queue
             (svix_id, event_type, clerk_id, payload, state, attempts, next_attempt_at, received_at, trace_context,
              last_error)
         VALUES (?1, ?2, ?3, ?4, 'pending', ?8, ?5, ?6, ?7, nullif(?9, ''))
         ON CONFLICT (svix_id) DO UPDATE SET
             state = excluded.state, attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at,
             dead_at = NULL
         WHERE webhook_queue.state = 'dead'",
    )
    .bind(queued.svix_id.as_str())
    .bind(queued.event_type.as_deref())
    .bind(queued.clerk_id.as_ref().map(ClerkId::as_str))
    .bind(&*queued.payload)
    .bind(queued.next_attempt_at.map(text::time))
    .bind(text::time(queued.received_at))
    .bind(queued.trace.as_str())
    .bind(queued.attempts)
    .bind(queued.last_error.as_str())
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Make these due that are dead or put off; returns how many.
pub(super) async fn revive(
    connection: &mut SqliteConnection,
    ids: &[SvixId],
    now: DateTime<Utc>,
) -> Result<u64> {
    let done = sqlx::query(
        "UPDATE webhook_queue
         SET attempts = CASE state WHEN 'dead' THEN 0 ELSE attempts END, state = 'pending', next_attempt_at = ?2,
             dead_at = NULL
         WHERE svix_id IN (SELECT value FROM json_each(?1)) AND (state = 'dead' OR next_attempt_at > ?2)",
    )
    .bind(text::svix_ids(ids)?)
    .bind(text::time(now))
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(done.rows_affected())
}

/// Try these later that wait.
pub(super) async fn postpone(
    connection: &mut SqliteConnection,
    ids: &[SvixId],
    until: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "UPDATE webhook_queue SET next_attempt_at = ?2
         WHERE svix_id IN (SELECT value FROM json_each(?1)) AND state = 'pending' AND next_attempt_at < ?2",
    )
    .bind(text::svix_ids(ids)?)
    .bind(text::time(until))
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// How many wait, and how many lie.
pub(super) async fn depth(connection: &mut SqliteConnection) -> Result<QueueDepth> {
    let row = sqlx::query(
        "SELECT
             -- Each in an index of its own.
             (SELECT count(*) FROM webhook_queue WHERE state = 'pending') AS pending,
             (SELECT count(*) FROM webhook_queue WHERE state = 'dead') AS dead,
             (SELECT min(next_attempt_at) FROM webhook_queue WHERE state = 'pending') AS first_due",
    )
    .fetch_one(connection)
    .await
    .map_err(explain)?;
    let count = |column| Ok(text::read_integer(&row, column)?.unwrap_or_default().unsigned_abs());
    Ok(QueueDepth {
        pending: count("pending")?,
        dead: count("dead")?,
        first_due: text::read_time(&row, "first_due")?,
    })
}

/// One page of what is here, without bodies.
pub(super) async fn page(
    connection: &mut SqliteConnection,
    filter: &QueueFilter,
    limit: u32,
) -> Result<Vec<Queued>> {
    let all =
        "SELECT svix_id, event_type, clerk_id, state, attempts, next_attempt_at, received_at, last_error,
                      length(payload) AS bytes
               FROM webhook_queue
               WHERE svix_id > ?1 AND (?2 IS NULL OR event_type = ?2) AND (?3 IS NULL OR state = ?3)
                 AND ?5 IS NULL
               ORDER BY svix_id
               LIMIT ?4";
    // Few among many: they have an index of their own, which only this text allows to use.
    let dead =
        "SELECT svix_id, event_type, clerk_id, state, attempts, next_attempt_at, received_at, last_error,
                       length(payload) AS bytes
                FROM webhook_queue
                WHERE state = 'dead' AND svix_id > ?1 AND (?2 IS NULL OR event_type = ?2) AND ?3 = 'dead'
                  AND ?5 IS NULL
                ORDER BY svix_id
                LIMIT ?4";
    let of_user =
        "SELECT svix_id, event_type, clerk_id, state, attempts, next_attempt_at, received_at, last_error,
                length(payload) AS bytes
         FROM webhook_queue INDEXED BY webhook_queue_clerk_id
         WHERE clerk_id = ?5 AND svix_id > ?1 AND (?2 IS NULL OR event_type = ?2) AND (?3 IS NULL OR state = ?3)
         ORDER BY svix_id
         LIMIT ?4";
    let query = match (&filter.clerk_id, filter.state) {
        (Some(_), _) => of_user,
        (None, Some(QueueState::Dead)) => dead,
        (None, _) => all,
    };
    let rows = sqlx::query(query)
        .bind(filter.after.as_ref().map_or("", SvixId::as_str))
        .bind(filter.event_type.as_deref())
        .bind(filter.state.map(QueueState::name))
        .bind(limit)
        .bind(filter.clerk_id.as_ref().map(ClerkId::as_str))
        .fetch_all(connection)
        .await
        .map_err(explain)?;
    rows.iter().map(queued).collect()
}

/// Those of these that are here, without bodies.
pub(super) async fn these(connection: &mut SqliteConnection, ids: &[SvixId]) -> Result<Vec<Queued>> {
    let rows = sqlx::query(
        "SELECT q.svix_id, q.event_type, q.clerk_id, q.state, q.attempts, q.next_attempt_at, q.received_at,
                q.last_error, length(q.payload) AS bytes
         FROM json_each(?1) AS n
         CROSS JOIN webhook_queue AS q ON q.svix_id = n.value",
    )
    .bind(text::svix_ids(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(queued).collect()
}

/// One delivery, whole.
pub(super) async fn one(connection: &mut SqliteConnection, id: &SvixId) -> Result<Option<Parked>> {
    let row = sqlx::query("SELECT * FROM webhook_queue WHERE svix_id = ?1")
        .bind(id.as_str())
        .fetch_optional(connection)
        .await
        .map_err(explain)?;
    row.as_ref().map(parked).transpose()
}

fn queued(row: &SqliteRow) -> Result<Queued> {
    Ok(Queued {
        svix_id: text::read_svix_id(row)?,
        event_type: text::read(row, "event_type")?,
        clerk_id: text::read(row, "clerk_id")?.and_then(|id| ClerkId::new(&USER, id)),
        state: text::read(row, "state")?
            .and_then(|state| QueueState::named(&state))
            .ok_or_else(|| text::unreadable("state"))?,
        attempts: tried(row)?,
        next_attempt_at: text::read_time(row, "next_attempt_at")?,
        received_at: received_at(row)?,
        last_error: text::read(row, "last_error")?.unwrap_or_default(),
        bytes: length(row)?,
    })
}

fn length(row: &SqliteRow) -> Result<u64> {
    Ok(text::read_integer(row, "bytes")?.unwrap_or_default().unsigned_abs())
}

fn parked(row: &SqliteRow) -> Result<Parked> {
    Ok(Parked {
        svix_id: text::read_svix_id(row)?,
        event_type: text::read(row, "event_type")?,
        clerk_id: text::read(row, "clerk_id")?.and_then(|id| ClerkId::new(&USER, id)),
        payload: payload(row)?,
        attempts: tried(row)?,
        next_attempt_at: text::read_time(row, "next_attempt_at")?,
        received_at: received_at(row)?,
        last_error: text::read(row, "last_error")?.unwrap_or_default(),
        trace: TraceContext::kept(text::read(row, "trace_context")?),
        dead_at: text::read_time(row, "dead_at")?,
    })
}

fn payload(row: &SqliteRow) -> Result<Bytes> {
    row.try_get_unchecked::<Vec<u8>, _>("payload").map(Bytes::from).map_err(explain)
}

fn received_at(row: &SqliteRow) -> Result<DateTime<Utc>> {
    text::read_time(row, "received_at")?.ok_or_else(|| text::unreadable("received_at"))
}

fn tried(row: &SqliteRow) -> Result<u32> {
    Ok(text::read_integer(row, "attempts")?.and_then(|attempts| attempts.try_into().ok()).unwrap_or_default())
}
