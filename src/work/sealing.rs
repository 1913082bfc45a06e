//! The loop that seals the audit trail: a seal for each hundred lines, or for those of a minute, and for the rest when the
//! service stops. Who rings the bell (`lookout`) knows when that is.
//!
//! Of several replicas one does it, the one that holds the lease; two at once do no harm, for a number is given to one seal
//! only. Nobody waits for it: what writes lines does not know of seals. A database where nothing happens is not asked.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::patient;
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

/// How often the log is told of the newest seal: whoever keeps the log keeps the chain from being written anew.
const TELL: Duration = Duration::from_hours(1);

/// The loop.
pub struct Sealing {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    /// Who we are among the replicas.
    pub holder: String,
    /// Rung when there is to be a seal.
    pub bell: Arc<Notify>,
}

/// What the loop keeps in mind.
struct Mind {
    /// Until when sealing is ours without asking again, if it is.
    ours_until: Option<Instant>,
    tell_at: Instant,
    /// The newest seal that we know of.
    newest: Option<Seal>,
    /// Whether the last turn failed.
    troubled: bool,
}

impl Sealing {
    /// Run until the shutdown, and seal what is left. Trouble is logged when it begins; whoever rings does so again.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut mind = Mind { ours_until: None, tell_at: Instant::now(), newest: None, troubled: false };
        let sealing = async {
            loop {
                self.bell.notified().await;
                self.seal(&mut mind).await;
            }
        };
        shutdown.run_until_cancelled(sealing).await;
        match patient(self.store.unsealed(1)).await {
            Ok(unsealed) if unsealed.lines > 0 => self.seal(&mut mind).await,
            _ => {}
        }
        if mind.ours_until.is_some()
            && let Err(error) = patient(self.store.release_lease(LEASE, &self.holder)).await
        {
            tracing::debug!(%error, "the lease could not be given back; it ends by itself");
        }
    }

    /// Seal all there is, if that is for us.
    async fn seal(&self, mind: &mut Mind) {
        loop {
            match self.turn(mind).await {
                Ok(more) => {
                    if mind.troubled {
                        tracing::info!("the audit trail is sealed again");
                    }
                    mind.troubled = false;
                    if !more {
                        return;
                    }
                    sleep(REST).await;
                }
                Err(error) => {
                    if !mind.troubled {
                        tracing::warn!(%error, "the audit trail is not sealed until the database can be used again");
                    }
                    mind.troubled = true;
                    return;
                }
            }
        }
    }

    /// Whether there may be more to do at once.
    async fn turn(&self, mind: &mut Mind) -> Result<bool, StoreError> {
        if !self.is_ours(mind).await? {
            return Ok(false);
        }
        let Some(Sealed { before, newest, more }) =
            patient(chain::seal(&*self.store, AT_ONCE, (self.clock)())).await?
        else {
            // Somebody else believes that it is theirs.
            mind.ours_until = None;
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
        let ours = patient(self.store.hold_lease(LEASE, &self.holder, LASTING)).await?;
        mind.ours_until = ours.then(|| now + LASTING / 2);
        Ok(ours)
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
