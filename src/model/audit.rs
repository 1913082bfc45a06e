//! The audit trail: which object changed, when and in which fields. It never contains values.

use chrono::{DateTime, Utc};

use super::{Actor, ClerkId, Entity, Field, Source, SvixId};

/// What happened to the *row*, which can differ from the type of the event that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum AuditAction {
    Created,
    Updated,
    Deleted,
    Anonymized,
    /// Clerk deleted the user; the erasure is delayed.
    DeletionHeld,
    /// The delayed erasure was cancelled.
    DeletionCancelled,
    /// An operator displayed the user's data.
    Revealed,
}

impl AuditAction {
    /// The public name for an object of this kind, as in `audit_log.action`: `USER_CREATED`.
    pub fn name(self, entity: &Entity) -> String {
        let what: &str = match self {
            Self::Deleted if entity.is_person() => "HARD_DELETED",
            // For kinds that are not people, a row that could only be marked as deleted counts as deleted.
            Self::Anonymized if !entity.is_person() => "DELETED",
            action => action.into(),
        };
        format!("{}_{what}", entity.kind.to_ascii_uppercase())
    }
}

/// One line of `audit_log`, with what goes to `audit_actors`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEntry {
    /// When the line was written.
    pub at: DateTime<Utc>,
    pub action: AuditAction,
    pub clerk_id: ClerkId,
    /// The delivery that caused it, if there was one.
    pub svix_id: Option<SvixId>,
    pub source: Source,
    /// Names only, never values.
    pub changed_fields: Vec<Field>,
    /// When it happened at Clerk.
    pub event_at: DateTime<Utc>,
    /// Personal data, stored separately in `audit_actors` so that an erasure can empty it.
    pub actor: Option<Actor>,
}
