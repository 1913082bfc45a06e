//! The one mechanism behind everything that waits in the database: places that take turns side by side, woken up when
//! there is work or when the next of it is due. As long as there is none nothing is asked of the database.
//!
//! What a turn does, and how it claims what it works on, is the tenant's. What is claimed must come free by itself when
//! the process dies: by a row lock of the working transaction, or, where the work crosses the network, by a lease that
//! ends and a fencing token that makes a late answer harmless.

use std::{future::pending, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::{sync::Notify, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    store::StoreError,
    sync::{Clock, retry::Retry},
};

/// How soon we look again at what is due and was not ours to take.
const POLL: Duration = Duration::from_millis(500);

/// How long we wait while the database gives us nothing but trouble. A short outage must not cost much more than it takes.
const TROUBLE: Retry =
    Retry { max_attempts: u32::MAX, first: TimeDelta::milliseconds(500), longest: TimeDelta::seconds(2) };

/// Something that waits in the database to be worked on.
#[async_trait]
pub trait Tenant: Send + Sync + 'static {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// Do one portion of what is due. An error is about the database as a whole; what is wrong with a single piece of
    /// work is the tenant's to settle.
    async fn turn(&self) -> Result<Turn, StoreError>;

    /// When another turn is worth it though nobody calls, asked after one that found nothing; `None`: never.
    async fn next(&self) -> Result<Option<DateTime<Utc>>, StoreError>;
}

/// What a turn found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more that is due.
    More,
    /// Nothing is due now.
    Idle,
}

/// Takes turns until the shutdown; a turn that has begun is finished.
pub struct Worker<T> {
    pub tenant: Arc<T>,
    /// Turns side by side.
    pub places: usize,
    /// Rung when there is work.
    pub bell: Arc<Notify>,
    pub clock: Clock,
}

impl<T: Tenant> Worker<T> {
    /// Run until the shutdown, and until the turns under way are finished.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut places = JoinSet::new();
        for place in 0..self.places {
            let (tenant, bell) = (Arc::clone(&self.tenant), Arc::clone(&self.bell));
            places.spawn(take_turns(tenant, place, bell, Arc::clone(&self.clock), shutdown.clone()));
        }
        places.join_all().await;
    }
}

async fn take_turns<T: Tenant>(
    tenant: Arc<T>,
    place: usize,
    bell: Arc<Notify>,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let mut troubles = 0;
    while !shutdown.is_cancelled() {
        let next = match turn(&tenant).await {
            Ok(Turn::More) => {
                troubles = 0;
                continue;
            }
            Ok(Turn::Idle) => tenant.next().await,
            Err(error) => Err(error),
        };
        let pause = match next {
            Ok(next) => {
                troubles = 0;
                let left = next.map(|at| (at - clock()).to_std().ok().filter(|left| !left.is_zero()));
                left.map(|left| left.unwrap_or(POLL))
            }
            Err(error) => {
                troubles += 1;
                if troubles == 1 {
                    tracing::warn!(work = tenant.name(), %error, "work waits until the database can be used again");
                }
                let now: DateTime<Utc> = clock();
                let seed = format!("{} {place}", tenant.name());
                Some((TROUBLE.always_after(troubles, &seed, now) - now).to_std().unwrap_or(POLL))
            }
        };
        let waiting = async {
            match pause {
                Some(pause) => sleep(pause).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = waiting => {}
            // In trouble nobody is called: what rings is part of the trouble.
            () = bell.notified(), if troubles == 0 => {}
        }
    }
}

/// In a task of its own, so that a panic costs one turn and not the place.
async fn turn<T: Tenant>(tenant: &Arc<T>) -> Result<Turn, StoreError> {
    let working = Arc::clone(tenant);
    tokio::spawn(async move { working.turn().await }).await.unwrap_or_else(|_| {
        tracing::error!(work = tenant.name(), "a turn was abandoned because of a bug in clerk-sync");
        Ok(Turn::Idle)
    })
}
