//! `outbox` and what belongs to it: what other systems are told, and how far that has come.
//!
//! Of the pending messages of one user and sink only the oldest has a time at which it is due. So what is due is found
//! by one search, however many wait behind it, and nothing overtakes. There is one writer, so nobody is in the way.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, references, text};
use crate::{
    model::{ClerkId, MessageType},
    store::{
        Claimed, Ending, Lease, MessageFilter, MessageState, Outgoing, Result, SinkDepth, StoredMessage,
    },
    telemetry::TraceContext,
};

/// Keep messages, in this order.
pub(super) async fn tell(connection: &mut SqliteConnection, messages: &[Outgoing]) -> Result<()> {
    let mut seen = BTreeSet::new();
    let rows = text::rows(messages.iter().map(|message| {
        json!({
            "message_id": message.message_id,
            "sink": message.sink,
            "clerk_id": message.clerk_id.as_str(),
            "type": message.kind.name(),
            "payload": message.payload,
            "created_at": text::time(message.created_at),
            "first": seen.insert((&message.clerk_id, &message.sink)),
            "trace_context": message.trace.as_str(),
        })
    }))?;
    sqlx::query(
        "INSERT INTO outbox (message_id, sink, clerk_id, type, payload, state, next_attempt_at, created_at,
                             trace_context)
         SELECT n.value ->> 'message_id', n.value ->> 'sink', n.value ->> 'clerk_id', n.value ->> 'type',
                n.value ->> 'payload', 'pending',
                CASE WHEN n.value ->> 'first' AND NOT EXISTS (
                    SELECT 1 FROM outbox AS o
                    WHERE o.sink = n.value ->> 'sink' AND o.clerk_id = n.value ->> 'clerk_id' AND o.state = 'pending'
                ) THEN n.value ->> 'created_at' END,
                n.value ->> 'created_at', n.value ->> 'trace_context'
         FROM json_each(?1) AS n
         ORDER BY n.key",
    )
    .bind(rows.as_str())
    .execute(&mut *connection)
    .await
    .map_err(explain)?;
    sqlx::query(
        "INSERT INTO outbox_recipients (clerk_id, sink, addresses)
         SELECT n.value ->> 'clerk_id', n.value ->> 'sink', '' FROM json_each(?1) AS n
         -- Without a WHERE, the parser takes ON for a join's.
         WHERE true
         ON CONFLICT (clerk_id, sink) DO NOTHING",
    )
    .bind(rows.as_str())
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Remove all but deletions, and empty what is on its way; returns how many that were.
pub(super) async fn recall(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
    now: DateTime<Utc>,
) -> Result<u64> {
    let ids = text::clerk_ids(ids)?;
    let removed = sqlx::query(
        "DELETE FROM outbox
         WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND type <> 'user.deleted'
           -- On its way, and still in time.
           AND NOT (state = 'pending' AND lease IS NOT NULL AND next_attempt_at > ?2)
         RETURNING sink, clerk_id",
    )
    .bind(ids.as_str())
    .bind(text::time(now))
    .fetch_all(&mut *connection)
    .await
    .map_err(explain)?;
    // A deletion may have waited behind what was removed.
    let behind: BTreeSet<(String, ClerkId)> = removed
        .iter()
        .map(|row| Ok((required(row, "sink")?, text::read_clerk_id(row)?)))
        .collect::<Result<_>>()?;
    for (sink, id) in &behind {
        promote(connection, sink, id, now).await?;
    }
    let emptied = sqlx::query(
        "UPDATE outbox SET payload = NULL
         WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND type <> 'user.deleted'",
    )
    .bind(ids)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(removed.len() as u64 + emptied.rows_affected())
}

/// Which sinks were ever told of these users, and wait for no deletion yet.
pub(super) async fn to_be_told(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
) -> Result<Vec<(ClerkId, String)>> {
    let rows = sqlx::query(
        "SELECT r.clerk_id, r.sink
         FROM json_each(?1) AS n
         CROSS JOIN outbox_recipients AS r ON r.clerk_id = n.value
         WHERE NOT EXISTS (
             SELECT 1 FROM outbox AS o
             WHERE o.sink = r.sink AND o.clerk_id = r.clerk_id AND o.state = 'pending' AND o.type = 'user.deleted'
         )
         ORDER BY 1, 2",
    )
    .bind(text::clerk_ids(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(|row| Ok((text::read_clerk_id(row)?, required(row, "sink")?))).collect()
}

/// Whether any message for this sink is due.
pub(super) async fn any_due(
    connection: &mut SqliteConnection,
    sink: &str,
    now: DateTime<Utc>,
) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM outbox WHERE sink = ?1 AND state = 'pending' AND next_attempt_at <= ?2)
                AND NOT EXISTS (SELECT 1 FROM outbox_paused WHERE sink = ?1)",
    )
    .bind(sink)
    .bind(text::time(now))
    .fetch_one(connection)
    .await
    .map_err(explain)
}

/// When the first message for this sink is due, unless it is paused.
pub(super) async fn first_due(
    connection: &mut SqliteConnection,
    sink: &str,
) -> Result<Option<DateTime<Utc>>> {
    let row = sqlx::query(
        "SELECT min(next_attempt_at) AS due FROM outbox
         WHERE sink = ?1 AND state = 'pending' AND NOT EXISTS (SELECT 1 FROM outbox_paused WHERE sink = ?1)",
    )
    .bind(sink)
    .fetch_one(connection)
    .await
    .map_err(explain)?;
    text::read_time(&row, "due")
}

/// Take the messages that have been due for longest.
pub(super) async fn claim(
    connection: &mut SqliteConnection,
    sink: &str,
    lease: &Lease,
    limit: u32,
) -> Result<Vec<Claimed>> {
    loop {
        let rows = sqlx::query(
            "UPDATE outbox
             SET lease = ?3, next_attempt_at = ?4
             WHERE id IN (
                 SELECT id FROM outbox
                 WHERE sink = ?1 AND state = 'pending' AND next_attempt_at <= ?2
                   AND NOT EXISTS (SELECT 1 FROM outbox_paused WHERE sink = ?1)
                 ORDER BY next_attempt_at, id
                 LIMIT ?5
             )
             RETURNING id, message_id, clerk_id, type, payload, attempts, created_at, trace_context,
                       (SELECT addresses FROM outbox_recipients AS r
                        WHERE r.clerk_id = outbox.clerk_id AND r.sink = ?1) AS addresses",
        )
        .bind(sink)
        .bind(text::time(lease.now))
        .bind(lease.token.as_str())
        .bind(text::time(lease.until))
        .bind(limit)
        .fetch_all(&mut *connection)
        .await
        .map_err(explain)?;
        let mut claimed = Vec::with_capacity(rows.len());
        for row in &rows {
            let (id, clerk_id) = (number(row, "id")?, text::read_clerk_id(row)?);
            let Some(payload) = text::read(row, "payload")? else {
                // Its user was erased while somebody who is dead delivered it. The deletion that waits behind it may go.
                remove(connection, id).await?;
                promote(connection, sink, &clerk_id, lease.now).await?;
                continue;
            };
            let kind = kind(row)?;
            let addresses: Option<String> = text::read(row, "addresses")?;
            let mut addresses = addresses.unwrap_or_else(|| lease.address.clone());
            if kind != MessageType::UserDeleted && addresses.split(' ').all(|known| known != lease.address) {
                // It is about to be told of the user here.
                if !addresses.is_empty() {
                    addresses.push(' ');
                }
                addresses.push_str(&lease.address);
                references::keep_addresses(connection, sink, &clerk_id, &addresses).await?;
            }
            claimed.push(Claimed {
                id,
                message_id: required(row, "message_id")?,
                sink: sink.to_owned(),
                clerk_id,
                kind,
                payload,
                attempts: attempts(row)?,
                created_at: time(row, "created_at")?,
                lease: lease.token.clone(),
                addresses,
                trace: TraceContext::kept(text::read(row, "trace_context")?),
            });
        }
        if rows.is_empty() || !claimed.is_empty() {
            claimed.sort_by_key(|message| message.id);
            return Ok(claimed);
        }
    }
}

/// Say how a delivery ended, if it is still ours to say.
pub(super) async fn finish(
    connection: &mut SqliteConnection,
    claimed: &Claimed,
    ending: &Ending,
    now: DateTime<Utc>,
) -> Result<bool> {
    let Some(emptied) = settle(connection, claimed, ending, now).await? else { return Ok(false) };
    let recalled = emptied && *ending != Ending::Delivered;
    if recalled {
        remove(connection, claimed.id).await?;
    }
    if recalled || ending.lets_the_next_one_go() {
        promote(connection, &claimed.sink, &claimed.clerk_id, now).await?;
    }
    if claimed.kind == MessageType::UserDeleted {
        write_receipt(connection, claimed, ending, now).await?;
        if *ending == Ending::Delivered {
            forget_recipient(connection, claimed).await?;
        }
    }
    Ok(true)
}

/// Write how it ended; says whether nothing is left of what it said.
async fn settle(
    connection: &mut SqliteConnection,
    claimed: &Claimed,
    ending: &Ending,
    now: DateTime<Utc>,
) -> Result<Option<bool>> {
    let (state, attempts, at, error) = match ending {
        Ending::Delivered => (MessageState::Delivered, claimed.attempts + 1, None, None),
        // It stands before whatever became due since.
        Ending::Untried => (MessageState::Pending, claimed.attempts, Some(claimed.created_at), None),
        Ending::Again { attempts, at, error } => (MessageState::Pending, *attempts, Some(*at), Some(error)),
        Ending::Dead { attempts, error } => (MessageState::Dead, *attempts, None, Some(error)),
    };
    sqlx::query_scalar(
        "UPDATE outbox
         SET state = ?3, attempts = ?4, next_attempt_at = ?5, lease = NULL,
             last_error = CASE WHEN ?3 = 'pending' THEN coalesce(?6, last_error) ELSE ?6 END,
             finished_at = CASE WHEN ?3 <> 'pending' THEN ?7 END,
             payload = CASE WHEN ?3 <> 'delivered' THEN payload END
         WHERE id = ?1 AND lease = ?2 AND state = 'pending'
         RETURNING payload IS NULL",
    )
    .bind(claimed.id)
    .bind(claimed.lease.as_str())
    .bind(state.name())
    .bind(attempts)
    .bind(at.map(text::time))
    .bind(error.map(String::as_str))
    .bind(text::time(now))
    .fetch_optional(connection)
    .await
    .map_err(explain)
}

async fn remove(connection: &mut SqliteConnection, id: i64) -> Result<()> {
    sqlx::query("DELETE FROM outbox WHERE id = ?1").bind(id).execute(connection).await.map_err(explain)?;
    Ok(())
}

/// Let the oldest message of this user go that waits for this sink, unless it may already.
async fn promote(
    connection: &mut SqliteConnection,
    sink: &str,
    id: &ClerkId,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "UPDATE outbox SET next_attempt_at = ?3
         WHERE next_attempt_at IS NULL AND id = (
             SELECT id FROM outbox WHERE sink = ?1 AND clerk_id = ?2 AND state = 'pending' ORDER BY id LIMIT 1
         )",
    )
    .bind(sink)
    .bind(id.as_str())
    .bind(text::time(now))
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// How far the erasure has come at this sink.
async fn write_receipt(
    connection: &mut SqliteConnection,
    claimed: &Claimed,
    ending: &Ending,
    now: DateTime<Utc>,
) -> Result<()> {
    let (completed_at, error) = match ending {
        Ending::Delivered => (Some(text::time(now)), None),
        Ending::Untried => return Ok(()),
        Ending::Again { error, .. } | Ending::Dead { error, .. } => (None, Some(error.as_str())),
    };
    sqlx::query(
        "UPDATE erasure_receipts SET attempts = attempts + 1, last_error = ?4, completed_at = ?3
         WHERE clerk_id = ?1 AND destination = ?2 AND completed_at IS NULL",
    )
    .bind(claimed.clerk_id.as_str())
    .bind(claimed.sink.as_str())
    .bind(completed_at)
    .bind(error)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// The sink knows nothing of this user any more.
async fn forget_recipient(connection: &mut SqliteConnection, claimed: &Claimed) -> Result<()> {
    sqlx::query("DELETE FROM outbox_recipients WHERE clerk_id = ?1 AND sink = ?2")
        .bind(claimed.clerk_id.as_str())
        .bind(claimed.sink.as_str())
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(())
}

/// What waits and what is dead, by sink.
pub(super) async fn depth(connection: &mut SqliteConnection) -> Result<Vec<SinkDepth>> {
    let rows = sqlx::query(
        "SELECT sink, sum(pending) AS pending, sum(dead) AS dead, min(oldest) AS oldest FROM (
             -- Each half is answered by an index alone.
             SELECT sink, count(*) AS pending, 0 AS dead, min(created_at) AS oldest
             FROM outbox WHERE state = 'pending' GROUP BY sink
             UNION ALL
             SELECT sink, 0, count(*), NULL FROM outbox WHERE state = 'dead' GROUP BY sink
         )
         GROUP BY sink ORDER BY sink",
    )
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    let depth = |row| {
        Ok(SinkDepth {
            sink: required(row, "sink")?,
            pending: number(row, "pending")?.unsigned_abs(),
            dead: number(row, "dead")?.unsigned_abs(),
            oldest: text::read_time(row, "oldest")?,
        })
    };
    rows.iter().map(depth).collect()
}

/// A page of messages, in the order of their ids.
pub(super) async fn messages(
    connection: &mut SqliteConnection,
    filter: &MessageFilter,
    limit: u32,
) -> Result<Vec<StoredMessage>> {
    let rows = sqlx::query(
        "SELECT id, message_id, sink, clerk_id, type, state, attempts, next_attempt_at, lease IS NOT NULL AS taken,
                created_at, finished_at, last_error
         FROM outbox
         WHERE id > ?1 AND (?2 IS NULL OR sink = ?2) AND (?3 IS NULL OR state = ?3)
         ORDER BY id
         LIMIT ?4",
    )
    .bind(filter.after.unwrap_or(i64::MIN))
    .bind(filter.sink.as_deref())
    .bind(filter.state.map(MessageState::name))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(stored).collect()
}

/// Those of these messages that there are.
pub(super) async fn messages_of(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<StoredMessage>> {
    let rows = sqlx::query(
        "SELECT o.id, o.message_id, o.sink, o.clerk_id, o.type, o.state, o.attempts, o.next_attempt_at,
                o.lease IS NOT NULL AS taken, o.created_at, o.finished_at, o.last_error
         FROM json_each(?1) AS n
         CROSS JOIN outbox AS o ON o.id = n.value",
    )
    .bind(text::rows(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(stored).collect()
}

/// One message, and its JSON if it is still kept.
pub(super) async fn message(
    connection: &mut SqliteConnection,
    id: i64,
) -> Result<Option<(StoredMessage, Option<String>)>> {
    let row = sqlx::query(
        "SELECT id, message_id, sink, clerk_id, type, state, attempts, next_attempt_at, lease IS NOT NULL AS taken,
                created_at, finished_at, last_error, payload
         FROM outbox WHERE id = ?1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await
    .map_err(explain)?;
    row.map(|row| Ok((stored(&row)?, text::read(&row, "payload")?))).transpose()
}

/// Make dead messages pending, unless what they say is out of date; returns whom they are for.
pub(super) async fn retry(
    connection: &mut SqliteConnection,
    ids: &[i64],
    now: DateTime<Utc>,
) -> Result<Vec<(String, String)>> {
    let rows = sqlx::query(
        "UPDATE outbox
         SET state = 'pending', attempts = 0, lease = NULL, finished_at = NULL, next_attempt_at = NULL
         WHERE id IN (SELECT value FROM json_each(?1)) AND state = 'dead' AND payload IS NOT NULL
           -- The next one that is not given up decides: nothing behind it has been handed out.
           AND NOT coalesce((
               SELECT later.state = 'delivered' OR (later.lease IS NOT NULL AND later.next_attempt_at > ?2)
               FROM outbox AS later
               WHERE later.clerk_id = outbox.clerk_id AND later.sink = outbox.sink AND later.id > outbox.id
                 AND later.state IN ('pending', 'delivered')
               ORDER BY later.id
               LIMIT 1
           ), 0)
         RETURNING sink, clerk_id",
    )
    .bind(text::rows(ids)?)
    .bind(text::time(now))
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(pair).collect()
}

/// Give up messages that are dead or wait, but deletions; returns whom they were for.
pub(super) async fn discard(
    connection: &mut SqliteConnection,
    ids: &[i64],
    now: DateTime<Utc>,
) -> Result<Vec<(String, String)>> {
    let rows = sqlx::query(
        "UPDATE outbox
         SET state = 'discarded', payload = NULL, lease = NULL, next_attempt_at = NULL, finished_at = ?2
         WHERE id IN (SELECT value FROM json_each(?1)) AND type <> 'user.deleted' AND state IN ('pending', 'dead')
           AND NOT (state = 'pending' AND lease IS NOT NULL AND next_attempt_at > ?2)
         RETURNING sink, clerk_id",
    )
    .bind(text::rows(ids)?)
    .bind(text::time(now))
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(pair).collect()
}

/// Of these sinks and users let the oldest message go, and none besides.
pub(super) async fn arrange(
    connection: &mut SqliteConnection,
    pairs: &[(String, String)],
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "WITH pairs (sink, clerk_id, oldest) AS MATERIALIZED (
             SELECT DISTINCT n.value ->> 0, n.value ->> 1, (
                 SELECT min(o.id) FROM outbox AS o
                 WHERE o.sink = n.value ->> 0 AND o.clerk_id = n.value ->> 1 AND o.state = 'pending'
             )
             FROM json_each(?1) AS n
         )
         UPDATE outbox
         SET next_attempt_at = CASE WHEN outbox.id = pairs.oldest THEN ?2 END, lease = NULL
         FROM pairs
         WHERE outbox.sink = pairs.sink AND outbox.clerk_id = pairs.clerk_id AND outbox.state = 'pending'
           AND (outbox.id = pairs.oldest) = (outbox.next_attempt_at IS NULL)",
    )
    .bind(text::rows(pairs)?)
    .bind(text::time(now))
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Stop handing out messages for this sink.
pub(super) async fn pause(connection: &mut SqliteConnection, sink: &str, at: DateTime<Utc>) -> Result<()> {
    sqlx::query("INSERT INTO outbox_paused (sink, paused_at) VALUES (?1, ?2) ON CONFLICT (sink) DO NOTHING")
        .bind(sink)
        .bind(text::time(at))
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(())
}

/// Hand them out again; false if it was not paused.
pub(super) async fn resume(connection: &mut SqliteConnection, sink: &str) -> Result<bool> {
    let done = sqlx::query("DELETE FROM outbox_paused WHERE sink = ?1")
        .bind(sink)
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(done.rows_affected() > 0)
}

/// Which sinks are paused, and since when.
pub(super) async fn paused(connection: &mut SqliteConnection) -> Result<Vec<(String, DateTime<Utc>)>> {
    let rows = sqlx::query("SELECT sink, paused_at FROM outbox_paused ORDER BY sink")
        .fetch_all(connection)
        .await
        .map_err(explain)?;
    rows.iter().map(|row| Ok((required(row, "sink")?, time(row, "paused_at")?))).collect()
}

fn stored(row: &SqliteRow) -> Result<StoredMessage> {
    Ok(StoredMessage {
        id: number(row, "id")?,
        message_id: required(row, "message_id")?,
        sink: required(row, "sink")?,
        clerk_id: text::read_clerk_id(row)?,
        kind: kind(row)?,
        state: MessageState::named(&required(row, "state")?).ok_or_else(|| text::unreadable("state"))?,
        attempts: attempts(row)?,
        next_attempt_at: text::read_time(row, "next_attempt_at")?,
        taken: row.try_get("taken").map_err(explain)?,
        created_at: time(row, "created_at")?,
        finished_at: text::read_time(row, "finished_at")?,
        last_error: text::read(row, "last_error")?,
    })
}

fn pair(row: &SqliteRow) -> Result<(String, String)> {
    Ok((required(row, "sink")?, required(row, "clerk_id")?))
}

fn kind(row: &SqliteRow) -> Result<MessageType> {
    MessageType::named(&required(row, "type")?).ok_or_else(|| text::unreadable("type"))
}

fn required(row: &SqliteRow, column: &str) -> Result<String> {
    text::read(row, column)?.ok_or_else(|| text::unreadable(column))
}

fn number(row: &SqliteRow, column: &str) -> Result<i64> {
    text::read_integer(row, column)?.ok_or_else(|| text::unreadable(column))
}

fn time(row: &SqliteRow, column: &str) -> Result<DateTime<Utc>> {
    text::read_time(row, column)?.ok_or_else(|| text::unreadable(column))
}

fn attempts(row: &SqliteRow) -> Result<u32> {
    Ok(text::read_integer(row, "attempts")?.and_then(|count| count.try_into().ok()).unwrap_or_default())
}
