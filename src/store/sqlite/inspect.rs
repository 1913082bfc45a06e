//! Looking at the file, for people. Nothing is written.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::{error::explain, migrations, removal, text};
use crate::store::{
    Count, Inspection, Reference, Result, Size, Statistics,
    migration::SQLITE,
    schema::{TABLES, quoted},
};

/// What is right and wrong.
pub(super) async fn inspect(
    connection: &mut SqliteConnection,
    place: &impl std::fmt::Display,
    anonymize_columns: &[String],
) -> Result<Inspection> {
    let version: String =
        sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut *connection).await.map_err(explain)?;
    let migrations = match migrations::pending(connection).await {
        Ok(_) => Ok(migrations::status(connection).await?),
        Err(error) => Err(error),
    };
    let applied = match &migrations {
        Ok(status) => status.iter().filter(|status| status.applied).count(),
        Err(_) => SQLITE.len(),
    };
    // While some migrations are pending columns are missing that they will add.
    let tables = if applied == 0 {
        migrations::check(connection, place, &[]).await
    } else if applied == SQLITE.len() {
        match migrations::check(connection, place, &[]).await {
            Ok(()) => migrations::check_anonymize_columns(connection, anonymize_columns).await,
            Err(error) => Err(error),
        }
    } else {
        Ok(())
    };
    Ok(Inspection {
        version: format!("SQLite {version}"),
        // It is part of this program.
        needs: None,
        now: None,
        standby: false,
        read_only: false,
        missing: Vec::new(),
        migrations: Some(migrations),
        tables,
        hidden: None,
        rules: Vec::new(),
        references: references(connection).await?,
        route: None,
        // SQLite itself looks at the rows as well as at what it remembers.
        sequences: Vec::new(),
        size: size(connection).await.map(|database| Size { database, ours: None }),
    })
}

/// How large the database is, in bytes.
pub(super) async fn size(connection: &mut SqliteConnection) -> Result<u64> {
    let size: i64 =
        sqlx::query_scalar("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            .fetch_one(connection)
            .await
            .map_err(explain)?;
    Ok(size.unsigned_abs())
}

async fn references(connection: &mut SqliteConnection) -> Result<Vec<Reference>> {
    let rows = sqlx::query(
        "SELECT m.name AS name, f.id AS id, f.\"from\" AS \"column\"
         FROM sqlite_schema AS m JOIN pragma_foreign_key_list(m.name) AS f
         WHERE m.type = 'table' AND lower(f.\"table\") = 'users'
         ORDER BY m.name, f.id, f.seq",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(explain)?;
    let mut keys: Vec<(String, Option<i64>, Vec<String>)> = Vec::new();
    for row in &rows {
        let table = text::read(row, "name")?.unwrap_or_default();
        let id = text::read_integer(row, "id")?;
        let column = text::read(row, "column")?.unwrap_or_default();
        match keys.last_mut() {
            Some((last, last_id, columns)) if *last == table && *last_id == id => columns.push(column),
            _ => keys.push((table, id, vec![column])),
        }
    }
    let mut references = Vec::new();
    for (table, _, columns) in keys {
        let remedy = if is_indexed(connection, &table, &columns).await? {
            None
        } else {
            let index = quoted(&format!("{table}_{}", columns.join("_")));
            let names: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
            Some(format!("CREATE INDEX {index} ON {} ({});", quoted(&table), names.join(", ")))
        };
        references.push(Reference { place: format!("{table} ({})", columns.join(", ")), remedy });
    }
    Ok(references)
}

/// Whether an index begins with these columns, in any order.
async fn is_indexed(connection: &mut SqliteConnection, table: &str, columns: &[String]) -> Result<bool> {
    let rows = sqlx::query(
        "SELECT l.name AS name, i.seqno AS place, i.name AS \"column\"
         FROM pragma_index_list(?1) AS l JOIN pragma_index_info(l.name) AS i
         WHERE l.partial = 0
         UNION ALL
         -- Rows lie in the order of such a key, without any index.
         SELECT '', 0, name FROM pragma_table_info(?1)
         WHERE pk > 0 AND upper(type) = 'INTEGER' AND (SELECT max(pk) FROM pragma_table_info(?1)) = 1
         ORDER BY name, place",
    )
    .bind(table)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    let mut indexes: Vec<(String, Vec<String>)> = Vec::new();
    for row in &rows {
        let index = text::read(row, "name")?.unwrap_or_default();
        // An expression has no name.
        let column = text::read(row, "column")?.unwrap_or_default();
        match indexes.last_mut() {
            Some((last, columns)) if *last == index => columns.push(column),
            _ => indexes.push((index, vec![column])),
        }
    }
    let covers = |index: &[String]| {
        index.get(..columns.len()).is_some_and(|first| {
            columns.iter().all(|column| first.iter().any(|name| name.eq_ignore_ascii_case(column)))
        })
    };
    Ok(indexes.iter().any(|(_, index)| covers(index)))
}

/// How much there is.
pub(super) async fn statistics(
    connection: &mut SqliteConnection,
    since: DateTime<Utc>,
) -> Result<Statistics> {
    let mut tables = Vec::new();
    for table in TABLES.iter() {
        let statement = AssertSqlSafe(format!("SELECT count(*) FROM {}", table.name));
        let rows: i64 = sqlx::query_scalar(statement).fetch_one(&mut *connection).await.map_err(explain)?;
        tables.push((table.name, Count::exact(rows.unsigned_abs())));
    }
    let erased: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM erasure_receipts WHERE destination = 'database' AND completed_at IS NOT NULL",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(explain)?;
    let rows = sqlx::query(
        "SELECT outcome, count(*) AS deliveries FROM processed_webhooks WHERE processed_at >= ?1
         GROUP BY outcome ORDER BY 2 DESC, 1",
    )
    .bind(text::time(since))
    .fetch_all(&mut *connection)
    .await
    .map_err(explain)?;
    let mut outcomes = Vec::new();
    for row in &rows {
        let deliveries = text::read_integer(row, "deliveries")?.unwrap_or_default().unsigned_abs();
        outcomes.push((text::read(row, "outcome")?.unwrap_or_default(), deliveries));
    }
    let last = sqlx::query("SELECT max(processed_at) AS last FROM processed_webhooks")
        .fetch_one(&mut *connection)
        .await
        .map_err(explain)?;
    Ok(Statistics {
        tables,
        standing: Count::exact(removal::count_standing(connection).await?),
        erased: erased.unsigned_abs(),
        outcomes: Some(outcomes),
        last_event: text::read_time(&last, "last")?,
        bytes: size(connection).await?,
    })
}
