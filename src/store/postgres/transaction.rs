//! The verbs of a transaction, one statement each, for all rows of a batch at once.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{
    Postgres as Pg,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use super::{
    Session, erasure, error::may_be_our_rights, get, outbox, queue, removal, sequences::Sequences, sight, sql,
};
use crate::{
    model::{
        Actor, AuditEntry, ClerkId, Field, FieldSet, Outcome, Profile, Receipt, Register, SvixId, User,
        Value, Version,
    },
    store::{
        Address, Advance, Outgoing, Parked, Record, Result, RowFate, StoreError, Transaction, Trouble,
        Waiting, Way,
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

    /// Write rows of `users` as a whole; gives what the statement returns of each.
    async fn write_users(&mut self, query: Query<'_, Pg, PgArguments>) -> Result<Vec<PgRow>> {
        match self.session.rows_of_users(query).await {
            Err(error) if may_be_our_rights(&error) => {
                // The transaction is lost anyway; its end finds a new one, in which nothing was done.
                self.session.run("ROLLBACK AND CHAIN").await?;
                Err(self.whose_rights(error).await?)
            }
            written => written,
        }
    }

    /// A right was missing in a statement on `users`, and the server did not say for what: for the table itself, which is
    /// ours, or for something of the application's that a constraint, a default or a policy needs.
    async fn whose_rights(&mut self, error: StoreError) -> Result<StoreError> {
        let query = sql("SELECT bool_and(has_table_privilege(quote_ident($1) || '.users', needed))
             FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed")
        .bind(&self.sequences.schema);
        let rows = self.session.rows(query).await?;
        let row = rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?;
        Ok(if get(row, 0)? { error } else { StoreError { trouble: Trouble::Broken, ..error } })
    }

    /// Who caused lines of the audit trail. A statement of its own, because joining the lines just written to their
    /// actors inside the server grows with the square of the batch.
    async fn attribute(&mut self, actors: &[(i64, &Actor)]) -> Result<()> {
        if actors.is_empty() {
            return Ok(());
        }
        let query = sql("INSERT INTO audit_actors (audit_id, ip, user_agent)
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[])")
        .bind(column(actors, |(line, _)| *line))
        .bind(column(actors, |(_, actor)| actor.ip.as_deref()))
        .bind(column(actors, |(_, actor)| actor.user_agent.as_deref()));
        self.session.execute(query).await?;
        Ok(())
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
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        // One index search an id, in the order of the ids, so that two transactions never wait for each other.
        let query =
            sql("SELECT e.clerk_id, e.version, e.event_at, e.tie, e.deleted, e.held_until, e.held_since
             FROM unnest($1::text[]) AS n (clerk_id)
             CROSS JOIN LATERAL (
                 SELECT * FROM entity_versions
                 WHERE kind = 'user' AND clerk_id = n.clerk_id
                 FOR UPDATE
             ) AS e")
            .bind(texts(ids));
        self.session.rows(query).await?.iter().map(|row| Ok((clerk_id(row, 0)?, register(row)?))).collect()
    }

    async fn hold(&mut self, id: &ClerkId) -> Result<Register> {
        let blank = sql("INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted)
             -- Older than any event.
             VALUES ('user', $1, $2, $2, '', false)
             ON CONFLICT (kind, clerk_id) DO NOTHING")
        .bind(id.as_str())
        .bind(i64::MIN);
        self.session.execute(blank).await?;
        let mut found = self.registers(std::slice::from_ref(id)).await?;
        found.remove(id).ok_or_else(|| StoreError::new(Trouble::Raced))
    }

    async fn advance(&mut self, registers: &[Advance]) -> Result<()> {
        if registers.is_empty() {
            return Ok(());
        }
        let query = sql("INSERT INTO entity_versions AS e
                 (kind, clerk_id, version, event_at, tie, deleted, held_until, held_since)
             SELECT 'user', n.*
             FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::boolean[], $6::timestamptz[],
                         $7::timestamptz[]) AS n
             ON CONFLICT (kind, clerk_id) DO UPDATE
             SET version = excluded.version, event_at = excluded.event_at, tie = excluded.tie,
                 deleted = excluded.deleted, held_until = excluded.held_until, held_since = excluded.held_since
             WHERE NOT e.deleted
               AND (excluded.deleted
                    OR (e.version, e.event_at, e.tie) < (excluded.version, excluded.event_at, excluded.tie)
                    -- To hold an erasure back, or to take that back, is no newer version.
                    OR (e.held_until IS DISTINCT FROM excluded.held_until
                        AND (e.version, e.event_at, e.tie) = (excluded.version, excluded.event_at, excluded.tie)))
             -- A row that this statement inserted has no older version to point back to.
             RETURNING clerk_id, xmax = 0 AS new")
        .bind(column(registers, |advance| advance.clerk_id.as_str()))
        .bind(column(registers, |advance| advance.register.version.version))
        .bind(column(registers, |advance| advance.register.version.event_at))
        .bind(column(registers, |advance| advance.register.version.tie.as_str()))
        .bind(column(registers, |advance| advance.register.deleted))
        .bind(column(registers, |advance| advance.register.held_until))
        .bind(column(registers, |advance| advance.register.held_since));
        if registers.iter().any(|advance| advance.register.held_until.is_some()) {
            self.session.leaves_work();
        }
        let rows = self.session.rows(query).await?;
        let written: HashMap<ClerkId, bool> =
            rows.iter().map(|row| Ok((clerk_id(row, 0)?, get(row, 1)?))).collect::<Result<_>>()?;
        let as_expected = |advance: &Advance| written.get(&advance.clerk_id) == Some(&advance.new);
        if registers.iter().all(as_expected) { Ok(()) } else { Err(StoreError::new(Trouble::Raced)) }
    }

    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>> {
        let query = sql("SELECT n.email, lower(n.email), u.clerk_id FROM unnest($1::text[]) AS n (email)
             LEFT JOIN LATERAL (
                 SELECT clerk_id FROM users WHERE lower(email) = lower(n.email) AND deleted_at IS NULL
             ) AS u ON true")
        .bind(addresses);
        let address = |row| {
            let owner = get::<Option<String>>(row, 2)?.and_then(ClerkId::new);
            Ok(Address { given: get(row, 0)?, folded: get(row, 1)?, owner })
        };
        self.session.rows(query).await?.iter().map(address).collect()
    }

    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let query = sql("UPDATE users AS u SET email = NULL FROM unnest($1::text[]) AS n (clerk_id)
             WHERE u.clerk_id = n.clerk_id")
        .bind(texts(ids));
        self.session.execute_on_users(query).await?;
        Ok(())
    }

    async fn users(&mut self, ids: &[ClerkId], fields: FieldSet) -> Result<HashMap<ClerkId, User>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        load_users(&mut self.session, ids, fields).await
    }

    async fn insert_users(&mut self, users: &[User]) -> Result<()> {
        if users.is_empty() {
            return Ok(());
        }
        let query = sql("INSERT INTO users (clerk_id, email, email_verified, first_name, last_name, image_url, username,
                    phone_number, external_id, public_metadata, unsafe_metadata, private_metadata, banned, locked,
                    last_sign_in_at, last_active_at, created_at, updated_at, synced_at)
             SELECT n.clerk_id, n.email, n.email_verified, n.first_name, n.last_name, n.image_url, n.username,
                    n.phone_number, n.external_id, n.public_metadata::jsonb, n.unsafe_metadata::jsonb,
                    n.private_metadata::jsonb, n.banned, n.locked, n.last_sign_in_at, n.last_active_at, n.created_at,
                    n.updated_at, n.synced_at
             FROM unnest($1::text[], $2::text[], $3::boolean[], $4::text[], $5::text[], $6::text[], $7::text[],
                         $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::boolean[],
                         $14::boolean[], $15::timestamptz[], $16::timestamptz[], $17::timestamptz[],
                         $18::timestamptz[], $19::timestamptz[])
                  AS n (clerk_id, email, email_verified, first_name, last_name, image_url, username, phone_number,
                        external_id, public_metadata, unsafe_metadata, private_metadata, banned, locked,
                        last_sign_in_at, last_active_at, created_at, updated_at, synced_at)
             ON CONFLICT (clerk_id) DO NOTHING
             -- A trigger may have changed whose row it is.
             RETURNING clerk_id");
        let known = |field: &Field| users.iter().any(|user| user.profile[*field] != Value::Null);
        let fields = Field::ALL.into_iter().filter(known).collect();
        let inserted = self.write_users(bind_users(query, users, fields)).await;
        let inserted = self.sequences.checked(&mut self.session, "users", inserted).await?;
        let mut ids: HashSet<&str> = users.iter().map(|user| user.clerk_id.as_str()).collect();
        for row in &inserted {
            if !ids.remove(get::<&str>(row, 0)?) {
                return Err(StoreError::changed_id());
            }
        }
        all_or_raced(inserted.len(), users.len())
    }

    async fn update_users(&mut self, users: &[User], fields: FieldSet) -> Result<()> {
        if users.is_empty() {
            return Ok(());
        }
        let query = sql("UPDATE users AS u
             -- $20 says which fields are on the allow-list; the others are not ours to write.
             SET email = CASE WHEN $20[1] THEN n.email ELSE u.email END,
                 email_verified = CASE WHEN $20[2] THEN n.email_verified ELSE u.email_verified END,
                 first_name = CASE WHEN $20[3] THEN n.first_name ELSE u.first_name END,
                 last_name = CASE WHEN $20[4] THEN n.last_name ELSE u.last_name END,
                 image_url = CASE WHEN $20[5] THEN n.image_url ELSE u.image_url END,
                 username = CASE WHEN $20[6] THEN n.username ELSE u.username END,
                 phone_number = CASE WHEN $20[7] THEN n.phone_number ELSE u.phone_number END,
                 external_id = CASE WHEN $20[8] THEN n.external_id ELSE u.external_id END,
                 public_metadata = CASE WHEN $20[9] THEN n.public_metadata::jsonb ELSE u.public_metadata END,
                 unsafe_metadata = CASE WHEN $20[10] THEN n.unsafe_metadata::jsonb ELSE u.unsafe_metadata END,
                 private_metadata = CASE WHEN $20[11] THEN n.private_metadata::jsonb ELSE u.private_metadata END,
                 banned = CASE WHEN $20[12] THEN n.banned ELSE u.banned END,
                 locked = CASE WHEN $20[13] THEN n.locked ELSE u.locked END,
                 last_sign_in_at = CASE WHEN $20[14] THEN n.last_sign_in_at ELSE u.last_sign_in_at END,
                 last_active_at = CASE WHEN $20[15] THEN n.last_active_at ELSE u.last_active_at END,
                 created_at = coalesce(n.created_at, u.created_at),
                 updated_at = n.updated_at,
                 synced_at = n.synced_at
             FROM unnest($1::text[], $2::text[], $3::boolean[], $4::text[], $5::text[], $6::text[], $7::text[],
                         $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::boolean[],
                         $14::boolean[], $15::timestamptz[], $16::timestamptz[], $17::timestamptz[],
                         $18::timestamptz[], $19::timestamptz[])
                  AS n (clerk_id, email, email_verified, first_name, last_name, image_url, username, phone_number,
                        external_id, public_metadata, unsafe_metadata, private_metadata, banned, locked,
                        last_sign_in_at, last_active_at, created_at, updated_at, synced_at)
             WHERE u.clerk_id = n.clerk_id
             -- A trigger may have changed whose row it is.
             RETURNING u.clerk_id = n.clerk_id");
        let flags: Vec<bool> = Field::ALL.into_iter().map(|field| fields.contains(field)).collect();
        let updated = self.write_users(bind_users(query, users, fields).bind(flags)).await?;
        for row in &updated {
            if !get::<bool>(row, 0)? {
                return Err(StoreError::changed_id());
            }
        }
        all_or_raced(updated.len(), users.len())
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
        if messages.is_empty() {
            return Ok(());
        }
        let told = outbox::tell(&mut self.session, messages).await;
        self.sequences.checked(&mut self.session, "outbox", told).await
    }

    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        outbox::recall(&mut self.session, ids, now).await
    }

    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let fields = |entry: &AuditEntry| {
            entry.changed_fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(",")
        };
        let lines = sql("INSERT INTO audit_log (at, action, clerk_id, svix_id, source, changed_fields, event_at)
             SELECT n.at, n.action, n.clerk_id, n.svix_id, n.source, string_to_array(n.changed_fields, ','), n.event_at
             FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                         $7::timestamptz[])
                  AS n (at, action, clerk_id, svix_id, source, changed_fields, event_at)
             RETURNING id, svix_id, clerk_id")
        .bind(column(entries, |entry| entry.at))
        .bind(column(entries, |entry| entry.action.name()))
        .bind(column(entries, |entry| entry.clerk_id.as_str()))
        .bind(column(entries, |entry| entry.svix_id.as_ref().map(SvixId::as_str)))
        .bind(column(entries, |entry| entry.source.name()))
        .bind(column(entries, fields))
        .bind(column(entries, |entry| entry.event_at));
        // A line is to be sealed.
        self.session.leaves_work();
        let lines = self.session.rows(lines).await;
        let lines = self.sequences.checked(&mut self.session, "audit_log", lines).await?;
        // One delivery writes at most one line with an actor about a user.
        let actors: HashMap<(&str, &str), &Actor> = entries
            .iter()
            .filter_map(|entry| {
                Some(((entry.svix_id.as_ref()?.as_str(), entry.clerk_id.as_str()), entry.actor.as_ref()?))
            })
            .collect();
        let mut attributed: Vec<(i64, &Actor)> = Vec::with_capacity(actors.len());
        for line in &lines {
            let svix_id: Option<&str> = get(line, 1)?;
            let clerk_id: &str = get(line, 2)?;
            if let Some(actor) = svix_id.and_then(|id| actors.get(&(id, clerk_id))) {
                attributed.push((get(line, 0)?, actor));
            }
        }
        self.attribute(&attributed).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.session.commit().await
    }

    async fn rollback(self: Box<Self>) {
        self.session.rollback().await;
    }
}

/// The rows of these users; metadata only as far as it is asked for.
pub(super) async fn load_users(
    session: &mut Session,
    ids: &[ClerkId],
    fields: FieldSet,
) -> Result<HashMap<ClerkId, User>> {
    let query = sql(
        "SELECT u.clerk_id, u.email, u.email_verified, u.first_name, u.last_name, u.image_url, u.username,
                u.phone_number, u.external_id,
                -- Large, and rarely synced.
                CASE WHEN $2 THEN u.public_metadata::text END,
                CASE WHEN $3 THEN u.unsafe_metadata::text END,
                CASE WHEN $4 THEN u.private_metadata::text END,
                u.banned, u.locked, u.last_sign_in_at, u.last_active_at,
                u.created_at, coalesce(u.updated_at, 'epoch'), coalesce(u.synced_at, 'epoch'), u.deleted_at
         FROM unnest($1::text[]) AS n (clerk_id)
         CROSS JOIN LATERAL (SELECT * FROM users WHERE clerk_id = n.clerk_id) AS u",
    )
    .bind(texts(ids))
    .bind(fields.contains(Field::PublicMetadata))
    .bind(fields.contains(Field::UnsafeMetadata))
    .bind(fields.contains(Field::PrivateMetadata));
    let rows = session.rows(query).await?;
    rows.iter().map(|row| user(row).map(|user| (user.clerk_id.clone(), user))).collect()
}

/// `$1` to `$19`. All other fields get an empty array, which `unnest` fills up with NULL.
fn bind_users<'q>(
    query: Query<'q, Pg, PgArguments>,
    users: &'q [User],
    fields: FieldSet,
) -> Query<'q, Pg, PgArguments> {
    let mut query = query.bind(column(users, |user| user.clerk_id.as_str()));
    for field in Field::ALL {
        let users = if fields.contains(field) { users } else { &[] };
        query = match field {
            Field::Email
            | Field::FirstName
            | Field::LastName
            | Field::ImageUrl
            | Field::Username
            | Field::PhoneNumber
            | Field::ExternalId => query.bind(column(users, |user| user.profile[field].text())),
            Field::PublicMetadata | Field::UnsafeMetadata | Field::PrivateMetadata => {
                query.bind(column(users, |user| user.profile[field].json()))
            }
            Field::EmailVerified | Field::Banned | Field::Locked => {
                query.bind(column(users, |user| user.profile[field].bool()))
            }
            Field::LastSignInAt | Field::LastActiveAt => {
                query.bind(column(users, |user| user.profile[field].time()))
            }
        };
    }
    query
        .bind(column(users, |user| user.created_at))
        .bind(column(users, User::known_updated_at))
        .bind(column(users, |user| user.synced_at))
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

fn all_or_raced(written: usize, expected: usize) -> Result<()> {
    if written == expected { Ok(()) } else { Err(StoreError::new(Trouble::Raced)) }
}

pub(super) fn clerk_id(row: &PgRow, index: usize) -> Result<ClerkId> {
    ClerkId::new(get::<String>(row, index)?).ok_or_else(|| StoreError::new(Trouble::Broken))
}

pub(super) fn svix_id(row: &PgRow, index: usize) -> Result<SvixId> {
    SvixId::new(get::<String>(row, index)?).ok_or_else(|| StoreError::new(Trouble::Broken))
}

pub(super) fn register(row: &PgRow) -> Result<Register> {
    Ok(Register {
        version: Version { version: get(row, 1)?, event_at: get(row, 2)?, tie: get(row, 3)? },
        deleted: get(row, 4)?,
        held_until: get(row, 5)?,
        held_since: get(row, 6)?,
    })
}

/// Of the columns in the order of [`Transaction::users`].
pub(super) fn user(row: &PgRow) -> Result<User> {
    let mut profile = Profile::default();
    for (index, field) in Field::ALL.into_iter().enumerate() {
        let index = index + 1;
        let value = match field {
            Field::EmailVerified | Field::Banned | Field::Locked => {
                get::<Option<bool>>(row, index)?.map(Value::Bool)
            }
            Field::PublicMetadata | Field::UnsafeMetadata | Field::PrivateMetadata => {
                get::<Option<String>>(row, index)?.map(Value::Json)
            }
            Field::LastSignInAt | Field::LastActiveAt => {
                get::<Option<DateTime<Utc>>>(row, index)?.map(Value::Time)
            }
            _ => get::<Option<String>>(row, index)?.map(Value::Text),
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
