//! The outbox, and the records about sinks: which sinks are paused, their addresses, the addresses at which they were
//! notified about a user, and their references for that user.
//!
//! Among the pending messages of one user and sink, only the oldest has a due time. So one search finds what is due, however
//! many messages wait behind it, and no message overtakes another. Every transaction that adds or removes a message holds the
//! lock on the user's register. Otherwise two of them could each rely on the other to make the next message due.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::RangeInclusive,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Purpose, Row, SqlDatabase, SqlSession, Value, batch, only, row::Readable, statements, values};
use crate::{
    model::{ClerkId, MessageType},
    store::{
        Claimed, Deed, Elsewhere, ErrorKind, Finished, Lease, MessageFilter, MessageState, Outbox, Outgoing,
        ReceiptStep, Result, SinkDepth, StoreError, StoredMessage,
    },
    telemetry::TraceContext,
};

/// The columns in the order in which [`stored`] reads them.
macro_rules! columns {
    () => {
        "o.id, o.message_id, o.sink, o.kind, o.clerk_id, o.type, o.state, o.attempts, o.next_attempt_at, o.lease IS NOT NULL,
         o.created_at, o.finished_at, o.last_error"
    };
}

/// The condition and order of a page of messages.
macro_rules! page {
    () => {
        "o.id > $1 AND ($2 IS NULL OR o.sink = $2) AND ($3 IS NULL OR o.state = $3) ORDER BY o.id LIMIT $4"
    };
}

statements! {
    TELL = "{postgres WITH n AS (
            SELECT * FROM {batch $1 AS n: clerk_id text, sink text, kind text, message_id text, type text, payload text, created_at time, first boolean, trace_context text}
        ), told AS (
            INSERT INTO outbox_recipients (clerk_id, sink, addresses) SELECT clerk_id, sink, '' FROM n
            ON CONFLICT (clerk_id, sink) DO NOTHING
        )}
        INSERT INTO outbox (message_id, sink, kind, clerk_id, type, payload, state, next_attempt_at, created_at, trace_context)
        SELECT n.message_id, n.sink, n.kind, n.clerk_id, n.type, n.payload, 'pending',
               -- One search per message. The limit keeps the planner from reading all waiting messages instead.
               CASE WHEN n.first AND (
                   SELECT id FROM outbox{mysql  FORCE INDEX (outbox_order)} WHERE sink = n.sink AND clerk_id = n.clerk_id AND state = 'pending' LIMIT 1
               ) IS NULL THEN n.created_at END,
               n.created_at, n.trace_context
        FROM {postgres n}{sqlite|mysql {batch $1 AS n: clerk_id text, sink text, kind text, message_id text, type text, payload text, created_at time, first boolean, trace_context text}}
        {in_order}";

    // PostgreSQL writes them in the same round trip as the messages.
    TELL_WHOM = "{sqlite|mysql INSERT INTO outbox_recipients (clerk_id, sink, addresses)
        SELECT n.clerk_id, n.sink, '' FROM {batch $1 AS n: clerk_id text, sink text}
        WHERE true
        ON CONFLICT (clerk_id, sink) DO NOTHING}";

    RECALL = "{mysql SELECT o.sink, o.kind, o.clerk_id FROM {batch $1 AS n: clerk_id text}
        {lock outbox AS o WHERE o.clerk_id = n.clerk_id AND o.type NOT LIKE '%.deleted'
          AND NOT (o.state = 'pending' AND o.lease IS NOT NULL AND o.next_attempt_at > $2)};
        }DELETE FROM outbox
        WHERE clerk_id {in SELECT n.clerk_id FROM {batch $1 AS n: clerk_id text}} AND type NOT LIKE '%.deleted'
          -- It is being delivered, and its lease is still valid.
          AND NOT (state = 'pending' AND lease IS NOT NULL AND next_attempt_at > $2)
        {returning sink, kind, clerk_id}";

    EMPTY = "UPDATE outbox SET payload = NULL
        WHERE clerk_id {in SELECT n.clerk_id FROM {batch $1 AS n: clerk_id text}} AND type NOT LIKE '%.deleted'";

    // The sinks that were ever notified about these users and for which no deletion is waiting yet.
    TO_BE_TOLD = "SELECT r.clerk_id, r.sink FROM outbox_recipients AS r
        WHERE r.clerk_id {in SELECT n.clerk_id FROM {batch $1 AS n: clerk_id text}} AND (
            SELECT id FROM outbox{mysql  FORCE INDEX (outbox_order)}
            WHERE sink = r.sink AND clerk_id = r.clerk_id AND state = 'pending' AND type LIKE '%.deleted'
            LIMIT 1
        ) IS NULL
        ORDER BY 1, 2";

    FIRST_DUE = "SELECT next_attempt_at FROM outbox
        WHERE sink = $1 AND state = 'pending' AND next_attempt_at >= $2
          AND NOT EXISTS (SELECT 1 FROM outbox_paused WHERE sink = $1)
        ORDER BY next_attempt_at
        LIMIT 1";

    CLAIM = "{mysql UPDATE {from (
            SELECT id FROM outbox
            WHERE sink = $1 AND state = 'pending' AND next_attempt_at <= $2 AND next_attempt_at >= $6
              AND NOT EXISTS (SELECT 1 FROM outbox_paused WHERE sink = $1)
            ORDER BY next_attempt_at, id
            LIMIT $5
            FOR UPDATE SKIP LOCKED
        ) AS due} outbox SET lease = $3, next_attempt_at = $4 WHERE outbox.id = due.id;
        SELECT o.id, o.message_id, o.kind, o.clerk_id, o.type, o.payload, o.attempts, o.created_at, o.trace_context,
               (SELECT r.addresses FROM outbox_recipients AS r WHERE r.clerk_id = o.clerk_id AND r.sink = $1)
        FROM outbox AS o
        WHERE o.sink = $1 AND o.state = 'pending' AND o.next_attempt_at = $4 AND o.lease = $3}{postgres|sqlite UPDATE outbox SET lease = $3, next_attempt_at = $4
        WHERE id {in
            SELECT id FROM outbox
            WHERE sink = $1 AND state = 'pending' AND next_attempt_at <= $2 AND next_attempt_at >= $6
              AND NOT EXISTS (SELECT 1 FROM outbox_paused WHERE sink = $1)
            ORDER BY next_attempt_at, id
            LIMIT $5
            -- Another replica claims other messages.
            {postgres FOR UPDATE SKIP LOCKED}
        }
        RETURNING id, message_id, kind, clerk_id, type, payload, attempts, created_at, trace_context,
                  (SELECT addresses FROM outbox_recipients AS r WHERE r.clerk_id = outbox.clerk_id AND r.sink = $1)}";

    FINISH = "{mysql SELECT o.id, n.state = 'delivered' OR o.payload IS NULL
        FROM {batch $1 AS n: message bigint, token text, state text} {lock outbox AS o WHERE o.id = n.message AND o.lease = n.token};
        UPDATE outbox AS o
        SET o.state = n.state, o.attempts = n.attempts, o.next_attempt_at = n.at, o.lease = NULL,
            o.last_error = CASE WHEN n.state = 'pending' THEN coalesce(n.error, o.last_error) ELSE n.error END,
            o.finished_at = CASE WHEN n.state <> 'pending' THEN $2 END,
            o.payload = CASE WHEN n.state <> 'delivered' THEN o.payload END
        {from {batch $1 AS n: message bigint, token text, state text, attempts bigint, at time, error text}}
        WHERE o.id = n.message AND o.lease = n.token}{postgres|sqlite WITH n AS (
            SELECT * FROM {batch $1 AS n: message bigint, token text, state text, attempts bigint, at time, error text}
        )
        UPDATE outbox
        SET state = n.state, attempts = n.attempts, next_attempt_at = n.at, lease = NULL,
            last_error = CASE WHEN n.state = 'pending' THEN coalesce(n.error, last_error) ELSE n.error END,
            finished_at = CASE WHEN n.state <> 'pending' THEN $2 END,
            payload = CASE WHEN n.state <> 'delivered' THEN payload END
        FROM n
        -- Only a pending message has a lease.
        WHERE id = n.message AND lease = n.token AND id {in SELECT message FROM n}
        RETURNING id, payload IS NULL}";

    REMOVE = "DELETE FROM outbox WHERE id {in SELECT n.id FROM {batch $1 AS n: id bigint}}";

    // The oldest waiting message of each sink and user, unless it already has a due time.
    PROMOTE = "UPDATE outbox SET next_attempt_at = $2
        WHERE next_attempt_at IS NULL AND id {in
            SELECT (
                SELECT o.id FROM outbox AS o{mysql  FORCE INDEX (outbox_order)}
                WHERE o.sink = n.sink AND o.clerk_id = n.clerk_id AND o.state = 'pending'
                ORDER BY o.id
                LIMIT 1
            ) FROM {batch $1 AS n: sink text, clerk_id text}
        }";

    CONFIRM = "{mysql UPDATE erasure_receipts AS r
        SET r.attempts = r.attempts + 1, r.last_error = n.error, r.completed_at = CASE WHEN n.error IS NULL THEN $2 END
        {from {batch $1 AS n: clerk_id text, sink text, error text}}
        WHERE r.clerk_id = n.clerk_id AND r.destination = n.sink AND r.completed_at IS NULL}{postgres|sqlite WITH n AS (SELECT * FROM {batch $1 AS n: clerk_id text, sink text, error text})
        UPDATE erasure_receipts AS r
        SET attempts = r.attempts + 1, last_error = n.error, completed_at = CASE WHEN n.error IS NULL THEN $2 END
        FROM n
        WHERE r.clerk_id = n.clerk_id AND r.destination = n.sink AND r.completed_at IS NULL
          AND r.clerk_id {in SELECT clerk_id FROM n}}";

    DEPTH = "SELECT sink, CAST(sum(pending) AS bigint), CAST(sum(dead) AS bigint), min(oldest) FROM (
            -- Each half reads only an index.
            SELECT sink, count(*) AS pending, 0 AS dead, min(created_at) AS oldest
            FROM outbox{mysql  FORCE INDEX (outbox_state)} WHERE state = 'pending' GROUP BY sink
            UNION ALL
            SELECT sink, 0, count(*), NULL FROM outbox WHERE state = 'dead' GROUP BY sink
        ) AS counted
        GROUP BY sink ORDER BY sink";

    MESSAGES = concat!("SELECT ", columns!(), " FROM outbox AS o WHERE ", page!());

    // Dead messages are few. The database uses their own index only if the statement names the state.
    DEAD_MESSAGES = concat!("SELECT ", columns!(), " FROM outbox AS o{mysql  FORCE INDEX (outbox_state)} WHERE o.state = 'dead' AND ", page!());

    THESE_MESSAGES = concat!(
        "SELECT ", columns!(), " FROM outbox AS o
        WHERE o.id {in SELECT n.id FROM {batch $5 AS n: id bigint}} AND ", page!()
    );

    BODY = "SELECT payload FROM outbox WHERE id = $1";

    RECIPIENTS = "SELECT DISTINCT sink, kind, clerk_id FROM outbox
        WHERE id {in SELECT n.id FROM {batch $1 AS n: id bigint}}";

    LOCK_OLDEST = "SELECT o.id FROM {batch $1 AS n: sink text, clerk_id text}
        {lock outbox AS o WHERE o.id = (
            SELECT id FROM outbox{mysql  FORCE INDEX (outbox_order)} WHERE sink = n.sink AND clerk_id = n.clerk_id AND state = 'pending' ORDER BY id LIMIT 1
        )}";

    RETRY = "UPDATE outbox
        SET state = 'pending', attempts = 0, lease = NULL, finished_at = NULL, next_attempt_at = NULL
        WHERE state = 'dead' AND payload IS NOT NULL AND id {in
          SELECT o.id FROM {batch $1 AS n: id bigint} {lookup outbox AS o WHERE o.id = n.id}
          -- The next message that was not given up decides, because no message behind it was ever claimed.
          WHERE NOT coalesce((
              SELECT later.state = 'delivered' OR (later.lease IS NOT NULL AND later.next_attempt_at > $2)
              FROM outbox AS later{mysql  FORCE INDEX (outbox_clerk_id)}
              WHERE later.clerk_id = o.clerk_id AND later.sink = o.sink AND later.id > o.id
                AND later.state IN ('pending', 'delivered')
              ORDER BY later.id
              LIMIT 1
          ), false)}";

    DISCARD = "UPDATE outbox
        SET state = 'discarded', payload = NULL, lease = NULL, next_attempt_at = NULL, finished_at = $2
        WHERE id {in SELECT n.id FROM {batch $1 AS n: id bigint}}
          AND type NOT LIKE '%.deleted' AND state IN ('pending', 'dead')
          AND NOT (state = 'pending' AND lease IS NOT NULL AND next_attempt_at > $2)";

    // The former oldest message waits again if an older one is pending now.
    DEMOTE = "UPDATE outbox SET next_attempt_at = NULL, lease = NULL
        WHERE next_attempt_at IS NOT NULL AND id {in
            SELECT m.id FROM {batch $1 AS n: id bigint} {lookup outbox AS m WHERE m.id = n.id}
            WHERE m.id <> (
                SELECT o.id FROM outbox AS o{mysql  FORCE INDEX (outbox_order)}
                WHERE o.sink = m.sink AND o.clerk_id = m.clerk_id AND o.state = 'pending'
                ORDER BY o.id
                LIMIT 1
            )
        }";

    PAUSE = "INSERT INTO outbox_paused (sink, paused_at) {postgres|sqlite VALUES ($1, $2) ON CONFLICT (sink) DO NOTHING}{mysql
        SELECT $1, $2 FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM outbox_paused WHERE sink = $1)}";

    RESUME = "DELETE FROM outbox_paused WHERE sink = $1";

    PAUSED = "SELECT sink, paused_at FROM outbox_paused ORDER BY sink";

    ADDRESS = "SELECT address FROM outbox_sinks WHERE sink = $1{postgres|mysql  FOR UPDATE}";

    // References without an address come from the first version, and belong to the sink's address at that time.
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

    KEEP_ADDRESSES = "{mysql UPDATE outbox_recipients AS r SET r.addresses = n.addresses
        {from {batch $1 AS n: clerk_id text, addresses text}}
        WHERE r.clerk_id = n.clerk_id AND r.sink = $2}{postgres|sqlite WITH n AS (SELECT * FROM {batch $1 AS n: clerk_id text, addresses text})
        UPDATE outbox_recipients AS r SET addresses = n.addresses
        FROM n
        WHERE r.clerk_id = n.clerk_id AND r.sink = $2 AND r.clerk_id {in SELECT clerk_id FROM n}}";

    REFERENCE = "SELECT reference FROM outbox_recipients WHERE clerk_id = $1 AND sink = $2";

    // Never an insert: a user who is no longer a recipient was erased at the sink.
    KEEP_REFERENCE = "UPDATE outbox_recipients SET reference = $3 WHERE clerk_id = $1 AND sink = $2";

    FORGET = "{mysql DELETE r FROM {batch $1 AS n: sink text, clerk_id text}
        {lookup outbox_recipients AS r WHERE r.clerk_id = n.clerk_id AND r.sink = n.sink}}{postgres|sqlite WITH n AS (SELECT * FROM {batch $1 AS n: sink text, clerk_id text})
        DELETE FROM outbox_recipients AS r
        WHERE r.clerk_id {in SELECT clerk_id FROM n}
          AND EXISTS (SELECT 1 FROM n WHERE n.clerk_id = r.clerk_id AND n.sink = r.sink)}";
}

#[async_trait]
impl<D: SqlDatabase + ?Sized> Outbox for D {
    async fn first_message_due(&self, sink: &str, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
        let rows = self.fetch(Purpose::Page, &FIRST_DUE, values![sink, since]).await?;
        rows.first().map_or(Ok(None), |row| row.maybe(0))
    }

    async fn claim_messages(
        &self,
        sink: &str,
        due: RangeInclusive<DateTime<Utc>>,
        lease: &Lease,
        limit: u32,
    ) -> Result<Vec<Claimed>> {
        loop {
            let mut session = self.session(Purpose::WRITE).await?;
            let values = values![sink, *due.end(), &lease.token, lease.until, limit, *due.start()];
            let rows = session.rows(&CLAIM, values).await?;
            let mut messages: Vec<Claimed> = Vec::with_capacity(rows.len());
            let (mut emptied, mut freed) = (Vec::new(), Vec::new());
            for row in &rows {
                if let Some(message) = claimed(row, sink, lease)? {
                    messages.push(message);
                } else {
                    emptied.push(row.get(0)?);
                    freed.push((sink.to_owned(), row.id(2)?));
                }
            }
            let mut new = Vec::new();
            for message in &mut messages {
                if message.is_told_at(&lease.address) {
                    new.push((&message.clerk_id, &*message.addresses));
                }
            }
            keep_addresses(&mut *session, sink, &new).await?;
            // The users of these messages were erased while a worker that died was delivering them. The deletions that
            // wait behind them become due.
            session.execute(&REMOVE, values![batch(&emptied).int(|id: &i64| *id)]).await?;
            session.execute(&PROMOTE, values![pairs(&freed), lease.now]).await?;
            session.commit().await?;
            if rows.is_empty() || !messages.is_empty() {
                messages.sort_by_key(|message| message.id);
                return Ok(messages);
            }
        }
    }

    async fn finish_messages(&self, finished: &[Finished<'_>], now: DateTime<Utc>) -> Result<u64> {
        // If this commit is lost, the messages are delivered again after their leases expire. A claim must not be lost, because
        // an erasure has to know which messages are being delivered.
        let mut session = self.session(Purpose::WriteUnhurried).await?;
        // With the registers locked, no other transaction adds or removes messages of these users.
        let users: BTreeSet<&ClerkId> = finished.iter().map(|finished| &finished.message.clerk_id).collect();
        session.registers(&users.into_iter().cloned().collect::<Vec<_>>()).await?;
        let rows = batch(finished)
            .int(|finished| finished.message.id)
            .text(|finished| finished.message.lease.as_str())
            .text(|finished| finished.state.name())
            .int(|finished| finished.attempts.min(i32::MAX.unsigned_abs()).into())
            .time(|finished| finished.next_attempt_at)
            .text(|finished| finished.error);
        // The messages whose lease was still valid, and whether their payload is gone.
        let rows = session.rows(&FINISH, values![rows, now]).await?;
        let written: HashMap<i64, bool> =
            rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect::<Result<_>>()?;
        let is_gone = |finished: &&Finished<'_>| {
            finished.state != MessageState::Delivered && written[&finished.message.id]
        };
        let ours = || finished.iter().filter(|finished| written.contains_key(&finished.message.id));
        let recipient =
            |finished: &Finished<'_>| (finished.message.sink.clone(), finished.message.clerk_id.clone());
        let gone: Vec<i64> = ours().filter(is_gone).map(|finished| finished.message.id).collect();
        session.execute(&REMOVE, values![batch(&gone).int(|id| *id)]).await?;
        let next: Vec<_> =
            ours().filter(|finished| finished.frees_next || is_gone(finished)).map(recipient).collect();
        session.execute(&PROMOTE, values![pairs(&next), now]).await?;
        let receipts: Vec<_> = ours().filter(|finished| finished.receipt.is_some()).collect();
        // Without an error the receipt is completed.
        let rows = batch(&receipts)
            .text(|finished| finished.message.clerk_id.as_str())
            .text(|finished| finished.message.sink.as_str())
            .text(|finished| finished.error);
        session.execute(&CONFIRM, values![rows, now]).await?;
        // These sinks hold no data about these users any more.
        let completed = ours().filter(|finished| finished.receipt == Some(ReceiptStep::Completed));
        session.execute(&FORGET, values![pairs(&completed.map(recipient).collect::<Vec<_>>())]).await?;
        session.commit().await?;
        Ok(written.len() as u64)
    }

    async fn outbox_depth(&self) -> Result<Vec<SinkDepth>> {
        let rows = self.fetch(Purpose::Count, &DEPTH, values![]).await?;
        let depth = |row: &Row| {
            Ok(SinkDepth {
                sink: row.get(0)?,
                pending: row.get(1)?,
                dead: row.get(2)?,
                oldest: row.maybe(3)?,
            })
        };
        rows.iter().map(depth).collect()
    }

    async fn messages(&self, filter: &MessageFilter, limit: u32) -> Result<Vec<StoredMessage>> {
        let after = filter.after.unwrap_or(i64::MIN);
        let state = filter.state.map(MessageState::name);
        let mut values = values![after, filter.sink.as_deref(), state, limit].to_vec();
        let (purpose, statement) = match &filter.ids {
            Some(ids) => {
                values.push(Value::from(batch(ids).int(|id| *id)));
                (Purpose::Read, &THESE_MESSAGES)
            }
            None if filter.state == Some(MessageState::Dead) => (Purpose::Count, &DEAD_MESSAGES),
            None => (Purpose::Count, &MESSAGES),
        };
        let rows = self.fetch(purpose, statement, &values).await?;
        rows.iter().map(stored).collect()
    }

    async fn message_body(&self, id: i64) -> Result<Option<String>> {
        let rows = self.fetch(Purpose::Read, &BODY, values![id]).await?;
        rows.first().map_or(Ok(None), |row| row.maybe(0))
    }

    async fn tend_messages(&self, ids: &[i64], deed: Deed, now: DateTime<Utc>) -> Result<u64> {
        let statement = match deed {
            Deed::Retry => &RETRY,
            Deed::Discard => &DISCARD,
        };
        let ids = || batch(ids).int(|id| *id);
        let mut session = self.session(Purpose::WRITE).await?;
        session.leaves_work();
        let recipients = recipients(&session.rows(&RECIPIENTS, values![ids()]).await?)?;
        let users: BTreeSet<&ClerkId> = recipients.iter().map(|(_, user)| user).collect();
        session.registers(&users.into_iter().cloned().collect::<Vec<_>>()).await?;
        // The lock stops workers from claiming them meanwhile.
        let oldest = session.rows(&LOCK_OLDEST, values![pairs(&recipients)]).await?;
        let oldest: Vec<i64> = oldest.iter().map(|row| row.get(0)).collect::<Result<_>>()?;
        let tended = session.execute(statement, values![ids(), now]).await?;
        session.execute(&DEMOTE, values![batch(&oldest).int(|id| *id)]).await?;
        session.execute(&PROMOTE, values![pairs(&recipients), now]).await?;
        session.commit().await?;
        Ok(tended)
    }

    async fn set_paused(&self, sink: &str, since: Option<DateTime<Utc>>) -> Result<bool> {
        let mut session = self.session(Purpose::WRITE).await?;
        let changed = if let Some(since) = since {
            session.execute(&PAUSE, values![sink, since]).await?
        } else {
            session.leaves_work();
            session.execute(&RESUME, values![sink]).await?
        };
        session.commit().await?;
        Ok(changed > 0)
    }

    async fn paused_sinks(&self) -> Result<Vec<(String, DateTime<Utc>)>> {
        let rows = self.fetch(Purpose::Read, &PAUSED, values![]).await?;
        rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
    }

    async fn point_sink(&self, sink: &str, address: &str, moved: bool, now: DateTime<Utc>) -> Result<()> {
        // The address is almost always unchanged.
        let mut session = self.session(Purpose::WriteMany).await?;
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

    async fn told_elsewhere(&self, sink: &str, address: &str) -> Result<Elsewhere> {
        let rows = self.fetch(Purpose::Scan, &TOLD_ELSEWHERE, values![sink, address]).await?;
        let row = only(&rows)?;
        Ok(Elsewhere { moved: row.get(0)?, users: row.get(1)? })
    }

    async fn keep_addresses(&self, sink: &str, id: &ClerkId, addresses: &str) -> Result<()> {
        let mut session = self.session(Purpose::WRITE).await?;
        keep_addresses(&mut *session, sink, &[(id, addresses)]).await?;
        session.commit().await
    }

    async fn reference(&self, sink: &str, id: &ClerkId) -> Result<Option<String>> {
        let rows = self.fetch(Purpose::Read, &REFERENCE, values![id, sink]).await?;
        rows.first().map_or(Ok(None), |row| row.maybe(0))
    }

    async fn keep_reference(&self, sink: &str, id: &ClerkId, reference: &str) -> Result<bool> {
        let values = values![id, sink, reference];
        Ok(self.run(Purpose::WRITE, &KEEP_REFERENCE, values).await? == 1)
    }
}

/// See [`Ledger::tell`](super::Ledger::tell).
pub(super) async fn tell<'m>(
    session: &mut (impl SqlSession + ?Sized),
    messages: &'m [Outgoing],
) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let mut seen = HashSet::new();
    let row = |message: &'m Outgoing| {
        let Outgoing { clerk_id, sink, kind, .. } = message;
        (message, seen.insert((clerk_id, sink)), kind.name())
    };
    let messages: Vec<(&Outgoing, bool, String)> = messages.iter().map(row).collect();
    let whom = || {
        batch(&messages)
            .text(|(message, ..)| message.clerk_id.as_str())
            .text(|(message, ..)| message.sink.as_str())
    };
    let rows = whom()
        .text(|(message, ..)| message.clerk_id.entity().kind)
        .text(|(message, ..)| message.message_id.as_str())
        .text(|(.., kind)| kind.as_str())
        .text(|(message, ..)| message.payload.as_str())
        .time(|(message, ..)| message.created_at)
        .bool(|(_, first, _)| *first)
        .text(|(message, ..)| message.trace.as_str());
    session.leaves_work();
    session.execute(&TELL, values![rows]).await?;
    session.execute(&TELL_WHOM, values![whom()]).await?;
    Ok(())
}

/// See [`Ledger::recall`](super::Ledger::recall).
pub(super) async fn recall(
    session: &mut (impl SqlSession + ?Sized),
    whom: &[ClerkId],
    now: DateTime<Utc>,
) -> Result<Vec<(ClerkId, String)>> {
    let ids = || batch(whom).text(ClerkId::as_str);
    let removed = session.rows(&RECALL, values![ids(), now]).await?;
    let emptied = session.execute(&EMPTY, values![ids()]).await?;
    if emptied > 0 || !removed.is_empty() {
        session.removed_personal_data();
    }
    // A deletion may have waited behind what was removed.
    session.execute(&PROMOTE, values![pairs(&recipients(&removed)?), now]).await?;
    let rows = session.rows(&TO_BE_TOLD, values![ids()]).await?;
    let known: HashMap<&str, &ClerkId> = whom.iter().map(|id| (id.as_str(), id)).collect();
    let recipient = |row: &Row| {
        let id = known.get(row.get::<String>(0)?.as_str()).copied();
        Ok((id.cloned().ok_or_else(|| StoreError::new(ErrorKind::Broken))?, row.get(1)?))
    };
    rows.iter().map(recipient).collect()
}

/// The batch `n: sink text, clerk_id text`.
fn pairs(recipients: &[(String, ClerkId)]) -> Value<'_> {
    Value::from(batch(recipients).text(|(sink, _)| sink.as_str()).text(|(_, id)| id.as_str()))
}

/// Each recipient once, from the columns `sink`, `kind` and `clerk_id`.
fn recipients(rows: &[Row]) -> Result<Vec<(String, ClerkId)>> {
    let each = rows.iter().map(|row| Ok((row.get(0)?, row.id(1)?))).collect::<Result<BTreeSet<_>>>()?;
    Ok(each.into_iter().collect())
}

/// Store the addresses at which a sink was notified about users.
async fn keep_addresses(
    session: &mut (impl SqlSession + ?Sized),
    sink: &str,
    addresses: &[(&ClerkId, &str)],
) -> Result<()> {
    let rows = batch(addresses).text(|(id, _)| id.as_str()).text(|(_, addresses)| *addresses);
    session.execute(&KEEP_ADDRESSES, values![rows, sink]).await?;
    Ok(())
}

/// A message, from the columns in the order of `CLAIM`; `None` if its payload is gone.
fn claimed(row: &Row, sink: &str, lease: &Lease) -> Result<Option<Claimed>> {
    let Some(payload) = row.maybe(5)? else { return Ok(None) };
    Ok(Some(Claimed {
        id: row.get(0)?,
        message_id: row.get(1)?,
        sink: sink.to_owned(),
        clerk_id: row.id(2)?,
        kind: row.get(4)?,
        payload,
        attempts: row.get(6)?,
        created_at: row.get(7)?,
        lease: lease.token.clone(),
        addresses: row.maybe(9)?.unwrap_or_else(|| lease.address.clone()),
        trace: TraceContext::kept(row.maybe(8)?),
    }))
}

fn stored(row: &Row) -> Result<StoredMessage> {
    let clerk_id = row.id(3)?;
    Ok(StoredMessage {
        id: row.get(0)?,
        message_id: row.get(1)?,
        sink: row.get(2)?,
        of: clerk_id.entity().kind,
        clerk_id,
        kind: row.get(5)?,
        state: row.get(6)?,
        attempts: row.get(7)?,
        next_attempt_at: row.maybe(8)?,
        taken: row.get(9)?,
        created_at: row.get(10)?,
        finished_at: row.maybe(11)?,
        last_error: row.maybe(12)?,
    })
}

impl Readable for MessageType {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        Ok(row.maybe::<String>(column)?.and_then(|name| Self::named(row.kinds(), &name)))
    }
}

impl Readable for MessageState {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        Ok(row.maybe::<String>(column)?.and_then(|name| Self::named(&name)))
    }
}
