//! The verbs of a transaction, one statement each, for all rows of a batch at once.

use crate::entity::USER;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::{Session, erasure, get, queue, removal, sequences::Sequences, sight, sql};
use crate::{
    model::{AuditEntry, ClerkId, FieldSet, Holds, Outcome, Profile, Receipt, Register, SvixId, User, Value},
    store::{
        Address, Advance, Outgoing, Parked, Record, Result, RowFate, StoreError, Transaction, Trouble,
        Waiting, Way,
        sql::{ledger, objects, outbox},
    },
    telemetry::TraceContext,
};

/// A transaction of PostgreSQL.
pub(super) struct PostgresTransaction {
    session: Session,
    removal: Arc<removal::Statements>,
    sequences: Arc<Sequences>,
}

impl PostgresTransaction {
    pub(super) fn new(
        session: Session,
        removal: Arc<removal::Statements>,
        sequences: Arc<Sequences>,
    ) -> Self {
        Self { session, removal, sequences }
    }
}

#[async_trait]
impl Transaction for PostgresTransaction {
    async fn claim(&mut self, now: DateTime<Utc>, limit: u32, bytes: u64) -> Result<Vec<Parked>> {
        queue::claim(&mut self.session, now, limit, bytes).await
    }

    async fn claim_these(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<Vec<Parked>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        queue::claim_these(&mut self.session, ids, now).await
    }

    async fn enqueue(&mut self, queued: &[Parked]) -> Result<HashSet<SvixId>> {
        if queued.is_empty() {
            return Ok(HashSet::new());
        }
        queue::enqueue(&mut self.session, queued).await
    }

    async fn revive(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64> {
        if ids.is_empty() {
            return Ok(0);
        }
        queue::revive(&mut self.session, ids, now).await
    }

    async fn postpone(&mut self, ids: &[SvixId], until: DateTime<Utc>) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        self.session.leaves_work();
        queue::postpone(&mut self.session, ids, until).await
    }

    async fn record(&mut self, records: &[Record<'_>]) -> Result<HashSet<SvixId>> {
        if records.is_empty() {
            return Ok(HashSet::new());
        }
        let query = sql("WITH fresh AS (
                 INSERT INTO processed_webhooks (svix_id, event_type, outcome, clerk_id, event_at, processed_at)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[])
                 -- Waits for whoever is recording the same id, and then yields to them.
                 ON CONFLICT (svix_id) DO NOTHING
                 RETURNING svix_id
             ), unparked AS (
                 DELETE FROM webhook_queue WHERE ctid = ANY (ARRAY(
                     SELECT q.ctid FROM unnest($1::text[]) AS n (svix_id)
                     CROSS JOIN LATERAL (
                         SELECT ctid FROM webhook_queue WHERE svix_id = n.svix_id
                         -- Whoever works on it may be waiting for us, and removes it.
                         FOR UPDATE SKIP LOCKED
                     ) AS q
                 ))
             )
             SELECT svix_id FROM fresh")
        .bind(column(records, |record| record.svix_id.as_str()))
        .bind(column(records, |record| record.event_type))
        .bind(column(records, |record| record.outcome.name()))
        .bind(column(records, |record| record.clerk_id.map(ClerkId::as_str)))
        .bind(column(records, |record| record.event_at))
        .bind(column(records, |record| record.processed_at));
        self.session.rows(query).await?.iter().map(|row| svix_id(row, 0)).collect()
    }

    async fn settle(&mut self, outcomes: &[(SvixId, Outcome)]) -> Result<()> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let query = sql("UPDATE processed_webhooks AS p SET outcome = n.outcome
             FROM unnest($1::text[], $2::text[]) AS n (svix_id, outcome)
             WHERE p.svix_id = n.svix_id")
        .bind(column(outcomes, |(id, _)| id.as_str()))
        .bind(column(outcomes, |(_, outcome)| outcome.name()));
        self.session.execute(query).await?;
        Ok(())
    }

    async fn registers(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        ledger::registers(&mut self.session, ids).await
    }

    async fn hold(&mut self, id: &ClerkId) -> Result<Register> {
        ledger::hold(&mut self.session, id).await
    }

    async fn advance(&mut self, registers: &[Advance]) -> Result<()> {
        ledger::advance(&mut self.session, registers).await
    }

    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>> {
        ledger::addresses(&mut self.session, addresses).await
    }

    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()> {
        ledger::release_addresses(&mut self.session, ids).await
    }

    async fn users(&mut self, ids: &[ClerkId], fields: FieldSet) -> Result<HashMap<ClerkId, User>> {
        objects::load(&mut self.session, &USER, ids, fields).await
    }

    async fn insert_users(&mut self, users: &[User], fields: FieldSet) -> Result<()> {
        let inserted = objects::insert(&mut self.session, users, fields).await;
        self.sequences.checked(&mut self.session, "users", inserted).await
    }

    async fn update_users(&mut self, users: &[User], fields: FieldSet) -> Result<()> {
        objects::update(&mut self.session, users, fields).await
    }

    async fn hidden(&mut self) -> Result<Option<StoreError>> {
        let hidden = sight::hidden(&mut self.session).await?;
        Ok((!hidden.is_empty()).then(|| sight::explained(&hidden)))
    }

    async fn erase_users(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        removal::erase(&mut self.session, &self.removal, ids, ways, at).await
    }

    async fn mark_users(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
        removal::mark(&mut self.session, marks).await
    }

    async fn unmark_users(&mut self, marks: &[(ClerkId, DateTime<Utc>)]) -> Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
        removal::unmark(&mut self.session, marks).await
    }

    async fn receipts(&mut self, receipts: &[Receipt]) -> Result<()> {
        erasure::write_receipts(&mut self.session, receipts).await
    }

    async fn close_receipts(&mut self, ids: &[ClerkId], destination: &str, at: DateTime<Utc>) -> Result<()> {
        erasure::close_receipts(&mut self.session, ids, destination, at).await
    }

    async fn forget(&mut self, ids: &[ClerkId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let query = sql("WITH unparked AS (
                 DELETE FROM webhook_queue AS q
                 USING unnest($1::text[]) AS n (clerk_id)
                 CROSS JOIN LATERAL (
                     SELECT svix_id FROM webhook_queue WHERE clerk_id = n.clerk_id AND state = 'pending'
                     -- Whoever works on it waits for our lock on the user's register, and will find it deleted.
                     FOR UPDATE SKIP LOCKED
                 ) AS free
                 WHERE q.svix_id = free.svix_id
             ),
             unburied AS (
                 -- Nobody works on these, so whoever holds one is waited for.
                 DELETE FROM webhook_queue AS q
                 USING unnest($1::text[]) AS n (clerk_id)
                 WHERE q.clerk_id = n.clerk_id AND q.state = 'dead'
             )
             DELETE FROM audit_actors AS a
             USING unnest($1::text[]) AS n (clerk_id)
             CROSS JOIN LATERAL (SELECT id FROM audit_log WHERE clerk_id = n.clerk_id) AS l
             WHERE a.audit_id = l.id")
        .bind(texts(ids));
        self.session.execute(query).await?;
        Ok(())
    }

    async fn unattributed(&mut self, ids: &[ClerkId]) -> Result<Vec<(SvixId, Bytes)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let query = sql("SELECT q.svix_id, q.payload FROM webhook_queue AS q
             WHERE q.clerk_id IS NULL
               AND (position('\\x00'::bytea IN q.payload) > 0
                    -- A backslash and a u.
                    OR position('\\x5c75'::bytea IN q.payload) > 0
                    OR EXISTS (
                        SELECT FROM unnest($1::text[]) AS n (clerk_id)
                        WHERE position(convert_to(n.clerk_id, 'UTF8') IN q.payload) > 0
                    ))")
        .bind(texts(ids));
        let rows = self.session.rows(query).await?;
        rows.iter().map(|row| Ok((svix_id(row, 0)?, get::<Vec<u8>>(row, 1)?.into()))).collect()
    }

    async fn discard(&mut self, ids: &[SvixId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let query = sql("DELETE FROM webhook_queue AS q USING unnest($1::text[]) AS n (svix_id)
             WHERE q.svix_id = n.svix_id")
        .bind(column(ids, SvixId::as_str));
        self.session.execute(query).await?;
        Ok(())
    }

    async fn waiting(&mut self, ids: &[SvixId]) -> Result<HashMap<SvixId, Waiting>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let query = sql("SELECT q.svix_id, q.attempts, q.received_at FROM unnest($1::text[]) AS n (svix_id)
             CROSS JOIN LATERAL (SELECT * FROM webhook_queue WHERE svix_id = n.svix_id) AS q")
        .bind(column(ids, SvixId::as_str));
        let rows = self.session.rows(query).await?;
        let waiting = |row| {
            let attempts = get::<i32>(row, 1)?.unsigned_abs();
            Ok((svix_id(row, 0)?, Waiting { attempts, received_at: get(row, 2)? }))
        };
        rows.iter().map(waiting).collect()
    }

    async fn park(&mut self, parked: &[Parked]) -> Result<()> {
        if parked.is_empty() {
            return Ok(());
        }
        let query = sql("WITH unrecorded AS (
                 DELETE FROM processed_webhooks AS p USING unnest($1::text[]) AS n (svix_id)
                 WHERE p.svix_id = n.svix_id
             )
             INSERT INTO webhook_queue AS q
                 (svix_id, event_type, clerk_id, payload, state, attempts, next_attempt_at, received_at, last_error,
                  trace_context, dead_at)
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::integer[],
                                  $7::timestamptz[], $8::timestamptz[], $9::text[], $10::text[], $11::timestamptz[])
             ON CONFLICT (svix_id) DO UPDATE
             SET event_type = excluded.event_type, clerk_id = excluded.clerk_id, payload = excluded.payload,
                 state = excluded.state, attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at,
                 last_error = excluded.last_error, dead_at = excluded.dead_at,
                 trace_context = coalesce(excluded.trace_context, q.trace_context)")
        .bind(column(parked, |parked| parked.svix_id.as_str()))
        .bind(column(parked, |parked| parked.event_type.as_deref()))
        .bind(column(parked, |parked| parked.clerk_id.as_ref().map(ClerkId::as_str)))
        .bind(column(parked, |parked| &parked.payload[..]))
        .bind(column(parked, |parked| parked.state().name()))
        .bind(column(parked, |parked| i32::try_from(parked.attempts).unwrap_or(i32::MAX)))
        .bind(column(parked, |parked| parked.next_attempt_at))
        .bind(column(parked, |parked| parked.received_at))
        .bind(column(parked, |parked| parked.last_error.as_str()))
        .bind(traces(parked, |parked| &parked.trace))
        .bind(column(parked, |parked| parked.dead_at));
        self.session.leaves_work();
        self.session.execute(query).await?;
        Ok(())
    }

    async fn tell(&mut self, messages: &[Outgoing]) -> Result<()> {
        let told = outbox::tell(&mut self.session, messages).await;
        self.sequences.checked(&mut self.session, "outbox", told).await
    }

    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>> {
        outbox::recall(&mut self.session, ids, now).await
    }

    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let lines = ledger::audit(&mut self.session, entries).await;
        let lines = self.sequences.checked(&mut self.session, "audit_log", lines).await?;
        ledger::attribute(&mut self.session, entries, &lines).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.session.commit().await
    }

    async fn rollback(self: Box<Self>) {
        self.session.rollback().await;
    }
}

/// One column of a batch.
pub(super) fn column<'q, T, V>(rows: &'q [T], value: impl Fn(&'q T) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}

/// The column of traces. Mostly nobody traces: then it is empty, and `unnest` fills it up with NULL.
pub(super) fn traces<T>(rows: &[T], trace: impl Fn(&T) -> &TraceContext) -> Vec<Option<&str>> {
    let traces: Vec<Option<&str>> = rows.iter().map(|row| trace(row).as_str()).collect();
    if traces.iter().any(Option::is_some) { traces } else { Vec::new() }
}

pub(super) fn texts(ids: &[ClerkId]) -> Vec<&str> {
    column(ids, ClerkId::as_str)
}

pub(super) fn clerk_id(row: &PgRow, index: usize) -> Result<ClerkId> {
    ClerkId::new(&USER, get::<String>(row, index)?).ok_or_else(|| StoreError::new(Trouble::Broken))
}

pub(super) fn svix_id(row: &PgRow, index: usize) -> Result<SvixId> {
    SvixId::new(get::<String>(row, index)?).ok_or_else(|| StoreError::new(Trouble::Broken))
}

/// Of the columns in the order of [`Transaction::users`].
pub(super) fn user(row: &PgRow) -> Result<User> {
    let mut profile = Profile::default();
    for (index, field) in USER.fields().enumerate() {
        let index = index + 1;
        let value = match field.holds {
            Holds::Bool => get::<Option<bool>>(row, index)?.map(Value::Bool),
            Holds::Json => get::<Option<String>>(row, index)?.map(Value::Json),
            Holds::Time => get::<Option<DateTime<Utc>>>(row, index)?.map(Value::Time),
            Holds::Text => get::<Option<String>>(row, index)?.map(Value::Text),
        };
        profile.set(field, value.unwrap_or_default());
    }
    Ok(User {
        clerk_id: clerk_id(row, 0)?,
        profile,
        created_at: get(row, 16)?,
        updated_at: get(row, 17)?,
        synced_at: get(row, 18)?,
        deleted_at: get(row, 19)?,
    })
}
