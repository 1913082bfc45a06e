//! Every variable, declared once: its name, its flag and its help. What is given is text, and not checked yet.
#![expect(clippy::doc_markdown, reason = "comments are the text of --help, where backticks would be noise")]

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use clap::{Arg, ArgMatches, Args, Command, parser::ValueSource};

use super::{Dotenv, Origin, mistake::flag, values::joined};
use crate::{
    entity::{self, USER},
    model::Entity,
};

/// What was given on the command line or in the environment. Flags win. Nothing is checked yet:
/// [`resolve`](Self::resolve) does that.
#[derive(Clone, Default)]
pub struct Settings {
    given: BTreeMap<String, (String, Origin)>,

    /// Whether a `clerk-sync.toml` that nobody named is left alone.
    pub(super) no_default_config_file: bool,

    /// What the `.env` file brought; its variables are among those that are given.
    pub(super) dotenv: Dotenv,
}

impl Settings {
    /// Every variable as a flag of a command and of those below it. There are many: `-h` tells of the command alone.
    pub fn augment_args(command: Command) -> Command {
        let command = ServiceVariables::augment_args(fields_of_kinds(SyncVariables::augment_args(command)));
        command.mut_args(|argument| match argument.get_env() {
            Some(_) => argument.hide_env_values(true).hide_short_help(true).global(true),
            None => argument,
        })
    }

    /// What was given, from the matches of the whole command line.
    pub fn from_arg_matches(matches: &ArgMatches, dotenv: Dotenv) -> Self {
        let given = declared().filter_map(|(variable, argument)| {
            let id = argument.get_id().as_str();
            let text = matches.get_one::<String>(id)?.trim();
            let origin = match matches.value_source(id)? {
                ValueSource::CommandLine => Origin::CommandLine(flag(variable)),
                _ if dotenv.environment.iter().any(|name| name == variable) => Origin::Environment,
                _ => Origin::Dotenv,
            };
            // An empty value counts as unset: compose files and CI systems cannot do otherwise.
            (!text.is_empty()).then(|| (variable.to_owned(), (text.to_owned(), origin)))
        });
        Self { given: given.collect(), no_default_config_file: false, dotenv }
    }

    /// Every variable there is, in the order of the documentation.
    pub fn variables() -> Vec<String> {
        declared().map(|(variable, _)| variable.to_owned()).collect()
    }

    /// What was given for a variable.
    pub fn get(&self, variable: &str) -> Option<&str> {
        debug_assert!(declared().any(|(known, _)| known == variable), "{variable} is not declared");
        self.given.get(variable).map(|(text, _)| text.as_str())
    }

    /// Give a value as if the environment had it.
    pub fn set(&mut self, variable: &str, text: impl Into<String>) {
        self.given.insert(variable.to_owned(), (text.into(), Origin::Environment));
    }

    /// Take away what was given for a variable.
    pub fn unset(&mut self, variable: &str) {
        self.given.remove(variable);
    }

    /// Drop a database and other systems that the environment, `.env` or the directory name: only those of the command
    /// line count. For commands that write samples, which must never reach production.
    ///
    /// Gives the variables that were set and do not count.
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

    /// Where the value of a variable comes from.
    pub(super) fn origin(&self, variable: &str) -> Origin {
        let file = format!("{variable}_FILE");
        match self.given.get(variable) {
            Some((_, origin)) => origin.clone(),
            None if self.given.contains_key(&file) => Origin::File(file),
            // Its line is there, and cannot be understood.
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

/// The variable with the allow-list of a kind.
pub fn fields_variable(entity: &Entity) -> String {
    match entity.kind {
        kind if kind == USER.kind => "SYNC_FIELDS".to_owned(),
        kind => format!("SYNC_FIELDS_{}", kind.to_ascii_uppercase()),
    }
}

/// The allow-lists of every kind but users.
fn fields_of_kinds(command: Command) -> Command {
    let others = entity::ALL.iter().filter(|entity| ***entity != USER);
    others.fold(command, |command, entity| {
        // For clap names last as long as the program.
        let variable: &str = fields_variable(entity).leak();
        let flag: &str = flag(variable).leak().trim_start_matches("--");
        let defaults = joined(entity.fields().filter(|field| field.by_default), ",");
        let argument = Arg::new(variable).long(flag).env(variable);
        let help = format!("The fields of {} to sync [default: {defaults}]", entity.table);
        command.arg(argument.value_name("FIELDS").help(help).help_heading("Other objects"))
    })
}

// What is kept, and from where. A field's comment is the text of `--help`, its name that of the variable and of the flag. The
// struct has no doc comment, which clap would take for the description of the command.
#[derive(Args)]
#[group(skip)]
struct SyncVariables {
    /// The database: postgres://…, postgresql://…, mysql://…, mariadb://…, mongodb://…, mongodb+srv://… or sqlite://… [default: sqlite://clerk-sync.db]
    #[arg(long, env, value_name = "URL", help_heading = "Database")]
    database_url: Option<String>,

    /// A file that holds the database URL
    #[arg(long, env, value_name = "PATH", help_heading = "Database")]
    database_url_file: Option<String>,

    /// Postgres: the schema of all tables, created if missing [default: clerk]
    #[arg(long, env, value_name = "NAME", help_heading = "Database")]
    database_schema: Option<String>,

    /// SQLite, MySQL, MariaDB and MongoDB: what the names of all tables begin with [default: none]
    #[arg(long, env, value_name = "PREFIX", help_heading = "Database")]
    table_prefix: Option<String>,

    /// The most connections to hold [default: 8]
    #[arg(long, env, value_name = "N", help_heading = "Database")]
    database_max_connections: Option<String>,

    /// How long to wait for the database at start [default: 30]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Database")]
    database_wait_seconds: Option<String>,

    /// What the database is asked while nothing happens: normal, or quiet, which lets it sleep [default: normal]
    #[arg(long, env, value_name = "HOW", help_heading = "Database")]
    idle: Option<String>,

    /// The endpoint's signing secret, whsec_…; several separated by commas or spaces
    #[arg(long, env, value_name = "SECRETS", help_heading = "Clerk")]
    clerk_webhook_signing_secret: Option<String>,

    /// A file that holds the signing secret
    #[arg(long, env, value_name = "PATH", help_heading = "Clerk")]
    clerk_webhook_signing_secret_file: Option<String>,

    /// The key of Clerk's Backend API, sk_test_… or sk_live_…
    #[arg(long, env, value_name = "KEY", help_heading = "Clerk")]
    clerk_secret_key: Option<String>,

    /// A file that holds the key of the Backend API
    #[arg(long, env, value_name = "PATH", help_heading = "Clerk")]
    clerk_secret_key_file: Option<String>,

    /// Where the Backend API is [default: Clerk's own]
    #[arg(long, env, value_name = "URL", help_heading = "Clerk")]
    clerk_api_url: Option<String>,

    /// Refuse the events and the users of any other instance, ins_…; any takes all [default: the first one that is seen]
    #[arg(long, env, value_name = "ID", help_heading = "Clerk")]
    clerk_instance_id: Option<String>,

    /// How often the users are compared with Clerk's and mended, such as 24h; needs the key [default: off]
    #[arg(long, env, value_name = "TIME", help_heading = "Clerk")]
    reconcile_interval: Option<String>,

    /// Compare at the start if the last event is older than this; needs the key [default: 24h]
    #[arg(long, env, value_name = "TIME", help_heading = "Clerk")]
    catch_up_after: Option<String>,

    /// Take in all users at the start if the tables are empty: on or off; needs the key [default: off]
    #[arg(long, env, value_name = "ON|OFF", help_heading = "Clerk")]
    catch_up_on_empty: Option<String>,

    /// The address of the public listener [default: 127.0.0.1]
    #[arg(long, env, value_name = "ADDRESS", help_heading = "Listeners")]
    host: Option<String>,

    /// The port of the public listener; 0 takes a free one [default: 8080]
    #[arg(long, env, value_name = "PORT", help_heading = "Listeners")]
    port: Option<String>,

    /// The address of the private listener: metrics, API and dashboard [default: 127.0.0.1]
    #[arg(long, env, value_name = "ADDRESS", help_heading = "Listeners")]
    admin_host: Option<String>,

    /// The port of the private listener; 0 takes a free one [default: 8081]
    #[arg(long, env, value_name = "PORT", help_heading = "Listeners")]
    admin_port: Option<String>,

    /// The bearer token of the private API, which lets nobody in without; needed unless ADMIN_HOST is a loopback address
    #[arg(long, env, value_name = "TOKEN", help_heading = "Listeners")]
    admin_token: Option<String>,

    /// A file that holds the bearer token
    #[arg(long, env, value_name = "PATH", help_heading = "Listeners")]
    admin_token_file: Option<String>,

    /// The bearer token of /metrics, which is open without; the one of the private API opens it too
    #[arg(long, env, value_name = "TOKEN", help_heading = "Listeners")]
    metrics_token: Option<String>,

    /// A file that holds the bearer token of /metrics
    #[arg(long, env, value_name = "PATH", help_heading = "Listeners")]
    metrics_token_file: Option<String>,

    /// The fields to sync [default: email,first_name,last_name,image_url]
    #[arg(long, env, value_name = "FIELDS", help_heading = "Users")]
    sync_fields: Option<String>,

    /// What a deletion does to the row: auto, delete or anonymize [default: auto]
    #[arg(long, env, value_name = "POLICY", help_heading = "Users")]
    deletion_policy: Option<String>,

    /// For how long an erasure is held back after Clerk deleted the user, 0 to 30 days [default: 0]
    #[arg(long, env, value_name = "DAYS", help_heading = "Users")]
    deletion_grace_days: Option<String>,

    /// Columns the application added to `users`, set to NULL on anonymisation
    #[arg(long, env, value_name = "COLUMNS", help_heading = "Users")]
    anonymize_columns: Option<String>,

    /// Whether an address has one owner, the newest one, by a unique index that is made and removed by this: on or off
    /// [default: off]
    #[arg(long, env, value_name = "ON|OFF", help_heading = "Users")]
    unique_email: Option<String>,

    /// The kinds of objects to sync: a list, or all [default: user]
    #[arg(long, env, value_name = "KINDS", help_heading = "Other objects")]
    sync_entities: Option<String>,

    /// The kinds of objects of which Clerk's whole JSON is kept as well, in `raw` [default: none]
    #[arg(long, env, value_name = "KINDS", help_heading = "Other objects")]
    sync_raw: Option<String>,
}

// How the service runs.
#[derive(Args)]
#[group(skip)]
struct ServiceVariables {
    /// The file that says which other systems are told [default: clerk-sync.toml, if it is there]
    #[arg(long = "config", env, value_name = "PATH", help_heading = "Other systems")]
    config_file: Option<String>,

    /// How far a signature's time may be from ours [default: 300]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Webhooks")]
    webhook_tolerance_seconds: Option<String>,

    /// The largest body that is read [default: 1048576]
    #[arg(long, env, value_name = "BYTES", help_heading = "Webhooks")]
    webhook_max_body_bytes: Option<String>,

    /// Who may send webhooks: addresses and CIDRs, or svix [default: any]
    #[arg(long, env, value_name = "ADDRESSES", help_heading = "Webhooks")]
    webhook_allowed_ips: Option<String>,

    /// Whose X-Forwarded-For is believed: addresses and CIDRs [default: nobody's]
    #[arg(long, env, value_name = "ADDRESSES", help_heading = "Webhooks")]
    trusted_proxies: Option<String>,

    /// Whether webhooks are applied before they are answered, or stored first: inline or queue [default: inline]
    #[arg(long, env, value_name = "HOW", help_heading = "Webhooks")]
    processing: Option<String>,

    /// The Redis or Valkey that webhooks wait in with PROCESSING=queue: redis://… or rediss://… [default: the database]
    #[arg(long, env, value_name = "URL", help_heading = "Webhooks")]
    queue_url: Option<String>,

    /// A file that holds the URL of the queue
    #[arg(long, env, value_name = "PATH", help_heading = "Webhooks")]
    queue_url_file: Option<String>,

    /// How many replicas must have a webhook on disk before it is answered [default: 0]
    #[arg(long, env, value_name = "N", help_heading = "Webhooks")]
    queue_replicas: Option<String>,

    /// Whether the server of QUEUE_URL must prove that it loses nothing: verify or trust [default: verify]
    #[arg(long, env, value_name = "HOW", help_heading = "Webhooks")]
    queue_durability: Option<String>,

    /// The key that seals bodies in the queue, 32 bytes in base64; several separated by commas, of which the first seals
    #[arg(long, env, value_name = "KEYS", help_heading = "Webhooks")]
    queue_encryption_key: Option<String>,

    /// A file that holds the key
    #[arg(long, env, value_name = "PATH", help_heading = "Webhooks")]
    queue_encryption_key_file: Option<String>,

    /// How often a delivery that fails is tried before it is dead; a deletion without end [default: 15]
    #[arg(long, env, value_name = "N", help_heading = "Webhooks")]
    queue_max_attempts: Option<String>,

    /// How long the ids of processed webhooks are kept [default: 30]
    #[arg(long, env, value_name = "DAYS", help_heading = "Running")]
    processed_retention_days: Option<String>,

    /// How long dead deliveries are kept, from when they died [default: 30]
    #[arg(long, env, value_name = "DAYS", help_heading = "Running")]
    dead_retention_days: Option<String>,

    /// How long to finish what runs when asked to stop [default: 10]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Running")]
    shutdown_grace_seconds: Option<String>,

    /// The form of the log: pretty or json [default: pretty on a terminal, else json]
    #[arg(long, env, value_name = "FORMAT", help_heading = "Running")]
    log_format: Option<String>,

    /// What is logged, such as debug or clerk_sync::http=debug [default: info]
    #[arg(long, env, value_name = "FILTER", help_heading = "Running")]
    rust_log: Option<String>,

    /// The DSN of a project at Sentry, to which errors are reported; needs the feature sentry
    #[arg(long, env, value_name = "DSN", help_heading = "Running")]
    sentry_dsn: Option<String>,

    /// A file that holds the DSN
    #[arg(long, env, value_name = "PATH", help_heading = "Running")]
    sentry_dsn_file: Option<String>,

    /// The environment that is reported, such as production
    #[arg(long, env, value_name = "NAME", help_heading = "Running")]
    sentry_environment: Option<String>,

    /// The release that is reported [default: the version of this program]
    #[arg(long, env, value_name = "NAME", help_heading = "Running")]
    sentry_release: Option<String>,
}
