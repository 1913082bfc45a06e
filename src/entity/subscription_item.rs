//! Items of subscriptions: which plan a payer has, and until when.

use super::{
    PLAN,
    subscription::{ORGANIZATION_THAT_PAYS, USER_WHO_PAYS},
};
use crate::model::{Column, Entity, Holds, Place};

/// See the module documentation. The statuses have no order: an ended item of the free plan can become active again.
pub static SUBSCRIPTION_ITEM: Entity = Entity {
    kind: "subscription_item",
    table: "subscription_items",
    id_prefix: "csub_item_",
    events: ["subscriptionItem.created", "subscriptionItem.updated", "subscriptionItem.deleted"],
    also: &[
        "subscriptionItem.active",
        "subscriptionItem.canceled",
        "subscriptionItem.upcoming",
        "subscriptionItem.ended",
        "subscriptionItem.abandoned",
        "subscriptionItem.incomplete",
        "subscriptionItem.pastDue",
        "subscriptionItem.freeTrialEnding",
        "subscriptionItem.expired",
    ],
    path: Some("billing/subscription_items"),
    query: &[("include_free", "true"), ("paginated", "true")],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        USER_WHO_PAYS,
        ORGANIZATION_THAT_PAYS,
        Column::new("payer_id", Holds::Text)
            .at(Place::AnyOf(&[&["payer_id"], &["payer", "id"]]))
            .by_default()
            .kept(),
        Column::new("subscription_id", Holds::Text).by_default().kept(),
        Column::new("plan_id", Holds::Text)
            .at(Place::AnyOf(&[&["plan_id"], &["plan", "id"]]))
            .by_default()
            .kept(),
        Column::new("status", Holds::Text).by_default().kept().samples("\"upcoming\"", "\"active\""),
        Column::new("interval", Holds::Text)
            .at(Place::AnyOf(&[&["interval"], &["plan_period"]]))
            .by_default()
            .kept()
            .sample("\"month\""),
        // In the smallest unit of the currency.
        Column::new("amount", Holds::Int)
            .at(Place::AnyOf(&[&["plan", "amount"], &["plan", "fee", "amount"]]))
            .by_default()
            .kept()
            .sample("900"),
        Column::new("currency", Holds::Text)
            .at(Place::AnyOf(&[&["plan", "currency"], &["plan", "fee", "currency"]]))
            .by_default()
            .kept()
            .sample("\"USD\""),
        Column::new("quantity", Holds::Int).at(Place::AnyOf(&[&["seats", "quantity"]])).by_default().kept(),
        Column::new("is_free_trial", Holds::Bool).by_default().kept().sample("false"),
        Column::new("period_start", Holds::Time).by_default().kept(),
        Column::new("period_end", Holds::Time).by_default().kept(),
        Column::new("past_due_at", Holds::Time).by_default().kept(),
        Column::new("canceled_at", Holds::Time).by_default().kept(),
        Column::new("ended_at", Holds::Time).by_default().kept(),
        Column::new("payer", Holds::Json),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[&PLAN],
    has_preferences: false,
    unique: &[],
};
