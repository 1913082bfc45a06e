//! Reading a table that is not ours, made by Prisma or Drizzle, to take its users over.

use sqlx::AssertSqlSafe;

use super::{Postgres, Session, count, get, sql};
use crate::store::{ForeignUser, Result, StoreError, Trouble, foreign, schema::quoted};

/// Opened without our search path: the name is looked up as the application would.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '60s'; \
                     SET LOCAL client_min_messages = error";

/// One page of users, in the order of their ids.
pub(super) async fn read(
    store: &Postgres,
    table: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignUser>> {
    let mut session = store.session(BEGIN).await?;
    let found = find(&mut session, table).await?;
    if found.schema == store.schema && found.name == "users" {
        return Err(StoreError::schema(format!(
            "{table} is clerk-sync's own table in schema {}: name the application's table, such as public.users",
            store.schema
        )));
    }
    let id = quoted(foreign::id_column(table, &found.columns)?);
    // The names are the catalogue's own, quoted.
    let statement = format!(
        "SELECT t.{id}::text, to_jsonb(t)::text FROM {table} AS t
         -- Empty ids come too, to be counted.
         WHERE t.{id}::text COLLATE \"C\" > $1 OR ($1 IS NULL AND t.{id} IS NOT NULL)
         ORDER BY t.{id}::text COLLATE \"C\" LIMIT $2",
        table = found.quoted(),
    );
    let query = sqlx::query(AssertSqlSafe(statement)).bind(after).bind(i64::from(limit));
    let rows = session.rows(query).await?;
    session.commit().await?;
    foreign::users(rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect::<Result<_>>()?)
}

/// How many rows have no id.
pub(super) async fn count_without_id(store: &Postgres, table: &str) -> Result<u64> {
    let mut session = store.session(BEGIN).await?;
    let found = find(&mut session, table).await?;
    let id = quoted(foreign::id_column(table, &found.columns)?);
    let statement = format!("SELECT count(*) FROM {} WHERE {id} IS NULL", found.quoted());
    let rows = session.rows(sqlx::query(AssertSqlSafe(statement))).await?;
    session.commit().await?;
    count(rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?, 0)
}

struct Found {
    schema: String,
    name: String,
    columns: Vec<String>,
}

impl Found {
    fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// The table of this name, written as in SQL (`public."User"`) or plainly (`User`).
async fn find(session: &mut Session, table: &str) -> Result<Found> {
    let plain = table.split('.').map(quoted).collect::<Vec<_>>().join(".");
    let candidates: Vec<&str> = if table.contains('"') { vec![table] } else { vec![&plain, table] };
    let rows = session
        .rows(
            sql("SELECT s.nspname::text, c.relname::text,
                        array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum > 0 AND NOT a.attisdropped)
                 FROM unnest($1::text[]) WITH ORDINALITY AS n (name, rank)
                 JOIN pg_class AS c ON c.oid = to_regclass(n.name)
                 JOIN pg_namespace AS s ON s.oid = c.relnamespace
                 JOIN pg_attribute AS a ON a.attrelid = c.oid
                 GROUP BY s.nspname, c.relname, n.rank
                 ORDER BY n.rank
                 LIMIT 1")
            .bind(candidates),
        )
        .await?;
    let row = rows.first().ok_or_else(|| {
        StoreError::schema(format!("there is no table {table}: write it as in SQL, such as public.\"User\""))
    })?;
    Ok(Found { schema: get(row, 0)?, name: get(row, 1)?, columns: get(row, 2)? })
}
