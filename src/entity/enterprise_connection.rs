//! Connections to the identity providers of companies. Clerk sends no events about them.

use super::ORGANIZATION;
use crate::model::{Column, Entity, Holds};

/// See the module documentation. A connection's credentials are never read.
pub static ENTERPRISE_CONNECTION: Entity = Entity {
    kind: "enterprise_connection",
    table: "enterprise_connections",
    id_prefix: "",
    events: ["enterpriseConnection.created", "enterpriseConnection.updated", "enterpriseConnection.deleted"],
    also: &[],
    path: Some("enterprise_connections"),
    query: &[],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("organization_id", Holds::Text).by_default().maybe_parent(&ORGANIZATION),
        Column::new("name", Holds::Text).by_default().kept().samples("\"Example\"", "\"Example Ltd\""),
        Column::new("provider", Holds::Text).by_default().kept().sample("\"saml_custom\""),
        Column::new("active", Holds::Bool).by_default().kept().sample("true"),
        Column::new("domains", Holds::Json).array().by_default().kept().sample("[\"example.com\"]"),
        Column::new("sync_user_attributes", Holds::Bool).by_default().kept(),
        Column::new("allow_organization_account_linking", Holds::Bool).by_default().kept(),
        Column::new("disable_additional_identifications", Holds::Bool).by_default().kept(),
        Column::new("disable_jit_provisioning", Holds::Bool).by_default().kept(),
        Column::new("authenticatable", Holds::Bool).by_default().kept(),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[&["saml_connection"], &["oauth_config"]],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
