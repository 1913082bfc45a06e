//! Group commit: whatever is waiting is committed in one transaction, then everybody is answered.

use tokio::sync::oneshot;

use crate::model::{Delivery, Outcome};

/// Hands deliveries to the lanes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Committer;

/// Why a delivery was not applied now. It may be sent again at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the database is not available")]
    Unavailable,
    #[error("too many deliveries are waiting")]
    Overloaded,
    #[error("the service is shutting down")]
    ShuttingDown,
}

impl Committer {
    /// Queue a delivery. Returns at once; the receiver yields what became of it once that is durable. Dropping the
    /// receiver cancels nothing.
    ///
    /// # Errors
    /// If too many are waiting, or the service is shutting down.
    pub fn submit(
        &self,
        _delivery: Delivery,
    ) -> Result<oneshot::Receiver<Result<Outcome, Refusal>>, Refusal> {
        Err(Refusal::Overloaded)
    }
}
