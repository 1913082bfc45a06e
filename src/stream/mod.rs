//! Webhooks in a stream of Redis or Valkey: `PROCESSING=queue` with `QUEUE_URL`.
//!
//! A receiver appends the webhooks that it has verified, and answers once the server confirms that they are on disk. A worker
//! takes them, applies them in a transaction of the database, and deletes them after its commit. So webhooks are accepted while
//! the database is away, and a receiver needs no database.
//!
//! The stream promises that a webhook that was confirmed reaches a worker at least once. `processed_webhooks` promises that it is
//! applied once. The order within the stream means nothing: the register of each object decides.
//!
//! The stream holds no retries: what a worker cannot apply moves to `webhook_queue`, in the database.

#[cfg(feature = "redis")]
mod cipher;
#[cfg_attr(not(feature = "redis"), path = "no_redis.rs")]
mod redis;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::SecretString;

use crate::{model::SvixId, telemetry::TraceContext};

pub use redis::{Consumer, Key, Producer, Stream, is_url};

/// The most webhooks that a stream holds: at some 2 kB each they take 2 GB of the server's memory.
pub const MOST: u64 = 1_000_000;

/// Where the stream is, and how it is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// `QUEUE_URL`
    pub url: SecretString,
    /// `QUEUE_REPLICAS`: how many replicas must have a webhook on disk as well.
    pub replicas: u32,
    /// `QUEUE_DURABILITY`
    pub durability: Durability,
    /// `QUEUE_ENCRYPTION_KEY`: the first one seals, each of them opens. Without any, bodies are stored as they came.
    pub keys: Vec<Key>,
}

/// `QUEUE_DURABILITY`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A webhook counts as stored once the server says that it is on disk.
    #[default]
    Verify,
    /// A webhook counts as stored once the server has it: the operator answers for its durability.
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
    /// The server's name of the entry.
    pub id: String,
    pub svix_id: SvixId,
    /// When it came to us.
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
    /// Those of them that a worker has taken and not finished.
    pub pending: u64,
    /// When the oldest was appended, by the server's clock.
    pub oldest: Option<DateTime<Utc>>,
}

/// Why the stream cannot be used. Messages of the server are left out: they may hold values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("the server that QUEUE_URL names cannot be reached ({0})")]
    Unreachable(&'static str),
    #[error("the server that QUEUE_URL names cannot be used: {0}")]
    Unusable(&'static str),
    /// With the code of the server's error, such as `NOAUTH`.
    #[error(
        "the server that QUEUE_URL names refuses a command ({0}); check its user, its password and what docs/queue.md says that \
         this user needs"
    )]
    Refused(String),
    /// It might lose a webhook that was confirmed; says what to do.
    #[error("the server that QUEUE_URL names may lose webhooks: {0}")]
    NotDurable(&'static str),
    /// It might have lost this one.
    #[error("the server that QUEUE_URL names confirms nothing now: {0}")]
    Unconfirmed(&'static str),
    #[error("the stream is full, or the memory of its server is")]
    Full,
}

impl StreamError {
    /// Whether it may pass while somebody waits.
    pub fn may_pass(&self) -> bool {
        const PASSING: [&str; 6] = ["LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY"];
        match self {
            Self::Unreachable(_) | Self::Unconfirmed(_) => true,
            Self::Refused(code) => PASSING.contains(&code.as_str()),
            Self::Unusable(_) | Self::NotDurable(_) | Self::Full => false,
        }
    }
}
