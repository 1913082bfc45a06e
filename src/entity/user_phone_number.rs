//! The phone numbers of users.

use super::USER;
use crate::model::{Column, Entity, Holds};

/// See the module documentation. Part of a user. Clerk lists all of them with the user; those no longer listed are deleted.
pub static USER_PHONE_NUMBER: Entity = Entity {
    kind: "user_phone_number",
    table: "user_phone_numbers",
    id_prefix: "idn_",
    events: ["userPhoneNumber.created", "userPhoneNumber.updated", "userPhoneNumber.deleted"],
    also: &[],
    path: None,
    query: &[],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("user_id", Holds::Text).by_default().parent(&USER),
        Column::new("phone_number", Holds::Text).by_default().sample("\"+15555550100\""),
        Column::new("reserved_for_second_factor", Holds::Bool).by_default().kept(),
        Column::new("default_second_factor", Holds::Bool).by_default().kept(),
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
