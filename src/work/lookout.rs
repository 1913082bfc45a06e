//! Wakes the tasks when there is work that nothing in this process has made or knows of: what another process has left,
//! what has become due, lines that are to be sealed.
//!
//! As long as nothing happens nothing is asked of the database. One short look answers for everything, and tells when the
//! next look is worth it. It is taken when this process has written something, when another one tells us (`Store::listen`),
//! and when something is due. Where others cannot be heard we look from time to time, ever more rarely up to once a minute.
//! Where they can, once in ten minutes, for whoever died before they told us. With `IDLE=quiet` neither.

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
    sync::{Clock, Frontier},
};

/// Between two looks at least, and the first wait where others cannot be heard.
const SOON: Duration = Duration::from_millis(500);

/// The longest wait where others cannot be heard.
const DEAF: Duration = Duration::from_mins(1);

/// The longest wait where they can.
const HEARING: Duration = Duration::from_mins(10);

/// The longest wait with `IDLE=quiet`, and from which on it is taken.
const QUIET: Duration = Duration::from_hours(24);
const QUIET_AFTER: Duration = Duration::from_secs(4);

/// How soon those are called again who have not done what is due: they may have a reason.
const MESSAGE_AGAIN: Duration = Duration::from_secs(5);
const ERASURE_AGAIN: Duration = Duration::from_secs(10);
const SEAL_AGAIN: Duration = Duration::from_secs(5);

/// How long a line waits for its seal, unless many do.
pub const SEALED_WITHIN: TimeDelta = TimeDelta::minutes(1);

/// The longest wait after a failed look, and before others are listened to again.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
const LISTEN_AGAIN: Duration = Duration::from_mins(1);

/// Looks, and calls.
pub struct Lookout {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub idle: Idle,
    /// The sinks that this process tells.
    pub sinks: Vec<String>,
    /// From where on it looks for deliveries and messages.
    pub frontier: Frontier,
    /// Works on the queue; `None`: that is not for this process.
    pub queue: Option<Arc<Notify>>,
    /// Tells the sinks.
    pub outbox: Option<Arc<Notify>>,
    /// Seals the audit trail.
    pub seals: Arc<Notify>,
    /// Carries out erasures that were held back.
    pub erasures: Arc<Notify>,
    /// Shows how much there is of everything.
    pub gauges: Arc<Gauges>,
}

/// What is heard of others.
#[derive(Default)]
struct Ears {
    listening: AtomicBool,
    /// Rung when something was heard.
    heard: Notify,
    /// Rung when it may be worth listening again.
    again: Notify,
}

impl Lookout {
    /// Run until the shutdown. Trouble is logged when it begins, and tried again.
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
                        tracing::debug!(%error, "what waits could not be looked at");
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
            // Whatever else happens meanwhile is seen by the next look.
            sleep(SOON.saturating_sub(began.elapsed())).await;
        }
    }

    /// How long we wait though nobody calls.
    fn longest(&self, listening: bool, pause: Duration) -> Duration {
        match self.idle {
            Idle::Quiet if listening || pause > QUIET_AFTER => QUIET,
            Idle::Normal if listening => HEARING,
            Idle::Normal | Idle::Quiet => pause,
        }
    }

    /// Call those who have something to do now; says when that may be so again.
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
            (outlook.delivery, self.queue.as_deref(), SOON),
            (outlook.message, self.outbox.as_deref(), MESSAGE_AGAIN),
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

    /// Hear what others leave, where that can be heard.
    async fn hear(&self, ears: &Ears) {
        let mut failures = 0;
        loop {
            match self.store.listen().await {
                Ok(None) => return,
                Ok(Some(mut listener)) => {
                    failures = 0;
                    ears.listening.store(true, Ordering::Relaxed);
                    // What was left a moment ago nobody told us.
                    ears.heard.notify_one();
                    while listener.heard().await.is_ok() {
                        ears.heard.notify_one();
                    }
                    ears.listening.store(false, Ordering::Relaxed);
                    if self.idle == Idle::Normal {
                        ears.heard.notify_one();
                    }
                }
                Err(error) => tracing::debug!(%error, "other processes cannot be heard for now"),
            }
            failures += 1;
            match self.idle {
                Idle::Normal => sleep(back_off(failures, LISTEN_AGAIN)).await,
                // The database may have closed the connection to sleep, and must not be woken for this.
                Idle::Quiet => ears.again.notified().await,
            }
        }
    }
}

/// The wait after so many failures in a row.
fn back_off(failures: u32, longest: Duration) -> Duration {
    (SOON * 2_u32.saturating_pow(failures)).min(longest)
}

/// When there is to be a seal.
fn seal_at(unsealed: Unsealed, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    match unsealed {
        Unsealed { lines: 0, .. } => None,
        Unsealed { lines, .. } if lines >= Seal::LINES as u64 => Some(now),
        // By another clock it may have been in the future; or it has no time that anybody could wait for.
        Unsealed { since, .. } => Some(since.map_or(now, |since| since.min(now) + SEALED_WITHIN)),
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
            (1, Some(seconds(500)), Some(seconds(60))),
            (100, Some(now), Some(now)),
        ] {
            assert_eq!(seal_at(Unsealed { lines, since }, now), at, "{lines} lines since {since:?}");
        }
    }
}
