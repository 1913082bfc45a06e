//! Rows that wait in the database to be worked on, and those that have stayed long enough.
//!
//! Nothing here decides what a user looks like: what is due is applied by the rules that apply a webhook.

pub mod activity;
mod catch_up;
mod gauges;
pub mod health;
pub mod lookout;
pub mod outbox;
mod queue;
pub mod retention;
mod sealing;
pub mod sinks;
pub mod worker;

use std::time::Duration;

use tokio::time::timeout;

use crate::store::{StoreError, Trouble};

pub use catch_up::CatchUpLoop;
pub use gauges::Gauges;
pub use lookout::Lookout;
pub use queue::Queue;
pub use retention::Retention;
pub use sealing::Sealing;

/// No call of the store may hold up a loop for longer.
const PATIENCE: Duration = Duration::from_secs(10);

async fn patient<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(StoreError::new(Trouble::Unavailable)))
}
