//! The tables and columns that every backend has, with database-independent types.
//!
//! At start clerk-sync checks its existing tables. If a required column is missing or has another type, it refuses to start and
//! explains why. Extra columns belong to the application.

use std::{fmt, sync::LazyLock};

use super::{Migration, StoreError, prefix};
use crate::{
    entity::{self, USER},
    model::{Entity, Holds},
};

/// The type of a column, independent of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    BigInt,
    Int,
    Text,
    Bool,
    Time,
    Json,
    Bytes,
    TextArray,
}

/// A table of clerk-sync.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: &'static str,
    /// In the database's order.
    pub columns: Vec<(&'static str, ColumnType)>,
}

/// Every public table: those of synced objects, and those with records about them.
pub static TABLES: LazyLock<Vec<Table>> = LazyLock::new(|| {
    let records = RECORDS.iter().map(|(name, runs)| Table {
        name,
        columns: runs.iter().flat_map(|(kind, names)| names.iter().map(|name| (*name, *kind))).collect(),
    });
    entity::ALL.iter().map(|entity| of_objects(entity)).chain(records).collect()
});

/// The migration that adds the column `raw` to every table of objects.
const RAW: i64 = 19;

/// Views whose names the application may use as well, with columns that identify clerk-sync's own.
pub static VIEWS: &[(&str, &[&str])] = &[
    ("organization_members", &["clerk_id", "organization_name", "role_name"]),
    ("organization_member_permissions", &["organization_id", "user_id", "permission"]),
    ("active_subscriptions", &["subscription_item_id", "plan_slug"]),
    ("churn_by_month", &["month", "ended"]),
];

/// The names of the tables of synced objects.
pub(super) fn of_kinds() -> Vec<&'static str> {
    entity::ALL.iter().map(|entity| entity.table).collect()
}

/// The table of a kind, as its declaration defines it.
pub fn of_objects(entity: &'static Entity) -> Table {
    let kind = |holds: Holds| match holds {
        Holds::Text => ColumnType::Text,
        Holds::Int => ColumnType::BigInt,
        Holds::Bool => ColumnType::Bool,
        Holds::Time => ColumnType::Time,
        Holds::Json => ColumnType::Json,
    };
    let fields = entity.fields().map(|field| (field.name(), kind(field.holds)));
    let times = ["created_at", "updated_at", "synced_at", "deleted_at"].map(|name| (name, ColumnType::Time));
    let columns = [("id", ColumnType::BigInt), ("clerk_id", ColumnType::Text)].into_iter().chain(fields);
    let columns =
        columns.chain(entity.has_preferences.then_some(("preferences", ColumnType::Json))).chain(times);
    Table { name: entity.table, columns: columns.collect() }
}

/// Adjacent columns of one type.
type Run = (ColumnType, &'static [&'static str]);

/// The tables with records about the synced objects.
const RECORDS: [(&str, &[Run]); 15] = [
    (
        "processed_webhooks",
        &[
            (ColumnType::Text, &["svix_id", "event_type", "outcome", "clerk_id"]),
            (ColumnType::Time, &["event_at", "processed_at"]),
            (ColumnType::Text, &["kind"]),
        ],
    ),
    (
        "entity_versions",
        &[
            (ColumnType::Text, &["kind", "clerk_id"]),
            (ColumnType::BigInt, &["version", "event_at"]),
            (ColumnType::Text, &["tie"]),
            (ColumnType::Bool, &["deleted"]),
            (ColumnType::Time, &["held_until", "held_since"]),
            (ColumnType::Text, &["parts_digest"]),
        ],
    ),
    (
        "audit_log",
        &[
            (ColumnType::BigInt, &["id"]),
            (ColumnType::Time, &["at"]),
            (ColumnType::Text, &["action", "clerk_id", "svix_id", "source"]),
            (ColumnType::TextArray, &["changed_fields"]),
            (ColumnType::Time, &["event_at"]),
            (ColumnType::Text, &["kind"]),
        ],
    ),
    ("audit_actors", &[(ColumnType::BigInt, &["audit_id"]), (ColumnType::Text, &["ip", "user_agent"])]),
    (
        "audit_seals",
        &[
            (ColumnType::BigInt, &["number"]),
            (ColumnType::Time, &["sealed_at"]),
            (ColumnType::BigInt, &["first_id", "last_id", "lines"]),
            (ColumnType::Text, &["gaps", "content", "previous", "hash"]),
        ],
    ),
    (
        "webhook_queue",
        &[
            (ColumnType::Text, &["svix_id", "event_type", "clerk_id"]),
            (ColumnType::Bytes, &["payload"]),
            (ColumnType::Text, &["state"]),
            (ColumnType::Int, &["attempts"]),
            (ColumnType::Time, &["next_attempt_at", "received_at"]),
            (ColumnType::Text, &["last_error", "trace_context"]),
            (ColumnType::Time, &["dead_at"]),
            (ColumnType::Text, &["kind"]),
        ],
    ),
    (
        "outbox",
        &[
            (ColumnType::BigInt, &["id"]),
            (ColumnType::Text, &["message_id", "sink", "clerk_id", "type", "payload", "state"]),
            (ColumnType::Int, &["attempts"]),
            (ColumnType::Time, &["next_attempt_at"]),
            (ColumnType::Text, &["lease"]),
            (ColumnType::Time, &["created_at", "finished_at"]),
            (ColumnType::Text, &["last_error", "trace_context", "kind"]),
        ],
    ),
    ("outbox_recipients", &[(ColumnType::Text, &["clerk_id", "sink", "reference", "addresses"])]),
    ("outbox_sinks", &[(ColumnType::Text, &["sink", "address"]), (ColumnType::Time, &["since"])]),
    ("outbox_paused", &[(ColumnType::Text, &["sink"]), (ColumnType::Time, &["paused_at"])]),
    (
        "erasure_receipts",
        &[
            (ColumnType::Text, &["clerk_id", "destination"]),
            (ColumnType::Time, &["requested_at", "completed_at"]),
            (ColumnType::Int, &["attempts"]),
            (ColumnType::Text, &["last_error"]),
        ],
    ),
    (
        "sync_runs",
        &[
            (ColumnType::Text, &["id", "kind", "owner", "parameters", "progress"]),
            (ColumnType::Time, &["started_at", "updated_at", "finished_at"]),
            (ColumnType::Bool, &["everybody"]),
        ],
    ),
    (
        "activity",
        &[
            (ColumnType::Time, &["at"]),
            (ColumnType::Text, &["event", "outcome", "reason"]),
            (ColumnType::Time, &["latest"]),
            (
                ColumnType::BigInt,
                &[
                    "count",
                    "within_5ms",
                    "within_25ms",
                    "within_100ms",
                    "within_500ms",
                    "within_2s",
                    "within_10s",
                ],
            ),
        ],
    ),
    (
        "clerk_instance",
        &[
            (ColumnType::Bool, &["one"]),
            (ColumnType::Text, &["instance_id", "previous", "refused"]),
            (ColumnType::Time, &["refused_at"]),
            (ColumnType::Bool, &["confirmed"]),
        ],
    ),
    ("leases", &[(ColumnType::Text, &["name", "holder"]), (ColumnType::Time, &["expires_at"])]),
];

/// A column that exists in the database.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) table: String,
    pub(super) name: String,
    /// As the database spells it.
    pub(super) type_name: String,
    pub(super) not_null: bool,
}

/// A quoted SQL identifier; the name may contain any character.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Refuse `ANONYMIZE_COLUMNS` that cannot be set to NULL. This happens at start, before any erasure needs them.
pub(super) fn check_anonymize_columns(columns: &[Column], names: &[String]) -> Result<(), StoreError> {
    let is_it =
        |column: &&Column, name: &str| column.table == "users" && column.name.eq_ignore_ascii_case(name);
    for name in names {
        let ours = of_objects(&USER).columns.iter().any(|(column, _)| column.eq_ignore_ascii_case(name));
        let mistake = match columns.iter().find(|column| is_it(column, name)) {
            _ if ours => "is clerk-sync's own column and always anonymised: leave it out",
            None => "does not exist in table users: add it, or leave it out",
            Some(column) if column.not_null => "is NOT NULL, so it cannot be set to NULL: allow NULL",
            Some(_) => continue,
        };
        return Err(StoreError::schema(format!("ANONYMIZE_COLUMNS: column {name} {mistake}")));
    }
    Ok(())
}

/// Compare the existing tables with the expected ones. Returns each difference as a table and a description. A table
/// without columns does not exist, which is fine because a migration creates it. While migrations are pending, only the tables
/// that they create are checked: the others belong to an earlier version and still get their columns.
pub(super) fn mistakes(
    columns: &[Column],
    pending: &[Migration],
    fits: impl Fn(ColumnType, &str) -> bool,
) -> Vec<(&'static str, String)> {
    let counts =
        |table: &&Table| pending.is_empty() || pending.iter().any(|migration| migration.makes(table.name));
    let mut mistakes = Vec::new();
    for table in TABLES.iter().filter(counts) {
        let found: Vec<&Column> = columns.iter().filter(|column| column.table == table.name).collect();
        if found.is_empty() {
            continue;
        }
        for (name, kind) in &table.columns {
            let what = match found.iter().find(|column| column.name == *name) {
                None => format!("column {name} is missing"),
                Some(column) if !fits(*kind, &column.type_name) => {
                    format!("column {name} is of type {}", column.type_name)
                }
                Some(_) => continue,
            };
            mistakes.push((table.name, what));
        }
    }
    // The migration adds it to `users` last, so that an interrupted migration is not mistaken for the application's column.
    let has =
        |table: &str, name: &str| columns.iter().any(|column| column.table == table && column.name == name);
    if pending.iter().any(|migration| migration.version == RAW) && has("users", "raw") && !has("plans", "raw")
    {
        let what = "column raw belongs to the application, but clerk-sync needs its name: rename it first";
        mistakes.push(("users", what.to_owned()));
    }
    for (view, names) in VIEWS {
        let mut found = columns.iter().filter(|column| column.table == *view).peekable();
        let is_there = found.peek().is_some();
        let found: Vec<&str> = found.map(|column| column.name.as_str()).collect();
        if let Some(name) = names.iter().find(|name| is_there && !found.contains(name)) {
            mistakes.push((view, format!("column {name} is missing")));
        }
    }
    mistakes
}

/// The error for tables with clerk-sync's names that clerk-sync did not create, with a remedy.
pub(super) fn refused(
    mistakes: &[(&'static str, String)],
    place: &impl fmt::Display,
    remedy: &str,
) -> StoreError {
    let mistakes: Vec<String> =
        mistakes.iter().map(|(table, what)| format!("table {}: {what}", prefix::of_table(table))).collect();
    StoreError::schema(format!(
        "{place} contains tables with clerk-sync's names that clerk-sync did not create: {}. Nothing was changed. {remedy}",
        mistakes.join("; ")
    ))
}
