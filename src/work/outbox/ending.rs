//! How a delivery ended, and what that means for the message, for the user's next message, and for the receipt of an erasure.

use chrono::{DateTime, Utc};

use crate::store::{Claimed, Finished, MessageState, ReceiptStep, Result, Store};

/// How the delivery of a message ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Delivered,
    /// The delivery did not start. The message can be claimed again as if it had never been claimed.
    Untried,
    /// To be retried; `attempts` have counted so far.
    Again {
        attempts: u32,
        at: DateTime<Utc>,
        error: String,
    },
    /// Refused permanently or out of attempts; an operator can still retry it.
    Dead {
        attempts: u32,
        error: String,
    },
}

impl Ending {
    /// The record for a message whose delivery ended like this.
    fn of<'m>(&'m self, message: &'m Claimed) -> Finished<'m> {
        let (state, attempts, next_attempt_at, error) = match self {
            Self::Delivered => (MessageState::Delivered, message.attempts + 1, None, None),
            // The message goes before all messages that became due later.
            Self::Untried => (MessageState::Pending, message.attempts, Some(message.created_at), None),
            Self::Again { attempts, at, error } => {
                (MessageState::Pending, *attempts, Some(*at), Some(error.as_str()))
            }
            Self::Dead { attempts, error } => (MessageState::Dead, *attempts, None, Some(error.as_str())),
        };
        let receipt = match self {
            _ if !message.kind.is_deletion() => None,
            Self::Untried => None,
            Self::Delivered => Some(ReceiptStep::Completed),
            Self::Again { .. } | Self::Dead { .. } => Some(ReceiptStep::Attempted),
        };
        let frees_next = state != MessageState::Pending;
        Finished { message, state, attempts, next_attempt_at, error, frees_next, receipt }
    }
}

/// Record how deliveries of messages ended, like [`finish_messages`](crate::store::Outbox::finish_messages).
///
/// # Errors
/// As the store reports them; nothing is recorded then.
pub async fn finish(store: &dyn Store, ended: &[(Claimed, Ending)], now: DateTime<Utc>) -> Result<u64> {
    let finished: Vec<Finished<'_>> = ended.iter().map(|(message, ending)| ending.of(message)).collect();
    store.finish_messages(&finished, now).await
}
