//! The retry rules for waiting deliveries and outgoing messages: when a failed attempt is repeated, and when it is not.
//! Also the id under which a deletion without a webhook is queued.
//!
//! Due times are written by the clock of the process that writes them. If that clock was ahead and was set back, a due time
//! may be days away. So nothing waits for a time beyond the horizon: such an entry is due now.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::RangeInclusive,
};

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};

use crate::{
    entity::USER,
    model::{ClerkId, SvixId},
    store::Result,
};

/// Exponential backoff with full jitter. The wait after the n-th attempt is random, up to `min(longest, first × 2ⁿ⁻¹)`.
/// So entries that failed together are not retried together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The maximum number of attempts.
    pub max_attempts: u32,
    pub first: TimeDelta,
    pub longest: TimeDelta,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: 15, first: TimeDelta::seconds(2), longest: TimeDelta::hours(1) }
    }
}

/// The longest wait when only a lock is in the way: nothing announces its release.
const SOON: TimeDelta = TimeDelta::seconds(8);

/// A time later than anything is due.
pub(super) const FAR_AWAY: DateTime<Utc> = DateTime::from_timestamp_nanos(i64::MAX);

/// How far ahead a due time can be if the clocks are right: an hour, and what clocks of replicas may differ.
const HORIZON: TimeDelta = TimeDelta::minutes(70);

/// When an entry with this due time is due.
pub fn due_at(at: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
    if at > now + HORIZON { now } else { at }
}

/// The due times of entries that are due, beginning with the first one; `None` if no entry is due. `first` is the first
/// due time of all, and `first_since` searches for the first one since another time. The entries beyond the horizon are
/// searched when no other entry is due, and `sometimes`, so that a steady load does not hold them up.
///
/// # Errors
/// Those of the search.
pub async fn due_times(
    first: Option<DateTime<Utc>>,
    sometimes: bool,
    now: DateTime<Utc>,
    first_since: impl AsyncFnOnce(DateTime<Utc>) -> Result<Option<DateTime<Utc>>>,
) -> Result<Option<RangeInclusive<DateTime<Utc>>>> {
    let Some(first) = first else { return Ok(None) };
    let near = (first <= now).then_some(first..=now);
    if near.is_some() && !sometimes {
        return Ok(near);
    }
    let beyond = first_since(now + HORIZON).await?;
    Ok(beyond.map(|first| first..=FAR_AWAY).or(near))
}

impl Retry {
    /// When to try again after this many attempts for this id; `None` if that was the last attempt.
    pub fn after(&self, attempts: u32, id: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        (attempts < self.max_attempts).then(|| self.always_after(attempts, id, now))
    }

    /// When to try again if retries must never stop.
    pub fn always_after(&self, attempts: u32, id: &str, now: DateTime<Utc>) -> DateTime<Utc> {
        now + self.wait(attempts, id)
    }

    /// When to try again if the attempt succeeds as soon as a lock is released.
    pub fn soon_after(&self, attempts: u32, id: &str, now: DateTime<Utc>) -> DateTime<Utc> {
        Self { longest: self.longest.min(SOON), ..*self }.always_after(attempts, id, now)
    }

    /// The wait after this many attempts. Looks random, but is the same on every replica.
    pub fn wait(&self, attempts: u32, id: &str) -> TimeDelta {
        let doublings = attempts.saturating_sub(1).min(30);
        let ceiling = self.longest.min(self.first * (1 << doublings)).num_milliseconds().max(1);
        let mut hasher = DefaultHasher::new();
        (id, attempts).hash(&mut hasher);
        let part = hasher.finish() % ceiling.unsigned_abs();
        TimeDelta::milliseconds(part.cast_signed() + 1)
    }
}

/// The id under which a deletion without a webhook is queued. It is always the same for an object, so that repeated
/// requests do not queue it twice.
pub(super) fn retry_id(clerk_id: &ClerkId) -> SvixId {
    let digest = match clerk_id.entity() {
        // Users keep the form from before there were other kinds.
        entity if *entity == USER => Sha256::digest(clerk_id.as_str()),
        entity => Sha256::digest(format!("{} {clerk_id}", entity.kind)),
    };
    let half = hex::encode(&digest[..16]);
    SvixId::new(format!("erase_{half}")).expect("38 visible characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::ORGANIZATION;

    #[test]
    fn waits_are_spread_under_a_ceiling_that_doubles_up_to_an_hour() {
        let retry = Retry { max_attempts: u32::MAX, ..Retry::default() };
        for (attempts, ceiling) in [(1, 2), (2, 4), (5, 32), (11, 2048), (12, 3600), (u32::MAX, 3600)] {
            let waits: Vec<i64> =
                (0..1000).map(|id| retry.wait(attempts, &id.to_string()).num_milliseconds()).collect();
            let (least, most) = (waits.iter().min(), waits.iter().max());
            let ceiling = ceiling * 1000;
            assert!(least.is_some_and(|least| *least < ceiling / 50), "{attempts}: {least:?}");
            assert!(
                most.is_some_and(|most| *most > ceiling * 49 / 50 && *most <= ceiling),
                "{attempts}: {most:?}"
            );
        }
    }

    #[test]
    fn no_retry_is_planned_beyond_the_horizon() {
        let now = DateTime::from_timestamp_millis(0).expect("in range");
        let retry = Retry::default();
        for attempts in 1..100 {
            let at = retry.always_after(attempts, "msg_1", now);
            assert_eq!(due_at(at, now), at);
        }
        assert_eq!(due_at(now + TimeDelta::days(1), now), now, "a clock was ahead");
        assert_eq!(due_at(now - TimeDelta::days(1), now), now - TimeDelta::days(1));
    }

    #[tokio::test]
    async fn entries_are_due_up_to_now_and_beyond_the_horizon() {
        let now = DateTime::from_timestamp_millis(0).expect("in range");
        let far = now + TimeDelta::days(1);
        let near = now + TimeDelta::minutes(30);
        let past = now - TimeDelta::minutes(30);
        for (first, sometimes, beyond, due) in [
            (None, true, None, None),
            (Some(past), false, Some(far), Some(past..=now)),
            (Some(past), true, Some(far), Some(far..=FAR_AWAY)),
            (Some(past), true, None, Some(past..=now)),
            (Some(near), false, None, None),
            (Some(near), false, Some(far), Some(far..=FAR_AWAY)),
            (Some(far), false, Some(far), Some(far..=FAR_AWAY)),
        ] {
            let found = due_times(first, sometimes, now, async |since| {
                assert!(near < since && since < far);
                Ok(beyond)
            });
            assert_eq!(found.await.expect("found"), due, "{first:?}, {beyond:?}");
        }
    }

    #[test]
    fn after_the_last_attempt_there_is_none() {
        let now = DateTime::from_timestamp_millis(0).expect("in range");
        let retry = Retry::default();
        assert!(retry.after(14, "msg_1", now).is_some_and(|at| at > now));
        assert_eq!(retry.after(15, "msg_1", now), None);
        assert!(retry.always_after(15, "msg_1", now) > now);
        assert!(retry.soon_after(1_000_000, "msg_1", now) <= now + SOON);
    }

    #[test]
    fn a_deletion_that_waits_has_one_id_an_object() {
        let id = |id: &str| retry_id(&ClerkId::new(&USER, id).expect("valid"));
        assert_eq!(id("user_1"), id("user_1"));
        assert_ne!(id("user_1"), id("USER_1"));
        assert_ne!(id("user_1"), retry_id(&ClerkId::new(&ORGANIZATION, "user_1").expect("valid")));
    }
}
