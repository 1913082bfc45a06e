//! Memberships: which user belongs to which organization, and in which role.

use super::{BY_CREATION, ORGANIZATION, PERMISSION, ROLE, USER};
use crate::model::{Column, Entity, Holds, Place};

/// See the module documentation. A user who leaves and joins again gets a new membership, so a user has at most one per
/// organization at a time.
pub static ORGANIZATION_MEMBERSHIP: Entity = Entity {
    kind: "organization_membership",
    table: "organization_memberships",
    id_prefix: "orgmem_",
    events: [
        "organizationMembership.created",
        "organizationMembership.updated",
        "organizationMembership.deleted",
    ],
    also: &[],
    path: Some("organization_memberships"),
    query: BY_CREATION,
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("organization_id", Holds::Text)
            .at(Place::Path(&["organization", "id"]))
            .by_default()
            .parent(&ORGANIZATION),
        Column::new("user_id", Holds::Text)
            .at(Place::Path(&["public_user_data", "user_id"]))
            .by_default()
            .parent(&USER),
        Column::new("role", Holds::Text).by_default().kept().samples("\"org:member\"", "\"org:admin\""),
        Column::new("role_name", Holds::Text).by_default().kept().samples("\"Member\"", "\"Admin\""),
        Column::new("permissions", Holds::Json)
            .array()
            .by_default()
            .kept()
            .sample("[\"org:sys_memberships:read\"]"),
        Column::new("public_metadata", Holds::Json).sample("{}"),
        Column::new("private_metadata", Holds::Json).sample("{}"),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[&ROLE, &PERMISSION],
    has_preferences: false,
    unique: &["organization_id", "user_id"],
};
