//! Deliveries: those that wait or are dead, those that are processed, and how long each is kept.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::RangeInclusive,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::{Record, Result, Session};
use crate::{
    entity,
    model::{ClerkId, Outcome, SvixId, as_rfc3339},
    telemetry::TraceContext,
};

/// A delivery in `webhook_queue`.
#[derive(Clone)]
pub struct Parked {
    pub svix_id: SvixId,
    pub event_type: Option<String>,
    pub clerk_id: Option<ClerkId>,
    /// The raw body.
    pub payload: Bytes,
    pub attempts: u32,
    /// When to retry; `None` if never, which is the state `dead`.
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub received_at: DateTime<Utc>,
    /// When it became dead.
    pub dead_at: Option<DateTime<Utc>>,
    /// Why it failed, without personal data; empty if it was never tried.
    pub last_error: String,
    /// The trace of the request that stored it.
    pub trace: TraceContext,
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parked({}, redacted)", self.svix_id)
    }
}

impl Parked {
    /// `webhook_queue.kind`: the kind of the object, even if its id is unusable.
    pub fn kind(&self) -> Option<&str> {
        let by_type = || entity::of_event(self.event_type.as_deref()?);
        Some(self.clerk_id.as_ref().map(ClerkId::entity).or_else(by_type)?.kind)
    }

    /// `webhook_queue.state`.
    pub fn state(&self) -> QueueState {
        if self.next_attempt_at.is_some() { QueueState::Pending } else { QueueState::Dead }
    }
}

/// `webhook_queue.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueState {
    /// Will be tried.
    Pending,
    /// Will not be tried unless the operator asks for it.
    Dead,
}

impl QueueState {
    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Dead => "dead",
        }
    }

    /// The state with this public name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Pending, Self::Dead].into_iter().find(|state| state.name() == name)
    }
}

/// The attempts of a parked delivery so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Number of attempts.
    pub attempts: u32,
    /// When it first arrived.
    pub received_at: DateTime<Utc>,
}

/// A delivery that waits or is dead, as in `webhook_queue` and the private API, but without its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Entry)]
pub struct Queued {
    #[schema(value_type = String, example = "msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw")]
    pub svix_id: SvixId,
    /// Clerk's event type, if it could be read.
    #[schema(example = "user.updated")]
    pub event_type: Option<String>,
    /// The kind of the object, if the event type could be read.
    #[schema(example = "user")]
    pub kind: Option<String>,
    /// The id of the object, if it could be read.
    #[schema(value_type = Option<String>, example = "user_29w83sxmDNGwOuEthce5gg56FcC")]
    pub clerk_id: Option<ClerkId>,
    /// `pending` or `dead`.
    #[schema(value_type = String, example = "dead")]
    pub state: QueueState,
    /// Number of attempts so far.
    #[schema(example = 15)]
    pub attempts: u32,
    /// When the next attempt is due; null if it is dead.
    #[serde(serialize_with = "as_rfc3339")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(example = "2026-11-16T08:00:00.250Z")]
    pub received_at: DateTime<Utc>,
    /// Why it failed, without personal data; null if it was never tried.
    #[serde(serialize_with = "unless_empty")]
    #[schema(
        value_type = Option<String>,
        example = "a constraint or trigger refused the change (23514): table users, constraint users_check"
    )]
    pub last_error: String,
    /// Length of the body in bytes.
    #[schema(example = 2867)]
    pub bytes: u64,
}

fn unless_empty<S: Serializer>(text: &str, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    Some(text).filter(|text| !text.is_empty()).serialize(serializer)
}

impl From<&Parked> for Queued {
    fn from(parked: &Parked) -> Self {
        Self {
            svix_id: parked.svix_id.clone(),
            event_type: parked.event_type.clone(),
            kind: parked.kind().map(str::to_owned),
            clerk_id: parked.clerk_id.clone(),
            state: parked.state(),
            attempts: parked.attempts,
            next_attempt_at: parked.next_attempt_at,
            received_at: parked.received_at,
            last_error: parked.last_error.clone(),
            bytes: parked.payload.len() as u64,
        }
    }
}

/// A filter for deliveries in `webhook_queue`.
#[derive(Clone, Debug, Default)]
pub struct QueueFilter {
    /// Deliveries with one of these ids.
    pub ids: Option<Vec<SvixId>>,
    pub state: Option<QueueState>,
    /// Deliveries of this event type.
    pub event_type: Option<String>,
    /// Deliveries about this object.
    pub clerk_id: Option<ClerkId>,
    /// Deliveries whose id is greater.
    pub after: Option<SvixId>,
}

/// Parked deliveries by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    pub pending: u64,
    pub dead: u64,
    /// When the first waiting delivery became due or will be due.
    pub first_due: Option<DateTime<Utc>>,
}

/// A row of `processed_webhooks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processed {
    pub svix_id: SvixId,
    pub event_type: Option<String>,
    pub outcome: String,
    pub kind: Option<String>,
    pub clerk_id: Option<String>,
    pub event_at: DateTime<Utc>,
    pub processed_at: DateTime<Utc>,
}

/// A filter for processed deliveries.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// Deliveries with one of these ids.
    pub ids: Option<Vec<SvixId>>,
    pub event_type: Option<String>,
    pub outcome: Option<String>,
    /// Deliveries that were processed before this one.
    pub before: Option<(DateTime<Utc>, SvixId)>,
}

/// How many of the newest deliveries are searched for an event type or outcome. The limit keeps a search for a rare value from
/// reading the whole table.
pub const LOOKED_THROUGH: u32 = 10_000;

/// Rows that are kept only for a limited time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    /// Records of processed deliveries.
    Processed,
    /// Dead parked deliveries, by the time they became dead.
    Dead,
    /// Messages that were delivered or discarded.
    Told,
    /// Dead messages, by the time they became dead.
    Untold,
    /// Counts of answered webhooks.
    Activity,
}

impl Old {
    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Processed => "processed_webhooks",
            Self::Dead => "dead_deliveries",
            Self::Told => "delivered_messages",
            Self::Untold => "dead_messages",
            Self::Activity => "activity",
        }
    }
}

/// Operations of a transaction on waiting and processed deliveries. Ids must be sorted and unique; empty slices cost nothing.
#[async_trait]
pub trait Inbox: Session {
    /// Claim waiting deliveries that are due within this range, the longest overdue first. Stop after `limit` deliveries, or
    /// once their bodies reach `bytes` in total. Removed entries from before the range cost nothing, because they are not
    /// scanned. Until this transaction ends no other worker gets these deliveries, and none waits for them. If the process
    /// dies, they are free at once.
    async fn claim(
        &mut self,
        due: RangeInclusive<DateTime<Utc>>,
        limit: u32,
        bytes: u64,
    ) -> Result<Vec<Parked>>;

    /// Claim the deliveries among these that wait, are due, and are not claimed by another worker.
    async fn claim_these(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<Vec<Parked>>;

    /// Store deliveries for processing. Returns those that are already recorded as processed; they are not stored. A delivery
    /// that is already stored stays as it is, except that a dead one becomes pending again.
    async fn enqueue(&mut self, queued: &[Parked]) -> Result<HashSet<SvixId>>;

    /// Make deliveries due at `now`: dead ones, whose count of attempts restarts at 0, and those whose retry is due later.
    /// Returns how many. Deliveries that a worker has claimed are skipped.
    async fn revive(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64>;

    /// Delay waiting deliveries until this time, although they have not failed. Deliveries that a worker has claimed are
    /// skipped.
    async fn postpone(&mut self, ids: &[SvixId], until: DateTime<Utc>) -> Result<()>;

    /// Record deliveries as processed. Returns those that were not recorded before. All of them are removed from the queue,
    /// even those that were recorded before, because two replicas may have parked and recorded one at once. A row that another
    /// worker has claimed is left for that worker to remove, so that recording never waits for it.
    async fn record(&mut self, records: &[Record<'_>]) -> Result<HashSet<SvixId>>;

    /// Correct the outcome of recorded deliveries.
    async fn settle(&mut self, outcomes: &[(SvixId, Outcome)]) -> Result<()>;

    /// The attempts so far of the parked deliveries among these.
    async fn waiting(&mut self, ids: &[SvixId]) -> Result<HashMap<SvixId, Waiting>>;

    /// Store deliveries for later, and remove any record that they were processed.
    async fn park(&mut self, parked: &[Parked]) -> Result<()>;

    /// Parked deliveries of no known object, and dead ones about objects other than users, whose bytes contain one of these
    /// ids, perhaps as part of a longer one. Also such deliveries whose bytes contain escapes or NULs, because these may hide
    /// an id.
    async fn unattributed(&mut self, ids: &[ClerkId]) -> Result<Vec<(SvixId, Bytes)>>;

    /// Remove the remaining data about these users: their parked deliveries, `deliveries` that name them, and audit actors.
    /// Deliveries that another worker has claimed are skipped: that worker finds the user deleted.
    async fn forget(&mut self, ids: &[ClerkId], deliveries: &[SvixId]) -> Result<()>;
}
