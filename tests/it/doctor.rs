//! `doctor` finds every fault that these tests create, reports the remedy, and continues with the other checks. Where the remedy
//! is a statement or a command, the test runs it, and the fault is gone. `stats` counts the rows.

use std::{fs, path::Path};

use chrono::{TimeDelta, Utc};
use clerk_sync::store::schema::TABLES;
use fake_clerk::{Behaviour, Canned, Script};
use serde_json::{Value, json};

use crate::{
    catching_up::Clerk,
    receivers::{Receiver, nowhere, reply},
    service::{
        Connection, Finished, Host, INSTANCE, Keeper, OTHER_SECRET, Post, SECRET, deletion, eventually,
        milliseconds, on_each_keeper, post, skip, unique, user,
    },
};

on_each_keeper!(
    where_nothing_is_wrong_everything_is_ok_and_nothing_is_written,
    a_malformed_secret_is_found_and_the_rest_is_looked_at_all_the_same,
    a_service_with_another_secret_is_found,
    a_database_that_is_away_is_found,
    a_missing_privilege_is_found_and_the_remedy_mends_it,
    what_a_restore_left_out_is_found_and_the_remedy_mends_it,
    a_pending_migration_is_found_and_left_pending,
    a_database_of_a_newer_version_is_found,
    a_clock_ten_minutes_off_clerks_is_found,
    a_key_that_clerk_does_not_know_is_found,
    a_key_of_another_instance_is_found,
    a_dead_sink_is_found,
    what_was_left_behind_is_found_with_the_command_that_tends_it,
    a_foreign_key_without_an_index_is_found_and_the_remedy_mends_it,
    a_public_private_listener_without_a_token_is_found,
    a_broken_env_file_is_told_by_its_lines_and_the_rest_is_looked_at_all_the_same,
    a_misspelt_variable_is_told_with_the_one_that_is_meant,
    every_fault_of_a_bad_night_is_told_in_one_run,
    what_is_not_there_yet_is_not_made,
    people_see_one_line_a_check_and_the_remedy_below,
    what_is_there_is_counted,
);

/// The findings of a run of `doctor`.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) code: i32,
    findings: Vec<Value>,
}

impl Report {
    /// The findings of a check.
    pub(crate) fn of(&self, check: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["check"] == check).collect()
    }

    pub(crate) fn status(&self, check: &str) -> &str {
        let lines = self.of(check);
        assert_eq!(lines.len(), 1, "{check}: {self:?}");
        lines[0]["status"].as_str().unwrap()
    }

    /// Assert that this was found with this status. Returns the remedy.
    pub(crate) fn remedy(&self, check: &str, status: &str, found: &str) -> &str {
        let line = self.of(check).into_iter().find(|line| {
            line["status"] == status && line["found"].as_str().is_some_and(|text| text.contains(found))
        });
        let line = line.unwrap_or_else(|| panic!("no {status} of {check} with {found}: {self:#?}"));
        line["remedy"].as_str().unwrap_or_else(|| panic!("no remedy: {line}"))
    }

    /// Assert that no other check failed.
    fn only_fails(&self, checks: &[&str]) {
        for finding in &self.findings {
            let check = finding["check"].as_str().unwrap();
            assert!(finding["status"] != "fail" || checks.contains(&check), "{finding}");
        }
    }
}

pub(crate) fn doctor(host: &Host, arguments: &[&str]) -> Report {
    let arguments: Vec<&str> = ["doctor", "--json"].iter().chain(arguments).copied().collect();
    let Finished { code, stdout, stderr } = host.run(&arguments);
    let findings: Vec<Value> =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    for finding in &findings {
        let keys: Vec<&String> = finding.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["check", "found", "remedy", "status"]);
        let needs_one = ["warn", "fail"].iter().any(|status| finding["status"] == *status);
        assert_eq!(needs_one, finding["remedy"].is_string(), "{finding}");
    }
    for secret in [SECRET, OTHER_SECRET, "hunter2"] {
        let bare = secret.trim_start_matches("whsec_");
        assert!(!stdout.contains(bare) && !stderr.contains(bare), "{stdout}{stderr}");
    }
    let code = code.unwrap();
    assert_eq!(stderr.contains("checks failed"), code != 0, "{stderr}");
    Report { code, findings }
}

/// Migrate the host's database, and start a fake Clerk.
fn prepare(host: &mut Host) -> Clerk {
    host.run(&["migrate"]).succeeded();
    Clerk::of(host, 3)
}

/// The row counts of the tables that `doctor` must not change.
fn contents(host: &Host) -> Vec<Vec<String>> {
    let tables = ["users", "processed_webhooks", "entity_versions", "audit_log", "webhook_queue"];
    let counts = tables.map(|table| format!("SELECT count(*) AS n FROM {table}"));
    host.sql(&counts.join(" UNION ALL "))
}

fn sink(url: &str) -> String {
    format!(
        "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"{url}/hooks/hunter2\"\nsigning_secret_env = \"CRM_SECRET\"\n"
    )
}

fn where_nothing_is_wrong_everything_is_ok_and_nothing_is_written(host: &mut Host) {
    let _clerk = prepare(host);
    let receiver = Receiver::start(|_| reply(405, ""));
    host.write("clerk-sync.toml", &sink(&receiver.url));
    host.set("CRM_SECRET", SECRET);
    host.set("CLERK_INSTANCE_ID", INSTANCE);
    let service = host.serve();
    // The service has both secrets, and `doctor` tries each of them.
    host.set("PORT", &service.public.port().to_string());
    let before = contents(host);
    let report = doctor(host, &[]);
    assert_eq!(report.code, 0, "{report:#?}");
    for check in [
        "configuration",
        "secrets",
        "listeners",
        "database",
        "version",
        "privileges",
        "migrations",
        "tables",
        "row level security",
        "rules",
        "foreign keys",
        "database clock",
        "queue",
        "outbox",
        "erasures",
        "clerk clock",
        "clerk key",
        "clerk instance",
        "webhook secret",
        "sink crm",
    ] {
        assert_eq!(report.status(check), "ok", "{report:#?}");
    }
    // The test machine may be short of space, so the status is not checked.
    assert_eq!(report.of("disk").len(), 1);
    assert_eq!(contents(host), before, "doctor writes no rows");
    let answered = r#"clerk_sync_webhooks_total{event="other",outcome="ignored",kind="other"}"#;
    assert_eq!(service.metric(answered), Some(1.0));
    // The probe must not look like an event from Clerk.
    assert!(service.metric("clerk_sync_last_event_timestamp_seconds").is_none_or(|at| at == 0.0));
    let asked = receiver.one();
    assert_eq!((asked.method.as_str(), asked.body.len()), ("HEAD", 0));
    service.stop();
}

fn a_malformed_secret_is_found_and_the_rest_is_looked_at_all_the_same(host: &mut Host) {
    let _clerk = prepare(host);
    host.set("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_hunter2!!");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    let remedy = report.remedy("secrets", "fail", "CLERK_WEBHOOK_SIGNING_SECRET");
    assert!(remedy.contains("Dashboard") && remedy.contains("whsec_"), "{remedy}");
    report.only_fails(&["secrets"]);
    assert_eq!(report.status("webhook secret"), "skip");
    assert_eq!((report.status("database"), report.status("clerk key")), ("ok", "ok"));
}

fn a_service_with_another_secret_is_found(host: &mut Host) {
    let _clerk = prepare(host);
    let service = host.serve();
    let url = format!("http://{}/webhooks/clerk", service.public);
    host.set("CLERK_WEBHOOK_SIGNING_SECRET", OTHER_SECRET);
    let before = contents(host);
    let report = doctor(host, &["--url", &url]);
    assert_eq!(report.code, 1, "{report:#?}");
    let remedy = report.remedy("webhook secret", "fail", "invalid_signature");
    assert!(remedy.contains("another CLERK_WEBHOOK_SIGNING_SECRET: restart it"), "{remedy}");
    report.only_fails(&["webhook secret"]);
    // With several secrets, each is tried.
    host.set("CLERK_WEBHOOK_SIGNING_SECRET", &format!("{SECRET},{OTHER_SECRET}"));
    let report = doctor(host, &["--url", &url]);
    assert_eq!(report.of("webhook secret").len(), 2, "{report:#?}");
    report.remedy("webhook secret", "fail", "secret 2 of 2");
    host.set("CLERK_WEBHOOK_SIGNING_SECRET", SECRET);
    assert_eq!(doctor(host, &["--url", &url]).status("webhook secret"), "ok");
    assert_eq!(contents(host), before);
    service.stop();
    // A missing service fails the check only if a URL was given.
    let report = doctor(host, &["--url", &url]);
    assert_eq!(report.code, 69, "{report:#?}");
    report.remedy("webhook secret", "fail", "no connection");
    host.set("PORT", &service_port(&nowhere()));
    let report = doctor(host, &[]);
    assert_eq!(report.code, 0, "{report:#?}");
    let remedy = report.remedy("webhook secret", "warn", "no connection");
    assert!(remedy.contains("clerk-sync serve"), "{remedy}");
}

fn service_port(url: &str) -> String {
    url::Url::parse(url).unwrap().port().unwrap().to_string()
}

fn a_database_that_is_away_is_found(host: &mut Host) {
    let _clerk = Clerk::of(host, 0);
    let report = match host.keeper {
        Keeper::Postgres => {
            host.set("DATABASE_URL", &nowhere().replace("http://", "postgres://app:hunter2@"));
            let report = doctor(host, &[]);
            assert_eq!(report.code, 69, "{report:#?}");
            let remedy = report.remedy("database", "fail", "connection refused");
            assert!(
                remedy.contains("start the server, or correct host and port in DATABASE_URL"),
                "{remedy}"
            );
            report
        }
        Keeper::Mariadb | Keeper::Mysql => {
            host.set(
                "DATABASE_URL",
                &format!("{}/shop", nowhere().replace("http://", "mysql://app:hunter2@")),
            );
            let report = doctor(host, &[]);
            assert_eq!(report.code, 69, "{report:#?}");
            let remedy = report.remedy("database", "fail", "connection refused");
            assert!(
                remedy.contains("start the server, or correct host and port in DATABASE_URL"),
                "{remedy}"
            );
            report
        }
        Keeper::Mongodb => {
            let url = nowhere().replace("http://", "mongodb://app:hunter2@");
            host.set("DATABASE_URL", &format!("{url}/shop?serverSelectionTimeoutMS=2000"));
            let report = doctor(host, &[]);
            assert_eq!(report.code, 69, "{report:#?}");
            let remedy = report.remedy("database", "fail", "connection refused");
            assert!(remedy.contains("correct hosts, ports and replicaSet in DATABASE_URL"), "{remedy}");
            report
        }
        Keeper::Sqlite => {
            host.set("DATABASE_URL", &format!("sqlite://{}", host.path("nowhere/users.db")));
            let report = doctor(host, &[]);
            assert_eq!(report.code, 78, "{report:#?}");
            let remedy = report.remedy("database", "fail", "there is no directory");
            fs::create_dir(remedy.strip_prefix("mkdir -p ").unwrap()).unwrap();
            assert_eq!(doctor(host, &[]).code, 0);
            fs::write(host.path("nowhere/users.db"), "this is no database, and never was one of any kind")
                .unwrap();
            let broken = doctor(host, &[]);
            assert_ne!(broken.code, 0);
            let remedy = broken.remedy("database", "fail", "is not a SQLite database");
            assert!(remedy.contains("DATABASE_URL"), "{broken:#?}");
            report
        }
    };
    report.only_fails(&["database"]);
    for check in ["version", "privileges", "migrations", "tables", "foreign keys", "database clock"] {
        assert_eq!(report.status(check), "skip", "{report:#?}");
    }
    assert_eq!(report.status("clerk key"), "ok", "the other checks still run");
}

/// A database user that owns nothing; it is dropped at the end of the test.
pub(crate) struct Role<'a> {
    host: &'a Host,
    pub(crate) name: String,
    pub(crate) url: String,
}

impl<'a> Role<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        let name = unique("it_role_");
        host.sql(&if host.keeper == Keeper::Postgres {
            format!("CREATE ROLE {name} LOGIN PASSWORD 'hunter2'")
        } else {
            format!(
                "CREATE USER {name} IDENTIFIED BY 'hunter2'; GRANT SHOW VIEW ON {}.* TO {name}",
                host.schema
            )
        });
        let mut url = url::Url::parse(host.get("DATABASE_URL")).unwrap();
        url.set_username(&name).unwrap();
        url.set_password(Some("hunter2")).unwrap();
        Self { host, url: url.to_string(), name }
    }

    /// Run `doctor` as this user.
    pub(crate) fn doctor(&self) -> Report {
        doctor(self.host, &["--database-url", &self.url])
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let dropped = if self.host.keeper == Keeper::Postgres {
            format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name)
        } else {
            format!("DROP USER {}", self.name)
        };
        _ = self.host.connect().run(&dropped);
    }
}

fn a_missing_privilege_is_found_and_the_remedy_mends_it(host: &mut Host) {
    let _clerk = prepare(host);
    if host.keeper == Keeper::Sqlite {
        let path = host.path("users.db");
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        if fs::OpenOptions::new().append(true).open(&path).is_ok() {
            skip("unprivileged", "root may write to read-only files");
            return;
        }
        let report = doctor(host, &[]);
        assert_eq!(report.code, 78, "{report:#?}");
        assert!(report.remedy("privileges", "fail", "may not be written to").contains("chmod u+rwX"));
        return;
    }
    let schema = host.schema.clone();
    let role = Role::new(host);
    // Grant what each finding asks for.
    let report = role.doctor();
    assert_eq!(report.code, 78, "{report:#?}");
    assert!(!report.findings.iter().any(|finding| finding["found"].as_str().unwrap().contains("hunter2")));
    if host.keeper == Keeper::Postgres {
        let usage = report.remedy("privileges", "fail", &format!("USAGE on schema {schema}"));
        assert_eq!(usage, format!("GRANT USAGE ON SCHEMA {schema} TO {};", role.name));
    }
    for finding in report.of("privileges") {
        assert_eq!(finding["status"], "fail");
        host.sql(finding["remedy"].as_str().unwrap());
    }
    let report = role.doctor();
    assert_eq!((report.code, report.status("privileges")), (0, "ok"), "{report:#?}");
    assert_eq!((report.status("migrations"), report.status("tables")), ("ok", "ok"));
    // These grants are sufficient for the service.
    let service = host.serve_with(&["--database-url", &role.url]);
    let at = milliseconds() - 60_000;
    for event in [
        user("user.created", "user_1", at, "Ada"),
        user("user.updated", "user_1", at + 1, "Eve"),
        deletion("user_1", at + 2),
    ] {
        assert_eq!(service.post(&post(&event)).word(), "applied", "{}", service.log());
    }
    service.stop();
}

fn what_a_restore_left_out_is_found_and_the_remedy_mends_it(host: &mut Host) {
    if !host.keeper.is_mysql() {
        // The other databases restore everything or nothing.
        return;
    }
    let _clerk = prepare(host);
    host.sql("DROP TRIGGER audit_log_no_delete");
    let remedy = doctor(host, &[]).remedy("settings", "warn", "1 of the 4 triggers").to_owned();
    host.sql("DROP TABLE leases");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    report.remedy("tables", "fail", "the table leases is missing");
    let refused = host.run(&["serve"]);
    assert!(refused.code == Some(78) && refused.stderr.contains("leases"), "{refused:?}");
    host.sql(remedy.split_once(';').unwrap().0);
    host.run(&["migrate"]).succeeded();
    let report = doctor(host, &[]);
    assert_eq!((report.code, report.status("tables")), (0, "ok"), "{report:#?}");
    // A test server may be configured to flush later, which is another finding.
    let settings = report.of("settings");
    assert!(!settings.iter().any(|finding| finding["found"].to_string().contains("triggers")), "{report:#?}");
}

fn a_pending_migration_is_found_and_left_pending(host: &mut Host) {
    let _clerk = prepare(host);
    let (version, name) = if host.keeper.is_mysql() { (17, "0017_tables") } else { (5, "0005_activity") };
    host.sql(&format!("DELETE FROM _clerk_sync_migrations WHERE version = {version}"));
    host.sql("DROP TABLE activity");
    for _ in 0..2 {
        let report = doctor(host, &[]);
        assert_eq!(report.code, 0, "{report:#?}");
        let remedy = report.remedy("migrations", "warn", &format!(" is pending: {name}"));
        assert!(remedy.contains("`clerk-sync migrate`"), "{remedy}");
        assert_eq!(report.status("tables"), "skip");
    }
    host.run(&["migrate"]).succeeded();
    assert_eq!(doctor(host, &[]).status("migrations"), "ok");
    if host.keeper == Keeper::Postgres {
        // A user that does not own the tables cannot apply migrations.
        host.sql("DELETE FROM _clerk_sync_migrations WHERE version = 5; DROP TABLE activity");
        let role = Role::new(host);
        let schema = &host.schema;
        host.sql(&format!(
            "GRANT ALL ON SCHEMA {schema} TO {0}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {0}",
            role.name
        ));
        let report = role.doctor();
        assert!(report.remedy("privileges", "fail", "ownership of").contains("clerk-sync migrate` as"));
    }
}

/// Record a migration of a newer version.
fn from_the_future(host: &Host) {
    host.sql(
        "INSERT INTO _clerk_sync_migrations (version, name, checksum, applied_at)
         VALUES (99, '0099_future', 'x', '2026-01-01T00:00:00.000Z')",
    );
}

fn a_database_of_a_newer_version_is_found(host: &mut Host) {
    let _clerk = prepare(host);
    from_the_future(host);
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    let remedy = report.remedy("migrations", "fail", "the database has migration 99");
    assert_eq!(remedy, "run a newer version");
    report.only_fails(&["migrations"]);
}

fn a_clock_ten_minutes_off_clerks_is_found(host: &mut Host) {
    let clerk = prepare(host);
    for minutes in [10, -10] {
        let date = (Utc::now() + TimeDelta::minutes(minutes)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let script = Script::new(move |path, _| {
            let body = json!({ "object": "instance", "id": INSTANCE }).to_string();
            (path == "/v1/instance").then(|| Canned {
                status: 200,
                headers: vec![("date", date.clone())],
                body,
            })
        });
        clerk.fake.behave(Behaviour { script, ..Behaviour::default() });
        let report = doctor(host, &[]);
        assert_eq!(report.code, 1, "{report:#?}");
        let direction = if minutes > 0 { "ahead of this machine" } else { "behind this machine" };
        assert!(report.remedy("clerk clock", "fail", direction).contains("NTP"));
        report.only_fails(&["clerk clock"]);
        assert_eq!(report.status("database clock"), "ok");
    }
    // Without a key, the clock is checked too, because every answer has a date.
    host.unset("CLERK_SECRET_KEY");
    let report = doctor(host, &[]);
    assert_eq!((report.code, report.status("clerk key")), (1, "ok"), "{report:#?}");
    clerk.fake.behave(Behaviour { down: true, ..Behaviour::default() });
    let report = doctor(host, &[]);
    assert_eq!((report.code, report.status("clerk clock")), (0, "skip"), "{report:#?}");
}

fn a_key_that_clerk_does_not_know_is_found(host: &mut Host) {
    let _clerk = prepare(host);
    host.set("CLERK_SECRET_KEY", "sk_test_hunter2");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    let remedy = report.remedy("clerk key", "fail", "clerk_key_invalid");
    assert!(remedy.contains("CLERK_SECRET_KEY") && remedy.contains("Dashboard"), "{remedy}");
    report.only_fails(&["clerk key"]);
    assert_eq!(report.status("clerk clock"), "ok", "a refusal has a date as well");
    // A value that does not have the form of a key is never sent.
    host.set("CLERK_SECRET_KEY", "hunter2");
    let report = doctor(host, &[]);
    report.remedy("secrets", "fail", "CLERK_SECRET_KEY");
    assert_eq!((report.code, report.status("clerk key")), (78, "skip"), "{report:#?}");
}

fn a_key_of_another_instance_is_found(host: &mut Host) {
    let _clerk = prepare(host);
    host.set("CLERK_INSTANCE_ID", "ins_another");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    let remedy = report.remedy("clerk key", "fail", "CLERK_INSTANCE_ID is ins_another");
    assert!(remedy.contains(&format!("CLERK_INSTANCE_ID={INSTANCE}")), "{remedy}");
    host.unset("CLERK_INSTANCE_ID");
    // The users in this database come from a third instance.
    host.sql(&format!(
        "INSERT INTO clerk_instance (one, instance_id) VALUES ({}, 'ins_third')",
        host.truth()
    ));
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    let remedy = report.remedy("clerk key", "fail", "came from ins_third");
    assert!(remedy.contains("--change-instance"), "{remedy}");
    report.only_fails(&["clerk key"]);
    // Or from the sample instance.
    host.sql("UPDATE clerk_instance SET instance_id = 'ins_sample'");
    doctor(host, &[]).remedy("database", "warn", "made-up users");
}

fn a_dead_sink_is_found(host: &mut Host) {
    let _clerk = prepare(host);
    host.write("clerk-sync.toml", &sink(&nowhere()));
    host.set("CRM_SECRET", SECRET);
    let report = doctor(host, &[]);
    assert_eq!(report.code, 69, "{report:#?}");
    let remedy = report.remedy("sink crm", "fail", "connection refused by 127.0.0.1");
    assert!(remedy.contains("clerk-sync sinks test crm"), "{remedy}");
    report.only_fails(&["sink crm"]);
    let broken = Receiver::start(|_| reply(502, "hunter2"));
    host.write("clerk-sync.toml", &sink(&broken.url));
    let report = doctor(host, &[]);
    assert_eq!(report.code, 0, "{report:#?}");
    report.remedy("sink crm", "warn", "answers 502");
    // A missing secret is reported, and the sink is still probed.
    host.unset("CRM_SECRET");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    let remedy = report.remedy("secrets", "fail", "the variable CRM_SECRET is not set");
    assert_eq!(remedy, "set it, or name a file that holds the secret in signing_secret_file");
    report.remedy("sink crm", "warn", "answers 502");
}

fn what_was_left_behind_is_found_with_the_command_that_tends_it(host: &mut Host) {
    let _clerk = prepare(host);
    let bytes = if host.keeper == Keeper::Postgres { "'\\x7b7d'" } else { "x'7b7d'" };
    host.sql(&format!(
        "INSERT INTO webhook_queue (svix_id, payload, state, attempts, received_at, last_error)
         VALUES ('msg_1', {bytes}, 'dead', 15, '2026-01-01T00:00:00.000Z', 'x')"
    ));
    host.sql(
        "INSERT INTO outbox (message_id, sink, clerk_id, type, payload, state, created_at)
         VALUES ('msg_1', 'crm', 'user_1', 'user.created', '{}', 'dead', '2026-01-01T00:00:00.000Z')",
    );
    host.sql(
        "INSERT INTO erasure_receipts (clerk_id, destination, requested_at)
         VALUES ('user_2', 'crm', '2026-01-01T00:00:00.000Z')",
    );
    host.sql("INSERT INTO outbox_paused (sink, paused_at) VALUES ('news', '2026-01-01T00:00:00.000Z')");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 0, "{report:#?}");
    let remedy = report.remedy("queue", "warn", "1 dead delivery");
    assert!(remedy.contains("`clerk-sync queue ls --state dead`"), "{remedy}");
    let remedy = report.remedy("outbox", "warn", "crm: 1 dead message");
    assert!(remedy.contains("`clerk-sync outbox retry --sink crm`"), "{remedy}");
    let remedy = report.remedy("outbox", "warn", "news has been paused for ");
    assert!(remedy.contains("`clerk-sync outbox resume news`"), "{remedy}");
    let remedy = report.remedy("erasures", "warn", "1 by crm");
    assert!(remedy.contains("`clerk-sync erase report`"), "{remedy}");
    let shown = host.run(&["doctor"]).succeeded();
    assert!(shown.contains("warn  queue ") && !shown.contains("user_"), "{shown}");
    // The suggested commands fix the findings.
    host.run(&["queue", "discard", "--all", "--yes"]).succeeded();
    host.run(&["outbox", "resume", "news"]).succeeded();
    host.run(&["outbox", "retry", "--sink", "crm"]).succeeded();
    let report = doctor(host, &[]);
    assert_eq!(report.status("queue"), "ok", "{report:#?}");
    report.remedy("outbox", "warn", "crm: 1 pending message, the oldest for ");
    // Where the tables are not of this version nobody can tell.
    host.sql("DELETE FROM _clerk_sync_migrations WHERE version IN (5, 17)");
    let report = doctor(host, &[]);
    for check in ["queue", "outbox", "erasures"] {
        assert_eq!(report.status(check), "skip", "{report:#?}");
    }
}

fn a_foreign_key_without_an_index_is_found_and_the_remedy_mends_it(host: &mut Host) {
    let _clerk = prepare(host);
    let schema = host.schema.clone();
    let orders = if host.keeper == Keeper::Postgres {
        host.sql(&format!("CREATE SCHEMA {schema}_app"));
        format!("{schema}_app.orders")
    } else {
        "orders".to_owned()
    };
    if host.keeper.is_mysql() {
        // InnoDB creates a missing index for every foreign key.
        assert_eq!(doctor(host, &[]).status("foreign keys"), "ok");
        return;
    }
    host.sql(&format!(
        "CREATE TABLE {orders} (id bigint PRIMARY KEY, \"userId\" bigint REFERENCES users (id),
                                clerk_id text REFERENCES users (clerk_id))"
    ));
    let report = doctor(host, &[]);
    assert_eq!(report.code, 0, "a warning: {report:#?}");
    assert_eq!(report.of("foreign keys").len(), 2, "{report:#?}");
    let by_id = report.remedy("foreign keys", "warn", "userId");
    let by_clerk_id = report.remedy("foreign keys", "warn", "(clerk_id)");
    let concurrently = host.keeper == Keeper::Postgres;
    for remedy in [by_id, by_clerk_id] {
        assert_eq!(remedy.contains("CREATE INDEX CONCURRENTLY ON"), concurrently, "{remedy}");
    }
    host.sql(by_id);
    let left = doctor(host, &[]);
    assert_eq!(left.of("foreign keys").len(), 1, "{left:#?}");
    host.sql(by_clerk_id);
    let report = doctor(host, &[]);
    assert_eq!(report.status("foreign keys"), "ok", "{report:#?}");
    // The table's primary key counts as an index.
    let profiles = orders.replace("orders", "profiles");
    host.sql(
        &format!("CREATE TABLE {profiles} (id integer PRIMARY KEY REFERENCES users (id))")
            .replace("integer", if concurrently { "bigint" } else { "integer" }),
    );
    assert_eq!(doctor(host, &[]).status("foreign keys"), "ok");
    // Rows of every kind can be deleted, so foreign keys to them count too.
    for (name, to) in [("invoices", "organizations"), ("seats", "organization_memberships")] {
        let table = orders.replace("orders", name);
        host.sql(&format!("CREATE TABLE {table} (id integer, owner text REFERENCES {to} (clerk_id))"));
        let report = doctor(host, &[]);
        let remedy = report.remedy("foreign keys", "warn", &format!("refers to {to} and has no index"));
        host.sql(remedy);
        assert_eq!(doctor(host, &[]).status("foreign keys"), "ok");
    }
}

fn a_public_private_listener_without_a_token_is_found(host: &mut Host) {
    let _clerk = prepare(host);
    host.set("ADMIN_HOST", "0.0.0.0");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    let remedy = report.remedy("listeners", "fail", "no ADMIN_TOKEN");
    assert!(remedy.contains("set ADMIN_TOKEN") && remedy.contains("ADMIN_HOST=127.0.0.1"), "{remedy}");
    report.only_fails(&["listeners"]);
    assert_eq!(report.of("configuration")[0]["found"], "every other variable is valid");
    host.set("ADMIN_TOKEN", "hunter2-hunter2");
    assert_eq!(doctor(host, &[]).status("listeners"), "ok");
}

fn a_broken_env_file_is_told_by_its_lines_and_the_rest_is_looked_at_all_the_same(host: &mut Host) {
    let _clerk = prepare(host);
    let url = host.get("DATABASE_URL").to_owned();
    host.unset("DATABASE_URL");
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    // The lines after an unclosed quote are read too.
    let behind = format!("CRM=\"hunter2\nSYNC_FIELDS=email\nDATABASE_URL='{url}'\n");
    host.write(".env", &format!("hunter2 hunter2\nCLERK_WEBHOOK_SIGNING_SECRET=hunter2 hunter2\n{behind}"));
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    let remedy = report.remedy("configuration", "fail", ".env: lines 1 and 3 cannot be understood");
    assert!(remedy.contains("NAME=value"), "{remedy}");
    report.remedy("secrets", "fail", "line 2 of .env cannot be understood");
    assert_eq!(report.of("secrets").len(), 1, "no finding claims that the secret is not set: {report:#?}");
    report.only_fails(&["configuration", "secrets"]);
    assert_eq!((report.status("database"), report.status("webhook secret")), ("ok", "skip"));
    // If the line with the database's URL is broken, no other database is checked.
    host.write(".env", &behind.replace("DATABASE_URL='", "DATABASE_URL=hunter2 '"));
    let report = doctor(host, &[]);
    report.remedy("configuration", "fail", "DATABASE_URL (--database-url): line 3 of .env");
    assert_eq!(report.status("database"), "skip", "{report:#?}");
}

fn a_misspelt_variable_is_told_with_the_one_that_is_meant(host: &mut Host) {
    let _clerk = prepare(host);
    host.write(".env", "DATABASE_POOL=1\nSYNC_FIELD=email\nCLERK_SYNC_LOG_FORMT=json\n");
    host.set("WEBHOOK_TOLERANCE_SECOND", "7");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 0, "{report:#?}");
    for (name, meant) in [
        ("SYNC_FIELD: .env sets it", "did you mean SYNC_FIELDS?"),
        ("CLERK_SYNC_LOG_FORMT: .env sets it", "did you mean LOG_FORMAT?"),
        ("WEBHOOK_TOLERANCE_SECOND: the environment sets it", "did you mean WEBHOOK_TOLERANCE_SECONDS?"),
    ] {
        let remedy = report.remedy("configuration", "warn", name);
        assert!(remedy.contains(meant), "{remedy}");
    }
    assert_eq!(
        report.of("configuration").len(),
        4,
        "the application's own variables are not mentioned: {report:#?}"
    );
    // Another common name for the secret.
    host.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    host.write(".env", &format!("WEBHOOK_SECRET={SECRET}\n"));
    let report = doctor(host, &[]);
    let remedy = report.remedy("secrets", "fail", "WEBHOOK_SECRET is set, but clerk-sync does not read it");
    assert!(remedy.contains("CLERK_WEBHOOK_SIGNING_SECRET"), "{remedy}");
    assert_eq!(report.of("secrets").len(), 1, "{report:#?}");
}

fn every_fault_of_a_bad_night_is_told_in_one_run(host: &mut Host) {
    let _clerk = prepare(host);
    from_the_future(host);
    host.write("clerk-sync.toml", &sink(&nowhere()));
    host.set("CRM_SECRET", SECRET);
    host.set("CLERK_SECRET_KEY", "sk_test_hunter2");
    host.set("ADMIN_HOST", "0.0.0.0");
    host.set("SYNC_FIELDS", "email,shoe_size");
    host.write(".env", "LOG_FORMAT=json\nhunter2 hunter2\n");
    let report = doctor(host, &[]);
    assert_eq!(report.code, 78, "{report:#?}");
    for (check, found) in [
        ("configuration", "SYNC_FIELDS"),
        ("configuration", ".env"),
        ("listeners", "0.0.0.0"),
        ("migrations", "99"),
        ("clerk key", "clerk_key_invalid"),
        ("sink crm", "connection refused"),
    ] {
        report.remedy(check, "fail", found);
    }
    // An unreachable dependency decides the exit code, unless the configuration is broken.
    fs::remove_file(host.path(".env")).unwrap();
    let clerk = Clerk::of(host, 0);
    clerk.fake.behave(Behaviour::default());
    host.unset("ADMIN_HOST");
    host.unset("SYNC_FIELDS");
    host.sql("DELETE FROM _clerk_sync_migrations WHERE version = 99");
    assert_eq!(doctor(host, &[]).code, 69);
}

fn what_is_not_there_yet_is_not_made(host: &mut Host) {
    let _clerk = Clerk::of(host, 0);
    let report = doctor(host, &[]);
    assert_eq!(report.code, 0, "{report:#?}");
    if host.keeper == Keeper::Postgres {
        report.remedy("migrations", "warn", " are pending");
        let schemas = format!("SELECT count(*) FROM pg_namespace WHERE nspname = '{}'", host.schema);
        assert_eq!(host.value(&schemas), "0");
    } else if host.keeper.is_mysql() {
        report.remedy("migrations", "warn", " are pending");
        assert_eq!(
            host.count(&format!("information_schema.tables WHERE table_schema = '{}'", host.schema)),
            0
        );
    } else {
        let line = report.of("database")[0].clone();
        assert!(line["found"].as_str().unwrap().contains("is created at the first start"), "{line}");
        assert_eq!(fs::read_dir(host.directory.path()).unwrap().count(), 0);
        let stats = host.run(&["stats"]);
        assert_eq!(stats.code, Some(78), "{stats:?}");
        assert!(!Path::new(&host.path("users.db")).exists());
        // A file that belongs to the application stays unchanged, byte for byte.
        let other = host.path("other.db");
        Connection::sqlite(&other)
            .unwrap()
            .run("CREATE TABLE notes (id integer); INSERT INTO notes VALUES (1)")
            .unwrap();
        host.set("DATABASE_URL", &format!("sqlite://{other}"));
        let before = fs::read(&other).unwrap();
        doctor(host, &[]).remedy("migrations", "warn", " are pending");
        assert_eq!(fs::read(&other).unwrap(), before);
        assert_eq!(fs::read_dir(host.directory.path()).unwrap().count(), 1);
    }
}

fn people_see_one_line_a_check_and_the_remedy_below(host: &mut Host) {
    let _clerk = prepare(host);
    host.set("ADMIN_HOST", "0.0.0.0");
    let finished = host.run(&["doctor"]);
    assert_eq!(finished.code, Some(78), "{finished:?}");
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("fail  listeners ")).expect("a line");
    let column = lines[at].find("ADMIN_HOST").expect("what was found");
    assert_eq!(lines[at + 1].find("→ set ADMIN_TOKEN"), Some(column), "{}", finished.stdout);
    assert!(lines.iter().any(|line| line.starts_with("ok    database ")), "{}", finished.stdout);
    assert!(finished.stdout.contains("1 fail"), "{}", finished.stdout);
    // Only terminals get colours, and only if they want them.
    assert!(!finished.stdout.contains('\x1b'));
    let Some(seen) = host.run_at_terminal(&["doctor"], "") else { return };
    assert!(seen.stdout.contains("\x1b[1;31mfail"), "{}", seen.stdout);
    host.set("NO_COLOR", "1");
    let Some(seen) = host.run_at_terminal(&["doctor"], "") else { return };
    assert!(!seen.stdout.contains('\x1b') && seen.stdout.contains("fail"), "{}", seen.stdout);
    let help = host.run(&["doctor", "--help"]).succeeded();
    for part in ["Examples:", "--url", "--json", "Exit codes:", "69"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

fn what_is_there_is_counted(host: &mut Host) {
    let service = host.serve();
    let at = milliseconds() - 60_000;
    let deliver = |event: &Value| -> Post {
        let delivery = post(event);
        assert_eq!(service.post(&delivery).status, 200, "{}", service.log());
        delivery
    };
    for number in 0..3 {
        deliver(&user("user.created", &format!("user_{number}"), at, "Ada"));
    }
    deliver(&deletion("user_2", at + 1000));
    deliver(&json!({ "type": "session.created", "data": { "id": "sess_1" } }));
    deliver(&json!({ "type": "user.created", "data": { "id": 7 } }));
    let counted =
        || -> Value { serde_json::from_str(&host.run(&["stats", "--json"]).succeeded()).expect("JSON") };
    eventually("all of it", || counted()["queue"]["dead"] == 1);
    let stats = counted();
    assert_eq!(stats["users"]["standing"], json!({ "rows": 2, "estimated": false }), "{stats:#}");
    assert_eq!(stats["users"]["erased"], 1, "{stats:#}");
    assert_eq!(stats["events_24h"], json!({ "applied": 4, "ignored": 1 }), "{stats:#}");
    assert_eq!(stats["queue"], json!({ "pending": 0, "dead": 1 }));
    assert!(stats["stream"].is_null(), "the service has no stream: {stats:#}");
    assert_eq!(stats["tables"]["users"]["rows"], 2);
    assert_eq!(stats["tables"]["entity_versions"]["rows"], 3);
    assert_eq!(stats["tables"].as_object().unwrap().len(), TABLES.len());
    assert!(stats["last_event_at"].is_string() && stats["bytes"].as_u64().unwrap() > 0);
    let weeks = stats["signups_by_week"].as_array().unwrap();
    assert_eq!(weeks.len(), 12);
    let signups: u64 = weeks.iter().map(|week| week["signups"].as_u64().unwrap()).sum();
    assert_eq!(signups, 2, "{stats:#}");

    let text = host.run(&["stats"]).succeeded();
    for part in [
        "2 current, 1 erased",
        "4 applied, 1 ignored in the last 24 hours",
        "0 pending, 1 dead",
        "█",
        "audit_log",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("user_0") && !text.contains("example.com") && !text.contains('\x1b'), "{text}");
    assert!(host.run(&["stats", "--help"]).succeeded().contains("Examples:"));
    service.stop();
    if host.keeper == Keeper::Postgres {
        // A large table is estimated instead of counted, and the output shows this.
        host.sql("INSERT INTO leases SELECT 'lease_' || n, 'x', now() FROM generate_series(1, 600000) AS n");
        host.sql("ANALYZE leases");
        let stats = counted();
        assert_eq!(stats["tables"]["leases"]["estimated"], true, "{stats:#}");
        let text = host.run(&["stats"]).succeeded();
        assert!(text.lines().any(|line| line.starts_with("leases") && line.contains("  ~6")), "{text}");
    }
}

/// A restore may leave a sequence behind its table, and the service may not own the sequence.
#[test]
fn a_sequence_left_behind_that_is_not_ours_to_set_is_named_with_the_statement_that_mends_it() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    prepare(&mut host);
    let role = unique("it_role_");
    let schema = host.schema.clone();
    host.sql(&format!("CREATE ROLE {role} LOGIN"));
    host.sql(&format!("GRANT USAGE ON SCHEMA {schema} TO {role}"));
    host.sql(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"));
    host.sql(&format!("GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"));
    host.sql(
        "INSERT INTO users (clerk_id) SELECT 'user_' || n FROM generate_series(1, 50) AS n;
         SELECT setval(pg_get_serial_sequence('users', 'id'), 1, false)",
    );
    let owners = host.get("DATABASE_URL").to_owned();
    let mut url = url::Url::parse(&owners).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(None).unwrap();
    host.set("DATABASE_URL", url.as_str());
    if Connection::postgres(url.as_str(), "public").is_err() {
        return skip("roles", "TEST_POSTGRES_URL requires passwords");
    }
    let service = host.serve_with(&["--no-migrate"]);
    let new = post(&user("user.created", &unique("user_"), milliseconds(), "Ada"));
    assert_eq!(service.post(&new).word(), "parked");
    eventually("named in the log", || service.log().contains("SELECT setval("));
    service.stop();
    let error = host.value("SELECT last_error FROM webhook_queue");
    assert!(
        error.contains("users_id_seq is behind the rows of users") && error.contains("setval"),
        "{error}"
    );
    let report = doctor(&host, &[]);
    let remedy =
        report.remedy("sequences", "fail", "users_id_seq is behind the rows of users, which go up to 50");
    let statement = remedy.strip_prefix("run ").unwrap().split(';').next().unwrap();
    host.set("DATABASE_URL", &owners);
    host.sql(statement);
    host.set("DATABASE_URL", url.as_str());
    assert!(doctor(&host, &[]).of("sequences").is_empty());
    let service = host.serve_with(&["--no-migrate"]);
    host.run(&["queue", "retry", "--all"]).succeeded();
    eventually("applied", || host.count("users WHERE first_name = 'Ada'") == 1);
    service.stop();
    host.set("DATABASE_URL", &owners);
    host.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}
