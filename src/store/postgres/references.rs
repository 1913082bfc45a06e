//! What is known of a sink's users: how it finds them again, and where it was when it was told of them.

use chrono::{DateTime, Utc};

use super::{Postgres, count, get, sql};
use crate::{
    model::ClerkId,
    store::{Elsewhere, Result, StoreError, Trouble},
};

pub(super) async fn reference(store: &Postgres, sink: &str, id: &ClerkId) -> Result<Option<String>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT reference FROM outbox_recipients WHERE clerk_id = $1 AND sink = $2")
                .bind(id.as_str())
                .bind(sink),
        )
        .await?;
    session.commit().await?;
    rows.first().map_or(Ok(None), |row| get(row, 0))
}

pub(super) async fn keep_reference(
    store: &Postgres,
    sink: &str,
    id: &ClerkId,
    reference: &str,
) -> Result<bool> {
    let mut session = store.session(&store.begin_normal).await?;
    let kept = session
        .execute(
            // Never inserted: whoever is no recipient any more has been erased there.
            sql("UPDATE outbox_recipients SET reference = $3 WHERE clerk_id = $1 AND sink = $2")
                .bind(id.as_str())
                .bind(sink)
                .bind(reference),
        )
        .await?;
    session.commit().await?;
    Ok(kept == 1)
}

pub(super) async fn point(
    store: &Postgres,
    sink: &str,
    address: &str,
    moved: bool,
    now: DateTime<Utc>,
) -> Result<()> {
    // Nearly always it is where it was.
    let mut session = store.session(&store.begin_migration).await?;
    let rows =
        session.rows(sql("SELECT address FROM outbox_sinks WHERE sink = $1 FOR UPDATE").bind(sink)).await?;
    let before: Option<String> = rows.first().map(|row| get(row, 0)).transpose()?;
    if before.as_deref() != Some(address) {
        // What the first version kept is of where the sink was then.
        session
            .execute(
                sql("UPDATE outbox_recipients SET reference = $2 || '/' || reference
                     WHERE sink = $1 AND addresses IS NULL AND position('/' IN reference) = 0")
                .bind(sink)
                .bind(before.as_deref().unwrap_or(address)),
            )
            .await?;
        session
            .execute(
                sql("UPDATE outbox_recipients SET addresses = $2 WHERE sink = $1 AND addresses IS NULL")
                    .bind(sink)
                    .bind(before.as_deref().unwrap_or(address)),
            )
            .await?;
        session
            .execute(
                sql("INSERT INTO outbox_sinks AS s (sink, address, since) VALUES ($1, $2, $3)
                     ON CONFLICT (sink) DO UPDATE SET address = $2, since = $3")
                .bind(sink)
                .bind(address)
                .bind(now),
            )
            .await?;
    }
    if moved {
        session
            .execute(
                sql("UPDATE outbox_recipients SET addresses = $2 WHERE sink = $1 AND addresses NOT IN ('', $2)")
                    .bind(sink)
                    .bind(address),
            )
            .await?;
    }
    if moved || before.is_some_and(|before| before != address) {
        session
            .execute(
                sql("UPDATE outbox SET next_attempt_at = $2
                     WHERE sink = $1 AND state = 'pending' AND next_attempt_at > $2 AND lease IS NULL
                       AND type = 'user.deleted'")
                .bind(sink)
                .bind(now),
            )
            .await?;
    }
    session.commit().await
}

pub(super) async fn told_elsewhere(store: &Postgres, sink: &str, address: &str) -> Result<Elsewhere> {
    let mut session = store.session(&store.begin_long).await?;
    let rows = session
        .rows(
            sql("SELECT coalesce(known.moved, false),
                        (SELECT count(*) FROM outbox_recipients
                         WHERE sink = $1 AND (addresses NOT IN ('', $2) OR addresses IS NULL AND known.moved))
                 FROM (SELECT (SELECT address <> $2 FROM outbox_sinks WHERE sink = $1) AS moved) AS known")
            .bind(sink)
            .bind(address),
        )
        .await?;
    session.commit().await?;
    let row = rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?;
    Ok(Elsewhere { moved: get(row, 0)?, users: count(row, 1)? })
}

pub(super) async fn keep_addresses(
    store: &Postgres,
    sink: &str,
    id: &ClerkId,
    addresses: &str,
) -> Result<()> {
    let mut session = store.session(&store.begin_normal).await?;
    session
        .execute(
            sql("UPDATE outbox_recipients SET addresses = $3 WHERE clerk_id = $1 AND sink = $2")
                .bind(id.as_str())
                .bind(sink)
                .bind(addresses),
        )
        .await?;
    session.commit().await
}
