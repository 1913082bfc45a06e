//! Rows that wait in the database to be worked on, and those that have stayed long enough.
//!
//! Nothing here decides what a user looks like: what is due goes through the same committer as a webhook.

mod catch_up;
pub mod retention;
pub mod sinks;
pub mod worker;

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use metrics::gauge;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clerk::{event, signature::Verified},
    model::{FieldSet, Outcome, SvixId},
    store::{Parked, Store, StoreError, Trouble},
    sync::{Clock, Committer, Refusal},
    telemetry,
};

pub use catch_up::CatchUpLoop;
pub use retention::Retention;

/// How often we look for what is due.
const POLL: Duration = Duration::from_secs(5);

/// Parked deliveries taken at once.
const CLAIM: u32 = 100;

/// Until then nobody else takes what we have claimed; a process that dies gives it up.
const LEASE: TimeDelta = TimeDelta::minutes(1);

/// No call of the store may hold up the loop for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The loop that tries parked deliveries again.
pub struct Upkeep {
    pub store: Arc<dyn Store>,
    pub committer: Committer,
    pub fields: FieldSet,
    pub clock: Clock,
}

impl Upkeep {
    /// Run until the shutdown. Trouble is logged, and tried again at the next turn.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = poll.tick() => {}
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.retry_due().await {
                tracing::warn!(%error, "parked deliveries could not be looked at");
            }
        }
    }

    async fn retry_due(&self) -> Result<(), StoreError> {
        let now = (self.clock)();
        let due = patient(self.store.claim_due(now, now + LEASE, CLAIM)).await?;
        // All at once, so that what spoils a batch spoils few of them.
        let tried: Vec<_> = due.into_iter().map(|parked| self.retry(parked)).collect();
        for attempt in tried {
            attempt.report().await;
        }
        let depth = patient(self.store.queue_depth()).await?;
        for (state, count) in [("pending", depth.pending), ("dead", depth.dead)] {
            gauge!(telemetry::QUEUE_DEPTH, "state" => state).set(u32::try_from(count).unwrap_or(u32::MAX));
        }
        Ok(())
    }

    /// The tolerance is not checked again: the body was proven when it came.
    fn retry(&self, parked: Parked) -> Attempt {
        let svix_id = parked.svix_id.clone();
        let verified = Verified::kept(parked.svix_id, parked.received_at, parked.payload);
        let delivery = event::parse(&verified, self.fields, (self.clock)()).delivery;
        Attempt { svix_id, event_type: delivery.event_type.clone(), answer: self.committer.submit(delivery) }
    }
}

/// A parked delivery on its way through the committer.
struct Attempt {
    svix_id: SvixId,
    event_type: Option<String>,
    answer: Result<oneshot::Receiver<Result<Outcome, Refusal>>, Refusal>,
}

impl Attempt {
    /// Wait for what became of it, and say so.
    async fn report(self) {
        let Self { svix_id, event_type, answer } = self;
        let outcome = match answer {
            Ok(answer) => answer.await.unwrap_or(Err(Refusal::ShuttingDown)),
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(outcome) => {
                tracing::info!(%svix_id, event = event_type, %outcome, "a parked delivery was tried again");
            }
            Err(error) => {
                tracing::warn!(%svix_id, event = event_type, %error, "a parked delivery waits for its next turn");
            }
        }
    }
}

async fn patient<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(StoreError::new(Trouble::Unavailable)))
}
