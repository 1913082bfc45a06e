//! Webhooks in the stream: a receiver appends them, and a worker applies them.
//!
//! The worker applies an entry like a webhook without a waiting sender. An entry is finished once the database has it,
//! applied or kept in `webhook_queue`; until then it stays in the stream. A failed transaction cannot commit anything,
//! so the deliveries that made it fail are kept by a later transaction. The worker also checks the Clerk instance,
//! because the receiver may have had no database to ask.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{Rules, apply::apply, drain::Worked, enqueue::keep, instance::Gate};
use crate::{
    clerk::{event, signature::Verified},
    model::{Content, Delivery, Outcome, SvixId},
    store::{ErrorKind, Result, Store, StoreError},
    stream::{Entry, Producer, StreamError},
    telemetry::{Queue, Span},
};

/// How long keeping the failed deliveries may take.
const KEEP_WITHIN: Duration = Duration::from_secs(2);

/// Append verified webhooks to the stream.
pub(super) async fn append(
    producer: &mut Producer,
    batch: &mut [Delivery],
) -> std::result::Result<(), StreamError> {
    let mut spans = Vec::with_capacity(batch.len());
    for delivery in &mut *batch {
        let svix_id = delivery.svix_id.as_ref().map_or("", SvixId::as_str);
        let span = Span::send(Queue::Stream, svix_id, delivery.event_type.as_deref(), &delivery.trace);
        delivery.trace = span.context();
        spans.push(span);
    }
    producer.put(batch).await?;
    for span in spans {
        span.done(Outcome::Queued.name());
    }
    Ok(())
}

/// What a worker needs to process entries of the stream.
pub struct Intake {
    pub store: Arc<dyn Store>,
    /// With `PROCESSING=inline`, so that kept deliveries count as parked and not as queued.
    pub rules: Rules,
    pub gate: Arc<Gate>,
    /// Notified when a delivery was kept in `webhook_queue`.
    pub bell: Arc<Notify>,
}

/// The result of one turn.
#[derive(Default)]
pub struct TakenIn {
    /// The ids of the finished entries.
    pub finished: Vec<String>,
    pub worked: Vec<Worked>,
    /// Entries that wait for the database. The stream delivers the other failed entries again later, so that they do
    /// not delay those behind them.
    pub left: Vec<Entry>,
    pub trouble: Option<StoreError>,
}

impl TakenIn {
    fn failed(&mut self, entry: Entry, error: StoreError) {
        if error.kind == ErrorKind::Unavailable {
            self.left.push(entry);
        }
        self.trouble = Some(error);
    }
}

impl Intake {
    /// Apply entries, and return which are finished.
    pub async fn take_in(&self, entries: Vec<Entry>, now: DateTime<Utc>, deadline: Instant) -> TakenIn {
        let (mut taken_in, mut deliveries, mut others) = (TakenIn::default(), Vec::new(), Vec::new());
        for entry in entries {
            match self.understood(&entry, deadline).await {
                Ok((delivery, span)) => {
                    deliveries.push(delivery);
                    others.push((entry, span));
                }
                Err(error) => taken_in.failed(entry, error),
            }
        }
        let mut results = apply(&*self.store, &deliveries, &self.rules, now, deadline).await;
        self.keep_failed(&deliveries, &mut results, now, deadline).await;
        for ((delivery, (entry, span)), result) in deliveries.into_iter().zip(others).zip(results) {
            match result {
                Ok(outcome) => {
                    span.done(outcome.name());
                    if outcome == Outcome::Parked {
                        self.bell.notify_one();
                    }
                    let (svix_id, event_type) = (entry.svix_id, delivery.event_type);
                    taken_in.worked.push(Worked { svix_id, event_type, attempt: 1, outcome });
                    taken_in.finished.push(entry.id);
                }
                Err(error) => {
                    span.failed(error.code_or_kind());
                    taken_in.failed(entry, error);
                }
            }
        }
        taken_in
    }

    /// Parse an entry as of the time it arrived. An event of another instance than the stored users' is kept as a dead
    /// letter.
    async fn understood(&self, entry: &Entry, deadline: Instant) -> Result<(Delivery, Span)> {
        let verified = Verified::kept(entry.svix_id.clone(), entry.received_at, entry.payload.clone());
        let event = event::parse(&verified, &self.rules.selection, entry.received_at);
        let mut delivery = event.delivery;
        if let Some(instance) = event.instance_id.as_deref()
            && !self.gate.opens_at_once(Some(instance))
            && self.gate.ask(instance, deadline).await?.is_err()
        {
            delivery.content =
                Content::Unusable("it belongs to another Clerk instance than the users here".to_owned());
        }
        let event_type = delivery.event_type.as_deref();
        let span = Span::process(Queue::Stream, entry.svix_id.as_str(), event_type, &entry.trace, 0);
        delivery.trace = span.context();
        Ok((delivery, span))
    }

    /// Keep deliveries that fail by themselves in `webhook_queue`, so that they do not delay others.
    async fn keep_failed(
        &self,
        deliveries: &[Delivery],
        results: &mut [Result<Outcome>],
        now: DateTime<Utc>,
        deadline: Instant,
    ) {
        // Deliveries that ran out of time are kept too. If the database is unavailable, this fails as well, and nothing
        // changes.
        let is_over = Instant::now() >= deadline;
        let fails_by_itself = |result: &Result<Outcome>| {
            result.as_ref().is_err_and(|error| is_over || error.kind != ErrorKind::Unavailable)
        };
        let failed = deliveries.iter().zip(&*results).filter(|(_, result)| fails_by_itself(result));
        let failed: Vec<(&Delivery, &StoreError)> =
            failed.filter_map(|(delivery, result)| Some((delivery, result.as_ref().err()?))).collect();
        if failed.is_empty() {
            return;
        }
        let kept = timeout(KEEP_WITHIN, keep(&*self.store, &failed, &self.rules, now)).await;
        let Ok(Ok(kept)) = kept else { return };
        for (result, kept) in results.iter_mut().filter(|result| fails_by_itself(result)).zip(kept) {
            *result = kept;
        }
    }
}
