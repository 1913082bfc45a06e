//! What is known of a sink's users: how it finds them again, and where it was when it was told of them.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;

use super::{error::explain, text};
use crate::{
    model::ClerkId,
    store::{Elsewhere, Result},
};

/// What a sink remembers of a user who is one of its recipients.
pub(super) async fn reference(
    connection: &mut SqliteConnection,
    sink: &str,
    id: &ClerkId,
) -> Result<Option<String>> {
    let row = sqlx::query("SELECT reference FROM outbox_recipients WHERE clerk_id = ?1 AND sink = ?2")
        .bind(id.as_str())
        .bind(sink)
        .fetch_optional(connection)
        .await
        .map_err(explain)?;
    row.map_or(Ok(None), |row| text::read(&row, "reference"))
}

/// Let a sink remember this of a user; false if the user is none of its recipients.
pub(super) async fn keep_reference(
    connection: &mut SqliteConnection,
    sink: &str,
    id: &ClerkId,
    reference: &str,
) -> Result<bool> {
    // Never inserted: whoever is no recipient any more has been erased there.
    let done = sqlx::query("UPDATE outbox_recipients SET reference = ?3 WHERE clerk_id = ?1 AND sink = ?2")
        .bind(id.as_str())
        .bind(sink)
        .bind(reference)
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(done.rows_affected() == 1)
}

/// Remember where a sink is.
pub(super) async fn point(
    connection: &mut SqliteConnection,
    sink: &str,
    address: &str,
    moved: bool,
    now: DateTime<Utc>,
) -> Result<()> {
    let before: Option<String> = sqlx::query_scalar("SELECT address FROM outbox_sinks WHERE sink = ?1")
        .bind(sink)
        .fetch_optional(&mut *connection)
        .await
        .map_err(explain)?;
    if before.as_deref() != Some(address) {
        // What the first version kept is of where the sink was then.
        sqlx::query(
            "UPDATE outbox_recipients SET reference = ?2 || '/' || reference
             WHERE sink = ?1 AND addresses IS NULL AND instr(reference, '/') = 0",
        )
        .bind(sink)
        .bind(before.as_deref().unwrap_or(address))
        .execute(&mut *connection)
        .await
        .map_err(explain)?;
        sqlx::query("UPDATE outbox_recipients SET addresses = ?2 WHERE sink = ?1 AND addresses IS NULL")
            .bind(sink)
            .bind(before.as_deref().unwrap_or(address))
            .execute(&mut *connection)
            .await
            .map_err(explain)?;
        sqlx::query(
            "INSERT INTO outbox_sinks (sink, address, since) VALUES (?1, ?2, ?3)
             ON CONFLICT (sink) DO UPDATE SET address = ?2, since = ?3",
        )
        .bind(sink)
        .bind(address)
        .bind(text::time(now))
        .execute(&mut *connection)
        .await
        .map_err(explain)?;
    }
    if moved {
        sqlx::query(
            "UPDATE outbox_recipients SET addresses = ?2 WHERE sink = ?1 AND addresses NOT IN ('', ?2)",
        )
        .bind(sink)
        .bind(address)
        .execute(&mut *connection)
        .await
        .map_err(explain)?;
    }
    if moved || before.is_some_and(|before| before != address) {
        sqlx::query(
            "UPDATE outbox SET next_attempt_at = ?2
             WHERE sink = ?1 AND state = 'pending' AND next_attempt_at > ?2 AND lease IS NULL
               AND type = 'user.deleted'",
        )
        .bind(sink)
        .bind(text::time(now))
        .execute(connection)
        .await
        .map_err(explain)?;
    }
    Ok(())
}

/// Of how many users a sink was told at another address.
pub(super) async fn told_elsewhere(
    connection: &mut SqliteConnection,
    sink: &str,
    address: &str,
) -> Result<Elsewhere> {
    let (moved, users): (bool, i64) = sqlx::query_as(
        "SELECT coalesce(known.moved, false),
                (SELECT count(*) FROM outbox_recipients
                 WHERE sink = ?1 AND (addresses NOT IN ('', ?2) OR addresses IS NULL AND known.moved))
         FROM (SELECT (SELECT address <> ?2 FROM outbox_sinks WHERE sink = ?1) AS moved) AS known",
    )
    .bind(sink)
    .bind(address)
    .fetch_one(connection)
    .await
    .map_err(explain)?;
    Ok(Elsewhere { moved, users: users.unsigned_abs() })
}

/// Write down where a sink was told of a user.
pub(super) async fn keep_addresses(
    connection: &mut SqliteConnection,
    sink: &str,
    id: &ClerkId,
    addresses: &str,
) -> Result<()> {
    sqlx::query("UPDATE outbox_recipients SET addresses = ?3 WHERE clerk_id = ?1 AND sink = ?2")
        .bind(id.as_str())
        .bind(sink)
        .bind(addresses)
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(())
}
