//! Operations of a transaction on deliveries.
//!
//! A worker claims a delivery with a lease, which is written outside the transaction, so that other workers see it at once and
//! take other deliveries. The lease is released when the transaction ends, and expires if its process dies.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use memchr::memmem;
use mongodb::bson::{Bson, Document, doc};

use super::{
    cells::{Cells as _, bytes, maybe_time, named, plain, time},
    session::{Commands, MongoSession, server_time},
};
use crate::{
    model::{ClerkId, Kinds, Outcome, SvixId},
    store::{Inbox, Parked, Record, Result, Waiting, sql::objects::by_kind, token},
    telemetry::TraceContext,
};

const QUEUE: &str = "webhook_queue";
const PROCESSED: &str = "processed_webhooks";

/// How long a lease lasts if its process dies. A worker's transaction takes seconds.
const LEASE: TimeDelta = TimeDelta::seconds(15);

fn ids(ids: impl IntoIterator<Item = impl ToString>) -> Document {
    doc! { "$in": ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>() }
}

impl MongoSession {
    /// Restrict a filter to deliveries that no other worker has leased. With `now`, expired leases do not count; only a claim
    /// passes it.
    fn unless_leased(&self, filter: Document, now: Option<DateTime<Utc>>) -> Document {
        let free = doc! { "leased_until": null };
        let over = now.map(|now| doc! { "leased_until": { "$lt": time(now) } });
        let ours = self.beside.lease.as_ref().map(|lease| doc! { "lease": lease });
        let free: Vec<Document> = [free].into_iter().chain(over).chain(ours).collect();
        doc! { "$and": [filter, { "$or": free }] }
    }

    /// Lease the deliveries among these that still wait and are not leased.
    async fn lease(
        &mut self,
        wanted: Vec<String>,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Parked>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let lease = self.beside.lease.get_or_insert_with(token).clone();
        let these =
            doc! { "_id": ids(&wanted), "state": "pending", "next_attempt_at": { "$lte": time(until) } };
        let these = self.unless_leased(these, Some(now));
        let taken = doc! { "$set": { "lease": &lease, "leased_until": time(now + LEASE) } };
        self.alone().change(QUEUE, these, taken).await?;
        let order = doc! { "next_attempt_at": 1, "_id": 1 };
        let ours = doc! { "_id": ids(&wanted), "lease": &lease };
        self.page(QUEUE, ours, order, u32::MAX)
            .await?
            .iter()
            .map(|row| parked(self.server.kinds, row))
            .collect()
    }

    /// Remove deliveries, except those that another worker has leased.
    async fn unpark(&mut self, filter: Document) -> Result<u64> {
        let filter = self.unless_leased(filter, None);
        self.delete(QUEUE, filter).await
    }

    async fn recorded(&mut self, these: &[&SvixId]) -> Result<HashSet<SvixId>> {
        let these = ids(these.iter().map(|id| id.as_str()));
        self.find(PROCESSED, doc! { "_id": these }).await?.iter().map(|row| row.need("_id")).collect()
    }
}

#[async_trait]
impl Inbox for MongoSession {
    async fn claim(
        &mut self,
        due: RangeInclusive<DateTime<Utc>>,
        limit: u32,
        bytes: u64,
    ) -> Result<Vec<Parked>> {
        let times = doc! { "$gte": time(*due.start()), "$lte": time(*due.end()) };
        let waiting = doc! { "state": "pending", "next_attempt_at": times };
        let now = server_time(&self.server).await?;
        let waiting = self.unless_leased(waiting, Some(now));
        let order = doc! { "next_attempt_at": 1, "_id": 1 };
        let mut find =
            doc! { "find": crate::store::prefix::of_table(QUEUE), "filter": waiting, "sort": order };
        find.extend(doc! { "limit": i64::from(limit), "projection": { "bytes": 1 } });
        let rows = self.alone().rows(find).await?;
        let mut ahead = 0;
        let mut wanted = Vec::new();
        for row in &rows {
            if ahead >= bytes && !wanted.is_empty() {
                break;
            }
            ahead += row.maybe::<u64>("bytes").unwrap_or_default();
            wanted.push(row.need("_id")?);
        }
        self.lease(wanted, *due.end(), now).await
    }

    async fn claim_these(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<Vec<Parked>> {
        let clock = server_time(&self.server).await?;
        self.lease(ids.iter().map(ToString::to_string).collect(), now, clock).await
    }

    async fn enqueue(&mut self, queued: &[Parked]) -> Result<HashSet<SvixId>> {
        if queued.is_empty() {
            return Ok(HashSet::new());
        }
        self.leaves_work();
        let all: Vec<&SvixId> = queued.iter().map(|queued| &queued.svix_id).collect();
        let recorded = self.recorded(&all).await?;
        let others: Vec<&Parked> =
            queued.iter().filter(|queued| !recorded.contains(&queued.svix_id)).collect();
        let these = ids(others.iter().map(|other| &other.svix_id).cloned());
        let kept: HashSet<SvixId> = self
            .find(QUEUE, doc! { "_id": these })
            .await?
            .iter()
            .map(|row| row.need("_id"))
            .collect::<Result<_>>()?;
        let new = others.iter().filter(|other| !kept.contains(&other.svix_id));
        let inserted = self.put(QUEUE, new.map(|new| document(new)).collect()).await;
        inserted.map_err(|error| self.fail(error.into_race()))?;
        // All deliveries of a batch are due at the same time.
        if let Some(now) = others.first().and_then(|other| other.next_attempt_at).filter(|_| !kept.is_empty())
        {
            self.due_again(doc! { "_id": ids(kept), "state": "dead" }, now).await?;
        }
        Ok(recorded)
    }

    async fn revive(&mut self, these: &[SvixId], now: DateTime<Utc>) -> Result<u64> {
        if these.is_empty() {
            return Ok(0);
        }
        self.leaves_work();
        let later = doc! { "_id": ids(these), "state": "pending", "next_attempt_at": { "$gt": time(now) } };
        let later = self.unless_leased(later, None);
        let hastened = self.change(QUEUE, later, doc! { "$set": { "next_attempt_at": time(now) } }).await?;
        Ok(hastened + self.due_again(doc! { "_id": ids(these), "state": "dead" }, now).await?)
    }

    async fn postpone(&mut self, these: &[SvixId], until: DateTime<Utc>) -> Result<()> {
        if !these.is_empty() {
            self.leaves_work();
            let sooner =
                doc! { "_id": ids(these), "state": "pending", "next_attempt_at": { "$lt": time(until) } };
            let sooner = self.unless_leased(sooner, None);
            self.change(QUEUE, sooner, doc! { "$set": { "next_attempt_at": time(until) } }).await?;
        }
        Ok(())
    }

    async fn record(&mut self, records: &[Record<'_>]) -> Result<HashSet<SvixId>> {
        if records.is_empty() {
            return Ok(HashSet::new());
        }
        let all: Vec<&SvixId> = records.iter().map(|record| record.svix_id).collect();
        let known = self.recorded(&all).await?;
        let new: Vec<&Record<'_>> = records.iter().filter(|record| !known.contains(record.svix_id)).collect();
        let document = |record: &&Record<'_>| {
            doc! {
                "_id": record.svix_id.as_str(), "svix_id": record.svix_id.as_str(), "event_type": record.event_type,
                "outcome": record.outcome.name(), "kind": record.clerk_id.map(|id| id.entity().kind),
                "clerk_id": record.clerk_id.map(ClerkId::as_str), "event_at": time(record.event_at),
                "processed_at": time(record.processed_at),
            }
        };
        let inserted = self.put(PROCESSED, new.iter().map(document).collect()).await;
        inserted.map_err(|error| self.fail(error.into_race()))?;
        // A body may hold more personal data than the synced fields.
        self.unpark(doc! { "_id": ids(all.iter().map(|id| id.as_str())) }).await?;
        Ok(new.into_iter().map(|record| record.svix_id.clone()).collect())
    }

    async fn settle(&mut self, outcomes: &[(SvixId, Outcome)]) -> Result<()> {
        let update = |(id, outcome): &(SvixId, Outcome)| {
            doc! { "q": { "_id": id.as_str() }, "u": { "$set": { "outcome": outcome.name() } } }
        };
        self.amend(PROCESSED, outcomes.iter().map(update).collect()).await.map(drop)
    }

    async fn waiting(&mut self, these: &[SvixId]) -> Result<HashMap<SvixId, Waiting>> {
        let rows = self.find(QUEUE, doc! { "_id": ids(these) }).await?;
        let waiting = |row: &Document| {
            let waiting = Waiting { attempts: row.need("attempts")?, received_at: row.need("received_at")? };
            Ok((row.need("_id")?, waiting))
        };
        rows.iter().map(waiting).collect()
    }

    async fn park(&mut self, parked: &[Parked]) -> Result<()> {
        if parked.is_empty() {
            return Ok(());
        }
        self.leaves_work();
        self.delete(PROCESSED, doc! { "_id": ids(parked.iter().map(|parked| parked.svix_id.as_str())) })
            .await?;
        let update = |parked: &Parked| {
            let mut set = document(parked);
            set.remove("_id");
            let received_at = set.remove("received_at");
            if parked.trace.as_str().is_none() {
                set.remove("trace_context");
            }
            let update = doc! {
                // Keeps the time of the first arrival.
                "$set": set, "$setOnInsert": { "received_at": received_at },
                "$unset": { "lease": "", "leased_until": "" },
            };
            doc! { "q": { "_id": parked.svix_id.as_str() }, "u": update, "upsert": true }
        };
        let written = self.amend(QUEUE, parked.iter().map(update).collect()).await;
        written.map(drop).map_err(|error| self.fail(error.into_race()))
    }

    async fn unattributed(&mut self, of: &[ClerkId]) -> Result<Vec<(SvixId, Bytes)>> {
        // A dead delivery may be about an object that is removed with this user. A pending one is found to be stale at its next
        // attempt.
        let nobody = doc! { "clerk_id": null };
        let dead = doc! { "state": "dead", "kind": { "$nin": ["user", Bson::Null] } };
        let rows = self.find(QUEUE, doc! { "$or": [nobody, dead] }).await?;
        let names = |body: &[u8]| {
            body.contains(&0)
                || memmem::find(body, br"\u").is_some()
                || of.iter().any(|id| memmem::find(body, id.as_str().as_bytes()).is_some())
        };
        let bodies =
            rows.iter().map(|row| Ok((row.need("_id")?, Bytes::from(row.need::<Vec<u8>>("payload")?))));
        let bodies: Vec<(SvixId, Bytes)> = bodies.collect::<Result<_>>()?;
        Ok(bodies.into_iter().filter(|(_, body)| names(body)).collect())
    }

    async fn forget(&mut self, of: &[ClerkId], deliveries: &[SvixId]) -> Result<()> {
        for (entity, of) in by_kind(of, ClerkId::entity) {
            let of = doc! { "kind": entity.kind, "clerk_id": { "$in": plain(of) } };
            self.unpark(of.clone()).await?;
            let lines: Vec<i64> =
                self.find("audit_log", of).await?.iter().map(|row| row.need("_id")).collect::<Result<_>>()?;
            if !lines.is_empty() {
                self.delete("audit_actors", doc! { "_id": { "$in": lines } }).await?;
            }
        }
        if !deliveries.is_empty() {
            self.unpark(doc! { "_id": ids(deliveries) }).await?;
        }
        Ok(())
    }
}

impl MongoSession {
    /// Make dead deliveries pending, and restart their count of attempts.
    async fn due_again(&mut self, dead: Document, now: DateTime<Utc>) -> Result<u64> {
        let pending =
            doc! { "state": "pending", "attempts": 0, "next_attempt_at": time(now), "dead_at": null };
        self.change(QUEUE, dead, doc! { "$set": pending }).await
    }
}

fn document(parked: &Parked) -> Document {
    doc! {
        "_id": parked.svix_id.as_str(), "svix_id": parked.svix_id.as_str(), "event_type": &parked.event_type,
        "kind": parked.kind(), "clerk_id": parked.clerk_id.as_ref().map(ClerkId::as_str),
        "payload": bytes(&parked.payload), "bytes": i64::try_from(parked.payload.len()).unwrap_or(i64::MAX),
        "state": parked.state().name(), "attempts": i64::from(parked.attempts),
        "next_attempt_at": maybe_time(parked.next_attempt_at), "received_at": time(parked.received_at),
        "last_error": Some(&parked.last_error).filter(|error| !error.is_empty()),
        "trace_context": parked.trace.as_str(), "dead_at": maybe_time(parked.dead_at),
    }
}

/// A delivery, including its body.
pub(super) fn parked(kinds: Kinds, row: &Document) -> Result<Parked> {
    let entity = row.maybe::<String>("kind").and_then(|kind| named(kinds, &kind));
    let clerk_id = entity.zip(row.maybe::<String>("clerk_id"));
    Ok(Parked {
        svix_id: row.need("svix_id")?,
        event_type: row.maybe("event_type"),
        clerk_id: clerk_id.and_then(|(entity, id)| ClerkId::new(entity, id)),
        payload: row.need::<Vec<u8>>("payload")?.into(),
        attempts: row.need("attempts")?,
        next_attempt_at: row.maybe("next_attempt_at"),
        received_at: row.need("received_at")?,
        dead_at: row.maybe("dead_at"),
        last_error: row.maybe("last_error").unwrap_or_default(),
        trace: TraceContext::kept(row.maybe("trace_context")),
    })
}
