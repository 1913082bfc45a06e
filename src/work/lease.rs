//! Of several replicas one does the work: the one that holds the lease. It comes free when it is given back, or by itself
//! when its holder has not renewed it in time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::patient;
use crate::store::{Store, StoreError};

/// The right of one replica to do something.
pub struct Lease {
    store: Arc<dyn Store>,
    name: &'static str,
    holder: String,
    /// How long it lasts unless it is renewed.
    lasting: Duration,
}

impl Lease {
    /// A lease that nobody has asked for yet, in the name of a holder of its own.
    pub fn new(store: &Arc<dyn Store>, name: &'static str, lasting: Duration) -> Self {
        let holder = format!("replica_{:032x}", rand::random::<u128>());
        Self { store: Arc::clone(store), name, holder, lasting }
    }

    /// Our name among the replicas.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Take or renew it; whether it is ours.
    pub async fn hold(&self) -> Result<bool, StoreError> {
        self.hold_for(Duration::ZERO).await
    }

    /// The same for this much longer than usual.
    pub async fn hold_for(&self, longer: Duration) -> Result<bool, StoreError> {
        patient(self.store.hold_lease(self.name, &self.holder, self.lasting + longer)).await
    }

    /// Renew it so often; returns when it is lost.
    pub async fn keep(&self, every: Duration) {
        let mut beat = interval(every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut held = Instant::now();
        loop {
            beat.tick().await;
            match self.hold().await {
                Ok(true) => held = Instant::now(),
                // While the database is away nobody else gets it either, until it ends.
                Err(_) if held.elapsed() < self.lasting => {}
                Ok(false) | Err(_) => return,
            }
        }
    }

    /// Give it back, if it is ours.
    pub async fn release(&self) {
        if let Err(error) = patient(self.store.release_lease(self.name, &self.holder)).await {
            tracing::debug!(%error, "the lease could not be given back; it ends by itself");
        }
    }
}
