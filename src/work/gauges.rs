//! Row counts and ages for the metrics, computed only when a client requests the metrics.
//!
//! Counting a long queue is slow, so it may use only a small share of the time. With `IDLE=quiet`, a new count waits until
//! clerk-sync has seen activity.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use metrics::gauge;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{patient, time_between};
use crate::{
    model::{Idle, Receipt},
    store::{Store, StoreError},
    stream::Stream,
    sync::{Clock, chain::UNSEALED_COUNTED},
    telemetry,
};

/// How long a count stays fresh.
const FRESH: Duration = Duration::from_secs(2);

/// Counting takes at most a tenth of the time: after a count, nothing is counted for this many times its duration.
const SHARE: u32 = 10;

/// How often we measure the size of the database.
const MEASURE: Duration = Duration::from_mins(1);

/// The longest wait of a metrics request. A count that finishes later appears in the next one.
const WAIT: Duration = Duration::from_secs(3);

/// Counts for the metrics.
pub struct Gauges {
    store: Arc<dyn Store>,
    stream: Option<Stream>,
    clock: Clock,
    idle: Idle,
    /// Whether anything may have changed since the last count.
    disturbed: AtomicBool,
    known: Mutex<Known>,
}

/// The latest results.
struct Known {
    count_at: Instant,
    measure_at: Instant,
    /// Sinks in the metrics, each with the time of its oldest waiting message.
    sinks: BTreeMap<String, Option<DateTime<Utc>>>,
    /// Destinations of erasures in the metrics.
    destinations: BTreeSet<String>,
    first_due: Option<DateTime<Utc>>,
    oldest_entry: Option<DateTime<Utc>>,
    oldest_erasure: Option<DateTime<Utc>>,
    unsealed_since: Option<DateTime<Utc>>,
}

impl Gauges {
    /// Create the gauges for this store, and for at least these sinks.
    pub fn new(store: Arc<dyn Store>, clock: Clock, idle: Idle, sinks: &[String]) -> Self {
        let now = Instant::now();
        let known = Known {
            count_at: now,
            measure_at: now,
            sinks: sinks.iter().map(|sink| (sink.clone(), None)).collect(),
            destinations: BTreeSet::from([Receipt::DATABASE.to_owned()]),
            first_due: None,
            oldest_entry: None,
            oldest_erasure: None,
            unsealed_since: None,
        };
        let (disturbed, known) = (AtomicBool::new(true), Mutex::new(known));
        Self { store, stream: None, clock, idle, disturbed, known }
    }

    /// Also count this stream.
    #[must_use]
    pub fn with(self, stream: Option<Stream>) -> Self {
        Self { stream, ..self }
    }

    /// Note that something has happened.
    pub fn disturb(&self) {
        self.disturbed.store(true, Ordering::Relaxed);
    }

    /// Count, unless the last count is fresh, and update the ages. The caller waits for at most `WAIT`; counting continues if the
    /// caller stops waiting.
    pub async fn refresh(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let counting = tokio::spawn(async move { this.count().await });
        _ = timeout(WAIT, counting).await;
    }

    async fn count(&self) {
        let mut known = self.known.lock().await;
        let began = Instant::now();
        if known.count_at <= began && self.is_worth_it() {
            self.count_stream(&mut known).await;
            let counted = self.count_all(&mut known).await;
            let mut rest = FRESH;
            match counted {
                Ok(()) => rest = rest.max(began.elapsed() * SHARE),
                Err(error) => {
                    self.disturb();
                    tracing::warn!(%error, "waiting work could not be counted for the metrics");
                }
            }
            known.count_at = Instant::now() + rest;
        }
        // Ages grow even while no count runs.
        let now = (self.clock)();
        let age =
            |since: Option<DateTime<Utc>>| since.map_or(0.0, |since| time_between(since, now).as_secs_f64());
        gauge!(telemetry::QUEUE_OLDEST).set(age(known.first_due));
        if self.stream.is_some() {
            gauge!(telemetry::STREAM_OLDEST).set(age(known.oldest_entry));
        }
        gauge!(telemetry::ERASURE_OLDEST).set(age(known.oldest_erasure));
        gauge!(telemetry::AUDIT_UNSEALED_OLDEST).set(age(known.unsealed_since));
        for (sink, oldest) in &known.sinks {
            gauge!(telemetry::OUTBOX_OLDEST, "sink" => sink.clone()).set(age(*oldest));
        }
    }

    fn is_worth_it(&self) -> bool {
        // Reset it first, so that changes during the count are not missed.
        let disturbed = self.disturbed.swap(false, Ordering::Relaxed);
        disturbed || self.idle == Idle::Normal
    }

    async fn count_all(&self, known: &mut Known) -> Result<(), StoreError> {
        let queue = patient(self.store.queue_depth()).await?;
        for (state, count) in [("pending", queue.pending), ("dead", queue.dead)] {
            gauge!(telemetry::QUEUE_DEPTH, "state" => state).set(telemetry::number(count));
        }
        known.first_due = queue.first_due;
        self.count_outbox(known).await?;
        self.count_erasures(known).await?;
        let unsealed = patient(self.store.unsealed(UNSEALED_COUNTED)).await?;
        gauge!(telemetry::AUDIT_UNSEALED).set(telemetry::number(unsealed.lines));
        known.unsealed_since = unsealed.since;
        let now = Instant::now();
        if known.measure_at <= now {
            let space = patient(self.store.space()).await?;
            gauge!(telemetry::DATABASE_SIZE).set(telemetry::number(space.taken));
            if let Some(free) = space.free {
                gauge!(telemetry::DISK_FREE).set(telemetry::number(free));
            }
            known.measure_at = now + MEASURE;
        }
        Ok(())
    }

    async fn count_stream(&self, known: &mut Known) {
        let Some(stream) = &self.stream else { return };
        match stream.depth().await {
            Ok(depth) => {
                gauge!(telemetry::STREAM_DEPTH).set(telemetry::number(depth.entries));
                known.oldest_entry = depth.oldest;
            }
            Err(error) => tracing::warn!(%error, "stream entries could not be counted for the metrics"),
        }
    }

    async fn count_outbox(&self, known: &mut Known) -> Result<(), StoreError> {
        let depths = patient(self.store.outbox_depth()).await?;
        for depth in &depths {
            if known.sinks.insert(depth.sink.clone(), depth.oldest).is_none() {
                let (sink, waiting) = (&depth.sink, depth.pending + depth.dead);
                tracing::warn!(sink, waiting, "messages are waiting for a sink that is not configured here");
            }
        }
        for (sink, oldest) in &mut known.sinks {
            // A sink with no waiting messages is missing from the result.
            let depth = depths.iter().find(|depth| depth.sink == *sink);
            let (pending, dead) = depth.map_or((0, 0), |depth| (depth.pending, depth.dead));
            for (state, count) in [("pending", pending), ("dead", dead)] {
                gauge!(telemetry::OUTBOX_DEPTH, "sink" => sink.clone(), "state" => state)
                    .set(telemetry::number(count));
            }
            *oldest = depth.and_then(|depth| depth.oldest);
        }
        Ok(())
    }

    async fn count_erasures(&self, known: &mut Known) -> Result<(), StoreError> {
        let open = patient(self.store.open_erasures()).await?;
        known.destinations.extend(open.iter().map(|open| open.destination.clone()));
        for destination in &known.destinations {
            let receipts = open.iter().find(|open| open.destination == *destination);
            let count = receipts.map_or(0, |open| open.receipts);
            gauge!(telemetry::ERASURES_OPEN, "destination" => destination.clone())
                .set(telemetry::number(count));
        }
        let oldest = open.iter().map(|open| open.oldest).min();
        known.oldest_erasure = oldest;
        Ok(())
    }
}
