//! Whether deliveries, messages and erasures make progress. The dashboard and `doctor` both judge waiting work by these rules,
//! each in its own wording.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    model::Receipt,
    store::{OpenErasures, QueueDepth, Result as Stored, SinkDepth, Store},
};

/// All waiting work.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    pub queue: QueueDepth,
    pub sinks: Vec<SinkDepth>,
    /// Sinks that an operator paused, each with the time of the pause.
    pub paused: Vec<(String, DateTime<Utc>)>,
    pub erasures: Vec<OpenErasures>,
}

/// How long work may wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest time that a delivery may be overdue.
    pub delivery: TimeDelta,
    /// The greatest age of a waiting message.
    pub message: TimeDelta,
    /// The longest time that an erasure may stay unconfirmed.
    pub erasure: TimeDelta,
}

/// For the dashboard: stuck work shows after a minute, an unconfirmed erasure after the month that the law allows.
pub const WATCHING: Patience = Patience {
    delivery: TimeDelta::minutes(1),
    message: TimeDelta::minutes(1),
    erasure: TimeDelta::days(30),
};

/// For alerts, as in `ClerkSyncQueueLate`, `ClerkSyncMessagesLate` and `ClerkSyncErasureSlow`.
pub const ALARM: Patience =
    Patience { delivery: TimeDelta::minutes(5), message: TimeDelta::hours(6), erasure: TimeDelta::days(7) };

impl Backlog {
    /// Count the waiting work; slow if there is a lot of it.
    ///
    /// # Errors
    /// If the database is unavailable.
    pub async fn look(store: &dyn Store) -> Stored<Self> {
        Ok(Self {
            queue: store.queue_depth().await?,
            sinks: store.outbox_depth().await?,
            paused: store.paused_sinks().await?,
            erasures: store.open_erasures().await?,
        })
    }

    /// How long the first delivery has been overdue, if that is too long.
    pub fn late(&self, now: DateTime<Utc>, patience: Patience) -> Option<TimeDelta> {
        self.queue.first_due.map(|due| now - due).filter(|late| *late > patience.delivery)
    }

    /// Sinks that are paused, late, or have dead messages. The duration is the time since the pause.
    pub fn held_up(&self, now: DateTime<Utc>, patience: Patience) -> Vec<(SinkDepth, Option<TimeDelta>)> {
        // A paused sink without messages has no depth of its own.
        let others = self.paused.iter().filter(|(name, _)| self.sinks.iter().all(|sink| sink.sink != *name));
        let others =
            others.map(|(sink, _)| SinkDepth { sink: sink.clone(), pending: 0, dead: 0, oldest: None });
        let all = self.sinks.iter().cloned().chain(others).map(|depth| {
            let paused =
                self.paused.iter().find(|(sink, _)| *sink == depth.sink).map(|(_, since)| now - *since);
            (depth, paused)
        });
        let is_behind =
            |depth: &SinkDepth| depth.oldest.is_some_and(|oldest| now - oldest > patience.message);
        all.filter(|(depth, paused)| depth.dead > 0 || paused.is_some() || is_behind(depth)).collect()
    }

    /// Destinations with erasures that have been unconfirmed for too long.
    pub fn overdue(&self, now: DateTime<Utc>, patience: Patience) -> Vec<&OpenErasures> {
        self.erasures.iter().filter(|open| now - open.oldest > patience.erasure).collect()
    }

    /// Whether clerk-sync's own database rejects an erasure, which waiting does not fix.
    pub fn is_refused(&self) -> bool {
        self.erasures.iter().any(|open| open.destination == Receipt::DATABASE)
    }
}
