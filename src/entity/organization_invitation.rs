//! Invitations to an organization.

use super::{BY_CREATION, organization::ITS_ORGANIZATION};
use crate::model::{Column, Entity, Holds};

/// See the module documentation. An invitation's link is a ticket and is never read. Clerk sends no event when an
/// invitation expires: compare `expires_at` with the clock.
pub static ORGANIZATION_INVITATION: Entity = Entity {
    kind: "organization_invitation",
    table: "organization_invitations",
    id_prefix: "orginv_",
    events: [
        "organizationInvitation.created",
        "organizationInvitation.accepted",
        "organizationInvitation.deleted",
    ],
    also: &["organizationInvitation.revoked"],
    path: Some("organization_invitations"),
    query: BY_CREATION,
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        ITS_ORGANIZATION,
        Column::new("email_address", Holds::Text).address().sample("\"grace@example.com\""),
        Column::new("role", Holds::Text).by_default().kept().sample("\"org:member\""),
        Column::new("role_name", Holds::Text).by_default().kept().sample("\"Member\""),
        Column::new("status", Holds::Text).by_default().kept().samples("\"pending\"", "\"accepted\""),
        Column::new("inviter_id", Holds::Text).by_default(),
        Column::new("user_id", Holds::Text).by_default(),
        Column::new("expires_at", Holds::Time).by_default().kept(),
        Column::new("public_metadata", Holds::Json).sample("{}"),
        Column::new("private_metadata", Holds::Json).sample("{}"),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[&["url"], &["public_inviter_data"]],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
