//! A delivery: one change or deletion of one object, from any source.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{ClerkId, Entity, Patch, SvixId, Version};
use crate::telemetry::TraceContext;

/// The source of a change; stored in `audit_log.source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Source {
    Webhook,
    /// Clerk's Backend API, when it lists all objects.
    Backfill,
    /// Clerk's Backend API, because the row differed.
    Reconcile,
    /// Clerk's Backend API, because a caller of the private API requested this user.
    Api,
    Cli,
    /// The grace period of an erasure ended.
    Retention,
    /// A user of the dashboard.
    Dashboard,
}

impl Source {
    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// One delivery, with its synced parts parsed.
#[derive(Clone)]
pub struct Delivery {
    /// `None` if it was not a webhook.
    pub svix_id: Option<SvixId>,
    /// Clerk's name of the event, such as `user.updated`, if it could be read.
    pub event_type: Option<String>,
    /// The object it is about, if known.
    pub clerk_id: Option<ClerkId>,
    /// When it happened at Clerk.
    pub event_at: DateTime<Utc>,
    /// When clerk-sync received it.
    pub received_at: DateTime<Utc>,
    pub source: Source,
    /// The raw body, kept until the outcome is known so that it can be parked byte for byte.
    pub payload: Bytes,
    pub content: Content,
    /// Changes of objects nested in the main object.
    pub nested: Inside,
    /// The nested kinds for which it lists all objects, so that others are deleted.
    pub whole: Vec<&'static Entity>,
    /// A hash of the nested objects as they are shown, and of what is read of them; `None` if it lists no kind whole. Another
    /// delivery about the same object with this digest shows the same nested objects. Half of a SHA-256 in hexadecimal,
    /// because people choose some of the values.
    pub parts_digest: Option<String>,
    /// The trace that it belongs to.
    pub trace: TraceContext,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { svix_id, event_type, .. } = self;
        write!(f, "Delivery({svix_id:?} {event_type:?}, redacted)")
    }
}

impl Delivery {
    /// Whether this nested change shows a part: an object of a kind whose objects it lists all. Parts have no events of
    /// their own.
    pub fn shows_part(&self, change: &Change) -> bool {
        self.whole.contains(&change.clerk_id.entity())
    }

    /// A part without a time of its own has the time of the event.
    pub fn is_timed_by(&self, part: &Change) -> bool {
        part.version.version == self.event_at.timestamp_millis()
    }

    /// What decides between versions of one time; see [`Version::tie`].
    pub fn tie(&self) -> String {
        self.svix_id.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// A change that was not a webhook. It happened at `event_at`, and clerk-sync received it at `received_at`.
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
            nested: Inside::default(),
            whole: Vec::new(),
            parts_digest: None,
            trace: TraceContext::default(),
        }
    }
}

/// The content of a delivery.
#[derive(Clone, Debug)]
pub enum Content {
    /// A change of an object.
    Change(Change),
    /// Nothing that is synced.
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
    /// The person who caused it, if Clerk names one.
    pub actor: Option<Actor>,
}

impl Change {
    /// The values of its fields, unless the object is deleted.
    pub fn patch(&self) -> Option<&Patch> {
        match &self.news {
            News::Upsert { patch, .. } | News::Adopt { patch, .. } => Some(patch),
            _ => None,
        }
    }
}

/// The type of a change.
#[derive(Clone, Debug)]
pub enum News {
    /// The object exists with these values.
    Upsert {
        patch: Patch,
        /// When the object was created, by Clerk's clock.
        created_at: Option<DateTime<Utc>>,
    },
    /// The user had these values in an adopted table. Ignored if clerk-sync already knows the user.
    Adopt { patch: Patch, created_at: Option<DateTime<Utc>> },
    /// The object is permanently deleted: at once, or at the end of the grace period.
    Delete,
    /// Erase the user at once, if this condition holds.
    Erase(EraseIf),
    /// Cancel the delayed deletion.
    Keep,
}

/// The condition for erasing a user at once. It is checked under the register's lock, so that an erasure and its cancellation
/// cannot overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EraseIf {
    Always,
    /// The deletion is delayed.
    Held,
    /// The deletion was delayed, and its grace period is over.
    TimeIsOver,
    /// clerk-sync does not know the user.
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

/// Changes that are read when they are first needed. Most events about a user repeat what is stored, and need none.
#[derive(Clone, Default)]
pub struct Inside(Option<Arc<Deferred>>);

type Deferred = LazyLock<Vec<Change>, Box<dyn FnOnce() -> Vec<Change> + Send>>;

impl Inside {
    /// Changes that this function reads.
    pub fn read_by(read: impl FnOnce() -> Vec<Change> + Send + 'static) -> Self {
        Self(Some(Arc::new(LazyLock::new(Box::new(read)))))
    }
}

impl From<Vec<Change>> for Inside {
    fn from(changes: Vec<Change>) -> Self {
        Self::read_by(|| changes)
    }
}

impl Deref for Inside {
    type Target = [Change];

    fn deref(&self) -> &[Change] {
        self.0.as_ref().map_or(&[], |changes| changes.as_slice())
    }
}
