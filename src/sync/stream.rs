//! Webhooks of the stream: a receiver appends them, a worker applies them.
//!
//! What a worker takes is applied as a webhook is that nobody waits for. It is finished once the database has it, applied or kept
//! in `webhook_queue`; until then it stays in the stream. A transaction that has failed can commit nothing any more, so what made it
//! fail is kept by a later one. The worker also asks of which instance it is, because the receiver may have had no database to ask.

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

/// How long it may take to keep what could not be applied.
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

/// What a worker does with entries of the stream.
pub struct Intake {
    pub store: Arc<dyn Store>,
    /// With `PROCESSING=inline`: what is kept was not queued by us, but is parked.
    pub rules: Rules,
    pub gate: Arc<Gate>,
    /// Rung when something was kept in `webhook_queue`.
    pub bell: Arc<Notify>,
}

/// What was done.
#[derive(Default)]
pub struct TakenIn {
    /// The entries that are finished, by their ids.
    pub finished: Vec<String>,
    pub worked: Vec<Worked>,
    /// Those that wait for the database. Others that failed are for the stream to bring again: they must not hold up what is
    /// behind them.
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
    /// Apply entries, and tell which are finished.
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

    /// As it was when it came. What is of another instance than our users is kept as dead.
    async fn understood(&self, entry: &Entry, deadline: Instant) -> Result<(Delivery, Span)> {
        let verified = Verified::kept(entry.svix_id.clone(), entry.received_at, entry.payload.clone());
        let event = event::parse(&verified, &self.rules.selection, entry.received_at);
        let mut delivery = event.delivery;
        if let Some(instance) = event.instance_id.as_deref()
            && !self.gate.opens_at_once(Some(instance))
            && self.gate.ask(instance, deadline).await?.is_err()
        {
            delivery.content = Content::Unusable("it is of another instance than our users".to_owned());
        }
        let event_type = delivery.event_type.as_deref();
        let span = Span::process(Queue::Stream, entry.svix_id.as_str(), event_type, &entry.trace, 0);
        delivery.trace = span.context();
        Ok((delivery, span))
    }

    /// Keep in `webhook_queue` what failed by itself, so that it holds up no other.
    async fn keep_failed(
        &self,
        deliveries: &[Delivery],
        results: &mut [Result<Outcome>],
        now: DateTime<Utc>,
        deadline: Instant,
    ) {
        // What ran out of time goes there too. If the database is away it cannot be kept either, and nothing changes.
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
