//! The rules of the house, which no compiler checks: who imports whom, and what stands in several places at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use clerk_sync::{config::Settings, store::schema::TABLES, telemetry};

/// Data meets the rooms in this order, and each imports only rooms to its left.
const ROOMS: [&str; 7] = ["model", "clerk", "store", "sync", "work", "http", "cli"];

#[test]
fn a_room_imports_only_rooms_to_its_left() {
    let place = |room: &str| ROOMS.iter().position(|name| *name == room);
    let mut seen = 0;
    for source in sources() {
        for import in imports(&source.code) {
            seen += 1;
            let allowed = match (source.room.as_str(), import.as_str()) {
                (room, import) if room == import => true,
                // Leaves: anybody may speak to the log; only the commands know the configuration, which in turn
                // knows what it is made of.
                ("telemetry", _) => false,
                (_, "telemetry") => true,
                ("config", import) => ["model", "clerk"].contains(&import),
                (room, "config") => room == "cli",
                (room, import) => match (place(room), place(import)) {
                    (Some(room), Some(import)) => import < room,
                    _ => false,
                },
            };
            assert!(allowed, "{} imports crate::{import}", source.path.display());
        }
    }
    assert!(seen > 50, "only {seen} imports were found");
}

#[test]
fn every_room_is_known() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared: Vec<&str> =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let expected: Vec<&str> = ROOMS.into_iter().chain(["config", "telemetry"]).collect();
    assert_eq!(declared, expected, "in the order in which data meets them");
}

#[test]
fn only_stores_speak_sql() {
    for source in sources() {
        // A database URL is understood by the driver's own parser.
        if !["store", "config"].contains(&source.room.as_str()) {
            assert!(!source.code.contains("sqlx::"), "{} uses sqlx", source.path.display());
        }
    }
}

#[test]
fn only_the_room_of_rules_writes_users() {
    for verb in ["insert_users", "update_users", "mark_users", "delete_users", "anonymize_users"] {
        for source in sources() {
            let writes = source.code.contains(&format!(".{verb}("));
            let may = source.path.ends_with("sync/apply.rs") || source.room == "store";
            assert!(!writes || may, "{} calls {verb}", source.path.display());
        }
    }
}

#[test]
fn only_the_commands_know_what_time_it_is() {
    for source in sources() {
        if source.room != "cli" {
            for clock in ["Utc::now", "SystemTime::now"] {
                assert!(!source.code.contains(clock), "{} asks {clock}", source.path.display());
            }
        }
    }
}

#[test]
fn the_example_lists_exactly_the_variables_that_are_read() {
    let example = fs::read_to_string(root().join(".env.example")).unwrap();
    let listed: Vec<&str> = example
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name)
        .filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .collect();
    let read = Settings::variables();
    assert_eq!(listed.len(), listed.iter().collect::<BTreeSet<_>>().len(), "each once");
    assert_eq!(
        listed.into_iter().collect::<BTreeSet<_>>(),
        read.iter().map(String::as_str).collect::<BTreeSet<_>>()
    );
}

#[test]
fn the_migrations_of_all_keepers_make_the_same_tables() {
    let expected: BTreeMap<String, Vec<String>> = TABLES
        .iter()
        .map(|table| {
            (table.name.to_owned(), table.columns.iter().map(|(name, _)| (*name).to_owned()).collect())
        })
        .collect();
    let postgres = migrations("postgres");
    let sqlite = migrations("sqlite");
    assert_eq!(postgres.keys().collect::<Vec<_>>(), sqlite.keys().collect::<Vec<_>>(), "the same files");
    for (keeper, files) in [("postgres", postgres), ("sqlite", sqlite)] {
        let sql: String = files.into_values().collect();
        assert_eq!(tables(&sql), expected, "{keeper}");
        assert!(sql.contains(" signups_by_week AS"), "{keeper} has the view");
    }
}

#[test]
fn metrics_have_exactly_the_documented_names() {
    let documented = [
        "clerk_sync_webhooks_total",
        "clerk_sync_rejections_total",
        "clerk_sync_webhook_duration_seconds",
        "clerk_sync_commit_batch_size",
        "clerk_sync_commit_duration_seconds",
        "clerk_sync_last_event_timestamp_seconds",
        "clerk_sync_queue_depth",
        "clerk_sync_queue_oldest_seconds",
        "clerk_sync_queue_processed_total",
        "clerk_sync_erasure_failures_total",
        "clerk_sync_erasures_open",
        "clerk_sync_erasure_oldest_open_seconds",
        "clerk_sync_audit_unsealed_lines",
        "clerk_sync_audit_unsealed_oldest_seconds",
        "clerk_sync_api_requests_total",
        "clerk_sync_backfill_users_total",
        "clerk_sync_reconcile_drift",
        "clerk_sync_reconcile_last_success_timestamp_seconds",
        "clerk_sync_catch_up_failures_total",
        "clerk_sync_outbox_depth",
        "clerk_sync_outbox_oldest_seconds",
        "clerk_sync_deliveries_total",
        "clerk_sync_delivery_duration_seconds",
    ];
    let named = [
        telemetry::WEBHOOKS,
        telemetry::REJECTIONS,
        telemetry::WEBHOOK_DURATION,
        telemetry::COMMIT_BATCH_SIZE,
        telemetry::COMMIT_DURATION,
        telemetry::LAST_EVENT_TIMESTAMP,
        telemetry::QUEUE_DEPTH,
        telemetry::QUEUE_OLDEST,
        telemetry::QUEUE_PROCESSED,
        telemetry::ERASURE_FAILURES,
        telemetry::ERASURES_OPEN,
        telemetry::ERASURE_OLDEST,
        telemetry::AUDIT_UNSEALED,
        telemetry::AUDIT_UNSEALED_OLDEST,
        telemetry::API_REQUESTS,
        telemetry::BACKFILL_USERS,
        telemetry::RECONCILE_DRIFT,
        telemetry::RECONCILE_LAST_SUCCESS,
        telemetry::CATCH_UP_FAILURES,
        telemetry::OUTBOX_DEPTH,
        telemetry::OUTBOX_OLDEST,
        telemetry::DELIVERIES,
        telemetry::DELIVERY_DURATION,
    ];
    assert_eq!(named, documented);
    // And nobody makes others up on the way.
    for source in sources() {
        for name in source.code.split("\"clerk_sync_").skip(1).filter_map(|rest| rest.split('"').next()) {
            let name = format!("clerk_sync_{name}");
            assert!(documented.contains(&name.as_str()), "{} names {name}", source.path.display());
        }
    }
}

#[test]
fn every_room_says_what_it_is_for() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{} has no head", source.path.display());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the library.
struct Source {
    path: PathBuf,
    room: String,
    text: String,
    /// Without comments and without unit tests, which may reach further.
    code: String,
}

/// Every file but the two that only join the rooms, and unit tests in files of their own.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut sources = Vec::new();
    for path in files(&src) {
        let inside = path.strip_prefix(&src).unwrap();
        if path.extension().is_none_or(|extension| extension != "rs")
            || path.file_name().is_some_and(|name| name == "tests.rs")
            || ["lib.rs", "main.rs"].iter().any(|name| inside == Path::new(name))
        {
            continue;
        }
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = room.strip_suffix(".rs").unwrap_or(room).to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = without_tests(&text)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        sources.push(Source { path, room, text, code });
    }
    assert!(sources.len() > 40, "only {} files were found", sources.len());
    sources
}

/// The text without modules that only tests see.
fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\n#[cfg(test)]\n") {
        code.push_str(before);
        // Such a module ends with the first brace that is not indented; one in a file of its own with its line.
        let end = if after.lines().next().is_some_and(|line| line.ends_with(';')) { ";\n" } else { "\n}\n" };
        rest = after.split_once(end).map_or("", |(_, rest)| rest);
        code.push('\n');
    }
    code + rest
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The rooms behind every `crate::…`, also behind `crate::{…}`.
fn imports(code: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let mut rooms = Vec::new();
    for path in code.split("crate::").skip(1) {
        let Some(group) = path.strip_prefix('{') else {
            rooms.push(name(path));
            continue;
        };
        let mut depth = 0;
        let mut item = 0;
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    rooms.push(name(&group[item..at]));
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    rooms.push(name(&group[item..at]));
                    item = at + 1;
                }
                _ => {}
            }
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

/// The files of a keeper by name.
fn migrations(keeper: &str) -> BTreeMap<String, String> {
    let folder = root().join("migrations").join(keeper);
    files(&folder)
        .into_iter()
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// The columns of every table that this SQL makes, one to a line.
fn tables(sql: &str) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut table: Option<String> = None;
    for line in sql.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        if let Some(rest) = line.strip_prefix("CREATE TABLE IF NOT EXISTS ") {
            table = rest.split_whitespace().next().map(ToOwned::to_owned);
        } else if let Some(rest) = line.strip_prefix("ALTER TABLE ") {
            let mut words = rest.split_whitespace().filter(|word| !["IF", "NOT", "EXISTS"].contains(word));
            let name = words.next().unwrap().to_owned();
            if let (Some("ADD"), Some("COLUMN"), Some(column)) = (words.next(), words.next(), words.next()) {
                tables.entry(name).or_default().push(column.to_owned());
            }
        } else if line.starts_with(')') {
            table = None;
        } else if let (Some(table), Some(column)) = (&table, words.next())
            && !["--", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"].contains(&column)
        {
            tables.entry(table.clone()).or_default().push(column.to_owned());
        }
    }
    tables
}
