//! What goes after its time.

use chrono::{DateTime, Utc};

use super::{Database, Purpose, Statement, statements, values};
use crate::store::{Old, Result, StoreError, Trouble};

macro_rules! prune {
    ($table:literal, $old:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE {postgres ctid}{sqlite rowid} {in SELECT {postgres ctid}{sqlite rowid} FROM ",
            $table,
            " WHERE ",
            $old,
            " LIMIT $2{postgres  FOR UPDATE SKIP LOCKED}}"
        )
    };
}

statements! {
    COUNT_PROCESSED = "SELECT count(*) FROM processed_webhooks WHERE processed_at < $1";
    PRUNE_PROCESSED = prune!("processed_webhooks", "processed_at < $1 ORDER BY processed_at");

    COUNT_DEAD = "SELECT count(*) FROM webhook_queue WHERE state = 'dead' AND coalesce(dead_at, received_at) < $1";
    PRUNE_DEAD = prune!(
        "webhook_queue",
        "state = 'dead' AND coalesce(dead_at, received_at) < $1 ORDER BY coalesce(dead_at, received_at)"
    );

    COUNT_TOLD = "SELECT count(*) FROM outbox WHERE state <> 'pending' AND finished_at < $1 AND state <> 'dead'";
    PRUNE_TOLD = prune!("outbox", "state <> 'pending' AND finished_at < $1 AND state <> 'dead'");

    COUNT_UNTOLD = "SELECT count(*) FROM outbox WHERE state <> 'pending' AND finished_at < $1 AND state = 'dead'";
    PRUNE_UNTOLD = prune!("outbox", "state <> 'pending' AND finished_at < $1 AND state = 'dead'");

    COUNT_ACTIVITY = "SELECT count(*) FROM activity WHERE at < $1";
    PRUNE_ACTIVITY = prune!("activity", "at < $1 ORDER BY at");
}

/// How rows of a kind are counted and forgotten, and whether they say anything of a person.
fn statements(kind: Old) -> (&'static Statement, &'static Statement, bool) {
    match kind {
        Old::Processed => (&COUNT_PROCESSED, &PRUNE_PROCESSED, false),
        Old::Dead => (&COUNT_DEAD, &PRUNE_DEAD, true),
        Old::Told => (&COUNT_TOLD, &PRUNE_TOLD, true),
        Old::Untold => (&COUNT_UNTOLD, &PRUNE_UNTOLD, true),
        Old::Activity => (&COUNT_ACTIVITY, &PRUNE_ACTIVITY, false),
    }
}

pub(super) async fn count(store: &dyn Database, kind: Old, before: DateTime<Utc>) -> Result<u64> {
    let (statement, ..) = statements(kind);
    // Counting takes longer than a webhook may.
    let mut session = store.session(Purpose::Scan).await?;
    let rows = session.rows(statement, values![before]).await?;
    session.commit().await?;
    rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?.get(0)
}

pub(super) async fn prune(store: &dyn Database, kind: Old, before: DateTime<Utc>, limit: u32) -> Result<u64> {
    let (_, statement, is_personal) = statements(kind);
    let mut session = store.session(Purpose::WRITE).await?;
    let pruned = session.execute(statement, values![before, limit]).await?;
    if pruned > 0 && is_personal {
        session.removed_personal_data();
    }
    session.commit().await?;
    Ok(pruned)
}
