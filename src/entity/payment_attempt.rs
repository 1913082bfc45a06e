//! Attempts to take a payment.

use super::{
    SUBSCRIPTION_ITEM,
    subscription::{ORGANIZATION_THAT_PAYS, USER_WHO_PAYS},
};
use crate::model::{Column, Entity, Holds, Nested, Place, Within};

/// See the module documentation. Clerk lists them inside billing statements.
pub static PAYMENT_ATTEMPT: Entity = Entity {
    kind: "payment_attempt",
    table: "payment_attempts",
    id_prefix: "",
    events: ["paymentAttempt.created", "paymentAttempt.updated", "paymentAttempt.deleted"],
    also: &[],
    path: Some("billing/statements"),
    query: &[("paginated", "true")],
    within: Some(Within {
        members: &["groups", "items"],
        inherits: &[("payer", "payer"), ("statement_id", "id")],
    }),
    of_each: &[],
    has_one: false,
    columns: &[
        USER_WHO_PAYS,
        ORGANIZATION_THAT_PAYS,
        Column::new("payer_id", Holds::Text)
            .at(Place::AnyOf(&[&["payer", "id"], &["payer_id"]]))
            .by_default()
            .kept(),
        Column::new("payment_id", Holds::Text).by_default().kept(),
        Column::new("invoice_id", Holds::Text).by_default().kept(),
        Column::new("statement_id", Holds::Text).by_default().kept(),
        Column::new("status", Holds::Text).by_default().kept().samples("\"pending\"", "\"paid\""),
        Column::new("charge_type", Holds::Text).by_default().kept().sample("\"recurring\""),
        // In the smallest unit of the currency, like the next two. The Backend API may omit the totals.
        Column::new("amount", Holds::Int)
            .at(Place::AnyOf(&[&["totals", "grand_total", "amount"], &["amount", "amount"]]))
            .by_default()
            .kept()
            .sample("900"),
        Column::new("subtotal", Holds::Int)
            .at(Place::AnyOf(&[&["totals", "subtotal", "amount"]]))
            .by_default()
            .kept()
            .sample("900"),
        Column::new("tax_total", Holds::Int)
            .at(Place::AnyOf(&[&["totals", "tax_total", "amount"]]))
            .by_default()
            .kept()
            .sample("0"),
        Column::new("currency", Holds::Text)
            .at(Place::AnyOf(&[&["totals", "grand_total", "currency"], &["amount", "currency"]]))
            .by_default()
            .kept()
            .sample("\"USD\""),
        Column::new("billing_date", Holds::Time).by_default().kept(),
        Column::new("paid_at", Holds::Time).by_default().kept(),
        Column::new("failed_at", Holds::Time).by_default().kept(),
        Column::new("failed_reason", Holds::Json).by_default().kept(),
        Column::new("payer", Holds::Json),
        // The name in events, and the name in the Backend API.
        Column::new("payment_source", Holds::Json)
            .at(Place::AnyOf(&[&["payment_source"], &["payment_method"]])),
        Column::RAW,
    ],
    // Events contain a list of items, the Backend API a single one.
    nested: &[items("subscription_items"), items("subscription_item")],
    secrets: &[],
    follows: &[],
    has_preferences: false,
    unique: &[],
};

const fn items(member: &'static str) -> Nested {
    Nested { member, entity: &SUBSCRIPTION_ITEM, inherits: &[("payer", "payer")], is_whole: false }
}
