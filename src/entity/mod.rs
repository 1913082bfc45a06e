//! Every kind of Clerk object that can be synced: one file, one declaration each.
//!
//! What all kinds have in common is written elsewhere, once. A declaration holds no logic.

pub mod organization;
pub mod organization_membership;
pub mod user;

pub use organization::ORGANIZATION;
pub use organization_membership::ORGANIZATION_MEMBERSHIP;
pub use user::USER;

use crate::model::Entity;

/// Every kind.
pub static ALL: &[&Entity] = &[&USER, &ORGANIZATION, &ORGANIZATION_MEMBERSHIP];

/// The declaration of this kind.
pub fn named(kind: &str) -> Option<&'static Entity> {
    ALL.iter().copied().find(|entity| entity.kind == kind)
}

/// The kind that this event is about.
pub fn of_event(event_type: &str) -> Option<&'static Entity> {
    ALL.iter().copied().find(|entity| entity.meaning(event_type).is_some())
}
