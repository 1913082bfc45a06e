//! When what failed is tried again, and when no more: one rule for deliveries that wait and for messages that go out. And under
//! which id a deletion waits that no webhook brought.

use std::hash::{DefaultHasher, Hash, Hasher};

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};

use crate::{
    entity::USER,
    model::{ClerkId, SvixId},
};

/// Full jitter over an exponential backoff: after the n-th attempt a wait between nothing and
/// `min(longest, first × 2ⁿ⁻¹)`, so that what failed together does not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts until there is no further one.
    pub max_attempts: u32,
    pub first: TimeDelta,
    pub longest: TimeDelta,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: 15, first: TimeDelta::seconds(2), longest: TimeDelta::hours(1) }
    }
}

/// The longest wait for what only a lock keeps from succeeding: nobody tells when it is gone.
const SOON: TimeDelta = TimeDelta::seconds(8);

impl Retry {
    /// When to try again after so many attempts at what has this id; `None` if that was the last one.
    pub fn after(&self, attempts: u32, id: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        (attempts < self.max_attempts).then(|| self.always_after(attempts, id, now))
    }

    /// When to try again what must never be given up.
    pub fn always_after(&self, attempts: u32, id: &str, now: DateTime<Utc>) -> DateTime<Utc> {
        now + self.wait(attempts, id)
    }

    /// When to try again what succeeds as soon as somebody lets go of a lock.
    pub fn soon_after(&self, attempts: u32, id: &str, now: DateTime<Utc>) -> DateTime<Utc> {
        Self { longest: self.longest.min(SOON), ..*self }.always_after(attempts, id, now)
    }

    /// The wait after so many attempts. Random as far as anybody can tell, yet the same on every replica.
    pub fn wait(&self, attempts: u32, id: &str) -> TimeDelta {
        let doublings = attempts.saturating_sub(1).min(30);
        let ceiling = self.longest.min(self.first * (1 << doublings)).num_milliseconds().max(1);
        let mut hasher = DefaultHasher::new();
        (id, attempts).hash(&mut hasher);
        let part = hasher.finish() % ceiling.unsigned_abs();
        TimeDelta::milliseconds(part.cast_signed() + 1)
    }
}

/// Under which id the deletion of an object waits that did not come as a webhook: always the same, so that asking again
/// does not make it wait twice.
pub(super) fn retry_id(clerk_id: &ClerkId) -> SvixId {
    let digest = match clerk_id.entity() {
        // As it was when there were only users.
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
