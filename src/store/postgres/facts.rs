//! What the catalogues say about clerk-sync's tables, and the privileges that clerk-sync needs on them.

use std::fmt;

use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, postgres::PgRow};

use super::{Session, get};
use crate::store::{
    ErrorKind, Result, StoreError,
    schema::{TABLES, of_kinds},
};

/// The table that records which migrations are applied.
pub(super) const REMEMBERED: &str = "_clerk_sync_migrations";

const PRIVILEGES: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];

/// The privileges that clerk-sync needs on one of its tables.
pub(super) fn needed(table: &str) -> &'static [&'static str] {
    match table {
        REMEMBERED => &["SELECT"],
        "audit_log" => &["SELECT", "INSERT"],
        "entity_versions" | "erasure_receipts" | "clerk_instance" => &["SELECT", "INSERT", "UPDATE"],
        "audit_actors" | "outbox_paused" => &["SELECT", "INSERT", "DELETE"],
        _ => &PRIVILEGES,
    }
}

/// The rows of a query, by the names of its columns. The query gets the schema (`$1`), the names of clerk-sync's tables (`$2`)
/// and those of the tables of synced objects (`$3`).
pub(super) async fn facts<T: DeserializeOwned>(
    session: &mut Session,
    schema: &str,
    query: impl fmt::Display,
) -> Result<Vec<T>> {
    let text = format!("SELECT to_jsonb(fact)::text FROM ({query}) AS fact");
    let query =
        sqlx::query(AssertSqlSafe(text)).bind(schema).bind(names().collect::<Vec<_>>()).bind(of_kinds());
    let fact = |row: &PgRow| {
        serde_json::from_str(&get::<String>(row, 0)?).map_err(|_| StoreError::new(ErrorKind::Broken))
    };
    session.rows(query).await?.iter().map(fact).collect()
}

/// Every clerk-sync table except that of the migrations.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|table| table.name)
}
