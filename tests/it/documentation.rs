//! Compares the documents with the code that they describe.
//!
//! `docs/configuration.md` is generated: `UPDATE_DOCS=1 cargo nextest run documentation` writes it.

use std::{collections::BTreeMap, ffi::OsStr, fmt::Write, fs, path::Path};

use clap::Command;
use clerk_sync::{
    config::Settings,
    entity,
    model::{AuditAction, MessageType},
};
use serde_json::{Value, json};

use crate::service::{Host, Keeper};

/// A value that no variable accepts.
const NONSENSE: &str = "no 'such' thing=/";

const DATABASE: &str = "every command that opens the database";
const API: &str = "`serve`, `worker`, `dev`, `backfill`, `reconcile`, `ensure`, `erase`";
const SERVICE: &str = "`serve`, `worker`, `dev`";
const SERVE: &str = "`serve`";

/// The commands that use a variable, beyond checking it.
const USED_BY: &[(&str, &str)] = &[
    ("DATABASE_URL", "every command that opens the database; `dev` only as a flag"),
    ("DATABASE_SCHEMA", DATABASE),
    ("TABLE_PREFIX", DATABASE),
    ("DATABASE_MAX_CONNECTIONS", DATABASE),
    ("DATABASE_WAIT_SECONDS", SERVICE),
    ("CLERK_WEBHOOK_SIGNING_SECRET", "`serve`, `dev`, `sample --curl`, `send`"),
    ("CLERK_SECRET_KEY", API),
    ("CLERK_API_URL", API),
    ("CLERK_INSTANCE_ID", "`serve`, `worker`, `backfill`, `reconcile`, `ensure`"),
    ("RECONCILE_INTERVAL", SERVE),
    ("CATCH_UP_AFTER", SERVE),
    ("CATCH_UP_ON_EMPTY", SERVE),
    ("HOST", "`serve`, `dev`"),
    ("PORT", "`serve`, `dev`, `sample --curl`, `send`"),
    ("ADMIN_HOST", "`serve`, `worker`, `dev`, `healthcheck`"),
    ("ADMIN_PORT", "`serve`, `worker`, `dev`, `healthcheck`"),
    ("ADMIN_TOKEN", SERVICE),
    ("METRICS_TOKEN", SERVICE),
    ("SYNC_ENTITIES", "`serve`, `worker`, `dev`, `backfill`, `reconcile`"),
    ("SYNC_RAW", "`serve`, `worker`, `dev`, `backfill`, `reconcile`, `minimize`"),
    ("SYNC_FIELDS_", "`serve`, `worker`, `dev`, `backfill`, `reconcile`"),
    (
        "SYNC_FIELDS",
        "`serve`, `worker`, `dev`, `migrate adopt`, `backfill`, `reconcile`, `ensure`, `minimize`, `erase`",
    ),
    ("DELETION_POLICY", "`serve`, `worker`, `dev`, `reconcile`, `erase`"),
    ("DELETION_GRACE_DAYS", "`serve`, `worker`, `dev`, `reconcile`, `erase`"),
    (
        "UNIQUE_EMAIL",
        "`serve`, `worker`, `dev`, `migrate`, `migrate adopt`, `backfill`, `reconcile`, `ensure`, `erase`",
    ),
    ("ANONYMIZE_COLUMNS", "every command that opens the database, except `dev`"),
    (
        "CONFIG_FILE",
        "`serve`, `worker`, `sinks`, `outbox`, `erase`, `reconcile`, `backfill`; `dev` only as a flag",
    ),
    ("WEBHOOK_TOLERANCE_SECONDS", "`serve`, `dev`"),
    ("WEBHOOK_MAX_BODY_BYTES", "`serve`, `dev`"),
    ("WEBHOOK_ALLOWED_IPS", SERVE),
    ("TRUSTED_PROXIES", "`serve`, `dev`"),
    ("PROCESSING", SERVE),
    ("QUEUE_URL", "`serve`, `worker`, `doctor`, `stats`"),
    ("QUEUE_REPLICAS", "`serve`, `worker`, `doctor`"),
    ("QUEUE_DURABILITY", "`serve`, `worker`, `doctor`"),
    ("QUEUE_ENCRYPTION_KEY", "`serve`, `worker`"),
    ("IDLE", "`serve`, `worker`"),
    ("QUEUE_MAX_ATTEMPTS", SERVICE),
    ("PROCESSED_RETENTION_DAYS", "`serve`, `worker`, `dev`, `prune`"),
    ("DEAD_RETENTION_DAYS", "`serve`, `worker`, `dev`, `prune`"),
    ("SHUTDOWN_GRACE_SECONDS", SERVICE),
    ("LOG_FORMAT", DATABASE),
    ("RUST_LOG", DATABASE),
    ("SENTRY_DSN", DATABASE),
    ("SENTRY_ENVIRONMENT", DATABASE),
    ("SENTRY_RELEASE", DATABASE),
];

/// The text before and after the variables.
const HEAD: &str = "\
# Configuration

<!-- Generated from the code by `UPDATE_DOCS=1 cargo nextest run documentation`; a test compares the two. -->

Every setting is an environment variable, a flag of every command, or a line `NAME=value` in a `.env` file, in the working
directory or the nearest directory above it. A flag overrides the environment, and the environment overrides `.env`. A
variable that is set but empty counts as not set.

- **To try clerk-sync, you need no settings**: run `clerk-sync dev --sample`. `serve` needs `CLERK_WEBHOOK_SIGNING_SECRET`. Set
  `DATABASE_URL` to store the users in your own database.
- **Secrets can be files**: if a second variable `…_FILE` is listed below, it can name a file that holds the value. White
  space around the value is ignored. Setting both variables is an error.
- **Lines of `.env` that cannot be parsed** are all reported together, by line number, never with their text. Only `doctor`,
  `config`, `completions` and `man` then continue. A name that resembles one of these settings causes a warning, even with
  the prefix `CLERK_SYNC_`. All other names belong to your application.
- **Every command checks all settings** at start-up, except `sample`, `send`, `completions` and `man`. It reports all errors
  together and exits with 78. Settings are read only at start-up: restart to change one.
- **`clerk-sync config`** prints the resulting settings, without secrets, and the source of each value. Then it lists what
  `serve` would refuse, and exits with 78 if it would refuse anything. Use `--json` in programs.

[.env.example](../.env.example) lists the same settings as a file to copy. `clerk-sync COMMAND -h` lists only the
flags that belong to one command; `--help` lists all.
";

const TAIL: &str = "
## Sinks

Sinks, the systems that clerk-sync notifies of changes, are configured in a separate file: `clerk-sync.toml`, or the file that
`CONFIG_FILE` names. See [sinks.md](sinks.md). That file never contains secrets. It names the files or variables that hold
them; the variables can be in `.env`.

## Variables of other projects

| variable | project | effect |
|---|---|---|
| `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID` | systemd | `serve`, `worker` and `dev` report to systemd that they are ready, alive and stopping; see [operations.md](operations.md) |
| `OTEL_…` | OpenTelemetry | which traces are exported, and where to; see [tracing.md](tracing.md) |
| `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` | many programs | the proxy for all outgoing requests: Clerk's Backend API, sinks, collectors, Sentry |
";

#[test]
fn the_page_of_the_configuration_is_what_the_code_says() {
    let page = configuration();
    let path = root().join("docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(written.lines()).find(|(made, written)| made != written);
    assert!(
        page == written,
        "docs/configuration.md is out of date, at {differs:?}: run UPDATE_DOCS=1 cargo nextest run documentation"
    );
}

/// The whole page.
fn configuration() -> String {
    // A host without any configuration.
    let host = Host::with(Keeper::Sqlite).unwrap();
    let defaults = defaults(&host);
    let allowed = allowed(&host);
    let told = told();
    let used_by: BTreeMap<&str, &str> = USED_BY.iter().copied().collect();

    let mut page = HEAD.to_owned();
    let definition = Settings::augment_args(Command::new("clerk-sync"));
    let mut heading = "";
    for argument in definition.get_arguments() {
        let variable = argument.get_env().unwrap().to_str().unwrap();
        // Listed with the variable whose value the file holds.
        if variable.ends_with("_FILE") && variable != "CONFIG_FILE" {
            continue;
        }
        let section = argument.get_help_heading().unwrap();
        if section != heading {
            heading = section;
            write!(page, "\n## {heading}\n").unwrap();
        }
        let short = argument.get_help().unwrap().to_string();
        let short = short.split(" [default").next().unwrap();
        let explanation =
            told.get(variable).cloned().unwrap_or_else(|| format!("{short}.")).replace('<', "&lt;");
        let flag = argument.get_long().unwrap();
        let in_file = format!("{variable}_FILE");
        let file = definition
            .get_arguments()
            .find(|other| other.get_env().and_then(OsStr::to_str) == Some(in_file.as_str()))
            .map(|other| format!("; as a file `{in_file}`, `--{}`", other.get_long().unwrap()));
        write!(page, "\n### `{variable}`\n\n{explanation}\n\n").unwrap();
        writeln!(page, "- flag: `--{flag}`{}", file.unwrap_or_default()).unwrap();
        writeln!(page, "- default: {}", defaults[variable]).unwrap();
        if let Some(allowed) = allowed.get(variable) {
            writeln!(page, "- allowed: {allowed}").unwrap();
        }
        let kept = used_by.get("SYNC_FIELDS_").filter(|_| variable.starts_with("SYNC_FIELDS_"));
        let users = used_by.get(variable).or(kept);
        let users = users.unwrap_or_else(|| panic!("which commands use {variable}? Add it to USED_BY"));
        writeln!(page, "- used by: {users}").unwrap();
    }
    page + TAIL
}

/// The value of each variable if it is not set.
fn defaults(host: &Host) -> BTreeMap<String, String> {
    let shown = host.command(&["config", "--json"]).env_clear().output().unwrap();
    let shown: BTreeMap<String, Value> = serde_json::from_slice(&shown.stdout).unwrap();
    let default = |value: &Value| match value["value"].as_str() {
        Some(text) if text.contains(' ') => text.to_owned(),
        Some(text) => format!("`{text}`"),
        None => "none".to_owned(),
    };
    shown.into_iter().map(|(variable, value)| (variable, default(&value))).collect()
}

/// What the program reports as allowed when it is given nonsense.
fn allowed(host: &Host) -> BTreeMap<String, String> {
    let definition = Settings::augment_args(Command::new("clerk-sync"));
    let mut command = host.command(&["config"]);
    command.env_clear();
    for argument in definition.get_arguments() {
        if !argument.get_env().unwrap().to_str().unwrap().ends_with("_FILE") {
            command.arg(format!("--{}={NONSENSE}", argument.get_long().unwrap()));
        }
    }
    let report = String::from_utf8(command.output().unwrap().stderr).unwrap();
    let mut allowed = BTreeMap::new();
    for line in report.lines().filter_map(|line| line.strip_prefix("  ")) {
        let (variable, _) = line.split_once(' ').unwrap();
        let (_, what) = line.split_once("allowed: ").unwrap_or_else(|| panic!("{line} says what is allowed"));
        allowed.insert(variable.to_owned(), what.to_owned());
    }
    allowed
}

/// The text that `.env.example` has for each variable, if it has one.
fn told() -> BTreeMap<String, String> {
    let example = fs::read_to_string(root().join(".env.example")).unwrap();
    let mut told = BTreeMap::new();
    let mut lines: Vec<&str> = Vec::new();
    for line in example.lines() {
        if let Some(line) = line.strip_prefix("# ") {
            lines.push(line);
        } else if let Some((variable, _)) = line.strip_prefix('#').and_then(|line| line.split_once('=')) {
            if !lines.is_empty() {
                told.insert(variable.to_owned(), lines.join("\n"));
            }
            lines.clear();
        } else {
            lines.clear();
        }
    }
    told
}

#[test]
fn the_page_of_the_tables_names_every_index_of_users() {
    let page = fs::read_to_string(root().join("docs/schema.md")).unwrap();
    let files = fs::read_dir(root().join("migrations/postgres")).unwrap();
    let migrations: String = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    let names = migrations.split("INDEX IF NOT EXISTS ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once(' ')?;
        rest.trim_start().starts_with("ON users ").then_some(name)
    });
    let names: Vec<&str> = names.collect();
    assert!(names.contains(&"users_email"), "{names:?}");
    for name in names {
        assert!(page.contains(&format!("| `{name}` |")), "docs/schema.md describes index {name}");
    }
}

#[test]
fn the_schema_of_messages_allows_those_of_every_kind() {
    let page = fs::read_to_string(root().join("docs/messages.md")).unwrap();
    let schema = page.split("```json\n").find(|block| block.contains("$schema")).unwrap();
    let schema: Value = serde_json::from_str(schema.split("```").next().unwrap()).unwrap();
    let types: Vec<String> =
        entity::ALL.iter().flat_map(|entity| MessageType::of(entity)).map(MessageType::name).collect();
    assert_eq!(schema["properties"]["type"]["enum"], json!(types));
    let pattern = schema["if"]["properties"]["type"]["pattern"].as_str().unwrap();
    assert_eq!(pattern, r"\.updated$", "an update of any kind has changed_fields");
}

#[test]
fn the_page_of_the_tables_names_what_is_written_of_every_kind() {
    let page = fs::read_to_string(root().join("docs/schema.md")).unwrap();
    let actions = [AuditAction::Created, AuditAction::Updated, AuditAction::Deleted, AuditAction::Revealed];
    for entity in entity::ALL {
        let names = actions.map(|action| action.name(entity));
        for name in names.into_iter().chain(MessageType::of(entity).map(MessageType::name)) {
            assert!(page.contains(&format!("`{name}`")), "docs/schema.md names {name}");
        }
    }
}

#[test]
fn every_link_in_the_documents_leads_to_a_file() {
    let mut pages: Vec<_> = [root().to_owned(), root().join("docs"), root().join("docs/design")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    let mut links = 0;
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            links += 1;
            let there = page.parent().unwrap().join(file).exists();
            assert!(there, "{}: {target} does not exist", page.display());
        }
    }
    assert!(links > 20, "only {links} links were found");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
