//! The transaction of a batch in SQL: registers, addresses and the audit trail.

use std::collections::HashMap;

use super::{Row, Session, batch, batch::Columns, statements, values};
use crate::{
    entity::USER,
    model::{Actor, AuditEntry, ClerkId, Register, SvixId, Version},
    store::{Address, Advance, Result, StoreError, Trouble},
};

statements! {
    // One search an id, in the order of the ids, so that two transactions never wait for each other.
    REGISTERS = "SELECT e.kind, e.clerk_id, e.version, e.event_at, e.tie, e.deleted, e.held_until, e.held_since
        FROM {batch $1 AS n: kind text, clerk_id text}
        {lock entity_versions AS e WHERE e.kind = n.kind AND e.clerk_id = n.clerk_id}";

    // The same without locks.
    KNOWN_REGISTERS = "SELECT e.kind, e.clerk_id, e.version, e.event_at, e.tie, e.deleted, e.held_until, e.held_since
        FROM {batch $1 AS n: kind text, clerk_id text}
        {lookup entity_versions AS e WHERE e.kind = n.kind AND e.clerk_id = n.clerk_id}";

    BLANK_REGISTERS = "INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted)
        SELECT n.kind, n.clerk_id, CAST($2 AS bigint), CAST($2 AS bigint), '', false
        FROM {batch $1 AS n: kind text, clerk_id text}
        WHERE true
        ORDER BY n.place
        ON CONFLICT (kind, clerk_id) DO NOTHING";

    ADVANCE = "INSERT INTO entity_versions AS e
            (kind, clerk_id, version, event_at, tie, deleted, held_until, held_since)
        SELECT n.kind, n.clerk_id, n.version, n.event_at, n.tie, n.deleted, n.held_until, n.held_since
        FROM {batch $1 AS n: kind text, clerk_id text, version bigint, event_at bigint, tie text, deleted boolean, held_until time, held_since time, new boolean}
        WHERE {postgres true}{sqlite
            -- What was planned for an object that had no register must not fall on one that has. A blank one says nothing.
            NOT (n.new AND EXISTS (
                SELECT 1 FROM entity_versions AS r
                WHERE r.kind = n.kind AND r.clerk_id = n.clerk_id AND (r.deleted OR r.version > $2)
            ))}
        ON CONFLICT (kind, clerk_id) DO UPDATE
        SET version = excluded.version, event_at = excluded.event_at, tie = excluded.tie, deleted = excluded.deleted,
            held_until = excluded.held_until, held_since = excluded.held_since
        WHERE NOT e.deleted
          -- Deletion is final, whatever its time.
          AND (excluded.deleted
               OR (e.version, e.event_at, e.tie) < (excluded.version, excluded.event_at, excluded.tie)
               -- To hold an erasure back, or to take that back, is no newer version.
               OR (e.held_until IS DISTINCT FROM excluded.held_until
                   AND (e.version, e.event_at, e.tie) = (excluded.version, excluded.event_at, excluded.tie)))
        -- PostgreSQL: a row that this statement inserted has no older version to point back to.
        RETURNING kind, clerk_id, {postgres xmax = 0}{sqlite NULL}";

    ADDRESSES = "SELECT n.email, lower(n.email), u.clerk_id FROM {batch $1 AS n: email text}
        {postgres LEFT JOIN LATERAL (
            SELECT clerk_id FROM users WHERE lower(email) = lower(n.email) AND deleted_at IS NULL
        ) AS u ON true}{sqlite LEFT JOIN users AS u ON lower(u.email) = lower(n.email) AND u.deleted_at IS NULL}";

    RELEASE_ADDRESSES = "UPDATE users AS u SET email = NULL FROM {batch $1 AS n: clerk_id text}
        WHERE u.clerk_id = n.clerk_id
        RETURNING 1";

    AUDIT = "INSERT INTO audit_log (at, action, kind, clerk_id, svix_id, source, changed_fields, event_at)
        SELECT n.at, n.action, n.kind, n.clerk_id, n.svix_id, n.source,
               {postgres string_to_array(n.changed_fields, ',')}{sqlite CASE n.changed_fields WHEN '' THEN '[]'
                   ELSE '[\"' || replace(n.changed_fields, ',', '\",\"') || '\"]' END},
               n.event_at
        FROM {batch $1 AS n: at time, action text, kind text, clerk_id text, svix_id text, source text, changed_fields text, event_at time}
        ORDER BY n.place
        RETURNING id, svix_id, clerk_id";

    // A statement of its own: to join the lines just written to their actors inside PostgreSQL grows with the square of
    // the batch.
    ACTORS = "INSERT INTO audit_actors (audit_id, ip, user_agent)
        SELECT n.audit_id, n.ip, n.user_agent FROM {batch $1 AS n: audit_id bigint, ip text, user_agent text}";
}

/// Lock and read the registers of these objects, as far as there is one.
pub(in crate::store) async fn registers(
    session: &mut dyn Session,
    ids: &[ClerkId],
) -> Result<HashMap<ClerkId, Register>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = session.rows(&REGISTERS, values![ids_of(ids)]).await?;
    rows.iter().map(register).collect()
}

/// Read them as they are now.
pub(in crate::store) async fn known_registers(
    session: &mut dyn Session,
    ids: &[ClerkId],
) -> Result<HashMap<ClerkId, Register>> {
    let rows = session.rows(&KNOWN_REGISTERS, values![ids_of(ids)]).await?;
    rows.iter().map(register).collect()
}

fn register(row: &Row) -> Result<(ClerkId, Register)> {
    let register = Register {
        version: Version { version: row.get(2)?, event_at: row.get(3)?, tie: row.get(4)? },
        deleted: row.get(5)?,
        held_until: row.maybe(6)?,
        held_since: row.maybe(7)?,
    };
    Ok((row.id(0)?, register))
}

/// As `n: kind text, clerk_id text`.
pub(super) fn ids_of(ids: &[ClerkId]) -> Columns<'_, ClerkId> {
    batch(ids).text(|id| id.entity().kind).text(ClerkId::as_str)
}

/// Lock and read registers, making a blank one where there is none.
pub(in crate::store) async fn hold(
    session: &mut dyn Session,
    ids: &[ClerkId],
) -> Result<HashMap<ClerkId, Register>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    // Older than any event.
    session.execute(&BLANK_REGISTERS, values![ids_of(ids), i64::MIN]).await?;
    let found = registers(session, ids).await?;
    if found.len() == ids.len() { Ok(found) } else { Err(StoreError::new(Trouble::Raced)) }
}

/// See [`Transaction::advance`](crate::store::Transaction::advance).
pub(in crate::store) async fn advance(session: &mut dyn Session, registers: &[Advance]) -> Result<()> {
    if registers.is_empty() {
        return Ok(());
    }
    let rows = batch(registers)
        .text(|advance| advance.clerk_id.entity().kind)
        .text(|advance| advance.clerk_id.as_str())
        .int(|advance| advance.register.version.version)
        .int(|advance| advance.register.version.event_at)
        .text(|advance| advance.register.version.tie.as_str())
        .bool(|advance| advance.register.deleted)
        .time(|advance| advance.register.held_until)
        .time(|advance| advance.register.held_since)
        .bool(|advance| advance.new);
    if registers.iter().any(|advance| advance.register.held_until.is_some()) {
        session.leaves_work();
    }
    let rows = session.rows(&ADVANCE, values![rows, i64::MIN]).await?;
    let written: HashMap<ClerkId, Option<bool>> =
        rows.iter().map(|row| Ok((row.id(0)?, row.maybe(2)?))).collect::<Result<_>>()?;
    let as_expected = |advance: &Advance| {
        written.get(&advance.clerk_id).is_some_and(|new| new.is_none_or(|new| new == advance.new))
    };
    if registers.iter().all(as_expected) { Ok(()) } else { Err(StoreError::new(Trouble::Raced)) }
}

/// See [`Transaction::addresses`](crate::store::Transaction::addresses).
pub(in crate::store) async fn addresses(
    session: &mut dyn Session,
    addresses: &[String],
) -> Result<Vec<Address>> {
    let rows = session.rows(&ADDRESSES, values![batch(addresses).text(String::as_str)]).await?;
    let address = |row: &Row| {
        Ok(Address {
            given: row.get(0)?,
            folded: row.get(1)?,
            owner: row.maybe::<String>(2)?.and_then(|id| ClerkId::new(&USER, id)),
        })
    };
    rows.iter().map(address).collect()
}

/// Take their addresses from these users.
pub(in crate::store) async fn release_addresses(session: &mut dyn Session, ids: &[ClerkId]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    session.write_objects(USER.table, &RELEASE_ADDRESSES, values![batch(ids).text(ClerkId::as_str)]).await?;
    Ok(())
}

/// Append to the audit trail; gives the numbers of the lines, in their order. [`attribute`] follows.
pub(in crate::store) async fn audit(session: &mut dyn Session, entries: &[AuditEntry]) -> Result<Vec<Row>> {
    let line = |entry| (entry, action(entry), changed_fields(entry));
    let lines: Vec<(&AuditEntry, String, String)> = entries.iter().map(line).collect();
    let rows = batch(&lines)
        .time(|(entry, ..)| entry.at)
        .text(|(_, action, _)| action.as_str())
        .text(|(entry, ..)| entry.clerk_id.entity().kind)
        .text(|(entry, ..)| entry.clerk_id.as_str())
        .text(|(entry, ..)| entry.svix_id.as_ref().map(SvixId::as_str))
        .text(|(entry, ..)| entry.source.name())
        .text(|(.., fields)| fields.as_str())
        .time(|(entry, ..)| entry.event_at);
    // A line is to be sealed.
    session.leaves_work();
    session.rows(&AUDIT, values![rows]).await
}

fn action(entry: &AuditEntry) -> String {
    entry.action.name(entry.clerk_id.entity())
}

fn changed_fields(entry: &AuditEntry) -> String {
    entry.changed_fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(",")
}

/// Keep who caused these lines, where that is known.
pub(in crate::store) async fn attribute(
    session: &mut dyn Session,
    entries: &[AuditEntry],
    lines: &[Row],
) -> Result<()> {
    // One delivery writes at most one line with an actor about an object.
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
    for line in lines {
        let (svix_id, clerk_id): (Option<String>, String) = (line.maybe(1)?, line.get(2)?);
        if let Some(svix_id) = svix_id
            && let Some(actor) = actors.get(&(svix_id.as_str(), clerk_id.as_str()))
        {
            attributed.push((line.get(0)?, actor));
        }
    }
    let rows = batch(&attributed)
        .int(|(line, _)| *line)
        .text(|(_, actor)| actor.ip.as_deref())
        .text(|(_, actor)| actor.user_agent.as_deref());
    session.execute(&ACTORS, values![rows]).await?;
    Ok(())
}
