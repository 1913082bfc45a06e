//! People on the waitlist.

use super::{BY_CREATION, INVITATION};
use crate::model::{Column, Entity, Holds, Nested, Place};

/// See the module documentation. The link of an entry's invitation is a ticket and is never read.
pub static WAITLIST_ENTRY: Entity = Entity {
    kind: "waitlist_entry",
    table: "waitlist_entries",
    id_prefix: "",
    events: ["waitlistEntry.created", "waitlistEntry.updated", "waitlistEntry.deleted"],
    also: &[],
    path: Some("waitlist_entries"),
    query: BY_CREATION,
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("email_address", Holds::Text).address().sample("\"grace@example.com\""),
        Column::new("status", Holds::Text).by_default().kept().samples("\"pending\"", "\"invited\""),
        Column::new("is_locked", Holds::Bool).by_default().kept(),
        Column::new("invitation_id", Holds::Text)
            .at(Place::AnyOf(&[&["invitation", "id"]]))
            .by_default()
            .kept(),
        Column::RAW,
    ],
    nested: &[Nested { member: "invitation", entity: &INVITATION, inherits: &[], is_whole: false }],
    secrets: &[&["invitation", "url"]],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
