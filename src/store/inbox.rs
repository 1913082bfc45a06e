//! Deliveries: those that wait or are dead, those that are processed, and what is kept of either only for a time.

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
    /// When to try again; `None` if never, which is the state `dead`.
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub received_at: DateTime<Utc>,
    /// Since when it is dead.
    pub dead_at: Option<DateTime<Utc>>,
    /// Why, without anybody's data; empty if it was never tried.
    pub last_error: String,
    /// The trace of the request that put it here.
    pub trace: TraceContext,
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parked({}, redacted)", self.svix_id)
    }
}

impl Parked {
    /// `webhook_queue.kind`: of what kind of object it is about, also where its id is not usable.
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
    /// It will be tried.
    Pending,
    /// It will not, unless somebody asks for it.
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

    /// The state of this public name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Pending, Self::Dead].into_iter().find(|state| state.name() == name)
    }
}

/// How a parked delivery has fared so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How often it was tried.
    pub attempts: u32,
    /// When it first came.
    pub received_at: DateTime<Utc>,
}

/// A delivery that waits or is dead, as `webhook_queue` and the private API have it: without its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Entry)]
pub struct Queued {
    #[schema(value_type = String, example = "msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw")]
    pub svix_id: SvixId,
    /// Clerk's name of the event, if it could be read.
    #[schema(example = "user.updated")]
    pub event_type: Option<String>,
    /// Of what kind of object it is about, if its type could be read.
    #[schema(example = "user")]
    pub kind: Option<String>,
    /// The object it is about, if that could be read.
    #[schema(value_type = Option<String>, example = "user_29w83sxmDNGwOuEthce5gg56FcC")]
    pub clerk_id: Option<ClerkId>,
    /// `pending` or `dead`.
    #[schema(value_type = String, example = "dead")]
    pub state: QueueState,
    /// How often it was tried.
    #[schema(example = 15)]
    pub attempts: u32,
    /// When it is tried again; null if it is dead.
    #[serde(serialize_with = "as_rfc3339")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(example = "2026-11-16T08:00:00.250Z")]
    pub received_at: DateTime<Utc>,
    /// Why it failed, without anybody's data; null if it was never tried.
    #[serde(serialize_with = "unless_empty")]
    #[schema(
        value_type = Option<String>,
        example = "a constraint or trigger refuses (23514): table users, constraint users_check"
    )]
    pub last_error: String,
    /// How long its body is.
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

/// Which deliveries of `webhook_queue` are looked for.
#[derive(Clone, Debug, Default)]
pub struct QueueFilter {
    /// Some of these.
    pub ids: Option<Vec<SvixId>>,
    pub state: Option<QueueState>,
    /// Those of this type of event.
    pub event_type: Option<String>,
    /// Those about this user.
    pub clerk_id: Option<ClerkId>,
    /// Those whose id is greater.
    pub after: Option<SvixId>,
}

/// Parked deliveries by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    pub pending: u64,
    pub dead: u64,
    /// When the first of those that wait became due, or will be.
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

/// Which processed deliveries are looked for.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// Some of these.
    pub ids: Option<Vec<SvixId>>,
    pub event_type: Option<String>,
    pub outcome: Option<String>,
    /// Those that were processed before this one.
    pub before: Option<(DateTime<Utc>, SvixId)>,
}

/// How many of the newest deliveries are looked through for those of a type or outcome: a search for what is rare must not
/// read a whole table.
pub const LOOKED_THROUGH: u32 = 10_000;

/// Rows that are kept only for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    /// Ids of processed deliveries.
    Processed,
    /// Parked deliveries that are dead, by when they died.
    Dead,
    /// Messages that were delivered or discarded.
    Told,
    /// Messages that are dead, by when they died.
    Untold,
    /// Counts of what was answered.
    Activity,
}

impl Old {
    /// What people call it.
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

/// The deliveries that wait, and those that are processed, as a transaction writes them. Ids are given sorted and each at most
/// once; empty slices cost nothing.
#[async_trait]
pub trait Inbox: Session {
    /// Take deliveries that wait and are due at one of these times, the longest due first, at most `limit` of them, and none
    /// after their bodies together have `bytes`. What is gone from before these times costs nothing. Until this transaction ends
    /// nobody else gets them, and nobody waits for them; should its process die they are free at once.
    async fn claim(
        &mut self,
        due: RangeInclusive<DateTime<Utc>>,
        limit: u32,
        bytes: u64,
    ) -> Result<Vec<Parked>>;

    /// The same with these, as far as they wait, are due, and are not taken by somebody else.
    async fn claim_these(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<Vec<Parked>>;

    /// Keep deliveries that are to be processed, and return those that were recorded as processed before, of which
    /// nothing is kept. What is kept already stays as it is, but if it was dead it is pending again.
    async fn enqueue(&mut self, queued: &[Parked]) -> Result<HashSet<SvixId>>;

    /// Make deliveries due at `now` that are dead, with a fresh count of attempts, or that are to be tried only later;
    /// returns how many. Those that somebody works on are left to them.
    async fn revive(&mut self, ids: &[SvixId], now: DateTime<Utc>) -> Result<u64>;

    /// Try deliveries that wait not before this time, though they have not failed. Those that somebody works on are left to
    /// them.
    async fn postpone(&mut self, ids: &[SvixId], until: DateTime<Utc>) -> Result<()>;

    /// Record deliveries as processed; returns those that were not recorded before. None of them is parked any more,
    /// also if it was recorded before: two replicas may have done both at once. One that somebody else works on at this
    /// moment is theirs to remove, so that nobody waits for it.
    async fn record(&mut self, records: &[Record<'_>]) -> Result<HashSet<SvixId>>;

    /// Correct the outcome of recorded deliveries.
    async fn settle(&mut self, outcomes: &[(SvixId, Outcome)]) -> Result<()>;

    /// What is known of these deliveries if they are parked.
    async fn waiting(&mut self, ids: &[SvixId]) -> Result<HashMap<SvixId, Waiting>>;

    /// Keep deliveries for later, in place of a record that they were processed.
    async fn park(&mut self, parked: &[Parked]) -> Result<()>;

    /// Parked deliveries of no known object, and dead ones of objects that are no users, whose bytes contain one of these ids,
    /// perhaps as part of a longer one; and all whose bytes have escapes or NULs, so that an id may be hidden in them.
    async fn unattributed(&mut self, ids: &[ClerkId]) -> Result<Vec<(SvixId, Bytes)>>;

    /// Remove everything else that is kept of these users: parked deliveries, with these that name them, and audit actors.
    /// A delivery that somebody else works on at this moment is left to them: they will find the user deleted.
    async fn forget(&mut self, ids: &[ClerkId], deliveries: &[SvixId]) -> Result<()>;
}
