//! What people and programs read. Reads take no locks.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use mongodb::bson::{Bson, Document, doc};

use super::{
    Mongo,
    cells::{Cells as _, keys, plain, time, unreadable},
    inbox,
    ledger::registers,
    objects::{folded, path, seen, these},
    session::{Alone, Commands, MongoSession, concluded},
};
use crate::{
    entity::{PARTS, USER},
    model::{Anonymized, ClerkId, Entity, Receipt, Selection, SvixId},
    store::{
        AuditLine, Bucket, DeliveryFilter, Known, LOOKED_THROUGH, Ledger as _, Looks, OpenErasures, Parked,
        Patience, Processed, QueueDepth, QueueFilter, QueueState, Queued, Result, Row, RowFilter, Tombstone,
    },
};

/// How many documents are checked together.
const TOGETHER: u32 = 500;

/// The conditions of a register whose object's erasure was requested.
fn asked_for() -> Vec<Document> {
    vec![doc! { "deleted": true }, doc! { "held_until": { "$ne": null } }]
}

/// The condition for ids after this one.
fn behind(after: Option<&ClerkId>) -> Document {
    doc! { "$gt": after.map_or("", ClerkId::as_str) }
}

impl Mongo {
    /// The objects among these whose erasure was requested.
    async fn to_be_erased(&self, ids: &[ClerkId]) -> Result<HashSet<ClerkId>> {
        let filter = doc! { "_id": { "$in": keys(ids) }, "$or": asked_for() };
        Alone(&self.server)
            .find("entity_versions", filter)
            .await?
            .iter()
            .map(|row| row.about(self.server.kinds))
            .collect()
    }

    async fn lines_about(
        &self,
        id: &ClerkId,
        filter: Document,
        order: i32,
        limit: u32,
    ) -> Result<Vec<AuditLine>> {
        let mut about = doc! { "clerk_id": id.as_str() };
        about.extend(filter);
        let rows = Alone(&self.server).page("audit_log", about, doc! { "_id": order }, limit).await?;
        rows.iter().map(audit_line).collect()
    }

    async fn rows_of(&self, entity: &'static Entity, filter: Document, limit: u32) -> Result<Vec<Row>> {
        let filter = doc! { "$and": [filter, { "deletedAt": null }] };
        let rows = Alone(&self.server).page(entity.table, filter, doc! { "number": 1 }, limit).await?;
        rows.iter().map(|row| seen(entity, row)).collect()
    }
}

#[async_trait]
impl Looks for Mongo {
    async fn row(&self, id: &ClerkId) -> Result<Option<Row>> {
        let entity = id.entity();
        let rows = Alone(&self.server).find(entity.table, doc! { "clerkId": id.as_str() }).await?;
        rows.first().map(|row| seen(entity, row)).transpose()
    }

    async fn rows(&self, entity: &'static Entity, filter: &RowFilter, limit: u32) -> Result<Vec<Row>> {
        let mut query = doc! { "number": { "$gt": filter.after.unwrap_or(i64::MIN) } };
        match &filter.with {
            Some((field, value)) if field.anonymized == Anonymized::Address => {
                query.insert(folded(*field), value.to_lowercase());
            }
            Some((field, value)) => _ = query.insert(path(*field), value),
            None => {}
        }
        self.rows_of(entity, query, limit).await
    }

    async fn these(&self, entity: &'static Entity, ids: &[ClerkId]) -> Result<Vec<Row>> {
        self.rows_of(entity, these(ids), u32::MAX).await
    }

    async fn signups(
        &self,
        bucket: Bucket,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Vec<(NaiveDate, u64)>> {
        let mut bounds = doc! { "$type": "date" };
        bounds.extend(from.map(|from| ("$gte".to_owned(), time(from))));
        bounds.extend(to.map(|to| ("$lt".to_owned(), time(to))));
        let day = doc! { "$dateToString": { "format": "%Y-%m-%d", "date": "$createdAt" } };
        let group = doc! { "$group": { "_id": day, "n": { "$sum": 1 } } };
        let found = doc! { "$match": { "createdAt": bounds } };
        let mut buckets: BTreeMap<NaiveDate, u64> = BTreeMap::new();
        for row in Alone(&self.server).aggregate(USER.table, vec![found, group]).await? {
            let Some(day) = row.maybe::<String>("_id").and_then(|day| day.parse::<NaiveDate>().ok()) else {
                continue;
            };
            let back = match bucket {
                Bucket::Day => 0,
                Bucket::Week => day.weekday().num_days_from_monday(),
                Bucket::Month => day.day0(),
            };
            let Some(first) = day.checked_sub_signed(TimeDelta::days(back.into())) else { continue };
            *buckets.entry(first).or_default() += row.need::<u64>("n")?;
        }
        Ok(buckets.into_iter().collect())
    }

    async fn known(&self, ids: &[ClerkId], selection: &Selection) -> Result<Known> {
        // Uses one transaction, so that both reads see the same state.
        let mut session = MongoSession::begin(&self.server, Patience::Normal).await?;
        let known = async {
            let found = session.find("entity_versions", doc! { "_id": { "$in": keys(ids) } }).await?;
            Ok(Known {
                registers: registers(self.server.kinds, &found)?,
                objects: session.load(ids, selection).await?,
            })
        };
        let known = known.await;
        concluded(session, known).await
    }

    async fn parts_of(&self, owners: &[ClerkId]) -> Result<Vec<ClerkId>> {
        let mut session = MongoSession::begin(&self.server, Patience::Normal).await?;
        let parts = session.parts(owners, PARTS, u32::MAX).await;
        concluded(session, parts).await
    }

    async fn standing(
        &self,
        entity: &'static Entity,
        untouched_since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<ClerkId>> {
        let mut standing = Vec::new();
        let mut after = after.cloned();
        let is_untouched =
            vec![doc! { "syncedAt": null }, doc! { "syncedAt": { "$lt": time(untouched_since) } }];
        while standing.len() < limit as usize {
            let filter = doc! { "clerkId": behind(after.as_ref()), "$or": &is_untouched };
            let rows =
                Alone(&self.server).page(entity.table, filter, doc! { "clerkId": 1 }, TOGETHER).await?;
            let ids = rows.iter().map(|row| row.id_of(entity, "clerkId")).collect::<Result<Vec<_>>>()?;
            let Some(last) = ids.last() else { break };
            after = Some(last.clone());
            let gone = self.to_be_erased(&ids).await?;
            standing.extend(ids.into_iter().filter(|id| !gone.contains(id)));
        }
        standing.truncate(limit as usize);
        Ok(standing)
    }

    async fn count_standing(&self, entity: &'static Entity) -> Result<u64> {
        let mut alone = Alone(&self.server);
        let mut standing = alone.count(entity.table, doc! {}).await?;
        let mut after = String::new();
        loop {
            let filter = doc! { "kind": entity.kind, "clerk_id": { "$gt": &after }, "$or": asked_for() };
            let rows = alone.page("entity_versions", filter, doc! { "clerk_id": 1 }, TOGETHER).await?;
            let Some(last) = rows.last() else { return Ok(standing) };
            after = last.need("clerk_id")?;
            let ids = rows.iter().map(|row| row.about(self.server.kinds)).collect::<Result<Vec<_>>>()?;
            standing = standing.saturating_sub(alone.count(entity.table, these(&ids)).await?);
        }
    }

    async fn last_written(&self, entity: &'static Entity) -> Result<Option<DateTime<Utc>>> {
        let live = doc! { "deletedAt": null, "syncedAt": { "$ne": null } };
        let rows = Alone(&self.server).page(entity.table, live, doc! { "syncedAt": -1 }, 1).await?;
        Ok(rows.first().and_then(|row| row.maybe("syncedAt")))
    }

    async fn audit_trail(&self, id: &ClerkId, after: Option<i64>, limit: u32) -> Result<Vec<AuditLine>> {
        self.lines_about(id, doc! { "_id": { "$gt": after.unwrap_or(i64::MIN) } }, 1, limit).await
    }

    async fn newest_lines(&self, id: &ClerkId, limit: u32) -> Result<Vec<AuditLine>> {
        self.lines_about(id, doc! {}, -1, limit).await
    }

    async fn held_due(
        &self,
        now: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<ClerkId>> {
        let due = doc! { "$lte": time(now), "$ne": null };
        let filter = doc! { "kind": USER.kind, "held_until": due, "clerk_id": behind(after) };
        let rows = Alone(&self.server).page("entity_versions", filter, doc! { "clerk_id": 1 }, limit).await?;
        rows.iter().map(|row| row.id_of(&USER, "clerk_id")).collect()
    }

    async fn tombstones(
        &self,
        since: DateTime<Utc>,
        after: Option<&ClerkId>,
        limit: u32,
    ) -> Result<Vec<Tombstone>> {
        let mut alone = Alone(&self.server);
        let mut tombstones = Vec::new();
        let mut after = after.cloned();
        while tombstones.len() < limit as usize {
            let filter = doc! { "kind": USER.kind, "clerk_id": behind(after.as_ref()), "$or": asked_for() };
            let rows = alone.page("entity_versions", filter, doc! { "clerk_id": 1 }, TOGETHER).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.id_of(&USER, "clerk_id")?);
            let ids = rows.iter().map(|row| row.id_of(&USER, "clerk_id")).collect::<Result<Vec<_>>>()?;
            let receipts = doc! { "clerk_id": { "$in": plain(&ids) }, "destination": Receipt::DATABASE };
            let receipts = alone.find("erasure_receipts", receipts).await?;
            let completed: HashMap<String, Option<DateTime<Utc>>> = receipts
                .iter()
                .filter_map(|row| Some((row.maybe("clerk_id")?, row.maybe("completed_at"))))
                .collect();
            let ties: Vec<String> = rows.iter().filter_map(|row| row.maybe("tie")).collect();
            let told = alone.find("processed_webhooks", doc! { "_id": { "$in": ties } }).await?;
            let told: HashMap<String, DateTime<Utc>> =
                told.iter().filter_map(|row| Some((row.maybe("_id")?, row.maybe("processed_at")?))).collect();
            for (row, clerk_id) in rows.iter().zip(ids) {
                let held_until = row.maybe("held_until");
                let event_at = DateTime::from_timestamp_millis(row.need("event_at")?).unwrap_or_default();
                let tie: String = row.maybe("tie").unwrap_or_default();
                let counts = held_until.is_some()
                    || match (completed.get(clerk_id.as_str()), told.get(&tie)) {
                        // An erasure that is not complete counts as recent.
                        (Some(completed_at), _) => completed_at.is_none_or(|at| at >= since),
                        // Nothing about this user was stored: the time of the webhook counts, as long as it is known.
                        (None, Some(told_at)) => *told_at >= since,
                        (None, None) => event_at >= since,
                    };
                if counts {
                    let erased_at = held_until.is_none().then_some(event_at);
                    tombstones.push(Tombstone { clerk_id, erased_at, held_until });
                }
            }
        }
        tombstones.truncate(limit as usize);
        Ok(tombstones)
    }

    async fn receipts_of(&self, id: &ClerkId) -> Result<Vec<Receipt>> {
        let of = doc! { "clerk_id": id.as_str() };
        let rows =
            Alone(&self.server).page("erasure_receipts", of, doc! { "destination": 1 }, u32::MAX).await?;
        rows.iter().map(receipt).collect()
    }

    async fn open_receipts(
        &self,
        before: Option<DateTime<Utc>>,
        after: Option<&Receipt>,
        limit: u32,
    ) -> Result<Vec<Receipt>> {
        let mut open = doc! { "completed_at": null };
        if let Some(before) = before {
            open.insert("requested_at", doc! { "$lt": time(before) });
        }
        if let Some(Receipt { clerk_id, destination, requested_at, .. }) = after {
            let (at, id) = (time(*requested_at), clerk_id.as_str());
            let behind = vec![
                doc! { "requested_at": { "$gt": &at } },
                doc! { "requested_at": &at, "clerk_id": { "$gt": id } },
                doc! { "requested_at": &at, "clerk_id": id, "destination": { "$gt": destination } },
            ];
            open.insert("$or", behind);
        }
        let order = doc! { "requested_at": 1, "clerk_id": 1, "destination": 1 };
        Alone(&self.server).page("erasure_receipts", open, order, limit).await?.iter().map(receipt).collect()
    }

    async fn open_erasures(&self) -> Result<Vec<OpenErasures>> {
        let open = doc! { "$match": { "completed_at": null } };
        let group = doc! { "$group": {
            "_id": "$destination", "n": { "$sum": 1 }, "oldest": { "$min": "$requested_at" },
        } };
        let rows = Alone(&self.server).aggregate("erasure_receipts", vec![open, group]).await?;
        let open = |row: &Document| {
            Ok(OpenErasures {
                destination: row.need("_id")?,
                receipts: row.need("n")?,
                oldest: row.need("oldest")?,
            })
        };
        rows.iter().map(open).collect()
    }

    async fn first_due(&self, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
        let waiting = doc! { "state": "pending", "next_attempt_at": { "$gte": time(since) } };
        let rows =
            Alone(&self.server).page("webhook_queue", waiting, doc! { "next_attempt_at": 1 }, 1).await?;
        Ok(rows.first().and_then(|row| row.maybe("next_attempt_at")))
    }

    async fn queue_depth(&self) -> Result<QueueDepth> {
        let mut alone = Alone(&self.server);
        Ok(QueueDepth {
            pending: alone.count("webhook_queue", doc! { "state": "pending" }).await?,
            dead: alone.count("webhook_queue", doc! { "state": "dead" }).await?,
            first_due: self.first_due(DateTime::UNIX_EPOCH).await?,
        })
    }

    async fn queued(&self, filter: &QueueFilter, limit: u32) -> Result<Vec<Queued>> {
        let QueueFilter { ids, state, event_type, clerk_id, after } = filter;
        let mut query = doc! { "_id": { "$gt": after.as_ref().map_or("", SvixId::as_str) } };
        if let Some(ids) = ids {
            let ids: Vec<&str> = ids.iter().map(SvixId::as_str).collect();
            query = doc! { "$and": [query, { "_id": { "$in": ids } }] };
        }
        let mut only = |name: &str, value: Option<&str>| {
            query.extend(value.map(|value| (name.to_owned(), Bson::from(value))));
        };
        only("state", state.map(QueueState::name));
        only("event_type", event_type.as_deref());
        only("clerk_id", clerk_id.as_ref().map(ClerkId::as_str));
        let rows = Alone(&self.server).page("webhook_queue", query, doc! { "_id": 1 }, limit).await?;
        rows.iter().map(|row| Ok(Queued::from(&inbox::parked(self.server.kinds, row)?))).collect()
    }

    async fn parked(&self, id: &SvixId) -> Result<Option<Parked>> {
        let rows = Alone(&self.server).find("webhook_queue", doc! { "_id": id.as_str() }).await?;
        rows.first().map(|row| inbox::parked(self.server.kinds, row)).transpose()
    }

    async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<Processed>> {
        let DeliveryFilter { ids, event_type, outcome, before } = filter;
        let mut query = Document::new();
        if let Some((at, id)) = before {
            let earlier = doc! { "processed_at": { "$lt": time(*at) } };
            let beside = doc! { "processed_at": time(*at), "_id": { "$lt": id.as_str() } };
            query.insert("$or", vec![earlier, beside]);
        }
        let searches = event_type.is_some() || outcome.is_some();
        let mut among = if searches { LOOKED_THROUGH } else { limit };
        if let Some(ids) = ids {
            let ids: Vec<&str> = ids.iter().map(SvixId::as_str).collect();
            query.insert("_id", doc! { "$in": ids });
            among = u32::MAX;
        }
        let order = doc! { "processed_at": -1, "_id": -1 };
        let rows = Alone(&self.server).page("processed_webhooks", query, order, among).await?;
        let all = rows.iter().map(processed).collect::<Result<Vec<_>>>()?;
        let is_it = |processed: &Processed| {
            (event_type.is_none() || processed.event_type == *event_type)
                && outcome.as_ref().is_none_or(|outcome| processed.outcome == *outcome)
        };
        Ok(all.into_iter().filter(is_it).take(limit as usize).collect())
    }
}

fn audit_line(row: &Document) -> Result<AuditLine> {
    let fields = match row.get("changed_fields") {
        None | Some(Bson::Null) => Vec::new(),
        Some(Bson::Array(fields)) => fields
            .iter()
            .map(|field| field.as_str().map(ToOwned::to_owned).ok_or_else(|| unreadable("changed_fields")))
            .collect::<Result<_>>()?,
        Some(_) => return Err(unreadable("changed_fields")),
    };
    Ok(AuditLine {
        id: row.need("_id")?,
        at: row.need("at")?,
        action: row.need("action")?,
        kind: row.need("kind")?,
        svix_id: row.maybe("svix_id"),
        source: row.need("source")?,
        changed_fields: fields,
        event_at: row.need("event_at")?,
    })
}

fn receipt(row: &Document) -> Result<Receipt> {
    Ok(Receipt {
        clerk_id: row.id_of(&USER, "clerk_id")?,
        destination: row.need("destination")?,
        requested_at: row.need("requested_at")?,
        completed_at: row.maybe("completed_at"),
        attempts: row.need("attempts")?,
        last_error: row.maybe("last_error"),
    })
}

fn processed(row: &Document) -> Result<Processed> {
    Ok(Processed {
        svix_id: row.need("_id")?,
        event_type: row.maybe("event_type"),
        outcome: row.need("outcome")?,
        kind: row.maybe("kind"),
        clerk_id: row.maybe("clerk_id"),
        event_at: row.need("event_at")?,
        processed_at: row.need("processed_at")?,
    })
}
