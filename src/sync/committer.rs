//! Group commit: each lane has a task that takes all waiting deliveries, commits them in one transaction, and then
//! answers them all. There is no deliberate delay: a batch forms while the previous one commits. All deliveries for one
//! user take the same lane.
//!
//! The lanes own the work, so a client cannot cancel it. With `PROCESSING=queue` a lane stores the deliveries and wakes
//! the workers that apply them. `sync::hold` keeps the deliveries that the database cannot accept for now.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use metrics::histogram;
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Clock, Pace, Rules,
    attempt::{Ground, Job, Limits, Refusal, Waiter},
    hold::{Door, Holding},
    stream::append,
};
use crate::{
    model::{Delivery, Outcome},
    store::Store,
    stream::{Producer, Stream, StreamError},
    telemetry,
};

/// Hands deliveries to the lanes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Committer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lanes: Vec<mpsc::Sender<Job>>,
    hasher: RandomState,
    waiting_bytes: Arc<Semaphore>,
    /// Each delivery that was accepted and not answered yet holds a reference, so that the references can be counted.
    unanswered: Arc<()>,
    /// One permit for each further delivery that can be held because the database cannot accept it at once.
    permits: Arc<Semaphore>,
    limits: Limits,
    too_late: Refusal,
    closing: CancellationToken,
    bell: Arc<Notify>,
}

/// The tasks of the lanes, to be awaited at the shutdown.
#[derive(Debug)]
pub struct Lanes {
    tasks: JoinSet<()>,
    closing: CancellationToken,
    stopping: CancellationToken,
}

impl Committer {
    /// Start the lanes. With zero lanes no deliveries are accepted: this is for a process that receives no webhooks.
    /// With a stream, the lanes append to it and do not use the database.
    pub fn start(
        store: &Arc<dyn Store>,
        stream: Option<&Stream>,
        rules: &Rules,
        limits: Limits,
        clock: &Clock,
    ) -> (Self, Lanes) {
        let (closing, stopping) = (CancellationToken::new(), CancellationToken::new());
        let bell = Arc::new(Notify::new());
        let ground = Ground {
            store: Arc::clone(store),
            rules: rules.clone(),
            limits,
            clock: Arc::clone(clock),
            bell: Arc::clone(&bell),
        };
        let (door, held) = Door::new(limits.held);
        let too_late = stream.map_or(Refusal::Unavailable, |_| Refusal::QueueUnavailable);
        let mut tasks = JoinSet::new();
        let lanes = (0..limits.lanes.unwrap_or_else(|| store.writers()))
            .map(|_| {
                let (sender, receiver) = mpsc::channel(limits.waiting);
                let producer = stream.map(Stream::producer);
                let lane = Lane { ground: ground.clone(), door: door.clone(), producer, too_late };
                tasks.spawn(lane.run(receiver, closing.clone()));
                sender
            })
            .collect();
        let permits = Arc::clone(door.permits());
        // Only the lanes hand over deliveries to be held.
        drop(door);
        tasks.spawn(Holding { ground, stopping: stopping.clone() }.run(held));
        let inner = Inner {
            lanes,
            hasher: RandomState::new(),
            waiting_bytes: Arc::new(Semaphore::new(limits.waiting_bytes)),
            unanswered: Arc::default(),
            permits,
            limits,
            too_late,
            closing: closing.clone(),
            bell,
        };
        (Self(Arc::new(inner)), Lanes { tasks, closing, stopping })
    }

    /// Queue a delivery whose request began at `since`. Returns at once. The receiver yields the outcome once it is
    /// durable, or a refusal if the obstacle did not pass in time. Dropping the receiver cancels nothing.
    ///
    /// # Errors
    /// If too many deliveries are waiting, or the service is shutting down.
    pub fn submit(
        &self,
        delivery: Delivery,
        since: Instant,
    ) -> Result<oneshot::Receiver<Result<Outcome, Refusal>>, Refusal> {
        let inner = &self.0;
        if inner.closing.is_cancelled() {
            return Err(Refusal::ShuttingDown);
        }
        let unanswered = Arc::clone(&inner.unanswered);
        if inner.permits.available_permits() < inner.limits.held
            && Arc::strong_count(&unanswered) > inner.limits.held
        {
            return Err(Refusal::Overloaded);
        }
        let size = u32::try_from(delivery.payload.len()).unwrap_or(u32::MAX);
        let bytes =
            Arc::clone(&inner.waiting_bytes).try_acquire_many_owned(size).map_err(|_| Refusal::Overloaded)?;
        let (answer, receiver) = oneshot::channel();
        let lane = inner.lane(&delivery).ok_or(Refusal::Unavailable)?;
        let waiter =
            Waiter { since, answer, permit: None, lock: None, _bytes: bytes, _unanswered: unanswered };
        let job = Job { delivery, waiter };
        lane.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Refusal::ShuttingDown,
        })?;
        Ok(receiver)
    }

    /// Why a delivery that was not answered in time is refused.
    pub fn too_late(&self) -> Refusal {
        self.0.too_late
    }

    /// Whether deliveries are accepted.
    pub fn receives(&self) -> bool {
        !self.0.lanes.is_empty()
    }

    /// Notified when a delivery was put into the queue.
    pub fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.0.bell)
    }
}

impl Inner {
    /// All deliveries for one user take the same lane, so that two lanes never wait for each other's user.
    fn lane(&self, delivery: &Delivery) -> Option<&mpsc::Sender<Job>> {
        let hash = match (&delivery.clerk_id, &delivery.svix_id) {
            (Some(user), _) => self.hasher.hash_one(user),
            (None, id) => self.hasher.hash_one(id),
        };
        let count = self.lanes.len() as u64;
        let lane = usize::try_from(hash.checked_rem(count)?).unwrap_or(0);
        self.lanes.get(lane)
    }
}

impl Lanes {
    /// Stop holding deliveries: those that cannot be stored now are refused.
    pub fn hold_no_longer(&self) {
        self.stopping.cancel();
    }

    /// Accept no more deliveries, finish those that are waiting, and return.
    pub async fn finish(mut self) {
        self.stopping.cancel();
        self.closing.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Append deliveries to the stream, and answer. A delivery that is not confirmed is refused, although it may be in the
/// stream: Svix then sends it again, and the database recognises the duplicate by its id.
async fn store_in_stream(producer: &mut Producer, jobs: Vec<Job>) {
    let (mut deliveries, waiters): (Vec<Delivery>, Vec<Waiter>) =
        jobs.into_iter().map(|Job { delivery, waiter }| (delivery, waiter)).unzip();
    let appended = append(producer, &mut deliveries).await;
    if let Err(error) = &appended {
        let deliveries = deliveries.len();
        tracing::warn!(%error, deliveries, "deliveries could not be stored and are answered 503");
    }
    for waiter in waiters {
        match &appended {
            Ok(()) => waiter.answer(Ok(Outcome::Queued)),
            Err(StreamError::Full) => waiter.refuse(Refusal::Overloaded),
            Err(_) => waiter.refuse(Refusal::QueueUnavailable),
        }
    }
}

struct Lane {
    ground: Ground,
    door: Door,
    producer: Option<Producer>,
    too_late: Refusal,
}

impl Lane {
    async fn run(mut self, mut receiver: mpsc::Receiver<Job>, closing: CancellationToken) {
        let batch = self.ground.limits.batch;
        let pace = Pace::new(u32::try_from(batch).unwrap_or(u32::MAX));
        let mut jobs = Vec::with_capacity(batch);
        loop {
            let taken = tokio::select! {
                taken = receiver.recv_many(&mut jobs, pace.portion() as usize) => taken,
                () = closing.cancelled(), if !receiver.is_closed() => {
                    receiver.close();
                    continue;
                }
            };
            if taken == 0 {
                return;
            }
            let began = Instant::now();
            self.commit(jobs.drain(..)).await;
            if began.elapsed() > self.ground.limits.batch_time / 2 {
                pace.slower(u32::try_from(taken).unwrap_or(u32::MAX));
            } else {
                pace.faster();
            }
        }
    }

    async fn commit(&mut self, jobs: impl Iterator<Item = Job>) {
        let began = Instant::now();
        let limits = &self.ground.limits;
        let mut in_time = Vec::new();
        for job in jobs {
            if began.duration_since(job.waiter.since) > limits.patience {
                job.waiter.refuse(self.too_late);
            } else {
                in_time.push(job);
            }
        }
        if in_time.is_empty() {
            return;
        }
        histogram!(telemetry::COMMIT_BATCH_SIZE)
            .record(f64::from(u32::try_from(in_time.len()).unwrap_or(u32::MAX)));
        let failed = match &mut self.producer {
            Some(producer) => {
                store_in_stream(producer, in_time).await;
                Vec::new()
            }
            None => self.ground.attempt(in_time, began + limits.batch_time).await,
        };
        histogram!(telemetry::COMMIT_DURATION).record(began.elapsed().as_secs_f64());
        for held in failed {
            self.door.hold(held);
        }
    }
}
