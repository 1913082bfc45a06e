//! Inspects the file for the operator. Nothing is written.

use serde::de::DeserializeOwned;
use sqlx::SqliteConnection;

use super::migrations;
use crate::store::{
    Inspection, Reference, Result, Size,
    migration::SQLITE,
    prefix,
    schema::{self, quoted},
    sql::{Row, ask::Ask as _, values},
};

/// Inspect the database.
pub(super) async fn inspect(
    connection: &mut SqliteConnection,
    place: &impl std::fmt::Display,
    anonymize_columns: &[String],
) -> Result<Inspection> {
    let version: String = connection.one("SELECT sqlite_version()", values![]).await?.get(0)?;
    let migrations = connection.checked().await;
    let applied = match &migrations {
        Ok(status) => status.iter().filter(|status| status.applied).count(),
        Err(_) => SQLITE.len(),
    };
    // While only some migrations are applied, columns are missing that the others will add.
    let tables = if applied == 0 || applied == SQLITE.len() {
        let checked = migrations::check(connection, place, &[]).await;
        checked.and_then(|columns| match applied {
            0 => Ok(()),
            _ => schema::check_anonymize_columns(&columns, anonymize_columns),
        })
    } else {
        Ok(())
    };
    let size = size(connection).await.map(|database| Size { database, ours: None });
    Ok(Inspection {
        migrations: Some(migrations),
        tables,
        references: references(connection).await?,
        // No version is too old, because SQLite is part of this program. Identity sequences are never behind, because SQLite
        // considers both the rows and its stored counter.
        ..Inspection::of(format!("SQLite {version}"), size)
    })
}

/// The size of the database in bytes.
pub(super) async fn size(connection: &mut SqliteConnection) -> Result<u64> {
    let query = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
    connection.one(query, values![]).await?.get(0)
}

/// Number of live users.
pub(super) async fn count_standing(connection: &mut SqliteConnection) -> Result<u64> {
    connection.one("SELECT count(*) FROM users WHERE deleted_at IS NULL", values![]).await?.get(0)
}

async fn references(connection: &mut SqliteConnection) -> Result<Vec<Reference>> {
    let query = "SELECT name, json_group_array(\"column\"), target FROM (
             SELECT m.name, f.id, f.\"from\" AS \"column\", lower(f.\"table\") AS target
             FROM sqlite_schema AS m JOIN pragma_foreign_key_list(m.name) AS f
             WHERE m.type = 'table' AND lower(f.\"table\") IN (SELECT value FROM json_each(?1))
             ORDER BY m.name, f.id, f.seq
         )
         GROUP BY name, id";
    let ours: Vec<String> = schema::of_kinds().into_iter().map(prefix::of_table).collect();
    let ours = serde_json::to_string(&ours).unwrap_or_default();
    let mut references = Vec::new();
    for row in connection.verbatim(query, values![&ours]).await? {
        let (table, columns): (String, Vec<String>) = (row.get(0)?, list(&row, 1)?);
        let index = quoted(&format!("{table}_{}", columns.join("_")));
        let names: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
        let statement = format!("CREATE INDEX {index} ON {} ({});", quoted(&table), names.join(", "));
        let is_indexed = is_indexed(connection, &table, &columns).await?;
        references.push(Reference {
            place: format!("{table} ({})", columns.join(", ")),
            to: row.get(2)?,
            remedy: (!is_indexed).then_some(statement),
        });
    }
    Ok(references)
}

/// Whether an index begins with these columns, in any order.
async fn is_indexed(connection: &mut SqliteConnection, table: &str, columns: &[String]) -> Result<bool> {
    let query = "SELECT json_group_array(\"column\") FROM (
             SELECT l.name, i.name AS \"column\"
             FROM pragma_index_list(?1) AS l JOIN pragma_index_info(l.name) AS i
             WHERE l.partial = 0
             ORDER BY l.name, i.seqno
         )
         GROUP BY name
         UNION ALL
         -- Such a key is the order of the rows themselves, without an index.
         SELECT json_array(name) FROM pragma_table_info(?1)
         WHERE pk > 0 AND upper(type) = 'INTEGER' AND (SELECT max(pk) FROM pragma_table_info(?1)) = 1";
    for row in connection.verbatim(query, values![table]).await? {
        // An expression has no name.
        let index: Vec<Option<String>> = list(&row, 0)?;
        let begins_with = |column: &String| {
            let mut first = index.iter().take(columns.len()).flatten();
            first.any(|name| name.eq_ignore_ascii_case(column))
        };
        if index.len() >= columns.len() && columns.iter().all(begins_with) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A list that SQLite returns as JSON.
fn list<T: DeserializeOwned>(row: &Row, column: usize) -> Result<Vec<T>> {
    Ok(serde_json::from_str(&row.get::<String>(column)?).unwrap_or_default())
}
