//! `outbox_recipients.reference`: what a sink remembers of a user.

use sqlx::SqliteConnection;

use super::{error::explain, text};
use crate::{model::ClerkId, store::Result};

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
