//! A lease selects one replica for a task. It becomes free when its holder releases it, or expires when the holder does not renew
//! it in time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::patient;
use crate::store::{Store, StoreError, token};

/// One replica's exclusive right to a task.
pub struct Lease {
    store: Arc<dyn Store>,
    name: &'static str,
    holder: String,
    /// How long it lasts without a renewal.
    lasting: Duration,
    /// How long it lasts at most.
    longest: Duration,
}

/// By how much the database's clock may be set back without an effect on leases.
const MARGIN: Duration = Duration::from_secs(5);

impl Lease {
    /// A lease that is not requested yet, with a new random holder name.
    pub fn new(store: &Arc<dyn Store>, name: &'static str, lasting: Duration) -> Self {
        let holder = format!("replica_{}", token());
        Self { store: Arc::clone(store), name, holder, lasting, longest: lasting + MARGIN }
    }

    /// A lease that may be [held](Self::hold_for) up to this much longer than usual.
    #[must_use]
    pub fn extended_by(self, longer: Duration) -> Self {
        Self { longest: self.longest + longer, ..self }
    }

    /// This replica's name.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Acquire or renew the lease; returns whether this replica holds it.
    pub async fn hold(&self) -> Result<bool, StoreError> {
        self.hold_for(Duration::ZERO).await
    }

    /// Like [`hold`](Self::hold), for this much longer than usual.
    pub async fn hold_for(&self, longer: Duration) -> Result<bool, StoreError> {
        let lasting = self.lasting + longer;
        patient(self.store.hold_lease(self.name, &self.holder, lasting, self.longest)).await
    }

    /// Renew the lease at this interval; returns when it is lost.
    pub async fn keep(&self, every: Duration) {
        let mut beat = interval(every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut held = Instant::now();
        loop {
            beat.tick().await;
            match self.hold().await {
                Ok(true) => held = Instant::now(),
                // While the database is unavailable, no other replica can get the lease before it expires.
                Err(_) if held.elapsed() < self.lasting => {}
                Ok(false) | Err(_) => return,
            }
        }
    }

    /// Release the lease if this replica holds it.
    pub async fn release(&self) {
        if let Err(error) = patient(self.store.release_lease(self.name, &self.holder)).await {
            tracing::debug!(%error, "the lease could not be released; it will expire");
        }
    }
}
