//! Values that are read once for all concurrent callers.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use crate::{http::error::Problem, telemetry};

/// The longest time that a reading is used: a slow reading may only have had to wait.
const LONGEST: Duration = Duration::from_mins(1);

/// A value that one caller reads for all.
pub(super) struct Glance<T> {
    last: Arc<Mutex<Option<Reading<T>>>>,
    /// How long a reading is used, at least.
    fresh: Duration,
    /// A slow reading is used for this many times as long as it took, which limits the share of time spent reading.
    sparing: u32,
}

struct Reading<T> {
    found: Result<T, Problem>,
    good_until: Instant,
}

impl<T: Clone + Send + 'static> Glance<T> {
    pub(super) fn new(fresh: Duration, sparing: u32) -> Self {
        Self { last: Arc::default(), fresh, sparing }
    }

    /// The latest reading if it is recent, even a failed one; else a new one. Callers that arrive meanwhile share the same
    /// reading, which finishes even if all of them hang up.
    pub(super) async fn take(
        &self,
        read: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        let (fresh, sparing) = (self.fresh, self.sparing);
        if let Some(last) = last.as_ref().filter(|last| Instant::now() < last.good_until) {
            return last.found.clone();
        }
        let reading = tokio::spawn(telemetry::Request::inherit(async move {
            let began = Instant::now();
            let found = read.await;
            // A failed reading is used only briefly.
            let spared = (began.elapsed() * sparing).min(LONGEST);
            let good_for = if found.is_ok() { fresh.max(spared) } else { fresh };
            *last = Some(Reading { found: found.clone(), good_until: Instant::now() + good_for });
            found
        }));
        // A panic is in the log.
        reading.await.unwrap_or(Err(Problem::Internal))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::time::{sleep, timeout};

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    /// A slow reading that counts itself.
    async fn slow(readings: Arc<AtomicUsize>) -> Result<usize, Problem> {
        sleep(Duration::from_millis(100)).await;
        Ok(readings.fetch_add(1, SeqCst) + 1)
    }

    #[tokio::test]
    async fn whoever_looks_at_the_same_moment_shares_one_reading() {
        let (glance, readings) = (Arc::new(Glance::new(HOUR, 0)), Arc::<AtomicUsize>::default());
        let look = || {
            let (glance, readings) = (Arc::clone(&glance), Arc::clone(&readings));
            tokio::spawn(async move { glance.take(slow(readings)).await })
        };
        for one in (0..100).map(|_| look()).collect::<Vec<_>>() {
            assert_eq!(one.await.expect("no panic"), Ok(1));
        }
    }

    #[tokio::test]
    async fn a_reading_is_not_good_for_ever_but_longer_if_it_was_slow() {
        let (glance, readings) = (Glance::new(Duration::ZERO, 100), Arc::<AtomicUsize>::default());
        assert_eq!(glance.take(slow(Arc::clone(&readings))).await, Ok(1));
        assert_eq!(glance.take(slow(Arc::clone(&readings))).await, Ok(1));
        let glance = Glance::new(Duration::ZERO, 0);
        assert_eq!(glance.take(slow(Arc::clone(&readings))).await, Ok(2));
        assert_eq!(glance.take(slow(readings)).await, Ok(3));
    }

    #[tokio::test]
    async fn a_reading_outlives_who_began_it() {
        let (glance, readings) = (Glance::new(HOUR, 0), Arc::<AtomicUsize>::default());
        let hurried = timeout(Duration::from_millis(20), glance.take(slow(Arc::clone(&readings))));
        assert!(hurried.await.is_err());
        assert_eq!(glance.take(slow(readings)).await, Ok(1));
    }

    #[tokio::test]
    async fn what_was_slow_and_in_vain_is_read_again_soon() {
        let glance = Glance::new(Duration::ZERO, 100);
        let in_vain = async {
            sleep(Duration::from_millis(100)).await;
            Err(Problem::Overloaded)
        };
        assert_eq!(glance.take(in_vain).await, Err(Problem::Overloaded));
        assert_eq!(glance.take(async { Ok(1) }).await, Ok(1));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_asked_for_by_everybody() {
        let glance = Glance::<()>::new(HOUR, 0);
        assert_eq!(
            glance.take(async { Err(Problem::DatabaseUnavailable) }).await,
            Err(Problem::DatabaseUnavailable)
        );
        assert_eq!(glance.take(async { Ok(()) }).await, Err(Problem::DatabaseUnavailable));
    }
}
