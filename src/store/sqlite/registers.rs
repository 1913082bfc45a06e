//! `entity_versions`: the newest version of every entity, and the tombstones.

use std::collections::HashMap;

use serde_json::json;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    model::{ClerkId, Register, Version},
    store::{Advance, Result},
};

/// The registers of these users, as far as there is one.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
) -> Result<HashMap<ClerkId, Register>> {
    let rows = sqlx::query(
        "SELECT r.clerk_id, r.version, r.event_at, r.tie, r.deleted, r.held_until, r.held_since
         FROM json_each(?1) AS n
         -- CROSS, not INNER: the ids come first and each is looked up, however the table grows.
         CROSS JOIN entity_versions AS r ON r.kind = 'user' AND r.clerk_id = n.value",
    )
    .bind(text::clerk_ids(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(|row| Ok((text::read_clerk_id(row)?, register(row)?))).collect()
}

/// Make a register that is older than any news, if there is none.
pub(super) async fn make_blank(connection: &mut SqliteConnection, id: &ClerkId) -> Result<()> {
    sqlx::query(
        "INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted)
         VALUES ('user', ?1, ?2, ?2, '', 0)
         ON CONFLICT (kind, clerk_id) DO NOTHING",
    )
    .bind(id.as_str())
    .bind(i64::MIN)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Write registers that are newer than what is stored; returns how many were written.
pub(super) async fn advance(connection: &mut SqliteConnection, registers: &[Advance]) -> Result<u64> {
    let rows = text::rows(registers.iter().map(|Advance { clerk_id, register, new }| {
        json!({
            "clerk_id": clerk_id.as_str(),
            "version": register.version.version,
            "event_at": register.version.event_at,
            "tie": register.version.tie,
            "deleted": register.deleted,
            "held_until": register.held_until.map(text::time),
            "held_since": register.held_since.map(text::time),
            "new": new,
        })
    }))?;
    let done = sqlx::query(
        "INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted, held_until, held_since)
         SELECT 'user', n.value ->> 'clerk_id', n.value ->> 'version', n.value ->> 'event_at',
                n.value ->> 'tie', n.value ->> 'deleted', n.value ->> 'held_until', n.value ->> 'held_since'
         FROM json_each(?1) AS n
         -- What was planned for an entity that had no register must not fall on one that has.
         -- A blank one (see make_blank) says nothing about the entity.
         WHERE NOT (n.value ->> 'new' AND EXISTS (
             SELECT 1 FROM entity_versions AS r
             WHERE r.kind = 'user' AND r.clerk_id = n.value ->> 'clerk_id' AND (r.deleted OR r.version > ?2)
         ))
         ON CONFLICT (kind, clerk_id) DO UPDATE SET
             version = excluded.version,
             event_at = excluded.event_at,
             tie = excluded.tie,
             deleted = excluded.deleted,
             held_until = excluded.held_until,
             held_since = excluded.held_since
         WHERE NOT entity_versions.deleted
           -- Deletion is terminal whatever its time.
           AND (excluded.deleted
                OR (excluded.version, excluded.event_at, excluded.tie)
                   > (entity_versions.version, entity_versions.event_at, entity_versions.tie)
                -- To hold an erasure back, or to take that back, is no newer version.
                OR (excluded.held_until IS NOT entity_versions.held_until
                    AND (excluded.version, excluded.event_at, excluded.tie)
                        = (entity_versions.version, entity_versions.event_at, entity_versions.tie)))",
    )
    .bind(rows)
    .bind(i64::MIN)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(done.rows_affected())
}

fn register(row: &SqliteRow) -> Result<Register> {
    Ok(Register {
        version: Version {
            version: row.try_get("version").map_err(explain)?,
            event_at: row.try_get("event_at").map_err(explain)?,
            tie: text::read(row, "tie")?.unwrap_or_default(),
        },
        deleted: text::read_integer(row, "deleted")? != Some(0),
        held_until: text::read_time(row, "held_until")?,
        held_since: text::read_time(row, "held_since")?,
    })
}
