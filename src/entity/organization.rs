//! Organizations: the companies, teams or workspaces that users belong to.

use super::BY_CREATION;
use crate::model::{Column, Entity, Holds, Place};

/// The organization that an object belongs to. Events name it in one of two places.
pub(super) const ITS_ORGANIZATION: Column = Column::new("organization_id", Holds::Text)
    .at(Place::AnyOf(&[&["organization_id"], &["public_organization_data", "id"]]))
    .by_default()
    .parent(&ORGANIZATION);

/// See the module documentation.
pub static ORGANIZATION: Entity = Entity {
    kind: "organization",
    table: "organizations",
    id_prefix: "org_",
    events: ["organization.created", "organization.updated", "organization.deleted"],
    also: &[],
    path: Some("organizations"),
    query: BY_CREATION,
    within: None,
    of_each: &[],
    has_one: true,
    columns: &[
        Column::new("name", Holds::Text)
            .by_default()
            .kept()
            .samples("\"Analytical Engines\"", "\"Analytical Engines Ltd\""),
        Column::new("slug", Holds::Text).by_default().kept().sample("\"analytical-engines\""),
        Column::new("image_url", Holds::Text).by_default().kept().sample("\"https://img.clerk.com/sample\""),
        Column::new("created_by", Holds::Text).by_default().kept(),
        Column::new("max_allowed_memberships", Holds::Int).by_default().kept().sample("5"),
        Column::new("admin_delete_enabled", Holds::Bool).by_default().kept().sample("true"),
        Column::new("public_metadata", Holds::Json).kept().sample("{}"),
        Column::new("private_metadata", Holds::Json).kept().sample("{}"),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
