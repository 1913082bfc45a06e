//! Lines of the audit trail: their order, and their form in seals.
//!
//! Ids are assigned before the commit, so a line can appear with a smaller id than lines that are already visible. A
//! transaction that is about to write lines gets their ids and registers as a writer, in one write to one document. A line is
//! final once no registered writer holds a smaller id.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use mongodb::bson::{Bson, Document, doc};
use tokio::time::sleep;

use super::{
    Mongo,
    cells::{Cells as _, time},
    session::{Alone, Commands, MongoSession, server_time},
};
use crate::{
    model::{LineHash, Seal, seal::Cell},
    store::{ErrorKind, Result, StoreError, ToSeal, Unsealed, prefix, token},
};

/// A writer that has been registered for longer than this counts as dead, because no transaction takes that long.
pub(super) const DEAD: TimeDelta = TimeDelta::minutes(3);

/// How long sealing waits for transactions that are writing lines, and how often it checks.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

const TRAIL: &str = "audit_log";
const SEALS: &str = "audit_seals";

impl MongoSession {
    /// Reserve the ids of this many lines and register as a writer; returns the first id.
    pub(super) async fn places_in_the_trail(&mut self, lines: usize) -> Result<i64> {
        let lines = i64::try_from(lines).unwrap_or(i64::MAX);
        let is_new = self.beside.writer.is_none();
        let writer = self.beside.writer.get_or_insert_with(token).clone();
        let next = doc! { "$ifNull": ["$next", 1_i64] };
        let mut set = doc! { "next": { "$add": [&next, lines] } };
        // A registered writer keeps the place of its first line.
        if is_new {
            set.insert(format!("writing.{writer}"), doc! { "from": next, "at": "$$NOW" });
        }
        let command = doc! {
            "findAndModify": prefix::of_table("counters"), "query": { "_id": TRAIL }, "update": [{ "$set": set }],
            "upsert": true, "new": true,
        };
        let answer = self.alone().command(command).await?;
        let counter = answer.get_document("value").map_err(|_| StoreError::new(ErrorKind::Broken))?;
        Ok(counter.need::<i64>("next")? - lines)
    }
}

/// The registered writers, and the next id to be assigned.
struct Writers {
    next: i64,
    /// The token and the first id of each writer.
    writing: Vec<(String, i64)>,
}

impl Mongo {
    async fn writers(&self) -> Result<Writers> {
        let mut alone = Alone(&self.server);
        let rows = alone.find("counters", doc! { "_id": TRAIL }).await?;
        let Some(row) = rows.first() else { return Ok(Writers { next: 1, writing: Vec::new() }) };
        let (mut writing, mut dead) = (Vec::new(), Document::new());
        let named = row.get_document("writing").ok().filter(|writing| !writing.is_empty());
        let Some(named) = named else { return Ok(Writers { next: row.need("next")?, writing }) };
        let now = server_time(&self.server).await?;
        for (token, writer) in named {
            let Some(writer) = writer.as_document() else { continue };
            let at: DateTime<Utc> = writer.maybe("at").unwrap_or_default();
            if at + DEAD < now {
                dead.insert(format!("writing.{token}"), "");
            } else {
                writing.push((token.clone(), writer.need("from")?));
            }
        }
        if !dead.is_empty() {
            alone.change("counters", doc! { "_id": TRAIL }, doc! { "$unset": dead }).await?;
        }
        Ok(Writers { next: row.need("next")?, writing })
    }

    pub(super) async fn lines_to_seal(&self, limit: u32) -> Result<ToSeal> {
        let mut alone = Alone(&self.server);
        let newest = alone.page(SEALS, doc! {}, doc! { "_id": -1 }, 1).await?;
        let newest = newest.first().map(seal);
        let after = newest.as_ref().map_or(0, |seal| seal.last_id);
        let first = self.writers().await?;
        let top = first.next - 1;
        if top <= after {
            return Ok(ToSeal { newest, lines: Vec::new() });
        }
        let deadline = Instant::now() + PATIENCE;
        let mut writing = first.writing;
        while !writing.is_empty() && Instant::now() < deadline {
            sleep(POLL).await;
            let now = self.writers().await?.writing;
            writing.retain(|writer| now.contains(writer));
        }
        // Stop below the first id of any writer that is still active.
        let until = writing.iter().map(|(_, from)| from - 1).min().unwrap_or(top).min(top);
        Ok(ToSeal { newest, lines: self.lines(after, until, limit).await? })
    }

    pub(super) async fn lines(&self, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>> {
        let between = doc! { "_id": { "$gt": after, "$lte": until } };
        let rows = Alone(&self.server).page(TRAIL, between, doc! { "_id": 1 }, limit).await?;
        rows.iter().map(line).collect()
    }

    pub(super) async fn append_seals(&self, seals: &[Seal]) -> Result<bool> {
        let document = |seal: &Seal| {
            doc! {
                "_id": seal.number, "number": seal.number, "sealed_at": time(seal.sealed_at), "first_id": seal.first_id,
                "last_id": seal.last_id, "lines": seal.lines, "gaps": &seal.gaps, "content": &seal.content,
                "previous": &seal.previous, "hash": &seal.hash,
            }
        };
        let mut session = MongoSession::begin(&self.server, crate::store::Patience::Normal).await?;
        let done = session.put(SEALS, seals.iter().map(document).collect()).await;
        match super::session::concluded(session, done).await {
            Err(error) if error.is_taken() || error.kind == ErrorKind::Conflict => Ok(false),
            done => done.map(|()| true),
        }
    }

    pub(super) async fn some_seals(&self, after: i64, limit: u32) -> Result<Vec<Seal>> {
        let behind = doc! { "_id": { "$gt": after } };
        let rows = Alone(&self.server).page(SEALS, behind, doc! { "_id": 1 }, limit).await?;
        Ok(rows.iter().map(seal).collect())
    }

    pub(super) async fn lines_without_seal(&self, at_most: u32) -> Result<Unsealed> {
        let mut alone = Alone(&self.server);
        let newest = alone.page(SEALS, doc! {}, doc! { "_id": -1 }, 1).await?;
        let after = newest.first().map_or(0, |row| seal(row).last_id);
        let behind = doc! { "_id": { "$gt": after } };
        let rows = alone.page(TRAIL, behind, doc! { "_id": 1 }, at_most).await?;
        let since = rows.iter().filter_map(|row| row.maybe("at")).min();
        Ok(Unsealed { lines: rows.len() as u64, since })
    }
}

/// A value that cannot be read, because another program wrote it, becomes the default, so that the hash does not match.
fn seal(row: &Document) -> Seal {
    let text = |name| row.maybe::<String>(name).unwrap_or_default();
    let number = |name| row.maybe::<i64>(name).unwrap_or_default();
    Seal {
        number: number("number"),
        sealed_at: row.maybe("sealed_at").unwrap_or_default(),
        first_id: number("first_id"),
        last_id: number("last_id"),
        lines: number("lines"),
        gaps: text("gaps"),
        content: text("content"),
        previous: text("previous"),
        hash: text("hash"),
    }
}

/// A line in the form that seals use, with the raw bytes of every value that has another type than clerk-sync writes.
fn line(row: &Document) -> Result<LineHash> {
    let nothing = Bson::Null;
    let odd = |name: &str| {
        let value = row.get(name).unwrap_or(&nothing);
        mongodb::bson::serialize_to_vec(&doc! { "": value }).unwrap_or_default()
    };
    let names = ["at", "action", "clerk_id", "svix_id", "source", "changed_fields", "event_at", "kind"];
    let bytes: Vec<Vec<u8>> = names.iter().map(|name| odd(name)).collect();
    let cell = |place: usize| {
        let name = names[place];
        match row.get(name).unwrap_or(&nothing) {
            Bson::Null => Cell::Null,
            Bson::String(text) if !matches!(name, "at" | "event_at" | "changed_fields") => {
                Cell::Text(text.as_bytes())
            }
            Bson::DateTime(at) if matches!(name, "at" | "event_at") => {
                Cell::Time(at.timestamp_millis().saturating_mul(1000))
            }
            Bson::Array(items) if name == "changed_fields" => {
                let texts: Option<Vec<Option<String>>> =
                    items.iter().map(|item| item.as_str().map(|text| Some(text.to_owned()))).collect();
                texts.map_or(Cell::Odd(&bytes[place]), Cell::List)
            }
            _ => Cell::Odd(&bytes[place]),
        }
    };
    let cells = [cell(0), cell(1), cell(2), cell(3), cell(4), cell(5), cell(6)];
    Ok(LineHash::of(row.need("_id")?, &cells, &cell(7)))
}
