//! Wakes the tasks when there is work that this process does not know of: work left by another process, work that has become due,
//! and audit lines to seal.
//!
//! An idle service sends the database no queries. One short query covers all kinds of work and returns when the next look is
//! worth it. A look happens when this process has written something, when another process notifies us (`Store::listen`), and when
//! work is due. Where processes cannot notify each other, we poll, at intervals that grow to one minute. Where they can, we still
//! look every ten minutes, in case a process died before it could notify us. With `IDLE=quiet`, polling stops a few seconds after
//! the last activity.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Gauges, patient, time_between};
use crate::{
    model::{Idle, Seal},
    store::{Outlook, Store, StoreError, Unsealed},
    sync::{Clock, Frontier, retry::due_at},
};

/// The shortest time between two looks, and the first wait where other processes cannot notify us.
const SOON: Duration = Duration::from_millis(500);

/// The longest wait where other processes cannot notify us.
const DEAF: Duration = Duration::from_mins(1);

/// The longest wait where other processes can notify us.
const HEARING: Duration = Duration::from_mins(10);

/// The longest wait with `IDLE=quiet`, and the polling interval above which it applies.
const QUIET: Duration = Duration::from_hours(24);
const QUIET_AFTER: Duration = Duration::from_secs(4);

/// How soon a task that left due work undone is woken again. The task may have had a reason.
const MESSAGE_AGAIN: Duration = Duration::from_secs(5);
const ERASURE_AGAIN: Duration = Duration::from_secs(10);
const SEAL_AGAIN: Duration = Duration::from_secs(5);

/// How long an audit line waits for its seal, unless many lines wait.
pub const SEALED_WITHIN: TimeDelta = TimeDelta::minutes(1);

/// The longest wait after a failed look, and before the next attempt to listen.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
const LISTEN_AGAIN: Duration = Duration::from_mins(1);

/// Looks for work and wakes the tasks.
pub struct Lookout {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub idle: Idle,
    /// The sinks that this process delivers to.
    pub sinks: Vec<String>,
    /// The earliest time from which deliveries and messages are searched.
    pub frontier: Frontier,
    /// Wakes the queue; `None`: this process does not work on the queue.
    pub queue: Option<Arc<Notify>>,
    /// Wakes the dispatchers of the sinks.
    pub outbox: Option<Arc<Notify>>,
    /// Wakes sealing of the audit trail.
    pub seals: Arc<Notify>,
    /// Wakes erasures whose grace period may be over.
    pub erasures: Arc<Notify>,
    /// Notified that the counts may have changed.
    pub gauges: Arc<Gauges>,
}

/// Notifications from other processes.
#[derive(Default)]
struct Ears {
    listening: AtomicBool,
    /// Notified when another process reports a change.
    heard: Notify,
    /// Notified when another attempt to listen may succeed.
    again: Notify,
}

impl Lookout {
    /// Run until shutdown. The first failure in a row is logged; every failure is retried.
    pub async fn run(self, shutdown: CancellationToken) {
        let ears = Ears::default();
        let both = async { tokio::join!(self.watch(&ears), self.hear(&ears)) };
        shutdown.run_until_cancelled(both).await;
    }

    async fn watch(&self, ears: &Ears) {
        let ours = self.store.bell();
        let (mut pause, mut failures) = (SOON, 0);
        loop {
            let began = Instant::now();
            let due = match self.look().await {
                Ok(due) => {
                    failures = 0;
                    due
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::debug!(%error, "could not look for waiting work");
                    }
                    failures += 1;
                    Some(back_off(failures, LOOK_AGAIN))
                }
            };
            let listening = ears.listening.load(Ordering::Relaxed);
            let wait = self.longest(listening, pause);
            tokio::select! {
                () = sleep(due.map_or(wait, |due| due.min(wait))) => pause = (pause * 2).min(DEAF),
                () = ours.notified() => {
                    pause = SOON;
                    ears.again.notify_one();
                }
                () = ears.heard.notified() => pause = SOON,
            }
            // The next look sees everything that happens during this pause.
            sleep(SOON.saturating_sub(began.elapsed())).await;
        }
    }

    /// The longest wait without a notification.
    fn longest(&self, listening: bool, pause: Duration) -> Duration {
        match self.idle {
            Idle::Quiet if listening || pause > QUIET_AFTER => QUIET,
            Idle::Normal if listening => HEARING,
            Idle::Normal | Idle::Quiet => pause,
        }
    }

    /// Wake the tasks that have work due; returns how soon more work may be due.
    async fn look(&self) -> Result<Option<Duration>, StoreError> {
        self.gauges.disturb();
        let look = self.frontier.look((self.clock)(), Instant::now());
        let outlook = patient(self.store.outlook(&self.sinks, look.since)).await;
        let first = |outlook: &Outlook| [outlook.delivery, outlook.message].into_iter().flatten().min();
        let first = outlook.as_ref().map(first).map_err(Clone::clone);
        self.frontier.learn(look, first, Instant::now())?;
        let outlook = outlook?;
        let now = (self.clock)();
        let dues = [
            (outlook.delivery.map(|at| due_at(at, now)), self.queue.as_deref(), SOON),
            (outlook.message.map(|at| due_at(at, now)), self.outbox.as_deref(), MESSAGE_AGAIN),
            (outlook.erasure, Some(&*self.erasures), ERASURE_AGAIN),
            (seal_at(outlook.unsealed, now), Some(&*self.seals), SEAL_AGAIN),
        ];
        let next = dues.into_iter().filter_map(|(at, bell, again)| {
            let (left, bell) = (time_between(now, at?), bell?);
            if !left.is_zero() {
                return Some(left);
            }
            bell.notify_one();
            Some(again)
        });
        Ok(next.chain(self.frontier.owed(Instant::now())).min())
    }

    /// Listen for notifications from other processes, if the database supports it.
    async fn hear(&self, ears: &Ears) {
        let mut failures = 0;
        loop {
            match self.store.listen().await {
                Ok(None) => return,
                Ok(Some(mut listener)) => {
                    failures = 0;
                    ears.listening.store(true, Ordering::Relaxed);
                    // Changes made just before we listened were not reported to us.
                    ears.heard.notify_one();
                    while listener.heard().await.is_ok() {
                        ears.heard.notify_one();
                    }
                    ears.listening.store(false, Ordering::Relaxed);
                    if self.idle == Idle::Normal {
                        ears.heard.notify_one();
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot listen to other processes for now"),
            }
            failures += 1;
            match self.idle {
                Idle::Normal => sleep(back_off(failures, LISTEN_AGAIN)).await,
                // The database may have closed the connection to sleep; do not wake it to listen.
                Idle::Quiet => ears.again.notified().await,
            }
        }
    }
}

/// The wait after this many failures in a row.
fn back_off(failures: u32, longest: Duration) -> Duration {
    (SOON * 2_u32.saturating_pow(failures)).min(longest)
}

/// When the next seal is due.
fn seal_at(unsealed: Unsealed, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    match unsealed {
        Unsealed { lines: 0, .. } => None,
        Unsealed { lines, .. } if lines >= Seal::LINES as u64 => Some(now),
        // No usable time, or one that was written while a clock was far ahead.
        Unsealed { since, .. } if since.is_none_or(|since| since > now + SEALED_WITHIN) => Some(now),
        Unsealed { since, .. } => since.map(|since| since + SEALED_WITHIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_seal_for_a_hundred_lines_or_after_a_minute() {
        let now = DateTime::from_timestamp(1_767_225_600, 0).expect("a time");
        let seconds = |seconds| now + TimeDelta::seconds(seconds);
        for (lines, since, at) in [
            (0, None, None),
            (1, Some(now), Some(seconds(60))),
            (99, Some(seconds(-50)), Some(seconds(10))),
            (1, Some(seconds(-70)), Some(seconds(-10))),
            (1, Some(seconds(5)), Some(seconds(65))),
            (1, Some(seconds(500)), Some(now)),
            (1, None, Some(now)),
            (100, Some(now), Some(now)),
        ] {
            assert_eq!(seal_at(Unsealed { lines, since }, now), at, "{lines} lines since {since:?}");
        }
    }
}
