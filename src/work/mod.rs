//! Rows that wait in the database to be worked on, and those that have stayed long enough.
//!
//! Nothing here decides what a user looks like: what is due is applied by the rules that apply a webhook.

pub mod activity;
pub mod backlog;
mod catch_up;
mod gauges;
mod lease;
pub mod lookout;
pub mod outbox;
mod queue;
pub mod retention;
mod sealing;
pub mod sinks;
mod stream;
pub mod worker;

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::timeout;

use crate::store::{ErrorKind, StoreError};

pub use catch_up::{CatchUpLoop, CatchUpSettings};
pub use gauges::Gauges;
pub use lookout::Lookout;
pub use queue::Queue;
pub use retention::Retention;
pub use sealing::Sealing;
pub use stream::Streaming;

/// No call of the store may take a loop longer.
const PATIENCE: Duration = Duration::from_secs(10);

async fn patient<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable)))
}

/// The time from the one to the other; none if they stand the other way round.
fn time_between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}
