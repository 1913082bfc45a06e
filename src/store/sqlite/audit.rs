//! `audit_log`, which only grows, and `audit_actors`, which an erasure empties.

use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    model::ClerkId,
    store::{AuditLine, Result},
};

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
