//! Taking over the users of a table that was there before, as changes like any other.
//!
//! A row is as new as its update time says, so that events which came later win, and rows that are here already are
//! never overwritten by older ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{Clock, Rules, apply};
use crate::{
    model::{Change, ClerkId, Content, Delivery, Field, News, Outcome, Patch, Source, Version},
    store::{ForeignUser, Patience, Readiness, Result, Store},
};

/// Users taken over in one transaction.
const PAGE: u32 = 500;

/// How long one page may take.
const PAGE_TIME: Duration = Duration::from_mins(1);

/// What became of the users of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub copied: u64,
    /// Here already, and at least as new.
    pub already_here: u64,
    /// Left out, because the table says that they are deleted.
    pub marked_deleted: u64,
    /// Left out, because their Clerk id is empty or longer than any.
    pub unusable: u64,
    /// Rows that are no user's, because they have no Clerk id at all.
    pub without_id: u64,
    /// Left out, because the database refuses their data.
    pub refused: u64,
    /// Of each of our columns that is filled, the columns of the table that it is filled from.
    pub columns: BTreeMap<&'static str, BTreeSet<String>>,
}

/// Copy the users of a table; on a dry run only count them.
///
/// # Errors
/// If the table cannot be read, or the database is not available. What was copied stays.
pub async fn adopt(
    store: &dyn Store,
    table: &str,
    rules: &Rules,
    clock: &Clock,
    dry_run: bool,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut after: Option<String> = None;
    loop {
        let page = store.foreign_users(table, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else {
            tally.without_id = store.count_foreign_without_id(table).await?;
            return Ok(tally);
        };
        after = Some(last.clerk_id.clone());
        let now = clock();
        let deliveries: Vec<Delivery> =
            page.into_iter().filter_map(|user| delivery(user, rules, now, &mut tally)).collect();
        if dry_run {
            count_only(store, &deliveries, rules, &mut tally).await?;
        } else {
            copy(store, &deliveries, rules, now, &mut tally).await?;
        }
    }
}

/// A row of the table as a change, versioned by its update time.
fn delivery(user: ForeignUser, rules: &Rules, now: DateTime<Utc>, tally: &mut Tally) -> Option<Delivery> {
    if user.deleted {
        tally.marked_deleted += 1;
        return None;
    }
    let Some(clerk_id) = ClerkId::new(user.clerk_id) else {
        tally.unusable += 1;
        return None;
    };
    let is_synced = |name| Field::named(name).is_none_or(|field| rules.fields.contains(field));
    for (name, column) in user.columns.into_iter().filter(|(name, _)| is_synced(name)) {
        let columns = tally.columns.entry(name).or_default();
        if !columns.contains(&column) {
            columns.insert(column);
        }
    }
    // A time to come would keep Clerk's own events out until then.
    let changed_at =
        user.updated_at.or(user.created_at).filter(|at| *at <= now).unwrap_or(DateTime::UNIX_EPOCH);
    let mut patch = Patch::default();
    for field in rules.fields.iter() {
        patch.set(field, user.profile[field].clone());
    }
    let milliseconds = changed_at.timestamp_millis();
    let content = Content::Change(Change {
        clerk_id: clerk_id.clone(),
        version: Version { version: milliseconds, event_at: milliseconds, tie: String::new() },
        news: News::Upsert { patch, created_at: user.created_at },
        actor: None,
    });
    Some(Delivery::without_webhook(clerk_id, Source::Cli, changed_at, now, content))
}

async fn copy(
    store: &dyn Store,
    page: &[Delivery],
    rules: &Rules,
    now: DateTime<Utc>,
    tally: &mut Tally,
) -> Result<()> {
    for result in apply(store, page, rules, now, Instant::now() + PAGE_TIME).await {
        match result {
            Ok(Outcome::Applied) => tally.copied += 1,
            Ok(_) => tally.already_here += 1,
            Err(error) if error.is_about_the_data() => {
                tracing::warn!(%error, "a user could not be taken over");
                tally.refused += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn count_only(store: &dyn Store, page: &[Delivery], rules: &Rules, tally: &mut Tally) -> Result<()> {
    let mut ids: Vec<ClerkId> = page.iter().filter_map(|delivery| delivery.clerk_id.clone()).collect();
    ids.sort();
    ids.dedup();
    let mut here = 0;
    if store.ready().await? == Readiness::Ready {
        let mut transaction = store.begin(Patience::Normal).await?;
        here = transaction.users(&ids, rules.fields).await?.len();
        transaction.rollback().await;
    }
    tally.already_here += here as u64;
    tally.copied += (page.len() - here) as u64;
    Ok(())
}
