//! The task that seals the audit trail: a seal for each hundred lines, or for those of a minute, and for the rest when the
//! service stops. The lookout knows when that is, and wakes it.
//!
//! Of several replicas one does it, the one that holds the lease; two at once do no harm, for a number is given to one seal
//! only. Nobody waits for it: what writes lines does not know of seals. A database where nothing happens is not asked.

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

/// After so long without a word its holder counts as dead; it is kept when half of that is over.
const LASTING: Duration = Duration::from_secs(10);

/// Lines sealed at once, with a rest in between: of an old trail there may be millions.
const AT_ONCE: u32 = 5000;
const REST: Duration = Duration::from_millis(50);

/// How often the log is told of the newest seal: a log that is kept elsewhere keeps the chain from being written anew.
const TELL: Duration = Duration::from_hours(1);

/// The task.
pub struct Sealing {
    store: Arc<dyn Store>,
    clock: Clock,
    lease: Lease,
    state: Mutex<State>,
}

struct State {
    /// Until when sealing is ours without asking again, if it is.
    ours_until: Option<Instant>,
    tell_at: Instant,
    /// The newest seal that we know of.
    newest: Option<Seal>,
}

impl Sealing {
    /// Of this store.
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
            // Another replica believes that it is theirs.
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

    /// Seal what is left.
    async fn stop(&self) {
        let seal_all = async {
            while patient(self.store.unsealed(1)).await?.lines > 0 && self.turn().await? == Turn::More {}
            Ok::<_, StoreError>(())
        };
        if let Err(error) = seal_all.await {
            tracing::warn!(%error, "the last lines of the audit trail are sealed after the next start");
        }
        if self.state.lock().await.ours_until.is_some() {
            self.lease.release().await;
        }
    }
}

impl State {
    /// What we have seen sealed must still be there: if the newest seals are cut off, the chain that is left fits.
    fn compare(&self, newest: Option<&Seal>) {
        let Some(known) = &self.newest else { return };
        let cut_off = newest.is_none_or(|newest| {
            newest.number < known.number || (newest.number == known.number && newest.hash != known.hash)
        });
        if cut_off {
            tracing::error!(
                seal = %known.mark(),
                "the newest seals of the audit trail are gone or were replaced, unless a backup was restored: see \
                 `clerk-sync audit verify --seal`"
            );
        }
    }

    /// Tell the log of the newest seal, from time to time.
    fn tell(&mut self) {
        let now = Instant::now();
        if let Some(newest) = self.newest.as_ref().filter(|_| self.tell_at <= now) {
            tracing::info!(seal = %newest.mark(), "the audit trail is sealed");
            self.tell_at = now + TELL;
        }
    }
}
