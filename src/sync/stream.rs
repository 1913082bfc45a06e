//! Webhooks of the stream: a receiver appends them, a worker applies them.
//!
//! What a worker takes is applied as a webhook is that nobody waits for. It is finished once the database has it, applied or kept
//! in `webhook_queue`; until then it stays in the stream. The worker also asks of which instance it is, because the receiver may
//! have had no database to ask.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{
    Rules,
    apply::apply,
    drain::Worked,
    enqueue::keep,
    instance::{Gate, Stranger},
};
use crate::{
    clerk::{event, signature::Verified},
    model::{Content, Delivery, Outcome},
    store::{ErrorKind, Result, Store, StoreError},
    stream::{Entry, Producer, StreamError},
    telemetry::{Queue, Span},
};

/// Append verified webhooks to the stream. Each of them has an id.
pub(super) async fn append(
    producer: &mut Producer,
    batch: &[Delivery],
) -> std::result::Result<(), StreamError> {
    let (mut entries, mut spans) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
    for delivery in batch {
        let Some(svix_id) = delivery.svix_id.clone() else { continue };
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
    pub store: Arc<dyn Store>,
    pub rules: Rules,
    pub gate: Arc<Gate>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct TakenIn {
    /// The entries that are finished, by their ids.
    pub finished: Vec<String>,
    pub worked: Vec<Worked>,
    /// Why the others are not: something is wrong with the database.
    pub trouble: Option<StoreError>,
}

impl Intake {
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
        self.keep_failed(&deliveries, &mut results, now).await;
        for (((delivery, span), id), result) in deliveries.iter().zip(spans).zip(ids).zip(results) {
            match result {
                Ok(outcome) => {
                    span.done(outcome.name());
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
        if let Some(Stranger { .. }) = self.stranger(event.instance_id.as_deref(), deadline).await? {
            delivery.content =
                Content::Unusable("instance_id is another one than that of our users".to_owned());
        }
        let event_type = delivery.event_type.as_deref();
        let span = Span::process(Queue::Stream, entry.svix_id.as_str(), event_type, &entry.trace, 0);
        delivery.trace = span.context();
        Ok((delivery, span))
    }

    async fn stranger(&self, instance: Option<&str>, deadline: Instant) -> Result<Option<Stranger>> {
        match instance.filter(|_| !self.gate.opens_at_once(instance)) {
            None => Ok(None),
            Some(instance) => Ok(self.gate.ask(instance, deadline).await?.err()),
        }
    }

    /// Keep in `webhook_queue` what failed by itself, so that it holds up no other.
    async fn keep_failed(
        &self,
        deliveries: &[Delivery],
        results: &mut [Result<Outcome>],
        now: DateTime<Utc>,
    ) {
        let failed: Vec<usize> = (0..results.len())
            .filter(|place| matches!(&results[*place], Err(error) if error.kind != ErrorKind::Unavailable))
            .collect();
        let meant: Vec<(&Delivery, StoreError)> = failed
            .iter()
            .filter_map(|place| Some((&deliveries[*place], results[*place].as_ref().err()?.clone())))
            .collect();
        if meant.is_empty() {
            return;
        }
        let meant: Vec<(&Delivery, &StoreError)> =
            meant.iter().map(|(delivery, error)| (*delivery, error)).collect();
        let Ok(kept) = keep(&*self.store, &meant, &self.rules, now).await else { return };
        tracing::warn!(
            error = %meant[0].1,
            deliveries = meant.len(),
            "webhooks of the stream could not be applied: they are kept in webhook_queue and tried again"
        );
        for (place, result) in failed.into_iter().zip(kept) {
            results[place] = match result {
                Ok(Outcome::Queued) => Ok(Outcome::Parked),
                result => result,
            };
        }
    }
}
