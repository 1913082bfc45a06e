//! The tables and columns that every keeper has, in neutral types.
//!
//! At start a table of ours that exists with a required column missing or of another type is refused with an
//! explanation. Extra columns are the application's.

use std::{fmt, sync::LazyLock};

use super::{Migration, StoreError};
use crate::{
    entity::{self, USER},
    model::{Entity, Holds},
};

/// The type of a column, whatever a keeper calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    BigInt,
    Int,
    Text,
    Bool,
    Time,
    Json,
    Bytes,
    TextArray,
}

/// A table of ours.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: &'static str,
    /// In the order in which the database has them.
    pub columns: Vec<(&'static str, Kind)>,
}

/// Every table, as users rely on it: those of synced objects, and those that keep count of them.
pub static TABLES: LazyLock<Vec<Table>> = LazyLock::new(|| {
    let records = RECORDS.iter().map(|(name, runs)| Table {
        name,
        columns: runs.iter().flat_map(|(kind, names)| names.iter().map(|name| (*name, *kind))).collect(),
    });
    entity::ALL.iter().map(|entity| of_objects(entity)).chain(records).collect()
});

/// The table of a kind, as its declaration says it.
pub fn of_objects(entity: &'static Entity) -> Table {
    let kind = |holds: Holds| match holds {
        Holds::Text => Kind::Text,
        Holds::Int => Kind::BigInt,
        Holds::Bool => Kind::Bool,
        Holds::Time => Kind::Time,
        Holds::Json => Kind::Json,
    };
    let fields = entity.fields().map(|field| (field.name(), kind(field.holds)));
    let times = ["created_at", "updated_at", "synced_at", "deleted_at"].map(|name| (name, Kind::Time));
    let columns = [("id", Kind::BigInt), ("clerk_id", Kind::Text)].into_iter().chain(fields);
    let columns = columns.chain(entity.has_preferences.then_some(("preferences", Kind::Json))).chain(times);
    Table { name: entity.table, columns: columns.collect() }
}

/// Columns of one type, side by side.
type Run = (Kind, &'static [&'static str]);

/// The tables that keep count of them.
const RECORDS: [(&str, &[Run]); 15] = [
    (
        "processed_webhooks",
        &[
            (Kind::Text, &["svix_id", "event_type", "outcome", "clerk_id"]),
            (Kind::Time, &["event_at", "processed_at"]),
            (Kind::Text, &["kind"]),
        ],
    ),
    (
        "entity_versions",
        &[
            (Kind::Text, &["kind", "clerk_id"]),
            (Kind::BigInt, &["version", "event_at"]),
            (Kind::Text, &["tie"]),
            (Kind::Bool, &["deleted"]),
            (Kind::Time, &["held_until", "held_since"]),
        ],
    ),
    (
        "audit_log",
        &[
            (Kind::BigInt, &["id"]),
            (Kind::Time, &["at"]),
            (Kind::Text, &["action", "clerk_id", "svix_id", "source"]),
            (Kind::TextArray, &["changed_fields"]),
            (Kind::Time, &["event_at"]),
            (Kind::Text, &["kind"]),
        ],
    ),
    ("audit_actors", &[(Kind::BigInt, &["audit_id"]), (Kind::Text, &["ip", "user_agent"])]),
    (
        "audit_seals",
        &[
            (Kind::BigInt, &["number"]),
            (Kind::Time, &["sealed_at"]),
            (Kind::BigInt, &["first_id", "last_id", "lines"]),
            (Kind::Text, &["gaps", "content", "previous", "hash"]),
        ],
    ),
    (
        "webhook_queue",
        &[
            (Kind::Text, &["svix_id", "event_type", "clerk_id"]),
            (Kind::Bytes, &["payload"]),
            (Kind::Text, &["state"]),
            (Kind::Int, &["attempts"]),
            (Kind::Time, &["next_attempt_at", "received_at"]),
            (Kind::Text, &["last_error", "trace_context"]),
            (Kind::Time, &["dead_at"]),
            (Kind::Text, &["kind"]),
        ],
    ),
    (
        "outbox",
        &[
            (Kind::BigInt, &["id"]),
            (Kind::Text, &["message_id", "sink", "clerk_id", "type", "payload", "state"]),
            (Kind::Int, &["attempts"]),
            (Kind::Time, &["next_attempt_at"]),
            (Kind::Text, &["lease"]),
            (Kind::Time, &["created_at", "finished_at"]),
            (Kind::Text, &["last_error", "trace_context", "kind"]),
        ],
    ),
    ("outbox_recipients", &[(Kind::Text, &["clerk_id", "sink", "reference", "addresses"])]),
    ("outbox_sinks", &[(Kind::Text, &["sink", "address"]), (Kind::Time, &["since"])]),
    ("outbox_paused", &[(Kind::Text, &["sink"]), (Kind::Time, &["paused_at"])]),
    (
        "erasure_receipts",
        &[
            (Kind::Text, &["clerk_id", "destination"]),
            (Kind::Time, &["requested_at", "completed_at"]),
            (Kind::Int, &["attempts"]),
            (Kind::Text, &["last_error"]),
        ],
    ),
    (
        "sync_runs",
        &[
            (Kind::Text, &["id", "kind", "owner", "parameters", "progress"]),
            (Kind::Time, &["started_at", "updated_at", "finished_at"]),
            (Kind::Bool, &["everybody"]),
        ],
    ),
    (
        "activity",
        &[
            (Kind::Time, &["at"]),
            (Kind::Text, &["event", "outcome", "reason"]),
            (Kind::Time, &["latest"]),
            (
                Kind::BigInt,
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
            (Kind::Bool, &["one"]),
            (Kind::Text, &["instance_id", "previous", "refused"]),
            (Kind::Time, &["refused_at"]),
            (Kind::Bool, &["confirmed"]),
        ],
    ),
    ("leases", &[(Kind::Text, &["name", "holder"]), (Kind::Time, &["expires_at"])]),
];

/// A column that the database has.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) table: String,
    pub(super) name: String,
    /// In the database's own words.
    pub(super) type_name: String,
    pub(super) not_null: bool,
}

/// A name as SQL writes it, whatever it contains.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Refuse `ANONYMIZE_COLUMNS` that cannot be emptied, at the start rather than at somebody's erasure.
pub(super) fn check_anonymize_columns(columns: &[Column], names: &[String]) -> Result<(), StoreError> {
    let is_it =
        |column: &&Column, name: &str| column.table == "users" && column.name.eq_ignore_ascii_case(name);
    for name in names {
        let ours = of_objects(&USER).columns.iter().any(|(column, _)| column.eq_ignore_ascii_case(name));
        let mistake = match columns.iter().find(|column| is_it(column, name)) {
            _ if ours => "is clerk-sync's own, and anonymised anyway: leave it out",
            None => "does not exist in table users: add it, or leave it out",
            Some(column) if column.not_null => "is NOT NULL, so that it cannot be emptied: allow NULL",
            Some(_) => continue,
        };
        return Err(StoreError::schema(format!("ANONYMIZE_COLUMNS: column {name} {mistake}")));
    }
    Ok(())
}

/// Compare the tables that exist with what is needed, and tell each difference: the table, and what is wrong with it. A table without any column does not exist,
/// which is fine: a migration makes it. While migrations are pending only those tables count that they make: the others are
/// of a version before, and get their columns.
pub(super) fn mistakes(
    columns: &[Column],
    pending: &[Migration],
    fits: impl Fn(Kind, &str) -> bool,
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
    mistakes
}

/// Tables with our names that are not ours, and what to do about it.
pub(super) fn refused(
    mistakes: &[(&'static str, String)],
    place: &impl fmt::Display,
    remedy: &str,
) -> StoreError {
    let mistakes: Vec<String> =
        mistakes.iter().map(|(table, what)| format!("table {table}: {what}")).collect();
    StoreError::schema(format!(
        "{place} holds tables with our names that are not ours: {}. Nothing was changed. {remedy}",
        mistakes.join("; ")
    ))
}
