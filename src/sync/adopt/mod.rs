//! Importing the users of an existing table (`migrate adopt`).
//!
//! An adopted row has no version, so any version from Clerk is newer. Users that clerk-sync already knows are left
//! alone. A user that the table marks as deleted is never imported as a live user. If the mark is certain, a tombstone
//! is written; if not, the user is left out and reported.

mod columns;
mod marks;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use tokio::time::Instant;

use self::{
    columns::Columns,
    marks::Said,
    values::{Reader, is_clerks},
};
use super::{Clock, Rules, apply};
use crate::{
    entity::USER,
    model::{Change, ClerkId, Content, Delivery, EraseIf, News, Outcome, Patch, Selection, Source, Version},
    store::{ForeignReading, ForeignRow, Known, Readiness, Result, Store, StoreError},
};

/// Rows read at once. For each page the database sorts the whole table.
const PAGE: u32 = 5000;

/// Users adopted in one transaction.
const BATCH: usize = 500;

/// How long one transaction may take.
const BATCH_TIME: std::time::Duration = std::time::Duration::from_mins(1);

/// How many users of each group the report names.
const NAMED: usize = 20;

/// The operator's options for the table.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub table: String,
    /// The column that holds Clerk's ids.
    pub id_column: Option<String>,
    /// Pairs of a clerk-sync column and the column of the table that fills it.
    pub columns: Vec<(String, String)>,
    /// A condition in SQL that selects deleted users.
    pub deleted_when: Option<String>,
    /// The column that holds Clerk's own time of the newest change.
    pub clerk_updated_at: Option<String>,
    /// The time zone for times without one.
    pub time_zone: Option<Tz>,
    pub dry_run: bool,
}

/// What happened to the users of the table, or would happen on a dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The column that holds Clerk's ids.
    pub id_column: String,
    /// Each column that is read, with the clerk-sync column that it fills.
    pub read: Vec<(String, &'static str)>,
    /// Each column that looks like one of clerk-sync's but is not read, with the reason.
    pub unread: Vec<(String, String)>,
    /// Columns that are empty in every row.
    pub empty: Vec<String>,
    /// Columns that mark users as deleted.
    pub marks: Vec<String>,
    /// Columns whose times have no zone, and the zone in which they are read.
    pub zoneless: Option<(BTreeSet<String>, String)>,
    /// Whether a row level security policy of the database hides rows from clerk-sync.
    pub hides_rows: bool,
    pub copied: u64,
    /// Users that clerk-sync already knew; they are left as they are.
    pub already_here: u64,
    /// Users that the table marks as deleted; each gets a tombstone.
    pub buried: Named,
    /// Users that the table marks as deleted, but that are live in clerk-sync's table.
    pub standing: Named,
    /// Users that were left out, by reason.
    pub left_out: BTreeMap<String, Named>,
    /// Users that were left out because the database refuses their data.
    pub refused: Named,
    /// Additional rows of users who have more than one.
    pub further_rows: u64,
    /// Rows without a Clerk id.
    pub without_id: u64,
}

/// A group of users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub users: u64,
    /// Ids of the first users in the group.
    pub ids: Vec<String>,
}

impl Named {
    fn add(&mut self, id: &str) {
        self.users += 1;
        if self.ids.len() < NAMED {
            self.ids.push(id.to_owned());
        }
    }
}

impl Tally {
    fn leave_out(&mut self, reason: &str, id: &str) {
        self.left_out.entry(reason.to_owned()).or_default().add(id);
    }
}

/// Adopt the users of a table; on a dry run only report.
///
/// # Errors
/// If the table cannot be read as requested, or the database is not available. Users adopted before the error stay.
pub async fn adopt(store: &dyn Store, wish: &Wish, rules: &Rules, clock: &Clock) -> Result<Tally> {
    let table = store.foreign_table(&wish.table).await?;
    let columns = Columns::of(&table, wish, rules.fields(&USER))?;
    let (zone, zone_name) = columns.zone(&table, wish)?;
    let reading = ForeignReading {
        table: wish.table.clone(),
        id: columns.id.clone(),
        columns: columns.to_read(),
        condition: wish.deleted_when.clone(),
    };
    let filled =
        table.columns.iter().find(|column| column.name == columns.id).map_or(0, |column| column.filled);
    let mut tally = Tally {
        id_column: columns.id.clone(),
        read: columns.read.clone(),
        unread: columns.unread.clone(),
        empty: table
            .columns
            .iter()
            .filter(|column| column.filled == 0)
            .map(|column| column.name.clone())
            .collect(),
        marks: columns.marks.iter().map(|(column, _)| column.clone()).collect(),
        hides_rows: table.hides_rows,
        without_id: table.rows - filled,
        ..Tally::default()
    };
    let is_ready = store.ready().await? == Readiness::Ready;
    let by_condition = wish.deleted_when.is_some();
    let mut reader = Reader::new(zone);
    let mut after: Option<String> = None;
    loop {
        let mut page = store.foreign_rows(&reading, after.as_deref(), PAGE).await?;
        let Some(last) = page.last().map(|row| row.id.clone()) else { break };
        // All rows of one id are handled together.
        if page.len() == PAGE as usize && page[0].id != last {
            page.retain(|row| row.id != last);
        }
        after = page.last().map(|row| row.id.clone());
        let now = clock();
        let mut deliveries = Vec::new();
        for rows in page.chunk_by(|a, b| a.id == b.id) {
            deliveries.extend(delivery(rows, &columns, by_condition, &mut reader, now, &mut tally));
        }
        for batch in deliveries.chunks(BATCH) {
            let known = if is_ready { known(store, batch).await? } else { Known::default() };
            let batch: Vec<Delivery> =
                batch.iter().filter(|delivery| is_news(delivery, &known, &mut tally)).cloned().collect();
            if wish.dry_run {
                for delivery in &batch {
                    count(delivery, &mut tally);
                }
            } else {
                take_over(store, &batch, rules, now, &mut tally).await?;
            }
        }
    }
    if !reader.zoneless.is_empty() {
        tally.zoneless = Some((reader.zoneless, zone_name));
    }
    Ok(tally)
}

/// The delivery that the rows of one id result in, if any.
fn delivery(
    rows: &[ForeignRow],
    columns: &Columns,
    by_condition: bool,
    reader: &mut Reader,
    now: DateTime<Utc>,
    tally: &mut Tally,
) -> Option<Delivery> {
    let id = rows[0].id.as_str();
    let clerk_id = ClerkId::new(&USER, id).filter(|id| is_clerks(id.as_str()));
    let Some(clerk_id) = clerk_id else {
        tally.leave_out("the id is not one of Clerk's user ids: it was rewritten, or never was one", id);
        return None;
    };
    let said: Vec<Option<Said<'_>>> =
        rows.iter().map(|row| marks::said(row, &columns.marks, by_condition, now)).collect();
    let news = if said.iter().all(Option::is_none) {
        tally.further_rows += rows.len() as u64 - 1;
        as_it_stands(&rows[0], columns, reader, now)
    } else if said.iter().any(Option::is_none) {
        tally.leave_out("one row marks the user as deleted, and another row does not", id);
        return None;
    } else if let Some(column) = said.iter().flatten().find_map(|said| match said {
        Said::Perhaps(column) => Some(column),
        Said::Deleted => None,
    }) {
        let reason = format!(
            "{column} may mark the user as deleted; a backfill imports the users that Clerk still has"
        );
        tally.leave_out(&reason, id);
        return None;
    } else {
        News::Erase(EraseIf::Unknown)
    };
    // A time in the future would make Clerk's own events stale until then.
    let updated_at = columns.filling("updated_at");
    let updated_at = updated_at.and_then(|column| reader.time_in(&rows[0], column)).filter(|at| *at <= now);
    let version = updated_at.map_or(Version::UNKNOWN, |at| Version::at(at, at, String::new()));
    let content = Content::Change(Change { clerk_id: clerk_id.clone(), version, news, actor: None });
    Some(Delivery::without_webhook(clerk_id, Source::Cli, updated_at.unwrap_or(now), now, content))
}

/// The change that adopts a user who is not deleted.
fn as_it_stands(row: &ForeignRow, columns: &Columns, reader: &mut Reader, now: DateTime<Utc>) -> News {
    let mut patch = Patch::default();
    for (column, ours) in &columns.read {
        let Some(field) = USER.named(ours) else { continue };
        if let Some(value) = row.values.get(column).and_then(|json| reader.value(field, json, column)) {
            patch.set(field, value);
        }
    }
    let created_at = columns.filling("created_at").and_then(|column| reader.time_in(row, column));
    News::Adopt { patch, created_at: created_at.filter(|at| *at <= now) }
}

/// What clerk-sync knows about these users.
async fn known(store: &dyn Store, batch: &[Delivery]) -> Result<Known> {
    let ids: BTreeSet<ClerkId> = batch.iter().filter_map(|delivery| delivery.clerk_id.clone()).collect();
    store.known(&ids.into_iter().collect::<Vec<_>>(), &Selection::default()).await
}

/// Whether clerk-sync knows nothing about the user. Known users are counted.
fn is_news(delivery: &Delivery, known: &Known, tally: &mut Tally) -> bool {
    let Some(id) = &delivery.clerk_id else { return false };
    let register = known.registers.get(id);
    let is_tombstone = register.is_some_and(|register| register.deleted);
    match (is_deletion(delivery), known.has(id) || (is_deletion(delivery) && register.is_some())) {
        (_, false) => return true,
        (true, true) if !is_tombstone => tally.standing.add(id.as_str()),
        _ => tally.already_here += 1,
    }
    false
}

fn is_deletion(delivery: &Delivery) -> bool {
    matches!(&delivery.content, Content::Change(Change { news: News::Erase(_), .. }))
}

/// Count an adopted user.
fn count(delivery: &Delivery, tally: &mut Tally) {
    match &delivery.clerk_id {
        Some(id) if is_deletion(delivery) => tally.buried.add(id.as_str()),
        _ => tally.copied += 1,
    }
}

async fn take_over(
    store: &dyn Store,
    batch: &[Delivery],
    rules: &Rules,
    now: DateTime<Utc>,
    tally: &mut Tally,
) -> Result<()> {
    for (delivery, result) in
        batch.iter().zip(apply(store, batch, rules, now, Instant::now() + BATCH_TIME).await)
    {
        match result {
            Ok(Outcome::Applied) => count(delivery, tally),
            // An event arrived in the meantime.
            Ok(_) => tally.already_here += 1,
            Err(error) if error.is_about_the_data() => {
                tracing::warn!(%error, "a user could not be adopted");
                tally.refused.add(delivery.clerk_id.as_ref().map_or("", ClerkId::as_str));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The error for an option that cannot be used.
fn mistake(text: String) -> StoreError {
    StoreError::schema(text)
}
