//! Detecting work that another process has added, for databases that send no notifications.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;

use super::{Listener, Result};

/// The polling interval.
const POLL: Duration = Duration::from_millis(500);

/// Something that changes when another process adds work. Reading it must be cheap.
#[async_trait]
pub(super) trait Marks: Send + Sync + 'static {
    type Seen: PartialEq + Send;

    async fn read(&self) -> Result<Self::Seen>;
}

/// Polls marks twice a second.
pub(super) struct Polling<M: Marks> {
    marks: M,
    seen: M::Seen,
}

impl<M: Marks> Polling<M> {
    /// A listener that detects changes from now on.
    pub(super) async fn of(marks: M) -> Result<Box<dyn Listener>> {
        let seen = marks.read().await?;
        Ok(Box::new(Self { marks, seen }))
    }
}

#[async_trait]
impl<M: Marks> Listener for Polling<M> {
    async fn heard(&mut self) -> Result<()> {
        loop {
            sleep(POLL).await;
            let now = self.marks.read().await?;
            if now != self.seen {
                self.seen = now;
                return Ok(());
            }
        }
    }
}
