//! The transaction of a batch: registers, rows, receipts, messages and the audit trail.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{
    Row, SqlSession, batch,
    batch::Columns,
    objects::{Children, Statements, Write, by_kind},
    outbox, queue, statements, values,
};
use crate::{
    entity::USER,
    model::{
        Actor, AuditEntry, ClerkId, Entity, FieldSet, Kinds, Object, Receipt, Register, Selection, SvixId,
        Version,
    },
    store::{Address, Advance, Closing, ErrorKind, Ledger, Opened, Outgoing, Record, Result, StoreError},
};

/// The first column of the object in a row of `Statements::open`.
const OPENED: usize = 9;

statements! {
    // One search per id, in the order of the ids, so that two transactions never deadlock.
    REGISTERS = "SELECT e.kind, e.clerk_id, e.version, e.event_at, e.tie, e.deleted, e.held_until, e.held_since, e.parts_digest
        FROM {batch $1 AS n: kind text, clerk_id text}
        {lock entity_versions AS e WHERE e.kind = n.kind AND e.clerk_id = n.clerk_id}";

    // As `REGISTERS`, but without locks.
    KNOWN_REGISTERS = "SELECT e.kind, e.clerk_id, e.version, e.event_at, e.tie, e.deleted, e.held_until, e.held_since, e.parts_digest
        FROM {batch $1 AS n: kind text, clerk_id text}
        {lookup entity_versions AS e WHERE e.kind = n.kind AND e.clerk_id = n.clerk_id}";

    BLANK_REGISTERS = "INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted)
        SELECT n.kind, n.clerk_id, CAST($2 AS bigint), CAST($2 AS bigint), '', false
        FROM {batch $1 AS n: kind text, clerk_id text}
        WHERE true
        {in_order}
        ON CONFLICT (kind, clerk_id) DO NOTHING";

    ADVANCE = "INSERT INTO entity_versions{postgres|sqlite  AS e}
            (kind, clerk_id, version, event_at, tie, deleted, held_until, held_since, parts_digest{mysql , token})
        SELECT n.kind, n.clerk_id, n.version, n.event_at, n.tie, n.deleted, n.held_until, n.held_since, n.parts_digest{mysql , {token}}
        FROM {batch $1 AS n: kind text, clerk_id text, version bigint, event_at bigint, tie text, deleted boolean, held_until time, held_since time, parts_digest text, new boolean}
        WHERE {postgres|mysql true}{sqlite
            -- A change that was planned for a missing register must not apply to an existing one. A blank register does not count.
            NOT (n.new AND EXISTS (
                SELECT 1 FROM entity_versions AS r
                WHERE r.kind = n.kind AND r.clerk_id = n.clerk_id AND (r.deleted OR r.version > $2)
            ))}
        {mysql ON DUPLICATE KEY UPDATE
            -- Assignments run in order, and see the results of earlier ones. The token ends in a plus only if the new version is newer.
            token = CASE WHEN NOT entity_versions.deleted
                AND (excluded.deleted
                     OR (entity_versions.version, entity_versions.event_at, entity_versions.tie)
                        < (excluded.version, excluded.event_at, excluded.tie)
                     OR (NOT (entity_versions.held_until <=> excluded.held_until AND entity_versions.parts_digest <=> excluded.parts_digest)
                         AND (entity_versions.version, entity_versions.event_at, entity_versions.tie)
                             = (excluded.version, excluded.event_at, excluded.tie)))
                THEN concat({token}, '+') ELSE entity_versions.token END,
            version = CASE entity_versions.token WHEN concat({token}, '+') THEN excluded.version ELSE entity_versions.version END,
            event_at = CASE entity_versions.token WHEN concat({token}, '+') THEN excluded.event_at ELSE entity_versions.event_at END,
            tie = CASE entity_versions.token WHEN concat({token}, '+') THEN excluded.tie ELSE entity_versions.tie END,
            deleted = CASE entity_versions.token WHEN concat({token}, '+') THEN excluded.deleted ELSE entity_versions.deleted END,
            held_until = CASE entity_versions.token WHEN concat({token}, '+') THEN excluded.held_until ELSE entity_versions.held_until END,
            held_since = CASE entity_versions.token WHEN concat({token}, '+') THEN excluded.held_since ELSE entity_versions.held_since END,
            parts_digest = CASE entity_versions.token WHEN concat({token}, '+') THEN excluded.parts_digest ELSE entity_versions.parts_digest END;
        SELECT e.kind, e.clerk_id, e.token = {token}
        FROM {batch $1 AS n: kind text, clerk_id text} {lookup entity_versions AS e WHERE e.kind = n.kind AND e.clerk_id = n.clerk_id}
        WHERE e.token IN ({token}, concat({token}, '+'))}{postgres|sqlite ON CONFLICT (kind, clerk_id) DO UPDATE
        SET version = excluded.version, event_at = excluded.event_at, tie = excluded.tie, deleted = excluded.deleted,
            held_until = excluded.held_until, held_since = excluded.held_since, parts_digest = excluded.parts_digest
        WHERE NOT e.deleted
          -- Deletion is final, whatever its time.
          AND (excluded.deleted
               OR (e.version, e.event_at, e.tie) < (excluded.version, excluded.event_at, excluded.tie)
               -- Delaying an erasure, or cancelling the delay, does not change the version; nor do parts that reconcile has mended.
               OR ((e.held_until IS DISTINCT FROM excluded.held_until OR e.parts_digest IS DISTINCT FROM excluded.parts_digest)
                   AND (e.version, e.event_at, e.tie) = (excluded.version, excluded.event_at, excluded.tie)))
        -- PostgreSQL: a row that this statement inserted has no older version to point back to.
        RETURNING kind, clerk_id, {postgres xmax = 0}{sqlite NULL}}";

    ADDRESSES = "SELECT n.email, lower(n.email), u.clerk_id FROM {batch $1 AS n: email text}
        {postgres LEFT JOIN LATERAL (
            SELECT clerk_id FROM users WHERE lower(email) = lower(n.email) AND deleted_at IS NULL
        ) AS u ON true}{sqlite LEFT JOIN users AS u ON lower(u.email) = lower(n.email) AND u.deleted_at IS NULL}{mysql
            LEFT JOIN users AS u ON u.live_email = lower(n.email)}";

    RELEASE_ADDRESSES = "UPDATE users AS u SET {mysql u.}email = NULL {from {batch $1 AS n: clerk_id text}}
        WHERE u.clerk_id = n.clerk_id
        {returning 1}";

    AUDIT = "{mysql SELECT one INTO @one FROM audit_barrier LOCK IN SHARE MODE;
        }INSERT INTO audit_log (at, action, kind, clerk_id, svix_id, source, changed_fields, event_at)
        SELECT n.at, n.action, n.kind, n.clerk_id, n.svix_id, n.source,
               {postgres string_to_array(n.changed_fields, ',')}{sqlite|mysql CASE n.changed_fields WHEN '' THEN '[]'
                   ELSE '[\"' || replace(n.changed_fields, ',', '\",\"') || '\"]' END},
               n.event_at
        FROM {batch $1 AS n: at time, action text, kind text, clerk_id text, svix_id text, source text, changed_fields text, event_at time}
        {in_order}
        {returning id, svix_id, clerk_id}{mysql ;
        -- With their registers locked, no other transaction writes lines about these objects.
        SELECT DISTINCT l.id, l.svix_id, l.clerk_id FROM {batch $1 AS n: at time, action text, kind text, clerk_id text}
        {lookup audit_log AS l WHERE l.clerk_id = n.clerk_id AND l.id >= last_insert_id()}}";

    // A separate statement, because joining the new lines to their actors inside PostgreSQL takes time that grows with the
    // square of the batch.
    ACTORS = "INSERT INTO audit_actors (audit_id, ip, user_agent)
        SELECT n.audit_id, n.ip, n.user_agent FROM {batch $1 AS n: audit_id bigint, ip text, user_agent text}";

    WRITE_RECEIPTS = "INSERT INTO erasure_receipts
            (clerk_id, destination, requested_at, completed_at, attempts, last_error)
        SELECT n.clerk_id, n.destination, n.requested_at, n.completed_at, n.attempts, n.last_error
        FROM {batch $1 AS n: clerk_id text, destination text, requested_at time, completed_at time, attempts bigint, last_error text}
        WHERE true
        ON CONFLICT (clerk_id, destination) DO UPDATE
        -- A completed receipt has no error.
        SET last_error = CASE WHEN erasure_receipts.completed_at IS NULL THEN excluded.last_error END,
            requested_at = {sqlite min}{postgres|mysql least}(erasure_receipts.requested_at, excluded.requested_at),
            completed_at = coalesce(erasure_receipts.completed_at, excluded.completed_at),
            attempts = erasure_receipts.attempts + excluded.attempts";

    CLOSE_RECEIPTS = "UPDATE erasure_receipts SET completed_at = $3, last_error = NULL
        WHERE clerk_id {in SELECT n.clerk_id FROM {batch $1 AS n: clerk_id text}} AND destination = $2
          AND completed_at IS NULL";
}

#[async_trait]
impl<S: SqlSession + ?Sized> Ledger for S {
    async fn open(
        &mut self,
        records: &[Record<'_>],
        entity: &'static Entity,
        about: &[(ClerkId, Version)],
        selection: &Selection,
    ) -> Result<Option<Opened>> {
        let statements = Statements::of(entity, selection.read(entity));
        if self.takes_steps(&statements.open) {
            return Ok(None);
        }
        let rows = batch(about)
            .text(|(id, _)| id.as_str())
            .int(|(_, version)| version.version)
            .int(|(_, version)| version.event_at)
            .text(|(_, version)| version.tie.as_str());
        let rows = self.rows(&statements.open, values![queue::records_of(records), rows]).await?;
        let mut opened =
            Opened { recorded: HashSet::new(), registers: HashMap::new(), objects: HashMap::new() };
        for row in &rows {
            if let Some(id) = row.maybe::<SvixId>(0)? {
                opened.recorded.insert(id);
                continue;
            }
            let id = row.id_of(entity, 1)?;
            if !row.is_null(2)? {
                opened.registers.insert(id.clone(), register_from(row, 2)?);
            }
            if !row.is_null(OPENED)? {
                opened.objects.insert(id, statements.object_from(row, OPENED)?);
            }
        }
        Ok(Some(opened))
    }

    async fn close(
        &mut self,
        entity: &'static Entity,
        closing: &Closing<'_>,
        selection: &Selection,
    ) -> Result<()> {
        let Closing { registers, inserts, updates, audit, outcomes } = *closing;
        let statements = Statements::of(entity, selection.fields(entity));
        if !audit.is_empty() {
            self.leaves_work();
        }
        let lines: Vec<Line<'_>> = audit.iter().map(Line::of).collect();
        let new = registers.iter().filter(|advance| advance.new).count();
        let new = i64::try_from(new).unwrap_or(i64::MAX);
        let values = values![
            registers_of(registers),
            statements.rows(inserts),
            statements.rows(updates),
            columns_of(&lines),
            batch(audit).text(|entry| entry.actor.as_ref()?.ip.as_deref()),
            batch(audit).text(|entry| entry.actor.as_ref()?.user_agent.as_deref()),
            batch(outcomes).text(|(id, _)| id.as_str()).text(|(_, outcome)| outcome.name()),
            new,
        ];
        self.last(&statements.close, values).await
    }

    async fn registers(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        self.rows(&REGISTERS, values![ids_of(ids)]).await?.iter().map(register).collect()
    }

    async fn hold(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        // A blank register is older than any event.
        self.execute(&BLANK_REGISTERS, values![ids_of(ids), i64::MIN]).await?;
        let found = self.registers(ids).await?;
        if found.len() == ids.len() { Ok(found) } else { Err(self.fail(StoreError::new(ErrorKind::Raced))) }
    }

    async fn advance(&mut self, registers: &[Advance]) -> Result<()> {
        if registers.iter().any(|advance| advance.register.held_until.is_some()) {
            self.leaves_work();
        }
        let rows = self.rows(&ADVANCE, values![registers_of(registers), i64::MIN]).await?;
        let written: HashMap<ClerkId, Option<bool>> =
            rows.iter().map(|row| Ok((row.id(0)?, row.maybe(2)?))).collect::<Result<_>>()?;
        let as_expected = |advance: &Advance| {
            written.get(&advance.clerk_id).is_some_and(|new| new.is_none_or(|new| new == advance.new))
        };
        if registers.iter().all(as_expected) {
            Ok(())
        } else {
            Err(self.fail(StoreError::new(ErrorKind::Raced)))
        }
    }

    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>> {
        let rows = self.rows(&ADDRESSES, values![batch(addresses).text(String::as_str)]).await?;
        let address = |row: &Row| {
            Ok(Address {
                given: row.get(0)?,
                folded: row.get(1)?,
                owner: row.maybe::<String>(2)?.and_then(|id| ClerkId::new(&USER, id)),
            })
        };
        rows.iter().map(address).collect()
    }

    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()> {
        if !ids.is_empty() {
            let ids = batch(ids).text(ClerkId::as_str);
            self.write_objects(USER.table, &RELEASE_ADDRESSES, values![ids]).await?;
        }
        Ok(())
    }

    async fn load(&mut self, ids: &[ClerkId], selection: &Selection) -> Result<HashMap<ClerkId, Object>> {
        let mut loaded = HashMap::new();
        for (entity, ids) in by_kind(ids, ClerkId::entity) {
            let statements = Statements::of(entity, selection.read(entity));
            for row in self.rows(&statements.load, values![batch(ids).text(ClerkId::as_str)]).await? {
                let object = statements.object(&row)?;
                loaded.insert(object.clerk_id.clone(), object);
            }
        }
        Ok(loaded)
    }

    async fn children(&mut self, parents: &[ClerkId], limit: u32) -> Result<Vec<ClerkId>> {
        let children = Children::of(self.kinds());
        let may_have_some = |id: &&ClerkId| children.mark.iter().any(|(kind, ..)| *kind == id.entity());
        let parents: Vec<ClerkId> = parents.iter().filter(may_have_some).cloned().collect();
        self.parts(&parents, self.kinds(), limit).await
    }

    async fn parts(&mut self, parents: &[ClerkId], kinds: Kinds, limit: u32) -> Result<Vec<ClerkId>> {
        let rows = self.rows(&Children::of(kinds).find, values![ids_of(parents), limit]).await?;
        let mut ids: Vec<ClerkId> = rows.iter().map(|row| row.id(0)).collect::<Result<_>>()?;
        ids.sort();
        Ok(ids)
    }

    async fn mark_children(&mut self, parents: &[ClerkId], at: DateTime<Utc>) -> Result<()> {
        for (kind, table, statement) in &Children::of(self.kinds()).mark {
            let ids: Vec<&ClerkId> = parents.iter().filter(|parent| parent.entity() == *kind).collect();
            if !ids.is_empty() {
                self.try_objects(table, statement, values![batch(&ids).text(|id| id.as_str()), at]).await?;
            }
        }
        Ok(())
    }

    async fn rivals(&mut self, entity: &'static Entity, keys: &[Vec<String>]) -> Result<Vec<ClerkId>> {
        let places = 0..entity.unique.len();
        let rows =
            places.fold(batch(keys), |rows, place| rows.text(move |key: &Vec<String>| key[place].as_str()));
        let rows = self.rows(&Statements::of(entity, FieldSet::ALL).rivals, values![rows]).await?;
        rows.iter().map(|row| row.id_of(entity, 0)).collect()
    }

    async fn insert(&mut self, objects: &[Object], selection: &Selection) -> Result<()> {
        write(self, objects, selection, Write::Insert).await
    }

    async fn update(&mut self, objects: &[Object], selection: &Selection) -> Result<()> {
        write(self, objects, selection, Write::Update).await
    }

    async fn receipts(&mut self, receipts: &[Receipt]) -> Result<()> {
        let rows = batch(receipts)
            .text(|receipt| receipt.clerk_id.as_str())
            .text(|receipt| receipt.destination.as_str())
            .time(|receipt| receipt.requested_at)
            .time(|receipt| receipt.completed_at)
            .int(|receipt| receipt.attempts.into())
            .text(|receipt| receipt.last_error.as_deref());
        self.execute(&WRITE_RECEIPTS, values![rows]).await?;
        Ok(())
    }

    async fn close_receipts(&mut self, ids: &[ClerkId], destination: &str, at: DateTime<Utc>) -> Result<()> {
        let ids = batch(ids).text(ClerkId::as_str);
        self.execute(&CLOSE_RECEIPTS, values![ids, destination, at]).await?;
        Ok(())
    }

    async fn tell(&mut self, messages: &[Outgoing]) -> Result<()> {
        outbox::tell(self, messages).await
    }

    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>> {
        outbox::recall(self, ids, now).await
    }

    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let lines: Vec<Line<'_>> = entries.iter().map(Line::of).collect();
        // The line has to be sealed.
        self.leaves_work();
        let lines = self.rows(&AUDIT, values![columns_of(&lines)]).await?;
        // One delivery writes at most one line with an actor per object.
        let actors: HashMap<(&str, &str), &Actor> = entries
            .iter()
            .filter_map(|entry| {
                Some(((entry.svix_id.as_ref()?.as_str(), entry.clerk_id.as_str()), entry.actor.as_ref()?))
            })
            .collect();
        if actors.is_empty() {
            return Ok(());
        }
        let mut attributed: Vec<(i64, &Actor)> = Vec::with_capacity(actors.len());
        for line in &lines {
            let (svix_id, clerk_id): (Option<String>, String) = (line.maybe(1)?, line.get(2)?);
            if let Some(actor) = actors.get(&(svix_id.as_deref().unwrap_or_default(), &*clerk_id)) {
                attributed.push((line.get(0)?, actor));
            }
        }
        let rows = batch(&attributed)
            .int(|(line, _)| *line)
            .text(|(_, actor)| actor.ip.as_deref())
            .text(|(_, actor)| actor.user_agent.as_deref());
        self.execute(&ACTORS, values![rows]).await?;
        Ok(())
    }
}

/// The objects among these whose row exists and is not anonymised.
pub(in crate::store) async fn telling(
    session: &mut (impl SqlSession + ?Sized),
    ids: &[ClerkId],
) -> Result<Vec<ClerkId>> {
    let rows = session.load(ids, &Selection::default()).await?;
    let tells = |id: &&ClerkId| rows.get(*id).is_some_and(|row| !row.is_anonymized());
    Ok(ids.iter().filter(tells).cloned().collect())
}

async fn write(
    session: &mut (impl SqlSession + ?Sized),
    objects: &[Object],
    selection: &Selection,
    how: Write,
) -> Result<()> {
    for (entity, objects) in by_kind(objects, |object| object.clerk_id.entity()) {
        let statements = Statements::of(entity, selection.fields(entity));
        let rows = [statements.rows(objects)];
        let written = session.write_objects(entity.table, statements.that(how), &rows).await?;
        let mut ids: HashSet<&str> = objects.iter().map(|object| object.clerk_id.as_str()).collect();
        for row in &written {
            if !ids.remove(row.get::<String>(0)?.as_str()) {
                return Err(session.fail(StoreError::changed_id()));
            }
        }
        if !ids.is_empty() {
            return Err(session.fail(StoreError::new(ErrorKind::Raced)));
        }
        let ids = batch(objects).text(|object| object.clerk_id.as_str());
        if !session.rows(&statements.moved, values![ids]).await?.is_empty() {
            return Err(session.fail(StoreError::changed_id()));
        }
    }
    Ok(())
}

/// Read registers without locks.
pub(super) async fn known_registers(
    session: &mut (impl SqlSession + ?Sized),
    ids: &[ClerkId],
) -> Result<HashMap<ClerkId, Register>> {
    session.rows(&KNOWN_REGISTERS, values![ids_of(ids)]).await?.iter().map(register).collect()
}

fn register(row: &Row) -> Result<(ClerkId, Register)> {
    Ok((row.id(0)?, register_from(row, 2)?))
}

/// A register, from the columns that begin here.
fn register_from(row: &Row, first: usize) -> Result<Register> {
    Ok(Register {
        version: Version {
            version: row.get(first)?,
            event_at: row.get(first + 1)?,
            tie: row.get(first + 2)?,
        },
        deleted: row.get(first + 3)?,
        held_until: row.maybe(first + 4)?,
        held_since: row.maybe(first + 5)?,
        parts_digest: row.maybe(first + 6)?,
    })
}

/// The batch for `ADVANCE`.
fn registers_of(registers: &[Advance]) -> Columns<'_, Advance> {
    batch(registers)
        .text(|advance| advance.clerk_id.entity().kind)
        .text(|advance| advance.clerk_id.as_str())
        .int(|advance| advance.register.version.version)
        .int(|advance| advance.register.version.event_at)
        .text(|advance| advance.register.version.tie.as_str())
        .bool(|advance| advance.register.deleted)
        .time(|advance| advance.register.held_until)
        .time(|advance| advance.register.held_since)
        .text(|advance| advance.register.parts_digest.as_deref())
        .bool(|advance| advance.new)
}

/// An audit line, with its action and fields as they are written.
struct Line<'a> {
    entry: &'a AuditEntry,
    action: String,
    fields: String,
}

impl<'a> Line<'a> {
    fn of(entry: &'a AuditEntry) -> Self {
        let fields: Vec<&str> = entry.changed_fields.iter().map(|field| field.name()).collect();
        Self { entry, action: entry.action.name(entry.clerk_id.entity()), fields: fields.join(",") }
    }
}

/// The batch for `AUDIT`.
fn columns_of<'a>(lines: &'a [Line<'a>]) -> Columns<'a, Line<'a>> {
    batch(lines)
        .time(|line| line.entry.at)
        .text(|line| line.action.as_str())
        .text(|line| line.entry.clerk_id.entity().kind)
        .text(|line| line.entry.clerk_id.as_str())
        .text(|line| line.entry.svix_id.as_ref().map(SvixId::as_str))
        .text(|line| line.entry.source.name())
        .text(|line| line.fields.as_str())
        .time(|line| line.entry.event_at)
}

/// The batch `n: kind text, clerk_id text`.
pub(super) fn ids_of(ids: &[ClerkId]) -> Columns<'_, ClerkId> {
    batch(ids).text(|id| id.entity().kind).text(ClerkId::as_str)
}
