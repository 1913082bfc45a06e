//! A delivery: one piece of news about one entity, from wherever it came.

use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{ClerkId, Entity, Patch, SvixId, Version};
use crate::telemetry::TraceContext;

/// Where news came from; kept in `audit_log.source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Source {
    Webhook,
    /// Clerk's Backend API, all users.
    Backfill,
    /// Clerk's Backend API, because it differed.
    Reconcile,
    /// Clerk's Backend API, because somebody asked for this user.
    Api,
    Cli,
    /// The time for which an erasure was held back is over.
    Retention,
    /// Somebody at the dashboard.
    Dashboard,
}

impl Source {
    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// One delivery, parsed as far as we sync it.
#[derive(Clone)]
pub struct Delivery {
    /// `None` for news that did not come as a webhook.
    pub svix_id: Option<SvixId>,
    /// Clerk's name of the event, such as `user.updated`, if it could be read.
    pub event_type: Option<String>,
    /// The user it is about, where known.
    pub clerk_id: Option<ClerkId>,
    /// When it happened at Clerk.
    pub event_at: DateTime<Utc>,
    /// When it came to us.
    pub received_at: DateTime<Utc>,
    pub source: Source,
    /// The raw body, kept until its fate is known so that it can be parked byte for byte.
    pub payload: Bytes,
    pub content: Content,
    /// What it says of objects inside of the one that it is about.
    pub nested: Vec<Change>,
    /// The kinds of which it shows all that the object has.
    pub whole: Vec<&'static Entity>,
    /// Where whoever works on it stands.
    pub trace: TraceContext,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { svix_id, event_type, .. } = self;
        write!(f, "Delivery({svix_id:?} {event_type:?}, redacted)")
    }
}

impl Delivery {
    /// News of a user that did not come as a webhook: it happened at `event_at`, and came to us at `received_at`.
    pub fn without_webhook(
        clerk_id: ClerkId,
        source: Source,
        event_at: DateTime<Utc>,
        received_at: DateTime<Utc>,
        content: Content,
    ) -> Self {
        Self {
            svix_id: None,
            event_type: None,
            clerk_id: Some(clerk_id),
            event_at,
            received_at,
            source,
            payload: Bytes::new(),
            content,
            nested: Vec::new(),
            whole: Vec::new(),
            trace: TraceContext::default(),
        }
    }
}

/// What a delivery says.
#[derive(Clone, Debug)]
pub enum Content {
    /// A change of a user.
    Change(Change),
    /// Nothing that we sync.
    Ignored,
    /// Genuine, but cannot be understood. The reason names fields and types, never values.
    Unusable(String),
}

/// A change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    pub clerk_id: ClerkId,
    pub version: Version,
    pub news: News,
    /// Who caused it, where Clerk says so.
    pub actor: Option<Actor>,
}

impl Change {
    /// What it says of the fields, if it shows the object as being there.
    pub fn patch(&self) -> Option<&Patch> {
        match &self.news {
            News::Upsert { patch, .. } | News::Adopt { patch, .. } => Some(patch),
            _ => None,
        }
    }
}

/// What the change is.
#[derive(Clone, Debug)]
pub enum News {
    /// The user exists and looks like this, as far as the patch goes.
    Upsert {
        patch: Patch,
        /// When the user signed up, Clerk's own time.
        created_at: Option<DateTime<Utc>>,
    },
    /// The user looked like this in a table that was there before. It counts only if nothing is known here of the user.
    Adopt { patch: Patch, created_at: Option<DateTime<Utc>> },
    /// The user is gone, for ever. Erased at once, or when the time is over for which that is held back.
    Delete,
    /// The user is erased at once, if this is so.
    Erase(EraseIf),
    /// The deletion that is held back is taken back.
    Keep,
}

/// What must be so for a user to be erased at once. Looked at under the register's lock, so that an erasure and the one
/// who takes it back cannot pass each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EraseIf {
    Always,
    /// The deletion is held back.
    Held,
    /// It was held back, and the time for that is over.
    TimeIsOver,
    /// Nothing is known here of the user.
    Unknown,
}

/// The person behind an event: personal data.
#[derive(Clone, PartialEq, Eq)]
pub struct Actor {
    pub ip: Option<String>,
    pub user_agent: Option<String>,
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Actor(redacted)")
    }
}
