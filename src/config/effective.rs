//! The configuration as it came out, for people: every variable with its value and where that came from. Secrets are
//! told by their kind and number, never shown.

use std::{fmt, path::Path, time::Duration};

use clap::{ArgMatches, Args, Command, parser::ValueSource};
use humantime::format_duration;
use secrecy::ExposeSecret;

use super::{AllowedAddresses, Config, Database, Dotenv, FieldsOfKinds, Settings, mistake::flag};
use crate::{
    entity::{self, USER},
    model::{Entity, Field, Selection},
    telemetry::LogFormat,
};

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Such as `PORT`.
    pub variable: &'static str,
    /// `None`: not set, and there is no default.
    pub value: Option<String>,
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This flag.
    CommandLine(String),
    Environment,
    /// The file `.env`.
    Dotenv,
    /// The file that the variable's `…_FILE` names.
    File(String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(flag) => write!(f, "command line ({flag})"),
            Self::Environment => f.write_str("environment"),
            Self::Dotenv => f.write_str(".env"),
            Self::File(variable) => write!(f, "file of {variable}"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Config {
    /// Every variable, in the order of the documentation. `matches` are those of the whole command line.
    pub fn effective(&self, matches: &ArgMatches, dotenv: &Dotenv) -> Vec<Effective> {
        let given = Given { matches, dotenv, arguments: Settings::augment_args(Command::new("clerk-sync")) };
        let values = self.values().into_iter();
        values
            .map(|(variable, value)| Effective { variable, value, origin: given.origin(variable) })
            .collect()
    }

    fn values(&self) -> Vec<(&'static str, Option<String>)> {
        // By name, so that nobody adds a setting that is not told here.
        let Self {
            database,
            database_schema,
            database_max_connections,
            database_wait,
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
            selection,
            deletion_policy,
            deletion_grace,
            anonymize_columns,
            unique_email,
            config_file,
            sinks: _,
            webhook_tolerance_seconds,
            webhook_max_body_bytes,
            webhook_allowed_ips,
            trusted_proxies,
            processing,
            idle,
            queue_max_attempts,
            processed_retention,
            dead_retention,
            shutdown_grace,
            log_format,
            log_filter,
            sentry,
            warnings: _,
        } = self;
        let place = match database {
            Database::Postgres { .. } => database.place(),
            Database::Sqlite { path } => format!("sqlite://{}", path.display()),
        };
        let secrets = match signing_secrets.len() {
            0 => None,
            1 => Some("1 secret".to_owned()),
            several => Some(format!("{several} secrets")),
        };
        // Of a key its first part says which kind of instance it is for.
        let key = clerk_secret_key.as_ref().map(|key| {
            let live = key.expose_secret().starts_with("sk_live_");
            format!("{}…", if live { "sk_live_" } else { "sk_test_" })
        });
        let format = log_format.map_or("pretty on a terminal, else json", |format| match format {
            LogFormat::Pretty => "pretty",
            LogFormat::Json => "json",
        });
        let switch = |is_on: bool| Some(if is_on { "on" } else { "off" }.to_owned());
        let some = |value: &dyn fmt::Display| Some(value.to_string());
        let values = vec![
            ("DATABASE_URL", Some(place)),
            ("DATABASE_SCHEMA", some(database_schema)),
            ("DATABASE_MAX_CONNECTIONS", some(database_max_connections)),
            ("DATABASE_WAIT_SECONDS", some(&database_wait.as_secs())),
            ("CLERK_WEBHOOK_SIGNING_SECRET", secrets),
            ("CLERK_SECRET_KEY", key),
            ("CLERK_API_URL", some(clerk_api_url)),
            ("CLERK_INSTANCE_ID", instance_id.clone()),
            ("RECONCILE_INTERVAL", Some(length(*reconcile_interval))),
            ("CATCH_UP_AFTER", Some(length(*catch_up_after))),
            ("CATCH_UP_ON_EMPTY", switch(*catch_up_on_empty)),
            ("HOST", some(&listen.ip())),
            ("PORT", some(&listen.port())),
            ("ADMIN_HOST", some(&admin_listen.ip())),
            ("ADMIN_PORT", some(&admin_listen.port())),
            ("ADMIN_TOKEN", admin_token.as_ref().map(|_| "set".to_owned())),
            ("METRICS_TOKEN", metrics_token.as_ref().map(|_| "set".to_owned())),
            ("SYNC_ENTITIES", listed(&selection.entities().map(|entity| entity.kind).collect::<Vec<_>>())),
            ("SYNC_FIELDS", Some(fields(selection, &USER))),
            ("DELETION_POLICY", some(&deletion_policy.name())),
            ("DELETION_GRACE_DAYS", Some(days(*deletion_grace))),
            ("ANONYMIZE_COLUMNS", listed(anonymize_columns)),
            ("UNIQUE_EMAIL", switch(*unique_email)),
            ("CONFIG_FILE", config_file.as_deref().map(Path::display).as_ref().and_then(|path| some(path))),
            ("WEBHOOK_TOLERANCE_SECONDS", some(webhook_tolerance_seconds)),
            ("WEBHOOK_MAX_BODY_BYTES", some(webhook_max_body_bytes)),
            ("WEBHOOK_ALLOWED_IPS", Some(allowed(webhook_allowed_ips))),
            ("TRUSTED_PROXIES", listed(trusted_proxies)),
            ("PROCESSING", some(&processing.name())),
            ("IDLE", some(&idle.name())),
            ("QUEUE_MAX_ATTEMPTS", some(queue_max_attempts)),
            ("PROCESSED_RETENTION_DAYS", Some(days(*processed_retention))),
            ("DEAD_RETENTION_DAYS", Some(days(*dead_retention))),
            ("SHUTDOWN_GRACE_SECONDS", some(&shutdown_grace.as_secs())),
            ("LOG_FORMAT", some(&format)),
            ("RUST_LOG", some(log_filter)),
            ("SENTRY_DSN", sentry.as_ref().map(|_| "set".to_owned())),
            ("SENTRY_ENVIRONMENT", sentry.as_ref().and_then(|sentry| sentry.environment.clone())),
            ("SENTRY_RELEASE", sentry.as_ref().and_then(|sentry| sentry.release.clone())),
        ];
        values.into_iter().chain(of_kinds(selection)).collect()
    }
}

/// What was given, and how.
struct Given<'a> {
    matches: &'a ArgMatches,
    dotenv: &'a Dotenv,
    /// The definition of every setting.
    arguments: Command,
}

impl Given<'_> {
    fn origin(&self, variable: &str) -> Origin {
        let file = format!("{variable}_FILE");
        match (self.of(variable), self.of(&file)) {
            (Some(origin), _) => origin,
            (None, Some(_)) => Origin::File(file),
            // Its line is there, and cannot be understood.
            (None, None) if self.dotenv.mistakes.iter().any(|mistake| mistake.is_about(variable)) => {
                Origin::Dotenv
            }
            (None, None) => Origin::Default,
        }
    }

    /// Where this variable itself was given; a blank value counts as none.
    fn of(&self, variable: &str) -> Option<Origin> {
        let argument = self
            .arguments
            .get_arguments()
            .find(|argument| argument.get_env().is_some_and(|name| name.to_str() == Some(variable)))?;
        let id = argument.get_id().as_str();
        let text = self.matches.get_one::<String>(id)?;
        match self.matches.value_source(id)? {
            _ if text.trim().is_empty() => None,
            ValueSource::CommandLine => Some(Origin::CommandLine(flag(variable))),
            _ if self.dotenv.taken.iter().any(|name| name == variable) => Some(Origin::Dotenv),
            _ => Some(Origin::Environment),
        }
    }
}

/// As the documents write it, in one unit if that is possible: days only from two on.
fn length(length: Option<Duration>) -> String {
    const UNITS: [(&str, u64, u64); 4] = [("d", 86_400, 2), ("h", 3600, 1), ("m", 60, 1), ("s", 1, 1)];
    let Some(length) = length else { return "off".to_owned() };
    let seconds = length.as_secs();
    let unit = UNITS.iter().find(|(_, unit, from)| seconds.is_multiple_of(*unit) && seconds / unit >= *from);
    match unit.filter(|_| length.subsec_nanos() == 0) {
        Some((name, unit, _)) => format!("{}{name}", seconds / unit),
        None => format_duration(length).to_string(),
    }
}

fn days(length: Duration) -> String {
    (length.as_secs() / (24 * 60 * 60)).to_string()
}

/// `SYNC_FIELDS_…` of every kind but users.
fn of_kinds(selection: &Selection) -> impl Iterator<Item = (&'static str, Option<String>)> {
    entity::ALL.iter().filter_map(|entity| {
        Some((FieldsOfKinds::variable(entity)?, selection.has(entity).then(|| fields(selection, entity))))
    })
}

fn fields(selection: &Selection, entity: &'static Entity) -> String {
    selection.fields(entity).of(entity).map(Field::name).collect::<Vec<_>>().join(",")
}

fn listed<T: fmt::Display>(items: &[T]) -> Option<String> {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(","))
}

fn allowed(addresses: &AllowedAddresses) -> String {
    match addresses {
        AllowedAddresses::Any => "any".to_owned(),
        AllowedAddresses::Svix => "svix".to_owned(),
        AllowedAddresses::Networks(networks) => listed(networks).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_written_as_the_documents_write_it() {
        for text in ["24h", "7d", "90s", "15m", "36h", "1h", "365d", "off"] {
            let parsed = humantime::parse_duration(text).ok();
            assert_eq!(length(parsed), text);
        }
        assert_eq!(length(Some(Duration::from_millis(1500))), "1s 500ms");
    }
}
