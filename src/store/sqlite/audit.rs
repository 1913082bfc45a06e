//! `audit_log`, which only grows, and `audit_actors`, which an erasure empties.

use serde_json::json;
use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    model::{AuditEntry, ClerkId, Field, SvixId},
    store::{AuditLine, Result},
};

/// The id of the next entry. It stays that while the transaction holds the write lock.
pub(super) async fn next_id(connection: &mut SqliteConnection) -> Result<i64> {
    sqlx::query_scalar("SELECT coalesce(max(id), 0) + 1 FROM audit_log")
        .fetch_one(connection)
        .await
        .map_err(explain)
}

/// Lines about one user, the oldest first.
pub(super) async fn trail(
    connection: &mut SqliteConnection,
    id: &ClerkId,
    after: Option<i64>,
    limit: u32,
) -> Result<Vec<AuditLine>> {
    let rows = sqlx::query(
        "SELECT id, at, action, svix_id, source, changed_fields, event_at FROM audit_log
         WHERE clerk_id = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
    )
    .bind(id.as_str())
    .bind(after.unwrap_or(i64::MIN))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    let line = |row: &SqliteRow| {
        let fields = text::read(row, "changed_fields")?.unwrap_or_else(|| "[]".to_owned());
        Ok(AuditLine {
            id: text::read_integer(row, "id")?.ok_or_else(|| text::unreadable("id"))?,
            at: text::read_time(row, "at")?.ok_or_else(|| text::unreadable("at"))?,
            action: text::read(row, "action")?.unwrap_or_default(),
            svix_id: text::read(row, "svix_id")?,
            source: text::read(row, "source")?.unwrap_or_default(),
            changed_fields: serde_json::from_str(&fields).map_err(|_| text::unreadable("changed_fields"))?,
            event_at: text::read_time(row, "event_at")?.ok_or_else(|| text::unreadable("event_at"))?,
        })
    };
    rows.iter().map(line).collect()
}

/// Append entries under ids from `first_id` on.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    first_id: i64,
    entries: &[AuditEntry],
) -> Result<()> {
    let rows = text::rows(entries.iter().map(|entry| {
        let changed: Vec<&str> = entry.changed_fields.iter().copied().map(Field::name).collect();
        json!({
            "at": text::time(entry.at),
            "action": entry.action.name(),
            "clerk_id": entry.clerk_id.as_str(),
            "svix_id": entry.svix_id.as_ref().map(SvixId::as_str),
            "source": entry.source.name(),
            "changed_fields": changed,
            "event_at": text::time(entry.event_at),
        })
    }))?;
    sqlx::query(
        "INSERT INTO audit_log (id, at, action, clerk_id, svix_id, source, changed_fields, event_at)
         SELECT ?2 + n.key, n.value ->> 'at', n.value ->> 'action', n.value ->> 'clerk_id',
                n.value ->> 'svix_id', n.value ->> 'source', n.value -> 'changed_fields', n.value ->> 'event_at'
         FROM json_each(?1) AS n",
    )
    .bind(rows)
    .bind(first_id)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Keep who caused the entries that [`append`] was given, where that is known.
pub(super) async fn append_actors(
    connection: &mut SqliteConnection,
    first_id: i64,
    entries: &[AuditEntry],
) -> Result<()> {
    let actors = (first_id..).zip(entries).filter_map(|(id, entry)| {
        let actor = entry.actor.as_ref()?;
        Some(json!({ "audit_id": id, "ip": actor.ip, "user_agent": actor.user_agent }))
    });
    sqlx::query(
        "INSERT INTO audit_actors (audit_id, ip, user_agent)
         SELECT n.value ->> 'audit_id', n.value ->> 'ip', n.value ->> 'user_agent'
         FROM json_each(?1) AS n",
    )
    .bind(text::rows(actors)?)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Forget who caused what happened to these users; returns how many entries that were.
pub(super) async fn remove_actors(connection: &mut SqliteConnection, users: &[ClerkId]) -> Result<u64> {
    let done = sqlx::query(
        "DELETE FROM audit_actors
         WHERE audit_id IN (
             SELECT a.id
             FROM json_each(?1) AS n
             CROSS JOIN audit_log AS a ON a.clerk_id = n.value
         )",
    )
    .bind(text::clerk_ids(users)?)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(done.rows_affected())
}
