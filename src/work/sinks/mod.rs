//! The systems that are told: one file a kind of sink, each turning a [`Message`] into that system's own words.
//!
//! A sink hands over and reports; order, repeats, and when to try again are the dispatcher's.

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

/// A system that is told what changed.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Hand one message over, within the sink's own time limit. `body` is the message as it is stored, byte for byte
    /// the same at every attempt. To hand over the same message again does no harm. `memory` is of this sink and of the
    /// message's user.
    ///
    /// # Errors
    /// If it was not taken, or nobody knows.
    async fn deliver(&self, message: &Message, body: &str, memory: &dyn Memory) -> Result<(), Refusal>;

    /// Try the sink out with a message that is marked as a test, and take away again what can be taken away. Returns what
    /// makes it doubtful that the right system took it.
    ///
    /// # Errors
    /// If anything that a real message needs was refused.
    async fn test(&self, message: &Message, body: &str) -> Result<Vec<String>, Refusal> {
        self.deliver(message, body, &InMemory::default()).await?;
        Ok(Vec::new())
    }
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// In our words: a status, a kind of fault. Never what the other side wrote, a secret, or anybody's data.
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

    /// Whether there was no answer at all.
    pub fn is_unreachable(&self) -> bool {
        outbound::NO_ANSWER.contains(&self.reason.as_str())
    }
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Later, and not before the time that the other side asked for (`Retry-After`).
    Later(Option<Duration>),
    /// It will never be taken as it is.
    Never,
}
