//! Accept first, process later: a batch of webhooks is stored in one transaction, and then answered.
//!
//! No rows of users are read. Deliveries that are not about synced objects are recorded at once, and unusable ones are
//! parked, as when they are processed at once.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{
    Rules,
    apply::{Repeats, Work, deliver, end, waiting_as},
};
use crate::{
    model::{Content, Delivery, Outcome, Processing, SvixId},
    store::{ErrorKind, Parked, Patience, Result, Store, StoreError, Transaction},
    telemetry::{Queue, Span, TraceContext},
};

/// Store deliveries, and return for each whether it is `queued`. Deliveries that are not finished at the deadline are
/// refused as unavailable. They may still be stored, which does no harm.
pub async fn enqueue(
    store: &dyn Store,
    batch: &[Delivery],
    rules: &Rules,
    now: DateTime<Utc>,
    deadline: Instant,
) -> Vec<Result<Outcome>> {
    deliver(&Work { store, rules, now }, batch, Processing::Queue, deadline).await
}

/// Store deliveries that the database cannot apply for now, each with the reason, so that a worker tries them again.
/// Deliveries that are not about synced objects are not stored, and fail as before. An error concerns all of them.
pub(super) async fn keep(
    store: &dyn Store,
    batch: &[(&Delivery, &StoreError)],
    rules: &Rules,
    now: DateTime<Utc>,
) -> Result<Vec<Result<Outcome>>> {
    let work = Work { store, rules, now };
    let changes = batch.iter().filter(|(delivery, _)| is_change(delivery));
    let (spans, kept): (Vec<Span>, Vec<Parked>) = changes
        .map(|(delivery, error)| {
            let span = sending(delivery);
            let parked = Parked { trace: span.context(), ..work.put_off(delivery, error)? };
            Ok((span, parked))
        })
        .collect::<Result<_>>()?;
    let mut transaction = store.begin(Patience::Short).await?;
    let stored = enqueue_each_once(&mut *transaction, kept).await;
    let recorded = end(transaction, stored).await?;
    if let Some((_, error)) = batch.first() {
        tracing::warn!(
            %error,
            deliveries = batch.len(),
            "deliveries could not be applied now: they are kept in webhook_queue and tried again"
        );
    }
    let outcome = match rules.processing {
        Processing::Inline => Outcome::Parked,
        Processing::Queue => Outcome::Queued,
    };
    for span in spans {
        span.done(outcome.name());
    }
    let outcomes = batch.iter().map(|(delivery, error)| match &delivery.svix_id {
        Some(id) if recorded.contains(id) => Ok(Outcome::Duplicate),
        _ if is_change(delivery) => Ok(outcome),
        _ => Err((*error).clone()),
    });
    Ok(outcomes.collect())
}

impl Work<'_> {
    /// The entry for a delivery that failed with this error, and may succeed soon.
    fn put_off(&self, delivery: &Delivery, error: &StoreError) -> Result<Parked> {
        let svix_id = delivery.svix_id.clone().ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
        let attempts = 1;
        let next = self.rules.retry.soon_after(attempts, svix_id.as_str(), self.now);
        Ok(Parked {
            attempts,
            next_attempt_at: Some(next),
            last_error: error.to_string(),
            ..waiting_as(svix_id, delivery, self.now)
        })
    }

    /// Store a batch, and repeat it after a conflict that is likely to pass.
    pub(super) async fn stored(&self, batch: &[&Delivery], patience: Patience) -> Result<Vec<Outcome>> {
        let mut repeats = Repeats::with(patience);
        loop {
            let mut transaction = self.store.begin(patience).await?;
            let spans: Vec<Span> = batch.iter().map(|delivery| sending(delivery)).collect();
            let stored = self.store_in(&mut *transaction, batch, &spans).await;
            match end(transaction, stored).await {
                Err(error) if repeats.has_another(&error) => {}
                result => {
                    for (span, outcome) in spans.into_iter().zip(result.iter().flatten()) {
                        span.done(outcome.name());
                    }
                    return result;
                }
            }
        }
    }

    async fn store_in(
        &self,
        transaction: &mut dyn Transaction,
        batch: &[&Delivery],
        spans: &[Span],
    ) -> Result<Vec<Outcome>> {
        let changes = batch.iter().zip(spans).filter(|(delivery, _)| is_change(delivery));
        let queued: Vec<Parked> =
            changes.map(|(delivery, span)| self.queued(delivery, span.context())).collect::<Result<_>>()?;
        let recorded = enqueue_each_once(transaction, queued).await?;

        let others: Vec<usize> = (0..batch.len()).filter(|place| !is_change(batch[*place])).collect();
        let ignored: Vec<&Delivery> = others.iter().map(|place| batch[*place]).collect();
        let fresh = self.record(transaction, &ignored).await?;

        let is_recorded = |delivery: &Delivery| {
            delivery.svix_id.as_ref().is_some_and(|id| recorded.contains(id)) || !is_change(delivery)
        };
        let mut outcomes: Vec<Outcome> = batch
            .iter()
            .map(|delivery| if is_recorded(delivery) { Outcome::Duplicate } else { Outcome::Queued })
            .collect();
        for place in fresh {
            outcomes[others[place]] = Outcome::Ignored;
        }
        Ok(outcomes)
    }

    /// The entry for a delivery. A delivery without an id could not be found again.
    fn queued(&self, delivery: &Delivery, trace: TraceContext) -> Result<Parked> {
        let svix_id = delivery.svix_id.clone().ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
        Ok(Parked { payload: delivery.payload.clone(), trace, ..waiting_as(svix_id, delivery, self.now) })
    }
}

/// Returns those that were recorded as processed before.
async fn enqueue_each_once(
    transaction: &mut dyn Transaction,
    mut queued: Vec<Parked>,
) -> Result<HashSet<SvixId>> {
    queued.sort_by(|one, other| one.svix_id.cmp(&other.svix_id));
    queued.dedup_by(|one, other| one.svix_id == other.svix_id);
    transaction.enqueue(&queued).await
}

fn is_change(delivery: &Delivery) -> bool {
    matches!(delivery.content, Content::Change(_))
}

/// Deliveries that are not about synced objects do not go into the queue.
fn sending(delivery: &Delivery) -> Span {
    let Some(svix_id) = delivery.svix_id.as_ref().filter(|_| is_change(delivery)) else {
        return Span::default();
    };
    Span::send(Queue::Webhooks, svix_id.as_str(), delivery.event_type.as_deref(), &delivery.trace)
}
