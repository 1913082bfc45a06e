//! Whether deliveries, messages and erasures get on: the one judge of what waits, for the dashboard and for `doctor`, which
//! have words of their own for it.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    model::Receipt,
    store::{OpenErasures, QueueDepth, Result as Stored, SinkDepth, Store},
};

/// All that waits.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    pub queue: QueueDepth,
    pub sinks: Vec<SinkDepth>,
    /// Sinks that an operator paused, and since when.
    pub paused: Vec<(String, DateTime<Utc>)>,
    pub erasures: Vec<OpenErasures>,
}

/// How long something may wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For how long a delivery may have been due.
    pub delivery: TimeDelta,
    /// How old a message may be that still waits.
    pub message: TimeDelta,
    /// How long an erasure may go without being confirmed.
    pub erasure: TimeDelta,
}

/// Of somebody who looks at the dashboard: what does not move is told at once, an erasure when the law's month is over.
pub const WATCHING: Patience = Patience {
    delivery: TimeDelta::minutes(1),
    message: TimeDelta::minutes(1),
    erasure: TimeDelta::days(30),
};

/// Of an alarm, as for `ClerkSyncQueueLate`, `ClerkSyncMessagesLate` and `ClerkSyncErasureSlow`.
pub const ALARM: Patience =
    Patience { delivery: TimeDelta::minutes(5), message: TimeDelta::hours(6), erasure: TimeDelta::days(7) };

impl Backlog {
    /// Count it; that takes long where much is left.
    ///
    /// # Errors
    /// If the database is not available.
    pub async fn look(store: &dyn Store) -> Stored<Self> {
        Ok(Self {
            queue: store.queue_depth().await?,
            sinks: store.outbox_depth().await?,
            paused: store.paused_sinks().await?,
            erasures: store.open_erasures().await?,
        })
    }

    /// For how long the first delivery has been due, if that is too long.
    pub fn late(&self, now: DateTime<Utc>, patience: Patience) -> Option<TimeDelta> {
        self.queue.first_due.map(|due| now - due).filter(|late| *late > patience.delivery)
    }

    /// Sinks with dead messages, those that are behind, and those that are paused, with for how long they are.
    pub fn held_up(&self, now: DateTime<Utc>, patience: Patience) -> Vec<(SinkDepth, Option<TimeDelta>)> {
        // Of a paused sink that nothing waits for nothing else is known.
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

    /// Where erasures are not confirmed that were asked for too long ago.
    pub fn overdue(&self, now: DateTime<Utc>, patience: Patience) -> Vec<&OpenErasures> {
        self.erasures.iter().filter(|open| now - open.oldest > patience.erasure).collect()
    }

    /// Whether our own database refuses an erasure, which does not come right by waiting.
    pub fn is_refused(&self) -> bool {
        self.erasures.iter().any(|open| open.destination == Receipt::DATABASE)
    }
}
