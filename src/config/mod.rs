//! Configuration: flags and environment, checked once at the start and typed from then on. Read only by `cli`.
//!
//! Everything that is wrong is reported at once, each mistake with its variable, what was found and what is
//! allowed. No secret appears in any message or `Debug` output, and of a database URL nothing but its scheme.
//! Nothing is connected to here; only the files that `…_FILE` variables name are read.

mod database;
mod dotenv;
mod effective;
mod kinds;
mod misspelt;
mod mistake;
mod read;
mod settings;
mod sinks;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

pub use database::Database;
pub use dotenv::{Dotenv, load_dotenv};
pub use effective::{Effective, Origin};
pub use kinds::FieldsOfKinds;
pub use mistake::{Mistake, Mistakes, apart, unreadable};
pub use settings::Settings;
pub use sinks::{Kind, Mailchimp, Regulations, Segment, SinkConfig, Webhook};

use crate::{
    clerk::signature::{DEFAULT_TOLERANCE_SECONDS, Secret},
    entity::USER,
    model::{DeletionPolicy, FieldSet, Idle, Processing, Selection},
    telemetry::{LogFormat, Sentry},
};
use read::Reader;

/// The configuration, complete and valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_URL`
    pub database: Database,
    /// `DATABASE_SCHEMA`: of Postgres.
    pub database_schema: String,
    /// `DATABASE_MAX_CONNECTIONS`, else the URL's `connection_limit` if that is lower than the default.
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
    /// `RECONCILE_INTERVAL`: never without a key.
    pub reconcile_interval: Option<Duration>,
    /// `CATCH_UP_AFTER`; `None` is off.
    pub catch_up_after: Option<Duration>,
    /// `CATCH_UP_ON_EMPTY`
    pub catch_up_on_empty: bool,
    /// `HOST` and `PORT`
    pub listen: SocketAddr,
    /// `ADMIN_HOST` and `ADMIN_PORT`
    pub admin_listen: SocketAddr,
    /// `ADMIN_TOKEN`; always there if `admin_listen` is not a loopback address.
    pub admin_token: Option<SecretString>,
    /// `METRICS_TOKEN`
    pub metrics_token: Option<SecretString>,
    /// `SYNC_ENTITIES`, `SYNC_FIELDS` and the lists of other kinds
    pub selection: Selection,
    /// `DELETION_POLICY`
    pub deletion_policy: DeletionPolicy,
    /// `DELETION_GRACE_DAYS`
    pub deletion_grace: Duration,
    /// `ANONYMIZE_COLUMNS`: never one of our own columns.
    pub anonymize_columns: Vec<String>,
    /// `UNIQUE_EMAIL`: only where addresses are synced.
    pub unique_email: bool,
    /// `CONFIG_FILE`, or the file of the usual name if that is there.
    pub config_file: Option<PathBuf>,
    /// The systems that are told, each name once. Their secrets are missing if the command does not need them.
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
    /// `LOG_FORMAT`; `None` leaves it to whether the log goes to a terminal.
    pub log_format: Option<LogFormat>,
    /// `RUST_LOG`: a filter that [`telemetry::filter`](crate::telemetry::filter) accepts.
    pub log_filter: String,
    /// `SENTRY_DSN`, `SENTRY_ENVIRONMENT` and `SENTRY_RELEASE`
    pub sentry: Option<Sentry>,
    /// What works but is probably not meant; to be logged once at the start.
    pub warnings: Vec<String>,
}

/// Who may send webhooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedAddresses {
    Any,
    /// Svix's published addresses.
    Svix,
    Networks(Vec<IpNet>),
}

/// What a command cannot do without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// At least one webhook signing secret.
    pub signing_secret: bool,
    /// The key of the Backend API.
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
    /// Of the whole service.
    pub const SERVE: Self = Self { signing_secret: true, secret_key: false, sink_secrets: true };
}

impl Settings {
    /// Check everything and fill in the defaults.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn resolve(&self, needs: Needs) -> Result<Config, Mistakes> {
        let (config, mistakes) = self.diagnose(needs);
        Mistakes::among(mistakes).map_or(Ok(config), Err)
    }

    /// Check everything, and give all mistakes beside a configuration that has stand-ins for what is wrong: for whoever
    /// looks into the rest all the same.
    #[expect(clippy::too_many_lines, reason = "one thing after the other, and none of them long")]
    pub fn diagnose(&self, needs: Needs) -> (Config, Vec<Mistake>) {
        let mut read = Reader::new(&self.dotenv);

        let database = read.database(self.database_url.as_deref(), self.database_url_file.as_deref());
        let database_schema = read.schema(self.database_schema.as_deref());
        let max_connections =
            read.number("DATABASE_MAX_CONNECTIONS", self.database_max_connections.as_deref(), 1..=1000);
        let database_wait =
            read.number("DATABASE_WAIT_SECONDS", self.database_wait_seconds.as_deref(), 0..=3600);
        let signing_secrets = read.signing_secrets(
            self.clerk_webhook_signing_secret.as_deref(),
            self.clerk_webhook_signing_secret_file.as_deref(),
        );
        if needs.signing_secret {
            read.require_signing_secret(&signing_secrets, misspelt::signing_secret(&self.dotenv));
        }
        let clerk_secret_key =
            read.clerk_secret_key(self.clerk_secret_key.as_deref(), self.clerk_secret_key_file.as_deref());
        if needs.secret_key {
            read.require_secret_key(clerk_secret_key.is_some());
        }
        let clerk_api_url = read.clerk_api_url(self.clerk_api_url.as_deref());
        let instance_id = read.instance_id(self.clerk_instance_id.as_deref());
        let reconcile_interval =
            read.duration("RECONCILE_INTERVAL", self.reconcile_interval.as_deref(), None);
        let catch_up_after =
            read.duration("CATCH_UP_AFTER", self.catch_up_after.as_deref(), Some(Duration::from_hours(24)));
        let catch_up_on_empty = read.switch("CATCH_UP_ON_EMPTY", self.catch_up_on_empty.as_deref());
        read.check_key_for("RECONCILE_INTERVAL", reconcile_interval.is_some(), clerk_secret_key.is_some());
        read.check_key_for("CATCH_UP_ON_EMPTY", catch_up_on_empty, clerk_secret_key.is_some());
        let listen = read.listener(("HOST", self.host.as_deref()), ("PORT", self.port.as_deref()), 8080);
        let admin_listen = read.listener(
            ("ADMIN_HOST", self.admin_host.as_deref()),
            ("ADMIN_PORT", self.admin_port.as_deref()),
            8081,
        );
        let [admin_token, metrics_token] = self.tokens(&mut read);
        read.check_listeners(listen, admin_listen, admin_token.is_some());
        let selection = read.selection(
            self.sync_entities.as_deref(),
            self.sync_fields.as_deref(),
            &self.sync_fields_of_kinds,
        );
        let deletion_policy = read.deletion_policy(self.deletion_policy.as_deref());
        let grace_days = read.number("DELETION_GRACE_DAYS", self.deletion_grace_days.as_deref(), 0..=30);
        let anonymize_columns = read.anonymize_columns(self.anonymize_columns.as_deref());
        let file = sinks::File::find(self.config_file.as_deref(), !self.no_default_config_file);
        let sinks = read.sinks(file.as_ref(), &selection, needs.sink_secrets);
        let webhook_tolerance_seconds =
            read.number("WEBHOOK_TOLERANCE_SECONDS", self.webhook_tolerance_seconds.as_deref(), 0..=86_400);
        // All bodies in flight share 16 MiB.
        let webhook_max_body_bytes =
            read.number("WEBHOOK_MAX_BODY_BYTES", self.webhook_max_body_bytes.as_deref(), 1024..=16_777_216);
        let webhook_allowed_ips = read.allowed_addresses(self.webhook_allowed_ips.as_deref());
        let trusted_proxies = read.networks("TRUSTED_PROXIES", self.trusted_proxies.as_deref());
        let processing = read.processing(self.processing.as_deref());
        let idle = read.idle(self.idle.as_deref());
        let queue_max_attempts =
            read.number("QUEUE_MAX_ATTEMPTS", self.queue_max_attempts.as_deref(), 1..=1000);
        let retention_days =
            read.number("PROCESSED_RETENTION_DAYS", self.processed_retention_days.as_deref(), 1..=3650);
        let dead_retention_days =
            read.number("DEAD_RETENTION_DAYS", self.dead_retention_days.as_deref(), 1..=3650);
        let shutdown_grace =
            read.number("SHUTDOWN_GRACE_SECONDS", self.shutdown_grace_seconds.as_deref(), 0..=600);
        let log_format = read.log_format(self.log_format.as_deref());
        let log_filter = read.log_filter(self.rust_log.as_deref());

        let (database, connection_limit) = read.finish_database(database, &database_schema);
        let default_connections = connection_limit.map_or(8, |limit| limit.min(8));
        let seconds = |number: u32| Duration::from_secs(number.into());
        let config = Config {
            database,
            database_schema,
            database_max_connections: max_connections.unwrap_or(default_connections),
            database_wait: seconds(database_wait.unwrap_or(30)),
            signing_secrets,
            clerk_secret_key,
            clerk_api_url,
            instance_id,
            reconcile_interval,
            catch_up_after,
            catch_up_on_empty,
            listen,
            admin_listen,
            admin_token,
            metrics_token,
            deletion_policy,
            deletion_grace: seconds(grace_days.unwrap_or(0) * 24 * 60 * 60),
            anonymize_columns,
            unique_email: read.unique_email(self.unique_email.as_deref(), selection.fields(&USER)),
            selection,
            config_file: file.map(sinks::File::into_path),
            sinks,
            webhook_tolerance_seconds: webhook_tolerance_seconds.unwrap_or(DEFAULT_TOLERANCE_SECONDS),
            webhook_max_body_bytes: webhook_max_body_bytes.unwrap_or(1_048_576) as usize,
            webhook_allowed_ips,
            trusted_proxies,
            processing,
            idle,
            queue_max_attempts: queue_max_attempts.unwrap_or(15),
            processed_retention: seconds(retention_days.unwrap_or(30) * 24 * 60 * 60),
            dead_retention: seconds(dead_retention_days.unwrap_or(30) * 24 * 60 * 60),
            shutdown_grace: seconds(shutdown_grace.unwrap_or(10)),
            log_format,
            log_filter,
            sentry: self.sentry(&mut read),
            warnings: read.warnings,
        };
        (config, read.mistakes)
    }

    /// Of the private API and of the metrics.
    fn tokens(&self, read: &mut Reader) -> [Option<SecretString>; 2] {
        [
            read.token("ADMIN_TOKEN", self.admin_token.as_deref(), self.admin_token_file.as_deref()),
            read.token("METRICS_TOKEN", self.metrics_token.as_deref(), self.metrics_token_file.as_deref()),
        ]
    }

    /// Where errors are reported to.
    fn sentry(&self, read: &mut Reader) -> Option<Sentry> {
        let dsn = read.sentry_dsn(self.sentry_dsn.as_deref(), self.sentry_dsn_file.as_deref());
        let environment = read.label("SENTRY_ENVIRONMENT", self.sentry_environment.as_deref(), 64);
        let release = read.label("SENTRY_RELEASE", self.sentry_release.as_deref(), 200);
        Some(Sentry { dsn: dsn?, environment, release })
    }

    /// Only the signing secrets, for commands that need nothing else; empty if none is given.
    ///
    /// # Errors
    /// All mistakes in them at once.
    pub fn signing_secrets(&self) -> Result<Vec<Secret>, Mistakes> {
        let mut read = Reader::default();
        let secrets = read.signing_secrets(
            self.clerk_webhook_signing_secret.as_deref(),
            self.clerk_webhook_signing_secret_file.as_deref(),
        );
        Mistakes::among(read.mistakes).map_or(Ok(secrets), Err)
    }
}

#[cfg(test)]
mod tests;
