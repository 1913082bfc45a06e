//! The index of `UNIQUE_EMAIL`.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;

use super::{error::explain, text, transaction::SqliteTransaction};
use crate::{
    entity::{USER, user},
    model::{AuditAction, AuditEntry, ClerkId, Source},
    store::{Result, StoreError, Trouble, sql::ledger},
};

pub(super) async fn is_there(connection: &mut SqliteConnection) -> Result<bool> {
    let found =
        sqlx::query("SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = 'users_unique_email'")
            .fetch_optional(connection)
            .await
            .map_err(explain)?;
    Ok(found.is_some())
}

/// Make the index or remove it. Where several users have one address, the newest claim keeps it.
pub(super) async fn set(transaction: &mut SqliteTransaction, wanted: bool) -> Result<()> {
    let connection = transaction.connection()?;
    if is_there(connection).await? == wanted {
        // Others were faster.
        return Ok(());
    }
    if wanted {
        let lost = lost(connection).await?;
        let lines = lines(connection, &lost).await?;
        ledger::release_addresses(transaction, &lost).await?;
        ledger::audit(transaction, &lines).await?;
        if !lost.is_empty() {
            let users = lost.len();
            tracing::warn!(users, "UNIQUE_EMAIL: users gave up an address that another has by a newer claim");
        }
    }
    let statement = if wanted {
        "CREATE UNIQUE INDEX users_unique_email ON users (lower(email)) WHERE deleted_at IS NULL"
    } else {
        "DROP INDEX users_unique_email"
    };
    sqlx::query(statement).execute(transaction.connection()?).await.map_err(explain)?;
    Ok(())
}

/// Who loses an address to a newer claim.
async fn lost(connection: &mut SqliteConnection) -> Result<Vec<ClerkId>> {
    let rows = sqlx::query(
        "SELECT clerk_id FROM (
             SELECT u.clerk_id, row_number() OVER (
                 PARTITION BY lower(u.email)
                 ORDER BY coalesce(e.deleted, 0), e.version DESC NULLS LAST, u.clerk_id DESC
             ) AS place
             FROM users AS u
             LEFT JOIN entity_versions AS e ON e.kind = 'user' AND e.clerk_id = u.clerk_id
             WHERE u.email IS NOT NULL AND u.deleted_at IS NULL
         )
         WHERE place > 1
         ORDER BY clerk_id",
    )
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(|row| text::read_clerk_id(row, &USER)).collect()
}

async fn lines(connection: &mut SqliteConnection, lost: &[ClerkId]) -> Result<Vec<AuditEntry>> {
    let now: String = sqlx::query_scalar("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')")
        .fetch_one(connection)
        .await
        .map_err(explain)?;
    let at: DateTime<Utc> = now.parse().map_err(|_| StoreError::new(Trouble::Broken))?;
    let line = |clerk_id: &ClerkId| AuditEntry {
        at,
        action: AuditAction::Updated,
        clerk_id: clerk_id.clone(),
        svix_id: None,
        source: Source::Cli,
        changed_fields: vec![user::EMAIL],
        event_at: at,
        actor: None,
    };
    Ok(lost.iter().map(line).collect())
}
