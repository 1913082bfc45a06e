//! The common mechanism for all work that waits in the database or recurs. A task takes a turn when it is woken, and when
//! its next work is due. Without due work it sends the database no queries.
//!
//! The task decides what a turn does, and how it claims its work. A claim must become free by itself when the process
//! dies. A task therefore claims work with a row lock of its transaction. Where the work crosses the network, the task
//! uses a lease that expires, and a fencing token that makes a late answer harmless.
//!
//! While the database fails, a task retries with back-off. The log says so once, and once more when the failure ends.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::TimeDelta;
use tokio::{sync::Notify, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{store::StoreError, sync::retry::Retry};

/// How soon we look again at due work that we could not claim.
const POLL: Duration = Duration::from_millis(500);

/// The wait while the database fails. A short outage must not cost much more than its own duration.
const FIRST_BACK_OFF: TimeDelta = TimeDelta::milliseconds(500);
const LONGEST_BACK_OFF: TimeDelta = TimeDelta::seconds(2);

/// Work that is done in portions.
#[async_trait]
pub trait Task: Send + Sync + 'static {
    /// The name in the log.
    fn name(&self) -> &'static str;

    /// Do one portion of the due work. An error concerns the database as a whole; the task handles failures of single items
    /// itself.
    async fn turn(&self) -> Result<Turn, StoreError>;

    /// How long until another turn is worth it without a notification, asked after a turn that found nothing; `None`:
    /// wait for a notification.
    async fn next(&self) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    /// Whether the first turn waits for a notification.
    fn waits_at_start(&self) -> bool {
        false
    }

    /// Whether shutdown cancels a turn. If not, shutdown waits until the turn ends.
    fn can_be_cut_off(&self) -> bool {
        false
    }

    /// The longest wait between turns while the database fails.
    fn longest_back_off(&self) -> TimeDelta {
        LONGEST_BACK_OFF
    }

    /// Work to do at shutdown, after the last turn.
    async fn stop(&self) {}
}

/// The result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more due work.
    More,
    /// No work is due now.
    Idle,
}

/// Runs a task until shutdown.
pub struct Worker<T> {
    task: Arc<T>,
    /// The number of concurrent turns.
    places: usize,
    /// Notified when there is work.
    bell: Arc<Notify>,
    /// The number of places whose last turn failed.
    failing: AtomicUsize,
}

impl<T: Task> Worker<T> {
    /// A worker with this many concurrent turns, woken by `bell`.
    pub fn new(task: T, places: usize, bell: &Arc<Notify>) -> Self {
        Self { task: Arc::new(task), places, bell: Arc::clone(bell), failing: AtomicUsize::new(0) }
    }

    /// Run until shutdown, and until turns in progress end, unless they can be cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        let this = Arc::new(self);
        let mut places = JoinSet::new();
        for place in 0..this.places {
            let (this, shutdown) = (Arc::clone(&this), shutdown.clone());
            places.spawn(async move { this.work(place, &shutdown).await });
        }
        places.join_all().await;
        this.task.stop().await;
    }

    async fn work(&self, place: usize, shutdown: &CancellationToken) {
        let seed = format!("{} {place}", self.task.name());
        let longest = self.task.longest_back_off();
        let back_off = Retry { max_attempts: u32::MAX, first: FIRST_BACK_OFF, longest };
        let mut failures = 0;
        if self.task.waits_at_start() {
            shutdown.run_until_cancelled(self.bell.notified()).await;
        }
        while !shutdown.is_cancelled() {
            let pause = match self.step(shutdown).await {
                // A cancelled turn says nothing about the database.
                Ok(_) if shutdown.is_cancelled() => return,
                Ok(pause) => {
                    self.succeeded(failures);
                    failures = 0;
                    pause
                }
                Err(error) => {
                    self.failed(failures, &error);
                    failures += 1;
                    Some(back_off.wait(failures, &seed).to_std().unwrap_or(POLL))
                }
            };
            let waiting = async {
                match pause {
                    Some(Duration::ZERO) => {}
                    Some(pause) => sleep(pause).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = waiting => {}
                () = shutdown.cancelled() => {}
                // While the database fails, notifications may be part of the failure.
                () = self.bell.notified(), if failures == 0 => {}
            }
        }
    }

    /// Do one turn; returns the time until the next one.
    async fn step(&self, shutdown: &CancellationToken) -> Result<Option<Duration>, StoreError> {
        match self.turn(shutdown).await? {
            Turn::More => Ok(Some(Duration::ZERO)),
            Turn::Idle => {
                let next = self.task.next().await?;
                Ok(next.map(|left| if left.is_zero() { POLL } else { left }))
            }
        }
    }

    /// Do one turn in a separate tokio task, so that a panic costs one turn and not the place.
    async fn turn(&self, shutdown: &CancellationToken) -> Result<Turn, StoreError> {
        let task = Arc::clone(&self.task);
        let mut running = tokio::spawn(async move { task.turn().await });
        let result = tokio::select! {
            result = &mut running => result,
            () = shutdown.cancelled(), if self.task.can_be_cut_off() => {
                running.abort();
                _ = running.await;
                return Ok(Turn::Idle);
            }
        };
        result.unwrap_or_else(|_| {
            tracing::error!(work = self.task.name(), "a turn was abandoned because of a bug in clerk-sync");
            Ok(Turn::Idle)
        })
    }

    fn failed(&self, before: u32, error: &StoreError) {
        if before == 0 && self.failing.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(work = self.task.name(), %error, "work waits until the database can be used again");
        }
    }

    fn succeeded(&self, failures: u32) {
        if failures > 0 && self.failing.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!(work = self.task.name(), "work resumes: the database can be used again");
        }
    }
}
