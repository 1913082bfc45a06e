//! Configuration: flags and environment, checked and typed once at start. Only `cli` reads it.
//!
//! All errors are reported at once, each with its variable, the value found and the allowed values. No message or `Debug`
//! output contains a secret, and of a database URL only the scheme is shown. This module opens no connections. It reads
//! only `.env`, `clerk-sync.toml`, and the files that settings name.

mod database;
mod dotenv;
mod effective;
mod misspelt;
mod mistake;
mod read;
mod settings;
mod sinks;
mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

pub use database::{Database, mysql_options};
pub use dotenv::{Dotenv, load_dotenv};
pub use effective::{Effective, Origin};
pub use mistake::{Mistake, Mistakes, apart, unreadable};
pub use settings::{Settings, fields_variable};
pub use sinks::{Mailchimp, Regulations, Segment, SinkConfig, SinkKind, Webhook};

use crate::{
    clerk::signature::{DEFAULT_TOLERANCE_SECONDS, Secret},
    entity::USER,
    model::{DeletionPolicy, FieldSet, Idle, Processing, Selection},
    stream,
    telemetry::{LogFormat, Sentry},
};
use read::Reader;

/// The configuration, complete and valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_URL`
    pub database: Database,
    /// `DATABASE_SCHEMA`: PostgreSQL only.
    pub database_schema: String,
    /// `TABLE_PREFIX`: SQLite, MySQL, MariaDB and MongoDB only.
    pub table_prefix: String,
    /// `DATABASE_MAX_CONNECTIONS`. If it is not set: the default, or the URL's `connection_limit` if that is lower.
    pub database_max_connections: u32,
    /// `DATABASE_WAIT_SECONDS`
    pub database_wait: Duration,
    /// `CLERK_WEBHOOK_SIGNING_SECRET`; empty only if the command does not need it.
    pub signing_secrets: Vec<Secret>,
    /// `CLERK_SECRET_KEY`
    pub clerk_secret_key: Option<SecretString>,
    /// `CLERK_API_URL`
    pub clerk_api_url: Url,
    /// `CLERK_INSTANCE_ID`: events and users of other instances are refused.
    pub instance_id: Option<String>,
    /// `RECONCILE_INTERVAL`: `None` unless a key is set.
    pub reconcile_interval: Option<Duration>,
    /// `CATCH_UP_AFTER`; `None` is off.
    pub catch_up_after: Option<Duration>,
    /// `CATCH_UP_ON_EMPTY`
    pub catch_up_on_empty: bool,
    /// `HOST` and `PORT`
    pub listen: SocketAddr,
    /// `ADMIN_HOST` and `ADMIN_PORT`
    pub admin_listen: SocketAddr,
    /// `ADMIN_TOKEN`; always set if `admin_listen` is not a loopback address.
    pub admin_token: Option<SecretString>,
    /// `METRICS_TOKEN`
    pub metrics_token: Option<SecretString>,
    /// `SYNC_ENTITIES`, `SYNC_FIELDS` and the allow-lists of other kinds
    pub selection: Selection,
    /// `DELETION_POLICY`
    pub deletion_policy: DeletionPolicy,
    /// `DELETION_GRACE_DAYS`
    pub deletion_grace: Duration,
    /// `ANONYMIZE_COLUMNS`: never one of clerk-sync's columns.
    pub anonymize_columns: Vec<String>,
    /// `UNIQUE_EMAIL`: true only if addresses are synced.
    pub unique_email: bool,
    /// `CONFIG_FILE`, or the file with the default name if it exists.
    pub config_file: Option<PathBuf>,
    /// The systems to notify, with unique names. Their secrets are empty if the command does not need them.
    pub sinks: Vec<SinkConfig>,
    /// `WEBHOOK_TOLERANCE_SECONDS`
    pub webhook_tolerance_seconds: u32,
    /// `WEBHOOK_MAX_BODY_BYTES`
    pub webhook_max_body_bytes: usize,
    /// `WEBHOOK_ALLOWED_IPS`
    pub webhook_allowed_ips: AllowedAddresses,
    /// `TRUSTED_PROXIES`
    pub trusted_proxies: Vec<IpNet>,
    /// `PROCESSING`
    pub processing: Processing,
    /// `QUEUE_URL`, `QUEUE_REPLICAS`, `QUEUE_DURABILITY` and `QUEUE_ENCRYPTION_KEY`: only with `PROCESSING=queue`.
    pub stream: Option<stream::Options>,
    /// `IDLE`
    pub idle: Idle,
    /// `QUEUE_MAX_ATTEMPTS`
    pub queue_max_attempts: u32,
    /// `PROCESSED_RETENTION_DAYS`
    pub processed_retention: Duration,
    /// `DEAD_RETENTION_DAYS`
    pub dead_retention: Duration,
    /// `SHUTDOWN_GRACE_SECONDS`
    pub shutdown_grace: Duration,
    /// `LOG_FORMAT`; `None`: pretty if the log goes to a terminal, else JSON.
    pub log_format: Option<LogFormat>,
    /// `RUST_LOG`: a filter that [`telemetry::filter`](crate::telemetry::filter) accepts.
    pub log_filter: String,
    /// `SENTRY_DSN`, `SENTRY_ENVIRONMENT` and `SENTRY_RELEASE`
    pub sentry: Option<Sentry>,
    /// Settings that work but are probably not intended; to be logged once at start.
    pub warnings: Vec<String>,
}

/// The addresses that may send webhooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedAddresses {
    Any,
    /// Svix's published addresses.
    Svix,
    Networks(Vec<IpNet>),
}

/// The settings that a command requires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// At least one webhook signing secret.
    pub signing_secret: bool,
    /// The key for the Backend API.
    pub secret_key: bool,
    /// The secrets of the sinks.
    pub sink_secrets: bool,
}

impl Config {
    /// `SYNC_FIELDS`
    pub fn sync_fields(&self) -> FieldSet {
        self.selection.fields(&USER)
    }
}

impl Needs {
    /// The needs of the whole service.
    pub const SERVE: Self = Self { signing_secret: true, secret_key: false, sink_secrets: true };
}

/// The result of checking all settings.
#[derive(Debug)]
pub struct Diagnosis {
    /// Contains stand-ins for settings with errors.
    pub config: Config,
    pub mistakes: Vec<Mistake>,
    /// Every variable, in the order of the documentation.
    pub effective: Vec<Effective>,
}

impl Settings {
    /// Checks all settings and fills in the defaults.
    ///
    /// # Errors
    /// All errors at once.
    pub fn resolve(&self, needs: Needs) -> Result<Config, Mistakes> {
        let Diagnosis { config, mistakes, .. } = self.diagnose(needs);
        Mistakes::among(mistakes).map_or(Ok(config), Err)
    }

    /// Like [`resolve`](Self::resolve), for commands that use the valid settings even if others have errors.
    pub fn diagnose(&self, needs: Needs) -> Diagnosis {
        let mut read = Reader::new(self);
        let (database, database_schema, database_max_connections) = read.database();
        let selection = read.selection();
        let (config_file, sinks) = read.sinks(&selection, needs.sink_secrets);
        let default = DEFAULT_TOLERANCE_SECONDS;
        let webhook_tolerance_seconds = read.number("WEBHOOK_TOLERANCE_SECONDS", default, 0..=86_400);
        // All request bodies in memory share 16 MiB.
        let webhook_max_body_bytes = read.number("WEBHOOK_MAX_BODY_BYTES", 1_048_576, 1024..=16_777_216);
        let table_prefix = read.table_prefix(&database);
        let config = Config {
            database,
            database_schema,
            table_prefix,
            database_max_connections,
            database_wait: read.time("DATABASE_WAIT_SECONDS", 30, 0..=3600),
            signing_secrets: read.signing_secrets(),
            clerk_secret_key: read.clerk_secret_key(),
            clerk_api_url: read.clerk_api_url(),
            instance_id: read.instance_id(),
            reconcile_interval: read.interval("RECONCILE_INTERVAL", "off"),
            catch_up_after: read.interval("CATCH_UP_AFTER", "24h"),
            catch_up_on_empty: read.switch("CATCH_UP_ON_EMPTY"),
            listen: read.listener("HOST", "PORT", 8080),
            admin_listen: read.listener("ADMIN_HOST", "ADMIN_PORT", 8081),
            admin_token: read.token("ADMIN_TOKEN"),
            metrics_token: read.token("METRICS_TOKEN"),
            deletion_policy: read.one_of("DELETION_POLICY", &DeletionPolicy::ALL, DeletionPolicy::name),
            deletion_grace: read.time("DELETION_GRACE_DAYS", 0, 0..=30),
            anonymize_columns: read.anonymize_columns(),
            unique_email: read.switch("UNIQUE_EMAIL"),
            selection,
            config_file,
            sinks,
            webhook_tolerance_seconds,
            webhook_max_body_bytes: webhook_max_body_bytes as usize,
            webhook_allowed_ips: read.allowed_addresses(),
            trusted_proxies: read.networks("TRUSTED_PROXIES", ""),
            processing: read.one_of("PROCESSING", &Processing::ALL, Processing::name),
            stream: read.stream(),
            idle: read.one_of("IDLE", &Idle::ALL, Idle::name),
            queue_max_attempts: read.number("QUEUE_MAX_ATTEMPTS", 15, 1..=1000),
            processed_retention: read.time("PROCESSED_RETENTION_DAYS", 30, 1..=3650),
            dead_retention: read.time("DEAD_RETENTION_DAYS", 30, 1..=3650),
            shutdown_grace: read.time("SHUTDOWN_GRACE_SECONDS", 10, 0..=600),
            log_format: read.log_format(),
            log_filter: read.log_filter(),
            sentry: read.sentry(),
            warnings: std::mem::take(&mut read.warnings),
        };
        read.finish(config, needs)
    }

    /// Only the signing secrets, for commands that need no other setting. Empty if none is set.
    ///
    /// # Errors
    /// All errors in them at once.
    pub fn signing_secrets(&self) -> Result<Vec<Secret>, Mistakes> {
        let mut read = Reader::new(self);
        let secrets = read.signing_secrets();
        Mistakes::among(read.mistakes).map_or(Ok(secrets), Err)
    }
}

#[cfg(test)]
mod tests;
