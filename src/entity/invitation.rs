//! Invitations to the application. Clerk sends no events about them.

use super::BY_CREATION;
use crate::model::{Column, Entity, Holds};

/// See the module documentation. An invitation's link is a ticket and is never read. An invitation expires at `expires_at`.
pub static INVITATION: Entity = Entity {
    kind: "invitation",
    table: "invitations",
    id_prefix: "inv_",
    events: ["invitation.created", "invitation.updated", "invitation.deleted"],
    also: &[],
    path: Some("invitations"),
    query: &[BY_CREATION[0], ("paginated", "true")],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("email_address", Holds::Text).address().sample("\"grace@example.com\""),
        Column::new("status", Holds::Text).by_default().kept().samples("\"pending\"", "\"accepted\""),
        Column::new("revoked", Holds::Bool).by_default().kept(),
        Column::new("expires_at", Holds::Time).by_default().kept(),
        Column::new("public_metadata", Holds::Json).sample("{}"),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[&["url"]],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
