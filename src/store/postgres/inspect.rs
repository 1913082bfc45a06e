//! Inspects the server and the tables for the operator. Nothing is written. Except for counting, it only reads catalogues
//! and the list of migrations. The inspection therefore works, and explains what is wrong, even with almost no
//! privileges.

use std::collections::BTreeMap;

use super::{
    Postgres, count,
    facts::{REMEMBERED, facts, needed},
    sequences, sight, sql,
};
use crate::store::{
    Count, ErrorKind, Inspection, Migration, Missing, Reference, Result, StoreError, migration::POSTGRES,
    schema, sql::Purpose,
};
use chrono::{DateTime, Utc};
use serde::Deserialize;

/// The oldest supported version, as in `server_version_num`: the first that can replace triggers.
const OLDEST: (i32, &str) = (140_000, "PostgreSQL 14");

/// A `users` table of at most this many pages, which is about ten thousand users, is counted even while webhooks arrive.
const COUNTED_PAGES: u64 = 1000;

pub(super) async fn inspect(store: &Postgres) -> Result<Inspection> {
    let mut session = store.opened(Purpose::Count).await?;
    let session_route = session.route;
    let server: Server = one(facts(&mut session, &store.schema, SERVER).await?)?;
    let tables: Vec<Table> = facts(&mut session, &store.schema, TABLES_OF_OURS).await?;
    let remembered = tables.iter().find(|table| table.name == REMEMBERED);
    let migrations =
        if remembered.is_none_or(|table| server.may_use && table.may.iter().any(|may| may == "SELECT")) {
            Some(Migration::checked(POSTGRES, &store.applied(&mut session).await?))
        } else {
            None
        };
    let applied = match &migrations {
        Some(Ok(status)) => status.iter().filter(|status| status.applied).count(),
        _ => POSTGRES.len(),
    };
    let missing = missing(&server, &tables, applied < POSTGRES.len());
    let references: Vec<Reference> = facts(&mut session, &store.schema, REFERENCES).await?;
    let hidden = sight::hidden(&mut session).await?.into_iter().map(Missing::from).collect();
    let rules: Vec<Missing> = facts(&mut session, &store.schema, RULES).await?;
    // While only some migrations are applied, columns are missing that the others will add.
    let check = missing.is_empty() && (applied == 0 || applied == POSTGRES.len());
    let checked = if check {
        store.check_tables(&mut session, &[]).await.and_then(|columns| match applied {
            0 => Ok(()),
            _ => schema::check_anonymize_columns(&columns, &store.anonymize_columns),
        })
    } else {
        Ok(())
    };
    let sequences = if check && checked.is_ok() && applied > 0 {
        sequences::behind(&mut session, &store.schema).await?
    } else {
        Vec::new()
    };
    let size = facts(&mut session, &store.schema, SIZE).await.and_then(one);
    if size.is_ok() {
        session.commit().await?;
    }
    Ok(Inspection {
        // Suffixes that a distribution adds to the version are left out.
        version: format!("PostgreSQL {}", server.version.split_whitespace().next().unwrap_or_default()),
        needs: (server.number < OLDEST.0).then_some(OLDEST.1),
        now: Some(server.now),
        standby: server.standby,
        read_only: server.read_only,
        missing,
        migrations,
        tables: checked,
        hidden: Some(hidden),
        rules,
        references,
        route: Some(session_route),
        sequences,
        settings: Vec::new(),
        bypass: None,
        size,
    })
}

fn one<T>(facts: Vec<T>) -> Result<T> {
    facts.into_iter().next().ok_or_else(|| StoreError::new(ErrorKind::Broken))
}

/// The server and clerk-sync's role on it. Names are quoted where SQL requires it.
#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of its own")]
struct Server {
    number: i32,
    version: String,
    now: DateTime<Utc>,
    standby: bool,
    read_only: bool,
    role: String,
    database: String,
    schema: String,
    has_schema: bool,
    may_make_schemas: bool,
    may_use: bool,
    may_create: bool,
}

const SERVER: &str = "
    SELECT current_setting('server_version_num')::integer AS number, current_setting('server_version') AS version,
           clock_timestamp() AS now, pg_is_in_recovery() AS standby,
           current_setting('default_transaction_read_only') = 'on' AS read_only,
           quote_ident(current_user::text) AS role, quote_ident(current_database()::text) AS database,
           quote_ident($1) AS schema, s.oid IS NOT NULL AS has_schema,
           has_database_privilege(current_database()::text, 'CREATE') AS may_make_schemas,
           coalesce(has_schema_privilege(s.oid, 'USAGE'), false) AS may_use,
           coalesce(has_schema_privilege(s.oid, 'CREATE'), false) AS may_create
    FROM (VALUES (1)) AS one
    LEFT JOIN pg_namespace AS s ON s.nspname = $1";

/// A table with one of clerk-sync's names.
#[derive(Deserialize)]
struct Table {
    name: String,
    owner: String,
    /// Whether clerk-sync's role is the owner or has its rights.
    owned: bool,
    may: Vec<String>,
}

const TABLES_OF_OURS: &str = "
    SELECT c.relname AS name, quote_ident(pg_get_userbyid(c.relowner)::text) AS owner,
           pg_has_role(c.relowner, 'USAGE') AS owned,
           ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p
                 WHERE has_table_privilege(c.oid, p)) AS may
    FROM pg_class AS c
    JOIN pg_namespace AS s ON s.oid = c.relnamespace
    WHERE s.nspname = $1 AND (c.relname = ANY($2) OR c.relname = '_clerk_sync_migrations') AND c.relkind IN ('r', 'p')
    ORDER BY c.relname";

/// The missing privileges, each with the statement that grants it.
fn missing(server: &Server, tables: &[Table], pending: bool) -> Vec<Missing> {
    let Server { role, database, schema, .. } = server;
    let mut missing = Vec::new();
    let mut lacks = |what: String, remedy: String| missing.push(Missing { what, remedy });
    if !server.has_schema {
        if !server.may_make_schemas {
            lacks(
                format!("CREATE on database {database}, to create schema {schema}"),
                format!("CREATE SCHEMA {schema} AUTHORIZATION {role};"),
            );
        }
        return missing;
    }
    let needs = [("USAGE", server.may_use), ("CREATE", server.may_create || !pending)];
    for (privilege, _) in needs.into_iter().filter(|(_, granted)| !granted) {
        let why = if privilege == "CREATE" { ", to apply migrations" } else { "" };
        lacks(
            format!("{privilege} on schema {schema}{why}"),
            format!("GRANT {privilege} ON SCHEMA {schema} TO {role};"),
        );
    }
    // Tables that lack the same privileges are reported together.
    let mut alike: BTreeMap<Vec<&str>, Vec<String>> = BTreeMap::new();
    let mut strange: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for table in tables {
        let may = |privilege: &str| table.may.iter().any(|granted| granted == privilege);
        let wanted: Vec<&str> = needed(&table.name).iter().copied().filter(|wanted| !may(wanted)).collect();
        if !wanted.is_empty() {
            alike.entry(wanted).or_default().push(format!("{schema}.{}", table.name));
        }
        if pending && !table.owned {
            strange.entry(&table.owner).or_default().push(&table.name);
        }
    }
    for (privileges, tables) in alike {
        let (privileges, tables) = (privileges.join(", "), tables.join(", "));
        lacks(format!("{privileges} on {tables}"), format!("GRANT {privileges} ON {tables} TO {role};"));
    }
    for (owner, tables) in strange {
        lacks(
            format!(
                "ownership of {} in schema {schema}, which pending migrations may alter",
                tables.join(", ")
            ),
            format!("run `clerk-sync migrate` as {owner}, or GRANT {owner} TO {role};"),
        );
    }
    missing
}

/// Rules that rewrite clerk-sync's statements, except rules that only add an action when a user is deleted.
const RULES: &str = "
    SELECT format('rule %I on %I.%I', r.rulename, s.nspname, c.relname) AS what,
           format('DROP RULE %I ON %I.%I;', r.rulename, s.nspname, c.relname) AS remedy
    FROM pg_rewrite AS r
    JOIN pg_class AS c ON c.oid = r.ev_class
    JOIN pg_namespace AS s ON s.oid = c.relnamespace
    WHERE s.nspname = $1 AND c.relname = ANY($2) AND c.relkind IN ('r', 'p') AND r.ev_enabled <> 'D'
      AND NOT (c.relname = 'users' AND r.ev_type = '4' AND NOT r.is_instead)
    ORDER BY 1";

const REFERENCES: &str = "
    SELECT format('%I.%I (%s)', s.nspname, c.relname, k.names) AS place, u.relname AS to,
           CASE WHEN NOT EXISTS (
               SELECT FROM pg_index AS i
               JOIN pg_class AS x ON x.oid = i.indexrelid
               JOIN pg_am AS m ON m.oid = x.relam
               WHERE i.indrelid = f.conrelid AND i.indisvalid AND m.amname IN ('btree', 'hash')
                 -- Its first columns are those of the key, in any order.
                 AND (i.indkey::int2[])[0:cardinality(f.conkey) - 1] @> f.conkey
                 -- An index of all rows, or of all rows with a reference.
                 AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) = '(' || k.names || ' IS NOT NULL)')
           ) THEN format(
               -- A partitioned table cannot be indexed concurrently.
               CASE c.relkind WHEN 'p' THEN 'CREATE INDEX ON %I.%I (%s);'
                              ELSE 'CREATE INDEX CONCURRENTLY ON %I.%I (%s);' END,
               s.nspname, c.relname, k.names
           ) END AS remedy
    FROM pg_constraint AS f
    JOIN pg_class AS c ON c.oid = f.conrelid
    JOIN pg_namespace AS s ON s.oid = c.relnamespace
    JOIN pg_class AS u ON u.oid = f.confrelid
    JOIN pg_namespace AS o ON o.oid = u.relnamespace
    CROSS JOIN LATERAL (
        SELECT string_agg(quote_ident(a.attname::text), ', ' ORDER BY n.place) AS names
        FROM unnest(f.conkey) WITH ORDINALITY AS n (number, place)
        JOIN pg_attribute AS a ON a.attrelid = f.conrelid AND a.attnum = n.number
    ) AS k
    -- Foreign keys of partitions are derived from those of their table.
    WHERE f.contype = 'f' AND f.conparentid = 0 AND o.nspname = $1 AND u.relname = ANY($3)
    ORDER BY 1";

const SIZE: &str = "
    SELECT pg_database_size(current_database()) AS database,
           (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
            FROM pg_class AS c
            JOIN pg_namespace AS s ON s.oid = c.relnamespace
            WHERE s.nspname = $1 AND c.relname = ANY($2) AND c.relkind = 'r') AS ours";

/// The approximate number of live users, in a few milliseconds, even right after a million were imported and before the table
/// is analysed. For a large table it counts the users in 25 evenly spaced ranges of 20 pages.
pub(super) async fn estimate_standing(store: &Postgres) -> Result<Count> {
    let mut session = store.opened(Purpose::Count).await?;
    let pages = sql("SELECT pg_relation_size('users') / current_setting('block_size')::bigint");
    let pages = only(&session.rows(pages).await?)?;
    let standing = if pages <= COUNTED_PAGES {
        let all = sql("SELECT count(*) FROM users WHERE deleted_at IS NULL");
        Count::exact(only(&session.rows(all).await?)?)
    } else {
        let query = sql("SELECT (sum(found.standing) * $1 / (count(*) * 20))::bigint
                     FROM generate_series(0, $1 - 20, $1 / 25) AS first (page)
                     CROSS JOIN LATERAL (
                         SELECT count(*) AS standing FROM users
                         WHERE ctid >= format('(%s,0)', first.page)::tid
                           AND ctid < format('(%s,0)', first.page + 20)::tid
                           AND deleted_at IS NULL
                     ) AS found")
        .bind(pages.cast_signed());
        Count { rows: only(&session.rows(query).await?)?, estimated: true }
    };
    session.commit().await?;
    Ok(standing)
}

pub(super) fn only(rows: &[sqlx::postgres::PgRow]) -> Result<u64> {
    count(rows.first().ok_or_else(|| StoreError::new(ErrorKind::Broken))?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server {
            number: 150_000,
            version: "15.0".to_owned(),
            now: DateTime::UNIX_EPOCH,
            standby: false,
            read_only: false,
            role: "app".to_owned(),
            database: "shop".to_owned(),
            schema: "clerk".to_owned(),
            has_schema: true,
            may_make_schemas: false,
            may_use: true,
            may_create: false,
        }
    }

    fn table(name: &str, may: &[&str]) -> Table {
        let may = may.iter().map(|privilege| (*privilege).to_owned()).collect();
        Table { name: name.to_owned(), owner: "admin".to_owned(), owned: false, may }
    }

    fn remedies(server: &Server, tables: &[Table], pending: bool) -> Vec<String> {
        missing(server, tables, pending).into_iter().map(|missing| missing.remedy).collect()
    }

    #[test]
    fn whoever_may_read_and_write_our_tables_needs_neither_to_own_nor_to_create_anything() {
        let tables = [
            table("users", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
            table("audit_log", &["SELECT", "INSERT"]),
        ];
        assert_eq!(missing(&server(), &tables, false), []);
        assert_eq!(
            remedies(&server(), &tables, true),
            [
                "GRANT CREATE ON SCHEMA clerk TO app;",
                "run `clerk-sync migrate` as admin, or GRANT admin TO app;"
            ]
        );
    }

    #[test]
    fn tables_that_lack_the_same_are_told_together() {
        let tables = [
            table("audit_log", &["SELECT"]),
            table("leases", &["SELECT", "UPDATE"]),
            table("outbox", &["UPDATE", "SELECT"]),
        ];
        assert_eq!(
            remedies(&Server { may_use: false, ..server() }, &tables, false),
            [
                "GRANT USAGE ON SCHEMA clerk TO app;",
                "GRANT INSERT ON clerk.audit_log TO app;",
                "GRANT INSERT, DELETE ON clerk.leases, clerk.outbox TO app;",
            ]
        );
    }

    #[test]
    fn a_schema_that_is_not_there_has_to_be_made_by_somebody() {
        let server = Server { has_schema: false, may_use: false, ..server() };
        assert_eq!(remedies(&server, &[], true), ["CREATE SCHEMA clerk AUTHORIZATION app;"]);
        assert_eq!(missing(&Server { may_make_schemas: true, ..server }, &[], true), []);
    }
}
