//! Users: the people who sign in.

use super::{USER_EMAIL_ADDRESS, USER_EXTERNAL_ACCOUNT, USER_PHONE_NUMBER, USER_WEB3_WALLET};
use crate::model::{Anonymized, Column, Entity, Field, Holds, Nested, Place};

/// See the module documentation.
pub static USER: Entity = Entity {
    kind: "user",
    table: "users",
    id_prefix: "user_",
    events: ["user.created", "user.updated", "user.deleted"],
    also: &[],
    path: Some("users"),
    query: &[],
    within: None,
    of_each: &[],
    has_one: true,
    columns: &[
        Column::new("email", Holds::Text)
            .at(Place::Primary {
                id: "primary_email_address_id",
                list: "email_addresses",
                member: "email_address",
            })
            .by_default()
            .identifies()
            .anonymized(Anonymized::Address),
        Column::new("email_verified", Holds::Bool).at(Place::PrimaryIsVerified {
            id: "primary_email_address_id",
            list: "email_addresses",
            member: "email_address",
        }),
        Column::new("first_name", Holds::Text)
            .identifies()
            .by_default()
            .anonymized(Anonymized::Text("Deleted")),
        Column::new("last_name", Holds::Text).identifies().by_default().anonymized(Anonymized::Text("User")),
        Column::new("image_url", Holds::Text).identifies().by_default(),
        Column::new("username", Holds::Text).identifies(),
        Column::new("phone_number", Holds::Text)
            .at(Place::Primary {
                id: "primary_phone_number_id",
                list: "phone_numbers",
                member: "phone_number",
            })
            .identifies(),
        Column::new("external_id", Holds::Text).identifies(),
        Column::new("public_metadata", Holds::Json),
        Column::new("unsafe_metadata", Holds::Json),
        Column::new("private_metadata", Holds::Json),
        Column::new("banned", Holds::Bool),
        Column::new("locked", Holds::Bool),
        Column::new("last_sign_in_at", Holds::Time),
        Column::new("last_active_at", Holds::Time).moves_by_itself(),
        Column::RAW,
    ],
    nested: &[
        part("email_addresses", &USER_EMAIL_ADDRESS),
        part("phone_numbers", &USER_PHONE_NUMBER),
        part("external_accounts", &USER_EXTERNAL_ACCOUNT),
        part("web3_wallets", &USER_WEB3_WALLET),
    ],
    secrets: &[],
    follows: &[],
    has_preferences: true,
    unique: &[],
};

const fn part(member: &'static str, entity: &'static Entity) -> Nested {
    Nested { member, entity, inherits: &[("user_id", "id")], is_whole: true }
}

/// The primary address. `UNIQUE_EMAIL` uses it, and so do sinks that identify people by their address.
pub const EMAIL: Field = USER.field("email");
pub const FIRST_NAME: Field = USER.field("first_name");
pub const LAST_NAME: Field = USER.field("last_name");
pub const IMAGE_URL: Field = USER.field("image_url");
