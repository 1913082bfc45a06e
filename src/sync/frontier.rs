//! Where the search for the first waiting delivery or message starts.
//!
//! A finished entry leaves a dead entry in the index of due times. While any transaction holds an old snapshot, the
//! database cannot remove these, and a search from the beginning of the index reads past all of them. So most searches
//! start where the previous one found the first waiting entry, and only some start at the beginning. After a search
//! from the beginning, the next one follows after thirty times its duration.
//!
//! Nothing is lost. Entries that other workers have claimed stay visible, and return to their place if those workers
//! fail. An entry may become visible before the frontier if its transaction took longer than `MARGIN`, or if the clock of
//! another process is further behind. The next search from the beginning finds it. Every search that started later is
//! followed by one from the beginning (see [`owed`](Frontier::owed)), within `LONGEST_REST`.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::store::Result;

/// A time earlier than anything is due.
pub const BEGINNING: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// A search starts this long before the first entry that the previous search found. With 10,000 deliveries a second and
/// an old snapshot, this costs a few milliseconds.
const MARGIN: TimeDelta = TimeDelta::milliseconds(250);

/// After a search from the beginning, the next one waits for this many times its duration.
const SHARE: u32 = 30;

/// The longest time between two searches from the beginning.
const LONGEST_REST: Duration = Duration::from_mins(2);

/// Remembers where the first waiting entry was last seen.
#[derive(Debug)]
pub struct Frontier {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    since: DateTime<Utc>,
    /// When the last search from the beginning ended, and when the next one may start.
    ended: Option<Instant>,
    next: Option<Instant>,
    /// The rest after the last search from the beginning.
    rest: Duration,
    /// When the last search that did not start at the beginning started; `None` if a search from the beginning started
    /// after it and has ended.
    owed: Option<Instant>,
    /// Whether [`owed`](Frontier::owed) has reported this to a caller already.
    told: bool,
}

/// A search for the first waiting entry.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The search covers entries that are due at this time or later.
    pub since: DateTime<Utc>,
    whole: bool,
    now: DateTime<Utc>,
    began: Instant,
}

impl Look {
    /// Whether the search covers all entries. Such searches are rare.
    pub fn is_whole(&self) -> bool {
        self.whole
    }
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
    /// Start a search. `now` is the time for due times; `began` is by the monotonic clock.
    pub fn look(&self, now: DateTime<Utc>, began: Instant) -> Look {
        let mut known = self.known();
        let whole = known.next.is_none_or(|next| next <= began);
        if whole {
            // Other callers that search meanwhile do not search from the beginning too.
            known.next = Some(began + known.rest);
        } else {
            known.owed = Some(began);
            known.told = false;
        }
        let since = if whole { BEGINNING } else { known.before(now) };
        Look { since, whole, now, began }
    }

    /// Record the result of a search: when the first entry is due. Returns that result.
    ///
    /// # Errors
    /// Those of the search.
    pub fn learn(
        &self,
        look: Look,
        first: Result<Option<DateTime<Utc>>>,
        ended: Instant,
    ) -> Result<Option<DateTime<Utc>>> {
        match &first {
            Ok(first) => self.found(look, *first, ended),
            Err(error) if error.took_too_long() => self.gave_up(look, ended),
            // A failed search says nothing about the cost of the next one.
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
            // A search from the beginning that ended later has seen more.
            return;
        }
        known.since = first.map_or(look.now, |first| first.min(look.now)) - MARGIN;
    }

    /// Record that a search took too long. The next searches start near the present, so that at least new entries are
    /// processed.
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

    /// The start time for another search for an entry that a search has already found.
    pub fn since(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        self.known().before(now)
    }

    /// How long until a search from the beginning may start, if there was none since the last search of another kind.
    /// Only one caller gets an answer: if all of them came back at once, one would search from the beginning, and the
    /// others would owe another search.
    pub fn owed(&self, now: Instant) -> Option<Duration> {
        let mut known = self.known();
        known.owed?;
        if std::mem::replace(&mut known.told, true) {
            return None;
        }
        Some(known.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now)))
    }

    /// A panic under this lock leaves no inconsistent state.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Where a search starts, even if the clock was set back.
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

    /// A frontier after a search that took 10 ms and found the first delivery, due at `NOW`; and when that search
    /// ended.
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
        assert_ne!(meanwhile.since, BEGINNING, "only one search starts at the beginning");
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
        assert_eq!(frontier.since(due(303)), due(-5000) - MARGIN, "the other search has seen more");
    }

    #[test]
    fn it_is_never_later_than_now_less_the_margin() {
        let (frontier, ended) = after_a_look();
        frontier.found(frontier.look(due(1), ended + ms(1)), Some(due(60_000)), ended + ms(2));
        assert_eq!(frontier.since(due(90_000)), due(1) - MARGIN, "new entries are due before that");
        assert_eq!(frontier.since(due(-3_600_000)), due(-3_600_000) - MARGIN, "the clock was set back");
    }

    #[test]
    fn after_a_look_that_took_too_long_what_comes_now_is_found_at_least() {
        let (frontier, began) = (Frontier::default(), Instant::now());
        frontier.gave_up(frontier.look(NOW, began), began + ms(3000));
        assert_eq!(frontier.look(due(3000), began + ms(3000)).since, NOW - MARGIN);
        assert_eq!(frontier.owed(began + ms(3000)), Some(ms(90_000)));
    }
}
