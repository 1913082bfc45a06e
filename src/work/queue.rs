//! The task that works on the delivery queue: one turn handles one transaction's worth of due deliveries.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use metrics::counter;
use tokio::time::Instant;

use super::{
    patient, time_between,
    worker::{Task, Turn},
};
use crate::{
    clerk::event,
    model::Outcome,
    store::{ErrorKind, Store, StoreError},
    sync::{Clock, Frontier, Pace, Rules, drain, drain::Worked, retry::due_at},
    telemetry,
};

/// How long a turn may take, including the search for a delivery that breaks its batch. Shutdown waits for the turn.
const TURN: Duration = Duration::from_secs(7);

/// Applies deliveries that wait in `webhook_queue`.
pub struct Queue {
    pub store: Arc<dyn Store>,
    pub rules: Rules,
    pub clock: Clock,
    /// How many deliveries one turn handles.
    pub pace: Pace,
    /// The time from which due deliveries are searched.
    pub frontier: Frontier,
}

#[async_trait]
impl Task for Queue {
    fn name(&self) -> &'static str {
        "queue"
    }

    async fn turn(&self) -> Result<Turn, StoreError> {
        let deadline = Instant::now() + TURN;
        let now = (self.clock)();
        let drained = drain(&*self.store, &self.rules, now, deadline, &self.pace, &self.frontier).await;
        for worked in &drained.deliveries {
            tell(worked);
        }
        match drained.trouble {
            Some(error) => {
                if matches!(error.kind, ErrorKind::Broken | ErrorKind::Schema) {
                    tracing::error!(%error, "the database rejects clerk-sync's statements, so the queue waits");
                }
                Err(error)
            }
            None if drained.deliveries.is_empty() => Ok(Turn::Idle),
            None => Ok(Turn::More),
        }
    }

    async fn next(&self) -> Result<Option<Duration>, StoreError> {
        let due = patient(self.store.first_due(self.frontier.since((self.clock)()))).await?;
        let now = (self.clock)();
        let left = due.map(|at| time_between(now, due_at(at, now)));
        Ok([left, self.frontier.owed(Instant::now())].into_iter().flatten().min())
    }
}

/// Count the result and log it, except a failure, which is in the log already.
pub(super) fn tell(worked: &Worked) {
    let Worked { svix_id, event_type, attempt, outcome } = worked;
    let kind = event::kind(event::label(event_type.as_deref()));
    counter!(telemetry::QUEUE_PROCESSED, "outcome" => outcome.name(), "kind" => kind).increment(1);
    if *outcome != Outcome::Parked {
        tracing::info!(%svix_id, event = event_type, %outcome, attempt, "a queued delivery was processed");
    }
}
