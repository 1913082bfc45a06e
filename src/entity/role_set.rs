//! Sets of roles that organizations choose from. Clerk sends no events about them.

use super::BY_CREATION;
use crate::model::{Column, Entity, Holds};

/// See the module documentation.
pub static ROLE_SET: Entity = Entity {
    kind: "role_set",
    table: "role_sets",
    id_prefix: "",
    events: ["roleSet.created", "roleSet.updated", "roleSet.deleted"],
    also: &[],
    path: Some("role_sets"),
    query: BY_CREATION,
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("name", Holds::Text).by_default().kept().samples("\"Standard\"", "\"Standard roles\""),
        Column::new("key", Holds::Text).by_default().kept().sample("\"role_set:standard\""),
        Column::new("description", Holds::Text).by_default().kept(),
        Column::new("roles", Holds::Json).array().by_default().kept().sample("[]"),
        Column::new("default_role", Holds::Json).by_default().kept(),
        Column::new("creator_role", Holds::Json).by_default().kept(),
        Column::new("type", Holds::Text).by_default().kept().sample("\"initial\""),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
