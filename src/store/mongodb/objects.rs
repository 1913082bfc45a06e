//! Documents of synced objects, built from the declarations.
//!
//! A user has the schema that most applications use: `clerkId`, `email`, `profile.firstName`, `metadata.public`. JSON is stored
//! as a document, so that an application can query it. If BSON cannot represent it exactly, it is stored as text. An address
//! has a lower-case copy next to it for searches in any case, which is removed with the address.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use mongodb::bson::{Bson, Document, doc, oid::ObjectId};
use serde_json::Value as Json;

use super::{
    cells::{Cells as _, keys, maybe_time, plain, time},
    session::{Alone, Commands, MongoSession},
};
use crate::{
    entity::USER,
    model::{Anonymized, ClerkId, Entity, Field, Holds, Object, Profile, Selection, Value},
    store::{ErrorKind, Ledger as _, Mark, Result, Row, RowFate, StoreError, Way, prefix},
};

/// JSON that is nested deeper is stored as text: a server accepts a hundred levels.
const DEEPEST: usize = 80;

/// The path of a column in a document.
pub fn path(field: Field) -> String {
    let is_of_users = *field.entity() == USER;
    match field.name() {
        "first_name" if is_of_users => "profile.firstName".to_owned(),
        "last_name" if is_of_users => "profile.lastName".to_owned(),
        "image_url" if is_of_users => "profile.imageUrl".to_owned(),
        "public_metadata" if is_of_users => "metadata.public".to_owned(),
        "private_metadata" if is_of_users => "metadata.private".to_owned(),
        "unsafe_metadata" if is_of_users => "metadata.unsafe".to_owned(),
        name => camel(name),
    }
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let (initial, rest) = part.split_at(part.len().min(1));
        name + &initial.to_ascii_uppercase() + rest
    })
}

/// Whether a column holds an address, which has a lower-case copy.
fn is_address(field: Field) -> bool {
    field.anonymized == Anonymized::Address || field.is_address
}

/// The path of that copy.
pub(super) fn folded(field: Field) -> String {
    path(field) + "Folded"
}

/// The filter for the rows of these objects.
pub(super) fn these(ids: &[ClerkId]) -> Document {
    doc! { "clerkId": { "$in": plain(ids) } }
}

fn value_at<'d>(document: &'d Document, path: &str) -> Option<&'d Bson> {
    match path.split_once('.') {
        None => document.get(path),
        Some((outer, inner)) => document.get_document(outer).ok()?.get(inner),
    }
}

/// A value in the form that a document stores.
fn written(value: &Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Text(text) => Bson::String(text.clone()),
        Value::Int(number) => Bson::Int64(*number),
        Value::Bool(truth) => Bson::Boolean(*truth),
        Value::Time(at) => time(*at),
        Value::Json(text) => match serde_json::from_str(text) {
            Ok(json @ (Json::Object(_) | Json::Array(_))) => {
                exactly(&json, DEEPEST).unwrap_or_else(|| Bson::String(text.clone()))
            }
            _ => Bson::String(text.clone()),
        },
    }
}

/// JSON as BSON; `None` if a value would not be read back unchanged, or if a query could not name a field.
fn exactly(json: &Json, depth: usize) -> Option<Bson> {
    let depth = depth.checked_sub(1)?;
    Some(match json {
        Json::Null => Bson::Null,
        Json::Bool(truth) => Bson::Boolean(*truth),
        Json::String(text) => Bson::String(text.clone()),
        Json::Number(number) => match number.as_i64() {
            Some(whole) if whole.to_string() == number.to_string() => Bson::Int64(whole),
            _ => {
                let float = number.as_f64().filter(|float| float.is_finite())?;
                let again = serde_json::Number::from_f64(float)?.to_string();
                (Value::Json(again) == Value::Json(number.to_string())).then_some(Bson::Double(float))?
            }
        },
        Json::Array(items) => {
            Bson::Array(items.iter().map(|item| exactly(item, depth)).collect::<Option<_>>()?)
        }
        Json::Object(members) => {
            let member = |(name, value): (&String, &Json)| {
                let is_plain = !name.is_empty() && !name.starts_with('$') && !name.contains(['.', '\0']);
                Some((name.clone(), exactly(value, depth).filter(|_| is_plain)?))
            };
            Bson::Document(members.iter().map(member).collect::<Option<_>>()?)
        }
    })
}

/// The JSON text of a field's value.
pub(super) fn json_of(value: &Bson) -> String {
    match value {
        Bson::String(text) => text.clone(),
        other => json(other).to_string(),
    }
}

pub(super) fn json(value: &Bson) -> Json {
    match value {
        Bson::Document(document) => {
            Json::Object(document.iter().map(|(name, value)| (name.clone(), json(value))).collect())
        }
        Bson::Array(items) => items.iter().map(json).collect(),
        Bson::String(text) => text.as_str().into(),
        Bson::Boolean(truth) => (*truth).into(),
        Bson::Int32(number) => (*number).into(),
        Bson::Int64(number) => (*number).into(),
        Bson::Double(number) => (*number).into(),
        Bson::DateTime(at) => at.try_to_rfc3339_string().map_or(Json::Null, Json::String),
        Bson::ObjectId(id) => id.to_hex().into(),
        Bson::Null | Bson::Undefined => Json::Null,
        other => serde_json::to_value(other).unwrap_or_default(),
    }
}

fn read(field: Field, value: &Bson) -> Value {
    let read = match field.holds {
        _ if matches!(value, Bson::Null) => None,
        Holds::Json => Some(Value::Json(json_of(value))),
        Holds::Text => value.as_str().map(|text| Value::Text(text.to_owned())),
        Holds::Bool => value.as_bool().map(Value::Bool),
        Holds::Int => doc! { "n": value }.maybe("n").map(Value::Int),
        Holds::Time => doc! { "n": value }.maybe("n").map(Value::Time),
    };
    read.unwrap_or_default()
}

/// An object with the columns for which `is_read` is true.
pub(super) fn object(
    entity: &'static Entity,
    document: &Document,
    is_read: impl Fn(&Field) -> bool,
) -> Result<Object> {
    let mut profile = Profile::default();
    for field in entity.fields().filter(is_read) {
        if let Some(value) = value_at(document, &path(field)) {
            profile.set(field, read(field, value));
        }
    }
    // Any value counts as a mark of deletion, even an unreadable one.
    let is_marked = document.get("deletedAt").is_some_and(|mark| !matches!(mark, Bson::Null));
    Ok(Object {
        clerk_id: document.id_of(entity, "clerkId")?,
        profile,
        created_at: document.maybe("createdAt"),
        updated_at: document.maybe("updatedAt").unwrap_or_default(),
        synced_at: document.maybe("syncedAt").unwrap_or_default(),
        deleted_at: is_marked.then(|| document.maybe("deletedAt").unwrap_or_default()),
    })
}

/// An object with the columns for readers.
pub(super) fn seen(entity: &'static Entity, document: &Document) -> Result<Row> {
    let preferences = document.get("preferences").filter(|value| !matches!(value, Bson::Null));
    Ok(Row {
        id: document.need("number")?,
        object: object(entity, document, |_| true)?,
        preferences: preferences.filter(|_| entity.has_preferences).map(json_of),
    })
}

/// The columns to set, by their paths, with the copies of addresses.
fn set_of(object: &Object, fields: impl Iterator<Item = Field>) -> Document {
    let mut set = Document::new();
    for field in fields {
        let value = &object.profile[field];
        if is_address(field) {
            set.insert(folded(field), value.text().map(str::to_lowercase));
        }
        set.insert(path(field), written(value));
    }
    set.insert("updatedAt", maybe_time(object.known_updated_at()));
    set.insert("syncedAt", time(object.synced_at));
    set
}

/// A new document.
pub(super) fn inserted(object: &Object, fields: impl Iterator<Item = Field>, number: i64) -> Document {
    let mut document = doc! { "_id": ObjectId::new(), "number": number, "clerkId": object.clerk_id.as_str() };
    for (path, value) in set_of(object, fields) {
        match path.split_once('.') {
            None => _ = document.insert(path, value),
            Some((outer, inner)) => {
                if let Bson::Document(outer) =
                    document.entry(outer.to_owned()).or_insert_with(|| Bson::Document(Document::new()))
                {
                    outer.insert(inner, value);
                }
            }
        }
    }
    if object.clerk_id.entity().has_preferences {
        document.insert("preferences", Document::new());
    }
    document.insert("createdAt", maybe_time(object.created_at));
    document.insert("deletedAt", Bson::Null);
    document
}

/// The update of a document.
pub(super) fn updated(object: &Object, fields: impl Iterator<Item = Field>) -> Document {
    let mut set = set_of(object, fields);
    // Some events do not contain the time of creation.
    if let Some(created_at) = object.created_at {
        set.insert("createdAt", time(created_at));
    }
    doc! { "q": { "clerkId": object.clerk_id.as_str() }, "u": { "$set": set } }
}

/// The assignments that clear these columns.
pub(super) fn cleared(fields: &[Field]) -> Document {
    let mut cleared = Document::new();
    for field in fields {
        cleared.insert(path(*field), Bson::Null);
        if is_address(*field) {
            cleared.insert(folded(*field), Bson::Null);
        }
    }
    cleared
}

/// Whether the application has added rules to collections, cached for those that were checked.
#[derive(Default)]
pub(super) struct Rules(HashMap<&'static str, bool>);

impl Rules {
    /// Whether a collection has a validator or a unique index that clerk-sync did not create.
    async fn are_on(&mut self, alone: &mut Alone<'_>, collection: &'static str) -> Result<bool> {
        if let Some(known) = self.0.get(collection) {
            return Ok(*known);
        }
        let name = prefix::of_table(collection);
        let filter = doc! { "name": &name };
        let found = alone.rows(doc! { "listCollections": 1, "filter": filter, "cursor": {} }).await?;
        let options = found.first().and_then(|found| found.get_document("options").ok());
        let is_validated = options.is_some_and(|options| options.contains_key("validator"));
        let indexes = alone.rows(doc! { "listIndexes": name, "cursor": {} }).await?;
        let is_theirs = |index: &Document| {
            let name: String = index.maybe("name").unwrap_or_default();
            index.maybe("unique") == Some(true) && !matches!(&*name, "clerk_id" | "number" | "_id_")
        };
        let are_on = is_validated || indexes.iter().any(is_theirs);
        self.0.insert(collection, are_on);
        Ok(are_on)
    }
}

impl MongoSession {
    /// Run updates of objects that the application may refuse; returns the refused ones by their positions.
    ///
    /// A refusal would end the transaction. So if the application has any rules, each update is first tried in a transaction
    /// that is not committed.
    async fn try_updates(
        &mut self,
        rules: &mut Rules,
        collection: &'static str,
        updates: Vec<Document>,
    ) -> Result<HashMap<usize, StoreError>> {
        let mut refused = HashMap::new();
        if !updates.is_empty() && rules.are_on(&mut self.alone(), collection).await? {
            for (place, update) in updates.iter().enumerate() {
                let mut trial = Self::begin(&self.server, self.patience).await?;
                let tried = trial.amend(collection, vec![update.clone()]).await;
                crate::store::Session::rollback(Box::new(trial)).await;
                if let Err(error) = tried.map_err(|error| error.of_objects(collection))
                    && error.is_about_the_data()
                {
                    refused.insert(place, error);
                }
            }
        }
        let allowed = updates.into_iter().enumerate().filter(|(place, _)| !refused.contains_key(place));
        let allowed: Vec<Document> = allowed.map(|(_, update)| update).collect();
        self.amend(collection, allowed).await.map_err(|error| error.of_objects(collection))?;
        Ok(refused)
    }

    /// Set `deleted_at` of rows, or clear it, if the application allows it.
    pub(super) async fn mark_rows(
        &mut self,
        rules: &mut Rules,
        entity: &'static Entity,
        these: Document,
        at: DateTime<Utc>,
        mark: Mark,
    ) -> Result<()> {
        let (before, after) = match mark {
            Mark::Set => (Bson::Null, time(at)),
            Mark::Unset => (time(at), Bson::Null),
        };
        let rows = doc! { "$and": [these, { "deletedAt": before }] };
        let update = doc! { "q": rows, "u": { "$set": { "deletedAt": after } }, "multi": true };
        self.try_updates(rules, entity.table, vec![update]).await.map(drop)
    }

    /// See [`Session::erase`](crate::store::Session::erase).
    pub(super) async fn take_out(
        &mut self,
        ids: &[ClerkId],
        ways: &[Way],
        at: DateTime<Utc>,
    ) -> Result<HashMap<ClerkId, RowFate>> {
        let Some(entity) = ids.first().map(ClerkId::entity) else { return Ok(HashMap::new()) };
        let (mut fates, mut refusals) = (HashMap::new(), HashMap::new());
        let rules = &mut Rules::default();
        let mut standing = ids.to_vec();
        for way in ways {
            let rows = self.find(entity.table, these(&standing)).await?;
            let there: Vec<ClerkId> =
                rows.iter().map(|row| row.id_of(entity, "clerkId")).collect::<Result<_>>()?;
            match way {
                Way::Delete => {
                    self.delete(entity.table, these(&there)).await?;
                    fates.extend(there.into_iter().map(|id| (id, RowFate::Deleted)));
                }
                Way::Anonymize => {
                    let updates = rows.iter().map(|row| self.anonymizing(entity, row, at));
                    let updates = updates.collect::<Result<_>>()?;
                    let refused = self.try_updates(rules, entity.table, updates).await?;
                    for (place, id) in there.into_iter().enumerate() {
                        match refused.get(&place) {
                            Some(error) => _ = refusals.insert(id, error.clone()),
                            None => _ = fates.insert(id, RowFate::Anonymized),
                        }
                    }
                }
            }
            standing = self.telling(&standing).await?;
        }
        if ways.is_empty() {
            standing = self.telling(&standing).await?;
        }
        self.mark_rows(rules, entity, these(&standing), at, Mark::Set).await?;
        for id in standing {
            let reason = refusals.remove(&id).unwrap_or_else(StoreError::unmoved);
            fates.insert(id, RowFate::Stands(reason));
        }
        Ok(fates)
    }

    /// The objects among these whose row exists and is not anonymised.
    async fn telling(&mut self, ids: &[ClerkId]) -> Result<Vec<ClerkId>> {
        let rows = self.load(ids, &Selection::default()).await?;
        Ok(ids.iter().filter(|id| rows.get(*id).is_some_and(|row| !row.is_anonymized())).cloned().collect())
    }

    /// The update that anonymises a row.
    fn anonymizing(&self, entity: &'static Entity, row: &Document, at: DateTime<Utc>) -> Result<Document> {
        let mut set = Document::new();
        for field in entity.fields() {
            let value = match field.anonymized {
                Anonymized::Kept => continue,
                Anonymized::Null => Bson::Null,
                Anonymized::Text(text) => text.into(),
                Anonymized::Address => {
                    format!("deleted-{}@anonymized.local", row.need::<i64>("number")?).into()
                }
            };
            if is_address(field) {
                set.insert(folded(field), Bson::Null);
            }
            set.insert(path(field), value);
        }
        if entity.has_preferences {
            set.insert("preferences", Document::new());
        }
        let theirs = self.server.anonymize_columns.iter().filter(|_| *entity == USER);
        set.extend(theirs.map(|name| (name.clone(), Bson::Null)));
        set.insert("deletedAt", maybe_time(row.maybe("deletedAt").or(Some(at))));
        Ok(doc! { "q": { "_id": row.get("_id").cloned() }, "u": { "$set": set } })
    }

    /// See [`Ledger::parts`](crate::store::Ledger::parts).
    pub(super) async fn children_of(
        &mut self,
        parents: &[ClerkId],
        kinds: &[&'static Entity],
        limit: u32,
    ) -> Result<Vec<ClerkId>> {
        let mut searches: Vec<(&'static Entity, Document)> = Vec::new();
        for child in kinds {
            for (field, parent) in child.parents() {
                let of = parents.iter().filter(|id| id.entity() == parent).cloned().collect::<Vec<_>>();
                if !of.is_empty() {
                    searches.push((child, doc! { path(field): { "$in": plain(&of) } }));
                }
            }
        }
        // Erasing a user also removes objects with that user's address, even if they were meant for another person.
        let users: Vec<ClerkId> = parents.iter().filter(|id| *id.entity() == USER).cloned().collect();
        let addressed = kinds.iter().filter_map(|child| Some((*child, child.address()?)));
        if let Some(email) = USER.fields().find(|field| field.anonymized == Anonymized::Address)
            && kinds.contains(&&USER)
            && !users.is_empty()
        {
            let rows = self.find(USER.table, these(&users)).await?;
            let theirs: Vec<String> = rows.iter().filter_map(|row| row.maybe(&folded(email))).collect();
            searches
                .extend(addressed.map(|(child, field)| (child, doc! { folded(field): { "$in": &theirs } })));
        }
        let mut found = Vec::new();
        for (entity, filter) in searches {
            let mut after = i64::MIN;
            loop {
                let missing = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
                let filter = doc! { "$and": [&filter, { "number": { "$gt": after } }] };
                let rows = self.page(entity.table, filter, doc! { "number": 1 }, missing.min(1000)).await?;
                let Some(last) = rows.last() else { break };
                after = last.need("number")?;
                let ids: Vec<ClerkId> =
                    rows.iter().map(|row| row.id_of(entity, "clerkId")).collect::<Result<_>>()?;
                let dead = self
                    .find("entity_versions", doc! { "_id": { "$in": keys(&ids) }, "deleted": true })
                    .await?;
                let dead: Vec<String> = dead.iter().filter_map(|row| row.maybe("clerk_id")).collect();
                found.extend(ids.into_iter().filter(|id| !dead.iter().any(|dead| dead == id.as_str())));
            }
        }
        found.sort();
        Ok(found)
    }
}

/// [`ErrorKind::Raced`] unless as many documents were matched as wanted.
pub(super) fn raced(counted: u64, wanted: usize) -> Result<()> {
    if counted == wanted as u64 { Ok(()) } else { Err(StoreError::new(ErrorKind::Raced)) }
}
