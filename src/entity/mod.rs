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
