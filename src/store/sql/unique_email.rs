//! The index of `UNIQUE_EMAIL`.

use chrono::{DateTime, Utc};

use super::{Purpose, Row, SqlDatabase, SqlSession, only, statements, values};
use crate::{
    entity::{USER, user},
    model::{AuditAction, AuditEntry, ClerkId, Source},
    store::{Ledger as _, Result},
};

statements! {
    IS_THERE = "SELECT EXISTS (SELECT 1 FROM {postgres pg_indexes WHERE schemaname = current_schema() AND indexname}{sqlite sqlite_schema
        WHERE type = 'index' AND name}{mysql information_schema.statistics
        WHERE table_schema = database() AND table_name = 'users' AND CAST(index_name AS char)} = 'users_unique_email')";

    // Blocks writers until the transaction ends.
    LOCK = "{postgres LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE}";

    // Users with an address that another user has claimed later.
    LOST = "SELECT clerk_id FROM (
            SELECT u.clerk_id, row_number() OVER (
                PARTITION BY lower(u.email)
                ORDER BY coalesce(e.deleted, false), e.version DESC{postgres|sqlite  NULLS LAST}, u.clerk_id {postgres COLLATE \"C\" }DESC
            ) AS place
            FROM users AS u
            LEFT JOIN entity_versions AS e ON e.kind = 'user' AND e.clerk_id = u.clerk_id
            WHERE u.email IS NOT NULL AND u.deleted_at IS NULL
        ) AS ranked
        WHERE place > 1
        ORDER BY clerk_id";

    NOW = "SELECT {postgres date_trunc('milliseconds', now())}{sqlite|mysql {now}}";

    CREATE = "CREATE UNIQUE INDEX users_unique_email ON users ({postgres|sqlite lower(email)) WHERE deleted_at IS NULL}{mysql live_email)}";

    DROP = "DROP INDEX users_unique_email{mysql  ON users}";
}

/// Whether the index exists if it is wanted, and only then.
pub(in crate::store) async fn is_settled(
    database: &(impl SqlDatabase + ?Sized),
    wanted: bool,
) -> Result<bool> {
    let is_there: bool = only(&database.fetch(Purpose::Read, &IS_THERE, values![]).await?)?.get(0)?;
    Ok(is_there == wanted)
}

/// Create or drop the index in its own transaction, unless it is already as wanted. The usual case writes nothing.
pub(in crate::store) async fn settle(database: &(impl SqlDatabase + ?Sized), wanted: bool) -> Result<()> {
    if is_settled(database, wanted).await? {
        return Ok(());
    }
    let mut transaction = database.session(Purpose::WriteMany).await?;
    set(&mut *transaction, wanted).await?;
    transaction.commit().await
}

/// Create or drop the index, unless it is already as wanted. If several users have one address, the newest claim keeps it.
pub(in crate::store) async fn set(session: &mut (impl SqlSession + ?Sized), wanted: bool) -> Result<()> {
    let is_there: bool = only(&session.rows(&IS_THERE, values![]).await?)?.get(0)?;
    if is_there == wanted {
        return Ok(());
    }
    if !wanted {
        session.execute(&DROP, values![]).await?;
        return Ok(());
    }
    session.execute(&LOCK, values![]).await?;
    let lost: Vec<ClerkId> = session
        .rows(&LOST, values![])
        .await?
        .iter()
        .map(|row: &Row| row.id_of(&USER, 0))
        .collect::<Result<_>>()?;
    let at: DateTime<Utc> = only(&session.rows(&NOW, values![]).await?)?.get(0)?;
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
    session.release_addresses(&lost).await?;
    session.audit(&lost.iter().map(line).collect::<Vec<_>>()).await?;
    session.execute(&CREATE, values![]).await?;
    if !lost.is_empty() {
        let users = lost.len();
        tracing::warn!(users, "UNIQUE_EMAIL: users lost an address that another user has claimed later");
    }
    Ok(())
}
