//! The loop that seals the audit trail, twice a second if there is anything to seal.
//!
//! Of several replicas one does it, the one that holds the lease; two at once do no harm, for a number is given to one seal
//! only. Nobody waits for it: what writes lines does not know of seals. A database where nothing happens is not written to.

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{COUNTING, patient};
use crate::{
    model::Seal,
    store::{Store, StoreError},
    sync::{
        Clock,
        chain::{self, Sealed, UNSEALED_COUNTED},
    },
    telemetry,
};

/// The lease's name.
const LEASE: &str = "audit_seals";

/// After so long without a word its holder counts as dead; it is kept when half of that is over.
const LASTING: Duration = Duration::from_secs(10);

/// How often we look whether there is anything to seal, and, if sealing is somebody else's, whether they still do it.
const POLL: Duration = Duration::from_millis(500);
const FOLLOW: Duration = Duration::from_secs(2);

/// Lines sealed at once, with a rest in between: of an old trail there may be millions.
const AT_ONCE: u32 = 5000;
const REST: Duration = Duration::from_millis(50);

/// How often the lines that are not sealed are counted.
const COUNT: Duration = Duration::from_secs(5);

/// How often the log is told of the newest seal: whoever keeps the log keeps the chain from being written anew.
const TELL: Duration = Duration::from_hours(1);

/// The longest that we wait while the database gives us nothing but trouble.
const TROUBLE: Duration = Duration::from_secs(15);

/// The loop.
pub struct Sealing {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    /// Who we are among the replicas.
    pub holder: String,
}

/// What the loop keeps in mind.
struct Mind {
    /// Until when sealing is ours without asking again, if it is.
    ours_until: Option<Instant>,
    /// When to ask again whether it is.
    ask_at: Instant,
    count_at: Instant,
    tell_at: Instant,
    /// The newest seal that we know of.
    newest: Option<Seal>,
}

impl Sealing {
    /// Run until the shutdown. Trouble is logged when it begins, and tried again ever later.
    pub async fn run(self, shutdown: CancellationToken) {
        let now = Instant::now();
        let mut mind = Mind { ours_until: None, ask_at: now, count_at: now, tell_at: now, newest: None };
        shutdown.run_until_cancelled(self.work(&mut mind)).await;
        if mind.ours_until.is_some()
            && let Err(error) = patient(self.store.release_lease(LEASE, &self.holder)).await
        {
            tracing::debug!(%error, "the lease could not be given back; it ends by itself");
        }
    }

    async fn work(&self, mind: &mut Mind) {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut troubles = 0;
        loop {
            match self.turn(mind).await {
                Ok(more) => {
                    if troubles > 0 {
                        tracing::info!("the audit trail is sealed again");
                    }
                    troubles = 0;
                    if more {
                        sleep(REST).await;
                    } else {
                        poll.tick().await;
                    }
                }
                Err(error) => {
                    if troubles == 0 {
                        tracing::warn!(%error, "the audit trail is not sealed until the database can be used again");
                    }
                    troubles += 1;
                    sleep((POLL * 2_u32.saturating_pow(troubles)).min(TROUBLE)).await;
                }
            }
        }
    }

    /// Whether there may be more to do at once.
    async fn turn(&self, mind: &mut Mind) -> Result<bool, StoreError> {
        if mind.count_at <= Instant::now() {
            self.count(mind).await?;
        }
        if !self.is_ours(mind).await? {
            return Ok(false);
        }
        let Some(Sealed { before, newest, more }) =
            patient(chain::seal(&*self.store, AT_ONCE, (self.clock)())).await?
        else {
            // Somebody else believes that it is theirs.
            (mind.ours_until, mind.ask_at) = (None, Instant::now() + POLL);
            return Ok(false);
        };
        mind.compare(before.as_ref());
        if newest != mind.newest {
            mind.newest = newest;
            mind.tell();
        }
        Ok(more)
    }

    async fn is_ours(&self, mind: &mut Mind) -> Result<bool, StoreError> {
        let now = Instant::now();
        if mind.ours_until.is_some_and(|until| now < until) {
            return Ok(true);
        }
        if now < mind.ask_at || patient(self.store.unsealed(1)).await?.lines == 0 {
            return Ok(false);
        }
        let ours = patient(self.store.hold_lease(LEASE, &self.holder, LASTING)).await?;
        mind.ours_until = ours.then(|| now + LASTING / 2);
        mind.ask_at = now + FOLLOW;
        Ok(ours)
    }

    /// Every replica tells, so that any of them can be asked.
    async fn count(&self, mind: &mut Mind) -> Result<(), StoreError> {
        let began = Instant::now();
        let unsealed = patient(self.store.unsealed(UNSEALED_COUNTED)).await?;
        mind.count_at = Instant::now() + COUNT.max(began.elapsed() * COUNTING);
        gauge!(telemetry::AUDIT_UNSEALED).set(u32::try_from(unsealed.lines).unwrap_or(u32::MAX));
        let age = unsealed.since.map_or(0, |since| ((self.clock)() - since).num_seconds().max(0));
        gauge!(telemetry::AUDIT_UNSEALED_OLDEST).set(u32::try_from(age).unwrap_or(u32::MAX));
        Ok(())
    }
}

impl Mind {
    /// What we have seen sealed must still be there: whoever cuts the newest seals off leaves a chain that fits.
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
