//! Accepting first and processing later: a batch of webhooks is stored in one transaction, and then answered.
//!
//! Nobody's row is looked at. What is not about users is recorded at once, and what can never be used is parked, as if
//! it were processed now.

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{
    Rules,
    apply::{Work, deliver, end},
};
use crate::{
    model::{Content, Delivery, Outcome, Processing},
    store::{Parked, Patience, Result, Store, StoreError, Transaction, Trouble},
};

/// Store deliveries, and tell of each whether it is `queued`. What is not done at the deadline is refused as
/// unavailable; it may be stored all the same, which does no harm.
pub async fn enqueue(
    store: &dyn Store,
    batch: &[Delivery],
    rules: &Rules,
    now: DateTime<Utc>,
    deadline: Instant,
) -> Vec<Result<Outcome>> {
    deliver(&Work { store, rules, now }, batch, Processing::Queue, deadline).await
}

impl Work<'_> {
    /// Store a batch, again after a conflict that is likely to be gone.
    pub(super) async fn stored(&self, batch: &[&Delivery], patience: Patience) -> Result<Vec<Outcome>> {
        let mut conflicts = 0;
        loop {
            let mut transaction = self.store.begin(patience).await?;
            let stored = self.store_in(&mut *transaction, batch).await;
            match end(transaction, stored).await {
                Err(error) if error.trouble == Trouble::Conflict && conflicts < 1 => conflicts += 1,
                result => return result,
            }
        }
    }

    async fn store_in(&self, transaction: &mut dyn Transaction, batch: &[&Delivery]) -> Result<Vec<Outcome>> {
        let is_change = |delivery: &Delivery| matches!(delivery.content, Content::Change(_));
        let changes = batch.iter().filter(|delivery| is_change(delivery));
        let mut queued: Vec<Parked> = changes.map(|delivery| self.queued(delivery)).collect::<Result<_>>()?;
        queued.sort_by(|one, other| one.svix_id.cmp(&other.svix_id));
        queued.dedup_by(|one, other| one.svix_id == other.svix_id);
        let recorded = transaction.enqueue(&queued).await?;

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

    /// What is kept of a delivery; without an id it could not be found again.
    fn queued(&self, delivery: &Delivery) -> Result<Parked> {
        Ok(Parked {
            svix_id: delivery.svix_id.clone().ok_or_else(|| StoreError::new(Trouble::Broken))?,
            event_type: delivery.event_type.clone(),
            clerk_id: delivery.clerk_id.clone(),
            payload: delivery.payload.clone(),
            attempts: 0,
            next_attempt_at: Some(self.now),
            received_at: delivery.received_at,
            last_error: String::new(),
        })
    }
}
