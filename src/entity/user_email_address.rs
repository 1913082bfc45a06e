//! The e-mail addresses of users.

use super::USER;
use crate::model::{Column, Entity, Holds};

/// See the module documentation. Part of a user. Clerk lists all of them with the user; those no longer listed are deleted.
pub static USER_EMAIL_ADDRESS: Entity = Entity {
    kind: "user_email_address",
    table: "user_email_addresses",
    id_prefix: "idn_",
    events: ["userEmailAddress.created", "userEmailAddress.updated", "userEmailAddress.deleted"],
    also: &[],
    path: None,
    query: &[],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("user_id", Holds::Text).by_default().parent(&USER),
        Column::new("email_address", Holds::Text).by_default().sample("\"ada@example.com\""),
        Column::new("reserved", Holds::Bool).by_default().kept(),
        Column::new("verification", Holds::Json).by_default().kept().sample("{\"status\":\"verified\"}"),
        Column::new("linked_to", Holds::Json).array().by_default(),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
