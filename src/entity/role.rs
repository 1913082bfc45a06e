//! Roles that members of organizations can have.

use super::{BY_CREATION, PERMISSION};
use crate::model::{Column, Entity, Holds, Nested};

/// See the module documentation.
pub static ROLE: Entity = Entity {
    kind: "role",
    table: "roles",
    id_prefix: "role_",
    events: ["role.created", "role.updated", "role.deleted"],
    also: &[],
    path: Some("organization_roles"),
    query: BY_CREATION,
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("name", Holds::Text).by_default().kept().samples("\"Billing\"", "\"Billing manager\""),
        Column::new("key", Holds::Text).by_default().kept().sample("\"org:billing\""),
        Column::new("description", Holds::Text).by_default().kept(),
        Column::new("is_creator_eligible", Holds::Bool).by_default().kept().sample("false"),
        Column::new("permissions", Holds::Json).array().by_default().kept().sample("[]"),
        Column::RAW,
    ],
    nested: &[Nested { member: "permissions", entity: &PERMISSION, inherits: &[], is_whole: false }],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
