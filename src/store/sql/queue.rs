//! Operations of a transaction on deliveries: `webhook_queue` and `processed_webhooks`.
//!
//! A worker holds the lock on a delivery's row until its transaction ends, and others skip locked rows. So no worker waits, and
//! no delivery is processed twice at once. The rows of a dead process are free as soon as the server notices that its
//! connection is closed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::RangeInclusive,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Row, SqlSession, Statement, Value, batch, batch::Columns, ledger, statements, values};
use crate::{
    model::{ClerkId, Outcome, SvixId},
    store::{Inbox, Parked, Record, Result, Waiting},
    telemetry::TraceContext,
};

/// The rows of deliveries, as [`rows_of`] builds them.
macro_rules! given {
    () => {
        "WITH n AS (
            SELECT * FROM {batch $1 AS n: svix_id text, event_type text, kind text, clerk_id text, payload bytes, state text, attempts bigint, next_attempt_at time, received_at time, last_error text, trace_context text, dead_at time}
        )"
    };
}

/// Write deliveries, together with another change.
macro_rules! keep {
    ($beside:literal, $conflict:literal) => {
        concat!(
            "{postgres|sqlite ", given!(), $beside, "}
        INSERT INTO webhook_queue{postgres|sqlite  AS q}
            (svix_id, event_type, kind, clerk_id, payload, state, attempts, next_attempt_at, received_at, last_error, trace_context,
             dead_at{mysql , token})
        {mysql ", given!(), "}
        SELECT n.svix_id, n.event_type, n.kind, n.clerk_id, n.payload, n.state, n.attempts, n.next_attempt_at, n.received_at,
               nullif(n.last_error, ''), n.trace_context, n.dead_at{mysql , {token}}
        FROM n
        WHERE ",
            $conflict
        )
    };
}

/// The records of deliveries, as [`records_of`] builds them.
macro_rules! given_records {
    () => {
        "n AS (
            SELECT * FROM {batch $1 AS n: svix_id text, event_type text, outcome text, kind text, clerk_id text, event_at time, processed_at time}
        ){postgres , unparked AS (
            -- A worker that has claimed the row may be waiting for this transaction, and removes the row itself.
            DELETE FROM webhook_queue WHERE svix_id {in SELECT q.svix_id FROM n {claim webhook_queue AS q WHERE q.svix_id = n.svix_id}}
        )}"
    };
}

macro_rules! insert_records {
    () => {
        "INSERT INTO processed_webhooks (svix_id, event_type, outcome, kind, clerk_id, event_at, processed_at{mysql , token})
        SELECT n.svix_id, n.event_type, n.outcome, n.kind, n.clerk_id, n.event_at, n.processed_at{mysql , {token}}
        FROM {postgres|sqlite n}{mysql {batch $1 AS n: svix_id text, event_type text, outcome text, kind text, clerk_id text, event_at time, processed_at time}}
        WHERE true
        -- If another transaction is recording the same id, this waits for it, and then does nothing.
        ON CONFLICT (svix_id) DO NOTHING
        {returning svix_id}"
    };
}

/// The beginning of a statement that records deliveries and does more. The second value is free.
pub(super) const RECORDED_WITH: &str =
    concat!("WITH ", given_records!(), ", recorded AS (\n        ", insert_records!(), ")");

statements! {
    // The first delivery is taken whatever its size. Other workers take other rows.
    CLAIM = "SELECT q.svix_id, q.event_type, q.kind, q.clerk_id, q.payload, q.attempts, q.next_attempt_at, q.received_at,
               q.last_error, q.trace_context, q.dead_at
        FROM (
            SELECT due.*, sum(due.bytes) OVER ({mysql ORDER BY due.next_attempt_at, due.svix_id }ROWS UNBOUNDED PRECEDING) - due.bytes AS ahead
            FROM (
                SELECT {postgres *}{sqlite svix_id}{mysql svix_id, next_attempt_at}, octet_length(payload) AS bytes
                FROM webhook_queue{mysql  FORCE INDEX (webhook_queue_due)}
                WHERE state = 'pending' AND next_attempt_at <= $1 AND next_attempt_at >= $4
                ORDER BY next_attempt_at
                LIMIT $2{postgres|mysql  FOR UPDATE SKIP LOCKED}
            ) AS due
        ) AS {postgres q}{sqlite|mysql due {lookup webhook_queue AS q WHERE q.svix_id = due.svix_id}}
        WHERE ahead < $3{mysql 
        ORDER BY due.next_attempt_at, due.svix_id}";

    CLAIM_THESE = "SELECT q.svix_id, q.event_type, q.kind, q.clerk_id, q.payload, q.attempts, q.next_attempt_at, q.received_at,
               q.last_error, q.trace_context, q.dead_at
        FROM {batch $1 AS n: id text} {claim webhook_queue AS q WHERE q.svix_id = n.id AND q.state = 'pending' AND q.next_attempt_at <= $2}";

    // A conflict is ignored, because an update would wait for the worker that has claimed the delivery.
    ENQUEUE = keep!("", "(SELECT p.svix_id FROM processed_webhooks AS p WHERE p.svix_id = n.svix_id) IS NULL
        {mysql AND NOT EXISTS (SELECT 1 FROM webhook_queue AS w WHERE w.svix_id = n.svix_id)}
        ON CONFLICT (svix_id) DO NOTHING
        {returning svix_id}{mysql ;
        SELECT q.svix_id FROM {batch $1 AS n: svix_id text} {lookup webhook_queue AS q WHERE q.svix_id = n.svix_id}
        WHERE q.token = {token}}");

    RECORDED = "SELECT p.svix_id FROM {batch $1 AS n: id text} {lookup processed_webhooks AS p WHERE p.svix_id = n.id}";

    REVIVE = "UPDATE webhook_queue
        SET attempts = CASE state WHEN 'dead' THEN 0 ELSE attempts END, state = 'pending', next_attempt_at = $2,
            dead_at = NULL
        WHERE svix_id {in SELECT q.svix_id FROM {batch $1 AS n: id text} {claim webhook_queue AS q WHERE q.svix_id = n.id AND (q.state = 'dead' OR $3 AND q.next_attempt_at > $2)}}";

    POSTPONE = "UPDATE webhook_queue SET next_attempt_at = $2
        WHERE svix_id {in SELECT q.svix_id FROM {batch $1 AS n: id text} {claim webhook_queue AS q WHERE q.svix_id = n.id AND q.state = 'pending' AND q.next_attempt_at < $2}}";

    RECORD = concat!("{postgres|sqlite WITH ", given_records!(), "}
        ", insert_records!(), "{mysql ;
        SELECT p.svix_id FROM {batch $1 AS n: svix_id text} {lookup processed_webhooks AS p WHERE p.svix_id = n.svix_id}
        WHERE p.token = {token}}");

    UNPARK = "{sqlite DELETE FROM webhook_queue WHERE svix_id {in SELECT n.id FROM {batch $1 AS n: id text}}}{mysql
        DELETE FROM webhook_queue
        WHERE svix_id {in SELECT q.svix_id FROM {batch $1 AS n: id text} {claim webhook_queue AS q WHERE q.svix_id = n.id}}}";

    SETTLE = "UPDATE processed_webhooks SET outcome = $2 WHERE svix_id {in SELECT n.id FROM {batch $1 AS n: id text}}";

    WAITING = "SELECT q.svix_id, q.attempts, q.received_at
        FROM {batch $1 AS n: id text} {lookup webhook_queue AS q WHERE q.svix_id = n.id}";

    UNRECORD = "{sqlite|mysql DELETE FROM processed_webhooks WHERE svix_id {in SELECT n.id FROM {batch $1 AS n: id text}}}";

    // `received_at` keeps the time of the first arrival.
    PARK = keep!("{postgres , unrecorded AS (
            DELETE FROM processed_webhooks WHERE svix_id {in SELECT svix_id FROM n}
        )}", "true
        ON CONFLICT (svix_id) DO UPDATE
        SET event_type = excluded.event_type, kind = excluded.kind, clerk_id = excluded.clerk_id, payload = excluded.payload,
            state = excluded.state, attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at,
            last_error = excluded.last_error, dead_at = excluded.dead_at,
            trace_context = coalesce(excluded.trace_context, {postgres|sqlite q}{mysql webhook_queue}.trace_context)");

    // Both sides are bytes, because a body need not be text. The second pattern is a backslash and a `u`.
    UNATTRIBUTED = "SELECT q.svix_id, q.payload FROM webhook_queue AS q
        -- A dead delivery may be about an object that is removed with this user. A pending one is found to be stale at its next attempt.
        WHERE (q.clerk_id IS NULL OR q.state = 'dead' AND q.kind <> 'user')
          AND {mysql (locate(unhex('00'), q.payload) > 0 OR locate(unhex('5c75'), q.payload) > 0
               OR EXISTS (SELECT 1 FROM {batch $1 AS n: id text} WHERE locate(CAST(n.id AS binary), q.payload) > 0))}{postgres (position('\\x00'::bytea IN q.payload) > 0
               OR position('\\x5c75'::bytea IN q.payload) > 0
               OR EXISTS (
                   SELECT 1 FROM {batch $1 AS n: id text} WHERE position(convert_to(n.id, 'UTF8') IN q.payload) > 0
               ))}{sqlite (instr(q.payload, x'00') > 0
               OR instr(q.payload, x'5c75') > 0
               OR EXISTS (
                   SELECT 1 FROM {batch $1 AS n: id text} WHERE instr(q.payload, CAST(n.id AS BLOB)) > 0
               ))}";

    FORGET_PARKED = "{mysql DELETE FROM webhook_queue
        WHERE svix_id {in SELECT q.svix_id FROM {batch $1 AS n: kind text, clerk_id text} {claim webhook_queue AS q WHERE q.clerk_id = n.clerk_id AND q.kind = n.kind AND q.state = 'pending'}};
        DELETE FROM webhook_queue
        WHERE svix_id {in SELECT q.svix_id FROM {batch $1 AS n: kind text, clerk_id text} {lookup webhook_queue AS q WHERE q.clerk_id = n.clerk_id AND q.kind = n.kind AND q.state = 'dead'}} AND state = 'dead';
        DELETE FROM webhook_queue WHERE svix_id {in SELECT n.id FROM {batch $2 AS n: id text}}}{sqlite DELETE FROM webhook_queue
        WHERE svix_id {in SELECT q.svix_id FROM {batch $1 AS n: kind text, clerk_id text} {lookup webhook_queue AS q WHERE q.clerk_id = n.clerk_id AND q.kind = n.kind}
            UNION ALL SELECT n.id FROM {batch $2 AS n: id text}}}";

    FORGET = "{postgres WITH pending AS (
            -- A worker that has claimed one waits for the lock on the user's register, and then finds the user deleted.
            DELETE FROM webhook_queue
            WHERE svix_id {in SELECT q.svix_id FROM {batch $1 AS n: kind text, clerk_id text} {claim webhook_queue AS q WHERE q.clerk_id = n.clerk_id AND q.kind = n.kind AND q.state = 'pending'}}
        ),
        dead AS (
            -- No worker claims dead deliveries, so this waits for any lock on them.
            DELETE FROM webhook_queue
            WHERE svix_id {in SELECT q.svix_id FROM {batch $1 AS n: kind text, clerk_id text} {lookup webhook_queue AS q WHERE q.clerk_id = n.clerk_id AND q.kind = n.kind AND q.state = 'dead'}} AND state = 'dead'
        ),
        named AS (
            DELETE FROM webhook_queue WHERE svix_id {in SELECT n.id FROM {batch $2 AS n: id text}}
        )
        }DELETE FROM audit_actors
        WHERE audit_id {in SELECT l.id FROM {batch $1 AS n: kind text, clerk_id text} {lookup audit_log AS l WHERE l.clerk_id = n.clerk_id AND l.kind = n.kind}}";
}

#[async_trait]
impl<S: SqlSession + ?Sized> Inbox for S {
    async fn claim(
        &mut self,
        due: RangeInclusive<DateTime<Utc>>,
        limit: u32,
        bytes: u64,
    ) -> Result<Vec<Parked>> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.rows(&CLAIM, values![*due.end(), limit, bytes, *due.start()]).await?.iter().map(parked).collect()
    }

    async fn claim_these(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<Vec<Parked>> {
        let rows = self.rows(&CLAIM_THESE, values![batch(ids).text(SvixId::as_str), now]).await?;
        rows.iter().map(parked).collect()
    }

    async fn enqueue(&mut self, queued: &[Parked]) -> Result<HashSet<SvixId>> {
        if queued.is_empty() {
            return Ok(HashSet::new());
        }
        self.leaves_work();
        let kept = ids_of(&self.rows(&ENQUEUE, &[rows_of(queued)]).await?)?;
        if kept.len() == queued.len() {
            return Ok(HashSet::new());
        }
        let mut others: Vec<&Parked> =
            queued.iter().filter(|queued| !kept.contains(&queued.svix_id)).collect();
        let ids = batch(&others).text(|other| other.svix_id.as_str());
        let recorded = ids_of(&self.rows(&RECORDED, values![ids]).await?)?;
        others.retain(|other| !recorded.contains(&other.svix_id));
        // All deliveries of a batch are due at the same time.
        if let Some(now) = others.first().and_then(|other| other.next_attempt_at) {
            let ids = batch(&others).text(|other| other.svix_id.as_str());
            self.execute(&REVIVE, values![ids, now, false]).await?;
        }
        Ok(recorded)
    }

    async fn revive(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64> {
        if ids.is_empty() {
            return Ok(0);
        }
        self.leaves_work();
        self.execute(&REVIVE, values![batch(ids).text(SvixId::as_str), now, true]).await
    }

    async fn postpone(&mut self, ids: &[SvixId], until: DateTime<Utc>) -> Result<()> {
        if !ids.is_empty() {
            self.leaves_work();
            self.execute(&POSTPONE, values![batch(ids).text(SvixId::as_str), until]).await?;
        }
        Ok(())
    }

    async fn record(&mut self, records: &[Record<'_>]) -> Result<HashSet<SvixId>> {
        let rows = values![records_of(records)];
        let fresh = ids_of(&self.rows(&RECORD, rows).await?)?;
        // A body may hold more personal data than the synced columns.
        remove(self, &UNPARK, rows).await?;
        Ok(fresh)
    }

    async fn settle(&mut self, outcomes: &[(SvixId, Outcome)]) -> Result<()> {
        // There is rarely more than one outcome.
        let mut ids: BTreeMap<&str, Vec<&SvixId>> = BTreeMap::new();
        for (id, outcome) in outcomes {
            ids.entry(outcome.name()).or_default().push(id);
        }
        for (outcome, ids) in ids {
            self.execute(&SETTLE, values![batch(&ids).text(|id| id.as_str()), outcome]).await?;
        }
        Ok(())
    }

    async fn waiting(&mut self, ids: &[SvixId]) -> Result<HashMap<SvixId, Waiting>> {
        let rows = self.rows(&WAITING, values![batch(ids).text(SvixId::as_str)]).await?;
        let waiting =
            |row: &Row| Ok((row.get(0)?, Waiting { attempts: row.get(1)?, received_at: row.get(2)? }));
        rows.iter().map(waiting).collect()
    }

    async fn park(&mut self, parked: &[Parked]) -> Result<()> {
        if !parked.is_empty() {
            self.leaves_work();
            let ids = batch(parked).text(|parked| parked.svix_id.as_str());
            self.execute(&UNRECORD, values![ids]).await?;
            self.execute(&PARK, &[rows_of(parked)]).await?;
        }
        Ok(())
    }

    async fn unattributed(&mut self, ids: &[ClerkId]) -> Result<Vec<(SvixId, Bytes)>> {
        let rows = self.rows(&UNATTRIBUTED, values![batch(ids).text(ClerkId::as_str)]).await?;
        rows.iter().map(|row| Ok((row.get(0)?, row.get::<Vec<u8>>(1)?.into()))).collect()
    }

    async fn forget(&mut self, ids: &[ClerkId], deliveries: &[SvixId]) -> Result<()> {
        let values = values![ledger::ids_of(ids), batch(deliveries).text(SvixId::as_str)];
        remove(self, &FORGET_PARKED, values).await?;
        remove(self, &FORGET, values).await
    }
}

/// Run a statement that removes rows with personal data.
async fn remove(
    session: &mut (impl SqlSession + ?Sized),
    statement: &Statement,
    values: &[Value<'_>],
) -> Result<()> {
    if session.execute(statement, values).await? > 0 {
        session.removed_personal_data();
    }
    Ok(())
}

fn rows_of(parked: &[Parked]) -> Value<'_> {
    batch(parked)
        .text(|parked| parked.svix_id.as_str())
        .text(|parked| parked.event_type.as_deref())
        .text(Parked::kind)
        .text(|parked| parked.clerk_id.as_ref().map(ClerkId::as_str))
        .bytes(|parked| &parked.payload)
        .text(|parked| parked.state().name())
        .int(|parked| parked.attempts.into())
        .time(|parked| parked.next_attempt_at)
        .time(|parked| parked.received_at)
        .text(|parked| parked.last_error.as_str())
        .text(|parked| parked.trace.as_str())
        .time(|parked| parked.dead_at)
        .into()
}

/// A delivery, from the columns in the order of `CLAIM`.
pub(super) fn parked(row: &Row) -> Result<Parked> {
    Ok(Parked {
        svix_id: row.get(0)?,
        event_type: row.maybe(1)?,
        clerk_id: row.maybe_id(2)?,
        payload: row.get::<Vec<u8>>(4)?.into(),
        attempts: row.get(5)?,
        next_attempt_at: row.maybe(6)?,
        received_at: row.get(7)?,
        last_error: row.maybe(8)?.unwrap_or_default(),
        trace: TraceContext::kept(row.maybe(9)?),
        dead_at: row.maybe(10)?,
    })
}

fn ids_of(rows: &[Row]) -> Result<HashSet<SvixId>> {
    rows.iter().map(|row| row.get(0)).collect()
}

/// The batch for a statement that records deliveries.
pub(super) fn records_of<'a>(records: &'a [Record<'_>]) -> Columns<'a, Record<'a>> {
    batch(records)
        .text(|record| record.svix_id.as_str())
        .text(|record| record.event_type)
        .text(|record| record.outcome.name())
        .text(|record| record.clerk_id.map(|id| id.entity().kind))
        .text(|record| record.clerk_id.map(ClerkId::as_str))
        .time(|record| record.event_at)
        .time(|record| record.processed_at)
}
