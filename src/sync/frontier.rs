//! From which time on the first delivery or message that waits is looked for.
//!
//! What is done leaves an entry in the index of due times. While any transaction holds an old snapshot the database
//! can remove none of these, and a look from the beginning of the index reads past all of them. So most looks begin where
//! the look before found the first that waited, and only some at the beginning: after one that took long, the next follows thirty
//! times as long later.
//!
//! Nothing is lost. What others have claimed is still seen, and comes back to where it was if they fail. One may become
//! visible behind the frontier, if its transaction took longer than `MARGIN` or another clock is further behind: the next look
//! from the beginning finds it. Each look that began later than there is followed by one from the beginning (see
//! [`owed`](Frontier::owed)), within `LONGEST_REST`.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::store::Result;

/// Earlier than anything is due.
pub const BEGINNING: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// A look begins so long before the first that the look before it found. It costs a few milliseconds at 10,000 deliveries a
/// second beside an old snapshot.
const MARGIN: TimeDelta = TimeDelta::milliseconds(250);

/// Looks from the beginning take one part in so many of the time.
const SHARE: u32 = 30;

/// The longest time between two of them.
const LONGEST_REST: Duration = Duration::from_mins(2);

/// Where the first that waits was last seen.
#[derive(Debug)]
pub struct Frontier {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    since: DateTime<Utc>,
    /// When the last look from the beginning ended, and when the next one may begin.
    ended: Option<Instant>,
    next: Option<Instant>,
    /// How long was to be rested after the last one.
    rest: Duration,
    /// When the last look began that was none from the beginning, unless one from there began since, and has ended.
    owed: Option<Instant>,
    /// Whether one who asked was told since then that a look is owed.
    told: bool,
}

/// A look for the first that waits.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// It is about what is due at this time and later.
    pub since: DateTime<Utc>,
    whole: bool,
    now: DateTime<Utc>,
    began: Instant,
}

impl Default for Frontier {
    fn default() -> Self {
        let known = Known {
            since: BEGINNING,
            ended: None,
            next: None,
            rest: Duration::ZERO,
            owed: None,
            told: false,
        };
        Self { known: Mutex::new(known) }
    }
}

impl Frontier {
    /// Begin a look at this time by the clock that tells when something is due, and by the one that only goes forward.
    pub fn look(&self, now: DateTime<Utc>, began: Instant) -> Look {
        let mut known = self.known();
        let whole = known.next.is_none_or(|next| next <= began);
        if whole {
            // Others who look meanwhile do not do the same.
            known.next = Some(began + known.rest);
        } else {
            known.owed = Some(began);
            known.told = false;
        }
        let since = if whole { BEGINNING } else { known.before(now) };
        Look { since, whole, now, began }
    }

    /// A look has ended like this, and tells when the first is due.
    ///
    /// # Errors
    /// Those of the look.
    pub fn learn(
        &self,
        look: Look,
        first: Result<Option<DateTime<Utc>>>,
        ended: Instant,
    ) -> Result<Option<DateTime<Utc>>> {
        match &first {
            Ok(first) => self.found(look, *first, ended),
            Err(error) if error.took_too_long() => self.gave_up(look, ended),
            // It tells nothing of what the next one costs.
            Err(_) => {}
        }
        first
    }

    fn found(&self, look: Look, first: Option<DateTime<Utc>>, ended: Instant) {
        let mut known = self.known();
        if look.whole {
            known.rest_from(look, ended);
            known.owed = known.owed.filter(|near| *near > look.began);
        } else if known.ended.is_some_and(|whole| whole > look.began) {
            // One from the beginning has seen more.
            return;
        }
        known.since = first.map_or(look.now, |first| first.min(look.now)) - MARGIN;
    }

    /// A look has taken too long. The next ones begin near the end, so that at least what comes now is worked on.
    fn gave_up(&self, look: Look, ended: Instant) {
        let mut known = self.known();
        if look.whole {
            known.rest_from(look, ended);
            known.owed = Some(ended);
            known.told = false;
            if known.since == BEGINNING {
                known.since = look.now - MARGIN;
            }
        }
    }

    /// From which time on something is to be looked for again, of which a look has told already that it is there.
    pub fn since(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        self.known().before(now)
    }

    /// How long until a look from the beginning may be taken, if there was none since the last look of another kind. One of those
    /// who ask is told: if all came at once, the one would take it, and the others would owe another.
    pub fn owed(&self, now: Instant) -> Option<Duration> {
        let mut known = self.known();
        known.owed?;
        if std::mem::replace(&mut known.told, true) {
            return None;
        }
        Some(known.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now)))
    }

    /// A panic under this lock leaves nothing half done.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The clock may have been put back.
    fn before(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        self.since.min(now - MARGIN)
    }

    fn rest_from(&mut self, look: Look, ended: Instant) {
        self.rest = (ended.saturating_duration_since(look.began) * SHARE).min(LONGEST_REST);
        self.ended = Some(ended);
        self.next = Some(ended + self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: DateTime<Utc> = DateTime::from_timestamp_nanos(1_767_225_600_000_000_000);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn due(milliseconds: i64) -> DateTime<Utc> {
        NOW + TimeDelta::milliseconds(milliseconds)
    }

    /// A frontier that has seen the first delivery, due at `NOW`, by a look that took 10 ms; and when that look ended.
    fn after_a_look() -> (Frontier, Instant) {
        let (frontier, began) = (Frontier::default(), Instant::now());
        let first = frontier.look(NOW, began);
        assert_eq!(first.since, BEGINNING);
        frontier.found(first, Some(NOW), began + ms(10));
        (frontier, began + ms(10))
    }

    #[test]
    fn a_look_begins_near_the_one_before_until_thirty_times_its_cost_has_passed() {
        let (frontier, ended) = after_a_look();
        let near = frontier.look(due(10), ended);
        assert_eq!(near.since, NOW - MARGIN);
        frontier.found(near, Some(due(5)), ended + ms(1));
        assert_eq!(frontier.look(due(299), ended + ms(299)).since, due(5) - MARGIN);
        assert_eq!(frontier.look(due(300), ended + ms(300)).since, BEGINNING);
        let meanwhile = frontier.look(due(301), ended + ms(301));
        assert_ne!(meanwhile.since, BEGINNING, "one of those who look does it");
    }

    #[test]
    fn what_costs_much_is_put_off_for_two_minutes_at_the_most() {
        let (frontier, began) = (Frontier::default(), Instant::now());
        frontier.found(frontier.look(NOW, began), None, began + Duration::from_mins(1));
        let rested = began + Duration::from_mins(1) + LONGEST_REST;
        assert_ne!(frontier.look(NOW, rested.checked_sub(ms(1)).expect("a time")).since, BEGINNING);
        assert_eq!(frontier.look(NOW, rested).since, BEGINNING);
    }

    #[test]
    fn a_look_from_the_beginning_is_owed_after_each_other_one() {
        let (frontier, ended) = after_a_look();
        assert_eq!(frontier.owed(ended), None);
        let near = frontier.look(due(100), ended + ms(100));
        frontier.found(near, None, ended + ms(101));
        assert_eq!(frontier.owed(ended + ms(101)), Some(ms(199)));
        let near = frontier.look(due(200), ended + ms(200));
        frontier.found(near, None, ended + ms(201));
        let whole = frontier.look(due(400), ended + ms(400));
        frontier.found(whole, None, ended + ms(401));
        assert_eq!(frontier.owed(ended + ms(401)), None);
    }

    #[test]
    fn of_several_with_nothing_to_do_one_is_told_so_that_they_come_to_rest() {
        let (frontier, mut now) = after_a_look();
        let mut woken = 4;
        for _ in 0..4 {
            now += ms(10_000);
            let looks: Vec<Look> = (0..woken).map(|_| frontier.look(due(10_000), now)).collect();
            let told = looks.into_iter().filter(|look| {
                frontier.found(*look, None, now + ms(10));
                frontier.owed(now + ms(10)).is_some()
            });
            woken = told.count();
        }
        assert_eq!(woken, 0);
    }

    #[test]
    fn a_look_that_began_meanwhile_is_owed_another_one() {
        let (frontier, ended) = after_a_look();
        let whole = frontier.look(due(300), ended + ms(300));
        let near = frontier.look(due(301), ended + ms(301));
        frontier.found(whole, Some(due(-5000)), ended + ms(302));
        assert!(frontier.owed(ended + ms(302)).is_some());
        frontier.found(near, Some(due(301)), ended + ms(303));
        assert_eq!(frontier.since(due(303)), due(-5000) - MARGIN, "the other one has seen more");
    }

    #[test]
    fn it_is_never_later_than_now_less_the_margin() {
        let (frontier, ended) = after_a_look();
        frontier.found(frontier.look(due(1), ended + ms(1)), Some(due(60_000)), ended + ms(2));
        assert_eq!(frontier.since(due(90_000)), due(1) - MARGIN, "what comes now is due before that");
        assert_eq!(frontier.since(due(-3_600_000)), due(-3_600_000) - MARGIN, "the clock was put back");
    }

    #[test]
    fn after_a_look_that_took_too_long_what_comes_now_is_found_at_least() {
        let (frontier, began) = (Frontier::default(), Instant::now());
        frontier.gave_up(frontier.look(NOW, began), began + ms(3000));
        assert_eq!(frontier.look(due(3000), began + ms(3000)).since, NOW - MARGIN);
        assert_eq!(frontier.owed(began + ms(3000)), Some(ms(90_000)));
    }
}
