//! Webhooks in a stream of Redis or Valkey: `PROCESSING=queue` with `QUEUE_URL`.
//!
//! A receiver appends verified webhooks, and answers once the server confirms that they are on disk. A worker takes
//! them, applies them in a database transaction, and deletes them after the commit. So webhooks are accepted while the
//! database is unavailable, and a receiver needs no database.
//!
//! The stream guarantees that a confirmed webhook reaches a worker at least once. `processed_webhooks` guarantees that
//! it is applied once. The order within the stream does not matter: the register of each object decides.
//!
//! The stream does not hold retries: a webhook that a worker cannot apply moves to `webhook_queue`, in the database.

#[cfg(feature = "redis")]
mod cipher;
#[cfg_attr(not(feature = "redis"), path = "no_redis.rs")]
mod redis;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::SecretString;

use crate::{model::SvixId, telemetry::TraceContext};

pub use redis::{Consumer, Key, Producer, Stream, is_url};

/// The maximum number of webhooks in a stream. At about 2 kB each they take 2 GB of the server's memory.
pub const MOST: u64 = 1_000_000;

/// The address of the stream, and how it is stored.
#[derive(Clone, Debug)]
pub struct Options {
    /// `QUEUE_URL`
    pub url: SecretString,
    /// `QUEUE_REPLICAS`: how many replicas must have a webhook on disk too.
    pub replicas: u32,
    /// `QUEUE_DURABILITY`
    pub durability: Durability,
    /// `QUEUE_ENCRYPTION_KEY`: the first key seals, and all of them open. Without a key, bodies are stored as they
    /// arrived.
    pub keys: Vec<Key>,
}

/// `QUEUE_DURABILITY`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A webhook counts as stored once the server confirms that it is on disk.
    #[default]
    Verify,
    /// A webhook counts as stored once the server has it: the operator guarantees its durability.
    Trust,
}

impl Durability {
    /// Every value.
    pub const ALL: [Self; 2] = [Self::Verify, Self::Trust];

    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Trust => "trust",
        }
    }
}

/// A verified webhook that was taken from the stream.
pub struct Entry {
    /// The id that the server gave the entry.
    pub id: String,
    pub svix_id: SvixId,
    /// When it arrived at clerk-sync.
    pub received_at: DateTime<Utc>,
    /// The raw body.
    pub payload: Bytes,
    /// The trace of the request that appended it.
    pub trace: TraceContext,
}

/// How much the stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    pub entries: u64,
    /// Entries that a worker has taken and not finished.
    pub pending: u64,
    /// When the oldest entry was appended, by the server's clock.
    pub oldest: Option<DateTime<Utc>>,
}

/// Why the stream cannot be used. The server's own messages are left out, because they may contain values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("the server that QUEUE_URL names cannot be reached ({0})")]
    Unreachable(&'static str),
    #[error("the server that QUEUE_URL names cannot be used: {0}")]
    Unusable(&'static str),
    /// With the server's error code, such as `NOAUTH`.
    #[error(
        "the server that QUEUE_URL names refuses a command ({0}); check the user, the password, and the permissions that \
         docs/queue.md lists for this user"
    )]
    Refused(String),
    /// The server might lose a confirmed webhook; the text says what to do.
    #[error("the server that QUEUE_URL names may lose webhooks: {0}")]
    NotDurable(&'static str),
    /// The server might have lost this webhook.
    #[error("the server that QUEUE_URL names does not confirm writes now: {0}")]
    Unconfirmed(&'static str),
    #[error("the stream, or the memory of its server, is full")]
    Full,
}

impl StreamError {
    /// Whether the error may pass while the sender waits.
    pub fn may_pass(&self) -> bool {
        const PASSING: [&str; 6] = ["LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY"];
        match self {
            Self::Unreachable(_) | Self::Unconfirmed(_) => true,
            Self::Refused(code) => PASSING.contains(&code.as_str()),
            Self::Unusable(_) | Self::NotDurable(_) | Self::Full => false,
        }
    }
}
