//! Rows that wait in the database to be worked on, and those that have stayed long enough.
//!
//! Nothing here decides what a user looks like: what is due is applied by the rules that apply a webhook.

pub mod activity;
mod catch_up;
pub mod outbox;
mod queue;
pub mod retention;
mod sealing;
pub mod sinks;
pub mod worker;

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use metrics::gauge;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    store::{Store, StoreError, Trouble},
    sync::Clock,
    telemetry,
};

pub use catch_up::CatchUpLoop;
pub use queue::Queue;
pub use retention::Retention;
pub use sealing::Sealing;

/// How often we look what there is.
const POLL: Duration = Duration::from_secs(5);

/// Counting a long queue takes long: it may take this part of our time, and no more.
const COUNTING: u32 = 50;

/// How often we look how large the database is.
const MEASURE: Duration = Duration::from_mins(1);

/// No call of the store may hold up the loop for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The loop that shows how long the queue is, and how large the database.
pub struct Upkeep {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
}

impl Upkeep {
    /// Run until the shutdown. Trouble is logged, and tried again at the next turn.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count_at = Instant::now();
        let mut measure_at = count_at;
        loop {
            tokio::select! {
                _ = poll.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let began = Instant::now();
            if count_at <= began {
                if let Err(error) = self.show_queue().await {
                    tracing::warn!(%error, "the deliveries that wait could not be counted");
                }
                count_at = Instant::now() + began.elapsed() * COUNTING;
            }
            if measure_at <= began {
                if let Err(error) = self.show_space().await {
                    tracing::warn!(%error, "how large the database is could not be found out");
                }
                measure_at = began + MEASURE;
            }
        }
    }

    async fn show_queue(&self) -> Result<(), StoreError> {
        let depth = patient(self.store.queue_depth()).await?;
        for (state, count) in [("pending", depth.pending), ("dead", depth.dead)] {
            gauge!(telemetry::QUEUE_DEPTH, "state" => state).set(u32::try_from(count).unwrap_or(u32::MAX));
        }
        let now = (self.clock)();
        let oldest = depth.first_due.map(|due| now - due).filter(|age| *age > TimeDelta::zero());
        gauge!(telemetry::QUEUE_OLDEST).set(oldest.map_or(0.0, TimeDelta::as_seconds_f64));
        Ok(())
    }

    async fn show_space(&self) -> Result<(), StoreError> {
        let space = patient(self.store.space()).await?;
        gauge!(telemetry::DATABASE_SIZE).set(telemetry::bytes(space.taken));
        if let Some(free) = space.free {
            gauge!(telemetry::DISK_FREE).set(telemetry::bytes(free));
        }
        Ok(())
    }
}

async fn patient<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(StoreError::new(Trouble::Unavailable)))
}
