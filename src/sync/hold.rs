//! Deliveries that could not be stored now, because the database is away or somebody holds a lock: they are held while
//! their senders wait, and tried again and again.
//!
//! Svix comes again after 5 s, and then only after some 5 minutes, whatever it is told. So an outage of seconds must not
//! cost a webhook: as long as its sender can be answered in time, it is held. What only a lock keeps from being applied is
//! stored in `webhook_queue` at last, and answered `parked`; a worker applies it once the lock is gone. What cannot even be
//! stored is refused.
//!
//! The lanes are free meanwhile: nobody waits behind a row that somebody else has locked.

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

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// What a try gets, at least and at most: a server that falls silent must not take all the time there is.
const TRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));

/// How long before the end what only a lock keeps back goes into the queue.
const PARK_BEFORE: Duration = Duration::from_millis(2_500);

/// How long before the end the last try begins, which only stores.
const LAST_TRY_BEFORE: Duration = Duration::from_millis(900);

/// How long storing may take.
const STORE_WITHIN: Duration = Duration::from_millis(700);

/// The way in. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Door {
    sender: mpsc::UnboundedSender<Held>,
    permits: Arc<Semaphore>,
}

impl Door {
    /// For so many deliveries at once.
    pub(super) fn new(most: usize) -> (Self, mpsc::UnboundedReceiver<Held>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender, permits: Arc::new(Semaphore::new(most)) }, receiver)
    }

    /// One for each delivery that can still be held.
    pub(super) fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// Hold a delivery, or answer that it failed if too many are held.
    pub(super) fn hold(&self, Held { mut job, error }: Held) {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => {
                job.waiter.permit = Some(permit);
                // Without anybody to hold it, the sender is told so by the end of the job.
                _ = self.sender.send(Held { job, error });
            }
            Err(_) => job.waiter.answer(Err(error)),
        }
    }
}

/// The task that tries again.
pub(super) struct Holding {
    pub(super) ground: Ground,
    /// Once cancelled, nobody waits any longer.
    pub(super) stopping: CancellationToken,
}

impl Holding {
    /// Until nobody is left who could hand over anything.
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

    /// Try each once more. Gives those that are still held.
    async fn turn(&self, held: Vec<Held>) -> Vec<Held> {
        let now = Instant::now();
        let (ending, going): (Vec<Held>, Vec<Held>) =
            held.into_iter().partition(|held| self.stopping.is_cancelled() || self.is_ending(held, now));
        let mut left = self.store(ending).await;
        // Whoever has waited longest must not wait for the others' tries.
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

    /// Whether it goes into the queue now, or nowhere.
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

    /// Store what cannot be applied in time, and answer. What is refused for now and has time left is given back.
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
                // The others would fare no better.
                Err(error) => return self.refuse(batch.into_iter().chain(ending).collect(), &error),
            }
        }
    }

    /// Not even stored: refused, unless there is time for another try.
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
