//! Bringing the tables up to date, and refusing tables that clerk-sync did not create.

use std::{collections::BTreeSet, fmt::Display};

use sqlx::SqliteConnection;

use crate::store::{
    Migration, Result,
    migration::SQLITE,
    prefix,
    schema::{self, Column, ColumnType, TABLES, VIEWS, quoted},
    sql::{Dialect, Row, ask::Ask as _, values},
};

/// Apply pending migrations in the caller's transaction; returns them.
pub(super) async fn apply(connection: &mut SqliteConnection, place: &impl Display) -> Result<Vec<Migration>> {
    // Another process may have applied them meanwhile.
    let pending = connection.pending().await?;
    check(connection, place, &pending).await?;
    let table = "CREATE TABLE IF NOT EXISTS _clerk_sync_migrations (
                     version    INTEGER PRIMARY KEY,
                     name       TEXT NOT NULL,
                     -- SHA-256 of the file, in hexadecimal.
                     checksum   TEXT NOT NULL,
                     applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
                 )";
    connection.run(table).await?;
    for migration in &pending {
        connection.run(migration.sql).await?;
        connection.remember(migration).await?;
    }
    check(connection, place, &[]).await?;
    Ok(pending)
}

/// Refuse tables with clerk-sync's names that clerk-sync did not create, except where these migrations still change them.
/// Returns the columns of all clerk-sync tables.
pub(super) async fn check(
    connection: &mut SqliteConnection,
    place: &impl Display,
    pending: &[Migration],
) -> Result<Vec<Column>> {
    let mut found = Vec::new();
    let views = VIEWS.iter().map(|(name, _)| *name);
    for name in TABLES.iter().map(|table| table.name).chain(views) {
        found.extend(columns(connection, name).await?);
    }
    for column in &mut found {
        column.name.make_ascii_lowercase();
    }
    let mistakes = schema::mistakes(&found, pending, fits);
    if mistakes.is_empty() {
        return Ok(found);
    }
    let remedy = way_round(connection, mistakes.iter().map(|(table, _)| *table).collect()).await?;
    Err(schema::refused(&mistakes, place, &remedy))
}

/// What to do about tables of another application: commands that can be copied.
async fn way_round(connection: &mut SqliteConnection, tables: BTreeSet<&str>) -> Result<String> {
    let mut statements = Vec::new();
    let mut adopt = String::new();
    for table in tables {
        let mut old = format!("old_{table}");
        while !columns(connection, &old).await?.is_empty() {
            old.push_str("_1");
        }
        // A renamed table keeps its indexes' names, which clerk-sync's own indexes need.
        for index in indexes(connection, table).await? {
            statements.push(format!("DROP INDEX {};", quoted(&index)));
        }
        let (table_here, old) = (prefix::of_table(table), prefix::of_table(&old));
        statements.push(format!("ALTER TABLE {table_here} RENAME TO {old};"));
        if table == "users" {
            adopt = format!(
                " To import its users, run `clerk-sync migrate adopt --from {old} --dry-run`, and then run it again without \
                 --dry-run."
            );
        }
    }
    Ok(format!(
        "If an application still uses these tables, give clerk-sync a separate file in DATABASE_URL. Otherwise run in this file: {}{adopt}",
        statements.join(" ")
    ))
}

/// The columns of a clerk-sync table; empty if there is no such table.
pub(super) async fn columns(connection: &mut SqliteConnection, table: &str) -> Result<Vec<Column>> {
    let columns = columns_of(connection, &prefix::of_table(table)).await?.into_iter();
    Ok(columns.map(|column| Column { table: table.to_owned(), ..column }).collect())
}

/// The columns of any table.
pub(super) async fn columns_of(connection: &mut SqliteConnection, table: &str) -> Result<Vec<Column>> {
    let query = "SELECT name, type, \"notnull\" FROM pragma_table_info(?1)";
    let column = |row: &Row| {
        Ok(Column {
            table: table.to_owned(),
            name: row.get(0)?,
            type_name: row.get(1)?,
            not_null: row.get(2)?,
        })
    };
    connection.verbatim(query, values![table]).await?.iter().map(column).collect()
}

/// The indexes of a table whose names clerk-sync needs.
async fn indexes(connection: &mut SqliteConnection, table: &str) -> Result<Vec<String>> {
    let query = "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?1 AND sql IS NOT NULL";
    let rows = connection.verbatim(query, values![&prefix::of_table(table)]).await?;
    let mut names: Vec<String> = rows.iter().map(|row| row.get(0)).collect::<Result<_>>()?;
    names.retain(|name| {
        let makes = format!(" {name} ON ");
        SQLITE.iter().any(|migration| prefix::in_text(migration.sql, Dialect::Sqlite).contains(&makes))
    });
    Ok(names)
}

/// The affinity of a declared type (<https://www.sqlite.org/datatype3.html#determination_of_column_affinity>).
fn affinity(type_name: &str) -> &'static str {
    let name = type_name.to_ascii_uppercase();
    let says = |words: &[&str]| words.iter().any(|word| name.contains(word));
    match () {
        () if says(&["INT"]) => "INTEGER",
        () if says(&["CHAR", "CLOB", "TEXT"]) => "TEXT",
        () if name.is_empty() || says(&["BLOB"]) => "BLOB",
        () if says(&["REAL", "FLOA", "DOUB"]) => "REAL",
        () => "NUMERIC",
    }
}

fn fits(kind: ColumnType, type_name: &str) -> bool {
    match kind {
        ColumnType::BigInt | ColumnType::Int => affinity(type_name) == "INTEGER",
        ColumnType::Bool => matches!(affinity(type_name), "INTEGER" | "NUMERIC"),
        ColumnType::Text | ColumnType::Time | ColumnType::Json | ColumnType::TextArray => {
            affinity(type_name) == "TEXT"
        }
        ColumnType::Bytes => affinity(type_name) == "BLOB",
    }
}
