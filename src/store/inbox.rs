//! Deliveries: those that wait or are dead, those that are processed, and what is kept of either only for a time.

use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::{
    entity,
    model::{ClerkId, SvixId, as_rfc3339},
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
