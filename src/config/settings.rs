//! Every variable as a flag, unread: text as it was given.

use std::fmt;

use clap::{ArgMatches, Args, Command, parser::ValueSource};

use super::{Dotenv, FieldsOfKinds};

/// What was given on the command line or in the environment. Flags win. Nothing is checked yet:
/// [`resolve`](Self::resolve) does that.
#[derive(Args, Clone, Default)]
#[group(skip)]
#[expect(
    clippy::doc_markdown,
    reason = "the comments are the text of --help, where backticks would be noise"
)]
#[command(next_help_heading = "Database")]
pub struct Settings {
    /// The database: postgres://…, postgresql://… or sqlite://… [default: sqlite://clerk-sync.db]
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// A file that holds the database URL
    #[arg(long, env = "DATABASE_URL_FILE", hide_env_values = true, global = true, value_name = "PATH")]
    pub database_url_file: Option<String>,

    /// Postgres: the schema of all tables, created if missing [default: clerk]
    #[arg(long, env = "DATABASE_SCHEMA", hide_env_values = true, global = true, value_name = "NAME")]
    pub database_schema: Option<String>,

    /// The most connections to hold [default: 8]
    #[arg(long, env = "DATABASE_MAX_CONNECTIONS", hide_env_values = true, global = true, value_name = "N")]
    pub database_max_connections: Option<String>,

    /// How long to wait for the database at start [default: 30]
    #[arg(
        long,
        env = "DATABASE_WAIT_SECONDS",
        hide_env_values = true,
        global = true,
        value_name = "SECONDS"
    )]
    pub database_wait_seconds: Option<String>,

    /// What the database is asked while nothing happens: normal, or quiet, which lets it sleep [default: normal]
    #[arg(long, env = "IDLE", hide_env_values = true, global = true)]
    #[arg(value_name = "HOW", help_heading = "Database")]
    pub idle: Option<String>,

    /// The endpoint's signing secret, whsec_…; several separated by commas or spaces
    #[arg(long, env = "CLERK_WEBHOOK_SIGNING_SECRET", hide_env_values = true, global = true)]
    #[arg(value_name = "SECRETS", help_heading = "Clerk")]
    pub clerk_webhook_signing_secret: Option<String>,

    /// A file that holds the signing secret
    #[arg(long, env = "CLERK_WEBHOOK_SIGNING_SECRET_FILE", hide_env_values = true, global = true)]
    #[arg(value_name = "PATH", help_heading = "Clerk")]
    pub clerk_webhook_signing_secret_file: Option<String>,

    /// The key of Clerk's Backend API, sk_test_… or sk_live_…
    #[arg(long, env = "CLERK_SECRET_KEY", hide_env_values = true, global = true)]
    #[arg(value_name = "KEY", help_heading = "Clerk")]
    pub clerk_secret_key: Option<String>,

    /// A file that holds the key of the Backend API
    #[arg(long, env = "CLERK_SECRET_KEY_FILE", hide_env_values = true, global = true)]
    #[arg(value_name = "PATH", help_heading = "Clerk")]
    pub clerk_secret_key_file: Option<String>,

    /// Where the Backend API is [default: Clerk's own]
    #[arg(long, env = "CLERK_API_URL", hide_env_values = true, global = true)]
    #[arg(value_name = "URL", help_heading = "Clerk")]
    pub clerk_api_url: Option<String>,

    /// Refuse the events and the users of any other instance, ins_…; any takes all [default: the first one that is seen]
    #[arg(long, env = "CLERK_INSTANCE_ID", hide_env_values = true, global = true)]
    #[arg(value_name = "ID", help_heading = "Clerk")]
    pub clerk_instance_id: Option<String>,

    /// How often the users are compared with Clerk's and mended, such as 24h; needs the key [default: off]
    #[arg(long, env = "RECONCILE_INTERVAL", hide_env_values = true, global = true)]
    #[arg(value_name = "TIME", help_heading = "Clerk")]
    pub reconcile_interval: Option<String>,

    /// Compare at the start if the last event is older than this; needs the key [default: 24h]
    #[arg(long, env = "CATCH_UP_AFTER", hide_env_values = true, global = true)]
    #[arg(value_name = "TIME", help_heading = "Clerk")]
    pub catch_up_after: Option<String>,

    /// Take in all users at the start if the tables are empty: on or off; needs the key [default: off]
    #[arg(long, env = "CATCH_UP_ON_EMPTY", hide_env_values = true, global = true)]
    #[arg(value_name = "ON|OFF", help_heading = "Clerk")]
    pub catch_up_on_empty: Option<String>,

    /// The address of the public listener [default: 127.0.0.1]
    #[arg(long, env = "HOST", hide_env_values = true, global = true)]
    #[arg(value_name = "ADDRESS", help_heading = "Listeners")]
    pub host: Option<String>,

    /// The port of the public listener; 0 takes a free one [default: 8080]
    #[arg(long, env = "PORT", hide_env_values = true, global = true)]
    #[arg(value_name = "PORT", help_heading = "Listeners")]
    pub port: Option<String>,

    /// The address of the private listener: metrics, API and dashboard [default: 127.0.0.1]
    #[arg(long, env = "ADMIN_HOST", hide_env_values = true, global = true)]
    #[arg(value_name = "ADDRESS", help_heading = "Listeners")]
    pub admin_host: Option<String>,

    /// The port of the private listener; 0 takes a free one [default: 8081]
    #[arg(long, env = "ADMIN_PORT", hide_env_values = true, global = true)]
    #[arg(value_name = "PORT", help_heading = "Listeners")]
    pub admin_port: Option<String>,

    /// The bearer token of the private API, which lets nobody in without; needed unless ADMIN_HOST is a loopback address
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true, global = true)]
    #[arg(value_name = "TOKEN", help_heading = "Listeners")]
    pub admin_token: Option<String>,

    /// A file that holds the bearer token
    #[arg(long, env = "ADMIN_TOKEN_FILE", hide_env_values = true, global = true)]
    #[arg(value_name = "PATH", help_heading = "Listeners")]
    pub admin_token_file: Option<String>,

    /// The bearer token of /metrics, which is open without; the one of the private API opens it too
    #[arg(long, env = "METRICS_TOKEN", hide_env_values = true, global = true)]
    #[arg(value_name = "TOKEN", help_heading = "Listeners")]
    pub metrics_token: Option<String>,

    /// A file that holds the bearer token of /metrics
    #[arg(long, env = "METRICS_TOKEN_FILE", hide_env_values = true, global = true)]
    #[arg(value_name = "PATH", help_heading = "Listeners")]
    pub metrics_token_file: Option<String>,

    /// The fields to sync [default: email,first_name,last_name,image_url]
    #[arg(long, env = "SYNC_FIELDS", hide_env_values = true, global = true)]
    #[arg(value_name = "FIELDS", help_heading = "Users")]
    pub sync_fields: Option<String>,

    /// What a deletion does to the row: auto, delete or anonymize [default: auto]
    #[arg(long, env = "DELETION_POLICY", hide_env_values = true, global = true)]
    #[arg(value_name = "POLICY", help_heading = "Users")]
    pub deletion_policy: Option<String>,

    /// For how long an erasure is held back after Clerk deleted the user, 0 to 30 days [default: 0]
    #[arg(long, env = "DELETION_GRACE_DAYS", hide_env_values = true, global = true)]
    #[arg(value_name = "DAYS", help_heading = "Users")]
    pub deletion_grace_days: Option<String>,

    /// Columns the application added to `users`, set to NULL on anonymisation
    #[arg(long, env = "ANONYMIZE_COLUMNS", hide_env_values = true, global = true)]
    #[arg(value_name = "COLUMNS", help_heading = "Users")]
    pub anonymize_columns: Option<String>,

    /// Whether an address has one owner, the newest one, by a unique index that is made and removed by this: on or off
    /// [default: off]
    #[arg(long, env = "UNIQUE_EMAIL", hide_env_values = true, global = true)]
    #[arg(value_name = "ON|OFF", help_heading = "Users")]
    pub unique_email: Option<String>,

    /// The kinds of objects to sync: a list, or all [default: user]
    #[arg(long, env = "SYNC_ENTITIES", hide_env_values = true, global = true)]
    #[arg(value_name = "KINDS", help_heading = "Other objects")]
    pub sync_entities: Option<String>,

    #[command(flatten)]
    pub sync_fields_of_kinds: FieldsOfKinds,

    /// The file that says which other systems are told [default: clerk-sync.toml, if it is there]
    #[arg(long = "config", env = "CONFIG_FILE", hide_env_values = true, global = true)]
    #[arg(value_name = "PATH", help_heading = "Other systems")]
    pub config_file: Option<String>,

    /// How far a signature's time may be from ours [default: 300]
    #[arg(long, env = "WEBHOOK_TOLERANCE_SECONDS", hide_env_values = true, global = true)]
    #[arg(value_name = "SECONDS", help_heading = "Webhooks")]
    pub webhook_tolerance_seconds: Option<String>,

    /// The largest body that is read [default: 1048576]
    #[arg(long, env = "WEBHOOK_MAX_BODY_BYTES", hide_env_values = true, global = true)]
    #[arg(value_name = "BYTES", help_heading = "Webhooks")]
    pub webhook_max_body_bytes: Option<String>,

    /// Who may send webhooks: addresses and CIDRs, or svix [default: any]
    #[arg(long, env = "WEBHOOK_ALLOWED_IPS", hide_env_values = true, global = true)]
    #[arg(value_name = "ADDRESSES", help_heading = "Webhooks")]
    pub webhook_allowed_ips: Option<String>,

    /// Whose X-Forwarded-For is believed: addresses and CIDRs [default: nobody's]
    #[arg(long, env = "TRUSTED_PROXIES", hide_env_values = true, global = true)]
    #[arg(value_name = "ADDRESSES", help_heading = "Webhooks")]
    pub trusted_proxies: Option<String>,

    /// Whether webhooks are applied before they are answered, or stored first: inline or queue [default: inline]
    #[arg(long, env = "PROCESSING", hide_env_values = true, global = true)]
    #[arg(value_name = "HOW", help_heading = "Webhooks")]
    pub processing: Option<String>,

    /// How often a delivery that fails is tried before it is dead; a deletion without end [default: 15]
    #[arg(long, env = "QUEUE_MAX_ATTEMPTS", hide_env_values = true, global = true)]
    #[arg(value_name = "N", help_heading = "Webhooks")]
    pub queue_max_attempts: Option<String>,

    /// How long the ids of processed webhooks are kept [default: 30]
    #[arg(long, env = "PROCESSED_RETENTION_DAYS", hide_env_values = true, global = true)]
    #[arg(value_name = "DAYS", help_heading = "Running")]
    pub processed_retention_days: Option<String>,

    /// How long dead deliveries are kept, from when they died [default: 30]
    #[arg(long, env = "DEAD_RETENTION_DAYS", hide_env_values = true, global = true)]
    #[arg(value_name = "DAYS", help_heading = "Running")]
    pub dead_retention_days: Option<String>,

    /// How long to finish what runs when asked to stop [default: 10]
    #[arg(long, env = "SHUTDOWN_GRACE_SECONDS", hide_env_values = true, global = true)]
    #[arg(value_name = "SECONDS", help_heading = "Running")]
    pub shutdown_grace_seconds: Option<String>,

    /// The form of the log: pretty or json [default: pretty on a terminal, else json]
    #[arg(long, env = "LOG_FORMAT", hide_env_values = true, global = true)]
    #[arg(value_name = "FORMAT", help_heading = "Running")]
    pub log_format: Option<String>,

    /// What is logged, such as debug or clerk_sync::http=debug [default: info]
    #[arg(long, env = "RUST_LOG", hide_env_values = true, global = true)]
    #[arg(value_name = "FILTER", help_heading = "Running")]
    pub rust_log: Option<String>,

    /// The DSN of a project at Sentry, to which errors are reported; needs the feature sentry
    #[arg(long, env = "SENTRY_DSN", hide_env_values = true, global = true)]
    #[arg(value_name = "DSN", help_heading = "Running")]
    pub sentry_dsn: Option<String>,

    /// A file that holds the DSN
    #[arg(long, env = "SENTRY_DSN_FILE", hide_env_values = true, global = true)]
    #[arg(value_name = "PATH", help_heading = "Running")]
    pub sentry_dsn_file: Option<String>,

    /// The environment that is reported, such as production
    #[arg(long, env = "SENTRY_ENVIRONMENT", hide_env_values = true, global = true)]
    #[arg(value_name = "NAME", help_heading = "Running")]
    pub sentry_environment: Option<String>,

    /// The release that is reported [default: the version of this program]
    #[arg(long, env = "SENTRY_RELEASE", hide_env_values = true, global = true)]
    #[arg(value_name = "NAME", help_heading = "Running")]
    pub sentry_release: Option<String>,

    /// Whether a `clerk-sync.toml` that nobody named is left alone.
    #[arg(skip)]
    pub no_default_config_file: bool,

    /// What the `.env` file brought; its variables stand above.
    #[arg(skip)]
    pub dotenv: Dotenv,
}

impl Settings {
    /// Every variable there is, in the order of the documentation.
    pub fn variables() -> Vec<String> {
        Self::augment_args(Command::new("clerk-sync"))
            .get_arguments()
            .filter_map(|argument| Some(argument.get_env()?.to_string_lossy().into_owned()))
            .collect()
    }

    /// Forget a database and other systems that the environment, `.env` or the directory name: only those of the command
    /// line count. For commands that write samples, which must never reach production. `matches` are those of the whole
    /// command line.
    ///
    /// Gives the variables that were set and do not count.
    pub fn ignore_database_of_environment(&mut self, matches: &ArgMatches) -> Vec<&'static str> {
        self.no_default_config_file = true;
        let mut ignored = Vec::new();
        for (id, variable, value) in [
            ("database_url", "DATABASE_URL", &mut self.database_url),
            ("database_url_file", "DATABASE_URL_FILE", &mut self.database_url_file),
            ("config_file", "CONFIG_FILE", &mut self.config_file),
        ] {
            let given = matches.value_source(id) == Some(ValueSource::CommandLine);
            if !given && value.take().is_some_and(|value| !value.trim().is_empty()) {
                ignored.push(variable);
            }
        }
        ignored
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settings(redacted)")
    }
}
