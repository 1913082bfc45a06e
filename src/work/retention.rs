//! What goes when its time is over: people whose erasure was held back, and rows that are kept only for a while.
//!
//! Of several replicas one does it, the one that holds the lease. Rows go in small portions with a rest in between, so
//! that nobody waits for it. Receipts of erasures stay: they are the proof, and hold nothing but ids and times.

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

/// After so long without a word its holder counts as dead.
const LASTING: Duration = Duration::from_mins(1);

/// How often we look for what is old; more rarely where the database is to be left alone.
pub const PRUNE: Duration = Duration::from_hours(1);
pub const PRUNE_QUIETLY: Duration = Duration::from_hours(24);

/// Rows forgotten in one transaction.
const AT_ONCE: u32 = 1000;

/// Between two of them.
const REST: Duration = Duration::from_millis(50);

/// Held for so long by the replica that compacted the database, so that no other one does it again.
const COMPACTION: &str = "compaction";
const COMPACTED_FOR: Duration = Duration::from_hours(23);

/// A larger file is not rewritten by itself, for nobody else can write meanwhile.
const COMPACTED_BYTES: u64 = 1 << 30;

/// How long it is known how many webhooks were answered: the last week is shown.
const COUNTED: TimeDelta = TimeDelta::days(8);

/// How long rows are kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Ids of processed deliveries, and messages that were delivered or discarded; those no shorter than dead ones.
    pub processed: TimeDelta,
    /// Deliveries and messages that are dead.
    pub dead: TimeDelta,
}

impl Keep {
    /// Every kind of row that goes, and what is older than which time. A new kind is a line here.
    fn steps(&self, now: DateTime<Utc>) -> [(Old, DateTime<Utc>); 5] {
        let before = |kept: TimeDelta| now.checked_sub_signed(kept).unwrap_or(DateTime::UNIX_EPOCH);
        let (processed, dead) = (before(self.processed), before(self.dead));
        // What was told shows that a dead message before it is overtaken, and so outlives it.
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
/// If the database is not available.
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

/// Delete what is too old; gives how many rows of each kind went, or why not all of that kind could. With a lease it is kept
/// all the while, and the work stops when it is lost.
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

/// The task that does it all by itself.
pub struct Retention {
    store: Arc<dyn Store>,
    rules: Rules,
    clock: Clock,
    keep: Keep,
    /// How often we look for what is old.
    every: Duration,
    lease: Lease,
    state: Mutex<State>,
}

struct State {
    /// When old rows are looked for, and the database is compacted, if that is worth it.
    next_cleaning: Instant,
    /// When this process last saw to it that nothing erased is left in the file.
    compacted_at: DateTime<Utc>,
}

impl Retention {
    /// Of this store.
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
                Ok(rows) => tracing::info!(kind, rows, "old rows are forgotten"),
                Err(error) => tracing::warn!(kind, %error, "old rows could not all be forgotten"),
            }
        }
    }

    /// Once a day over all processes, if anybody was erased since.
    async fn compact(&self, state: &mut State) -> Result<(), StoreError> {
        let began = (self.clock)();
        // With a new holder each time: the replica that compacted yesterday must not keep the lease by asking again.
        let once = Lease::new(&self.store, COMPACTION, COMPACTED_FOR);
        if !once.hold().await? {
            return Ok(());
        }
        // Waited for, however long it takes.
        let compacted = self.store.compact(COMPACTED_BYTES, Some(state.compacted_at)).await;
        if matches!(compacted, Ok(true)) {
            state.compacted_at = began;
            tracing::info!("the database is rewritten without what was erased");
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

    /// No step depends on another one having gone well.
    async fn turn(&self) -> Result<Turn, StoreError> {
        let mut state = self.state.lock().await;
        if !self.lease.hold().await? {
            return Ok(Turn::Idle);
        }
        match release_due(&*self.store, &self.rules, &self.clock).await {
            Ok(0) => {}
            Ok(users) => {
                tracing::info!(users, "the time is over: users whose erasure was held back are erased");
            }
            Err(error) => {
                tracing::warn!(%error, "not everybody whose erasure was held back could be erased");
            }
        }
        if state.next_cleaning <= Instant::now() {
            self.prune().await;
            if let Err(error) = self.compact(&mut state).await {
                tracing::warn!(%error, "the database could not be rewritten without what was erased");
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
