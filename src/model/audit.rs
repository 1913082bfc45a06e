//! The audit trail: who changed when and in which fields, never to what.

use chrono::{DateTime, Utc};

use super::{Actor, ClerkId, Entity, Field, Source, SvixId};

/// What happened to the *row* (not the type of the event that caused it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum AuditAction {
    Created,
    Updated,
    Deleted,
    Anonymized,
    /// Clerk deleted the user; the erasure is held back.
    DeletionHeld,
    /// What was held back will not happen.
    DeletionCancelled,
    /// Somebody asked to be shown the user's data, and was.
    Revealed,
}

impl AuditAction {
    /// The public name, as in `audit_log.action`, of what happened to an object of this kind: `USER_CREATED`.
    pub fn name(self, entity: &Entity) -> String {
        let what: &str = match self {
            Self::Deleted if entity.is_person() => "HARD_DELETED",
            // Of what is no person, a row that could only be marked is gone as well.
            Self::Anonymized if !entity.is_person() => "DELETED",
            action => action.into(),
        };
        format!("{}_{what}", entity.kind.to_ascii_uppercase())
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
