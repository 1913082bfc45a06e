//! The database: whether it is reachable, grants the necessary privileges, and holds the tables of this version.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::timeout;

use super::{
    backlog,
    clock::{self, Span},
    configuration::Given,
    disk,
    report::{Finding, or_ok},
    sinks,
};
use crate::{
    clerk::sample,
    cli::{Failure, clock as our_clock, count, explained, noun, open_store},
    config::{Database, apart},
    store::{
        BehindSequence, ErrorKind, Inspection, MigrationStatus, Missing, Origin, Reference, Result as Stored,
        Route, Size, StoreError, sqlite,
    },
};

/// The time limit for connecting and inspecting.
const PATIENCE: Duration = Duration::from_secs(15);

/// Checks that need the inspected database, in the order of the report.
const REST: [&str; 8] = [
    "version",
    "privileges",
    "migrations",
    "tables",
    "row level security",
    "rules",
    "foreign keys",
    "database clock",
];

/// The findings, and what other checks need from the database.
pub(super) struct Looked {
    pub(super) findings: Vec<Finding>,
    /// The Clerk instance of the users, if it is known.
    pub(super) origin: Option<Origin>,
    /// `None` if there is no database yet.
    pub(super) size: Option<Stored<Size>>,
}

impl Looked {
    /// The database was not inspected, for this reason.
    fn not(finding: Finding, why: &str) -> Self {
        let rest = REST.into_iter().map(|check| Finding::skip(check, why));
        let findings = [finding].into_iter().chain(rest).chain(backlog::skipped(why));
        Self { findings: findings.collect(), origin: None, size: None }
    }
}

pub(super) async fn check(given: &Given) -> Looked {
    let config = &given.config;
    if given.is_mistaken("DATABASE_URL") || given.is_mistaken("DATABASE_SCHEMA") {
        let why = "the configuration does not say which database";
        return Looked::not(Finding::skip("database", why), why);
    }
    if let Some(finding) = before_it_is_opened(&config.database) {
        return Looked::not(finding, "there is no database to inspect");
    }
    let our_time = our_clock();
    let began = our_time();
    let asked = async {
        let store = open_store(config, true).await?;
        let inspection = store.inspect().await;
        Ok((store, inspection?))
    };
    let asked =
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Unavailable)));
    let (store, inspection) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            if let Some(finding) = unwritable("database", &config.database) {
                return Looked::not(finding, "the database cannot be inspected");
            }
            let remedy = remedy_of(&error, &config.database);
            let failure = explained(&config.database, error).await;
            let finding = Finding::fail("database", failure.code, failure.message, remedy);
            return Looked::not(finding, "the database cannot be inspected");
        }
    };
    let ours = Span { from: began, until: our_time() };
    let mut findings = vec![reached(&config.database.place(), &inspection), version(&inspection)];
    findings.extend(privileges(&config.database, &inspection.missing));
    findings.extend(inspection.route.map(route));
    findings.push(migrations(inspection.migrations.as_ref()));
    findings.push(tables(&inspection));
    findings.extend(row_level_security(inspection.hidden.as_deref()));
    findings.extend(rules(&inspection.rules));
    findings.extend(foreign_keys(&inspection.references));
    findings.extend(inspection.sequences.iter().map(sequence));
    findings.extend(settings(&inspection.settings));
    findings.extend(inspection.bypass.map(|sentence| Finding::ok("audit trail", sentence)));
    findings.push(clocks(inspection.now, ours, config.webhook_tolerance_seconds));
    let mut origin = None;
    if is_ready(&inspection) {
        findings.extend(backlog::check(&*store, our_time()).await);
        findings.extend(sinks::told_elsewhere(&*store, given).await);
        origin = store.origin().await.ok().flatten();
    } else {
        findings.extend(backlog::skipped("the tables do not belong to this version"));
    }
    if origin.as_ref().is_some_and(|origin| origin.instance == sample::INSTANCE) {
        let found = "it holds made-up users, written by `clerk-sync dev`";
        findings.push(Finding::warn(
            "database",
            found,
            "set DATABASE_URL to another database for real users",
        ));
    }
    store.close().await;
    Looked { findings, origin, size: Some(inspection.size) }
}

/// Whether the tables can be read.
fn is_ready(inspection: &Inspection) -> bool {
    let current = matches!(&inspection.migrations, Some(Ok(status)) if status.iter().all(|one| one.applied));
    current && inspection.missing.is_empty() && inspection.tables.is_ok()
}

/// The finding for a SQLite file that does not exist, without creating it.
fn before_it_is_opened(database: &Database) -> Option<Finding> {
    let Database::Sqlite { path } = database else { return None };
    if path.exists() {
        return None;
    }
    if let Some(finding) = unwritable("database", database) {
        return Some(finding);
    }
    let folder = disk::folder(path);
    if !folder.is_dir() {
        return Some(Finding::fail(
            "database",
            Failure::CONFIGURATION,
            format!("there is no directory {} for the file of DATABASE_URL", folder.display()),
            format!("mkdir -p {}", folder.display()),
        ));
    }
    Some(Finding::ok(
        "database",
        format!("{} does not exist yet, and is created at the first start", path.display()),
    ))
}

/// Why a SQLite file cannot be written to, if so.
fn unwritable(check: &'static str, database: &Database) -> Option<Finding> {
    let Database::Sqlite { path } = database else { return None };
    let text = sqlite::check_permission(path).err()?.to_string();
    let (found, remedy) = apart(&text);
    Some(Finding::fail(check, Failure::CONFIGURATION, found, remedy.unwrap_or_default()))
}

fn remedy_of(error: &StoreError, database: &Database) -> &'static str {
    match (error.code.as_deref().unwrap_or_default(), database) {
        ("3D000" | "1049", _) => "create it with `CREATE DATABASE …`, or correct the name in DATABASE_URL",
        ("1044" | "1045" | "1698", _) => {
            "correct the user and password in DATABASE_URL, or grant the user access to the database"
        }
        ("2061", _) => "use TLS: add ?ssl-mode=REQUIRED to DATABASE_URL",
        (code, Database::Postgres { .. }) if code.starts_with("28") => {
            "correct the user and password in DATABASE_URL, or pg_hba.conf of the server"
        }
        ("XX000", Database::Postgres { .. }) if error.kind == ErrorKind::Unavailable => {
            "correct the tenant and user in DATABASE_URL as the pooler expects them, or let the pooler accept more clients"
        }
        ("53300" | "1040" | "1203", _) => {
            "raise max_connections of the server, or lower DATABASE_MAX_CONNECTIONS"
        }
        ("57014" | "55P03", _) => "find the session that holds the lock in pg_stat_activity, and end it",
        ("1205" | "3572", _) => "find the session that holds the lock with SHOW PROCESSLIST, and end it",
        ("42501" | "1142" | "1143", _) => "grant the missing privilege to the user of DATABASE_URL",
        ("18", Database::Mongodb { .. }) => {
            "correct the user and password in DATABASE_URL, and authSource if the user belongs to another database"
        }
        ("13" | "8000", Database::Mongodb { .. }) => {
            "grant readWrite on the database to the user of DATABASE_URL"
        }
        ("263", Database::Mongodb { .. }) => {
            "make the server a replica set of one or more members (rs.initiate()): a standalone server has no transactions"
        }
        (_, Database::Mongodb { .. }) if error.kind == ErrorKind::Unavailable => {
            "start the servers, or correct hosts, ports and replicaSet in DATABASE_URL; Atlas accepts only the addresses of its \
             access list"
        }
        (_, Database::Postgres { .. } | Database::Mysql { .. }) if error.kind == ErrorKind::Unavailable => {
            "start the server, or correct host and port in DATABASE_URL"
        }
        (_, Database::Sqlite { .. }) if error.kind == ErrorKind::Unavailable => {
            "check that this user may read the file, and that no other process locks it"
        }
        (_, Database::Sqlite { .. }) => {
            "check that the path in DATABASE_URL is that of an intact SQLite database"
        }
        _ => "see the log of the database, and report an issue if the log does not show the cause",
    }
}

fn reached(place: &str, inspection: &Inspection) -> Finding {
    let (why, remedy) = if inspection.standby {
        ("a standby, which accepts no writes", "set DATABASE_URL to the primary, or promote this server")
    } else if inspection.read_only {
        (
            "it can only be read, because default_transaction_read_only is set",
            "find out who set it and why, for example a host with a full disk; then run `ALTER DATABASE … RESET \
             default_transaction_read_only`, or ALTER ROLE",
        )
    } else {
        return Finding::ok("database", place);
    };
    Finding::fail("database", Failure::UNREACHABLE, format!("{place}: {why}"), remedy)
}

fn version(inspection: &Inspection) -> Finding {
    match inspection.needs {
        None => Finding::ok("version", &*inspection.version),
        Some(oldest) => Finding::fail(
            "version",
            Failure::CONFIGURATION,
            format!("{}, but at least {oldest} is needed", inspection.version),
            format!("upgrade the server to {oldest} or newer"),
        ),
    }
}

fn privileges(database: &Database, missing: &[Missing]) -> Vec<Finding> {
    if let Some(finding) = unwritable("privileges", database) {
        return vec![finding];
    }
    let finding = |Missing { what, remedy }: &Missing| {
        Finding::fail("privileges", Failure::CONFIGURATION, format!("missing: {what}"), remedy)
    };
    let well = match database {
        Database::Sqlite { .. } => "the file and its directory are writable",
        Database::Postgres { .. } | Database::Mysql { .. } | Database::Mongodb { .. } => {
            "all necessary privileges are granted"
        }
    };
    or_ok(missing.iter().map(finding).collect(), "privileges", well)
}

fn migrations(status: Option<&Stored<Vec<MigrationStatus>>>) -> Finding {
    const CHECK: &str = "migrations";
    let status = match status {
        None => return Finding::skip(CHECK, "unknown without privileges"),
        Some(Err(error)) => {
            let (found, remedy) = sentence(error);
            return Finding::fail(CHECK, Failure::CONFIGURATION, found, remedy);
        }
        Some(Ok(status)) => status,
    };
    let pending: Vec<&str> = status.iter().filter(|one| !one.applied).map(|one| one.migration.name).collect();
    if pending.is_empty() {
        return Finding::ok(CHECK, format!("all {} are applied", status.len()));
    }
    Finding::warn(
        CHECK,
        format!(
            "{} of {} {} pending: {}",
            pending.len(),
            status.len(),
            noun(pending.len() as u64, "is", "are"),
            pending.join(", ")
        ),
        "run `clerk-sync migrate`; `clerk-sync serve` does so too, unless --no-migrate is given",
    )
}

fn tables(inspection: &Inspection) -> Finding {
    const CHECK: &str = "tables";
    let why_not = match &inspection.migrations {
        _ if !inspection.missing.is_empty() => Some("privileges are missing"),
        None | Some(Err(_)) => Some("they do not belong to this version"),
        Some(Ok(status)) => {
            let applied = status.iter().filter(|one| one.applied).count();
            (applied > 0 && applied < status.len()).then_some("migrations are pending")
        }
    };
    match (why_not, &inspection.tables) {
        (Some(why), _) => Finding::skip(CHECK, why),
        (None, Ok(())) => {
            Finding::ok(CHECK, "every table with a name that clerk-sync uses belongs to clerk-sync")
        }
        (None, Err(error)) => {
            let (found, remedy) = sentence(error);
            Finding::fail(CHECK, Failure::CONFIGURATION, found, remedy)
        }
    }
}

/// Splits the error of a store that cannot use its tables into the finding and the remedy.
fn sentence(error: &StoreError) -> (String, String) {
    let text = error.to_string();
    if let Some((found, remedy)) = text.split_once(". Nothing was changed. ") {
        return (found.to_owned(), remedy.to_owned());
    }
    if let Some((found, remedy)) = text.rsplit_once(": ") {
        return (found.to_owned(), remedy.to_owned());
    }
    let (found, remedy) = apart(&text);
    (found, remedy.unwrap_or_else(|| "see the log of the database".to_owned()))
}

fn row_level_security(hidden: Option<&[Missing]>) -> Vec<Finding> {
    const CHECK: &str = "row level security";
    let Some(hidden) = hidden else { return vec![Finding::ok(CHECK, "not available in this database")] };
    let fail =
        |Missing { what, remedy }: &Missing| Finding::fail(CHECK, Failure::CONFIGURATION, &**what, &**remedy);
    or_ok(hidden.iter().map(fail).collect(), CHECK, "hides no row of clerk-sync from this database user")
}

fn rules(rules: &[Missing]) -> Vec<Finding> {
    const CHECK: &str = "rules";
    let fail = |Missing { what, remedy }: &Missing| {
        let found = format!(
            "{what}: PostgreSQL refuses clerk-sync's statements on a table with rules (0A000), so events are parked"
        );
        Finding::fail(CHECK, Failure::FAILED, found, format!("{remedy} Use a trigger in its place"))
    };
    or_ok(rules.iter().map(fail).collect(), CHECK, "no rule rewrites statements on clerk-sync's tables")
}

fn settings(settings: &[Missing]) -> impl Iterator<Item = Finding> {
    settings.iter().map(|Missing { what, remedy }| Finding::warn("settings", what, remedy))
}

fn foreign_keys(references: &[Reference]) -> Vec<Finding> {
    const CHECK: &str = "foreign keys";
    let warn = |reference: &Reference| {
        let found = format!(
            "{} refers to {} and has no index: each deletion scans the whole table",
            reference.place, reference.to
        );
        reference.remedy.as_ref().map(|remedy| Finding::warn(CHECK, found, remedy))
    };
    let well = match references.len() {
        0 => "no foreign key refers to a table of synced objects".to_owned(),
        some => {
            let columns = count(some as u64, "column refers", "columns refer");
            format!("{columns} to tables of synced objects, each with an index")
        }
    };
    or_ok(references.iter().filter_map(warn).collect(), CHECK, well)
}

/// Whether statements are prepared depends on what is between clerk-sync and the server.
fn route(route: Route) -> Finding {
    Finding::ok(
        "connection",
        match route {
            Route::Straight => "direct to the server: statements are prepared",
            Route::Translated => {
                "through a translated address, with dedicated sessions: statements are prepared"
            }
            Route::Shared => {
                "through a pooler, or a proxy that may share sessions: statements are not prepared between transactions, and the \
                 server plans each one again"
            }
        },
    )
}

/// A sequence that returns numbers already in use, or that this user cannot read.
fn sequence(behind: &BehindSequence) -> Finding {
    const CHECK: &str = "sequences";
    if behind.next.is_some() {
        return Finding::fail(
            CHECK,
            Failure::CONFIGURATION,
            format!("{}: no new row can be written", behind.found()),
            format!(
                "run {} as the owner of the table; then run `clerk-sync queue retry --all`",
                behind.remedy()
            ),
        );
    }
    let sequence = &behind.sequence;
    Finding::skip(
        CHECK,
        format!("this user cannot read {sequence}: GRANT SELECT, UPDATE ON SEQUENCE {sequence} to the user"),
    )
}

fn clocks(theirs: Option<DateTime<Utc>>, ours: Span, tolerance_seconds: u32) -> Finding {
    const CHECK: &str = "database clock";
    match theirs {
        None => Finding::ok(CHECK, "the file is on this machine, so there is no other clock"),
        Some(now) => {
            clock::judge(CHECK, "the database", ours, Span { from: now, until: now }, tolerance_seconds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(finding: &Finding) -> String {
        finding.as_json()["status"].as_str().expect("a word").to_owned()
    }

    #[test]
    fn a_clock_that_is_ten_minutes_off_is_a_failure() {
        let now = DateTime::from_timestamp(1_767_225_600, 0).expect("in range");
        let ours = Span { from: now, until: now };
        assert_eq!(status(&clocks(Some(now), ours, 300)), "ok");
        for minutes in [-10, 10] {
            let finding = clocks(Some(now + chrono::TimeDelta::minutes(minutes)), ours, 300);
            assert_eq!(status(&finding), "fail");
            assert!(finding.as_json()["remedy"].as_str().is_some_and(|remedy| remedy.contains("NTP")));
        }
    }

    #[test]
    fn what_a_store_says_is_told_apart_from_what_it_says_to_do() {
        let apart = |text: &str| sentence(&StoreError::schema(text.to_owned()));
        assert_eq!(
            apart("a: b is missing. Nothing was changed. Do c: d."),
            ("a: b is missing".into(), "Do c: d.".into())
        );
        assert_eq!(apart("it has migration 9: run a newer one").1, "run a newer one");
    }

    #[test]
    fn an_old_server_is_a_failure() {
        let inspection = Inspection {
            needs: Some("PostgreSQL 14"),
            standby: true,
            ..Inspection::of("PostgreSQL 13.9".to_owned(), Ok(Size { database: 0, ours: None }))
        };
        assert_eq!(status(&version(&inspection)), "fail");
        assert_eq!(status(&reached("x", &inspection)), "fail");
    }
}
