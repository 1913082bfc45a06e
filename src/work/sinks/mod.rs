//! The systems that receive changes: one file per kind of sink, which translates a [`Message`] into that system's terms.
//!
//! A sink hands over and reports. The dispatcher is responsible for order, repeats, and the time of retries.

pub mod mailchimp;
mod memory;
mod outbound;
pub mod segment;
pub mod webhook;

use std::time::Duration;

use async_trait::async_trait;

pub use memory::{InMemory, Memory, Recipient};
pub use outbound::Outbound;

use crate::model::Message;

/// A system that receives changes.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Hand over one message within the sink's own time limit. `body` is the stored message, byte for byte the same at every
    /// attempt. Handing over the same message again does no harm. `memory` belongs to this sink and the message's user.
    ///
    /// # Errors
    /// If the message was not taken, or the result is unknown.
    async fn deliver(&self, message: &Message, body: &str, memory: &dyn Memory) -> Result<(), Refusal>;

    /// Try the sink with a message that is marked as a test, and remove the test data where that is possible. Returns doubts
    /// about whether the right system took it.
    ///
    /// # Errors
    /// If the sink refused anything that a real message needs.
    async fn test(&self, message: &Message, body: &str) -> Result<Vec<String>, Refusal> {
        self.deliver(message, body, &InMemory::default()).await?;
        Ok(Vec::new())
    }
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// In clerk-sync's words: a status, a kind of fault. Never the other side's text, a secret, or personal data.
    pub reason: String,
    pub again: Again,
}

impl Refusal {
    pub(super) fn later(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), again: Again::Later(None) }
    }

    pub(super) fn never(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), again: Again::Never }
    }

    /// Whether there was no answer.
    pub fn is_unreachable(&self) -> bool {
        outbound::NO_ANSWER.contains(&self.reason.as_str())
    }
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Later, and not before the time that the other side asked for (`Retry-After`).
    Later(Option<Duration>),
    /// The sink will never take the message as it is.
    Never,
}
