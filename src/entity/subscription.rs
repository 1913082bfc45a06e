//! Subscriptions: one for each user or organization that can pay.

use super::{ORGANIZATION, SUBSCRIPTION_ITEM, USER};
use crate::model::{Column, Entity, Holds, Nested, Place};

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

/// See the head of this file. Clerk has no list of them.
pub static SUBSCRIPTION: Entity = Entity {
    kind: "subscription",
    table: "subscriptions",
    id_prefix: "csub_",
    events: ["subscription.created", "subscription.updated", "subscription.deleted"],
    also: &["subscription.active", "subscription.pastDue"],
    path: None,
    query: &[],
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
    ],
    nested: &[Nested {
        member: "items",
        entity: &SUBSCRIPTION_ITEM,
        inherits: &[("payer", "payer"), ("subscription_id", "id")],
        is_whole: false,
    }],
    secrets: &[],
    has_preferences: false,
    unique: &[],
};
