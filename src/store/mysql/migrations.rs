//! Bringing the tables up to date, and refusing tables that clerk-sync did not create.
//!
//! DDL commits implicitly, so an interrupted migration runs again from its beginning. Each of its steps can be repeated.

use sqlx::MySqlConnection;

use super::render::collation;
use crate::store::{
    ErrorKind, Migration, Result, StoreError, prefix,
    schema::{self, Column, ColumnType},
    sql::{Dialect, Row, ask::Ask as _, values},
};

/// How long a process waits for another one that migrates, in seconds. MariaDB does not lock if the time is unlimited.
const PATIENCE: i64 = 600;

/// Apply pending migrations; returns them.
pub(super) async fn migrate(connection: &mut MySqlConnection, dialect: Dialect) -> Result<Vec<Migration>> {
    migrated(connection, dialect).await.map_err(|error| match error.code.as_deref() {
        // A table, a column, a routine, a privilege for the whole server; triggers with a binary log.
        Some("1142" | "1143" | "1227" | "1370" | "1419") => StoreError::schema(format!(
            "the account of DATABASE_URL may not apply migrations ({}): `clerk-sync doctor` lists each missing privilege with \
             its GRANT",
            error.code_or_kind()
        )),
        _ => error,
    })
}

async fn migrated(connection: &mut MySqlConnection, dialect: Dialect) -> Result<Vec<Migration>> {
    if connection.pending().await?.is_empty() {
        complete(&check(connection, &[]).await?)?;
        return Ok(Vec::new());
    }
    // The lock is per database.
    let lock = "SELECT GET_LOCK(concat('clerk_sync_', left(sha2(database(), 256), 32)), ?)";
    if connection.one(lock, values![PATIENCE]).await?.maybe::<i64>(0)? != Some(1) {
        return Err(StoreError::new(ErrorKind::Locked));
    }
    let applied = apply(connection, dialect).await;
    connection.run("DO RELEASE_LOCK(concat('clerk_sync_', left(sha2(database(), 256), 32)))").await?;
    applied
}

async fn apply(connection: &mut MySqlConnection, dialect: Dialect) -> Result<Vec<Migration>> {
    // Another process may have applied them meanwhile.
    let pending = connection.pending().await?;
    check(connection, &pending).await?;
    let table = format!(
        "CREATE TABLE IF NOT EXISTS _clerk_sync_migrations (
             version bigint PRIMARY KEY, name varchar(255) NOT NULL, checksum char(64) NOT NULL,
             applied_at datetime(3) NOT NULL
         ) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {}",
        collation(dialect)
    );
    connection.run(&table).await?;
    // While this session waits for a table lock, later readers wait behind it.
    connection.run("SET SESSION lock_wait_timeout = 10").await?;
    for migration in &pending {
        for part in parts(&migration.sql.replace("{bin}", collation(dialect))) {
            match connection.run(&part).await {
                // The column was added before the migration was interrupted.
                Err(error) if error.code.as_deref() == Some("1060") && adds_a_column(&part) => {}
                done => _ = done?,
            }
        }
        connection.remember(migration).await?;
    }
    check(connection, &[]).await?;
    Ok(pending)
}

/// Whether a line does nothing but add a column, which cannot be done twice.
fn adds_a_column(line: &str) -> bool {
    line.starts_with("ALTER TABLE ") && line.contains(" ADD COLUMN ")
}

/// The parts of a migration: each line that adds a column, and the text between such lines.
fn parts(sql: &str) -> Vec<String> {
    let lines: Vec<&str> = sql.split_inclusive('\n').collect();
    let parts = lines.chunk_by(|one, other| !adds_a_column(one) && !adds_a_column(other));
    let says = |part: &&[&str]| part.iter().any(|line| !line.trim().is_empty() && !line.starts_with("--"));
    parts.filter(says).map(<[&str]>::concat).collect()
}

/// Refuse tables with clerk-sync's names that clerk-sync did not create, except where these migrations still change them.
/// Returns the columns of the whole database.
pub(super) async fn check(connection: &mut MySqlConnection, pending: &[Migration]) -> Result<Vec<Column>> {
    let columns = columns(connection).await?;
    let mistakes = schema::mistakes(&columns, pending, fits);
    if mistakes.is_empty() {
        return Ok(columns);
    }
    let name: String = connection.one("SELECT database()", values![]).await?.get(0)?;
    let adopt = format!(
        " To import its users, run `clerk-sync migrate adopt --from {name}.users --dry-run` with that database, and then run it again \
         without --dry-run."
    );
    let adopt = if mistakes.iter().any(|(table, _)| *table == "users") { &*adopt } else { "" };
    let remedy = format!(
        "Leave this database to the program that created it and give clerk-sync a separate one: run CREATE DATABASE {name}_clerk; and \
         set DATABASE_URL to it. Or give clerk-sync's tables other names: TABLE_PREFIX=clerk_.{adopt}"
    );
    Err(schema::refused(&mistakes, &format!("database {name}"), &remedy))
}

/// Refuse a database that lacks tables which applied migrations created, as after an interrupted restore.
pub(super) fn complete(columns: &[Column]) -> Result<()> {
    let is_there = |table: &&schema::Table| columns.iter().any(|column| column.table == table.name);
    match schema::TABLES.iter().find(|table| !is_there(table)) {
        None => Ok(()),
        Some(missing) => Err(StoreError::schema(format!(
            "the table {} is missing, although the migration that creates it is applied. Nothing was changed. Restore the whole \
             dump into an empty database, or let the migrations create what is missing: DELETE FROM {}; and run `clerk-sync migrate`",
            prefix::of_table(missing.name),
            prefix::of_table("_clerk_sync_migrations")
        ))),
    }
}

/// The columns of clerk-sync's tables.
pub(super) async fn columns(connection: &mut MySqlConnection) -> Result<Vec<Column>> {
    let query = "SELECT CAST(table_name AS char), CAST(column_name AS char), CAST(data_type AS char), is_nullable = 'NO'
         FROM information_schema.columns WHERE table_schema = database()";
    let column = |row: &Row| {
        let table: String = row.get(0)?;
        let Some(table) = prefix::plain_table(&table) else { return Ok(None) };
        let column = Column {
            table: table.to_owned(),
            name: row.get(1)?,
            type_name: row.get(2)?,
            not_null: row.get(3)?,
        };
        Ok(Some(column))
    };
    connection.verbatim(query, values![]).await?.iter().filter_map(|row| column(row).transpose()).collect()
}

fn fits(kind: ColumnType, type_name: &str) -> bool {
    match kind {
        ColumnType::BigInt => type_name == "bigint",
        ColumnType::Int => matches!(type_name, "int" | "bigint"),
        ColumnType::Bool => type_name == "tinyint",
        ColumnType::Text | ColumnType::Json | ColumnType::TextArray => {
            matches!(type_name, "varchar" | "char" | "text" | "mediumtext" | "longtext")
        }
        ColumnType::Time => type_name == "datetime",
        ColumnType::Bytes => matches!(type_name, "blob" | "mediumblob" | "longblob"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migration::MYSQL;

    #[test]
    fn a_line_that_adds_a_column_does_nothing_else() {
        for migration in MYSQL {
            for line in migration.sql.lines().filter(|line| line.contains("ADD COLUMN")) {
                assert!(
                    adds_a_column(line) && line.ends_with(';') && line.matches(" ADD ").count() == 1,
                    "{line}"
                );
            }
            let parts = parts(migration.sql);
            let added = migration.sql.matches("ADD COLUMN").count();
            assert_eq!(parts.iter().filter(|part| adds_a_column(part)).count(), added);
        }
    }
}
