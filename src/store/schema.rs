//! The tables and columns that every keeper has, in neutral types.
//!
//! At start a table of ours that exists with a required column missing or of another type is refused with an
//! explanation. Extra columns are the application's.

use std::{borrow::Cow, fmt, sync::LazyLock};

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
    pub columns: Cow<'static, [(&'static str, Kind)]>,
}

/// Every table, as users rely on it: those of synced objects, and those that keep count of them.
pub static TABLES: LazyLock<Vec<Table>> =
    LazyLock::new(|| entity::ALL.iter().map(|entity| of_objects(entity)).chain(RECORDS).collect());

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

const RECORDS: [Table; 15] = [
    Table {
        name: "processed_webhooks",
        columns: Cow::Borrowed(&[
            ("svix_id", Kind::Text),
            ("event_type", Kind::Text),
            ("outcome", Kind::Text),
            ("clerk_id", Kind::Text),
            ("event_at", Kind::Time),
            ("processed_at", Kind::Time),
            ("kind", Kind::Text),
        ]),
    },
    Table {
        name: "entity_versions",
        columns: Cow::Borrowed(&[
            ("kind", Kind::Text),
            ("clerk_id", Kind::Text),
            ("version", Kind::BigInt),
            ("event_at", Kind::BigInt),
            ("tie", Kind::Text),
            ("deleted", Kind::Bool),
            ("held_until", Kind::Time),
            ("held_since", Kind::Time),
        ]),
    },
    Table {
        name: "audit_log",
        columns: Cow::Borrowed(&[
            ("id", Kind::BigInt),
            ("at", Kind::Time),
            ("action", Kind::Text),
            ("clerk_id", Kind::Text),
            ("svix_id", Kind::Text),
            ("source", Kind::Text),
            ("changed_fields", Kind::TextArray),
            ("event_at", Kind::Time),
            ("kind", Kind::Text),
        ]),
    },
    Table {
        name: "audit_actors",
        columns: Cow::Borrowed(&[("audit_id", Kind::BigInt), ("ip", Kind::Text), ("user_agent", Kind::Text)]),
    },
    Table {
        name: "audit_seals",
        columns: Cow::Borrowed(&[
            ("number", Kind::BigInt),
            ("sealed_at", Kind::Time),
            ("first_id", Kind::BigInt),
            ("last_id", Kind::BigInt),
            ("lines", Kind::BigInt),
            ("gaps", Kind::Text),
            ("content", Kind::Text),
            ("previous", Kind::Text),
            ("hash", Kind::Text),
        ]),
    },
    Table {
        name: "webhook_queue",
        columns: Cow::Borrowed(&[
            ("svix_id", Kind::Text),
            ("event_type", Kind::Text),
            ("clerk_id", Kind::Text),
            ("payload", Kind::Bytes),
            ("state", Kind::Text),
            ("attempts", Kind::Int),
            ("next_attempt_at", Kind::Time),
            ("received_at", Kind::Time),
            ("last_error", Kind::Text),
            ("trace_context", Kind::Text),
            ("dead_at", Kind::Time),
            ("kind", Kind::Text),
        ]),
    },
    Table {
        name: "outbox",
        columns: Cow::Borrowed(&[
            ("id", Kind::BigInt),
            ("message_id", Kind::Text),
            ("sink", Kind::Text),
            ("clerk_id", Kind::Text),
            ("type", Kind::Text),
            ("payload", Kind::Text),
            ("state", Kind::Text),
            ("attempts", Kind::Int),
            ("next_attempt_at", Kind::Time),
            ("lease", Kind::Text),
            ("created_at", Kind::Time),
            ("finished_at", Kind::Time),
            ("last_error", Kind::Text),
            ("trace_context", Kind::Text),
            ("kind", Kind::Text),
        ]),
    },
    Table {
        name: "outbox_recipients",
        columns: Cow::Borrowed(&[
            ("clerk_id", Kind::Text),
            ("sink", Kind::Text),
            ("reference", Kind::Text),
            ("addresses", Kind::Text),
        ]),
    },
    Table {
        name: "outbox_sinks",
        columns: Cow::Borrowed(&[("sink", Kind::Text), ("address", Kind::Text), ("since", Kind::Time)]),
    },
    Table {
        name: "outbox_paused",
        columns: Cow::Borrowed(&[("sink", Kind::Text), ("paused_at", Kind::Time)]),
    },
    Table {
        name: "erasure_receipts",
        columns: Cow::Borrowed(&[
            ("clerk_id", Kind::Text),
            ("destination", Kind::Text),
            ("requested_at", Kind::Time),
            ("completed_at", Kind::Time),
            ("attempts", Kind::Int),
            ("last_error", Kind::Text),
        ]),
    },
    Table {
        name: "sync_runs",
        columns: Cow::Borrowed(&[
            ("id", Kind::Text),
            ("kind", Kind::Text),
            ("owner", Kind::Text),
            ("parameters", Kind::Text),
            ("progress", Kind::Text),
            ("started_at", Kind::Time),
            ("updated_at", Kind::Time),
            ("finished_at", Kind::Time),
            ("everybody", Kind::Bool),
        ]),
    },
    Table {
        name: "activity",
        columns: Cow::Borrowed(&[
            ("at", Kind::Time),
            ("event", Kind::Text),
            ("outcome", Kind::Text),
            ("reason", Kind::Text),
            ("latest", Kind::Time),
            ("count", Kind::BigInt),
            ("within_5ms", Kind::BigInt),
            ("within_25ms", Kind::BigInt),
            ("within_100ms", Kind::BigInt),
            ("within_500ms", Kind::BigInt),
            ("within_2s", Kind::BigInt),
            ("within_10s", Kind::BigInt),
        ]),
    },
    Table {
        name: "clerk_instance",
        columns: Cow::Borrowed(&[
            ("one", Kind::Bool),
            ("instance_id", Kind::Text),
            ("previous", Kind::Text),
            ("refused", Kind::Text),
            ("refused_at", Kind::Time),
            ("confirmed", Kind::Bool),
        ]),
    },
    Table {
        name: "leases",
        columns: Cow::Borrowed(&[("name", Kind::Text), ("holder", Kind::Text), ("expires_at", Kind::Time)]),
    },
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

/// Compare the tables that exist with what is needed, and tell each difference. A table without any column does not exist,
/// which is fine: a migration makes it. While migrations are pending only those tables count that they make: the others are
/// of a version before, and get their columns.
pub(super) fn mistakes(
    columns: &[Column],
    pending: &[Migration],
    fits: impl Fn(Kind, &str) -> bool,
) -> Vec<Mistake> {
    let counts =
        |table: &&Table| pending.is_empty() || pending.iter().any(|migration| migration.makes(table.name));
    let mut mistakes = Vec::new();
    for table in TABLES.iter().filter(counts) {
        let found: Vec<&Column> = columns.iter().filter(|column| column.table == table.name).collect();
        if found.is_empty() {
            continue;
        }
        for (name, kind) in table.columns.iter() {
            let what = match found.iter().find(|column| column.name == *name) {
                None => format!("column {name} is missing"),
                Some(column) if !fits(*kind, &column.type_name) => {
                    format!("column {name} is of type {}", column.type_name)
                }
                Some(_) => continue,
            };
            mistakes.push(Mistake { table: table.name, what });
        }
    }
    mistakes
}

/// How a table differs from what is needed.
pub(super) struct Mistake {
    pub(super) table: &'static str,
    what: String,
}

/// Tables with our names that are not ours, and what to do about it.
pub(super) fn refused(mistakes: &[Mistake], place: &impl fmt::Display, remedy: &str) -> StoreError {
    let mistakes: Vec<String> =
        mistakes.iter().map(|mistake| format!("table {}: {}", mistake.table, mistake.what)).collect();
    StoreError::schema(format!(
        "{place} holds tables with our names that are not ours: {}. Nothing was changed. {remedy}",
        mistakes.join("; ")
    ))
}
