//! The outbox: what other systems are told, how far that has come, and what is known of them.
//!
//! Messages are written and recalled by a [`Transaction`](super::Transaction) beside the changes that they tell of.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Database, Result};
use crate::{
    model::{ClerkId, MessageType, as_rfc3339},
    telemetry::TraceContext,
};

/// A message on its way into the outbox.
#[derive(Clone)]
pub struct Outgoing {
    /// What the receiver sees.
    pub message_id: String,
    pub sink: String,
    pub clerk_id: ClerkId,
    pub kind: MessageType,
    /// JSON: personal data.
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

/// A right to deliver one message, for a while.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Nobody else's: it tells a late answer from one in time.
    pub token: String,
    pub now: DateTime<Utc>,
    /// When it ends by itself.
    pub until: DateTime<Utc>,
    /// Where the sink is, as a hash without spaces. It is written down that it was told there of those who are claimed,
    /// unless they are to be deleted.
    pub address: String,
}

/// A message that somebody delivers now.
#[derive(Clone)]
pub struct Claimed {
    pub id: i64,
    pub message_id: String,
    pub sink: String,
    pub clerk_id: ClerkId,
    pub kind: MessageType,
    /// JSON: personal data.
    pub payload: String,
    /// Before this one.
    pub attempts: u32,
    pub created_at: DateTime<Utc>,
    /// The token of the lease.
    pub lease: String,
    /// Where the sink was when it was told of the user: hashes with spaces between them, behind a `-` where the user was
    /// erased since.
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
    /// The sink is about to be told of the user at this address; false if it was told there before. A deletion tells it
    /// nothing.
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

/// What is written of a message whose delivery ended.
#[derive(Clone, Debug)]
pub struct Finished<'m> {
    pub message: &'m Claimed,
    pub state: MessageState,
    /// How often it was tried.
    pub attempts: u32,
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// Why it was not delivered, if it was tried.
    pub error: Option<&'m str>,
    /// The next message of its user may go.
    pub frees_next: bool,
    /// What the receipt of the erasure gets that it is for.
    pub receipt: Option<ReceiptStep>,
}

/// What the receipt of an erasure gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptStep {
    /// One more attempt that failed.
    Attempted,
    /// The sink knows nothing of the user any more.
    Completed,
}

/// What an operator does with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Make dead ones pending and due. Those stay dead whose user has had a later message delivered, or has one on its way:
    /// what they say is out of date.
    Retry,
    /// Give up those that are dead or wait, and forget what they say. Deletions and what is on its way stay.
    Discard,
}

/// Messages of one sink by state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkDepth {
    pub sink: String,
    pub pending: u64,
    pub dead: u64,
    /// When the oldest pending one was written.
    pub oldest: Option<DateTime<Utc>>,
}

/// Of whom a sink was told while it was somewhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Whether it was last used at another address.
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

    /// The state of this public name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Which messages are looked for.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    /// Those of these ids.
    pub ids: Option<Vec<i64>>,
    pub sink: Option<String>,
    pub state: Option<MessageState>,
    /// Those whose `id` is greater.
    pub after: Option<i64>,
}

/// A message for one sink, as the outbox and the private API have it: without what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = OutboxMessage)]
pub struct StoredMessage {
    #[schema(example = 42)]
    pub id: i64,
    /// What the receiver sees.
    #[schema(example = "msg_5f3c0a1e9b7d4c2f8e6a0b1c2d3e4f50")]
    pub message_id: String,
    #[schema(example = "crm")]
    pub sink: String,
    /// Of what kind of object it is about.
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
    /// Null unless it is pending and the oldest of its user; while it is under way, when whoever has it counts as dead.
    #[serde(serialize_with = "as_rfc3339")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    #[serde(rename = "under_way")]
    pub taken: bool,
    #[serde(serialize_with = "as_rfc3339")]
    pub created_at: DateTime<Utc>,
    #[serde(serialize_with = "as_rfc3339")]
    pub finished_at: Option<DateTime<Utc>>,
    /// Without anybody's data.
    #[schema(example = "status 500")]
    pub last_error: Option<String>,
}

/// What other systems are told, how far that has come, and what is known of these systems. Messages are written and recalled by a
/// transaction beside the changes that they tell of.
#[async_trait]
pub trait Outbox: Database {
    /// When the first message for this sink that waits is due, of those that are due at this time or later, unless the sink is
    /// paused: so that it is known whether a transaction that claims is worth its beginning.
    async fn first_message_due(&self, sink: &str, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>>;

    /// Take up to `limit` messages for this sink that are due since this time, each of another user, unless the sink is paused.
    /// Only the oldest pending message of a user is ever taken, and nobody else gets it, or a later one of that user,
    /// before it is [finished](Self::finish_messages) or the lease ends.
    async fn claim_messages(
        &self,
        sink: &str,
        since: DateTime<Utc>,
        lease: &Lease,
        limit: u32,
    ) -> Result<Vec<Claimed>>;

    /// Write what became of messages, all or none; returns how many were written. A message is skipped if another worker has
    /// claimed it since the lease ended, or if an erasure removed it. If an erasure emptied a message meanwhile, its row is
    /// deleted unless it was delivered, and the next message of that user becomes due.
    async fn finish_messages(&self, finished: &[Finished<'_>], now: DateTime<Utc>) -> Result<u64>;

    /// What waits and what is dead, by sink. Counted one by one: not to be asked often.
    async fn outbox_depth(&self) -> Result<Vec<SinkDepth>>;

    /// Up to `limit` messages in the order of their `id`, in every state.
    async fn messages(&self, filter: &MessageFilter, limit: u32) -> Result<Vec<StoredMessage>>;

    /// What a message says, as JSON, if it is still kept.
    async fn message_body(&self, id: i64) -> Result<Option<String>>;

    /// Do this with messages; returns with how many it could be done.
    async fn tend_messages(&self, ids: &[i64], deed: Deed, now: DateTime<Utc>) -> Result<u64>;

    /// Hand out no more messages for this sink, from this time on; without one, hand them out again. Returns whether that
    /// changed anything. What is on its way is not held up.
    async fn set_paused(&self, sink: &str, since: Option<DateTime<Utc>>) -> Result<bool>;

    /// Which sinks are paused, and since when.
    async fn paused_sinks(&self) -> Result<Vec<(String, DateTime<Utc>)>>;

    /// Remember where a sink is from now on. If that is another address than before, its deletions that wait become due.
    /// With `moved` it is the same system as before: users that it was told of there count as told of here.
    async fn point_sink(&self, sink: &str, address: &str, moved: bool, now: DateTime<Utc>) -> Result<()>;

    /// Whether a sink is remembered at another address, and of how many users it was told at another one. Counted one by
    /// one.
    async fn told_elsewhere(&self, sink: &str, address: &str) -> Result<Elsewhere>;

    /// Write down where a sink was told of a user, and where that user was erased, as [`Claimed::addresses`] has it.
    async fn keep_addresses(&self, sink: &str, id: &ClerkId, addresses: &str) -> Result<()>;

    /// What a sink remembers of a user who is one of its recipients.
    async fn reference(&self, sink: &str, id: &ClerkId) -> Result<Option<String>>;

    /// Let a sink remember this of a user; false if the user is none of its recipients.
    async fn keep_reference(&self, sink: &str, id: &ClerkId, reference: &str) -> Result<bool>;
}
