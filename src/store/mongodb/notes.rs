//! The service's own state in addition to the synced data, and the removal of old data.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use mongodb::bson::{Bson, Document, doc};

use super::{
    Mongo,
    cells::{Cells as _, maybe_time, time},
    objects::{self, cleared},
    session::{Alone, Commands, server_time, transact},
};
use crate::{
    model::{Anonymized, Entity, Field, FieldSet, LineHash, Seal},
    store::{
        Activity, ErrorKind, History, Looks as _, Minimized, Notes, Old, Origin, Outbox as _, Outlook,
        Result, Run, RunKind, StoreError, ToSeal, Unsealed, WITHIN, prefix,
    },
};

const INSTANCE: &str = "clerk_instance";
const RUNS: &str = "sync_runs";
const WITHIN_NAMES: [&str; WITHIN.len()] =
    ["within_5ms", "within_25ms", "within_100ms", "within_500ms", "within_2s", "within_10s"];

/// The filter for the single document about the instance.
fn one() -> Document {
    doc! { "_id": "one" }
}

/// The collection and the filter for rows of a kind that are older than this time.
fn old(kind: Old, before: DateTime<Utc>) -> (&'static str, Document) {
    let earlier = doc! { "$lt": time(before) };
    match kind {
        Old::Processed => ("processed_webhooks", doc! { "processed_at": earlier }),
        Old::Dead => {
            let since_it_came = doc! { "dead_at": null, "received_at": &earlier };
            ("webhook_queue", doc! { "state": "dead", "$or": [{ "dead_at": earlier }, since_it_came] })
        }
        Old::Told => {
            ("outbox", doc! { "state": { "$in": ["delivered", "discarded"] }, "finished_at": earlier })
        }
        Old::Untold => ("outbox", doc! { "state": "dead", "finished_at": earlier }),
        Old::Activity => ("activity", doc! { "at": earlier }),
    }
}

#[async_trait]
impl Notes for Mongo {
    async fn hold_lease(
        &self,
        name: &str,
        holder: &str,
        lasting: Duration,
        longest: Duration,
    ) -> Result<bool> {
        let mut alone = Alone(&self.server);
        let now = server_time(&self.server).await?;
        let after = |lasting| {
            let until = TimeDelta::from_std(lasting).ok().and_then(|lasting| now.checked_add_signed(lasting));
            time(until.unwrap_or(DateTime::<Utc>::MAX_UTC))
        };
        let free = vec![
            doc! { "holder": holder },
            doc! { "expires_at": { "$lt": time(now) } },
            doc! { "expires_at": { "$gt": after(longest) } },
        ];
        let held = doc! { "name": name, "holder": holder, "expires_at": after(lasting) };
        let update = doc! { "q": { "_id": name, "$or": free }, "u": { "$set": held }, "upsert": true };
        match alone.amend("leases", vec![update]).await {
            // Another holder has the lease.
            Err(error) if error.is_taken() => Ok(false),
            done => done.map(|_| true),
        }
    }

    async fn release_lease(&self, name: &str, holder: &str) -> Result<()> {
        Alone(&self.server).delete("leases", doc! { "_id": name, "holder": holder }).await.map(drop)
    }

    async fn unfinished_run(&self, kind: RunKind, parameters: &str) -> Result<Option<Run>> {
        let mut alone = Alone(&self.server);
        let these = doc! { "kind": kind.name(), "parameters": parameters };
        let mut open = these.clone();
        open.insert("finished_at", Bson::Null);
        let rows = alone.page(RUNS, open, doc! { "started_at": -1 }, u32::MAX).await?;
        let mut done = these;
        done.insert("finished_at", doc! { "$ne": null });
        // A later run that finished has done everything that an older one left undone.
        let later = alone.page(RUNS, done, doc! { "started_at": -1 }, 1).await?;
        let later: Option<DateTime<Utc>> = later.first().and_then(|row| row.maybe("started_at"));
        let runs = rows.iter().map(|row| run(row, kind)).collect::<Result<Vec<_>>>()?;
        Ok(runs.into_iter().find(|run| later.is_none_or(|later| later <= run.started_at)))
    }

    async fn last_finished(&self, kind: RunKind, parameters: Option<&str>) -> Result<Option<Run>> {
        let mut done = doc! { "kind": kind.name(), "finished_at": { "$ne": null } };
        match parameters {
            Some(parameters) => done.insert("parameters", parameters),
            None => done.insert("everybody", true),
        };
        let rows = Alone(&self.server).page(RUNS, done, doc! { "finished_at": -1 }, 1).await?;
        rows.first().map(|row| run(row, kind)).transpose()
    }

    async fn begin_run(&self, run: &Run) -> Result<()> {
        let new = doc! {
            "id": &run.id, "kind": run.kind.name(), "parameters": &run.parameters, "progress": &run.progress,
            "started_at": time(run.started_at), "finished_at": maybe_time(run.finished_at), "everybody": run.everybody,
        };
        let taken = doc! { "owner": &run.owner, "updated_at": time(run.updated_at) };
        let update = doc! {
            "q": { "_id": &run.id }, "u": { "$set": taken, "$setOnInsert": new }, "upsert": true,
        };
        Alone(&self.server).amend(RUNS, vec![update]).await.map(drop)
    }

    async fn save_run(&self, run: &Run) -> Result<bool> {
        let it = doc! { "_id": &run.id, "owner": &run.owner };
        let set = doc! {
            "progress": &run.progress, "updated_at": time(run.updated_at), "finished_at": maybe_time(run.finished_at),
        };
        Ok(Alone(&self.server).change(RUNS, it, doc! { "$set": set }).await? == 1)
    }

    async fn prune_runs(&self, before: DateTime<Utc>) -> Result<()> {
        let old = doc! { "updated_at": { "$lt": time(before) } };
        Alone(&self.server).delete(RUNS, old).await.map(drop)
    }

    async fn history(&self, since: DateTime<Utc>, until: DateTime<Utc>) -> Result<History> {
        let mut alone = Alone(&self.server);
        let mut is_there = async |collection: &str, filter: Document| -> Result<bool> {
            Ok(!alone.page(collection, filter, doc! { "_id": 1 }, 1).await?.is_empty())
        };
        let earlier = doc! { "processed_at": { "$lt": time(until) } };
        if !is_there("users", doc! {}).await? && !is_there("processed_webhooks", earlier).await? {
            return Ok(History::Empty);
        }
        let lately = doc! { "processed_at": { "$gte": time(since), "$lt": time(until) } };
        let run = doc! { "everybody": true, "finished_at": { "$gte": time(since) } };
        let is_recent = is_there("processed_webhooks", lately).await? || is_there(RUNS, run).await?;
        Ok(if is_recent { History::Recent } else { History::Silent })
    }

    async fn origin(&self) -> Result<Option<Origin>> {
        let rows = Alone(&self.server).find(INSTANCE, one()).await?;
        let origin = |row: &Document| {
            Ok(Origin {
                instance: row.need("instance_id")?,
                previous: row.maybe("previous"),
                refused: row.maybe("refused").zip(row.maybe("refused_at")),
                confirmed: row.need("confirmed")?,
            })
        };
        rows.first().map(origin).transpose()
    }

    async fn claim_instance(&self, id: &str) -> Result<String> {
        // Read first: usually there is nothing to write.
        if let Some(origin) = self.origin().await? {
            return Ok(origin.instance);
        }
        let claimed = doc! { "_id": "one", "one": true, "instance_id": id, "confirmed": false };
        match Alone(&self.server).put(INSTANCE, vec![claimed]).await {
            Err(error) if !error.is_taken() => return Err(error),
            _ => {}
        }
        let origin = self.origin().await?;
        origin.map(|origin| origin.instance).ok_or_else(|| StoreError::new(ErrorKind::Raced))
    }

    async fn change_instance(&self, id: &str) -> Result<()> {
        transact!(&self.server, session => {
            let rows = session.find(INSTANCE, one()).await?;
            let known: Option<String> = rows.first().and_then(|row| row.maybe("instance_id"));
            let mut set = doc! { "one": true, "instance_id": id, "confirmed": true };
            if let Some(known) = known.filter(|known| known != id) {
                set.extend(doc! { "previous": known, "refused": null, "refused_at": null });
            }
            let update = doc! { "q": one(), "u": { "$set": set }, "upsert": true };
            session.amend(INSTANCE, vec![update]).await.map_err(|error| session.fail(error.into_race()))
        })
        .map(drop)
    }

    async fn settle_instance(&self) -> Result<()> {
        let settled = doc! { "$set": { "previous": null } };
        Alone(&self.server).change(INSTANCE, one(), settled).await.map(drop)
    }

    async fn note_refused(&self, id: &str, now: DateTime<Utc>) -> Result<()> {
        let other = doc! { "_id": "one", "instance_id": { "$ne": id } };
        let refused = doc! { "$set": { "refused": id, "refused_at": time(now) } };
        Alone(&self.server).change(INSTANCE, other, refused).await.map(drop)
    }

    async fn add_activity(&self, counted: &[Activity]) -> Result<()> {
        let update = |counted: &Activity| {
            let Activity { at, event, outcome, reason, latest, count, within } = counted;
            let mut more = doc! { "count": count.cast_signed() };
            let within = WITHIN_NAMES.iter().zip(within);
            more.extend(within.map(|(name, count)| ((*name).to_owned(), Bson::Int64(count.cast_signed()))));
            let id = format!("{} {event} {outcome} {reason}", at.timestamp_millis());
            let new = doc! { "at": time(*at), "event": event, "outcome": outcome, "reason": reason };
            let update = doc! { "$inc": more, "$max": { "latest": time(*latest) }, "$setOnInsert": new };
            doc! { "q": { "_id": id }, "u": update, "upsert": true }
        };
        Alone(&self.server).amend("activity", counted.iter().map(update).collect()).await.map(drop)
    }

    async fn activity(&self, since: DateTime<Utc>, seconds: u32) -> Result<Vec<Activity>> {
        let rows = Alone(&self.server).find("activity", doc! { "at": { "$gte": time(since) } }).await?;
        let mut all: BTreeMap<(i64, String, String, String), Activity> = BTreeMap::new();
        for row in &rows {
            let (event, outcome, reason): (String, String, String) =
                (row.need("event")?, row.need("outcome")?, row.need("reason")?);
            let begin = row.need::<DateTime<Utc>>("at")?.timestamp();
            let begin = begin - begin.rem_euclid(i64::from(seconds));
            let at = DateTime::from_timestamp(begin, 0).ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
            let latest = row.need("latest")?;
            let new = || {
                let (event, outcome, reason) = (event.clone(), outcome.clone(), reason.clone());
                Activity { at, event, outcome, reason, latest, count: 0, within: [0; WITHIN.len()] }
            };
            let sum = all.entry((begin, event.clone(), outcome.clone(), reason.clone())).or_insert_with(new);
            sum.latest = sum.latest.max(latest);
            sum.count += row.need::<u64>("count")?;
            for (sum, name) in sum.within.iter_mut().zip(WITHIN_NAMES) {
                *sum += row.need::<u64>(name)?;
            }
        }
        Ok(all.into_values().collect())
    }

    async fn outlook(&self, sinks: &[String], since: DateTime<Utc>) -> Result<Outlook> {
        let mut message: Option<DateTime<Utc>> = None;
        for sink in sinks {
            let due = self.first_message_due(sink, since).await?;
            message = message.into_iter().chain(due).min();
        }
        let held = doc! { "held_until": { "$ne": null } };
        let held = Alone(&self.server).page("entity_versions", held, doc! { "held_until": 1 }, 1).await?;
        Ok(Outlook {
            delivery: self.first_due(since).await?,
            message,
            erasure: held.first().and_then(|row| row.maybe("held_until")),
            unsealed: self.unsealed(u32::try_from(Seal::LINES).unwrap_or(u32::MAX)).await?,
        })
    }

    async fn to_seal(&self, limit: u32) -> Result<ToSeal> {
        self.lines_to_seal(limit).await
    }

    async fn add_seals(&self, seals: &[Seal]) -> Result<bool> {
        self.append_seals(seals).await
    }

    async fn seals(&self, after: i64, limit: u32) -> Result<Vec<Seal>> {
        self.some_seals(after, limit).await
    }

    async fn audit_lines(&self, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>> {
        self.lines(after, until, limit).await
    }

    async fn unsealed(&self, at_most: u32) -> Result<Unsealed> {
        self.lines_without_seal(at_most).await
    }

    async fn count_old(&self, kind: Old, before: DateTime<Utc>) -> Result<u64> {
        let (collection, old) = old(kind, before);
        Alone(&self.server).count(collection, old).await
    }

    async fn prune(&self, kind: Old, before: DateTime<Utc>, limit: u32) -> Result<u64> {
        let mut alone = Alone(&self.server);
        let (collection, old) = old(kind, before);
        let mut find = doc! { "find": prefix::of_table(collection), "filter": &old };
        find.extend(doc! { "limit": i64::from(limit), "projection": { "_id": 1 } });
        let rows = alone.rows(find).await?;
        let ids: Vec<&Bson> = rows.iter().filter_map(|row| row.get("_id")).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        alone.delete(collection, doc! { "$and": [{ "_id": { "$in": ids } }, old] }).await
    }

    async fn minimize(
        &self,
        entity: &'static Entity,
        keep: FieldSet,
        after: i64,
        limit: u32,
        dry_run: bool,
    ) -> Result<Option<Minimized>> {
        let gone: Vec<Field> = entity.fields().filter(|field| !keep.contains(*field)).collect();
        let behind = doc! { "number": { "$gt": after } };
        let page = doc! { "number": 1 };
        transact!(&self.server, session => {
            let rows = session.page(entity.table, behind.clone(), page.clone(), limit).await?;
            let Some(last) = rows.last() else { return Ok(None) };
            let mut minimized = Minimized { last: last.need("number")?, rows: 0, columns: vec![0; gone.len()] };
            let mut updates = Vec::new();
            for row in &rows {
                let object = objects::object(entity, row, |_| true)?;
                // In an anonymised row, everything that identifies a person is already cleared.
                let is_address = |field: &Field| field.anonymized == Anonymized::Address;
                let address = entity.fields().find(is_address);
                let ours = format!("deleted-{}@anonymized.local", row.need::<i64>("number")?);
                let is_nobody = object.deleted_at.is_some()
                    && address.is_some_and(|address| object.profile[address].text() == Some(&ours));
                let left: Vec<bool> =
                    gone.iter().map(|field| object.profile[*field] != crate::model::Value::Null).collect();
                if is_nobody || !left.contains(&true) {
                    continue;
                }
                minimized.rows += 1;
                for (count, is_left) in minimized.columns.iter_mut().zip(left) {
                    *count += u64::from(is_left);
                }
                let it = doc! { "_id": row.get("_id").cloned() };
                updates.push(doc! { "q": it, "u": { "$set": cleared(&gone) } });
            }
            if !dry_run {
                let written = session.amend(entity.table, updates).await;
                written.map_err(|error| error.of_objects(entity.table))?;
            }
            Ok(Some(minimized))
        })
    }
}

fn run(row: &Document, kind: RunKind) -> Result<Run> {
    Ok(Run {
        id: row.need("_id")?,
        kind,
        owner: row.need("owner")?,
        parameters: row.need("parameters")?,
        everybody: row.need("everybody")?,
        progress: row.need("progress")?,
        started_at: row.need("started_at")?,
        updated_at: row.need("updated_at")?,
        finished_at: row.maybe("finished_at"),
    })
}
