//! MongoDB only: promises that do not apply to it, and servers for a single test.
//!
//! `TEST_MONGODB_URL` names the server. It may be `SecantusDB`, a test tool that puts a new server in front of MongoDB's storage
//! engine. If a client is killed during a transaction, that server keeps the client's documents locked for minutes. A test that
//! kills processes therefore gets its own server, started by the program in `TEST_SECANTUSDB`.

use std::{
    env, fs,
    io::{self, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use clerk_sync::{
    entity::{USER, user},
    model::Value,
    store::schema::TABLES,
};
use mongodb::{
    Client, Database,
    bson::{self, doc},
    options::ClientOptions,
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    service::{Host, free_port, skip},
    world::{Event, Keeper, SIGN_UP, World, at, run},
};

/// A feature that a test needs and that MongoDB does not have.
#[derive(Clone, Copy, Debug)]
enum Missing {
    /// Nothing can refuse a deletion, and nothing is deleted along with it.
    ForeignKeys,
    /// The server runs no application code when a document changes.
    Triggers,
    /// Roles decide who may write to the audit trail: docs/mongodb.md.
    AppendOnly,
    /// Fields have no types, and collections no columns.
    Columns,
    /// No version precedes the first one that supports MongoDB.
    EarlierVersions,
    /// An application has no tables to adopt.
    Adopting,
    /// A collection cannot be locked, and a dropped collection counts as empty.
    Collections,
    /// The server cannot estimate how many documents meet a condition.
    Estimates,
    /// The query is about the catalogue or the dialect of an SQL database.
    Sql,
}

impl Missing {
    fn sentence(self) -> &'static str {
        match self {
            Self::ForeignKeys => "MongoDB has no foreign keys",
            Self::Triggers => "MongoDB has no triggers",
            Self::AppendOnly => "a role makes the audit trail append-only",
            Self::Columns => "MongoDB has no columns, and its fields have no types",
            Self::EarlierVersions => "no earlier version supports MongoDB",
            Self::Adopting => "the test creates a table; another test adopts a collection",
            Self::Estimates => "the server cannot estimate how many documents meet a condition",
            Self::Collections => "a collection cannot be locked, and a dropped collection counts as empty",
            Self::Sql => "the test is about SQL itself",
        }
    }
}

/// Tests that do not apply to MongoDB.
const NOT_HERE: &[(&str, Missing)] = &[
    // promises
    ("what_the_application_has_broken_is_its_refusal_and_is_named", Missing::Triggers),
    ("a_deletion_that_the_application_has_broken_is_tried_again_until_it_works", Missing::Triggers),
    ("a_foreign_key_decides_between_deleting_and_anonymising", Missing::ForeignKeys),
    ("a_deferred_foreign_key_decides_as_well", Missing::ForeignKeys),
    ("a_trigger_that_refuses_decides_as_well", Missing::Triggers),
    ("a_cascade_stays_the_applications_own_decision", Missing::ForeignKeys),
    ("what_is_refused_for_one_of_many_holds_up_none_of_them", Missing::ForeignKeys),
    ("a_trigger_that_brings_back_what_was_taken_out_is_no_erasure", Missing::Triggers),
    ("a_trigger_that_changes_whose_row_it_is_parks_the_event", Missing::Triggers),
    ("one_of_many_in_a_batch_is_anonymised_and_the_others_deleted", Missing::ForeignKeys),
    ("one_of_many_with_a_deferred_key_is_anonymised_and_the_others_deleted", Missing::ForeignKeys),
    ("the_policy_delete_never_anonymises", Missing::ForeignKeys),
    ("a_deletion_that_only_the_commit_refuses_is_never_lost", Missing::ForeignKeys),
    ("one_of_many_deletions_that_fails_parks_alone", Missing::ForeignKeys),
    ("a_deletion_that_one_key_refuses_takes_nothing_along_by_another", Missing::ForeignKeys),
    ("a_row_that_was_anonymised_before_is_not_called_deleted_while_a_key_keeps_it", Missing::ForeignKeys),
    ("the_audit_trail_only_grows", Missing::AppendOnly),
    (
        "who_was_told_of_before_addresses_were_kept_counts_as_told_of_where_the_sink_was",
        Missing::EarlierVersions,
    ),
    ("a_database_of_every_version_before_is_brought_up_to_date", Missing::EarlierVersions),
    ("a_table_that_somebody_else_has_is_named_also_by_an_upgrade", Missing::EarlierVersions),
    ("tables_that_are_not_ours_are_refused_and_left_alone", Missing::Columns),
    ("a_column_of_another_type_is_refused", Missing::Columns),
    ("what_a_table_of_an_application_holds_is_told", Missing::Adopting),
    ("a_table_of_an_application_is_read_page_by_page_in_the_order_of_its_ids", Missing::Adopting),
    ("the_number_of_many_users_is_known_at_once_and_about_right", Missing::Estimates),
    ("the_room_that_the_database_takes_up_is_known", Missing::Estimates),
    // erasure, kinds, memberships, audit_chain
    ("a_row_that_a_trigger_keeps_without_a_word_is_no_erasure", Missing::Triggers),
    ("an_erasure_that_resists_stands_in_the_report_until_it_is_done", Missing::ForeignKeys),
    ("a_row_that_the_application_holds_on_to_is_marked", Missing::ForeignKeys),
    ("migrations_make_what_the_declarations_say", Missing::Sql),
    ("whoever_joins_again_takes_the_place_of_a_row_that_has_to_stay", Missing::ForeignKeys),
    ("a_constraint_that_speaks_at_the_commit_leaves_nothing_alive", Missing::ForeignKeys),
    ("seals_only_come_to_the_others", Missing::AppendOnly),
    // journeys, private_api
    ("a_deletion_takes_the_row_or_anonymises_it_where_business_data_stands_in_the_way", Missing::ForeignKeys),
    ("with_a_prefix_an_application_can_have_tables_of_the_same_names", Missing::Sql),
    ("a_view_of_the_application_is_never_replaced", Missing::Sql),
    ("a_table_with_our_name_that_is_not_ours_is_refused_with_an_explanation", Missing::Columns),
    ("a_user_is_shown_as_the_row_is_and_not_after_a_deletion", Missing::ForeignKeys),
    // dashboard, outages, reports
    ("a_short_outage_costs_about_as_long_as_it_takes", Missing::Collections),
    ("a_database_that_stays_locked_keeps_nobody_waiting_and_is_forgotten_afterwards", Missing::Collections),
    ("asked_to_stop_while_it_holds_deliveries_it_answers_them_and_ends", Missing::Collections),
    ("an_error_is_reported_with_type_and_id_of_the_event_and_nothing_of_its_body", Missing::Collections),
    ("whether_sentry_takes_reports_harms_nothing", Missing::Collections),
    // doctor
    ("a_missing_privilege_is_found_and_the_remedy_mends_it", Missing::Sql),
    ("what_a_restore_left_out_is_found_and_the_remedy_mends_it", Missing::Triggers),
    ("every_page_says_that_migrations_are_pending", Missing::Collections),
    ("a_pending_migration_is_found_and_left_pending", Missing::EarlierVersions),
    ("a_database_of_a_newer_version_is_found", Missing::Sql),
    ("every_fault_of_a_bad_night_is_told_in_one_run", Missing::Sql),
    ("a_foreign_key_without_an_index_is_found_and_the_remedy_mends_it", Missing::ForeignKeys),
    ("what_is_not_there_yet_is_not_made", Missing::Sql),
    ("what_was_left_behind_is_found_with_the_command_that_tends_it", Missing::EarlierVersions),
    // adopting
    ("a_prisma_table_is_adopted_after_a_dry_run", Missing::Adopting),
    ("a_drizzle_table_is_adopted", Missing::Adopting),
    ("whatever_clerk_says_is_newer_than_a_row_that_was_adopted", Missing::Adopting),
    ("a_column_that_the_user_names_is_clerks_own_time", Missing::Adopting),
    ("nobody_comes_alive_whom_the_table_calls_deleted", Missing::Adopting),
    ("who_is_deleted_is_said_by_a_condition_where_no_column_says_it_plainly", Missing::Adopting),
    ("who_is_known_here_is_left_as_they_are", Missing::Adopting),
    ("the_column_with_clerks_ids_is_found_by_what_is_in_it", Missing::Adopting),
    ("where_it_is_not_plain_which_column_has_the_ids_the_user_is_asked", Missing::Adopting),
    ("columns_that_look_like_ours_are_named_and_read_if_the_user_says_so", Missing::Adopting),
    ("times_without_a_zone_are_read_in_the_zone_that_is_named", Missing::Adopting),
    ("rows_of_one_id_are_one_user", Missing::Adopting),
    ("what_is_printed_about_a_table_of_another_tool_can_be_followed_word_by_word", Missing::Adopting),
];

/// Tests that kill a process, possibly during a transaction.
const KILLS: &[&str] = &[
    "killed_under_load_it_loses_nothing_and_does_nothing_twice",
    "a_service_that_is_killed_while_it_delivers_loses_nothing_and_keeps_the_order",
    "a_backfill_that_is_killed_again_and_again_goes_on_where_it_was",
    "owners_who_were_asked_before_a_kill_are_not_asked_again",
    "kinds_that_were_taken_in_before_a_kill_are_passed_over",
    "whoever_is_left_seals_after_the_leader_died",
];

/// Whether a test applies to MongoDB; if not, prints the reason.
pub(crate) fn applies(test: &str) -> bool {
    let missing = NOT_HERE.iter().find(|(name, _)| *name == test).map(|(_, missing)| missing.sentence());
    if let Some(sentence) = missing {
        // Not with a macro: the test harness swallows a macro's output when a test passes.
        _ = writeln!(io::stderr(), "not applicable to MongoDB: {sentence}");
    }
    missing.is_none()
}

/// Whether a test needs its own server.
pub(crate) fn kills(test: &str) -> bool {
    KILLS.contains(&test)
}

/// The URL of a database on a server.
pub(crate) fn url_of(server: &str, database: &str) -> String {
    let (hosts, parameters) = server.split_once('?').unwrap_or((server, ""));
    format!("{}/{database}?{parameters}", hosts.trim_end_matches('/'))
}

/// The address of the first host in a URL.
pub(crate) fn address_of(url: &str) -> (String, u16) {
    let place = url.split_once("://").map_or(url, |(_, rest)| rest);
    let place = &place[..place.find(['/', '?']).unwrap_or(place.len())];
    let first = place.rsplit('@').next().unwrap_or_default().split(',').next().unwrap_or_default();
    let (host, port) = first.split_once(':').unwrap_or((first, "27017"));
    (host.to_owned(), port.parse().expect("a port"))
}

/// The same URL with another host.
pub(crate) fn with_host(url: &str, host: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let who = rest[..end].rsplit_once('@').map(|(who, _)| format!("{who}@")).unwrap_or_default();
    format!("{scheme}://{who}{host}{}", &rest[end..])
}

/// The database that a URL names; `None` if the server does not answer.
pub(crate) async fn collections(url: &str) -> Option<Database> {
    // If the port is closed, the driver would retry again and again.
    if !url.starts_with("mongodb+srv:") {
        tokio::net::TcpStream::connect(address_of(url)).await.ok()?;
    }
    let mut options = ClientOptions::parse(url).await.ok()?;
    options.server_selection_timeout = Some(Duration::from_secs(3));
    options.max_pool_size = Some(2);
    let database = Client::with_options(options).ok()?.default_database()?;
    database.run_command(doc! { "ping": 1 }).await.ok()?;
    Some(database)
}

/// Drop the database that a URL names.
pub(crate) async fn dropped(url: &str) -> sqlx::Result<()> {
    let database = collections(url).await.ok_or(sqlx::Error::PoolTimedOut)?;
    database.drop().await.map_err(|error| sqlx::Error::Protocol(error.to_string()))
}

/// End sessions that killed clients have left open on a server, because the server would wait for them.
pub(crate) async fn end_sessions(url: &str) {
    let Some(database) = collections(&url_of(url, "admin")).await else { return };
    _ = database.run_command(doc! { "killAllSessions": [] }).await;
}

/// A server that is stopped on drop.
pub(crate) struct Server {
    child: Child,
    port: u16,
    _data: TempDir,
}

impl Server {
    /// Start a server. Returns `None` if `TEST_SECANTUSDB` is not set.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    fn start_with(more: &[&str]) -> Option<Self> {
        let program = env::var_os("TEST_SECANTUSDB")?;
        let data = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let child = Command::new(program)
            .args(["--port", &port.to_string(), "--cache-size", "64M", "--storage-path"])
            .arg(data.path().join("data"))
            .args(more)
            .current_dir(data.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("TEST_SECANTUSDB starts");
        let server = Self { child, port, _data: data };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_mins(1), "SecantusDB never listened");
            thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn a_server_without_transactions_is_refused_with_what_to_do() {
    let Some(server) = Server::start_with(&["--standalone"]) else {
        return skip("secantusdb", "TEST_SECANTUSDB is not set");
    };
    let Some(host) = Host::at(Keeper::Mongodb, server.url()) else { return };
    for command in ["migrate", "serve", "doctor"] {
        let refused = host.run(&[command]);
        assert_eq!(refused.code, Some(78), "{refused:?}");
        assert!((refused.stdout + &refused.stderr).contains("rs.initiate()"), "{command}");
    }
}

#[test]
fn a_collection_of_the_application_is_adopted() {
    let Some(host) = Host::with(Keeper::Mongodb) else { return };
    let at = bson::DateTime::from_millis(1_700_000_000_123);
    let customers = [
        doc! {
            "clerkId": "user_2d0000000000000000000000001", "email": "ada@example.com", "createdAt": at, "updatedAt": at,
            "profile": { "firstName": "Ada", "lastName": "Lovelace" }, "theme": "dark",
        },
        doc! { "clerkId": "user_2d0000000000000000000000002", "email": "bea@example.com", "profile": { "firstName": "Bea" } },
        doc! { "email": "guest@example.com" },
    ];
    host.connect().insert("customers", &customers);
    let adopt = |more: &[&str]| {
        let named = ["migrate", "adopt", "--from", "customers", "--column", "first_name=profile.firstName"];
        host.run(&[&named, more].concat())
    };
    let told = adopt(&["--dry-run"]).succeeded();
    assert!(told.contains("2  would be copied"), "{told}");
    assert_eq!(host.connect().collections(), ["customers"], "a dry run creates nothing");
    let told = adopt(&[]).succeeded();
    assert!(told.contains("2  copied"), "{told}");
    let rows = host.sql("SELECT clerk_id, email, first_name FROM users ORDER BY clerk_id");
    assert_eq!(
        rows,
        [
            ["user_2d0000000000000000000000001", "ada@example.com", "Ada"],
            ["user_2d0000000000000000000000002", "bea@example.com", "Bea"]
        ]
    );
    let again = adopt(&[]).succeeded();
    assert!(again.contains("0  copied") && again.contains("2  already here"), "{again}");
}

#[test]
fn what_stands_in_a_document_is_what_stands_in_the_row_of_its_mirror() {
    run(Keeper::Mongodb, async |world: World| {
        let metadata = json!({ "z": [1, 2.5, "three", null], "a": { "b": true } });
        world.deliver(&Event::created("user_1").set("public_metadata", metadata.clone())).await;
        let row = &world.rows("SELECT * FROM users").await[0];
        for (name, value) in
            [("email", "ada@example.com"), ("first_name", "Ada"), ("image_url", "https://img.clerk.com/ada")]
        {
            assert_eq!(row[name], value);
        }
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(row["public_metadata"].as_str().unwrap()).unwrap(),
            metadata
        );
        assert_eq!(row["created_at"], "2025-12-31T00:00:00.123Z");

        // The backend reads what was written to the row, and nothing else has changed.
        world.sql("ALTER TABLE users ADD COLUMN theme TEXT").await;
        world.sql("UPDATE users SET first_name = 'Augusta', theme = 'dark', banned = NOT false").await;
        let user = world.user("user_1").await.unwrap();
        assert_eq!(user.profile[user::FIRST_NAME].text(), Some("Augusta"));
        assert_eq!(user.profile[USER.field("banned")], Value::Bool(true));
        assert_eq!(user.created_at, Some(at(SIGN_UP)));
        assert_eq!(world.value("SELECT theme FROM users").await, "dark");
        world.sql("DELETE FROM users").await;
        assert!(world.user("user_1").await.is_none());
        world.sql("INSERT INTO users (clerk_id, email) VALUES ('user_2', 'Bea@example.com')").await;
        assert_eq!(world.text("user_2", user::EMAIL).await.as_deref(), Some("Bea@example.com"));
    });
}

#[test]
fn the_role_that_is_shown_names_every_collection() {
    let shown = include_str!("../../ops/mongodb/users.js");
    let others = ["counters", "_clerk_sync_migrations"];
    for name in TABLES.iter().map(|table| table.name).chain(others) {
        assert!(shown.contains(&format!("\"{name}\"")), "ops/mongodb/users.js lacks {name}");
    }
    let documented = include_str!("../../docs/mongodb.md");
    assert!(documented.contains("ops/mongodb/users.js"), "docs/mongodb.md does not mention it");
}

#[test]
fn every_test_that_is_named_here_exists() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let files = fs::read_dir(folder).expect("a directory").map(|file| file.expect("a file").path());
    let code: String = files.map(|file| fs::read_to_string(file).expect("text")).collect();
    for name in NOT_HERE.iter().map(|(name, _)| name).chain(KILLS) {
        assert!(code.contains(&format!("fn {name}(")), "test {name} does not exist");
    }
}
