//! Inspects the server and the tables for the operator. Nothing is written. Except for counting, it only reads what the
//! server reports about itself and the list of migrations. The inspection therefore works, and explains what is wrong,
//! even with almost no privileges.

use std::collections::{BTreeMap, HashMap};

use sqlx::{MySqlConnection, Row as _};

use super::{
    migrations,
    text::{backquoted, identifier, literal, outside},
};
use crate::store::{
    Count, Inspection, Migration, Missing, Reference, Result, Size,
    migration::MYSQL,
    prefix,
    schema::{self, TABLES},
    sql::{Row, RowCells, Value, ask::Ask as _, values},
};

/// The table that records which migrations are applied.
const REMEMBERED: &str = "_clerk_sync_migrations";

/// The clerk-sync table that only this backend has.
const BARRIER: &str = "audit_barrier";

/// The oldest supported versions: the first that can skip locked rows.
const OLDEST_MARIADB: (&str, &[u32]) = ("MariaDB 10.6", &[10, 6]);
const OLDEST_MYSQL: (&str, &[u32]) = ("MySQL 8.0", &[8, 0]);

/// A `users` table of at most this many rows, by the server's estimate, is counted even while webhooks arrive.
const COUNTED: u64 = 20_000;

/// In a larger table, the users in this many evenly spaced ranges of 200 rows are counted.
const STRETCHES: usize = 25;

/// The variable that lets every account create triggers while there is a binary log.
const TRUSTS: &str = "log_bin_trust_function_creators";

/// Up to this many tables that lack the same privileges are named one by one.
const NAMED: usize = 3;

/// Inspect the database. `lacks_index`: the index of `UNIQUE_EMAIL` still has to be created or dropped.
pub(super) async fn inspect(
    connection: &mut MySqlConnection,
    anonymize_columns: &[String],
    lacks_index: bool,
) -> Result<Inspection> {
    let query = "SELECT version(), utc_timestamp(6), database(), current_user()";
    let row = connection.one(query, values![]).await?;
    let version = Version::of(&row.get::<String>(0)?);
    let variables = Variables::of(connection).await?;
    let server = Server {
        account: quoted_account(&row.get::<String>(3)?),
        database: row.get(2)?,
        guards_triggers: variables.is_on("log_bin") && !variables.is_on(TRUSTS),
    };
    let grants = Grants::of(connection).await?;
    let may = |privilege: &str, table: &str| grants.allow(privilege, &server.database, table);
    let migrations = if may("SELECT", REMEMBERED) { Some(connection.checked().await) } else { None };
    let pending: Vec<Migration> = match &migrations {
        Some(Ok(status)) => status.iter().filter(|one| !one.applied).map(|one| one.migration).collect(),
        _ => Vec::new(),
    };
    let mut missing = missing(&server, &grants, &pending);
    if lacks_index && pending.is_empty() && !may("INDEX", "users") {
        let (what, table) = ("INDEX on users, for UNIQUE_EMAIL".to_owned(), prefix::of_table("users"));
        missing.push(Missing { what, remedy: server.grant("INDEX", &table) });
    }
    // While only some migrations are applied, columns are missing that the others will add.
    let whole = pending.is_empty() || pending.len() == MYSQL.len();
    let tables = if missing.is_empty() && whole {
        let checked = migrations::check(connection, &[]).await;
        checked.and_then(|columns| match pending.len() {
            0 => migrations::complete(&columns)
                .and_then(|()| schema::check_anonymize_columns(&columns, anonymize_columns)),
            _ => Ok(()),
        })
    } else {
        Ok(())
    };
    let mut settings = settings(&variables);
    if pending.is_empty() && may("TRIGGER", "audit_log") {
        settings.extend(triggers(connection).await?);
    }
    // Some accounts may write even if the server is read-only.
    let writing: &[&str] =
        if version.is_mariadb { &["READ_ONLY ADMIN"] } else { &["CONNECTION_ADMIN", "SUPER"] };
    let writes = writing.iter().any(|privilege| grants.allow_everywhere(privilege));
    let size = size(connection).await;
    Ok(Inspection {
        needs: version.needs(),
        now: Some(row.get(1)?),
        read_only: variables.is_on("super_read_only")
            || variables.is_on("innodb_read_only")
            || (variables.is_on("read_only") && !writes),
        missing,
        migrations,
        tables,
        references: references(connection).await?,
        settings,
        bypass: may("DROP", "audit_log").then_some(
            "this account may TRUNCATE audit_log and audit_seals (privilege DROP), which does not fire their triggers: only a seal that \
             is kept elsewhere (`clerk-sync audit verify --seal`) proves that nothing is gone",
        ),
        // A replica is not detected as such: it reports that it is read-only. Identity sequences are never behind, because
        // inserting an id moves the table's counter past it.
        ..Inspection::of(version.to_string(), size)
    })
}

/// Every clerk-sync table.
fn tables() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|table| table.name).chain([BARRIER, REMEMBERED])
}

/// The server's product and version.
pub(super) struct Version {
    pub(super) is_mariadb: bool,
    number: String,
}

impl Version {
    pub(super) fn of(text: &str) -> Self {
        let is_mariadb = text.to_ascii_lowercase().contains("mariadb");
        // The prefix that MariaDB sends for replicas that do not expect a major version above 5.
        let text = if is_mariadb { text.strip_prefix("5.5.5-").unwrap_or(text) } else { text };
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        Self { is_mariadb, number: text[..end].trim_end_matches('.').to_owned() }
    }

    /// The oldest supported version, if this one is older.
    fn needs(&self) -> Option<&'static str> {
        let (name, oldest) = if self.is_mariadb { OLDEST_MARIADB } else { OLDEST_MYSQL };
        let numbers: Vec<u32> = self.number.split('.').map(|number| number.parse().unwrap_or(0)).collect();
        (*numbers < *oldest).then_some(name)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", if self.is_mariadb { "MariaDB" } else { "MySQL" }, self.number)
    }
}

/// Variables of the server, by name. Each product lacks some of the other's.
struct Variables(HashMap<String, String>);

impl Variables {
    async fn of(connection: &mut MySqlConnection) -> Result<Self> {
        let query = "SHOW GLOBAL VARIABLES WHERE variable_name IN
             ('read_only', 'super_read_only', 'innodb_read_only', 'log_bin', 'log_bin_trust_function_creators', 'sync_binlog',
              'innodb_flush_log_at_trx_commit')";
        let rows = connection.ask(query, values![]).await?;
        let variables = rows.iter().map(|row| Ok((row.get::<String>(0)?.to_ascii_lowercase(), row.get(1)?)));
        variables.collect::<Result<_>>().map(Self)
    }

    fn is_on(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !matches!(value.as_str(), "OFF" | "0"))
    }
}

/// The problem if triggers of the audit trail are missing, as after restoring a dump without triggers.
async fn triggers(connection: &mut MySqlConnection) -> Result<Option<Missing>> {
    const OURS: i64 = 4;
    let query = "SELECT count(*) FROM information_schema.triggers
         WHERE trigger_schema = database() AND event_object_table IN ('audit_log', 'audit_seals')
           AND (trigger_name LIKE '%\\_no\\_update' OR trigger_name LIKE '%\\_no\\_delete')";
    let lost = OURS - connection.one(query, values![]).await?.get::<i64>(0)?;
    Ok((lost > 0).then(|| Missing {
        what: format!(
            "missing: {lost} of the {OURS} triggers that keep audit_log and audit_seals append-only"
        ),
        remedy: format!(
            "DELETE FROM {}; and run `clerk-sync migrate`, which creates them again",
            prefix::of_table(REMEMBERED)
        ),
    }))
}

/// Settings that can lose data when the machine fails.
fn settings(variables: &Variables) -> Vec<Missing> {
    let replicas = "events that were answered 200 from the binary log, and so from replicas";
    let risks = [
        ("innodb_flush_log_at_trx_commit", true, "events that were answered 200"),
        ("sync_binlog", variables.is_on("log_bin"), replicas),
    ];
    let is_unsafe = |name: &str| variables.0.get(name).is_some_and(|value| value != "1");
    let risks = risks.into_iter().filter(|(name, counts, _)| *counts && is_unsafe(name));
    let setting = |(name, _, loses)| Missing {
        what: format!("{name} is not 1: a machine that fails can lose {loses}"),
        remedy: format!("SET GLOBAL {name} = 1; and set it in the server's configuration file as well"),
    };
    risks.map(setting).collect()
}

/// The privileges of an account, including the roles that are active in this session.
struct Grants(Vec<Grant>);

/// A line of `SHOW GRANTS`.
struct Grant {
    /// Whether it was granted rather than revoked.
    given: bool,
    privileges: Vec<String>,
    /// A pattern if the grant is for a whole database; `None` if it is for all databases.
    database: Option<String>,
    table: Option<String>,
}

impl Grants {
    async fn of(connection: &mut MySqlConnection) -> Result<Self> {
        let mut grants = Vec::new();
        for row in connection.run("SHOW GRANTS").await? {
            grants.extend(Grant::of(&row.get::<String>(0)?));
        }
        Ok(Self(grants))
    }

    /// Whether the account has this privilege on a table.
    fn allow(&self, privilege: &str, database: &str, table: &str) -> bool {
        let table = prefix::of_table(table);
        self.are_for(privilege, |grant| grant.covers(database, Some(&table)))
    }

    /// Whether it has this privilege on every table of a database, including future ones.
    fn allow_in(&self, privilege: &str, database: &str) -> bool {
        self.are_for(privilege, |grant| grant.covers(database, None))
    }

    fn allow_everywhere(&self, privilege: &str) -> bool {
        self.are_for(privilege, |grant| grant.database.is_none())
    }

    fn are_for(&self, privilege: &str, covers: impl Fn(&Grant) -> bool) -> bool {
        let of_it = || self.0.iter().filter(|grant| grant.names(privilege) && covers(grant));
        let is_given =
            |everywhere: bool| of_it().any(|grant| grant.given && grant.database.is_none() == everywhere);
        // A privilege that is revoked for one database was granted for all.
        is_given(false) || (is_given(true) && of_it().all(|grant| grant.given))
    }
}

impl Grant {
    /// A grant of table privileges; `None` for roles and other objects.
    fn of(line: &str) -> Option<Self> {
        let (given, rest, to) = match line.strip_prefix("GRANT ") {
            Some(rest) => (true, rest, " TO "),
            None => (false, line.strip_prefix("REVOKE ")?, " FROM "),
        };
        let (mut privileges, rest) = outside(rest, " ON ")?;
        // The rest may contain the hash of a password.
        let (object, _) = outside(rest, to)?;
        let (database, table) = outside(object, ".")?;
        let name = |text: &str| if text == "*" { Some(None) } else { Some(Some(identifier(text)?.0)) };
        let (database, table) = (name(database)?, name(table)?);
        let mut list = Vec::new();
        while let Some((privilege, rest)) = outside(privileges, ",") {
            list.push(privilege);
            privileges = rest;
        }
        list.push(privileges);
        // Drop privileges on single columns.
        list.retain(|privilege| !privilege.contains('('));
        let privileges = list.iter().map(|privilege| privilege.trim().to_ascii_uppercase()).collect();
        Some(Self { given, privileges, database, table })
    }

    fn names(&self, privilege: &str) -> bool {
        self.privileges.iter().any(|named| named == privilege || named == "ALL PRIVILEGES" || named == "ALL")
    }

    fn covers(&self, database: &str, table: Option<&str>) -> bool {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        match (&self.database, &self.table) {
            (None, _) => true,
            (Some(pattern), None) => is_like(&chars(pattern), &chars(database)),
            (Some(exactly), Some(one)) => exactly == database && table == Some(one.as_str()),
        }
    }
}

/// Whether a database name matches a grant's pattern, as `LIKE` does.
fn is_like(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], name) => name.is_empty(),
        (['%', rest @ ..], name) => (0..=name.len()).any(|skipped| is_like(rest, &name[skipped..])),
        (['_', rest @ ..], [_, name @ ..]) => is_like(rest, name),
        (['\\', wanted, rest @ ..] | [wanted, rest @ ..], [found, name @ ..]) => {
            wanted == found && is_like(rest, name)
        }
        _ => false,
    }
}

/// The server, and clerk-sync's account on it.
struct Server {
    /// As SQL writes it.
    account: String,
    database: String,
    /// Whether it keeps a binary log, and then does not let every account create triggers.
    guards_triggers: bool,
}

impl Server {
    /// The statement that grants privileges on a table, or on all tables (`*`).
    fn grant(&self, privileges: &str, table: &str) -> String {
        format!("GRANT {privileges} ON {}.{table} TO {};", backquoted(&self.database), self.account)
    }
}

/// The privileges that clerk-sync needs on one of its tables.
fn needed(table: &str, pending: bool) -> &'static [&'static str] {
    match table {
        REMEMBERED if pending => &["SELECT", "INSERT"],
        REMEMBERED => &["SELECT"],
        "audit_log" => &["SELECT", "INSERT"],
        BARRIER if pending => &["SELECT", "INSERT", "UPDATE"],
        // Locking a row requires the privilege to write it.
        BARRIER => &["SELECT", "UPDATE"],
        _ => &["SELECT", "INSERT", "UPDATE", "DELETE"],
    }
}

/// Additional privileges that the statements of migrations need.
fn needed_by(migrations: &[Migration]) -> Vec<&'static str> {
    const WORDS: [(&str, &[&str]); 6] = [
        ("CREATE", &["CREATE TABLE"]),
        ("ALTER", &["ALTER TABLE"]),
        ("INDEX", &["CREATE INDEX", "CREATE UNIQUE INDEX", "DROP INDEX"]),
        ("TRIGGER", &["CREATE TRIGGER", "DROP TRIGGER"]),
        ("CREATE VIEW", &["CREATE VIEW", "CREATE OR REPLACE VIEW"]),
        ("DROP", &["CREATE OR REPLACE VIEW", "DROP TABLE", "DROP VIEW"]),
    ];
    let lines = migrations.iter().flat_map(|migration| migration.sql.lines());
    let lines = lines.map(|line| line.split("--").next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join("\n");
    let needs = WORDS.iter().filter(|(_, words)| words.iter().any(|words| text.contains(words)));
    needs.map(|(privilege, _)| *privilege).collect()
}

/// The missing privileges, each with the statement that grants it.
fn missing(server: &Server, grants: &Grants, pending: &[Migration]) -> Vec<Missing> {
    let database = &server.database;
    let mut missing = Vec::new();
    let mut lacks = |what: String, remedy: String| missing.push(Missing { what, remedy });
    let needs = needed_by(pending);
    let lacking: Vec<&str> =
        needs.iter().copied().filter(|privilege| !grants.allow_in(privilege, database)).collect();
    if !lacking.is_empty() {
        let privileges = lacking.join(", ");
        lacks(
            format!("{privileges} on database {database}, to apply migrations"),
            server.grant(&privileges, "*"),
        );
    }
    if needs.contains(&"TRIGGER") && server.guards_triggers && !grants.allow_everywhere("SUPER") {
        lacks(
            "SUPER, to create triggers while the server keeps a binary log".to_owned(),
            format!("SET GLOBAL {TRUSTS} = 1; or run `clerk-sync migrate` as an account that has SUPER"),
        );
    }
    // Tables that lack the same privileges are reported together.
    let mut alike: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
    for table in tables() {
        let wanted = needed(table, !pending.is_empty()).iter().copied();
        let wanted: Vec<&str> = wanted.filter(|wanted| !grants.allow(wanted, database, table)).collect();
        if !wanted.is_empty() {
            alike.entry(wanted).or_default().push(table);
        }
    }
    for (privileges, tables) in alike {
        let privileges = privileges.join(", ");
        let grant = |table: &&str| server.grant(&privileges, &backquoted(&prefix::of_table(table)));
        let (tables, remedy) = if tables.len() > NAMED {
            (format!("{} tables of database {database}", tables.len()), server.grant(&privileges, "*"))
        } else {
            (tables.join(", "), tables.iter().map(grant).collect::<Vec<_>>().join(" "))
        };
        lacks(format!("{privileges} on {tables}"), remedy);
    }
    missing
}

/// An account such as `app@%`, as SQL writes it.
fn quoted_account(account: &str) -> String {
    let (user, host) = account.rsplit_once('@').unwrap_or((account, "%"));
    format!("{}@{}", literal(user), literal(host))
}

/// Foreign keys of the application, if its tables are visible. Each has an index, because it could not be created without one.
async fn references(connection: &mut MySqlConnection) -> Result<Vec<Reference>> {
    let query = "SELECT CAST(concat(CASE WHEN k.table_schema <> database() THEN concat(k.table_schema, '.') ELSE '' END, k.table_name,
                    ' (', group_concat(k.column_name ORDER BY k.ordinal_position SEPARATOR ', '), ')') AS char),
                CAST(k.referenced_table_name AS char)
         FROM information_schema.key_column_usage AS k
         WHERE k.referenced_table_schema = database() AND find_in_set(k.referenced_table_name, ?)
         GROUP BY k.table_schema, k.table_name, k.constraint_name, k.referenced_table_name
         ORDER BY k.table_schema, k.table_name, 1";
    let ours: Vec<String> = schema::of_kinds().into_iter().map(prefix::of_table).collect();
    // InnoDB creates an index for every foreign key that has none.
    let reference = |row: &Row| Ok(Reference { place: row.get(0)?, to: row.get(1)?, remedy: None });
    connection.ask(query, values![&ours.join(",")]).await?.iter().map(reference).collect()
}

/// The size of the database, by the server's statistics.
pub(super) async fn size(connection: &mut MySqlConnection) -> Result<Size> {
    let query = "SELECT CAST(coalesce(sum(data_length + index_length), 0) AS signed),
                CAST(coalesce(sum(CASE WHEN find_in_set(table_name, ?) THEN data_length + index_length END), 0) AS signed)
         FROM information_schema.tables WHERE table_schema = database()";
    let ours: Vec<String> = tables().map(prefix::of_table).collect();
    let row = connection.one(query, values![&ours.join(",")]).await?;
    Ok(Size { database: row.get(0)?, ours: Some(row.get(1)?) })
}

/// The approximate number of live users, in a few milliseconds, even right after a million were imported.
pub(super) async fn estimate_standing(connection: &mut MySqlConnection) -> Result<Count> {
    // Uses the storage engine's estimate: information_schema of MySQL may be a day old.
    let plan = connection.run("EXPLAIN FORMAT=TRADITIONAL SELECT clerk_id, deleted_at FROM users").await?;
    // For an empty table the number may be missing.
    let rows: Option<i64> = plan.first().and_then(|row| match &row.cells {
        RowCells::Mysql(row) => row.try_get_unchecked("rows").ok(),
        _ => None,
    });
    let rows = rows.unwrap_or(0).unsigned_abs();
    if rows <= COUNTED {
        let all = connection.one("SELECT count(*) FROM users WHERE deleted_at IS NULL", values![]).await?;
        return Ok(Count::exact(all.get(0)?));
    }
    let ends = connection.one("SELECT min(id), max(id) FROM users", values![]).await?;
    let (first, last): (i64, i64) = (ends.get(0)?, ends.get(1)?);
    let stretch = "(SELECT deleted_at FROM users WHERE id >= ? ORDER BY id LIMIT 200)";
    let query = format!(
        "SELECT count(*), count(CASE WHEN s.deleted_at IS NULL THEN 1 END) FROM ({}) AS s",
        [stretch; STRETCHES].join(" UNION ALL ")
    );
    let starts = (0..).take(STRETCHES).map(|place| Value::from(first + (last - first) / 25 * place));
    let found = connection.one(&query, &starts.collect::<Vec<_>>()).await?;
    let (seen, standing): (u64, u64) = (found.get(0)?, found.get(1)?);
    Ok(Count { rows: rows * standing / seen.max(1), estimated: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(lines: &[&str]) -> Grants {
        Grants(lines.iter().filter_map(|line| Grant::of(line)).collect())
    }

    fn server() -> Server {
        Server { account: "'app'@'%'".to_owned(), database: "my_shop".to_owned(), guards_triggers: false }
    }

    const MIGRATION: [Migration; 1] = [Migration {
        version: 1,
        name: "one",
        sql: "CREATE TABLE a (b int); -- DROP TABLE no\nCREATE TRIGGER t BEFORE UPDATE ON a FOR EACH ROW SIGNAL SQLSTATE '45000';",
    }];

    fn remedies(lines: &[&str], pending: &[Migration]) -> Vec<String> {
        missing(&server(), &grants(lines), pending).into_iter().map(|missing| missing.remedy).collect()
    }

    #[test]
    fn versions_are_told_apart() {
        for (text, shown, needs) in [
            ("10.11.19-MariaDB-0+deb12u1", "MariaDB 10.11.19", None),
            ("5.5.5-10.5.23-MariaDB", "MariaDB 10.5.23", Some("MariaDB 10.6")),
            ("9.7.4-2", "MySQL 9.7.4", None),
            ("8.0.35-google", "MySQL 8.0.35", None),
            ("8.0.mysql_aurora.3.04.0", "MySQL 8.0", None),
            ("5.7.44-log", "MySQL 5.7.44", Some("MySQL 8.0")),
        ] {
            let version = Version::of(text);
            assert_eq!((version.to_string().as_str(), version.needs()), (shown, needs), "{text}");
        }
    }

    #[test]
    fn grants_are_read_as_the_servers_write_them() {
        let all = grants(&[
            "GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION",
            "GRANT PROXY ON ``@`` TO `root`@`%`",
        ]);
        assert!(all.allow("DELETE", "shop", "users") && all.allow_everywhere("SUPER"));
        let some = grants(&[
            "GRANT USAGE ON *.* TO `app`@`%` IDENTIFIED BY PASSWORD '*0123'",
            "GRANT `role`@`%` TO `app`@`%`",
            "GRANT EXECUTE ON PROCEDURE `shop`.`users` TO `app`@`%`",
            r"GRANT SELECT, CREATE VIEW ON `my\_shop`.* TO `app`@`%`",
            "GRANT SELECT (`a`, `b`), INSERT ON `shop`.`a ON b` TO `app`@`%`",
        ]);
        assert!(some.allow("SELECT", "my_shop", "users") && some.allow_in("CREATE VIEW", "my_shop"));
        assert!(!some.allow("SELECT", "my1shop", "users") && !some.allow("INSERT", "my_shop", "users"));
        assert!(some.allow("INSERT", "shop", "a ON b") && !some.allow("SELECT", "shop", "a ON b"));
        assert!(!some.allow("EXECUTE", "shop", "users") && !some.allow_everywhere("SELECT"));
        let partly =
            grants(&["GRANT SELECT ON *.* TO `app`@`%`", "REVOKE SELECT ON `shop`.* FROM `app`@`%`"]);
        assert!(partly.allow("SELECT", "other", "users") && !partly.allow("SELECT", "shop", "users"));
    }

    #[test]
    fn patterns_of_databases_are_those_of_like() {
        for (pattern, name, fits) in [
            ("shop%", "shop_1", true),
            ("%", "", true),
            ("s%p", "shop", true),
            ("s%x", "shop", false),
            (r"my\_shop", "my_shop", true),
            (r"my\_shop", "myxshop", false),
            ("my_shop", "myxshop", true),
            ("shop", "shops", false),
        ] {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            assert_eq!(is_like(&chars(pattern), &chars(name)), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn an_account_that_may_read_and_write_our_tables_needs_no_more() {
        let may = ["GRANT SELECT, INSERT, UPDATE, DELETE ON `my_shop`.* TO `app`@`%`"];
        assert_eq!(remedies(&may, &[]), [""; 0]);
        assert_eq!(remedies(&may, &MIGRATION), ["GRANT CREATE, TRIGGER ON `my_shop`.* TO 'app'@'%';"]);
    }

    #[test]
    fn triggers_need_more_where_a_binary_log_is_kept() {
        let all = grants(&["GRANT ALL PRIVILEGES ON `my_shop`.* TO `app`@`%`"]);
        let guarding = Server { guards_triggers: true, ..server() };
        assert_eq!(missing(&guarding, &all, &MIGRATION).len(), 1);
        assert_eq!(missing(&server(), &all, &MIGRATION), []);
    }

    #[test]
    fn what_is_missing_is_told_together() {
        let many = ["GRANT SELECT, INSERT ON `my_shop`.* TO `app`@`%`"];
        assert_eq!(
            remedies(&many, &[]),
            [
                "GRANT UPDATE ON `my_shop`.`audit_barrier` TO 'app'@'%';",
                "GRANT UPDATE, DELETE ON `my_shop`.* TO 'app'@'%';"
            ]
        );
        let few = [
            "GRANT SELECT, INSERT, UPDATE ON `my_shop`.* TO `app`@`%`",
            "GRANT DELETE ON `my_shop`.`leases` TO `app`@`%`",
        ];
        assert_eq!(remedies(&few, &[]), ["GRANT DELETE ON `my_shop`.* TO 'app'@'%';"]);
    }

    #[test]
    fn an_account_is_written_as_sql_wants_it() {
        assert_eq!(quoted_account("app@%"), "'app'@'%'");
        assert_eq!(quoted_account("o'b@x@10.0.0.1"), "'o''b@x'@'10.0.0.1'");
    }
}
