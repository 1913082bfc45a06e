//! Held requests: deliveries that could not be stored because the database is unavailable or a lock is held elsewhere.
//! They are retried while their senders wait.
//!
//! Whatever the answer, Svix retries after 5 s, and then only after about 5 minutes. So that an outage of a few seconds
//! delays no webhook, a delivery is held as long as its sender can still be answered in time. If only a lock prevents
//! its application, it is finally stored in `webhook_queue` and answered `parked`; a worker applies it once the lock is
//! released. A delivery that cannot even be stored is refused.
//!
//! The lanes stay free meanwhile: no other delivery waits behind a locked row.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::attempt::{Ground, Held, Refusal, Waiter};
use crate::{
    model::Delivery,
    store::{ErrorKind, StoreError},
};

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// The minimum and maximum time for an attempt: a server that stops answering must not use up all the time.
const TRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));

/// A delivery that only a lock blocks is put into the queue this long before the end.
const PARK_BEFORE: Duration = Duration::from_millis(2_500);

/// How long before the end the last attempt starts. It only stores deliveries.
const LAST_TRY_BEFORE: Duration = Duration::from_millis(900);

/// How long storing may take.
const STORE_WITHIN: Duration = Duration::from_millis(700);

/// The entrance for deliveries to be held. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Door {
    sender: mpsc::UnboundedSender<Held>,
    permits: Arc<Semaphore>,
}

impl Door {
    /// A door for at most this many held deliveries.
    pub(super) fn new(most: usize) -> (Self, mpsc::UnboundedReceiver<Held>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender, permits: Arc::new(Semaphore::new(most)) }, receiver)
    }

    /// One permit for each further delivery that can be held.
    pub(super) fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// Hold a delivery, or answer with its error if too many are held.
    pub(super) fn hold(&self, Held { mut job, error }: Held) {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => {
                job.waiter.permit = Some(permit);
                // If the receiver is gone, dropping the job answers the request.
                _ = self.sender.send(Held { job, error });
            }
            Err(_) => job.waiter.answer(Err(error)),
        }
    }
}

/// The task that retries held deliveries.
pub(super) struct Holding {
    pub(super) ground: Ground,
    /// Once cancelled, no delivery is held any longer.
    pub(super) stopping: CancellationToken,
}

impl Holding {
    /// Run until all doors are closed.
    pub(super) async fn run(self, mut receiver: mpsc::UnboundedReceiver<Held>) {
        let mut held: Vec<Held> = Vec::new();
        loop {
            if held.is_empty() {
                let Some(first) = receiver.recv().await else { return };
                tracing::warn!(
                    error = %first.error,
                    "deliveries cannot be stored now: they are held and tried again while their senders wait"
                );
                held.push(first);
            }
            _ = timeout(PAUSE, self.stopping.cancelled()).await;
            while let Ok(more) = receiver.try_recv() {
                held.push(more);
            }
            held = self.turn(held).await;
            if held.is_empty() {
                tracing::info!("no delivery is held any more");
            }
        }
    }

    /// Attempt each delivery once more. Returns those that are still held.
    async fn turn(&self, held: Vec<Held>) -> Vec<Held> {
        let now = Instant::now();
        let (ending, going): (Vec<Held>, Vec<Held>) =
            held.into_iter().partition(|held| self.stopping.is_cancelled() || self.is_ending(held, now));
        let mut left = self.store(ending).await;
        // The delivery that has waited longest must not wait for the attempts at the others.
        let Some(first_end) = going.iter().map(|held| self.end_of(&held.job.waiter)).min() else {
            return left;
        };
        let last_try = first_end - LAST_TRY_BEFORE;
        let mut going = going.into_iter();
        loop {
            let batch: Vec<Held> = going.by_ref().take(self.ground.limits.batch).collect();
            if batch.is_empty() {
                return left;
            }
            let now = Instant::now();
            let deadline = last_try.clamp(now + TRY.0, now + TRY.1);
            let jobs = batch.into_iter().map(|held| held.job).collect();
            let failed = self.ground.attempt(jobs, deadline).await;
            let is_away = failed.iter().any(|held| held.error.kind == ErrorKind::Unavailable);
            left.extend(failed);
            if is_away || self.stopping.is_cancelled() || Instant::now() >= last_try {
                left.extend(going);
                return left;
            }
        }
    }

    /// Whether this is the last chance to put the delivery into the queue.
    fn is_ending(&self, held: &Held, now: Instant) -> bool {
        let before = match held.error.kind {
            ErrorKind::Unavailable => LAST_TRY_BEFORE,
            _ => PARK_BEFORE,
        };
        now + before >= self.end_of(&held.job.waiter)
    }

    fn end_of(&self, waiter: &Waiter) -> Instant {
        waiter.since + self.ground.limits.patience
    }

    /// Store the deliveries that cannot be applied in time, and answer. Returns those that are refused for now but have
    /// time left.
    async fn store(&self, ending: Vec<Held>) -> Vec<Held> {
        let mut ending = ending.into_iter();
        loop {
            let batch: Vec<Held> = ending.by_ref().take(self.ground.limits.batch).collect();
            if batch.is_empty() {
                return Vec::new();
            }
            let meant: Vec<(&Delivery, &StoreError)> =
                batch.iter().map(|held| (&held.job.delivery, &held.error)).collect();
            let kept = timeout(STORE_WITHIN, self.ground.keep(&meant)).await;
            match kept.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable))) {
                Ok(outcomes) => {
                    for (held, outcome) in batch.into_iter().zip(outcomes) {
                        held.job.waiter.answer(outcome);
                    }
                }
                // Storing the others would fail in the same way.
                Err(error) => return self.refuse(batch.into_iter().chain(ending).collect(), &error),
            }
        }
    }

    /// Refuse deliveries that could not even be stored, unless there is time for another attempt.
    fn refuse(&self, batch: Vec<Held>, error: &StoreError) -> Vec<Held> {
        let now = Instant::now();
        let is_over = |held: &Held| now + LAST_TRY_BEFORE >= self.end_of(&held.job.waiter);
        let stopping = self.stopping.is_cancelled();
        let (over, left): (Vec<Held>, Vec<Held>) =
            batch.into_iter().partition(|held| stopping || is_over(held));
        if !over.is_empty() {
            tracing::warn!(%error, deliveries = over.len(), "deliveries could not be stored and are answered 503");
        }
        for held in over {
            let refusal = if stopping { Refusal::ShuttingDown } else { Refusal::Unavailable };
            held.job.waiter.refuse(refusal);
        }
        let error = StoreError::new(ErrorKind::Unavailable);
        left.into_iter().map(|held| Held { error: error.clone(), ..held }).collect()
    }
}
