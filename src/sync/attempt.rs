//! A single attempt to apply deliveries, or to store them for the workers. A lane makes the first attempt; `sync::hold`
//! repeats it while the database is unavailable.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use super::{
    Clock, Rules, apply,
    enqueue::{enqueue, keep},
};
use crate::{
    model::{Delivery, Outcome, Processing, SvixId},
    store::{ErrorKind, Store, StoreError},
};

/// Limits on the work that is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of lanes; `None`: as many as the store can use.
    pub lanes: Option<usize>,
    /// Deliveries in one transaction.
    pub batch: usize,
    /// Deliveries that wait in one lane.
    pub waiting: usize,
    /// Bytes of bodies that wait in all lanes together.
    pub waiting_bytes: usize,
    /// How long a batch may take, including the search for a delivery that makes it fail.
    pub batch_time: Duration,
    /// A delivery that has waited longer than this has been answered already, and is not started.
    pub patience: Duration,
    /// Held requests: deliveries without an answer while the database is unavailable or fails. Must be lower than the
    /// listener's limit on connections, so that probes are still answered.
    pub held: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lanes: None,
            batch: 512,
            waiting: 4096,
            waiting_bytes: 16 * 1024 * 1024,
            batch_time: Duration::from_secs(7),
            patience: Duration::from_millis(9_500),
            held: 2048,
        }
    }
}

/// Why a delivery was not applied now. Svix may send it again at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the database is not available")]
    Unavailable,
    #[error("the queue is not available")]
    QueueUnavailable,
    #[error("too many deliveries are waiting")]
    Overloaded,
    #[error("the service is shutting down")]
    ShuttingDown,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) delivery: Delivery,
    pub(super) waiter: Waiter,
}

/// A request that waits for an answer.
#[derive(Debug)]
pub(super) struct Waiter {
    /// When the request began.
    pub(super) since: Instant,
    pub(super) answer: oneshot::Sender<Result<Outcome, Refusal>>,
    /// The permit to be held, if the database could not accept the delivery at once.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// The lock that kept the delivery from being applied.
    pub(super) lock: Option<StoreError>,
    pub(super) _bytes: OwnedSemaphorePermit,
    pub(super) _unanswered: Arc<()>,
}

impl Waiter {
    pub(super) fn answer(self, result: crate::store::Result<Outcome>) {
        let _ = self.answer.send(result.map_err(|_| Refusal::Unavailable));
    }

    pub(super) fn refuse(self, refusal: Refusal) {
        let _ = self.answer.send(Err(refusal));
    }
}

/// A delivery whose attempt failed with this error.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) job: Job,
    pub(super) error: StoreError,
}

/// Everything that an attempt needs.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) store: Arc<dyn Store>,
    pub(super) rules: Rules,
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    pub(super) bell: Arc<Notify>,
}

impl Ground {
    /// Apply deliveries, or store them for the workers, and answer the requests. Returns the deliveries that failed for
    /// a reason that may pass.
    pub(super) async fn attempt(&self, jobs: Vec<Job>, deadline: Instant) -> Vec<Held> {
        let (deliveries, waiters): (Vec<Delivery>, Vec<Waiter>) =
            jobs.into_iter().map(|Job { delivery, waiter }| (delivery, waiter)).unzip();
        let store = Arc::clone(&self.store);
        let (rules, now) = (self.rules.clone(), (self.clock)());
        // The batch runs in its own task, so that a panic costs one batch and not the lane.
        let deliveries = Arc::new(deliveries);
        let working = Arc::clone(&deliveries);
        let batch = tokio::spawn(async move {
            match rules.processing {
                Processing::Inline => apply(&*store, &working, &rules, now, deadline).await,
                Processing::Queue => enqueue(&*store, &working, &rules, now, deadline).await,
            }
        });
        let results = batch.await.unwrap_or_else(|_| {
            // In a batch of several we cannot tell which delivery panicked.
            let alone = deliveries.first().filter(|_| deliveries.len() == 1);
            tracing::error!(
                svix_id = alone.and_then(|delivery| delivery.svix_id.as_ref()).map(SvixId::as_str),
                event = alone.and_then(|delivery| delivery.event_type.as_deref()),
                deliveries = deliveries.len(),
                "a batch was abandoned because of a bug in clerk-sync; its senders are asked to try again"
            );
            Vec::new()
        });
        log_failures(&deliveries, &results);
        if results.iter().any(|result| matches!(result, Ok(Outcome::Queued | Outcome::Parked))) {
            self.bell.notify_one();
        }
        let mut failed = Vec::new();
        let mut results = results.into_iter();
        // The task has ended, so this is the only reference.
        for (delivery, mut waiter) in Arc::unwrap_or_clone(deliveries).into_iter().zip(waiters) {
            match results.next() {
                Some(Err(mut error)) if may_pass(&error) => {
                    if error.kind == ErrorKind::Locked {
                        waiter.lock = Some(error.clone());
                    } else if let (None, Some(lock)) = (&error.code, &waiter.lock) {
                        // The time ran out, most likely because of the same lock: a wait for a lock lasts as long as the
                        // shortest attempt.
                        error = lock.clone();
                    }
                    failed.push(Held { job: Job { delivery, waiter }, error });
                }
                Some(result) => waiter.answer(result),
                // The batch panicked.
                None => waiter.refuse(Refusal::Unavailable),
            }
        }
        failed
    }

    /// Store deliveries that cannot be applied now, each with the reason. An error concerns all of them.
    pub(super) async fn keep(
        &self,
        deliveries: &[(&Delivery, &StoreError)],
    ) -> crate::store::Result<Vec<crate::store::Result<Outcome>>> {
        let kept = keep(&*self.store, deliveries, &self.rules, (self.clock)()).await;
        if kept.is_ok() {
            self.bell.notify_one();
        }
        kept
    }
}

/// Whether this error may pass while the sender waits.
pub(super) fn may_pass(error: &StoreError) -> bool {
    matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Locked | ErrorKind::Conflict)
}

/// Log one line per batch and kind of error, with the first delivery affected, instead of one line per delivery. Errors
/// that may pass are logged by `sync::hold`.
fn log_failures(deliveries: &[Delivery], results: &[crate::store::Result<Outcome>]) {
    let mut kinds: Vec<(&StoreError, &Delivery, usize)> = Vec::new();
    for (delivery, result) in deliveries.iter().zip(results) {
        let Some(error) = result.as_ref().err().filter(|error| !may_pass(error)) else { continue };
        match kinds.iter_mut().find(|(known, ..)| *known == error) {
            Some((.., deliveries)) => *deliveries += 1,
            None => kinds.push((error, delivery, 1)),
        }
    }
    for (error, first, deliveries) in kinds {
        if matches!(error.kind, ErrorKind::Broken | ErrorKind::Schema) {
            tracing::error!(
                svix_id = first.svix_id.as_ref().map(SvixId::as_str),
                event = first.event_type.as_deref(),
                %error,
                deliveries,
                "the database refused one of clerk-sync's statements: deliveries are answered 503"
            );
        } else {
            // The HTTP handlers log which deliveries these are.
            tracing::warn!(%error, deliveries, "deliveries could not be stored and are answered 503");
        }
    }
}
