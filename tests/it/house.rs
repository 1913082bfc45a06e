//! Project rules that no compiler checks: which module may import which, and facts that are stated in several places.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clerk_sync::{config::Settings, store::schema::TABLES, sync::reconcile::DriftKind, telemetry};

/// The modules in the order in which data passes through them. Each imports only modules to its left.
const ROOMS: [&str; 9] = ["model", "entity", "clerk", "store", "stream", "sync", "work", "http", "cli"];

#[test]
fn a_room_imports_only_rooms_to_its_left() {
    let place = |room: &str| ROOMS.iter().position(|name| *name == room);
    let mut seen = 0;
    for source in sources() {
        for import in imports(&source.code) {
            seen += 1;
            let allowed = match (source.room.as_str(), import.as_str()) {
                // A separate crate, which Cargo prevents from importing ours.
                ("fake-clerk", _) => true,
                (room, import) if room == import => true,
                // Leaf modules: every module may log and create HTTP clients. Only the commands use the configuration, which
                // imports the modules that it configures.
                ("http_client", _) => false,
                (_, "http_client") => true,
                ("telemetry", _) => false,
                (_, "telemetry") => true,
                ("config", import) => ["model", "entity", "clerk", "stream"].contains(&import),
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
    let expected: Vec<&str> = ROOMS.into_iter().chain(["config", "http_client", "telemetry"]).collect();
    assert_eq!(declared, expected, "in the order in which data passes through them");
}

#[test]
fn only_the_commands_know_the_fake() {
    for source in sources() {
        let knows = source.code.contains("fake_clerk::");
        assert!(!knows || source.room == "cli", "{} uses the fake", source.path.display());
    }
}

#[test]
fn only_stores_speak_sql() {
    for source in sources() {
        // The driver's own parser reads a database URL.
        if !["store", "config"].contains(&source.room.as_str()) {
            assert!(!source.code.contains("sqlx::"), "{} uses sqlx", source.path.display());
        }
    }
}

#[test]
fn only_the_room_of_rules_writes_objects() {
    for verb in
        ["insert", "update", "mark", "erase", "mark_children"].map(|verb| format!("transaction.{verb}"))
    {
        for source in sources() {
            let writes = source.code.contains(&format!("{verb}("));
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
        .filter(|name| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        })
        .collect();
    let read = Settings::variables();
    assert_eq!(listed.len(), listed.iter().collect::<BTreeSet<_>>().len(), "each table once");
    assert_eq!(
        listed.into_iter().collect::<BTreeSet<_>>(),
        read.iter().map(String::as_str).collect::<BTreeSet<_>>()
    );
}

#[test]
fn the_migrations_of_all_keepers_make_the_same_tables() {
    // A column that was added later is at the end of its table.
    let sorted = |mut columns: Vec<String>| {
        columns.sort();
        columns
    };
    let expected: BTreeMap<String, Vec<String>> = TABLES
        .iter()
        .map(|table| {
            (
                table.name.to_owned(),
                sorted(table.columns.iter().map(|(name, _)| (*name).to_owned()).collect()),
            )
        })
        .collect();
    let postgres = migrations("postgres");
    let sqlite = migrations("sqlite");
    assert_eq!(postgres.keys().collect::<Vec<_>>(), sqlite.keys().collect::<Vec<_>>(), "the same files");
    for (keeper, files) in [("postgres", postgres), ("sqlite", sqlite)] {
        let sql: String = files.into_values().collect();
        let made: BTreeMap<_, _> =
            tables(&sql).into_iter().map(|(table, columns)| (table, sorted(columns))).collect();
        assert_eq!(made, expected, "{keeper}");
        assert!(sql.contains(" signups_by_week AS"), "{keeper} has the view");
    }
}

#[test]
fn the_documentation_lists_exactly_the_metrics_there_are() {
    let text = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let documented: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            // Names of labels are in backticks; their values are not.
            let labels: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
            format!("{} {} {}", cells[1].trim_matches('`'), cells[2], labels.join(","))
        })
        .collect();
    let exported: Vec<String> = telemetry::METRICS
        .iter()
        .map(|metric| {
            let unit = match metric.unit().as_str() {
                "count" => String::new(),
                unit => format!(", {unit}"),
            };
            format!("{} {}{unit} {}", metric.name, metric.kind, metric.labels.join(","))
        })
        .collect();
    assert_eq!(documented, exported, "in the same order");
    for value in [
        &telemetry::REJECTION_REASONS[..],
        &telemetry::QUEUE_STATES,
        &telemetry::QUEUE_OUTCOMES,
        &telemetry::DELIVERY_OUTCOMES,
        &DriftKind::ALL.map(DriftKind::name),
    ]
    .concat()
    {
        assert!(text.contains(value), "{value} is not documented");
    }
}

#[test]
fn every_metric_is_counted_somewhere_and_with_its_labels() {
    let constants = fs::read_to_string(root().join("src/telemetry.rs")).unwrap();
    let constants: BTreeMap<&str, &str> = constants
        .lines()
        .filter_map(|line| {
            let (constant, declared) = line.strip_prefix("    ")?.split_once(": ")?;
            let (kind, name) = declared.split_once(" \"")?;
            let is_metric = ["counter", "gauge", "histogram"].contains(&kind);
            is_metric.then_some((constant, name.split('"').next()?))
        })
        .collect();
    let mut counted = BTreeSet::new();
    for source in sources() {
        for kind in ["counter", "gauge", "histogram"] {
            for call in source.code.split(&format!("{kind}!(")).skip(1) {
                let arguments = arguments(call);
                let first = arguments.split(',').next().unwrap().trim().trim_start_matches("telemetry::");
                if first == "*name" {
                    // The loop that describes all metrics.
                    continue;
                }
                let name = constants.get(first).unwrap_or_else(|| panic!("{first} is not a constant"));
                let metric = telemetry::METRICS.iter().find(|metric| metric.name == *name).expect(name);
                // The text after the last arrow is only a value.
                let arrows: Vec<&str> = arguments.split("=>").collect();
                let labels: Vec<&str> = arrows[..arrows.len() - 1]
                    .iter()
                    .map(|before| before.trim_end().trim_end_matches('"').rsplit('"').next().unwrap())
                    .collect();
                assert_eq!((kind, &labels[..]), (metric.kind, metric.labels), "{name}");
                counted.insert(*name);
            }
        }
        // Metric names are used only through their constants.
        for name in source.code.split("\"clerk_sync_").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(source.room == "telemetry", "{} names clerk_sync_{name}", source.path.display());
        }
    }
    let all: BTreeSet<&str> = telemetry::METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(counted, all);
}

#[test]
fn every_alert_has_an_entry_in_the_runbook() {
    let alerts = fs::read_to_string(root().join("ops/prometheus/alerts.yml")).unwrap();
    let tests = ["alerts_test.yml", "alerts_days_test.yml"]
        .map(|name| fs::read_to_string(root().join("ops/prometheus").join(name)).unwrap())
        .concat();
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).unwrap();
    let headings: Vec<&str> =
        runbook.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' ')).collect();
    let rules: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    assert!(rules.len() > 15, "only {} alerts were found", rules.len());
    for rule in rules {
        let name = rule.lines().next().unwrap().trim();
        let address = format!("docs/runbook.md#{}", name.to_lowercase());
        assert!(rule.contains(&format!("runbook_url: {address}")), "{name} does not lead to {address}");
        assert!(headings.contains(&name), "{name} is not in the runbook");
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} has no test");
        for needed in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(needed), "{name} has no {needed}");
        }
    }
}

#[test]
fn every_command_of_the_runbook_exists() {
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).unwrap();
    let lines = runbook.lines().filter(|line| line.trim_start().starts_with("clerk-sync "));
    let spans = runbook.split('`').skip(1).step_by(2).filter(|span| !span.contains('\n'));
    let mut seen = BTreeSet::new();
    for command in lines.chain(spans) {
        let Some((_, words)) = command.split_once("clerk-sync ") else { continue };
        let words = words.split(['#', '>', ';']).next().unwrap().trim().replace('…', "1");
        // The arguments are checked before the help is printed.
        let tried = Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
            .args(words.split_whitespace())
            .arg("--help")
            .output()
            .unwrap();
        assert!(tried.status.success(), "clerk-sync {words}: {}", String::from_utf8_lossy(&tried.stderr));
        seen.insert(words);
    }
    assert!(seen.len() > 20, "only {seen:?} were found");
}

#[test]
fn every_room_says_what_it_is_for() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{} has no module comment", source.path.display());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A source file of the library or of the fake.
struct Source {
    path: PathBuf,
    room: String,
    text: String,
    /// The code without comments and unit tests; unit tests may import more.
    code: String,
}

/// Every source file except `lib.rs`, `main.rs` and unit tests in their own files. The fake counts as one module.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for path in ["src", "fake-clerk/src"].map(|folder| files(&root().join(folder))).concat() {
        let inside = path.strip_prefix(root()).unwrap();
        if path.extension().is_none_or(|extension| extension != "rs")
            || path.file_name().is_some_and(|name| name == "tests.rs")
            || ["src/lib.rs", "src/main.rs"].iter().any(|name| inside == Path::new(name))
        {
            continue;
        }
        let room =
            inside.components().find(|part| part.as_os_str() != "src").unwrap().as_os_str().to_str().unwrap();
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

/// The text without modules that are compiled only for tests.
fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\n#[cfg(test)]\n") {
        code.push_str(before);
        // Such a module ends at the first closing brace without indentation. A module in its own file ends with its line.
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

/// The modules of every `crate::…`, including `crate::{…}`.
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

/// The text up to the parenthesis that closes the call.
fn arguments(call: &str) -> &str {
    let mut depth = 0;
    let end = call.char_indices().find(|(_, character)| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        depth < 0
    });
    end.map_or(call, |(end, _)| &call[..end])
}

/// The migration files of a backend, by name.
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

/// The columns of every table that this SQL creates, one per line.
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
            // Names that are SQL keywords are quoted.
            tables.entry(table.clone()).or_default().push(column.trim_matches('"').to_owned());
        }
    }
    tables
}
