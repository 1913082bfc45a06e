//! The external accounts that users sign in with.

use super::USER;
use crate::model::{Column, Entity, Holds};

/// See the module documentation. Part of a user. Clerk lists all of them with the user; those no longer listed are deleted.
pub static USER_EXTERNAL_ACCOUNT: Entity = Entity {
    kind: "user_external_account",
    table: "user_external_accounts",
    id_prefix: "eac_",
    events: ["userExternalAccount.created", "userExternalAccount.updated", "userExternalAccount.deleted"],
    also: &[],
    path: None,
    query: &[],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("user_id", Holds::Text).by_default().parent(&USER),
        Column::new("provider", Holds::Text).by_default().kept().sample("\"oauth_google\""),
        Column::new("provider_user_id", Holds::Text).by_default(),
        Column::new("identification_id", Holds::Text).by_default().kept(),
        Column::new("approved_scopes", Holds::Text).by_default().kept(),
        Column::new("email_address", Holds::Text).by_default(),
        Column::new("username", Holds::Text).by_default(),
        Column::new("first_name", Holds::Text).by_default(),
        Column::new("last_name", Holds::Text).by_default(),
        Column::new("image_url", Holds::Text).by_default(),
        Column::new("label", Holds::Text).by_default(),
        Column::new("public_metadata", Holds::Json),
        Column::new("verification", Holds::Json).by_default().kept().sample("{\"status\":\"verified\"}"),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
