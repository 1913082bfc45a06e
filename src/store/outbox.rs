//! The outbox: messages to other systems, their delivery state, and what is recorded about these systems.
//!
//! A [`Transaction`](super::Transaction) writes and recalls messages together with the changes that they report.

use std::{fmt, ops::RangeInclusive};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Database, Result};
use crate::{
    model::{ClerkId, MessageType, as_rfc3339},
    telemetry::TraceContext,
};

/// A message to be written to the outbox.
#[derive(Clone)]
pub struct Outgoing {
    /// The id that the receiver sees.
    pub message_id: String,
    pub sink: String,
    pub clerk_id: ClerkId,
    pub kind: MessageType,
    /// JSON with personal data.
    pub payload: String,
    pub created_at: DateTime<Utc>,
    /// The trace of the change that wrote it.
    pub trace: TraceContext,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message_id, sink, kind, .. } = self;
        write!(f, "Outgoing({message_id} {kind} for {sink}, redacted)")
    }
}

/// The temporary right to deliver one message.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Unique to this lease, so that a late result can be distinguished from a timely one.
    pub token: String,
    pub now: DateTime<Utc>,
    /// When the lease expires.
    pub until: DateTime<Utc>,
    /// The sink's address, as a hash without spaces. Claiming records for each user that the sink was notified at this address,
    /// unless the message is a deletion.
    pub address: String,
}

/// A message that a worker is delivering.
#[derive(Clone)]
pub struct Claimed {
    pub id: i64,
    pub message_id: String,
    pub sink: String,
    pub clerk_id: ClerkId,
    pub kind: MessageType,
    /// JSON with personal data.
    pub payload: String,
    /// Number of earlier attempts.
    pub attempts: u32,
    pub created_at: DateTime<Utc>,
    /// The token of the lease.
    pub lease: String,
    /// The sink's addresses at which it was notified about the user: hashes separated by spaces, with a leading `-` if the user
    /// was erased since.
    pub addresses: String,
    /// The trace of the change that wrote it.
    pub trace: TraceContext,
}

impl fmt::Debug for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, message_id, sink, kind, .. } = self;
        write!(f, "Claimed({id} {message_id} {kind} for {sink}, redacted)")
    }
}

impl Claimed {
    /// Record that the sink is about to be notified about the user at this address. Returns false if the sink already
    /// was, or if the message is a deletion, which reveals nothing.
    pub(super) fn is_told_at(&mut self, address: &str) -> bool {
        let is_new = !self.kind.is_deletion() && self.addresses.split(' ').all(|known| known != address);
        if is_new {
            if !self.addresses.is_empty() {
                self.addresses.push(' ');
            }
            self.addresses.push_str(address);
        }
        is_new
    }
}

/// The result of a delivery, to be written to its message.
#[derive(Clone, Debug)]
pub struct Finished<'m> {
    pub message: &'m Claimed,
    pub state: MessageState,
    /// Number of attempts so far.
    pub attempts: u32,
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// Why the delivery failed, if it was tried.
    pub error: Option<&'m str>,
    /// Whether the user's next message becomes due.
    pub frees_next: bool,
    /// The update of the erasure receipt, if the message is a deletion.
    pub receipt: Option<ReceiptStep>,
}

/// An update of an erasure receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptStep {
    /// Another attempt failed.
    Attempted,
    /// The sink holds no data about the user any more.
    Completed,
}

/// An operator's action on messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Make dead messages pending and due. A message stays dead if a later one about its user was delivered or is being
    /// delivered, because its content is out of date.
    Retry,
    /// Discard dead or waiting messages and their payloads. Deletions, and messages that are being delivered, stay.
    Discard,
}

/// Number of messages of one sink, by state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkDepth {
    pub sink: String,
    pub pending: u64,
    pub dead: u64,
    /// When the oldest pending message was written.
    pub oldest: Option<DateTime<Utc>>,
}

/// Users that a sink was notified about at another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Whether the sink's last recorded address is a different one.
    pub moved: bool,
    pub users: u64,
}

/// `outbox.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    Pending,
    Dead,
    Delivered,
    Discarded,
}

impl MessageState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Dead, Self::Delivered, Self::Discarded];

    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Dead => "dead",
            Self::Delivered => "delivered",
            Self::Discarded => "discarded",
        }
    }

    /// The state with this public name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A filter for messages.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    /// Messages with one of these ids.
    pub ids: Option<Vec<i64>>,
    pub sink: Option<String>,
    pub state: Option<MessageState>,
    /// Messages whose `id` is greater.
    pub after: Option<i64>,
}

/// A message for one sink, as in the outbox and the private API, but without its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = OutboxMessage)]
pub struct StoredMessage {
    #[schema(example = 42)]
    pub id: i64,
    /// The id that the receiver sees.
    #[schema(example = "msg_5f3c0a1e9b7d4c2f8e6a0b1c2d3e4f50")]
    pub message_id: String,
    #[schema(example = "crm")]
    pub sink: String,
    /// The kind of the object that it is about.
    #[serde(rename = "kind")]
    #[schema(example = "user")]
    pub of: &'static str,
    #[schema(value_type = String, example = "user_29w83sxmDNGwOuEthce5gg56FcC")]
    pub clerk_id: ClerkId,
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "user.updated")]
    pub kind: MessageType,
    #[schema(value_type = String, example = "pending")]
    pub state: MessageState,
    pub attempts: u32,
    /// When the next attempt is due. Null unless the message is pending and the oldest of its user. While it is under way, the
    /// time at which its worker counts as dead.
    #[serde(serialize_with = "as_rfc3339")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    #[serde(rename = "under_way")]
    pub taken: bool,
    #[serde(serialize_with = "as_rfc3339")]
    pub created_at: DateTime<Utc>,
    #[serde(serialize_with = "as_rfc3339")]
    pub finished_at: Option<DateTime<Utc>>,
    /// Without personal data.
    #[schema(example = "status 500")]
    pub last_error: Option<String>,
}

/// Messages to other systems, their delivery state, and what is recorded about these systems. A transaction writes and recalls
/// messages together with the changes that they report.
#[async_trait]
pub trait Outbox: Database {
    /// When this sink's first waiting message is due, among those due at `since` or later; `None` if the sink is paused. The
    /// caller uses it to decide whether to begin a claiming transaction.
    async fn first_message_due(&self, sink: &str, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>>;

    /// Claim up to `limit` messages for this sink with these due times, each about another user; none if the
    /// sink is paused. Only the oldest pending message of a user can be claimed. Until it is
    /// [finished](Self::finish_messages) or the lease expires, no other worker gets it or a later message about that
    /// user.
    async fn claim_messages(
        &self,
        sink: &str,
        due: RangeInclusive<DateTime<Utc>>,
        lease: &Lease,
        limit: u32,
    ) -> Result<Vec<Claimed>>;

    /// Write the results of deliveries, all or none; returns how many were written. A message is skipped if another worker has
    /// claimed it since the lease expired, or if an erasure removed it. If an erasure emptied a message meanwhile, its row is
    /// deleted unless it was delivered, and the next message of that user becomes due.
    async fn finish_messages(&self, finished: &[Finished<'_>], now: DateTime<Utc>) -> Result<u64>;

    /// Pending and dead messages by sink. Counts every row: do not call it often.
    async fn outbox_depth(&self) -> Result<Vec<SinkDepth>>;

    /// Up to `limit` messages in any state, ordered by `id`.
    async fn messages(&self, filter: &MessageFilter, limit: u32) -> Result<Vec<StoredMessage>>;

    /// The payload of a message as JSON, if it is still stored.
    async fn message_body(&self, id: i64) -> Result<Option<String>>;

    /// Apply an operator's action to messages; returns the number of messages that it applied to.
    async fn tend_messages(&self, ids: &[i64], deed: Deed, now: DateTime<Utc>) -> Result<u64>;

    /// Pause a sink from `since` on, so that its messages are no longer claimed; with `None`, resume it. Returns whether that
    /// changed anything. Deliveries that are under way continue.
    async fn set_paused(&self, sink: &str, since: Option<DateTime<Utc>>) -> Result<bool>;

    /// The paused sinks, and since when each is paused.
    async fn paused_sinks(&self) -> Result<Vec<(String, DateTime<Utc>)>>;

    /// Record the address of a sink. If it differs from the previous one, the sink's waiting deletions become due. With `moved`
    /// it is the same system as before, so users that it was notified about there count as notified here.
    async fn point_sink(&self, sink: &str, address: &str, moved: bool, now: DateTime<Utc>) -> Result<()>;

    /// Whether a sink's recorded address differs from this one, and the number of users that it was notified about at a
    /// different one. Counts every row.
    async fn told_elsewhere(&self, sink: &str, address: &str) -> Result<Elsewhere>;

    /// Store the addresses at which a sink was notified about a user, and whether that user was erased, in the format of
    /// [`Claimed::addresses`].
    async fn keep_addresses(&self, sink: &str, id: &ClerkId, addresses: &str) -> Result<()>;

    /// The reference that a sink stores for a user among its recipients.
    async fn reference(&self, sink: &str, id: &ClerkId) -> Result<Option<String>>;

    /// Store a sink's reference for a user; false if the user is not among its recipients.
    async fn keep_reference(&self, sink: &str, id: &ClerkId, reference: &str) -> Result<bool>;
}
