//! Reading an application's table.

use chrono_tz::Tz;
use sqlx::{AssertSqlSafe, postgres::PgRow};

use super::{Postgres, Session, get, sql};
use crate::store::{
    ErrorKind, ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError,
    foreign::{self, STANDARD},
    schema::quoted,
    sql::{Row, RowCells},
};

/// Opened without clerk-sync's search path, so that the name is resolved as for the application.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '300s'; \
                     SET LOCAL client_min_messages = error; SELECT pg_backend_pid()";

/// The table, its columns and counts of their values.
pub(super) async fn describe(store: &Postgres, table: &str) -> Result<ForeignTable> {
    let mut session = store.session(BEGIN).await?;
    let found = find(&mut session, table).await?;
    if found.schema == store.schema && found.name == "users" {
        // The table may have been created by another application. In that case, the advice about such tables is more useful.
        store.check_tables(&mut session, &[]).await?;
        return Err(StoreError::schema(format!(
            "{table} is clerk-sync's own table in schema {}: name the application's table, such as public.users",
            store.schema
        )));
    }
    let statement = foreign::counting(&found.columns, &found.quoted(), &STANDARD);
    let counts = session.rows(sqlx::query(AssertSqlSafe(statement))).await?;
    let zone = zone(&mut session, found.owner).await?;
    session.commit().await?;
    let table = foreign::counted(&Row::all(counts, RowCells::Postgres, &[]), found.columns)?;
    Ok(ForeignTable { zone, hides_rows: found.hides_rows, ..table })
}

/// One page of rows, ordered by id.
pub(super) async fn read(
    store: &Postgres,
    reading: &ForeignReading,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignRow>> {
    let mut session = store.session(BEGIN).await?;
    let found = find(&mut session, &reading.table).await?;
    let names: Vec<String> = reading.columns.iter().map(|column| quoted(column)).collect();
    let json = format!("(SELECT to_jsonb(r) FROM (SELECT {}) AS r)::text", names.join(", "));
    let id = format!("{}::text COLLATE \"C\"", quoted(&reading.id));
    let statement = foreign::page(reading, &id, &json, &found.quoted(), &STANDARD);
    let query = sqlx::query(AssertSqlSafe(statement)).bind(after).bind(i64::from(limit));
    let rows = session.rows(query).await.map(|rows| Row::all(rows, RowCells::Postgres, &[]));
    let rows = foreign::rows(rows, reading, &STANDARD)?;
    session.commit().await?;
    Ok(rows)
}

struct Found {
    schema: String,
    name: String,
    owner: i64,
    hides_rows: bool,
    /// Nothing is counted yet.
    columns: Vec<ForeignColumn>,
}

impl Found {
    fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// The table of this name, written plainly (`User`, `public.User`) or as in SQL (`public."User"`).
async fn find(session: &mut Session, table: &str) -> Result<Found> {
    let none = || {
        StoreError::schema(format!("there is no table {table}: write it as in SQL, such as public.\"User\""))
    };
    let plain = table.split('.').map(quoted).collect::<Vec<_>>().join(".");
    let mut rows = columns(session, &plain).await?;
    if rows.is_empty() {
        // A text that is not a valid name is refused.
        let as_in_sql = columns(session, table).await;
        rows = as_in_sql.map_err(|error| if error.kind == ErrorKind::Broken { none() } else { error })?;
    }
    let first = rows.first().ok_or_else(none)?;
    let column = |row| {
        let (name, lacks_zone, is_text) = (get(row, 4)?, get(row, 5)?, get(row, 6)?);
        Ok(ForeignColumn { name, is_text, lacks_zone, ..ForeignColumn::default() })
    };
    Ok(Found {
        schema: get(first, 0)?,
        name: get(first, 1)?,
        owner: get(first, 2)?,
        hides_rows: get(first, 3)?,
        columns: rows.iter().map(column).collect::<Result<_>>()?,
    })
}

/// The columns of the table that SQL resolves this name to.
async fn columns(session: &mut Session, name: &str) -> Result<Vec<PgRow>> {
    let query =
        sql("SELECT s.nspname::text, c.relname::text, c.relowner::bigint, row_security_active(c.oid),
                a.attname::text, t.oid = 'timestamp'::regtype, t.typcategory IN ('S', 'E')
         FROM pg_class AS c
         JOIN pg_namespace AS s ON s.oid = c.relnamespace
         JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         JOIN pg_type AS d ON d.oid = a.atttypid
         -- For a domain, its base type.
         JOIN pg_type AS t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END
         WHERE c.oid = to_regclass($1)
         ORDER BY a.attnum")
        .bind(name);
    session.rows(query).await
}

/// The zone in which the application's sessions write times without a zone, if the database can show it. clerk-sync's own
/// sessions cannot, because the driver requests UTC.
async fn zone(session: &mut Session, owner: i64) -> Result<Option<String>> {
    let row = session
        .rows(
            sql("SELECT (SELECT substr(setting, length('timezone=') + 1)
                         FROM pg_db_role_setting AS s, unnest(s.setconfig) AS setting
                         WHERE lower(setting) LIKE 'timezone=%'
                           AND s.setrole IN (0, $1::oid)
                           AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                         -- A setting for the role counts before one for the database.
                         ORDER BY s.setrole <> 0 AND s.setdatabase <> 0 DESC, s.setrole <> 0 DESC, s.setdatabase <> 0 DESC
                         LIMIT 1),
                        has_function_privilege('pg_show_all_file_settings()', 'EXECUTE'),
                        current_setting('log_timezone')")
            .bind(owner),
        )
        .await?;
    let row = row.first().ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
    let of_the_database: Option<String> = get(row, 0)?;
    if of_the_database.is_some() {
        return Ok(of_the_database);
    }
    if get(row, 1)? {
        let rows = session
            .rows(sql("SELECT setting FROM pg_file_settings WHERE lower(name) = 'timezone' AND error IS NULL
                       ORDER BY seqno DESC LIMIT 1"))
            .await?;
        return Ok(Some(rows.first().map_or(Ok("GMT".to_owned()), |row| get(row, 0))?));
    }
    // Installing a server sets both zones to that of its machine. If one is UTC, the other has rarely been changed.
    let of_the_log: String = get(row, 2)?;
    let is_utc = matches!(
        of_the_log.parse(),
        Ok(Tz::UTC | Tz::Etc__UTC | Tz::GMT | Tz::Etc__GMT | Tz::UCT | Tz::Etc__UCT)
    );
    Ok(is_utc.then_some(of_the_log))
}
