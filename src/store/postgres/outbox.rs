//! The outbox: what other systems are told, and how far that has come.
//!
//! Of the pending messages of one user and sink only the oldest has a time at which it is due. So what is due is found
//! by one search, however many wait behind it, and nothing overtakes. Whoever adds a message or takes one away holds the
//! user's register, or two of them would each believe that the other lets the next one go.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::{
    Postgres, Session, count, get, sql,
    transaction::{clerk_id, column, texts, traces},
};
use crate::{
    model::{ClerkId, MessageType},
    store::{
        Claimed, Ending, Lease, MessageFilter, MessageState, Outgoing, Result, SinkDepth, StoreError,
        StoredMessage, Trouble,
    },
    telemetry::TraceContext,
};

/// Keep messages, in this order.
pub(super) async fn tell(session: &mut Session, messages: &[Outgoing]) -> Result<()> {
    let mut seen = HashSet::new();
    let first: Vec<bool> =
        messages.iter().map(|message| seen.insert((&message.clerk_id, &message.sink))).collect();
    let query = sql("WITH told AS (
             INSERT INTO outbox_recipients (clerk_id, sink, addresses)
             SELECT n.clerk_id, n.sink, '' FROM unnest($3::text[], $2::text[]) AS n (clerk_id, sink)
             ON CONFLICT (clerk_id, sink) DO NOTHING
         )
         INSERT INTO outbox (message_id, sink, clerk_id, type, payload, state, next_attempt_at, created_at, trace_context)
         SELECT n.message_id, n.sink, n.clerk_id, n.type, n.payload, 'pending',
                CASE WHEN n.first AND older.id IS NULL THEN n.created_at END, n.created_at, n.trace_context
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::boolean[], $8::text[])
              WITH ORDINALITY AS n (message_id, sink, clerk_id, type, payload, created_at, first, trace_context, place)
         -- One search a message; the limit keeps the planner from reading all that waits instead.
         LEFT JOIN LATERAL (
             SELECT id FROM outbox WHERE sink = n.sink AND clerk_id = n.clerk_id AND state = 'pending' LIMIT 1
         ) AS older ON true
         ORDER BY n.place")
    .bind(column(messages, |message| message.message_id.as_str()))
    .bind(column(messages, |message| message.sink.as_str()))
    .bind(column(messages, |message| message.clerk_id.as_str()))
    .bind(column(messages, |message| message.kind.name()))
    .bind(column(messages, |message| message.payload.as_str()))
    .bind(column(messages, |message| message.created_at))
    .bind(first)
    .bind(traces(messages, |message| &message.trace));
    session.leaves_work();
    session.execute(query).await?;
    Ok(())
}

/// Remove all but deletions, and empty what is on its way.
pub(super) async fn recall(
    session: &mut Session,
    ids: &[ClerkId],
    now: DateTime<Utc>,
) -> Result<Vec<(ClerkId, String)>> {
    let removed = session
        .rows(
            sql("DELETE FROM outbox AS o USING unnest($1::text[]) AS n (clerk_id)
                 WHERE o.clerk_id = n.clerk_id AND o.type <> 'user.deleted'
                   -- On its way, and still in time.
                   AND NOT (o.state = 'pending' AND o.lease IS NOT NULL AND o.next_attempt_at > $2)
                 RETURNING o.sink, o.clerk_id")
            .bind(texts(ids))
            .bind(now),
        )
        .await?;
    session
        .execute(
            sql("UPDATE outbox AS o SET payload = NULL FROM unnest($1::text[]) AS n (clerk_id)
                 WHERE o.clerk_id = n.clerk_id AND o.type <> 'user.deleted'")
            .bind(texts(ids)),
        )
        .await?;
    // A deletion may have waited behind what was removed.
    let behind: BTreeSet<(String, ClerkId)> =
        removed.iter().map(|row| Ok((get(row, 0)?, clerk_id(row, 1)?))).collect::<Result<_>>()?;
    let behind: Vec<(&str, &ClerkId)> = behind.iter().map(|(sink, id)| (sink.as_str(), id)).collect();
    if !behind.is_empty() {
        promote(session, &behind, now).await?;
    }
    let rows = session
        .rows(
            sql("SELECT r.clerk_id, r.sink FROM unnest($1::text[]) AS n (clerk_id)
                 CROSS JOIN LATERAL (SELECT * FROM outbox_recipients WHERE clerk_id = n.clerk_id) AS r
                 LEFT JOIN LATERAL (
                     SELECT id FROM outbox
                     WHERE sink = r.sink AND clerk_id = r.clerk_id AND state = 'pending' AND type = 'user.deleted'
                     LIMIT 1
                 ) AS told ON true
                 WHERE told.id IS NULL
                 ORDER BY 1, 2")
            .bind(texts(ids)),
        )
        .await?;
    rows.iter().map(|row| Ok((clerk_id(row, 0)?, get(row, 1)?))).collect()
}

pub(super) async fn claim(store: &Postgres, sink: &str, lease: &Lease, limit: u32) -> Result<Vec<Claimed>> {
    loop {
        let mut session = store.session(&store.begin_normal).await?;
        let rows = session
            .rows(
                sql("UPDATE outbox AS o
                     SET lease = $3, next_attempt_at = $4
                     FROM (
                         SELECT id FROM outbox
                         WHERE sink = $1 AND state = 'pending' AND next_attempt_at <= $2
                           AND NOT EXISTS (SELECT FROM outbox_paused WHERE sink = $1)
                         ORDER BY next_attempt_at, id
                         LIMIT $5
                         -- Another replica takes others.
                         FOR UPDATE SKIP LOCKED
                     ) AS due
                     WHERE o.id = due.id
                     RETURNING o.id, o.message_id, o.clerk_id, o.type, o.payload, o.attempts, o.created_at,
                               o.trace_context,
                               (SELECT addresses FROM outbox_recipients WHERE clerk_id = o.clerk_id AND sink = $1)")
                .bind(sink)
                .bind(lease.now)
                .bind(lease.token.as_str())
                .bind(lease.until)
                .bind(i64::from(limit)),
            )
            .await?;
        let (mut claimed, mut emptied) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in &rows {
            let (id, clerk_id) = (get::<i64>(row, 0)?, clerk_id(row, 2)?);
            let Some(payload) = get::<Option<String>>(row, 4)? else {
                emptied.push((id, clerk_id));
                continue;
            };
            claimed.push(Claimed {
                id,
                message_id: get(row, 1)?,
                sink: sink.to_owned(),
                clerk_id,
                kind: kind(row, 3)?,
                payload,
                attempts: get::<i32>(row, 5)?.unsigned_abs(),
                created_at: get(row, 6)?,
                lease: lease.token.clone(),
                addresses: get::<Option<String>>(row, 8)?.unwrap_or_else(|| lease.address.clone()),
                trace: TraceContext::kept(get(row, 7)?),
            });
        }
        note_addresses(&mut session, sink, &lease.address, &mut claimed).await?;
        if !emptied.is_empty() {
            // Their users were erased while somebody who is dead delivered them. The deletions that wait behind them may go.
            remove(&mut session, &column(&emptied, |(id, _)| *id)).await?;
            promote(&mut session, &column(&emptied, |(_, user)| (sink, user)), lease.now).await?;
        }
        session.commit().await?;
        if rows.is_empty() || !claimed.is_empty() {
            claimed.sort_by_key(|message| message.id);
            return Ok(claimed);
        }
    }
}

/// Write down that the sink is told here of those of whom it is about to be told.
async fn note_addresses(
    session: &mut Session,
    sink: &str,
    address: &str,
    claimed: &mut [Claimed],
) -> Result<()> {
    let mut new = Vec::new();
    for message in claimed.iter_mut().filter(|message| message.kind != MessageType::UserDeleted) {
        if message.addresses.split(' ').all(|known| known != address) {
            if !message.addresses.is_empty() {
                message.addresses.push(' ');
            }
            message.addresses.push_str(address);
            new.push((message.clerk_id.as_str(), message.addresses.as_str()));
        }
    }
    if new.is_empty() {
        return Ok(());
    }
    let query = sql("UPDATE outbox_recipients AS r SET addresses = n.addresses
         FROM unnest($2::text[], $3::text[]) AS n (clerk_id, addresses)
         WHERE r.clerk_id = n.clerk_id AND r.sink = $1")
    .bind(sink)
    .bind(column(&new, |(id, _)| *id))
    .bind(column(&new, |(_, addresses)| *addresses));
    session.execute(query).await?;
    Ok(())
}

pub(super) async fn finish(store: &Postgres, ended: &[(Claimed, Ending)], now: DateTime<Utc>) -> Result<u64> {
    // Should it be lost, the messages are delivered once more when their leases end. A claim must not be: an erasure has
    // to know what is on its way.
    let mut session = store.session(&store.begin_unhurried).await?;
    let mut users = column(ended, |(claimed, _)| claimed.clerk_id.clone());
    users.sort();
    users.dedup();
    lock(&mut session, &users).await?;
    let settled = settle(&mut session, ended, now).await?;
    let (mut recalled, mut let_go, mut deletions) = (Vec::new(), Vec::new(), Vec::new());
    for (claimed, ending) in ended {
        let Some(emptied) = settled.get(&claimed.id) else { continue };
        let is_recalled = *emptied && *ending != Ending::Delivered;
        if is_recalled {
            recalled.push(claimed.id);
        }
        if is_recalled || ending.lets_the_next_one_go() {
            let_go.push((claimed.sink.as_str(), &claimed.clerk_id));
        }
        if claimed.kind == MessageType::UserDeleted && *ending != Ending::Untried {
            deletions.push((claimed, ending));
        }
    }
    if !recalled.is_empty() {
        remove(&mut session, &recalled).await?;
    }
    if !let_go.is_empty() {
        promote(&mut session, &let_go, now).await?;
    }
    if !deletions.is_empty() {
        write_receipts(&mut session, &deletions, now).await?;
        forget_recipients(&mut session, &deletions).await?;
    }
    session.commit().await?;
    Ok(settled.len() as u64)
}

/// Write how they ended, where that is still ours to write; says of these whether nothing is left of what they said.
async fn settle(
    session: &mut Session,
    ended: &[(Claimed, Ending)],
    now: DateTime<Utc>,
) -> Result<HashMap<i64, bool>> {
    let state = |(_, ending): &(Claimed, Ending)| match ending {
        Ending::Delivered => MessageState::Delivered.name(),
        Ending::Untried | Ending::Again { .. } => MessageState::Pending.name(),
        Ending::Dead { .. } => MessageState::Dead.name(),
    };
    let attempts = |(claimed, ending): &(Claimed, Ending)| {
        let attempts = match ending {
            Ending::Delivered => claimed.attempts + 1,
            Ending::Untried => claimed.attempts,
            Ending::Again { attempts, .. } | Ending::Dead { attempts, .. } => *attempts,
        };
        i32::try_from(attempts).unwrap_or(i32::MAX)
    };
    let at = |(claimed, ending): &(Claimed, Ending)| match ending {
        // It stands before whatever became due since.
        Ending::Untried => Some(claimed.created_at),
        Ending::Again { at, .. } => Some(*at),
        Ending::Delivered | Ending::Dead { .. } => None,
    };
    let query = sql("UPDATE outbox AS o
         SET state = n.state, attempts = n.attempts, next_attempt_at = n.at, lease = NULL,
             last_error = CASE WHEN n.state = 'pending' THEN coalesce(n.error, o.last_error) ELSE n.error END,
             finished_at = CASE WHEN n.state <> 'pending' THEN $7::timestamptz END,
             payload = CASE WHEN n.state <> 'delivered' THEN o.payload END
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::timestamptz[], $6::text[])
              AS n (id, lease, state, attempts, at, error)
         -- A lease stands only on what is pending.
         WHERE o.id = n.id AND o.lease = n.lease
         RETURNING o.id, o.payload IS NULL")
    .bind(column(ended, |(claimed, _)| claimed.id))
    .bind(column(ended, |(claimed, _)| claimed.lease.as_str()))
    .bind(column(ended, state))
    .bind(column(ended, attempts))
    .bind(column(ended, at))
    .bind(column(ended, |(_, ending)| error_of(ending)))
    .bind(now);
    session.rows(query).await?.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
}

fn error_of(ending: &Ending) -> Option<&str> {
    match ending {
        Ending::Delivered | Ending::Untried => None,
        Ending::Again { error, .. } | Ending::Dead { error, .. } => Some(error),
    }
}

async fn remove(session: &mut Session, ids: &[i64]) -> Result<()> {
    let query =
        sql("DELETE FROM outbox AS o USING unnest($1::bigint[]) AS n (id) WHERE o.id = n.id").bind(ids);
    session.execute(query).await?;
    Ok(())
}

/// Of each of these sinks and users let the oldest message go that waits, unless it may already.
async fn promote(session: &mut Session, pairs: &[(&str, &ClerkId)], now: DateTime<Utc>) -> Result<()> {
    let query = sql("UPDATE outbox AS o SET next_attempt_at = $3
         FROM unnest($1::text[], $2::text[]) AS n (sink, clerk_id)
         CROSS JOIN LATERAL (
             SELECT id FROM outbox
             WHERE sink = n.sink AND clerk_id = n.clerk_id AND state = 'pending'
             ORDER BY id
             LIMIT 1
         ) AS oldest
         WHERE o.id = oldest.id AND o.next_attempt_at IS NULL")
    .bind(column(pairs, |(sink, _)| *sink))
    .bind(column(pairs, |(_, id)| id.as_str()))
    .bind(now);
    session.execute(query).await?;
    Ok(())
}

/// How far these erasures have come at their sinks.
async fn write_receipts(
    session: &mut Session,
    deletions: &[(&Claimed, &Ending)],
    now: DateTime<Utc>,
) -> Result<()> {
    let query = sql("UPDATE erasure_receipts AS r
         SET attempts = r.attempts + 1, last_error = n.error, completed_at = CASE WHEN n.error IS NULL THEN $4::timestamptz END
         FROM unnest($1::text[], $2::text[], $3::text[]) AS n (clerk_id, sink, error)
         WHERE r.clerk_id = n.clerk_id AND r.destination = n.sink AND r.completed_at IS NULL")
    .bind(column(deletions, |(claimed, _)| claimed.clerk_id.as_str()))
    .bind(column(deletions, |(claimed, _)| claimed.sink.as_str()))
    .bind(column(deletions, |(_, ending)| error_of(ending)))
    .bind(now);
    session.execute(query).await?;
    Ok(())
}

/// The sinks that have erased a user know nothing of them any more.
async fn forget_recipients(session: &mut Session, deletions: &[(&Claimed, &Ending)]) -> Result<()> {
    let done: Vec<&Claimed> = deletions
        .iter()
        .filter(|(_, ending)| **ending == Ending::Delivered)
        .map(|(claimed, _)| *claimed)
        .collect();
    let query =
        sql("DELETE FROM outbox_recipients AS r USING unnest($1::text[], $2::text[]) AS n (clerk_id, sink)
         WHERE r.clerk_id = n.clerk_id AND r.sink = n.sink")
        .bind(column(&done, |claimed| claimed.clerk_id.as_str()))
        .bind(column(&done, |claimed| claimed.sink.as_str()));
    session.execute(query).await?;
    Ok(())
}

/// Hold the registers of these users, which are sorted.
async fn lock(session: &mut Session, ids: &[ClerkId]) -> Result<()> {
    let query = sql("SELECT FROM unnest($1::text[]) AS n (clerk_id)
         CROSS JOIN LATERAL (
             SELECT FROM entity_versions WHERE kind = 'user' AND clerk_id = n.clerk_id FOR UPDATE
         ) AS e")
    .bind(texts(ids));
    session.rows(query).await?;
    Ok(())
}

/// When the first message for this sink is due, unless it is paused.
pub(super) async fn first_due(store: &Postgres, sink: &str) -> Result<Option<DateTime<Utc>>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT next_attempt_at FROM outbox
                 WHERE sink = $1 AND state = 'pending' AND next_attempt_at IS NOT NULL
                   AND NOT EXISTS (SELECT FROM outbox_paused WHERE sink = $1)
                 ORDER BY next_attempt_at
                 LIMIT 1")
            .bind(sink),
        )
        .await?;
    session.commit().await?;
    rows.first().map_or(Ok(None), |row| get(row, 0))
}

pub(super) async fn depth(store: &Postgres) -> Result<Vec<SinkDepth>> {
    let mut session = store.session(&store.begin_count).await?;
    let rows = session
        .rows(sql("SELECT sink, sum(pending)::bigint, sum(dead)::bigint, min(oldest) FROM (
                 -- Each half is answered by an index alone.
                 SELECT sink, count(*) AS pending, 0 AS dead, min(created_at) AS oldest
                 FROM outbox WHERE state = 'pending' GROUP BY sink
                 UNION ALL
                 SELECT sink, 0, count(*), NULL FROM outbox WHERE state = 'dead' GROUP BY sink
             ) AS counted
             GROUP BY sink ORDER BY sink"))
        .await?;
    session.commit().await?;
    let depth = |row| {
        Ok(SinkDepth {
            sink: get(row, 0)?,
            pending: count(row, 1)?,
            dead: count(row, 2)?,
            oldest: get(row, 3)?,
        })
    };
    rows.iter().map(depth).collect()
}

pub(super) async fn messages(
    store: &Postgres,
    filter: &MessageFilter,
    limit: u32,
) -> Result<Vec<StoredMessage>> {
    let mut session = store.session(&store.begin_count).await?;
    // The dead are few among many, and an index of their own finds them only where they are asked for by name.
    let query = if filter.state == Some(MessageState::Dead) {
        sql("SELECT id, message_id, sink, clerk_id, type, state, attempts, next_attempt_at, lease IS NOT NULL,
                    created_at, finished_at, last_error
             FROM outbox
             WHERE state = 'dead' AND id > $1 AND ($2::text IS NULL OR sink = $2) AND $3 = 'dead'
             ORDER BY id
             LIMIT $4")
    } else {
        sql("SELECT id, message_id, sink, clerk_id, type, state, attempts, next_attempt_at, lease IS NOT NULL,
                    created_at, finished_at, last_error
             FROM outbox
             WHERE id > $1 AND ($2::text IS NULL OR sink = $2) AND ($3::text IS NULL OR state = $3)
             ORDER BY id
             LIMIT $4")
    };
    let rows = session
        .rows(
            query
                .bind(filter.after.unwrap_or(i64::MIN))
                .bind(filter.sink.as_deref())
                .bind(filter.state.map(MessageState::name))
                .bind(i64::from(limit)),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(stored).collect()
}

pub(super) async fn messages_of(store: &Postgres, ids: &[i64]) -> Result<Vec<StoredMessage>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT o.id, o.message_id, o.sink, o.clerk_id, o.type, o.state, o.attempts, o.next_attempt_at,
                        o.lease IS NOT NULL, o.created_at, o.finished_at, o.last_error
                 FROM unnest($1::bigint[]) AS n (id)
                 CROSS JOIN LATERAL (SELECT * FROM outbox WHERE id = n.id) AS o")
            .bind(ids),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(stored).collect()
}

pub(super) async fn message(store: &Postgres, id: i64) -> Result<Option<(StoredMessage, Option<String>)>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT id, message_id, sink, clerk_id, type, state, attempts, next_attempt_at, lease IS NOT NULL,
                        created_at, finished_at, last_error, payload
                 FROM outbox WHERE id = $1")
            .bind(id),
        )
        .await?;
    session.commit().await?;
    rows.first().map(|row| Ok((stored(row)?, get(row, 12)?))).transpose()
}

pub(super) async fn retry(store: &Postgres, ids: &[i64], now: DateTime<Utc>) -> Result<u64> {
    let mut session = store.session(&store.begin_normal).await?;
    session.leaves_work();
    let oldest = lock_users_of(&mut session, ids).await?;
    let rows = session
        .rows(
            sql("UPDATE outbox AS o
                 SET state = 'pending', attempts = 0, lease = NULL, finished_at = NULL, next_attempt_at = NULL
                 FROM (
                     SELECT c.id FROM unnest($1::bigint[]) AS n (id)
                     -- The limit keeps the planner from reading all that is dead instead.
                     CROSS JOIN LATERAL (SELECT * FROM outbox WHERE id = n.id LIMIT 1) AS c
                     WHERE c.state = 'dead' AND c.payload IS NOT NULL
                       -- The next one that is not given up decides: nothing behind it has been handed out.
                       AND NOT coalesce((
                           SELECT later.state = 'delivered' OR (later.lease IS NOT NULL AND later.next_attempt_at > $2)
                           FROM outbox AS later
                           WHERE later.clerk_id = c.clerk_id AND later.sink = c.sink AND later.id > c.id
                             AND later.state IN ('pending', 'delivered')
                           ORDER BY later.id
                           LIMIT 1
                       ), false)
                 ) AS chosen
                 WHERE o.id = chosen.id
                 RETURNING o.sink, o.clerk_id")
            .bind(ids)
            .bind(now),
        )
        .await?;
    arrange(&mut session, &oldest, &rows, now).await?;
    session.commit().await?;
    Ok(rows.len() as u64)
}

pub(super) async fn discard(store: &Postgres, ids: &[i64], now: DateTime<Utc>) -> Result<u64> {
    let mut session = store.session(&store.begin_normal).await?;
    session.leaves_work();
    let oldest = lock_users_of(&mut session, ids).await?;
    let rows = session
        .rows(
            sql("UPDATE outbox AS o
                 SET state = 'discarded', payload = NULL, lease = NULL, next_attempt_at = NULL, finished_at = $2
                 FROM (
                     SELECT c.id FROM unnest($1::bigint[]) AS n (id)
                     -- The limit keeps the planner from reading all that waits instead.
                     CROSS JOIN LATERAL (SELECT * FROM outbox WHERE id = n.id LIMIT 1) AS c
                 ) AS chosen
                 -- Asked of the row itself: whoever claims it does not wait for the register.
                 WHERE o.id = chosen.id AND o.type <> 'user.deleted' AND o.state = ANY ('{pending,dead}')
                   AND NOT (o.state = 'pending' AND o.lease IS NOT NULL AND o.next_attempt_at > $2)
                 RETURNING o.sink, o.clerk_id")
            .bind(ids)
            .bind(now),
        )
        .await?;
    arrange(&mut session, &oldest, &rows, now).await?;
    session.commit().await?;
    Ok(rows.len() as u64)
}

/// Hold the registers of the users whom these messages are about, and the oldest pending message of each and sink, so that
/// nobody claims it meanwhile. Returns these.
async fn lock_users_of(session: &mut Session, messages: &[i64]) -> Result<Vec<i64>> {
    let rows = session
        .rows(
            sql("SELECT DISTINCT o.clerk_id COLLATE \"C\" FROM unnest($1::bigint[]) AS n (id)
                 CROSS JOIN LATERAL (SELECT clerk_id FROM outbox WHERE id = n.id) AS o
                 ORDER BY 1")
            .bind(messages),
        )
        .await?;
    let ids: Vec<ClerkId> = rows.iter().map(|row| clerk_id(row, 0)).collect::<Result<_>>()?;
    lock(session, &ids).await?;
    let rows = session
        .rows(
            sql("SELECT oldest.id FROM (
                     SELECT DISTINCT o.sink, o.clerk_id FROM unnest($1::bigint[]) AS n (id)
                     CROSS JOIN LATERAL (SELECT sink, clerk_id FROM outbox WHERE id = n.id) AS o
                 ) AS pair
                 CROSS JOIN LATERAL (
                     SELECT id FROM outbox
                     WHERE sink = pair.sink AND clerk_id = pair.clerk_id AND state = 'pending'
                     ORDER BY id
                     LIMIT 1
                     FOR UPDATE
                 ) AS oldest")
            .bind(messages),
        )
        .await?;
    rows.iter().map(|row| get(row, 0)).collect()
}

/// Of the sinks and users of these rows let the oldest message go, and not the one that was the oldest before.
async fn arrange(session: &mut Session, before: &[i64], rows: &[PgRow], now: DateTime<Utc>) -> Result<()> {
    session
        .execute(
            sql("UPDATE outbox AS o SET next_attempt_at = NULL, lease = NULL
                 FROM unnest($1::bigint[]) AS n (id)
                 CROSS JOIN LATERAL (SELECT * FROM outbox WHERE id = n.id LIMIT 1) AS former
                 CROSS JOIN LATERAL (
                     SELECT id FROM outbox
                     WHERE sink = former.sink AND clerk_id = former.clerk_id AND state = 'pending'
                     ORDER BY id
                     LIMIT 1
                 ) AS oldest
                 WHERE o.id = former.id AND oldest.id <> o.id AND o.next_attempt_at IS NOT NULL")
            .bind(before),
        )
        .await?;
    let mut pairs: Vec<(String, ClerkId)> =
        rows.iter().map(|row| Ok((get(row, 0)?, clerk_id(row, 1)?))).collect::<Result<_>>()?;
    pairs.sort();
    pairs.dedup();
    promote(session, &column(&pairs, |(sink, id)| (sink.as_str(), id)), now).await
}

pub(super) async fn pause(store: &Postgres, sink: &str, at: DateTime<Utc>) -> Result<()> {
    let mut session = store.session(&store.begin_normal).await?;
    session
        .execute(
            sql("INSERT INTO outbox_paused (sink, paused_at) VALUES ($1, $2) ON CONFLICT (sink) DO NOTHING")
                .bind(sink)
                .bind(at),
        )
        .await?;
    session.commit().await
}

pub(super) async fn resume(store: &Postgres, sink: &str) -> Result<bool> {
    let mut session = store.session(&store.begin_normal).await?;
    session.leaves_work();
    let resumed = session.execute(sql("DELETE FROM outbox_paused WHERE sink = $1").bind(sink)).await?;
    session.commit().await?;
    Ok(resumed > 0)
}

pub(super) async fn paused(store: &Postgres) -> Result<Vec<(String, DateTime<Utc>)>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session.rows(sql("SELECT sink, paused_at FROM outbox_paused ORDER BY sink")).await?;
    session.commit().await?;
    rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
}

/// Of the columns in the order of [`messages`].
fn stored(row: &PgRow) -> Result<StoredMessage> {
    let state: String = get(row, 5)?;
    Ok(StoredMessage {
        id: get(row, 0)?,
        message_id: get(row, 1)?,
        sink: get(row, 2)?,
        clerk_id: clerk_id(row, 3)?,
        kind: kind(row, 4)?,
        state: MessageState::named(&state).ok_or_else(|| StoreError::new(Trouble::Broken))?,
        attempts: get::<i32>(row, 6)?.unsigned_abs(),
        next_attempt_at: get(row, 7)?,
        taken: get(row, 8)?,
        created_at: get(row, 9)?,
        finished_at: get(row, 10)?,
        last_error: get(row, 11)?,
    })
}

fn kind(row: &PgRow, index: usize) -> Result<MessageType> {
    let name: String = get(row, index)?;
    MessageType::named(&name).ok_or_else(|| StoreError::new(Trouble::Broken))
}
