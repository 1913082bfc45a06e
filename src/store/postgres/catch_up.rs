//! What catching up through the Backend API reads.

use chrono::{DateTime, Utc};

use super::{Postgres, inspect, sql, transaction::clerk_id};
use crate::{
    entity::USER,
    model::{ClerkId, FieldSet},
    store::{
        Known, Result,
        sql::{ledger, objects},
    },
};

pub(super) async fn known(store: &Postgres, ids: &[ClerkId], fields: FieldSet) -> Result<Known> {
    let mut session = store.session(&store.begin_normal).await?;
    let registers = ledger::known_registers(&mut session, ids).await?;
    let users = objects::load(&mut session, &USER, ids, fields).await?;
    session.commit().await?;
    Ok(Known { registers, users })
}

pub(super) async fn standing(
    store: &Postgres,
    untouched_since: DateTime<Utc>,
    after: Option<&ClerkId>,
    limit: u32,
) -> Result<Vec<ClerkId>> {
    // Where nearly everybody was touched it looks through the whole table.
    let mut session = store.session(&store.begin_migration).await?;
    let rows = session
        .rows(
            sql("SELECT u.clerk_id FROM users AS u
                 -- Rows that somebody else has inserted have no time of ours.
                 WHERE u.clerk_id > $1 AND coalesce(u.synced_at < $2, true)
                   AND NOT EXISTS (
                       SELECT FROM entity_versions AS e
                       WHERE e.kind = 'user' AND e.clerk_id = u.clerk_id AND (e.deleted OR e.held_until IS NOT NULL)
                   )
                 ORDER BY u.clerk_id
                 LIMIT $3")
            .bind(after.map_or("", ClerkId::as_str))
            .bind(untouched_since)
            .bind(i64::from(limit)),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(|row| clerk_id(row, 0)).collect()
}

pub(super) async fn count_standing(store: &Postgres) -> Result<u64> {
    // Of a large table this takes longer than a webhook may.
    let mut session = store.session(&store.begin_migration).await?;
    let rows = session
        .rows(sql("SELECT count(*) FROM users AS u
             WHERE NOT EXISTS (
                 SELECT FROM entity_versions AS e
                 WHERE e.kind = 'user' AND e.clerk_id = u.clerk_id AND (e.deleted OR e.held_until IS NOT NULL)
             )"))
        .await?;
    let standing = inspect::only(&rows)?;
    session.commit().await?;
    Ok(standing)
}
