//! What goes when its time is over: people whose erasure was held back, and rows that are kept only for a while.
//!
//! Of several replicas one does it, the one that holds the lease. Rows go in small portions with a rest in between, so
//! that nobody waits for it. Receipts of erasures stay: they are the proof, and hold nothing but ids and times.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::patient;
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

/// Held for so long by whoever compacted the database, so that nobody does it again.
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

/// Forget what is too old; gives how many rows of each kind went, or why not all of that kind could. Whoever does it as the
/// holder of the lease keeps it all the while, and stops when it is lost.
pub async fn prune(
    store: &dyn Store,
    keep: &Keep,
    now: DateTime<Utc>,
    holder: Option<&str>,
) -> Vec<(Old, Result<u64, StoreError>)> {
    let mut pruned = Vec::new();
    for (kind, before) in keep.steps(now) {
        pruned.push((kind, prune_kind(store, kind, before, holder).await));
    }
    pruned
}

async fn prune_kind(
    store: &dyn Store,
    kind: Old,
    before: DateTime<Utc>,
    holder: Option<&str>,
) -> Result<u64, StoreError> {
    let mut rows = 0;
    loop {
        if let Some(holder) = holder
            && !patient(store.hold_lease(LEASE, holder, LASTING)).await?
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

/// The loop that does it all by itself.
pub struct Retention {
    pub store: Arc<dyn Store>,
    pub rules: Rules,
    pub clock: Clock,
    pub keep: Keep,
    /// Who we are among the replicas.
    pub holder: String,
    /// Rung when the time of somebody is over.
    pub bell: Arc<Notify>,
    /// How often we look for what is old.
    pub every: Duration,
}

/// What the loop keeps in mind.
struct Mind {
    next_pruning: Instant,
    next_compaction: Instant,
    /// When this process last saw to it that nothing erased is left in the file.
    compacted_at: DateTime<Utc>,
}

impl Retention {
    /// Run until the shutdown. Trouble is logged, and tried again at the next turn.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.work()).await;
        if let Err(error) = patient(self.store.release_lease(LEASE, &self.holder)).await {
            tracing::debug!(%error, "the lease could not be given back; it ends by itself");
        }
    }

    async fn work(&self) {
        let mut mind = Mind {
            next_pruning: Instant::now(),
            next_compaction: Instant::now(),
            compacted_at: DateTime::UNIX_EPOCH,
        };
        loop {
            self.turn(&mut mind).await;
            _ = timeout(self.every, self.bell.notified()).await;
        }
    }

    /// No step depends on another one having gone well.
    async fn turn(&self, mind: &mut Mind) {
        match self.hold().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%error, "whether it is for us to forget what is old could not be asked");
                return;
            }
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
        if mind.next_pruning <= Instant::now() {
            for (kind, pruned) in prune(&*self.store, &self.keep, (self.clock)(), Some(&self.holder)).await {
                match pruned {
                    Ok(0) => {}
                    Ok(rows) => tracing::info!(kind = kind.name(), rows, "old rows are forgotten"),
                    Err(error) => {
                        tracing::warn!(kind = kind.name(), %error, "old rows could not all be forgotten");
                    }
                }
            }
            mind.next_pruning = Instant::now() + self.every / 2;
        }
        if mind.next_compaction <= Instant::now() {
            if let Err(error) = self.compact(mind).await {
                tracing::warn!(%error, "the database could not be rewritten without what was erased");
            }
            mind.next_compaction = Instant::now() + self.every / 2;
        }
    }

    async fn hold(&self) -> Result<bool, StoreError> {
        patient(self.store.hold_lease(LEASE, &self.holder, LASTING)).await
    }

    /// Once a day over all processes, if anybody was erased since.
    async fn compact(&self, mind: &mut Mind) -> Result<(), StoreError> {
        let began = (self.clock)();
        // Not our name: who compacted yesterday must not keep the lease by asking again.
        let once = format!("{} {began}", self.holder);
        if !patient(self.store.hold_lease(COMPACTION, &once, COMPACTED_FOR)).await? {
            return Ok(());
        }
        // Waited for, however long it takes.
        let compacted = self.store.compact(COMPACTED_BYTES, Some(mind.compacted_at)).await;
        if matches!(compacted, Ok(true)) {
            mind.compacted_at = began;
            tracing::info!("the database is rewritten without what was erased");
        } else {
            patient(self.store.release_lease(COMPACTION, &once)).await?;
        }
        compacted.map(|_| ())
    }
}
