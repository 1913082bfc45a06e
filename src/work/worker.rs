//! The one mechanism behind all work that waits in the database or is due from time to time. A task is run when somebody
//! wakes it, and when the next of its work is due. As long as there is none nothing is asked of the database.
//!
//! What a run does, and how it claims what it works on, is the task's. What is claimed must come free by itself when
//! the process dies: by a row lock of the working transaction, or, where the work crosses the network, by a lease that
//! ends and a fencing token that makes a late answer harmless.
//!
//! While the database fails, a task is run again after a back-off. The log says so once, and once when that is over.

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

/// How soon we look again at what is due and was not ours to take.
const POLL: Duration = Duration::from_millis(500);

/// How long we wait while the database fails. A short outage must not cost much more than it takes.
const FIRST_BACK_OFF: TimeDelta = TimeDelta::milliseconds(500);
const LONGEST_BACK_OFF: TimeDelta = TimeDelta::seconds(2);

/// Work that is done portion by portion.
#[async_trait]
pub trait Task: Send + Sync + 'static {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// Do one portion of what is due. An error is about the database as a whole; the task handles what is wrong with a single
    /// piece of work.
    async fn turn(&self) -> Result<Turn, StoreError>;

    /// How long until another run is worth it though nobody wakes the task, asked after a run that found nothing; `None`:
    /// for ever.
    async fn next(&self) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    /// Whether it waits to be woken before its first run.
    fn waits_at_start(&self) -> bool {
        false
    }

    /// Whether the shutdown cuts a run off. Else it waits for the end of the run.
    fn can_be_cut_off(&self) -> bool {
        false
    }

    /// The longest time until it is run again while the database fails.
    fn longest_back_off(&self) -> TimeDelta {
        LONGEST_BACK_OFF
    }

    /// What is left to do at the shutdown, after the last run.
    async fn stop(&self) {}
}

/// What a run found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more that is due.
    More,
    /// Nothing is due now.
    Idle,
}

/// Runs a task until the shutdown.
pub struct Worker<T> {
    task: Arc<T>,
    /// Runs side by side.
    places: usize,
    /// Notified when there is work.
    bell: Arc<Notify>,
    /// Places where the last run failed.
    failing: AtomicUsize,
}

impl<T: Task> Worker<T> {
    /// A worker with so many runs side by side, which is woken by this.
    pub fn new(task: T, places: usize, bell: &Arc<Notify>) -> Self {
        Self { task: Arc::new(task), places, bell: Arc::clone(bell), failing: AtomicUsize::new(0) }
    }

    /// Run until the shutdown, and until what is under way is finished, if it cannot be cut off.
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
                // A run that the shutdown cut off says nothing of the database.
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
                // What notifies while the database fails is part of the failure.
                () = self.bell.notified(), if failures == 0 => {}
            }
        }
    }

    /// One run; gives the time until the next one.
    async fn step(&self, shutdown: &CancellationToken) -> Result<Option<Duration>, StoreError> {
        match self.turn(shutdown).await? {
            Turn::More => Ok(Some(Duration::ZERO)),
            Turn::Idle => {
                let next = self.task.next().await?;
                Ok(next.map(|left| if left.is_zero() { POLL } else { left }))
            }
        }
    }

    /// In a task of tokio's own, so that a panic costs one run and not the place.
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
            tracing::info!(work = self.task.name(), "work goes on: the database can be used again");
        }
    }
}
