//! Answer counts per minute, shared by all replicas, so that a dashboard shows more than this process has seen.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use super::{
    patient,
    worker::{Task, Turn},
};
use crate::store::{Activity, Store, StoreError, WITHIN};

/// How often this process adds its counts to those of the other replicas.
const EVERY: Duration = Duration::from_secs(2);

/// The maximum number of entries kept while the database is unavailable, enough for about a day. Further entries are not counted.
const KEPT: usize = 24 * 60 * 8;

/// The minute, the event type, the outcome, and the reason.
type Counted = (DateTime<Utc>, &'static str, &'static str, &'static str);

/// The time of the latest answer, the number of answers, and how many of them took no longer than each bound.
type Counts = (DateTime<Utc>, u64, [u64; WITHIN.len()]);

/// Holds counts until they are stored in the database. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<Mutex<Unwritten>>);

#[derive(Debug, Default)]
struct Unwritten {
    counting: HashMap<Counted, Counts>,
    /// Being written to the database.
    writing: HashMap<Counted, Counts>,
}

impl Answers {
    /// Count one answer.
    pub fn count(
        &self,
        now: DateTime<Utc>,
        event: &'static str,
        outcome: &'static str,
        reason: &'static str,
        duration: Duration,
    ) {
        let minute = now.duration_trunc(TimeDelta::minutes(1)).unwrap_or(now);
        let mut within = [0; WITHIN.len()];
        for (within, milliseconds) in within.iter_mut().zip(WITHIN) {
            *within = u64::from(duration <= Duration::from_millis(milliseconds.into()));
        }
        self.with(|unwritten| {
            add(&mut unwritten.counting, (minute, event, outcome, reason), (now, 1, within));
        });
    }

    /// Counts that the database does not have yet. While the database is locked or full, only these show what fails.
    pub fn unwritten(&self) -> Vec<Activity> {
        self.with(|unwritten| unwritten.counting.iter().chain(&unwritten.writing).map(activity).collect())
    }

    fn begin_writing(&self) -> Vec<Activity> {
        self.with(|unwritten| {
            unwritten.writing = std::mem::take(&mut unwritten.counting);
            unwritten.writing.iter().map(activity).collect()
        })
    }

    /// Counts that could not be written are counted again.
    fn end_writing(&self, written: bool) {
        self.with(|unwritten| {
            for (kind, counts) in std::mem::take(&mut unwritten.writing) {
                if !written {
                    add(&mut unwritten.counting, kind, counts);
                }
            }
        });
    }

    fn with<T>(&self, what: impl FnOnce(&mut Unwritten) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn add(counts: &mut HashMap<Counted, Counts>, kind: Counted, (latest, count, within): Counts) {
    if counts.len() >= KEPT && !counts.contains_key(&kind) {
        return;
    }
    let sum = counts.entry(kind).or_insert((latest, 0, [0; WITHIN.len()]));
    sum.0 = sum.0.max(latest);
    sum.1 += count;
    for (sum, within) in sum.2.iter_mut().zip(within) {
        *sum += within;
    }
}

fn activity((kind, counts): (&Counted, &Counts)) -> Activity {
    let (at, event, outcome, reason) = *kind;
    let (latest, count, within) = *counts;
    Activity {
        at,
        event: event.to_owned(),
        outcome: outcome.to_owned(),
        reason: reason.to_owned(),
        latest,
        count,
        within,
    }
}

/// The task that stores counts in the database.
pub struct Recorder {
    pub store: Arc<dyn Store>,
    pub answers: Answers,
}

#[async_trait]
impl Task for Recorder {
    fn name(&self) -> &'static str {
        "activity"
    }

    /// Counts that cannot be stored now are counted again. If only the reply to a commit is lost, they count twice; counts may be
    /// inexact.
    async fn turn(&self) -> Result<Turn, StoreError> {
        let counted = self.answers.begin_writing();
        if counted.is_empty() {
            return Ok(Turn::Idle);
        }
        let result = patient(self.store.add_activity(&counted)).await;
        self.answers.end_writing(result.is_ok());
        result.map(|()| Turn::Idle)
    }

    async fn next(&self) -> Result<Option<Duration>, StoreError> {
        Ok(Some(EVERY))
    }

    async fn stop(&self) {
        _ = self.turn().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_one_minute_are_counted_together_by_how_long_they_took() {
        let answers = Answers::default();
        let at = |second| DateTime::from_timestamp(1_767_225_600_i64 + second, 0).expect("a time");
        for (second, milliseconds) in [(0, 3), (59, 5), (30, 400), (60, 12_000)] {
            let took = Duration::from_millis(milliseconds);
            answers.count(at(second), "user.created", "applied", "", took);
        }
        let mut counted = answers.begin_writing();
        counted.sort_by_key(|activity| activity.at);
        let of = |index: usize| {
            let Activity { at, latest, count, within, .. } = &counted[index];
            (*at, *latest, *count, *within)
        };
        assert_eq!(of(0), (at(0), at(59), 3, [2, 2, 2, 3, 3, 3]));
        assert_eq!(of(1), (at(60), at(60), 1, [0; 6]));
        assert_eq!(answers.unwritten().len(), 2, "still known while it is written");
        answers.end_writing(false);
        assert_eq!(answers.begin_writing().len(), 2, "not lost");
        answers.end_writing(true);
        assert_eq!(answers.unwritten(), []);
    }
}
