//! Sessions: one for every sign-in.

use super::USER;
use crate::model::{Column, Entity, Holds, OfEach};

/// See the module documentation. Session events contain the whole user, which is never read. Clerk sends no event when a session
/// expires: compare `expire_at` and `abandon_at` with the clock. Clerk lists sessions only per user.
pub static SESSION: Entity = Entity {
    kind: "session",
    table: "sessions",
    id_prefix: "sess_",
    events: ["session.created", "session.pending", "session.deleted"],
    also: &["session.ended", "session.removed", "session.revoked"],
    path: Some("sessions"),
    query: &[("paginated", "true")],
    within: None,
    of_each: &[OfEach { owner: &USER, path: "sessions", parameter: Some("user_id"), column: "user_id" }],
    has_one: true,
    columns: &[
        Column::new("user_id", Holds::Text).by_default().parent(&USER),
        Column::new("client_id", Holds::Text).by_default().kept(),
        Column::new("status", Holds::Text).by_default().kept().samples("\"active\"", "\"ended\""),
        Column::new("last_active_organization_id", Holds::Text).by_default().kept(),
        Column::new("last_active_at", Holds::Time).by_default().kept().moves_by_itself(),
        Column::new("expire_at", Holds::Time).by_default().kept(),
        Column::new("abandon_at", Holds::Time).by_default().kept(),
        Column::new("actor", Holds::Json),
        Column::new("latest_activity", Holds::Json),
        Column::RAW,
    ],
    nested: &[],
    secrets: &[&["user"]],
    follows: &[],
    has_preferences: false,
    unique: &[],
};
