//! An operator's actions on the queue and the outbox: retry or discard entries.
//!
//! A deletion is never discarded. Data that Clerk has deleted must not stay in the database, and a sink that received
//! data about a user must receive the deletion. A discarded delivery is recorded as such, so that it is not applied when
//! Svix sends it again.
//! Large numbers of entries are processed in small transactions.

use std::collections::BTreeSet;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::apply::end;
use crate::{
    entity::USER,
    model::{Outcome, SvixId},
    store::{
        Deed, MessageFilter, MessageState, Patience, QueueFilter, QueueState, Queued, Record, Result, Store,
        StoredMessage,
    },
};

/// Entries in one transaction.
const BATCH: u32 = 2000;

/// The entries that an operator selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which<Id> {
    These(Vec<Id>),
    /// All entries of this event type, or for this sink, except those that need no operator.
    Of(String),
    All,
}

impl<Id: Clone> Which<Id> {
    /// The parts of a filter: the ids, or the event type or sink.
    fn named(&self) -> (Option<Vec<Id>>, Option<String>) {
        match self {
            Self::These(ids) => (Some(ids.clone()), None),
            Self::Of(name) => (None, Some(name.clone())),
            Self::All => (None, None),
        }
    }
}

/// The result for the selected entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally<Id> {
    /// Entries that the action applies to.
    pub found: u64,
    /// Entries that were changed; 0 on a dry run.
    pub done: u64,
    /// Deletions that were selected to be discarded, and were kept.
    pub deletions: u64,
    /// Ids that were given but do not exist.
    pub missing: Vec<Id>,
}

impl<Id> Tally<Id> {
    /// Number of changed entries. On a dry run: an estimate of the number that would change.
    pub fn number(&self, dry_run: bool) -> u64 {
        if dry_run { self.found - self.deletions } else { self.done }
    }
}

/// An entry of the queue or of the outbox.
#[async_trait]
pub trait Entry: Sized + Send + Sync {
    type Id: Clone + Ord + Send + Sync;

    fn id(&self) -> &Self::Id;

    /// One page of the selected entries, in their order, after this id. Without ids: only entries that the action
    /// applies to.
    async fn page(
        store: &dyn Store,
        which: &Which<Self::Id>,
        deed: Deed,
        after: Option<&Self::Id>,
    ) -> Result<Vec<Self>>;

    /// Whether the action would change anything.
    fn is_meant(&self, deed: Deed, now: DateTime<Utc>) -> bool;

    /// Whether the entry may never be discarded.
    fn is_deletion(&self) -> bool;

    /// Apply the action; returns how many entries were changed.
    async fn change(store: &dyn Store, entries: &[Self], deed: Deed, now: DateTime<Utc>) -> Result<u64>;
}

/// Retry or discard entries; on a dry run only count them.
///
/// # Errors
/// If the database cannot be used. Changes made until then stay.
pub async fn act<E: Entry>(
    store: &dyn Store,
    which: &Which<E::Id>,
    deed: Deed,
    dry_run: bool,
    now: DateTime<Utc>,
) -> Result<Tally<E::Id>> {
    let mut which = which.clone();
    let mut missing = Vec::new();
    if let Which::These(ids) = &mut which {
        let mut seen = BTreeSet::new();
        ids.retain(|id| seen.insert(id.clone()));
        missing.clone_from(ids);
    }
    let (mut found, mut done, mut deletions) = (0, 0, 0);
    let mut after = None;
    loop {
        let page = E::page(store, &which, deed, after.as_ref()).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id().clone());
        let here: BTreeSet<&E::Id> = page.iter().map(E::id).collect();
        missing.retain(|id| !here.contains(id));
        let mut others = Vec::new();
        for entry in page.into_iter().filter(|entry| entry.is_meant(deed, now)) {
            found += 1;
            if deed == Deed::Discard && entry.is_deletion() {
                deletions += 1;
            } else {
                others.push(entry);
            }
        }
        if !dry_run && !others.is_empty() {
            // All transactions lock rows in the same order, which can differ from the database's sort order.
            others.sort_by(|one, other| one.id().cmp(other.id()));
            done += E::change(store, &others, deed, now).await?;
        }
    }
    Ok(Tally { found, done, deletions, missing })
}

#[async_trait]
impl Entry for Queued {
    type Id = SvixId;

    fn id(&self) -> &SvixId {
        &self.svix_id
    }

    /// A waiting delivery is applied without an operator, so it is discarded only if its id is given.
    async fn page(
        store: &dyn Store,
        which: &Which<SvixId>,
        deed: Deed,
        after: Option<&SvixId>,
    ) -> Result<Vec<Self>> {
        let (ids, event_type) = which.named();
        let state = (ids.is_none() && deed == Deed::Discard).then_some(QueueState::Dead);
        let filter = QueueFilter { ids, state, event_type, clerk_id: None, after: after.cloned() };
        store.queued(&filter, BATCH).await
    }

    fn is_meant(&self, deed: Deed, now: DateTime<Utc>) -> bool {
        deed == Deed::Discard || self.next_attempt_at.is_none_or(|at| at > now)
    }

    /// A deletion that names no user can never be applied, so it may be discarded.
    fn is_deletion(&self) -> bool {
        self.event_type.as_deref() == Some(USER.deletion()) && self.clerk_id.is_some()
    }

    async fn change(store: &dyn Store, deliveries: &[Self], deed: Deed, now: DateTime<Utc>) -> Result<u64> {
        let mut transaction = store.begin(Patience::Normal).await?;
        let changed = match deed {
            Deed::Retry => {
                let ids: Vec<SvixId> = deliveries.iter().map(|one| one.svix_id.clone()).collect();
                transaction.revive(&ids, now).await
            }
            Deed::Discard => {
                let records = deliveries.iter().map(|one| Record {
                    svix_id: &one.svix_id,
                    event_type: one.event_type.as_deref(),
                    outcome: Outcome::Discarded,
                    clerk_id: one.clerk_id.as_ref(),
                    event_at: one.received_at,
                    processed_at: now,
                });
                let records: Vec<Record<'_>> = records.collect();
                transaction.record(&records).await.map(|fresh| fresh.len() as u64)
            }
        };
        end(transaction, changed).await
    }
}

#[async_trait]
impl Entry for StoredMessage {
    type Id = i64;

    fn id(&self) -> &i64 {
        &self.id
    }

    async fn page(
        store: &dyn Store,
        which: &Which<i64>,
        _deed: Deed,
        after: Option<&i64>,
    ) -> Result<Vec<Self>> {
        let (ids, sink) = which.named();
        let state = ids.is_none().then_some(MessageState::Dead);
        store.messages(&MessageFilter { ids, sink, state, after: after.copied() }, BATCH).await
    }

    fn is_meant(&self, _deed: Deed, _now: DateTime<Utc>) -> bool {
        true
    }

    fn is_deletion(&self) -> bool {
        self.kind.is_deletion() && matches!(self.state, MessageState::Pending | MessageState::Dead)
    }

    async fn change(store: &dyn Store, messages: &[Self], deed: Deed, now: DateTime<Utc>) -> Result<u64> {
        let ids: Vec<i64> = messages.iter().map(|message| message.id).collect();
        store.tend_messages(&ids, deed, now).await
    }
}

/// The names of all sinks: those that are configured, and former ones that are paused or still have waiting messages.
/// The waiting messages are counted, which can take long.
///
/// # Errors
/// If the database fails.
pub async fn known_sinks(store: &dyn Store, configured: &[String]) -> Result<BTreeSet<String>> {
    let waited_for = store.outbox_depth().await?.into_iter().map(|depth| depth.sink);
    let paused = store.paused_sinks().await?.into_iter().map(|(sink, _)| sink);
    Ok(configured.iter().cloned().chain(waited_for).chain(paused).collect())
}
