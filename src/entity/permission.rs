//! Permissions that roles grant.

use super::BY_CREATION;
use crate::model::{Column, Entity, Holds};

/// See the module documentation.
pub static PERMISSION: Entity = Entity {
    kind: "permission",
    table: "permissions",
    id_prefix: "perm_",
    events: ["permission.created", "permission.updated", "permission.deleted"],
    also: &[],
    path: Some("organization_permissions"),
    query: BY_CREATION,
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("name", Holds::Text).by_default().kept().samples("\"Read bills\"", "\"Read all bills\""),
        Column::new("key", Holds::Text).by_default().kept().sample("\"org:bills:read\""),
        Column::new("description", Holds::Text).by_default().kept(),
        Column::new("type", Holds::Text).by_default().kept().sample("\"user\""),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
