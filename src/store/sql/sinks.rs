//! What is known of sinks: which are paused, where they are, where they were when they were told of a user, and how they
//! find that user again.

use chrono::{DateTime, Utc};

use super::{Database, Purpose, Session, batch, only, outbox::pairs, statements, values};
use crate::{
    model::ClerkId,
    store::{Elsewhere, Result},
};

statements! {
    PAUSE = "INSERT INTO outbox_paused (sink, paused_at) VALUES ($1, $2) ON CONFLICT (sink) DO NOTHING";

    RESUME = "DELETE FROM outbox_paused WHERE sink = $1";

    PAUSED = "SELECT sink, paused_at FROM outbox_paused ORDER BY sink";

    ADDRESS = "SELECT address FROM outbox_sinks WHERE sink = $1{postgres  FOR UPDATE}";

    // What the first version kept is of where the sink was then.
    ADDRESS_REFERENCES = "UPDATE outbox_recipients SET reference = $2 || '/' || reference
        WHERE sink = $1 AND addresses IS NULL AND reference NOT LIKE '%/%'";

    ADDRESS_RECIPIENTS = "UPDATE outbox_recipients SET addresses = $2 WHERE sink = $1 AND addresses IS NULL";

    POINT = "INSERT INTO outbox_sinks (sink, address, since) VALUES ($1, $2, $3)
        ON CONFLICT (sink) DO UPDATE SET address = excluded.address, since = excluded.since";

    MOVE_RECIPIENTS = "UPDATE outbox_recipients SET addresses = $2 WHERE sink = $1 AND addresses NOT IN ('', $2)";

    HASTEN_DELETIONS = "UPDATE outbox SET next_attempt_at = $2
        WHERE sink = $1 AND state = 'pending' AND next_attempt_at > $2 AND lease IS NULL AND type LIKE '%.deleted'";

    TOLD_ELSEWHERE = "SELECT coalesce(known.moved, false),
               (SELECT count(*) FROM outbox_recipients
                WHERE sink = $1 AND (addresses NOT IN ('', $2) OR addresses IS NULL AND known.moved))
        FROM (SELECT (SELECT address <> $2 FROM outbox_sinks WHERE sink = $1) AS moved) AS known";

    KEEP_ADDRESSES = "WITH n AS (SELECT * FROM {batch $1 AS n: clerk_id text, addresses text})
        UPDATE outbox_recipients AS r SET addresses = n.addresses
        FROM n
        WHERE r.clerk_id = n.clerk_id AND r.sink = $2 AND r.clerk_id {in SELECT clerk_id FROM n}";

    REFERENCE = "SELECT reference FROM outbox_recipients WHERE clerk_id = $1 AND sink = $2";

    // Never inserted: whoever is no recipient any more has been erased there.
    KEEP_REFERENCE = "UPDATE outbox_recipients SET reference = $3 WHERE clerk_id = $1 AND sink = $2";

    FORGET = "WITH n AS (SELECT * FROM {batch $1 AS n: sink text, clerk_id text})
        DELETE FROM outbox_recipients AS r
        WHERE r.clerk_id {in SELECT clerk_id FROM n}
          AND EXISTS (SELECT 1 FROM n WHERE n.clerk_id = r.clerk_id AND n.sink = r.sink)";
}

pub(super) async fn set_paused(
    store: &dyn Database,
    sink: &str,
    since: Option<DateTime<Utc>>,
) -> Result<bool> {
    let mut session = store.session(Purpose::WRITE).await?;
    let changed = if let Some(since) = since {
        session.execute(&PAUSE, values![sink, since]).await?
    } else {
        session.leaves_work();
        session.execute(&RESUME, values![sink]).await?
    };
    session.commit().await?;
    Ok(changed > 0)
}

pub(super) async fn paused(store: &dyn Database) -> Result<Vec<(String, DateTime<Utc>)>> {
    let rows = store.fetch(Purpose::Read, &PAUSED, values![]).await?;
    rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
}

pub(super) async fn point(
    store: &dyn Database,
    sink: &str,
    address: &str,
    moved: bool,
    now: DateTime<Utc>,
) -> Result<()> {
    // Nearly always it is where it was.
    let mut session = store.session(Purpose::WriteMany).await?;
    let rows = session.rows(&ADDRESS, values![sink]).await?;
    let before: Option<String> = rows.first().map(|row| row.get(0)).transpose()?;
    if before.as_deref() != Some(address) {
        let then = before.as_deref().unwrap_or(address);
        session.execute(&ADDRESS_REFERENCES, values![sink, then]).await?;
        session.execute(&ADDRESS_RECIPIENTS, values![sink, then]).await?;
        session.execute(&POINT, values![sink, address, now]).await?;
    }
    if moved {
        session.execute(&MOVE_RECIPIENTS, values![sink, address]).await?;
    }
    if moved || before.is_some_and(|before| before != address) {
        session.execute(&HASTEN_DELETIONS, values![sink, now]).await?;
    }
    session.commit().await
}

pub(super) async fn told_elsewhere(store: &dyn Database, sink: &str, address: &str) -> Result<Elsewhere> {
    let rows = store.fetch(Purpose::Scan, &TOLD_ELSEWHERE, values![sink, address]).await?;
    let row = only(&rows)?;
    Ok(Elsewhere { moved: row.get(0)?, users: row.get(1)? })
}

/// Write down where a sink was told of users.
pub(super) async fn keep_addresses(
    session: &mut dyn Session,
    sink: &str,
    addresses: &[(&ClerkId, &str)],
) -> Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let rows = batch(addresses).text(|(id, _)| id.as_str()).text(|(_, addresses)| *addresses);
    session.execute(&KEEP_ADDRESSES, values![rows, sink]).await?;
    Ok(())
}

pub(super) async fn reference(store: &dyn Database, sink: &str, id: &ClerkId) -> Result<Option<String>> {
    let rows = store.fetch(Purpose::Read, &REFERENCE, values![id, sink]).await?;
    rows.first().map_or(Ok(None), |row| row.maybe(0))
}

pub(super) async fn keep_reference(
    store: &dyn Database,
    sink: &str,
    id: &ClerkId,
    reference: &str,
) -> Result<bool> {
    let kept = store.run(Purpose::WRITE, &KEEP_REFERENCE, values![id, sink, reference]).await?;
    Ok(kept == 1)
}

/// Sinks that have erased a user know nothing of them any more.
pub(super) async fn forget(session: &mut dyn Session, erased: &[(String, ClerkId)]) -> Result<()> {
    if !erased.is_empty() {
        session.execute(&FORGET, values![pairs(erased)]).await?;
    }
    Ok(())
}
