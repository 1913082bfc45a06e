//! What an operator can do with deliveries that wait or are dead: try them again at once, or take them out.
//!
//! A deletion is never taken out: what Clerk has deleted must not stay here. What is taken out is recorded as
//! `discarded`, so that it does not come back when Svix sends it again.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use super::apply::end;
use crate::{
    entity::USER,
    model::{Outcome, SvixId},
    store::{Patience, QueueFilter, QueueState, Queued, Record, Result, Store},
};

/// Deliveries in one transaction.
const BATCH: u32 = 2000;

/// Which deliveries are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    These(Vec<SvixId>),
    /// Of this type of event.
    Type(String),
    All,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Deliveries that are tried again, or were taken out.
    pub deliveries: u64,
    /// Deletions that were to be taken out, and stay.
    pub deletions: u64,
    /// Of those that were named: they are not in the queue.
    pub missing: Vec<SvixId>,
}

/// Make deliveries due now: those that are dead, and those that are to be tried only later.
///
/// # Errors
/// If the database cannot be used. What was done until then is done.
pub async fn retry(store: &dyn Store, which: &Which, now: DateTime<Utc>, dry_run: bool) -> Result<Done> {
    let mut done = Done::default();
    let mut pages = Pages::of(which, &[QueueState::Dead, QueueState::Pending], &mut done);
    while let Some(page) = pages.next(store, &mut done).await? {
        let meant = page.into_iter().filter(|one| one.next_attempt_at.is_none_or(|at| at > now));
        let mut ids: Vec<SvixId> = meant.map(|one| one.svix_id).collect();
        ids.sort();
        done.deliveries += if dry_run { ids.len() as u64 } else { revive(store, &ids, now).await? };
    }
    Ok(done)
}

/// Take deliveries out: those that are named, or the dead among the others.
///
/// # Errors
/// If the database cannot be used. What was done until then is done.
pub async fn discard(store: &dyn Store, which: &Which, now: DateTime<Utc>, dry_run: bool) -> Result<Done> {
    let mut done = Done::default();
    let mut pages = Pages::of(which, &[QueueState::Dead], &mut done);
    while let Some(page) = pages.next(store, &mut done).await? {
        let (deletions, mut others): (Vec<Queued>, Vec<Queued>) =
            page.into_iter().partition(deletes_somebody);
        done.deletions += deletions.len() as u64;
        others.sort_by(|one, other| one.svix_id.cmp(&other.svix_id));
        done.deliveries += if dry_run { others.len() as u64 } else { take_out(store, &others, now).await? };
    }
    Ok(done)
}

/// One that says of nobody that they are deleted can never do its work.
fn deletes_somebody(one: &Queued) -> bool {
    one.event_type.as_deref() == Some(USER.deletion()) && one.clerk_id.is_some()
}

async fn revive(store: &dyn Store, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64> {
    if ids.is_empty() {
        return Ok(0);
    }
    let mut transaction = store.begin(Patience::Normal).await?;
    let revived = transaction.revive(ids, now).await;
    end(transaction, revived).await
}

async fn take_out(store: &dyn Store, deliveries: &[Queued], now: DateTime<Utc>) -> Result<u64> {
    if deliveries.is_empty() {
        return Ok(0);
    }
    let records: Vec<Record<'_>> = deliveries
        .iter()
        .map(|one| Record {
            svix_id: &one.svix_id,
            event_type: one.event_type.as_deref(),
            outcome: Outcome::Discarded,
            clerk_id: one.clerk_id.as_ref(),
            event_at: one.received_at,
            processed_at: now,
        })
        .collect();
    let mut transaction = store.begin(Patience::Normal).await?;
    let recorded = transaction.record(&records).await.map(|fresh| fresh.len() as u64);
    end(transaction, recorded).await
}

/// The way through the deliveries that are meant: what is still to be gone through, the last one first.
struct Pages(Vec<QueueFilter>);

impl Pages {
    /// Those that are named are missing until they are found.
    fn of(which: &Which, states: &[QueueState], done: &mut Done) -> Self {
        let event_type = match which {
            Which::These(ids) => {
                let mut seen = HashSet::new();
                done.missing = ids.iter().filter(|id| seen.insert(*id)).cloned().collect();
                let ids = Some(done.missing.clone());
                return Self(vec![QueueFilter { ids, ..QueueFilter::default() }]);
            }
            Which::Type(event_type) => Some(event_type.clone()),
            Which::All => None,
        };
        let filter = |state: &QueueState| QueueFilter {
            state: Some(*state),
            event_type: event_type.clone(),
            ..QueueFilter::default()
        };
        Self(states.iter().rev().map(filter).collect())
    }

    async fn next(&mut self, store: &dyn Store, done: &mut Done) -> Result<Option<Vec<Queued>>> {
        while let Some(filter) = self.0.last_mut() {
            let page = store.queued(filter, BATCH).await?;
            if let Some(last) = page.last() {
                filter.after = Some(last.svix_id.clone());
                let found: HashSet<&SvixId> = page.iter().map(|one| &one.svix_id).collect();
                done.missing.retain(|id| !found.contains(id));
                return Ok(Some(page));
            }
            self.0.pop();
        }
        Ok(None)
    }
}
