//! Plans of Clerk Billing. Clerk sends no events about them, and they have no timestamps.

use crate::model::{Column, Entity, Holds, Place};

/// See the module documentation.
pub static PLAN: Entity = Entity {
    kind: "plan",
    table: "plans",
    id_prefix: "cplan_",
    events: ["plan.created", "plan.updated", "plan.deleted"],
    also: &[],
    path: Some("billing/plans"),
    query: &[("paginated", "true")],
    within: None,
    of_each: &[],
    has_one: false,
    columns: &[
        Column::new("name", Holds::Text).by_default().kept().samples("\"Pro\"", "\"Professional\""),
        Column::new("slug", Holds::Text).by_default().kept().sample("\"pro\""),
        Column::new("description", Holds::Text).by_default().kept(),
        Column::new("product_id", Holds::Text).by_default().kept(),
        Column::new("for_payer_type", Holds::Text).by_default().kept().sample("\"user\""),
        Column::new("is_default", Holds::Bool).by_default().kept().sample("false"),
        Column::new("is_recurring", Holds::Bool).by_default().kept().sample("true"),
        Column::new("publicly_visible", Holds::Bool).by_default().kept().sample("true"),
        Column::new("has_base_fee", Holds::Bool).by_default().kept().sample("true"),
        // In the smallest unit of the currency: per month, per year, and per month if paid yearly.
        Column::new("amount", Holds::Int)
            .at(Place::AnyOf(&[&["fee", "amount"], &["amount"]]))
            .by_default()
            .kept()
            .sample("900"),
        Column::new("annual_amount", Holds::Int)
            .at(Place::AnyOf(&[&["annual_fee", "amount"]]))
            .by_default()
            .kept(),
        Column::new("annual_monthly_amount", Holds::Int)
            .at(Place::AnyOf(&[&["annual_monthly_fee", "amount"]]))
            .by_default()
            .kept(),
        Column::new("currency", Holds::Text)
            .at(Place::AnyOf(&[&["fee", "currency"], &["annual_fee", "currency"], &["currency"]]))
            .by_default()
            .kept()
            .sample("\"USD\""),
        Column::new("free_trial_enabled", Holds::Bool).by_default().kept().sample("false"),
        Column::new("free_trial_days", Holds::Int).by_default().kept(),
        Column::new("features", Holds::Json).array().by_default().kept().sample("[]"),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
