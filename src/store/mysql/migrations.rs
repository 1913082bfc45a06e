//! Bringing the tables up to date, and refusing tables that clerk-sync did not create.
//!
//! DDL commits implicitly, so an interrupted migration runs again from its beginning. Each of its steps can be repeated.

use sqlx::{AssertSqlSafe, Executor as _, MySqlConnection};

use super::{error::explain, inspect::ask, render::collation};
use crate::store::{
    ErrorKind, Migration, MigrationStatus, Result, StoreError,
    migration::MYSQL,
    prefix,
    schema::{self, Column, ColumnType},
    sql::{Dialect, Row, only},
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
    if pending(connection).await?.is_empty() {
        complete(&check(connection, &[]).await?)?;
        return Ok(Vec::new());
    }
    // The lock is per database.
    let lock = sqlx::query("SELECT GET_LOCK(concat('clerk_sync_', left(sha2(database(), 256), 32)), ?)")
        .bind(PATIENCE);
    if only(&ask(connection, lock).await?)?.maybe::<i64>(0)? != Some(1) {
        return Err(StoreError::new(ErrorKind::Locked));
    }
    let applied = apply(connection, dialect).await;
    let unlock = sqlx::query("SELECT RELEASE_LOCK(concat('clerk_sync_', left(sha2(database(), 256), 32)))");
    ask(connection, unlock).await?;
    applied
}

async fn apply(connection: &mut MySqlConnection, dialect: Dialect) -> Result<Vec<Migration>> {
    // Another process may have applied them meanwhile.
    let pending = pending(connection).await?;
    check(connection, &pending).await?;
    let table = format!(
        "CREATE TABLE IF NOT EXISTS _clerk_sync_migrations (
             version bigint PRIMARY KEY, name varchar(255) NOT NULL, checksum char(64) NOT NULL,
             applied_at datetime(3) NOT NULL
         ) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {}",
        collation(dialect)
    );
    run(connection, &table).await?;
    // While this session waits for a table lock, later readers wait behind it.
    run(connection, "SET SESSION lock_wait_timeout = 10").await?;
    for migration in &pending {
        for part in parts(&migration.sql.replace("{bin}", collation(dialect))) {
            match run(connection, &part).await {
                // The column was added before the migration was interrupted.
                Err(error) if error.code.as_deref() == Some("1060") && adds_a_column(&part) => {}
                done => done?,
            }
        }
        let query = sqlx::query(named(
            "INSERT INTO _clerk_sync_migrations (version, name, checksum, applied_at) VALUES (?, ?, ?, utc_timestamp(3))",
        ));
        let query = query.bind(migration.version).bind(migration.name).bind(migration.checksum());
        connection.execute(query).await.map_err(explain)?;
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
    let mut parts = vec![String::new()];
    for line in sql.split_inclusive('\n') {
        if adds_a_column(line) {
            parts.extend([line.to_owned(), String::new()]);
        } else if let Some(part) = parts.last_mut() {
            part.push_str(line);
        }
    }
    parts.retain(|part| part.lines().any(|line| !line.trim().is_empty() && !line.starts_with("--")));
    parts
}

async fn run(connection: &mut MySqlConnection, text: &str) -> Result<()> {
    connection.execute(sqlx::raw_sql(named(text))).await.map_err(explain)?;
    Ok(())
}

async fn pending(connection: &mut MySqlConnection) -> Result<Vec<Migration>> {
    Migration::pending(MYSQL, &applied(connection).await?)
}

/// clerk-sync's SQL with the names that the database uses.
pub(super) fn named(sql: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(prefix::in_text(sql, Dialect::Mysql).into_owned())
}

/// Every known migration, and whether it is applied.
pub(super) async fn status(connection: &mut MySqlConnection) -> Result<Vec<MigrationStatus>> {
    Ok(Migration::status(MYSQL, &applied(connection).await?))
}

/// Versions and checksums of the applied migrations.
pub(super) async fn applied(connection: &mut MySqlConnection) -> Result<Vec<(i64, String)>> {
    let tables = sqlx::query(named(
        "SELECT 1 FROM information_schema.tables WHERE table_schema = database() AND table_name = '_clerk_sync_migrations'",
    ));
    if ask(connection, tables).await?.is_empty() {
        return Ok(Vec::new());
    }
    let query = sqlx::query(named("SELECT version, checksum FROM _clerk_sync_migrations ORDER BY version"));
    ask(connection, query).await?.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
}

/// Refuse tables with clerk-sync's names that clerk-sync did not create, except where these migrations still change them.
/// Returns the columns of the whole database.
pub(super) async fn check(connection: &mut MySqlConnection, pending: &[Migration]) -> Result<Vec<Column>> {
    let columns = columns(connection).await?;
    let mistakes = schema::mistakes(&columns, pending, fits);
    if mistakes.is_empty() {
        return Ok(columns);
    }
    let name = sqlx::query("SELECT database()");
    let name: String = only(&ask(connection, name).await?)?.get(0)?;
    let adopt = if mistakes.iter().any(|(table, _)| *table == "users") {
        format!(
            " To import its users, run `clerk-sync migrate adopt --from {name}.users --dry-run` with that database, and then run it \
             again without --dry-run."
        )
    } else {
        String::new()
    };
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

/// Refuse `ANONYMIZE_COLUMNS` that an erasure could not set to NULL.
pub(super) async fn check_anonymize_columns(
    connection: &mut MySqlConnection,
    names: &[String],
) -> Result<()> {
    schema::check_anonymize_columns(&columns(connection).await?, names)
}

async fn columns(connection: &mut MySqlConnection) -> Result<Vec<Column>> {
    let query = sqlx::query(
        "SELECT CAST(table_name AS char), CAST(column_name AS char), CAST(data_type AS char), is_nullable = 'NO'
         FROM information_schema.columns WHERE table_schema = database()",
    );
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
    ask(connection, query).await?.iter().filter_map(|row| column(row).transpose()).collect()
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
