//! Domains of an organization. People with an e-mail address at such a domain may join it.

use super::{BY_CREATION, organization::ITS_ORGANIZATION};
use crate::model::{Column, Entity, Holds};

/// See the module documentation.
pub static ORGANIZATION_DOMAIN: Entity = Entity {
    kind: "organization_domain",
    table: "organization_domains",
    id_prefix: "orgdmn_",
    events: ["organizationDomain.created", "organizationDomain.updated", "organizationDomain.deleted"],
    also: &[],
    path: Some("organization_domains"),
    query: BY_CREATION,
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        ITS_ORGANIZATION,
        Column::new("name", Holds::Text).by_default().kept().sample("\"example.com\""),
        Column::new("enrollment_mode", Holds::Text)
            .by_default()
            .kept()
            .samples("\"manual_invitation\"", "\"automatic_invitation\""),
        Column::new("affiliation_email_address", Holds::Text),
        Column::new("affiliation_verification", Holds::Json).by_default().kept(),
        Column::new("ownership_verification", Holds::Json).by_default().kept(),
        Column::new("verification", Holds::Json).by_default().kept().sample("{\"status\":\"verified\"}"),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
