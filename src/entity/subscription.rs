//! Subscriptions: one per user or organization that can pay.

use super::{ORGANIZATION, SUBSCRIPTION_ITEM, USER};
use crate::model::{Column, Entity, Holds, Nested, OfEach, Place};

/// The payer, if that is a user.
pub(super) const USER_WHO_PAYS: Column = Column::new("user_id", Holds::Text)
    .at(Place::AnyOf(&[&["payer", "user_id"]]))
    .by_default()
    .maybe_parent(&USER);

/// The payer, if that is an organization.
pub(super) const ORGANIZATION_THAT_PAYS: Column = Column::new("organization_id", Holds::Text)
    .at(Place::AnyOf(&[&["payer", "organization_id"]]))
    .by_default()
    .maybe_parent(&ORGANIZATION);

/// See the module documentation. Clerk has no list of subscriptions, only a request per payer.
pub static SUBSCRIPTION: Entity = Entity {
    kind: "subscription",
    table: "subscriptions",
    id_prefix: "csub_",
    events: ["subscription.created", "subscription.updated", "subscription.deleted"],
    also: &["subscription.active", "subscription.pastDue"],
    path: None,
    query: &[],
    within: None,
    of_each: &[
        OfEach { owner: &USER, path: "users/{}/billing/subscription", parameter: None, column: "user_id" },
        OfEach {
            owner: &ORGANIZATION,
            path: "organizations/{}/billing/subscription",
            parameter: None,
            column: "organization_id",
        },
    ],
    has_one: false,
    columns: &[
        USER_WHO_PAYS,
        ORGANIZATION_THAT_PAYS,
        Column::new("payer_id", Holds::Text).by_default().kept(),
        Column::new("status", Holds::Text).by_default().kept().samples("\"active\"", "\"past_due\""),
        Column::new("active_at", Holds::Time).by_default().kept(),
        Column::new("past_due_at", Holds::Time).by_default().kept(),
        Column::new("canceled_at", Holds::Time).by_default().kept(),
        Column::new("ended_at", Holds::Time).by_default().kept(),
        Column::new("latest_payment_id", Holds::Text).by_default().kept(),
        Column::new("payment_source_id", Holds::Text).by_default().kept(),
        Column::new("payer", Holds::Json),
        Column::RAW,
    ],
    // The name in events, and the name in the Backend API.
    nested: &[items("items"), items("subscription_items")],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};

const fn items(member: &'static str) -> Nested {
    let inherits = &[("payer", "payer"), ("payer_id", "payer_id"), ("subscription_id", "id")];
    Nested { member, entity: &SUBSCRIPTION_ITEM, inherits, is_whole: false }
}
