//! `webhook_queue`: genuine deliveries that are to be processed, or could not be.
//!
//! Whoever works on a delivery holds the lock on its row until its transaction ends, and everybody else steps over
//! locked rows: nobody waits, nobody works twice, and what a dead process held is free as soon as the server notices
//! that its connection is gone.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::{
    Session, count, get, sql,
    transaction::{column, svix_id, traces},
};
use crate::{
    entity::USER,
    model::{ClerkId, SvixId},
    store::{Parked, QueueDepth, QueueFilter, QueueState, Queued, Result, StoreError, Trouble},
    telemetry::TraceContext,
};

/// When the first delivery is due.
pub(super) async fn first_due(session: &mut Session) -> Result<Option<DateTime<Utc>>> {
    let query = sql("SELECT next_attempt_at FROM webhook_queue WHERE state = 'pending'
         ORDER BY next_attempt_at
         LIMIT 1");
    session.rows(query).await?.first().map_or(Ok(None), |row| get(row, 0))
}

/// Take the deliveries whose time has come, the longest due first, until their bodies have so many bytes.
pub(super) async fn claim(
    session: &mut Session,
    now: DateTime<Utc>,
    limit: u32,
    bytes: u64,
) -> Result<Vec<Parked>> {
    let query = sql("SELECT svix_id, event_type, clerk_id, payload, attempts, next_attempt_at, received_at, last_error,
                trace_context, dead_at
         FROM (
             SELECT due.*, octet_length(payload) AS own, sum(octet_length(payload)) OVER (ROWS UNBOUNDED PRECEDING) AS taken
             FROM (
                 SELECT * FROM webhook_queue
                 WHERE state = 'pending' AND next_attempt_at <= $1
                 ORDER BY next_attempt_at
                 LIMIT $2
                 -- Others take other rows.
                 FOR UPDATE SKIP LOCKED
             ) AS due
         ) AS q
         -- The first is taken however large it is.
         WHERE taken - own < $3")
    .bind(now)
    .bind(i64::from(limit))
    .bind(i64::try_from(bytes).unwrap_or(i64::MAX));
    session.rows(query).await?.iter().map(parked).collect()
}

/// Take those of these deliveries whose time has come and whom nobody has taken.
pub(super) async fn claim_these(
    session: &mut Session,
    ids: &[SvixId],
    now: DateTime<Utc>,
) -> Result<Vec<Parked>> {
    let query = sql(
        "SELECT q.svix_id, q.event_type, q.clerk_id, q.payload, q.attempts, q.next_attempt_at, q.received_at,
                q.last_error, q.trace_context, q.dead_at
         FROM unnest($1::text[]) AS n (svix_id)
         CROSS JOIN LATERAL (
             SELECT * FROM webhook_queue
             WHERE svix_id = n.svix_id AND state = 'pending' AND next_attempt_at <= $2
             FOR UPDATE SKIP LOCKED
         ) AS q",
    )
    .bind(column(ids, SvixId::as_str))
    .bind(now);
    session.rows(query).await?.iter().map(parked).collect()
}

/// Keep deliveries that are to be processed; returns those that were.
pub(super) async fn enqueue(session: &mut Session, queued: &[Parked]) -> Result<HashSet<SvixId>> {
    let query = sql("INSERT INTO webhook_queue
             (svix_id, event_type, clerk_id, payload, state, attempts, next_attempt_at, received_at, trace_context,
              last_error)
         SELECT n.svix_id, n.event_type, n.clerk_id, n.payload, 'pending', n.attempts, n.next_attempt_at,
                n.received_at, n.trace_context, nullif(n.last_error, '')
         FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::timestamptz[], $6::timestamptz[], $7::text[],
                     $8::integer[], $9::text[])
              AS n (svix_id, event_type, clerk_id, payload, next_attempt_at, received_at, trace_context, attempts,
                    last_error)
         WHERE NOT EXISTS (SELECT FROM processed_webhooks AS p WHERE p.svix_id = n.svix_id)
         -- Not DO UPDATE, which would wait for whoever works on it.
         ON CONFLICT (svix_id) DO NOTHING
         RETURNING svix_id")
    .bind(column(queued, |queued| queued.svix_id.as_str()))
    .bind(column(queued, |queued| queued.event_type.as_deref()))
    .bind(column(queued, |queued| queued.clerk_id.as_ref().map(ClerkId::as_str)))
    .bind(column(queued, |queued| &queued.payload[..]))
    .bind(column(queued, |queued| queued.next_attempt_at))
    .bind(column(queued, |queued| queued.received_at))
    .bind(traces(queued, |queued| &queued.trace))
    .bind(column(queued, |queued| i32::try_from(queued.attempts).unwrap_or(i32::MAX)))
    .bind(column(queued, |queued| queued.last_error.as_str()));
    let rows = session.rows(query).await?;
    session.leaves_work();
    if rows.len() == queued.len() {
        return Ok(HashSet::new());
    }
    let inserted: HashSet<SvixId> = rows.iter().map(|row| svix_id(row, 0)).collect::<Result<_>>()?;
    let others: Vec<&Parked> = queued.iter().filter(|queued| !inserted.contains(&queued.svix_id)).collect();
    let ids: Vec<SvixId> = others.iter().map(|queued| queued.svix_id.clone()).collect();
    let recorded = recorded(session, &ids).await?;
    // All of a batch are due at the same time.
    if let Some(now) = others.first().and_then(|queued| queued.next_attempt_at) {
        let waiting: Vec<SvixId> = ids.into_iter().filter(|id| !recorded.contains(id)).collect();
        revive_dead(session, &waiting, now).await?;
    }
    Ok(recorded)
}

/// Which of these are recorded.
async fn recorded(session: &mut Session, ids: &[SvixId]) -> Result<HashSet<SvixId>> {
    let query = sql("SELECT p.svix_id FROM unnest($1::text[]) AS n (svix_id)
         CROSS JOIN LATERAL (SELECT svix_id FROM processed_webhooks WHERE svix_id = n.svix_id) AS p")
    .bind(column(ids, SvixId::as_str));
    session.rows(query).await?.iter().map(|row| svix_id(row, 0)).collect()
}

/// Make these due that are dead.
async fn revive_dead(session: &mut Session, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64> {
    let query =
        sql("UPDATE webhook_queue SET state = 'pending', attempts = 0, next_attempt_at = $2, dead_at = NULL
         WHERE ctid = ANY (ARRAY(
             SELECT q.ctid FROM unnest($1::text[]) AS n (svix_id)
             CROSS JOIN LATERAL (
                 SELECT ctid FROM webhook_queue WHERE svix_id = n.svix_id AND state = 'dead'
                 FOR UPDATE SKIP LOCKED
             ) AS q
         ))")
        .bind(column(ids, SvixId::as_str))
        .bind(now);
    session.execute(query).await
}

/// Make these due that are dead or put off; returns how many.
pub(super) async fn revive(session: &mut Session, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64> {
    let query = sql("UPDATE webhook_queue
         SET attempts = CASE state WHEN 'dead' THEN 0 ELSE attempts END, state = 'pending', next_attempt_at = $2,
             dead_at = NULL
         WHERE ctid = ANY (ARRAY(
             SELECT q.ctid FROM unnest($1::text[]) AS n (svix_id)
             CROSS JOIN LATERAL (
                 SELECT ctid FROM webhook_queue
                 WHERE svix_id = n.svix_id AND (state = 'dead' OR next_attempt_at > $2)
                 FOR UPDATE SKIP LOCKED
             ) AS q
         ))")
    .bind(column(ids, SvixId::as_str))
    .bind(now);
    session.leaves_work();
    session.execute(query).await
}

/// Try these later that wait.
pub(super) async fn postpone(session: &mut Session, ids: &[SvixId], until: DateTime<Utc>) -> Result<()> {
    let query = sql("UPDATE webhook_queue SET next_attempt_at = $2
         WHERE ctid = ANY (ARRAY(
             SELECT q.ctid FROM unnest($1::text[]) AS n (svix_id)
             CROSS JOIN LATERAL (
                 SELECT ctid FROM webhook_queue
                 WHERE svix_id = n.svix_id AND state = 'pending' AND next_attempt_at < $2
                 FOR UPDATE SKIP LOCKED
             ) AS q
         ))")
    .bind(column(ids, SvixId::as_str))
    .bind(until);
    session.execute(query).await?;
    Ok(())
}

/// How many wait, and how many lie.
pub(super) async fn depth(session: &mut Session) -> Result<QueueDepth> {
    let rows = session
        .rows(sql("SELECT
                 -- Each in an index of its own.
                 (SELECT count(*) FROM webhook_queue WHERE state = 'pending'),
                 (SELECT count(*) FROM webhook_queue WHERE state = 'dead'),
                 (SELECT min(next_attempt_at) FROM webhook_queue WHERE state = 'pending')"))
        .await?;
    let row = rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?;
    Ok(QueueDepth { pending: count(row, 0)?, dead: count(row, 1)?, first_due: get(row, 2)? })
}

/// One page of what is here, without bodies.
pub(super) async fn page(session: &mut Session, filter: &QueueFilter, limit: u32) -> Result<Vec<Queued>> {
    let all = "SELECT svix_id, event_type, clerk_id, state, attempts, next_attempt_at, received_at, last_error,
                      octet_length(payload)
               FROM webhook_queue
               WHERE svix_id > $1 AND ($2::text IS NULL OR event_type = $2) AND ($3::text IS NULL OR state = $3)
                 AND $5::text IS NULL
               ORDER BY svix_id
               LIMIT $4";
    // Few among many: they have an index of their own, which only this text allows to use.
    let dead = "SELECT svix_id, event_type, clerk_id, state, attempts, next_attempt_at, received_at, last_error,
                       octet_length(payload)
                FROM webhook_queue
                WHERE state = 'dead' AND svix_id > $1 AND ($2::text IS NULL OR event_type = $2) AND $3 = 'dead'
                  AND $5::text IS NULL
                ORDER BY svix_id
                LIMIT $4";
    let of_user =
        "SELECT svix_id, event_type, clerk_id, state, attempts, next_attempt_at, received_at, last_error,
                octet_length(payload)
         FROM webhook_queue
         WHERE clerk_id = $5 AND svix_id > $1 AND ($2::text IS NULL OR event_type = $2)
           AND ($3::text IS NULL OR state = $3)
         ORDER BY svix_id
         LIMIT $4";
    let query = match (&filter.clerk_id, filter.state) {
        (Some(_), _) => of_user,
        (None, Some(QueueState::Dead)) => dead,
        (None, _) => all,
    };
    let query = sql(query)
        .bind(filter.after.as_ref().map_or("", SvixId::as_str))
        .bind(filter.event_type.as_deref())
        .bind(filter.state.map(QueueState::name))
        .bind(i64::from(limit))
        .bind(filter.clerk_id.as_ref().map(ClerkId::as_str));
    session.rows(query).await?.iter().map(queued).collect()
}

/// Those of these that are here, without bodies.
pub(super) async fn these(session: &mut Session, ids: &[SvixId]) -> Result<Vec<Queued>> {
    let query = sql(
        "SELECT q.svix_id, q.event_type, q.clerk_id, q.state, q.attempts, q.next_attempt_at, q.received_at,
                q.last_error, octet_length(q.payload)
         FROM unnest($1::text[]) AS n (svix_id)
         CROSS JOIN LATERAL (SELECT * FROM webhook_queue WHERE svix_id = n.svix_id) AS q",
    )
    .bind(column(ids, SvixId::as_str));
    session.rows(query).await?.iter().map(queued).collect()
}

/// One delivery, whole.
pub(super) async fn one(session: &mut Session, id: &SvixId) -> Result<Option<Parked>> {
    let query = sql(
        "SELECT svix_id, event_type, clerk_id, payload, attempts, next_attempt_at, received_at, last_error,
                trace_context, dead_at
         FROM webhook_queue WHERE svix_id = $1",
    )
    .bind(id.as_str());
    session.rows(query).await?.first().map(parked).transpose()
}

fn parked(row: &PgRow) -> Result<Parked> {
    Ok(Parked {
        svix_id: svix_id(row, 0)?,
        event_type: get(row, 1)?,
        clerk_id: get::<Option<String>>(row, 2)?.and_then(|id| ClerkId::new(&USER, id)),
        payload: get::<Vec<u8>>(row, 3)?.into(),
        attempts: get::<i32>(row, 4)?.unsigned_abs(),
        next_attempt_at: get(row, 5)?,
        received_at: get(row, 6)?,
        last_error: get::<Option<String>>(row, 7)?.unwrap_or_default(),
        trace: TraceContext::kept(get(row, 8)?),
        dead_at: get(row, 9)?,
    })
}

fn queued(row: &PgRow) -> Result<Queued> {
    Ok(Queued {
        svix_id: svix_id(row, 0)?,
        event_type: get(row, 1)?,
        clerk_id: get::<Option<String>>(row, 2)?.and_then(|id| ClerkId::new(&USER, id)),
        state: QueueState::named(get(row, 3)?).ok_or_else(|| StoreError::new(Trouble::Broken))?,
        attempts: get::<i32>(row, 4)?.unsigned_abs(),
        next_attempt_at: get(row, 5)?,
        received_at: get(row, 6)?,
        last_error: get::<Option<String>>(row, 7)?.unwrap_or_default(),
        bytes: u64::from(get::<i32>(row, 8)?.unsigned_abs()),
    })
}
