//! Operations of a transaction on synced objects.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use mongodb::bson::{Document, doc};

use super::{
    cells::{Cells as _, key, keys, maybe_time, plain, time},
    objects::{self, Rules, folded, inserted, object, path, raced, these, updated},
    outbox,
    session::{Commands as _, MongoSession, numbers},
};
use crate::{
    entity::{USER, user},
    model::{
        AuditEntry, ClerkId, Entity, Field, FieldSet, Kinds, Object, Receipt, Register, Selection, Version,
    },
    store::{
        Address, Advance, Closing, ErrorKind, Ledger, Mark, Opened, Outgoing, Record, Result, StoreError,
        sql::objects::by_kind,
    },
};

#[async_trait]
impl Ledger for MongoSession {
    async fn open(
        &mut self,
        _: &[Record<'_>],
        _: &'static Entity,
        _: &[(ClerkId, Version)],
        _: &Selection,
    ) -> Result<Option<Opened>> {
        // A command writes to one collection, so the steps run separately.
        Ok(None)
    }

    async fn close(&mut self, _: &'static Entity, _: &Closing<'_>, _: &Selection) -> Result<()> {
        Err(self.fail(StoreError::new(ErrorKind::Broken)))
    }

    async fn registers(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let these = doc! { "_id": { "$in": keys(ids) } };
        // Writing to a document locks it.
        self.change("entity_versions", these.clone(), doc! { "$inc": { "lock": 1 } }).await?;
        registers(self.server.kinds, &self.find("entity_versions", these).await?)
    }

    async fn hold(&mut self, ids: &[ClerkId]) -> Result<HashMap<ClerkId, Register>> {
        let blank = |id: &ClerkId| {
            let register = doc! {
                "kind": id.entity().kind, "clerk_id": id.as_str(), "version": i64::MIN, "event_at": i64::MIN, "tie": "",
                "deleted": false, "held_until": null, "held_since": null,
                "parts_digest": null,
            };
            let update = doc! { "$setOnInsert": register, "$inc": { "lock": 1 } };
            doc! { "q": { "_id": key(id) }, "u": update, "upsert": true }
        };
        let held = self.amend("entity_versions", ids.iter().map(blank).collect()).await;
        held.map_err(|error| self.fail(error.into_race()))?;
        registers(
            self.server.kinds,
            &self.find("entity_versions", doc! { "_id": { "$in": keys(ids) } }).await?,
        )
    }

    async fn advance(&mut self, registers: &[Advance]) -> Result<()> {
        if registers.iter().any(|advance| advance.register.held_until.is_some()) {
            self.leaves_work();
        }
        let (new, known): (Vec<&Advance>, Vec<&Advance>) = registers.iter().partition(|advance| advance.new);
        let document = |advance: &&Advance| {
            let id = &advance.clerk_id;
            let mut document =
                doc! { "_id": key(id), "kind": id.entity().kind, "clerk_id": id.as_str(), "lock": 1 };
            document.extend(set_of(&advance.register));
            document
        };
        let inserted = self.put("entity_versions", new.iter().map(document).collect()).await;
        if let Err(error) = inserted {
            let raced = if error.is_taken() { StoreError::new(ErrorKind::Raced) } else { error };
            return Err(self.fail(raced));
        }
        let update = |advance: &&Advance| {
            let Register {
                version: Version { version, event_at, tie },
                deleted,
                held_until,
                parts_digest,
                ..
            } = &advance.register;
            let mut query = doc! { "_id": key(&advance.clerk_id), "deleted": false };
            // Deletion is final, whatever its time.
            if !deleted {
                let newer = vec![
                    doc! { "version": { "$lt": version } },
                    doc! { "version": version, "event_at": { "$lt": event_at } },
                    doc! { "version": version, "event_at": event_at, "tie": { "$lt": tie } },
                    // Delaying an erasure, or cancelling the delay, does not change the version; nor do parts that reconcile
                    // has mended.
                    doc! {
                        "version": version, "event_at": event_at, "tie": tie,
                        "$or": [
                            { "held_until": { "$ne": maybe_time(*held_until) } },
                            { "parts_digest": { "$ne": parts_digest } },
                        ],
                    },
                ];
                query.insert("$or", newer);
            }
            doc! { "q": query, "u": { "$set": set_of(&advance.register) } }
        };
        let written = self.amend("entity_versions", known.iter().map(update).collect()).await?;
        raced(written, known.len()).map_err(|error| self.fail(error))
    }

    async fn addresses(&mut self, addresses: &[String]) -> Result<Vec<Address>> {
        let wanted: Vec<String> = addresses.iter().map(|address| address.to_lowercase()).collect();
        let filter = doc! { folded(user::EMAIL): { "$in": &wanted }, "deletedAt": null };
        let owners: Vec<(String, ClerkId)> = self
            .find(USER.table, filter)
            .await?
            .iter()
            .map(|row| Ok((row.need(&folded(user::EMAIL))?, row.id_of(&USER, "clerkId")?)))
            .collect::<Result<_>>()?;
        let mut found = Vec::new();
        for (given, folded) in addresses.iter().zip(wanted) {
            let mut owners = owners.iter().filter(|(address, _)| *address == folded).peekable();
            let address = |owner| Address { given: given.clone(), folded: folded.clone(), owner };
            if owners.peek().is_none() {
                found.push(address(None));
            }
            found.extend(owners.map(|(_, owner)| address(Some(owner.clone()))));
        }
        Ok(found)
    }

    async fn release_addresses(&mut self, ids: &[ClerkId]) -> Result<()> {
        let released = doc! { "$set": objects::cleared(&[user::EMAIL]) };
        let written = self.change(USER.table, these(ids), released).await;
        written.map(drop).map_err(|error| error.of_objects(USER.table))
    }

    async fn load(&mut self, ids: &[ClerkId], selection: &Selection) -> Result<HashMap<ClerkId, Object>> {
        let mut loaded = HashMap::new();
        for (entity, ids) in by_kind(ids, ClerkId::entity) {
            let fields = selection.read(entity);
            let telling: FieldSet = entity.telling().collect();
            let is_read = |field: &Field| fields.contains(*field) || telling.contains(*field);
            for row in self.find(entity.table, these(ids)).await? {
                let object = object(entity, &row, is_read)?;
                loaded.insert(object.clerk_id.clone(), object);
            }
        }
        Ok(loaded)
    }

    async fn children(&mut self, parents: &[ClerkId], limit: u32) -> Result<Vec<ClerkId>> {
        self.children_of(parents, self.server.kinds, limit).await
    }

    async fn parts(&mut self, parents: &[ClerkId], kinds: Kinds, limit: u32) -> Result<Vec<ClerkId>> {
        self.children_of(parents, kinds, limit).await
    }

    async fn mark_children(&mut self, parents: &[ClerkId], at: DateTime<Utc>) -> Result<()> {
        let rules = &mut Rules::default();
        for child in self.server.kinds {
            for (field, parent) in child.parents() {
                let of: Vec<ClerkId> = parents.iter().filter(|id| id.entity() == parent).cloned().collect();
                if !of.is_empty() {
                    let these = doc! { path(field): { "$in": plain(&of) } };
                    self.mark_rows(rules, child, these, at, Mark::Set).await?;
                }
            }
        }
        Ok(())
    }

    async fn rivals(&mut self, entity: &'static Entity, keys: &[Vec<String>]) -> Result<Vec<ClerkId>> {
        if entity.unique.is_empty() || keys.is_empty() {
            return Ok(Vec::new());
        }
        let paths: Vec<String> =
            entity.unique.iter().filter_map(|name| entity.named(name)).map(path).collect();
        let same = |key: &Vec<String>| -> Document {
            paths.iter().cloned().zip(key.iter().map(|value| value.as_str().into())).collect()
        };
        let filter = doc! { "$or": keys.iter().map(same).collect::<Vec<_>>(), "deletedAt": null };
        self.find(entity.table, filter).await?.iter().map(|row| row.id_of(entity, "clerkId")).collect()
    }

    async fn insert(&mut self, objects: &[Object], selection: &Selection) -> Result<()> {
        for (entity, objects) in by_kind(objects, |object| object.clerk_id.entity()) {
            let first = numbers(&self.server, entity.table, objects.len()).await?;
            let fields = || selection.fields(entity).of(entity);
            let documents = (first..).zip(objects).map(|(number, object)| inserted(object, fields(), number));
            let documents: Vec<Document> = documents.collect();
            let written = self.put_numbered(entity.table, documents).await;
            written.map_err(|error| error.of_objects(entity.table))?;
        }
        Ok(())
    }

    async fn update(&mut self, objects: &[Object], selection: &Selection) -> Result<()> {
        for (entity, objects) in by_kind(objects, |object| object.clerk_id.entity()) {
            let fields = || selection.fields(entity).of(entity);
            let updates = objects.iter().map(|object| updated(object, fields())).collect();
            let written = self.amend(entity.table, updates).await;
            let written = written.map_err(|error| error.of_objects(entity.table))?;
            raced(written, objects.len()).map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    async fn receipts(&mut self, receipts: &[Receipt]) -> Result<()> {
        let id = |receipt: &Receipt| format!("{}/{}", receipt.destination, receipt.clerk_id);
        let ids: Vec<String> = receipts.iter().map(id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let known = self.find("erasure_receipts", doc! { "_id": { "$in": &ids } }).await?;
        let known: HashMap<String, &Document> =
            known.iter().filter_map(|row| Some((row.maybe("_id")?, row))).collect();
        let update = |(id, receipt): (&String, &Receipt)| {
            let before = known.get(id);
            let requested_at: Option<DateTime<Utc>> = before.and_then(|row| row.maybe("requested_at"));
            let completed_at: Option<DateTime<Utc>> = before.and_then(|row| row.maybe("completed_at"));
            let attempts: i64 = before.and_then(|row| row.maybe("attempts")).unwrap_or_default();
            // A completed receipt has no error.
            let last_error = receipt.last_error.as_deref().filter(|_| completed_at.is_none());
            let set = doc! {
                "clerk_id": receipt.clerk_id.as_str(), "destination": &receipt.destination,
                "requested_at": time(requested_at.unwrap_or(receipt.requested_at).min(receipt.requested_at)),
                "completed_at": maybe_time(completed_at.or(receipt.completed_at)),
                "attempts": attempts + i64::from(receipt.attempts), "last_error": last_error,
            };
            doc! { "q": { "_id": id }, "u": { "$set": set }, "upsert": true }
        };
        let updates = ids.iter().zip(receipts).map(update).collect();
        self.amend("erasure_receipts", updates).await?;
        Ok(())
    }

    async fn close_receipts(&mut self, ids: &[ClerkId], destination: &str, at: DateTime<Utc>) -> Result<()> {
        let open =
            doc! { "clerk_id": { "$in": plain(ids) }, "destination": destination, "completed_at": null };
        let closed = doc! { "$set": { "completed_at": time(at), "last_error": null } };
        self.change("erasure_receipts", open, closed).await?;
        Ok(())
    }

    async fn tell(&mut self, messages: &[Outgoing]) -> Result<()> {
        outbox::tell(self, messages).await
    }

    async fn recall(&mut self, ids: &[ClerkId], now: DateTime<Utc>) -> Result<Vec<(ClerkId, String)>> {
        outbox::recall(self, ids, now).await
    }

    async fn audit(&mut self, entries: &[AuditEntry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        self.leaves_work();
        let first = self.places_in_the_trail(entries.len()).await?;
        let line = |(id, entry): (i64, &AuditEntry)| {
            let fields: Vec<&str> = entry.changed_fields.iter().map(|field| field.name()).collect();
            doc! {
                "_id": id, "id": id, "at": time(entry.at), "action": entry.action.name(entry.clerk_id.entity()),
                "kind": entry.clerk_id.entity().kind, "clerk_id": entry.clerk_id.as_str(),
                "svix_id": entry.svix_id.as_ref().map(crate::model::SvixId::as_str), "source": entry.source.name(),
                "changed_fields": fields, "event_at": time(entry.event_at),
            }
        };
        let actor = |(id, entry): (i64, &AuditEntry)| {
            let actor = entry.actor.as_ref().filter(|_| entry.svix_id.is_some())?;
            Some(doc! { "_id": id, "audit_id": id, "ip": &actor.ip, "user_agent": &actor.user_agent })
        };
        let lines = (first..).zip(entries).map(line).collect();
        self.put_numbered("audit_log", lines).await?;
        let actors = (first..).zip(entries).filter_map(actor).collect();
        self.put("audit_actors", actors).await
    }
}

fn set_of(register: &Register) -> Document {
    let Register {
        version: Version { version, event_at, tie },
        deleted,
        held_until,
        held_since,
        parts_digest,
    } = register;
    doc! {
        "version": version, "event_at": event_at, "tie": tie, "deleted": deleted,
        "held_until": maybe_time(*held_until), "held_since": maybe_time(*held_since),
        "parts_digest": parts_digest,
    }
}

/// Registers from their documents.
pub(super) fn registers(kinds: Kinds, rows: &[Document]) -> Result<HashMap<ClerkId, Register>> {
    let register = |row: &Document| {
        let version =
            Version { version: row.need("version")?, event_at: row.need("event_at")?, tie: row.need("tie")? };
        let register = Register {
            version,
            deleted: row.need("deleted")?,
            held_until: row.maybe("held_until"),
            held_since: row.maybe("held_since"),
            parts_digest: row.maybe("parts_digest"),
        };
        Ok((row.about(kinds)?, register))
    };
    rows.iter().map(register).collect()
}
