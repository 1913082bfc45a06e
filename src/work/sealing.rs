//! The task that seals the audit trail: one seal per hundred lines, or for the lines of a minute, and for the rest when the
//! service stops. The lookout knows when a seal is due and wakes the task.
//!
//! The replica that holds the lease does this work. Two at once do no harm, because each number goes to only one seal. Writers of
//! audit lines know nothing of seals and never wait for them. The task does not query an idle database.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
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
    model::Seal,
    store::{Store, StoreError},
    sync::{
        Clock,
        chain::{self, Sealed},
    },
};

/// The lease's name.
const LEASE: &str = "audit_seals";

/// How long the lease lasts without a renewal; it is renewed after half of that.
const LASTING: Duration = Duration::from_secs(10);

/// The maximum number of lines sealed at once, with a pause in between: an old trail may have millions of lines.
const AT_ONCE: u32 = 5000;
const REST: Duration = Duration::from_millis(50);

/// How often the newest seal is logged: a copy of the log outside the database reveals a rewritten chain.
const TELL: Duration = Duration::from_hours(1);

/// The task.
pub struct Sealing {
    store: Arc<dyn Store>,
    clock: Clock,
    lease: Lease,
    state: Mutex<State>,
}

struct State {
    /// Until when this replica may seal without asking again.
    ours_until: Option<Instant>,
    tell_at: Instant,
    /// The newest seal that this process knows.
    newest: Option<Seal>,
}

impl Sealing {
    /// Create the task for this store.
    pub fn new(store: Arc<dyn Store>, clock: Clock) -> Self {
        let lease = Lease::new(&store, LEASE, LASTING);
        let state = State { ours_until: None, tell_at: Instant::now(), newest: None };
        Self { store, clock, lease, state: Mutex::new(state) }
    }

    async fn is_ours(&self, state: &mut State) -> Result<bool, StoreError> {
        let now = Instant::now();
        if state.ours_until.is_some_and(|until| now < until) {
            return Ok(true);
        }
        let ours = self.lease.hold().await?;
        state.ours_until = ours.then(|| now + LASTING / 2);
        Ok(ours)
    }
}

#[async_trait]
impl Task for Sealing {
    fn name(&self) -> &'static str {
        "audit seals"
    }

    async fn turn(&self) -> Result<Turn, StoreError> {
        let mut state = self.state.lock().await;
        if !self.is_ours(&mut state).await? {
            return Ok(Turn::Idle);
        }
        let sealed = patient(chain::seal(&*self.store, AT_ONCE, (self.clock)())).await?;
        let Some(Sealed { before, newest, more }) = sealed else {
            // Another replica believes that it holds the lease.
            state.ours_until = None;
            return Ok(Turn::Idle);
        };
        state.compare(before.as_ref());
        if newest != state.newest {
            state.newest = newest;
            state.tell();
        }
        if !more {
            return Ok(Turn::Idle);
        }
        sleep(REST).await;
        Ok(Turn::More)
    }

    fn waits_at_start(&self) -> bool {
        true
    }

    fn can_be_cut_off(&self) -> bool {
        true
    }

    /// Seal the remaining lines.
    async fn stop(&self) {
        let seal_all = async {
            while patient(self.store.unsealed(1)).await?.lines > 0 && self.turn().await? == Turn::More {}
            Ok::<_, StoreError>(())
        };
        if let Err(error) = seal_all.await {
            tracing::warn!(%error, "the last audit lines could not be sealed; they will be sealed after the next start");
        }
        if self.state.lock().await.ours_until.is_some() {
            self.lease.release().await;
        }
    }
}

impl State {
    /// A seal that we have seen must still exist. If the newest seals are cut off, the rest of the chain still verifies.
    fn compare(&self, newest: Option<&Seal>) {
        let Some(known) = &self.newest else { return };
        let cut_off = newest.is_none_or(|newest| {
            newest.number < known.number || (newest.number == known.number && newest.hash != known.hash)
        });
        if cut_off {
            tracing::error!(
                seal = %known.mark(),
                "the newest seals of the audit trail were removed or replaced, unless a backup was restored: see \
                 `clerk-sync audit verify --seal`"
            );
        }
    }

    /// Log the newest seal, at most once per `TELL`.
    fn tell(&mut self) {
        let now = Instant::now();
        if let Some(newest) = self.newest.as_ref().filter(|_| self.tell_at <= now) {
            tracing::info!(seal = %newest.mark(), "the audit trail is sealed");
            self.tell_at = now + TELL;
        }
    }
}
