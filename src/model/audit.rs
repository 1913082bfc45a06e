//! The audit trail: who changed when and in which fields, never to what.

use chrono::{DateTime, Utc};

use super::{Actor, ClerkId, Field, Source, SvixId};

/// What happened to the *row* (not the type of the event that caused it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditAction {
    UserCreated,
    UserUpdated,
    UserHardDeleted,
    UserAnonymized,
    /// Clerk deleted the user; the erasure is held back.
    UserDeletionHeld,
    /// What was held back will not happen.
    UserDeletionCancelled,
    /// Somebody asked to be shown the user's data, and was.
    UserRevealed,
}

impl AuditAction {
    /// The public name, as in `audit_log.action`.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserCreated => "USER_CREATED",
            Self::UserUpdated => "USER_UPDATED",
            Self::UserHardDeleted => "USER_HARD_DELETED",
            Self::UserAnonymized => "USER_ANONYMIZED",
            Self::UserDeletionHeld => "USER_DELETION_HELD",
            Self::UserDeletionCancelled => "USER_DELETION_CANCELLED",
            Self::UserRevealed => "USER_REVEALED",
        }
    }
}

/// One line of `audit_log`, with what goes to `audit_actors`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEntry {
    /// When we wrote it.
    pub at: DateTime<Utc>,
    pub action: AuditAction,
    pub clerk_id: ClerkId,
    /// The delivery that caused it, if one did.
    pub svix_id: Option<SvixId>,
    pub source: Source,
    /// Names only.
    pub changed_fields: Vec<Field>,
    /// When it happened at Clerk.
    pub event_at: DateTime<Utc>,
    /// Personal data, kept apart in `audit_actors` so that an erasure can empty it.
    pub actor: Option<Actor>,
}
