//! A circuit breaker per sink: it stops deliveries while the sink is down. After five failures in a row it opens: only one probe
//! at a time may claim a message, after waits that grow from a second to five minutes. So an outage uses up no attempts of a
//! message.
//!
//! Callers pass in the time. Only failures of the sink count: a permanent refusal of a message is an answer.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::TimeDelta;
use metrics::gauge;
use tokio::time::Instant;

use super::locked;
use crate::{sync::retry::Retry, telemetry};

/// Failures in a row before it opens.
const FAILURES: u32 = 5;

/// The waits before probes.
const WAITS: Retry =
    Retry { max_attempts: u32::MAX, first: TimeDelta::seconds(1), longest: TimeDelta::minutes(5) };

#[derive(Debug)]
pub(super) struct Breaker {
    sink: String,
    /// Failures in a row.
    failures: u32,
    /// How many waits have started since it opened; 0: closed.
    waits: u32,
    /// No pass is issued before this time.
    until: Option<Instant>,
    /// Whether a probe is under way.
    probing: bool,
}

/// The right to try the sink once. A pass that is dropped without a result counts as unused.
#[derive(Debug)]
pub(super) struct Pass {
    breaker: Arc<Mutex<Breaker>>,
    probe: bool,
}

impl Breaker {
    pub(super) fn new(sink: &str) -> Self {
        Self { sink: sink.to_owned(), failures: 0, waits: 0, until: None, probing: false }
    }

    /// `None` while the breaker is open.
    pub(super) fn enter(breaker: &Arc<Mutex<Self>>, now: Instant) -> Option<Pass> {
        let mut this = locked(breaker);
        if this.until.is_some_and(|until| now < until) || this.probing {
            return None;
        }
        let probe = this.waits > 0;
        this.probing = probe;
        drop(this);
        Some(Pass { breaker: Arc::clone(breaker), probe })
    }

    fn answered(&mut self) {
        if self.waits > 0 {
            tracing::info!(sink = self.sink, "the sink answers again");
            self.show(true);
        }
        self.failures = 0;
        self.waits = 0;
        self.until = None;
    }

    fn failed(&mut self, probe: bool, now: Instant, hold: Option<Duration>, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        // Attempts already in progress when it opened say nothing new.
        let opens = self.waits == 0 && self.failures >= FAILURES;
        if opens {
            tracing::warn!(
                sink = self.sink,
                reason,
                "the sink is down: deliveries are paused, and it is probed from time to time"
            );
            self.show(false);
        }
        if opens || probe {
            self.waits = self.waits.saturating_add(1);
            let wait = WAITS.wait(self.waits, &self.sink);
            self.hold(now, wait.to_std().unwrap_or_default());
        }
        if let Some(hold) = hold {
            self.hold(now, hold);
        }
    }

    /// Report in the metrics whether deliveries to the sink are open.
    pub(super) fn show(&self, up: bool) {
        gauge!(telemetry::SINK_UP, "sink" => self.sink.clone()).set(f64::from(up));
    }

    fn hold(&mut self, now: Instant, wait: Duration) {
        self.until = self.until.max(Some(now + wait));
    }
}

impl Pass {
    pub(super) fn is_probe(&self) -> bool {
        self.probe
    }

    /// The sink answered, whether or not it took the message.
    pub(super) fn answered(&mut self) {
        locked(&self.breaker).answered();
    }

    /// The sink failed, and may have asked for a pause.
    pub(super) fn failed(&mut self, now: Instant, hold: Option<Duration>, reason: &str) {
        locked(&self.breaker).failed(self.probe, now, hold, reason);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.probe {
            locked(&self.breaker).probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(5);

    fn breaker() -> Arc<Mutex<Breaker>> {
        Arc::new(Mutex::new(Breaker::new("crm")))
    }

    fn fail(breaker: &Arc<Mutex<Breaker>>, now: Instant) {
        Breaker::enter(breaker, now).expect("it may be tried").failed(now, None, "500");
    }

    fn open(now: Instant) -> Arc<Mutex<Breaker>> {
        let breaker = breaker();
        for _ in 0..FAILURES {
            fail(&breaker, now);
        }
        breaker
    }

    #[test]
    fn it_opens_after_five_failures_in_a_row_and_then_lets_one_probe_pass_at_a_time() {
        let now = Instant::now();
        let breaker = open(now);
        assert!(Breaker::enter(&breaker, now).is_none());
        let later = now + LONG;
        let probe = Breaker::enter(&breaker, later).expect("a probe");
        assert!(probe.is_probe());
        assert!(Breaker::enter(&breaker, later).is_none(), "one at a time");
        drop(probe);
        assert!(Breaker::enter(&breaker, later).is_some(), "the probe was not used");
    }

    #[test]
    fn an_answer_between_failures_keeps_it_closed() {
        let now = Instant::now();
        let breaker = breaker();
        for _ in 0..3 {
            for _ in 1..FAILURES {
                fail(&breaker, now);
            }
            Breaker::enter(&breaker, now).expect("closed").answered();
        }
        assert!(!Breaker::enter(&breaker, now).expect("closed").is_probe());
    }

    #[test]
    fn a_probe_that_is_answered_closes_it() {
        let now = Instant::now();
        let breaker = open(now);
        Breaker::enter(&breaker, now + LONG).expect("a probe").answered();
        assert!(!Breaker::enter(&breaker, now + LONG).expect("closed").is_probe());
        // The breaker needs five failures to open again.
        fail(&breaker, now + LONG);
        assert!(Breaker::enter(&breaker, now + LONG).is_some());
    }

    #[test]
    fn probes_that_fail_come_at_least_every_five_minutes() {
        let mut now = Instant::now();
        let breaker = open(now);
        let mut waits = Vec::new();
        for _ in 0..50 {
            let next = locked(&breaker).until.expect("open");
            waits.push(next - now);
            now = next;
            fail(&breaker, now);
        }
        assert!(waits.iter().all(|wait| *wait <= LONG), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait > LONG / 2), "{waits:?}");
        assert!(waits[0] <= Duration::from_secs(1), "{waits:?}");
    }

    #[test]
    fn a_sink_that_asks_to_be_left_alone_is_left_alone() {
        let now = Instant::now();
        let breaker = breaker();
        let wait = Duration::from_secs(7);
        Breaker::enter(&breaker, now).expect("closed").failed(now, Some(wait), "429");
        assert!(Breaker::enter(&breaker, now + wait - Duration::from_millis(1)).is_none());
        assert!(Breaker::enter(&breaker, now + wait).is_some());
    }
}
