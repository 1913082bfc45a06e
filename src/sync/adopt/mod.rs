//! Taking over the users of a table that was there before.
//!
//! What such a table says is only ever a beginning: a row that comes from it has no version, so that whatever Clerk says
//! is newer. Nobody who is known here already is touched. Who is deleted by the table never comes as somebody alive: there
//! is a tombstone where that is plain, and where it is not they are left out and named.

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

/// Users taken over in one transaction.
const BATCH: usize = 500;

/// How long one transaction may take.
const BATCH_TIME: std::time::Duration = std::time::Duration::from_mins(1);

/// Users of a kind that are named in the report.
const NAMED: usize = 20;

/// What the user says about the table.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub table: String,
    /// The column that holds Clerk's ids.
    pub id_column: Option<String>,
    /// Columns of ours, and which of the table's fills each.
    pub columns: Vec<(String, String)>,
    /// In SQL, who is deleted.
    pub deleted_when: Option<String>,
    /// The column that holds Clerk's own time of the newest change.
    pub clerk_updated_at: Option<String>,
    /// The zone of times that have none.
    pub time_zone: Option<Tz>,
    pub dry_run: bool,
}

/// What became of the users of the table, or would become of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The column that holds Clerk's ids.
    pub id_column: String,
    /// Each column that is read, and the one of ours that it fills.
    pub read: Vec<(String, &'static str)>,
    /// Each column that looks like one of ours and is not read, and why.
    pub unread: Vec<(String, String)>,
    /// Columns that hold nothing in any row.
    pub empty: Vec<String>,
    /// Columns by which the table says who is deleted.
    pub marks: Vec<String>,
    /// Columns whose times have no zone, and the zone in which they are read.
    pub zoneless: Option<(BTreeSet<String>, String)>,
    /// Whether a policy of the database hides rows from us.
    pub hides_rows: bool,
    pub copied: u64,
    /// Known here already, and left as they are.
    pub already_here: u64,
    /// Deleted by the table, and buried here.
    pub buried: Named,
    /// Deleted by the table, while they stand here.
    pub standing: Named,
    /// Left out, by the reason.
    pub left_out: BTreeMap<String, Named>,
    /// Left out, because the database refuses their data.
    pub refused: Named,
    /// Further rows of somebody who has one.
    pub further_rows: u64,
    /// Rows that are no user's, because they have no Clerk id at all.
    pub without_id: u64,
}

/// Some people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub users: u64,
    /// The first of them.
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

/// Take over the users of a table; on a dry run only look.
///
/// # Errors
/// If the table cannot be read as wished, or the database is not available. What was taken over stays.
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
        // All rows of one id are looked at together.
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

/// What the rows of one id come to.
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
        tally.leave_out("their id is none of Clerk's: it was rewritten, or never was one", id);
        return None;
    };
    let said: Vec<Option<Said<'_>>> =
        rows.iter().map(|row| marks::said(row, &columns.marks, by_condition, now)).collect();
    let news = if said.iter().all(Option::is_none) {
        tally.further_rows += rows.len() as u64 - 1;
        as_it_stands(&rows[0], columns, reader, now)
    } else if said.iter().any(Option::is_none) {
        tally.leave_out("one row of theirs says that they are deleted, and another does not", id);
        return None;
    } else if let Some(column) = said.iter().flatten().find_map(|said| match said {
        Said::Perhaps(column) => Some(column),
        Said::Deleted => None,
    }) {
        let reason =
            format!("{column} may mean that they are deleted; a backfill brings who is still at Clerk");
        tally.leave_out(&reason, id);
        return None;
    } else {
        News::Erase(EraseIf::Unknown)
    };
    // A time to come would keep Clerk's own events out until then.
    let updated_at = columns.filling("updated_at");
    let updated_at = updated_at.and_then(|column| reader.time_in(&rows[0], column)).filter(|at| *at <= now);
    let version = updated_at.map_or(Version::UNKNOWN, |at| Version::at(at, at, String::new()));
    let content = Content::Change(Change { clerk_id: clerk_id.clone(), version, news, actor: None });
    Some(Delivery::without_webhook(clerk_id, Source::Cli, updated_at.unwrap_or(now), now, content))
}

/// A user who is not deleted.
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

/// What is known here of these users.
async fn known(store: &dyn Store, batch: &[Delivery]) -> Result<Known> {
    let ids: BTreeSet<ClerkId> = batch.iter().filter_map(|delivery| delivery.clerk_id.clone()).collect();
    store.known(&ids.into_iter().collect::<Vec<_>>(), &Selection::default()).await
}

/// Whether nothing is known here of the user. Who is known is counted.
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

/// One who is taken over.
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
            // An event came meanwhile.
            Ok(_) => tally.already_here += 1,
            Err(error) if error.is_about_the_data() => {
                tracing::warn!(%error, "a user could not be taken over");
                tally.refused.add(delivery.clerk_id.as_ref().map_or("", ClerkId::as_str));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the user wrote cannot be carried out.
fn mistake(text: String) -> StoreError {
    StoreError::schema(text)
}
