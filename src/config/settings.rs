//! Declares every variable once: its name, its flag and its help. Values are text and not checked yet.
#![expect(clippy::doc_markdown, reason = "comments are the text of --help, where backticks would be noise")]

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use clap::{Arg, ArgMatches, Args, Command, parser::ValueSource};

use super::{Dotenv, Origin, mistake::flag, values::joined};
use crate::{
    entity::{self, USER},
    model::Entity,
};

/// The values from the command line and the environment. Flags win. [`resolve`](Self::resolve) checks the values.
#[derive(Clone, Default)]
pub struct Settings {
    given: BTreeMap<String, (String, Origin)>,

    /// Whether to ignore a `clerk-sync.toml` that no setting names.
    pub(super) no_default_config_file: bool,

    /// What the `.env` file contained; its variables are in `given`.
    pub(super) dotenv: Dotenv,
}

impl Settings {
    /// Adds every variable as a flag of a command and of its subcommands. There are many, so `-h` hides them.
    pub fn augment_args(command: Command) -> Command {
        let command = ServiceVariables::augment_args(fields_of_kinds(SyncVariables::augment_args(command)));
        command.mut_args(|argument| match argument.get_env() {
            Some(_) => argument.hide_env_values(true).hide_short_help(true).global(true),
            None => argument,
        })
    }

    /// The settings, from the matches of the whole command line.
    pub fn from_arg_matches(matches: &ArgMatches, dotenv: Dotenv) -> Self {
        let given = declared().filter_map(|(variable, argument)| {
            let id = argument.get_id().as_str();
            let text = matches.get_one::<String>(id)?.trim();
            let origin = match matches.value_source(id)? {
                ValueSource::CommandLine => Origin::CommandLine(flag(variable)),
                _ if dotenv.environment.iter().any(|name| name == variable) => Origin::Environment,
                _ => Origin::Dotenv,
            };
            // An empty value counts as unset, because compose files and CI systems cannot unset a variable.
            (!text.is_empty()).then(|| (variable.to_owned(), (text.to_owned(), origin)))
        });
        Self { given: given.collect(), no_default_config_file: false, dotenv }
    }

    /// Every variable, in the order of the documentation.
    pub fn variables() -> Vec<String> {
        declared().map(|(variable, _)| variable.to_owned()).collect()
    }

    /// The value of a variable, if it is set.
    pub fn get(&self, variable: &str) -> Option<&str> {
        debug_assert!(declared().any(|(known, _)| known == variable), "{variable} is not declared");
        self.given.get(variable).map(|(text, _)| text.as_str())
    }

    /// Sets a value as if it came from the environment.
    pub fn set(&mut self, variable: &str, text: impl Into<String>) {
        self.given.insert(variable.to_owned(), (text.into(), Origin::Environment));
    }

    /// Removes the value of a variable.
    pub fn unset(&mut self, variable: &str) {
        self.given.remove(variable);
    }

    /// Ignores the database, queue and sinks that come from the environment, `.env` or the working directory. Only those
    /// on the command line count. For commands that write samples, which must never reach production.
    ///
    /// Returns the variables that were set and are now ignored.
    pub fn ignore_database_of_environment(&mut self) -> Vec<&'static str> {
        self.no_default_config_file = true;
        let mut ignored =
            vec!["DATABASE_URL", "DATABASE_URL_FILE", "CONFIG_FILE", "QUEUE_URL", "QUEUE_URL_FILE"];
        ignored.retain(|variable| {
            let given = self.given.get(*variable);
            given.is_some_and(|(_, origin)| !matches!(origin, Origin::CommandLine(_)))
        });
        for variable in &ignored {
            self.unset(variable);
        }
        ignored
    }

    /// The source of a variable's value.
    pub(super) fn origin(&self, variable: &str) -> Origin {
        let file = format!("{variable}_FILE");
        match self.given.get(variable) {
            Some((_, origin)) => origin.clone(),
            None if self.given.contains_key(&file) => Origin::File(file),
            // The file has a line for it that cannot be understood.
            None if self.dotenv.mistakes.iter().any(|mistake| mistake.is_about(variable)) => Origin::Dotenv,
            None => Origin::Default,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settings(redacted)")
    }
}

/// Every variable with its flag.
fn declared() -> impl Iterator<Item = (&'static str, &'static Arg)> {
    static COMMAND: LazyLock<Command> = LazyLock::new(|| Settings::augment_args(Command::new("clerk-sync")));
    COMMAND.get_arguments().filter_map(|argument| Some((argument.get_env()?.to_str()?, argument)))
}

/// The variable that holds the allow-list of a kind.
pub fn fields_variable(entity: &Entity) -> String {
    match entity.kind {
        kind if kind == USER.kind => "SYNC_FIELDS".to_owned(),
        kind => format!("SYNC_FIELDS_{}", kind.to_ascii_uppercase()),
    }
}

/// The allow-lists of every kind except users.
fn fields_of_kinds(command: Command) -> Command {
    let others = entity::ALL.iter().filter(|entity| ***entity != USER);
    others.fold(command, |command, entity| {
        // clap needs names that live as long as the program.
        let variable: &str = fields_variable(entity).leak();
        let flag: &str = flag(variable).leak().trim_start_matches("--");
        let defaults = joined(entity.fields().filter(|field| field.by_default), ",");
        let argument = Arg::new(variable).long(flag).env(variable);
        let help = format!("Fields of {} to sync [default: {defaults}]", entity.table);
        command.arg(argument.value_name("FIELDS").help(help).help_heading("Other objects"))
    })
}

// What is stored, and its source. A field's comment is its text in `--help`; its name gives the variable and the flag. The
// struct has no doc comment, because clap would use it as the description of the command.
#[derive(Args)]
#[group(skip)]
struct SyncVariables {
    /// Database URL: postgres://…, postgresql://…, mysql://…, mariadb://…, mongodb://…, mongodb+srv://… or sqlite://… [default: sqlite://clerk-sync.db]
    #[arg(long, env, value_name = "URL", help_heading = "Database")]
    database_url: Option<String>,

    /// File that holds the database URL
    #[arg(long, env, value_name = "PATH", help_heading = "Database")]
    database_url_file: Option<String>,

    /// PostgreSQL: schema of all tables, created if missing [default: clerk]
    #[arg(long, env, value_name = "NAME", help_heading = "Database")]
    database_schema: Option<String>,

    /// SQLite, MySQL, MariaDB and MongoDB: prefix of all table names [default: none]
    #[arg(long, env, value_name = "PREFIX", help_heading = "Database")]
    table_prefix: Option<String>,

    /// Maximum number of database connections [default: 8]
    #[arg(long, env, value_name = "N", help_heading = "Database")]
    database_max_connections: Option<String>,

    /// Seconds to wait for the database at start [default: 30]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Database")]
    database_wait_seconds: Option<String>,

    /// Queries when there is nothing to do: normal, or quiet, which lets the database sleep [default: normal]
    #[arg(long, env, value_name = "HOW", help_heading = "Database")]
    idle: Option<String>,

    /// Signing secret of the webhook endpoint, whsec_…; separate several by commas or spaces
    #[arg(long, env, value_name = "SECRETS", help_heading = "Clerk")]
    clerk_webhook_signing_secret: Option<String>,

    /// File that holds the signing secret
    #[arg(long, env, value_name = "PATH", help_heading = "Clerk")]
    clerk_webhook_signing_secret_file: Option<String>,

    /// Key for Clerk's Backend API, sk_test_… or sk_live_…
    #[arg(long, env, value_name = "KEY", help_heading = "Clerk")]
    clerk_secret_key: Option<String>,

    /// File that holds the key for the Backend API
    #[arg(long, env, value_name = "PATH", help_heading = "Clerk")]
    clerk_secret_key_file: Option<String>,

    /// Address of the Backend API [default: Clerk's own]
    #[arg(long, env, value_name = "URL", help_heading = "Clerk")]
    clerk_api_url: Option<String>,

    /// Clerk instance to accept, ins_…, or any; refuses events and users of others [default: the first instance seen]
    #[arg(long, env, value_name = "ID", help_heading = "Clerk")]
    clerk_instance_id: Option<String>,

    /// How often to compare all synced objects with Clerk and fix them, such as 24h; needs the key [default: off]
    #[arg(long, env, value_name = "TIME", help_heading = "Clerk")]
    reconcile_interval: Option<String>,

    /// Compare at start if the last event is older than this; needs the key [default: 24h]
    #[arg(long, env, value_name = "TIME", help_heading = "Clerk")]
    catch_up_after: Option<String>,

    /// Import all synced objects at start if the tables are empty: on or off; needs the key [default: off]
    #[arg(long, env, value_name = "ON|OFF", help_heading = "Clerk")]
    catch_up_on_empty: Option<String>,

    /// Address of the public listener [default: 127.0.0.1]
    #[arg(long, env, value_name = "ADDRESS", help_heading = "Listeners")]
    host: Option<String>,

    /// Port of the public listener; 0 picks a free one [default: 8080]
    #[arg(long, env, value_name = "PORT", help_heading = "Listeners")]
    port: Option<String>,

    /// Address of the private listener: metrics, API and dashboard [default: 127.0.0.1]
    #[arg(long, env, value_name = "ADDRESS", help_heading = "Listeners")]
    admin_host: Option<String>,

    /// Port of the private listener; 0 picks a free one [default: 8081]
    #[arg(long, env, value_name = "PORT", help_heading = "Listeners")]
    admin_port: Option<String>,

    /// Bearer token of the private API, which refuses every request without one; required unless ADMIN_HOST is a loopback address
    #[arg(long, env, value_name = "TOKEN", help_heading = "Listeners")]
    admin_token: Option<String>,

    /// File that holds the bearer token
    #[arg(long, env, value_name = "PATH", help_heading = "Listeners")]
    admin_token_file: Option<String>,

    /// Bearer token of /metrics, which is open if this is not set; the private API's token works too
    #[arg(long, env, value_name = "TOKEN", help_heading = "Listeners")]
    metrics_token: Option<String>,

    /// File that holds the bearer token of /metrics
    #[arg(long, env, value_name = "PATH", help_heading = "Listeners")]
    metrics_token_file: Option<String>,

    /// Fields of users to sync [default: email,first_name,last_name,image_url]
    #[arg(long, env, value_name = "FIELDS", help_heading = "Users")]
    sync_fields: Option<String>,

    /// What a deletion does to the row: auto, delete or anonymize [default: auto]
    #[arg(long, env, value_name = "POLICY", help_heading = "Users")]
    deletion_policy: Option<String>,

    /// Days to delay an erasure after Clerk deleted the user, 0 to 30 [default: 0]
    #[arg(long, env, value_name = "DAYS", help_heading = "Users")]
    deletion_grace_days: Option<String>,

    /// Columns that the application added to users, set to NULL on anonymisation
    #[arg(long, env, value_name = "COLUMNS", help_heading = "Users")]
    anonymize_columns: Option<String>,

    /// Whether e-mail addresses are unique, enforced by an index; the newest owner keeps an address: on or off [default: off]
    #[arg(long, env, value_name = "ON|OFF", help_heading = "Users")]
    unique_email: Option<String>,

    /// Kinds of objects to sync: a list, or all [default: user]
    #[arg(long, env, value_name = "KINDS", help_heading = "Other objects")]
    sync_entities: Option<String>,

    /// Kinds of objects whose whole JSON from Clerk is stored too, in the column raw [default: none]
    #[arg(long, env, value_name = "KINDS", help_heading = "Other objects")]
    sync_raw: Option<String>,
}

// How the service runs.
#[derive(Args)]
#[group(skip)]
struct ServiceVariables {
    /// File that lists the systems to notify [default: clerk-sync.toml, if it exists]
    #[arg(long = "config", env, value_name = "PATH", help_heading = "Other systems")]
    config_file: Option<String>,

    /// Seconds by which a signature's timestamp may differ from the local clock [default: 300]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Webhooks")]
    webhook_tolerance_seconds: Option<String>,

    /// Maximum size of a request body [default: 1048576]
    #[arg(long, env, value_name = "BYTES", help_heading = "Webhooks")]
    webhook_max_body_bytes: Option<String>,

    /// Addresses that may send webhooks: addresses and CIDRs, or svix [default: any]
    #[arg(long, env, value_name = "ADDRESSES", help_heading = "Webhooks")]
    webhook_allowed_ips: Option<String>,

    /// Proxies whose X-Forwarded-For is trusted: addresses and CIDRs [default: none]
    #[arg(long, env, value_name = "ADDRESSES", help_heading = "Webhooks")]
    trusted_proxies: Option<String>,

    /// Whether to apply webhooks before the answer, or to queue them: inline or queue [default: inline]
    #[arg(long, env, value_name = "HOW", help_heading = "Webhooks")]
    processing: Option<String>,

    /// Redis or Valkey server that queues webhooks with PROCESSING=queue: redis://… or rediss://… [default: the database]
    #[arg(long, env, value_name = "URL", help_heading = "Webhooks")]
    queue_url: Option<String>,

    /// File that holds the URL of the queue
    #[arg(long, env, value_name = "PATH", help_heading = "Webhooks")]
    queue_url_file: Option<String>,

    /// Number of replicas that must have a webhook on disk before the answer [default: 0]
    #[arg(long, env, value_name = "N", help_heading = "Webhooks")]
    queue_replicas: Option<String>,

    /// Whether the server of QUEUE_URL must confirm that events are on disk: verify or trust [default: verify]
    #[arg(long, env, value_name = "HOW", help_heading = "Webhooks")]
    queue_durability: Option<String>,

    /// Key that seals bodies in the queue, 32 bytes in base64; of several, separated by commas, the first one seals
    #[arg(long, env, value_name = "KEYS", help_heading = "Webhooks")]
    queue_encryption_key: Option<String>,

    /// File that holds the key
    #[arg(long, env, value_name = "PATH", help_heading = "Webhooks")]
    queue_encryption_key_file: Option<String>,

    /// Attempts before a failing delivery is dead; deletions are retried without limit [default: 15]
    #[arg(long, env, value_name = "N", help_heading = "Webhooks")]
    queue_max_attempts: Option<String>,

    /// Days to keep the ids of processed webhooks [default: 30]
    #[arg(long, env, value_name = "DAYS", help_heading = "Running")]
    processed_retention_days: Option<String>,

    /// Days to keep dead deliveries and messages [default: 30]
    #[arg(long, env, value_name = "DAYS", help_heading = "Running")]
    dead_retention_days: Option<String>,

    /// Seconds to finish running work after a stop signal [default: 10]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Running")]
    shutdown_grace_seconds: Option<String>,

    /// Log format: pretty or json [default: pretty on a terminal, else json]
    #[arg(long, env, value_name = "FORMAT", help_heading = "Running")]
    log_format: Option<String>,

    /// Log level or filter, such as debug or clerk_sync::http=debug [default: info]
    #[arg(long, env, value_name = "FILTER", help_heading = "Running")]
    rust_log: Option<String>,

    /// DSN of the Sentry project to report errors to; needs the feature sentry
    #[arg(long, env, value_name = "DSN", help_heading = "Running")]
    sentry_dsn: Option<String>,

    /// File that holds the DSN
    #[arg(long, env, value_name = "PATH", help_heading = "Running")]
    sentry_dsn_file: Option<String>,

    /// Environment to report to Sentry, such as production
    #[arg(long, env, value_name = "NAME", help_heading = "Running")]
    sentry_environment: Option<String>,

    /// Release to report to Sentry [default: the version of this program]
    #[arg(long, env, value_name = "NAME", help_heading = "Running")]
    sentry_release: Option<String>,
}
