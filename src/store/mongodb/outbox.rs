//! The outbox. Among the pending messages of one user and sink, only the oldest has a due time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::RangeInclusive,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use mongodb::bson::{Bson, Document, doc};

use super::{
    Mongo,
    cells::{Cells as _, maybe_time, plain, time},
    session::{Alone, Commands, MongoSession, numbers, transact},
};
use crate::{
    model::{ClerkId, Kinds, MessageType},
    store::{
        Claimed, Deed, Elsewhere, Finished, Lease, Ledger as _, MessageFilter, MessageState, Outbox,
        Outgoing, ReceiptStep, Result, SinkDepth, StoredMessage,
    },
    telemetry::TraceContext,
};

const OUTBOX: &str = "outbox";
const RECIPIENTS: &str = "outbox_recipients";

/// A sink, and a user that it is notified about.
type Pair = (String, ClerkId);

/// The key of a recipient.
fn recipient(sink: &str, id: &ClerkId) -> String {
    format!("{sink}/{id}")
}

fn pair(kinds: Kinds, row: &Document) -> Result<Pair> {
    Ok((row.need("sink")?, row.about(kinds)?))
}

fn is_deletion(row: &Document) -> bool {
    row.maybe::<String>("type").is_some_and(|kind| kind.ends_with(".deleted"))
}

/// Whether a message is being delivered, and its lease is still valid.
fn is_under_way(row: &Document, now: DateTime<Utc>) -> bool {
    let until: Option<DateTime<Utc>> = row.maybe("next_attempt_at");
    is_pending(row) && row.maybe::<String>("lease").is_some() && until.is_some_and(|until| until > now)
}

fn is_pending(row: &Document) -> bool {
    row.get_str("state").is_ok_and(|state| state == "pending")
}

fn number(row: &Document) -> Result<i64> {
    row.need("_id")
}

fn these(numbers: &[i64]) -> Document {
    doc! { "_id": { "$in": numbers } }
}

fn of_users<'p>(pairs: impl IntoIterator<Item = &'p Pair>) -> Document {
    let users: BTreeSet<&str> = pairs.into_iter().map(|(_, user)| user.as_str()).collect();
    doc! { "$in": users.into_iter().collect::<Vec<_>>() }
}

/// See [`Ledger::tell`](crate::store::Ledger::tell).
pub(super) async fn tell(session: &mut MongoSession, messages: &[Outgoing]) -> Result<()> {
    let kinds = session.server.kinds;
    if messages.is_empty() {
        return Ok(());
    }
    session.leaves_work();
    let pairs: Vec<Pair> =
        messages.iter().map(|message| (message.sink.clone(), message.clerk_id.clone())).collect();
    let pending = session.find(OUTBOX, doc! { "clerk_id": of_users(&pairs), "state": "pending" }).await?;
    let mut waiting: HashSet<Pair> = pending.iter().map(|row| pair(kinds, row)).collect::<Result<_>>()?;
    let first = numbers(&session.server, OUTBOX, messages.len()).await?;
    let mut documents = Vec::with_capacity(messages.len());
    for ((id, message), pair) in (first..).zip(messages).zip(&pairs) {
        let is_first = waiting.insert(pair.clone());
        documents.push(doc! {
            "_id": id, "id": id, "message_id": &message.message_id, "sink": &message.sink,
            "kind": message.clerk_id.entity().kind, "clerk_id": message.clerk_id.as_str(), "type": message.kind.name(),
            "payload": &message.payload, "state": "pending", "attempts": 0_i64,
            "next_attempt_at": maybe_time(is_first.then_some(message.created_at)), "lease": null,
            "created_at": time(message.created_at), "finished_at": null, "last_error": null,
            "trace_context": message.trace.as_str(),
        });
    }
    session.put_numbered(OUTBOX, documents).await?;
    let known = |(sink, id): Pair| {
        let new = doc! { "sink": &sink, "clerk_id": id.as_str(), "addresses": "", "reference": null };
        doc! { "q": { "_id": recipient(&sink, &id) }, "u": { "$setOnInsert": new }, "upsert": true }
    };
    let whom = pairs.into_iter().collect::<BTreeSet<_>>().into_iter().map(known).collect();
    let told = session.amend(RECIPIENTS, whom).await;
    told.map(drop).map_err(|error| session.fail(error.into_race()))
}

/// See [`Ledger::recall`](crate::store::Ledger::recall).
pub(super) async fn recall(
    session: &mut MongoSession,
    whom: &[ClerkId],
    now: DateTime<Utc>,
) -> Result<Vec<(ClerkId, String)>> {
    let kinds = session.server.kinds;
    let users = doc! { "clerk_id": { "$in": plain(whom) } };
    let rows = session.find(OUTBOX, users.clone()).await?;
    let (deletions, others): (Vec<&Document>, Vec<&Document>) = rows.iter().partition(|row| is_deletion(row));
    let (under_way, removed): (Vec<&Document>, Vec<&Document>) =
        others.into_iter().partition(|row| is_under_way(row, now));
    let numbers = |rows: &[&Document]| rows.iter().map(|row| number(row)).collect::<Result<Vec<i64>>>();
    if !removed.is_empty() {
        session.delete(OUTBOX, these(&numbers(&removed)?)).await?;
    }
    if !under_way.is_empty() {
        let empty = doc! { "$set": { "payload": null } };
        session.change(OUTBOX, these(&numbers(&under_way)?), empty).await?;
    }
    // A deletion may have waited behind the removed messages.
    promote(session, removed.into_iter().map(|row| pair(kinds, row)).collect::<Result<_>>()?, now).await?;
    let waiting = deletions.into_iter().filter(|row| is_pending(row)).map(|row| pair(kinds, row));
    let waiting: HashSet<Pair> = waiting.collect::<Result<_>>()?;
    let known: HashMap<&str, &ClerkId> = whom.iter().map(|id| (id.as_str(), id)).collect();
    let rows = session.page(RECIPIENTS, users, doc! { "clerk_id": 1, "sink": 1 }, u32::MAX).await?;
    let mut to_be_told = Vec::new();
    for row in &rows {
        let (sink, id): (String, String) = (row.need("sink")?, row.need("clerk_id")?);
        if let Some(id) = known.get(&*id).filter(|id| !waiting.contains(&(sink.clone(), (**id).clone()))) {
            to_be_told.push(((*id).clone(), sink));
        }
    }
    Ok(to_be_told)
}

/// The pending messages of these users, in order.
async fn pending(session: &mut MongoSession, pairs: &BTreeSet<Pair>) -> Result<Vec<Document>> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let waiting = doc! { "clerk_id": of_users(pairs), "state": "pending" };
    session.page(OUTBOX, waiting, doc! { "_id": 1 }, u32::MAX).await
}

/// The oldest pending message of each pair.
async fn oldest(session: &mut MongoSession, pairs: &BTreeSet<Pair>) -> Result<BTreeMap<Pair, Document>> {
    let kinds = session.server.kinds;
    let mut oldest = BTreeMap::new();
    for row in pending(session, pairs).await? {
        let pair = pair(kinds, &row)?;
        if pairs.contains(&pair) {
            oldest.entry(pair).or_insert(row);
        }
    }
    Ok(oldest)
}

/// Make the oldest waiting message of each pair due, unless it already has a due time.
async fn promote(session: &mut MongoSession, pairs: BTreeSet<Pair>, now: DateTime<Utc>) -> Result<()> {
    let oldest = oldest(session, &pairs).await?;
    let next = oldest.values().filter(|row| row.get("next_attempt_at").is_none_or(|at| *at == Bson::Null));
    let next: Vec<i64> = next.map(number).collect::<Result<_>>()?;
    if !next.is_empty() {
        session.change(OUTBOX, these(&next), doc! { "$set": { "next_attempt_at": time(now) } }).await?;
    }
    Ok(())
}

/// Lock the registers of users.
async fn lock(session: &mut MongoSession, pairs: impl Iterator<Item = &Pair> + Send) -> Result<()> {
    let users: BTreeSet<ClerkId> = pairs.map(|(_, user)| user.clone()).collect();
    session.registers(&users.into_iter().collect::<Vec<_>>()).await.map(drop)
}

async fn keep_addresses(session: &mut MongoSession, sink: &str, new: &[(ClerkId, String)]) -> Result<()> {
    let update = |(id, addresses): &(ClerkId, String)| {
        doc! { "q": { "_id": recipient(sink, id) }, "u": { "$set": { "addresses": addresses } } }
    };
    session.amend(RECIPIENTS, new.iter().map(update).collect()).await.map(drop)
}

/// Claim due messages; also returns whether any was due.
async fn claim(
    session: &mut MongoSession,
    sink: &str,
    due: &RangeInclusive<DateTime<Utc>>,
    lease: &Lease,
    limit: u32,
) -> Result<(Vec<Claimed>, bool)> {
    let kinds = session.server.kinds;
    if !session.find("outbox_paused", doc! { "_id": sink }).await?.is_empty() {
        return Ok((Vec::new(), false));
    }
    let due = doc! { "$lte": time(*due.end()), "$gte": time(*due.start()) };
    let due = doc! { "sink": sink, "state": "pending", "next_attempt_at": due };
    let rows = session.page(OUTBOX, due, doc! { "next_attempt_at": 1, "_id": 1 }, limit).await?;
    if rows.is_empty() {
        return Ok((Vec::new(), false));
    }
    let taken = rows.iter().map(number).collect::<Result<Vec<i64>>>()?;
    let leased = doc! { "lease": &lease.token, "next_attempt_at": time(lease.until) };
    session.change(OUTBOX, these(&taken), doc! { "$set": leased }).await?;
    let keys = rows.iter().map(|row| Ok(recipient(sink, &row.about(kinds)?))).collect::<Result<Vec<_>>>()?;
    let known = session.find(RECIPIENTS, doc! { "_id": { "$in": keys } }).await?;
    let known: HashMap<String, &Document> =
        known.iter().filter_map(|row| Some((row.maybe("clerk_id")?, row))).collect();
    let (mut messages, mut emptied, mut freed) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut new = Vec::new();
    for row in &rows {
        let clerk_id = row.about(kinds)?;
        let Some(payload) = row.maybe("payload") else {
            emptied.push(number(row)?);
            freed.insert((sink.to_owned(), clerk_id));
            continue;
        };
        let known = known.get(clerk_id.as_str());
        let addresses = known.and_then(|row| row.maybe("addresses"));
        let mut message = Claimed {
            id: number(row)?,
            message_id: row.need("message_id")?,
            sink: sink.to_owned(),
            kind: kind_of(kinds, row)?,
            payload,
            attempts: row.need("attempts")?,
            created_at: row.need("created_at")?,
            lease: lease.token.clone(),
            addresses: addresses.unwrap_or_else(|| lease.address.clone()),
            trace: TraceContext::kept(row.maybe("trace_context")),
            clerk_id,
        };
        if message.is_told_at(&lease.address) {
            new.push((message.clerk_id.clone(), message.addresses.clone()));
        }
        messages.push(message);
    }
    keep_addresses(session, sink, &new).await?;
    // The users of these messages were erased while a worker that died was delivering them. The deletions that wait
    // behind them become due.
    if !emptied.is_empty() {
        session.delete(OUTBOX, these(&emptied)).await?;
        promote(session, freed, lease.now).await?;
    }
    messages.sort_by_key(|message| message.id);
    Ok((messages, true))
}

async fn finish(session: &mut MongoSession, finished: &[Finished<'_>], now: DateTime<Utc>) -> Result<u64> {
    let pair_of =
        |finished: &Finished<'_>| (finished.message.sink.clone(), finished.message.clerk_id.clone());
    let pairs: Vec<Pair> = finished.iter().map(pair_of).collect();
    lock(session, pairs.iter()).await?;
    let numbers: Vec<i64> = finished.iter().map(|finished| finished.message.id).collect();
    let rows = session.find(OUTBOX, these(&numbers)).await?;
    let rows: HashMap<i64, &Document> =
        rows.iter().map(|row| Ok((number(row)?, row))).collect::<Result<_>>()?;
    // The messages whose lease is still valid.
    let ours = finished.iter().filter(|finished| {
        let lease = rows.get(&finished.message.id).and_then(|row| row.maybe::<String>("lease"));
        lease.as_deref() == Some(finished.message.lease.as_str())
    });
    let (mut updates, mut gone, mut next, mut receipts, mut told) =
        (Vec::new(), Vec::new(), BTreeSet::new(), Vec::new(), Vec::new());
    let mut written = 0;
    for finished in ours {
        written += 1;
        let Finished { message, state, attempts, next_attempt_at, error, frees_next, receipt } = finished;
        let is_emptied = rows[&message.id].maybe::<String>("payload").is_none();
        let is_gone = is_emptied && *state != MessageState::Delivered;
        if is_gone {
            gone.push(message.id);
        } else {
            let is_over = *state != MessageState::Pending;
            let mut set = doc! {
                "state": state.name(), "attempts": i64::from(*attempts), "next_attempt_at": maybe_time(*next_attempt_at),
                "lease": null, "finished_at": maybe_time(is_over.then_some(now)),
            };
            if is_over || error.is_some() {
                set.insert("last_error", *error);
            }
            if *state == MessageState::Delivered {
                set.insert("payload", Bson::Null);
            }
            updates.push(doc! { "q": { "_id": message.id }, "u": { "$set": set } });
        }
        if is_gone || *frees_next {
            next.insert(pair_of(finished));
        }
        if let Some(step) = receipt {
            let open = doc! {
                "clerk_id": message.clerk_id.as_str(), "destination": &message.sink, "completed_at": null,
            };
            let completed_at = maybe_time(error.is_none().then_some(now));
            let set = doc! { "last_error": *error, "completed_at": completed_at };
            receipts.push(doc! { "q": open, "u": { "$inc": { "attempts": 1 }, "$set": set } });
            if *step == ReceiptStep::Completed {
                told.push(recipient(&message.sink, &message.clerk_id));
            }
        }
    }
    session.amend(OUTBOX, updates).await?;
    if !gone.is_empty() {
        session.delete(OUTBOX, these(&gone)).await?;
    }
    promote(session, next, now).await?;
    session.amend("erasure_receipts", receipts).await?;
    // These sinks hold no data about these users any more.
    if !told.is_empty() {
        session.delete(RECIPIENTS, doc! { "_id": { "$in": told } }).await?;
    }
    Ok(written)
}

async fn tend(session: &mut MongoSession, ids: &[i64], deed: Deed, now: DateTime<Utc>) -> Result<u64> {
    let kinds = session.server.kinds;
    session.leaves_work();
    let rows = session.find(OUTBOX, these(ids)).await?;
    let pairs: BTreeSet<Pair> = rows.iter().map(|row| pair(kinds, row)).collect::<Result<_>>()?;
    lock(session, pairs.iter()).await?;
    let before = oldest(session, &pairs).await?;
    let state = |row: &Document| row.maybe::<String>("state").and_then(|name| MessageState::named(&name));
    let mut tended = Vec::new();
    for row in &rows {
        let may = match deed {
            Deed::Retry => {
                let (sink, user) = pair(kinds, row)?;
                // The next message that was not given up decides, because no message behind it was ever claimed.
                let later = doc! {
                    "clerk_id": user.as_str(), "sink": sink, "_id": { "$gt": number(row)? },
                    "state": { "$in": ["pending", "delivered"] },
                };
                let later = session.page(OUTBOX, later, doc! { "_id": 1 }, 1).await?;
                let is_past = |later: &Document| {
                    state(later) == Some(MessageState::Delivered) || is_under_way(later, now)
                };
                state(row) == Some(MessageState::Dead)
                    && row.maybe::<String>("payload").is_some()
                    && !later.first().is_some_and(is_past)
            }
            Deed::Discard => {
                let is_open = matches!(state(row), Some(MessageState::Pending | MessageState::Dead));
                is_open && !is_deletion(row) && !is_under_way(row, now)
            }
        };
        if may {
            tended.push(number(row)?);
        }
    }
    let set = match deed {
        Deed::Retry => doc! {
            "state": "pending", "attempts": 0_i64, "lease": null, "finished_at": null, "next_attempt_at": null,
        },
        Deed::Discard => doc! {
            "state": "discarded", "payload": null, "lease": null, "next_attempt_at": null, "finished_at": time(now),
        },
    };
    if !tended.is_empty() {
        session.change(OUTBOX, these(&tended), doc! { "$set": set }).await?;
    }
    // The former oldest message waits again if an older one is pending now.
    let after = oldest(session, &pairs).await?;
    for (pair, row) in before {
        if after.get(&pair).is_some_and(|first| number(first) != number(&row)) {
            let waits = doc! { "$set": { "next_attempt_at": null, "lease": null } };
            let it = doc! { "_id": number(&row)?, "next_attempt_at": { "$ne": null } };
            session.change(OUTBOX, it, waits).await?;
        }
    }
    promote(session, pairs, now).await?;
    Ok(tended.len() as u64)
}

async fn point(
    session: &mut MongoSession,
    sink: &str,
    address: &str,
    moved: bool,
    now: DateTime<Utc>,
) -> Result<()> {
    let before = session.find("outbox_sinks", doc! { "_id": sink }).await?;
    let before: Option<String> = before.first().and_then(|row| row.maybe("address"));
    // The address is almost always unchanged.
    if before.as_deref() != Some(address) {
        let here = doc! { "sink": sink, "address": address, "since": time(now) };
        let update = doc! { "q": { "_id": sink }, "u": { "$set": here }, "upsert": true };
        session.amend("outbox_sinks", vec![update]).await?;
    }
    if moved {
        let told = doc! { "sink": sink, "addresses": { "$nin": ["", address] } };
        session.change(RECIPIENTS, told, doc! { "$set": { "addresses": address } }).await?;
    }
    if moved || before.is_some_and(|before| before != address) {
        let waiting = doc! {
            "sink": sink, "state": "pending", "next_attempt_at": { "$gt": time(now) }, "lease": null,
        };
        let waiting = session.find(OUTBOX, waiting).await?;
        let deletions = waiting.iter().filter(|row| is_deletion(row)).map(number);
        let deletions: Vec<i64> = deletions.collect::<Result<_>>()?;
        session.change(OUTBOX, these(&deletions), doc! { "$set": { "next_attempt_at": time(now) } }).await?;
    }
    Ok(())
}

#[async_trait]
impl Outbox for Mongo {
    async fn first_message_due(&self, sink: &str, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
        let mut alone = Alone(&self.server);
        if !alone.find("outbox_paused", doc! { "_id": sink }).await?.is_empty() {
            return Ok(None);
        }
        let waiting = doc! { "sink": sink, "state": "pending", "next_attempt_at": { "$gte": time(since) } };
        let rows = alone.page(OUTBOX, waiting, doc! { "next_attempt_at": 1 }, 1).await?;
        Ok(rows.first().and_then(|row| row.maybe("next_attempt_at")))
    }

    async fn claim_messages(
        &self,
        sink: &str,
        due: RangeInclusive<DateTime<Utc>>,
        lease: &Lease,
        limit: u32,
    ) -> Result<Vec<Claimed>> {
        loop {
            let (messages, any) =
                transact!(&self.server, session => claim(&mut session, sink, &due, lease, limit).await)?;
            if !any || !messages.is_empty() {
                return Ok(messages);
            }
        }
    }

    async fn finish_messages(&self, finished: &[Finished<'_>], now: DateTime<Utc>) -> Result<u64> {
        transact!(&self.server, session => finish(&mut session, finished, now).await)
    }

    async fn outbox_depth(&self) -> Result<Vec<SinkDepth>> {
        let open = doc! { "$match": { "state": { "$in": ["pending", "dead"] } } };
        let group = doc! { "$group": {
            "_id": { "sink": "$sink", "state": "$state" }, "n": { "$sum": 1 }, "oldest": { "$min": "$created_at" },
        } };
        let mut depths: BTreeMap<String, SinkDepth> = BTreeMap::new();
        for row in Alone(&self.server).aggregate(OUTBOX, vec![open, group]).await? {
            let of = row.get_document("_id").cloned().unwrap_or_default();
            let sink: String = of.need("sink")?;
            let new = || SinkDepth { sink: sink.clone(), pending: 0, dead: 0, oldest: None };
            let depth = depths.entry(sink.clone()).or_insert_with(new);
            if is_pending(&of) {
                depth.pending = row.need("n")?;
                depth.oldest = row.maybe("oldest");
            } else {
                depth.dead = row.need("n")?;
            }
        }
        Ok(depths.into_values().collect())
    }

    async fn messages(&self, filter: &MessageFilter, limit: u32) -> Result<Vec<StoredMessage>> {
        let mut query = doc! { "_id": { "$gt": filter.after.unwrap_or(i64::MIN) } };
        if let Some(ids) = &filter.ids {
            query = doc! { "$and": [query, these(ids)] };
        }
        query.extend(filter.sink.as_ref().map(|sink| ("sink".to_owned(), sink.into())));
        query.extend(filter.state.map(|state| ("state".to_owned(), state.name().into())));
        let rows = Alone(&self.server).page(OUTBOX, query, doc! { "_id": 1 }, limit).await?;
        rows.iter().map(|row| stored(self.server.kinds, row)).collect()
    }

    async fn message_body(&self, id: i64) -> Result<Option<String>> {
        let rows = Alone(&self.server).find(OUTBOX, these(&[id])).await?;
        Ok(rows.first().and_then(|row| row.maybe("payload")))
    }

    async fn tend_messages(&self, ids: &[i64], deed: Deed, now: DateTime<Utc>) -> Result<u64> {
        transact!(&self.server, session => tend(&mut session, ids, deed, now).await)
    }

    async fn set_paused(&self, sink: &str, since: Option<DateTime<Utc>>) -> Result<bool> {
        let mut alone = Alone(&self.server);
        let Some(since) = since else {
            let resumed = alone.delete("outbox_paused", doc! { "_id": sink }).await? > 0;
            self.server.bell.notify_one();
            return Ok(resumed);
        };
        let paused = doc! { "_id": sink, "sink": sink, "paused_at": time(since) };
        match alone.put("outbox_paused", vec![paused]).await {
            Err(error) if error.is_taken() => Ok(false),
            done => done.map(|()| true),
        }
    }

    async fn paused_sinks(&self) -> Result<Vec<(String, DateTime<Utc>)>> {
        let rows = Alone(&self.server).page("outbox_paused", doc! {}, doc! { "_id": 1 }, u32::MAX).await?;
        rows.iter().map(|row| Ok((row.need("sink")?, row.need("paused_at")?))).collect()
    }

    async fn point_sink(&self, sink: &str, address: &str, moved: bool, now: DateTime<Utc>) -> Result<()> {
        transact!(&self.server, session => point(&mut session, sink, address, moved, now).await)
    }

    async fn told_elsewhere(&self, sink: &str, address: &str) -> Result<Elsewhere> {
        let mut alone = Alone(&self.server);
        let rows = alone.find("outbox_sinks", doc! { "_id": sink }).await?;
        let known: Option<String> = rows.first().and_then(|row| row.maybe("address"));
        let told = doc! { "sink": sink, "addresses": { "$nin": ["", address] } };
        let users = alone.count(RECIPIENTS, told).await?;
        Ok(Elsewhere { moved: known.is_some_and(|known| known != address), users })
    }

    async fn keep_addresses(&self, sink: &str, id: &ClerkId, addresses: &str) -> Result<()> {
        let new = [(id.clone(), addresses.to_owned())];
        transact!(&self.server, session => keep_addresses(&mut session, sink, &new).await)
    }

    async fn reference(&self, sink: &str, id: &ClerkId) -> Result<Option<String>> {
        let rows = Alone(&self.server).find(RECIPIENTS, doc! { "_id": recipient(sink, id) }).await?;
        Ok(rows.first().and_then(|row| row.maybe("reference")))
    }

    async fn keep_reference(&self, sink: &str, id: &ClerkId, reference: &str) -> Result<bool> {
        let it = doc! { "_id": recipient(sink, id) };
        let kept = doc! { "$set": { "reference": reference } };
        Ok(Alone(&self.server).change(RECIPIENTS, it, kept).await? == 1)
    }
}

fn kind_of(kinds: Kinds, row: &Document) -> Result<MessageType> {
    let named = MessageType::named(kinds, &row.need::<String>("type")?);
    named.ok_or_else(|| super::cells::unreadable("type"))
}

fn stored(kinds: Kinds, row: &Document) -> Result<StoredMessage> {
    let clerk_id = row.about(kinds)?;
    let state = MessageState::named(&row.need::<String>("state")?);
    Ok(StoredMessage {
        id: number(row)?,
        message_id: row.need("message_id")?,
        sink: row.need("sink")?,
        of: clerk_id.entity().kind,
        clerk_id,
        kind: kind_of(kinds, row)?,
        state: state.ok_or_else(|| super::cells::unreadable("state"))?,
        attempts: row.need("attempts")?,
        next_attempt_at: row.maybe("next_attempt_at"),
        taken: row.maybe::<String>("lease").is_some(),
        created_at: row.need("created_at")?,
        finished_at: row.maybe("finished_at"),
        last_error: row.maybe("last_error"),
    })
}
