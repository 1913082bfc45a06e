//! Removes data whose time is over: users whose erasure was delayed, and rows with a retention time.
//!
//! The replica that holds the lease does this work. It deletes rows in small portions with pauses, so that other work does not
//! wait. Receipts of erasures stay: they are the proof, and contain only ids and times.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{
    lease::Lease,
    patient,
    worker::{Task, Turn},
};
use crate::{
    store::{Old, Store, StoreError},
    sync::{Clock, Rules, erasure::release_due},
};

/// The lease's name.
const LEASE: &str = "retention";

/// How long the lease lasts without a renewal.
const LASTING: Duration = Duration::from_mins(1);

/// How often we look for old rows; less often where the database should stay idle.
pub const PRUNE: Duration = Duration::from_hours(1);
pub const PRUNE_QUIETLY: Duration = Duration::from_hours(24);

/// The maximum number of rows deleted in one transaction.
const AT_ONCE: u32 = 1000;

/// The pause between two transactions.
const REST: Duration = Duration::from_millis(50);

/// The lease that a replica keeps for this long after it compacted the database, so that no other replica repeats the work.
const COMPACTION: &str = "compaction";
const COMPACTED_FOR: Duration = Duration::from_hours(23);

/// The task does not rewrite a larger file, because a rewrite blocks all other writers.
const COMPACTED_BYTES: u64 = 1 << 30;

/// How long counts of answered webhooks are kept: the dashboard shows the last week.
const COUNTED: TimeDelta = TimeDelta::days(8);

/// How long rows are kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// For ids of processed deliveries, and for messages that were delivered or discarded (at least as long as dead messages).
    pub processed: TimeDelta,
    /// For dead deliveries and dead messages.
    pub dead: TimeDelta,
}

impl Keep {
    /// Every kind of row with a retention time, and the time before which rows are deleted. A new kind is one more line here.
    fn steps(&self, now: DateTime<Utc>) -> [(Old, DateTime<Utc>); 5] {
        let before = |kept: TimeDelta| now.checked_sub_signed(kept).unwrap_or(DateTime::UNIX_EPOCH);
        let (processed, dead) = (before(self.processed), before(self.dead));
        // A delivered message shows that an earlier dead one is superseded, so it is kept at least as long.
        let told = processed.min(dead);
        [
            (Old::Processed, processed),
            (Old::Dead, dead),
            (Old::Told, told),
            (Old::Untold, dead),
            (Old::Activity, before(COUNTED)),
        ]
    }
}

/// How many rows of each kind are too old.
///
/// # Errors
/// If the database is unavailable.
pub async fn old_rows(
    store: &dyn Store,
    keep: &Keep,
    now: DateTime<Utc>,
) -> Result<Vec<(Old, u64)>, StoreError> {
    let mut old = Vec::new();
    for (kind, before) in keep.steps(now) {
        old.push((kind, store.count_old(kind, before).await?));
    }
    Ok(old)
}

/// Delete rows that are too old; returns the number of deleted rows per kind, or why not all could be deleted. A given lease is
/// renewed throughout, and the work stops when it is lost.
pub async fn prune(
    store: &dyn Store,
    keep: &Keep,
    now: DateTime<Utc>,
    lease: Option<&Lease>,
) -> Vec<(Old, Result<u64, StoreError>)> {
    let mut pruned = Vec::new();
    for (kind, before) in keep.steps(now) {
        pruned.push((kind, prune_kind(store, kind, before, lease).await));
    }
    pruned
}

async fn prune_kind(
    store: &dyn Store,
    kind: Old,
    before: DateTime<Utc>,
    lease: Option<&Lease>,
) -> Result<u64, StoreError> {
    let mut rows = 0;
    loop {
        if let Some(lease) = lease
            && !lease.hold().await?
        {
            return Ok(rows);
        }
        let portion = patient(store.prune(kind, before, AT_ONCE)).await?;
        rows += portion;
        if portion < u64::from(AT_ONCE) {
            return Ok(rows);
        }
        sleep(REST).await;
    }
}

/// The background task.
pub struct Retention {
    store: Arc<dyn Store>,
    rules: Rules,
    clock: Clock,
    keep: Keep,
    /// How often we look for old rows.
    every: Duration,
    lease: Lease,
    state: Mutex<State>,
}

struct State {
    /// When the next look for old rows is due; the database is then also compacted, if that is worth it.
    next_cleaning: Instant,
    /// When this process last removed erased data from the file.
    compacted_at: DateTime<Utc>,
}

impl Retention {
    /// Create the task for this store.
    pub fn new(store: Arc<dyn Store>, rules: Rules, clock: Clock, keep: Keep, every: Duration) -> Self {
        let lease = Lease::new(&store, LEASE, LASTING);
        let state = State { next_cleaning: Instant::now(), compacted_at: DateTime::UNIX_EPOCH };
        Self { store, rules, clock, keep, every, lease, state: Mutex::new(state) }
    }

    async fn prune(&self) {
        for (kind, pruned) in prune(&*self.store, &self.keep, (self.clock)(), Some(&self.lease)).await {
            let kind = kind.name();
            match pruned {
                Ok(0) => {}
                Ok(rows) => tracing::info!(kind, rows, "old rows deleted"),
                Err(error) => tracing::warn!(kind, %error, "not all old rows could be deleted"),
            }
        }
    }

    /// Compact at most once a day across all processes, and only after an erasure.
    async fn compact(&self, state: &mut State) -> Result<(), StoreError> {
        let began = (self.clock)();
        // A new holder each time: the replica that compacted yesterday must not extend its lease by asking again.
        let once = Lease::new(&self.store, COMPACTION, COMPACTED_FOR);
        if !once.hold().await? {
            return Ok(());
        }
        // No time limit: a large file takes long.
        let compacted = self.store.compact(COMPACTED_BYTES, Some(state.compacted_at)).await;
        if matches!(compacted, Ok(true)) {
            state.compacted_at = began;
            tracing::info!("the database file was rewritten without the erased data");
        } else {
            once.release().await;
        }
        compacted.map(|_| ())
    }
}

#[async_trait]
impl Task for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    /// A failed step does not stop the next one.
    async fn turn(&self) -> Result<Turn, StoreError> {
        let mut state = self.state.lock().await;
        if !self.lease.hold().await? {
            return Ok(Turn::Idle);
        }
        match release_due(&*self.store, &self.rules, &self.clock).await {
            Ok(0) => {}
            Ok(users) => {
                tracing::info!(users, "the grace period is over: erased users whose erasure was delayed");
            }
            Err(error) => {
                tracing::warn!(%error, "not all users whose delayed erasure is due could be erased");
            }
        }
        if state.next_cleaning <= Instant::now() {
            self.prune().await;
            if let Err(error) = self.compact(&mut state).await {
                tracing::warn!(%error, "the database file could not be rewritten without the erased data");
            }
            state.next_cleaning = Instant::now() + self.every / 2;
        }
        Ok(Turn::Idle)
    }

    async fn next(&self) -> Result<Option<Duration>, StoreError> {
        Ok(Some(self.every))
    }

    fn can_be_cut_off(&self) -> bool {
        true
    }

    fn longest_back_off(&self) -> TimeDelta {
        TimeDelta::minutes(1)
    }

    async fn stop(&self) {
        self.lease.release().await;
    }
}
