//! Row counts and sizes.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::{Purpose, SqlDatabase, Statement, batch, only, statements, values};
use crate::store::{Count, Result, Statistics, schema::TABLES};

/// A table with fewer rows than this is counted, which takes at most a tenth of a second.
const COUNTED: u64 = 500_000;

statements! {
    OUTCOMES = "SELECT outcome, count(*) FROM processed_webhooks WHERE processed_at >= $1
        GROUP BY outcome ORDER BY 2 DESC, 1";

    // The estimate of PostgreSQL's planner: rows per page at the last analysis, times the current number of pages. It is 0 for
    // tables and indexes that were never analysed.
    ESTIMATES = "{postgres SELECT n.name,
               CASE WHEN c.reltuples > 0 AND c.relpages > 0
                    THEN (c.reltuples / c.relpages
                          * (pg_relation_size(c.oid) / current_setting('block_size')::integer))::bigint
                    ELSE 0 END
        FROM {batch $1 AS n: name text}
        JOIN pg_class AS c ON c.oid = to_regclass(n.name)}{sqlite SELECT NULL, NULL WHERE $1 IS NULL}{mysql
        SELECT n.name, coalesce(CAST(t.table_rows AS signed), 0) FROM {batch $1 AS n: name text}
        JOIN information_schema.tables AS t ON t.table_schema = database() AND CAST(t.table_name AS char) = n.name}";

    STANDING = "SELECT count(*) FROM users WHERE deleted_at IS NULL";

    REST = "SELECT
            (SELECT count(*) FROM erasure_receipts WHERE destination = 'database' AND completed_at IS NOT NULL),
            (SELECT max(processed_at) FROM processed_webhooks),
            {postgres pg_database_size(current_database())}{sqlite (SELECT page_count * page_size FROM pragma_page_count, pragma_page_size)}{mysql
            (SELECT CAST(coalesce(sum(data_length + index_length), 0) AS signed) FROM information_schema.tables
             WHERE table_schema = database())}";
}

/// See [`Store::statistics`](crate::store::Store::statistics).
pub(in crate::store) async fn statistics(
    store: &dyn SqlDatabase,
    since: DateTime<Utc>,
) -> Result<Statistics> {
    let outcomes = match store.fetch(Purpose::Count, &OUTCOMES, values![since]).await {
        Ok(rows) => Some(rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect::<Result<_>>()?),
        Err(error) if error.took_too_long() => None,
        Err(error) => return Err(error),
    };
    let mut session = store.session(Purpose::Count).await?;
    let mut names: Vec<&'static str> = TABLES.iter().map(|table| table.name).chain(["users_email"]).collect();
    let rows = session.rows(&ESTIMATES, values![batch(&names).text(|name| *name)]).await?;
    names.pop();
    let estimates: HashMap<String, u64> =
        rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect::<Result<_>>()?;
    let mut tables = Vec::new();
    for name in names {
        let count = if let Some(rows) = estimates.get(name).copied().filter(|rows| *rows >= COUNTED) {
            Count { rows, estimated: true }
        } else {
            let statement = Statement::made(format!("SELECT count(*) FROM {name}"));
            Count::exact(only(&session.rows(&statement, values![]).await?)?.get(0)?)
        };
        tables.push((name, count));
    }
    // This index has one entry for each live user.
    let many = tables.iter().any(|(name, count)| *name == "users" && count.estimated);
    let standing = match estimates.get("users_email").copied().filter(|_| many) {
        Some(rows) => Count { rows, estimated: true },
        None => Count::exact(only(&session.rows(&STANDING, values![]).await?)?.get(0)?),
    };
    let rows = session.rows(&REST, values![]).await?;
    session.commit().await?;
    let row = only(&rows)?;
    Ok(Statistics {
        tables,
        standing,
        erased: row.get(0)?,
        outcomes,
        last_event: row.maybe(1)?,
        bytes: row.get(2)?,
    })
}
