//! Background work on rows that wait in the database, and on rows whose retention time is over.
//!
//! This module does not decide the contents of a user: due work follows the same rules as a webhook.

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

/// The longest time that a loop waits for one call of the store.
const PATIENCE: Duration = Duration::from_secs(10);

async fn patient<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable)))
}

/// The time from `from` to `to`; zero if `to` is earlier.
fn time_between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}
