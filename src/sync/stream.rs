//! Webhooks of the stream: a receiver appends them, a worker applies them.
//!
//! What a worker takes is applied as a webhook is that nobody waits for. It is finished once the database has it, applied or kept
//! in `webhook_queue`; until then it stays in the stream. The worker also asks of which instance it is, because the receiver may
//! have had no database to ask.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{Rules, apply::apply, drain::Worked, enqueue::keep, instance::Gate};
use crate::{
    clerk::{event, signature::Verified},
    model::{Content, Delivery, Outcome, Processing},
    store::{ErrorKind, Result, Store, StoreError},
    stream::{Entry, Producer, StreamError},
    telemetry::{Queue, Span},
};

/// How long it may take to keep what could not be applied.
const KEEP_WITHIN: Duration = Duration::from_secs(2);

/// Append verified webhooks to the stream.
pub(super) async fn append(
    producer: &mut Producer,
    batch: &[Delivery],
) -> std::result::Result<(), StreamError> {
    let (mut entries, mut spans) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
    for delivery in batch {
        let svix_id = delivery.svix_id.clone().ok_or(StreamError::Unusable("a webhook has no id"))?;
        let event_type = delivery.event_type.as_deref();
        let span = Span::send(Queue::Stream, svix_id.as_str(), event_type, &delivery.trace);
        entries.push(Entry {
            id: String::new(),
            svix_id,
            received_at: delivery.received_at,
            payload: delivery.payload.clone(),
            trace: span.context(),
        });
        spans.push(span);
    }
    producer.put(&entries).await?;
    for span in spans {
        span.done(Outcome::Queued.name());
    }
    Ok(())
}

/// What a worker does with entries of the stream.
pub struct Intake {
    store: Arc<dyn Store>,
    rules: Rules,
    gate: Arc<Gate>,
    /// Rung when something was kept in `webhook_queue`.
    bell: Arc<Notify>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct TakenIn {
    /// The entries that are finished, by their ids.
    pub finished: Vec<String>,
    pub worked: Vec<Worked>,
    /// Why the others are not.
    pub trouble: Option<StoreError>,
}

impl Intake {
    pub fn new(store: Arc<dyn Store>, rules: &Rules, gate: Arc<Gate>, bell: Arc<Notify>) -> Self {
        // What is kept was not queued by us, but is parked.
        let rules = Rules { processing: Processing::Inline, ..rules.clone() };
        Self { store, rules, gate, bell }
    }

    /// Apply entries, and tell which are finished.
    pub async fn take_in(&self, entries: &[Entry], now: DateTime<Utc>, deadline: Instant) -> TakenIn {
        let (mut deliveries, mut spans, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        let mut taken_in = TakenIn::default();
        for entry in entries {
            match self.understood(entry, deadline).await {
                Ok((delivery, span)) => {
                    deliveries.push(delivery);
                    spans.push(span);
                    ids.push(&entry.id);
                }
                Err(error) => taken_in.trouble = Some(error),
            }
        }
        let mut results = apply(&*self.store, &deliveries, &self.rules, now, deadline).await;
        self.keep_failed(&deliveries, &mut results, now, deadline).await;
        for (((delivery, span), id), result) in deliveries.iter().zip(spans).zip(ids).zip(results) {
            match result {
                Ok(outcome) => {
                    span.done(outcome.name());
                    if outcome == Outcome::Parked {
                        self.bell.notify_one();
                    }
                    taken_in.finished.push(id.clone());
                    let Some(svix_id) = delivery.svix_id.clone() else { continue };
                    let event_type = delivery.event_type.clone();
                    taken_in.worked.push(Worked { svix_id, event_type, attempt: 1, outcome });
                }
                Err(error) => {
                    span.failed(error.code_or_kind());
                    taken_in.trouble = Some(error);
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
        if self.is_of_a_stranger(event.instance_id.as_deref(), deadline).await? {
            delivery.content = Content::Unusable("it is of another instance than our users".to_owned());
        }
        let event_type = delivery.event_type.as_deref();
        let span = Span::process(Queue::Stream, entry.svix_id.as_str(), event_type, &entry.trace, 0);
        delivery.trace = span.context();
        Ok((delivery, span))
    }

    async fn is_of_a_stranger(&self, instance: Option<&str>, deadline: Instant) -> Result<bool> {
        match instance.filter(|_| !self.gate.opens_at_once(instance)) {
            None => Ok(false),
            Some(instance) => Ok(self.gate.ask(instance, deadline).await?.is_err()),
        }
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
        let fails_by_itself = |error: &StoreError| is_over || error.kind != ErrorKind::Unavailable;
        let failed: Vec<(usize, StoreError)> = results
            .iter()
            .enumerate()
            .filter_map(|(place, result)| Some((place, result.as_ref().err()?.clone())))
            .filter(|(_, error)| fails_by_itself(error))
            .collect();
        let Some((_, first)) = failed.first() else { return };
        let meant: Vec<(&Delivery, &StoreError)> =
            failed.iter().map(|(place, error)| (&deliveries[*place], error)).collect();
        let kept = timeout(KEEP_WITHIN, keep(&*self.store, &meant, &self.rules, now)).await;
        let Ok(Ok(kept)) = kept else { return };
        tracing::warn!(
            error = %first,
            deliveries = meant.len(),
            "webhooks of the stream could not be applied: they are kept in webhook_queue and tried again"
        );
        for ((place, _), result) in failed.into_iter().zip(kept) {
            results[place] = result;
        }
    }
}
