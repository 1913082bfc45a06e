//! Converts text to types, one variable at a time. Collects errors instead of stopping at the first one.

use std::{
    collections::BTreeMap,
    env,
    fmt::Display,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

use super::{
    AllowedAddresses, Config, Diagnosis, Effective, Needs, Settings, SinkConfig,
    database::{self, Database, Understood},
    misspelt,
    mistake::{Mistake, shown, unreadable},
    settings::fields_variable,
    sinks::{self, Source},
    values::{
        NO_HEADER, elements, is_instance, is_loopback, is_name, is_visible, joined, list, network, secret_in,
        signing_secrets,
    },
};
use crate::{
    clerk::signature::{QUOTES, Secret},
    entity::{self, SESSION, USER, user},
    model::{Field, Processing, Selection},
    stream::{self, Durability},
    telemetry::{self, LogFormat, Sentry},
};

const DEFAULT_DATABASE_URL: &str = "sqlite://clerk-sync.db";

/// The default path of the database in the container image.
const IMAGE_DATABASE: &str = "/data/clerk-sync.db";

/// Columns of `users` that belong to clerk-sync but are not Clerk's fields.
const OWN_COLUMNS: [&str; 7] =
    ["id", "clerk_id", "preferences", "created_at", "updated_at", "synced_at", "deleted_at"];

/// Reads variables and collects their errors. For a variable with an error it returns a stand-in.
pub(super) struct Reader<'a> {
    settings: &'a Settings,
    /// The resulting values, as they may be shown.
    values: BTreeMap<String, String>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Starts with the errors in the `.env` file and the warnings about misspelt names.
    pub(super) fn new(settings: &'a Settings) -> Self {
        let dotenv = &settings.dotenv;
        let warnings = misspelt::warnings(dotenv);
        Self { settings, values: BTreeMap::new(), mistakes: dotenv.mistakes.clone(), warnings }
    }

    /// Checks the values against each other and against the needs of the command, and collects the results.
    pub(super) fn finish(mut self, config: Config, needs: Needs) -> Diagnosis {
        if needs.signing_secret && !self.is_given("CLERK_WEBHOOK_SIGNING_SECRET") {
            self.mistake("CLERK_WEBHOOK_SIGNING_SECRET", self.no_signing_secret());
        }
        let has_key = self.is_given("CLERK_SECRET_KEY");
        if needs.secret_key && !has_key {
            self.mistake(
                "CLERK_SECRET_KEY",
                "not set, but needed to call Clerk's Backend API; copy it from Clerk's Dashboard (API keys, Secret keys), or \
                 name a file that holds it in CLERK_SECRET_KEY_FILE",
            );
        }
        for (variable, is_on) in [
            ("RECONCILE_INTERVAL", config.reconcile_interval.is_some()),
            ("CATCH_UP_ON_EMPTY", config.catch_up_on_empty),
        ] {
            if is_on && !has_key {
                self.mistake(variable, "it is on, but CLERK_SECRET_KEY is not set; set it, or turn this off");
            }
        }
        let (public, admin) = (config.listen, config.admin_listen);
        let overlap =
            public.ip() == admin.ip() || public.ip().is_unspecified() || admin.ip().is_unspecified();
        if !admin.ip().to_canonical().is_loopback() && !self.is_given("ADMIN_TOKEN") {
            let explanation = format!(
                "found \"{}\", which other machines can reach, and no ADMIN_TOKEN; allowed without a token: only \
                 loopback addresses such as 127.0.0.1",
                admin.ip()
            );
            self.mistake("ADMIN_HOST", explanation);
        }
        if public.port() == admin.port() && public.port() != 0 && overlap {
            let explanation =
                format!("found \"{}\", which is also PORT; allowed: a different port", admin.port());
            self.mistake("ADMIN_PORT", explanation);
        }
        let is_unused = config.stream.is_some() && config.processing != Processing::Queue;
        if is_unused && needs.signing_secret && !self.is_mistaken("QUEUE_URL") {
            self.mistake("QUEUE_URL", "set, but used only with PROCESSING=queue; set that too");
        }
        // Without synced addresses there is nothing to make unique, and clerk-sync must not change the column.
        if config.unique_email && !config.sync_fields().contains(user::EMAIL) {
            self.mistake(
                "UNIQUE_EMAIL",
                "it is on, but SYNC_FIELDS does not name email; add email, or turn this off",
            );
        }

        let variables = Settings::variables();
        let place = |mistake: &Mistake| variables.iter().position(|name| *name == mistake.variable);
        self.mistakes.sort_by_key(place);
        // The file of a secret is shown as the source of the secret.
        let is_file = |name: &&String| name.ends_with("_FILE") && *name != "CONFIG_FILE";
        let effective = variables.iter().filter(|name| !is_file(name)).map(|variable| Effective {
            value: self.values.get(variable).filter(|_| !self.is_mistaken(variable)).cloned(),
            origin: self.settings.origin(variable),
            variable: variable.clone(),
        });
        Diagnosis { config, effective: effective.collect(), mistakes: self.mistakes }
    }

    fn no_signing_secret(&self) -> String {
        match misspelt::signing_secret(&self.settings.dotenv) {
            None => "not set, but needed to tell genuine webhooks from forged ones; copy it from Clerk's Dashboard \
                     (Webhooks, your endpoint, Signing Secret), or name a file that holds it in \
                     CLERK_WEBHOOK_SIGNING_SECRET_FILE"
                .to_owned(),
            Some(other) => format!(
                "not set, but needed to tell genuine webhooks from forged ones. {other} is set, but clerk-sync does not read \
                 it; if it holds the endpoint's signing secret, set CLERK_WEBHOOK_SIGNING_SECRET to the same value"
            ),
        }
    }

    /// The database, its schema, and the maximum number of connections.
    pub(super) fn database(&mut self) -> (Database, String, u32) {
        const VARIABLE: &str = "DATABASE_URL";
        let given = self.secret(VARIABLE);
        let understood = database::understand(given.as_deref().unwrap_or(DEFAULT_DATABASE_URL));
        let Understood { database, connection_limit, schema: other, warnings } =
            understood.unwrap_or_else(|explanation| {
                self.mistake(VARIABLE, explanation);
                Understood::of(Database::Sqlite { path: DEFAULT_DATABASE_URL.into() })
            });
        self.show(
            VARIABLE,
            match &database {
                Database::Postgres { .. } | Database::Mysql { .. } | Database::Mongodb { .. } => {
                    database.place()
                }
                Database::Sqlite { path } => format!("sqlite://{}", path.display()),
            },
        );
        self.warnings.extend(warnings);
        if matches!(&database, Database::Sqlite { path } if path == Path::new(IMAGE_DATABASE)) {
            self.warnings.push(format!(
                "{VARIABLE}: users are stored in {IMAGE_DATABASE}, which lasts only as long as the volume /data; \
                 set DATABASE_URL to store them in your application's database"
            ));
        }
        let allowed = "a name of 1 to 63 bytes that has no quotes and does not begin with pg_";
        let read = |text: &str| (is_name(text) && !text.starts_with("pg_")).then(|| text.to_owned());
        let schema = self.value("DATABASE_SCHEMA", "clerk".to_owned(), allowed, read);
        if other.is_some_and(|other| other != schema) {
            self.warnings.push(format!(
                "{VARIABLE}: the parameter schema is ignored; the schema comes from DATABASE_SCHEMA and is {schema}"
            ));
        }
        let without_schemas = match database {
            Database::Mysql { .. } => Some(("MySQL", "tables")),
            Database::Mongodb { .. } => Some(("MongoDB", "collections")),
            Database::Postgres { .. } | Database::Sqlite { .. } => None,
        };
        if let Some((product, tables)) = without_schemas
            && self.settings.get("DATABASE_SCHEMA").is_some()
        {
            self.warnings.push(format!(
                "DATABASE_SCHEMA: ignored because {product} has no schemas; the {tables} are in the database that \
                 DATABASE_URL names"
            ));
        }
        let default = connection_limit.map_or(8, |limit| limit.min(8));
        (database, schema, self.number("DATABASE_MAX_CONNECTIONS", default, 1..=1000))
    }

    /// The prefix of table names, for databases without schemas.
    pub(super) fn table_prefix(&mut self, database: &Database) -> String {
        const VARIABLE: &str = "TABLE_PREFIX";
        let allowed =
            "up to 32 characters of a to z, 0 to 9 and _, which do not begin with a digit or sqlite_";
        let is_of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let fits = |text: &str| {
            text.len() <= 32
                && text.bytes().all(is_of_name)
                && !text.starts_with(|c: char| c.is_ascii_digit())
                && !text.starts_with("sqlite_")
        };
        let Some(prefix) = self.optional(VARIABLE, allowed, fits) else { return String::new() };
        if matches!(database, Database::Postgres { .. }) {
            self.warnings
                .push(format!("{VARIABLE}: ignored because PostgreSQL has schemas; use DATABASE_SCHEMA"));
        }
        prefix
    }

    pub(super) fn number(&mut self, variable: &str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.value(variable, default, &allowed, |text| {
            text.parse().ok().filter(|number| range.contains(number))
        })
    }

    /// A duration in the unit that the variable's name ends with.
    pub(super) fn time(&mut self, variable: &str, default: u32, range: RangeInclusive<u32>) -> Duration {
        let unit = if variable.ends_with("_DAYS") { 24 * 60 * 60 } else { 1 };
        Duration::from_secs(unit * u64::from(self.number(variable, default, range)))
    }

    /// The valid signing secrets.
    pub(super) fn signing_secrets(&mut self) -> Vec<Secret> {
        const VARIABLE: &str = "CLERK_WEBHOOK_SIGNING_SECRET";
        let Some(text) = self.secret(VARIABLE) else { return Vec::new() };
        let allowed = "secrets as Clerk's Dashboard shows them (Webhooks, your endpoint, Signing Secret): whsec_ and \
                       base64, several separated by commas or spaces";
        let (secrets, refusals) = signing_secrets(&text, allowed, false);
        for refusal in refusals {
            self.mistake(VARIABLE, refusal);
        }
        let plural = if secrets.len() == 1 { "" } else { "s" };
        self.show(VARIABLE, format!("{} secret{plural}", secrets.len()));
        secrets
    }

    pub(super) fn clerk_secret_key(&mut self) -> Option<SecretString> {
        const VARIABLE: &str = "CLERK_SECRET_KEY";
        let key = self.secret(VARIABLE)?;
        // The prefix is safe to show: it says only whether the instance is for development or production.
        match ["sk_test_", "sk_live_"].into_iter().find(|prefix| key.starts_with(prefix)) {
            Some(prefix) if is_visible(&key[prefix.len()..]) => self.show(VARIABLE, format!("{prefix}…")),
            _ => self.mistake(
                VARIABLE,
                "found something that is not a secret key; allowed: a key as Clerk's Dashboard shows it (API keys, \
                 Secret keys), which begins with sk_test_ or sk_live_",
            ),
        }
        Some(key.into())
    }

    /// A duration such as `90s` or `24h`, or `off`.
    pub(super) fn interval(&mut self, variable: &str, default: &str) -> Option<Duration> {
        let allowed = "a duration from 1s to 365d, such as 90s, 15m, 24h or 7d, or off";
        let range = Duration::from_secs(1)..=Duration::from_hours(365 * 24);
        let read = |text: &str| humantime::parse_duration(text).ok().filter(|length| range.contains(length));
        let text = self.value(variable, default.to_owned(), allowed, |text| {
            (text == "off" || read(text).is_some()).then(|| text.to_owned())
        });
        read(&text)
    }

    pub(super) fn switch(&mut self, variable: &str) -> bool {
        let word = self.value(variable, "off", "on or off", |text| match text {
            "on" | "true" | "1" => Some("on"),
            "off" | "false" | "0" => Some("off"),
            _ => None,
        });
        word == "on"
    }

    pub(super) fn clerk_api_url(&mut self) -> Url {
        const VARIABLE: &str = "CLERK_API_URL";
        let allowed = "a URL that begins with https:// or http:// and has no user, parameters or fragment";
        let read = |text: &str| {
            let url = Url::parse(text).ok()?;
            let plain = matches!(url.scheme(), "https" | "http")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none();
            plain.then_some(url)
        };
        let default = Url::parse("https://api.clerk.com").expect("a URL");
        let url = self.value(VARIABLE, default, allowed, read);
        if url.scheme() == "http" && !is_loopback(&url) {
            self.warnings.push(format!(
                "{VARIABLE}: the key and the users are sent over http, where others on the network can read them; use https"
            ));
        }
        url
    }

    pub(super) fn instance_id(&mut self) -> Option<String> {
        let allowed = "an id as Clerk writes it, such as ins_2abc, which the URL of the Dashboard shows after /instances/; \
                       or any";
        self.optional("CLERK_INSTANCE_ID", allowed, is_instance)
    }

    pub(super) fn listener(&mut self, host: &str, port: &str, default_port: u16) -> SocketAddr {
        const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let allowed = "an IP address or localhost, such as 127.0.0.1, 0.0.0.0 or ::1";
        let read = |text: &str| if text == "localhost" { Some(LOCALHOST) } else { text.parse().ok() };
        let host = self.value(host, LOCALHOST, allowed, read);
        let allowed = "a whole number from 0 to 65535, where 0 picks a free port";
        let port = self.value(port, default_port, allowed, |text| text.parse().ok());
        SocketAddr::new(host, port)
    }

    /// A bearer token.
    pub(super) fn token(&mut self, variable: &str) -> Option<SecretString> {
        let token = self.secret(variable)?;
        if !is_visible(&token) {
            self.mistake(variable, format!("found a token {NO_HEADER}"));
        }
        self.show(variable, "set");
        Some(token.into())
    }

    /// The kinds to sync, and the allow-list of each.
    pub(super) fn selection(&mut self) -> Selection {
        const VARIABLE: &str = "SYNC_ENTITIES";
        const RAW: &str = "SYNC_RAW";
        let allowed = entity::ALL.iter().map(|entity| entity.kind).collect::<Vec<_>>().join(", ");
        let chosen =
            self.list(VARIABLE, "no kind", &format!("all, or any of {allowed}"), |name| match name {
                // Session events carry a whole user, and every sign-in causes them.
                "all" => Some(entity::ALL.iter().copied().filter(|entity| **entity != SESSION).collect()),
                _ => Some(vec![entity::named(name)?]),
            });
        let chosen = chosen.map_or_else(|| vec![&USER], |chosen| chosen.concat());
        let raw = self.list(RAW, "no kind", &format!("any of {allowed}"), entity::named).unwrap_or_default();
        for entity in raw.iter().filter(|entity| !chosen.contains(entity)) {
            self.warnings.push(format!(
                "{RAW} names {0}, but {VARIABLE} does not: nothing of that kind is stored",
                entity.kind
            ));
        }
        self.show_list(RAW, &raw.iter().map(|entity| entity.kind).collect::<Vec<_>>());
        let mut selection = Selection::default();
        for entity in entity::ALL.iter().copied() {
            let variable = &fields_variable(entity);
            let allowed = joined(entity.selectable(), ", ");
            // Errors are reported for kinds that are not synced too.
            let given = self.list(variable, "no field", &allowed, |name| {
                entity.selectable().find(|field| field.name() == name)
            });
            let by_default = || entity.fields().filter(|field| field.by_default).collect();
            let fields: Vec<Field> = given.unwrap_or_else(by_default);
            let raw = entity.raw().filter(|_| raw.contains(&entity));
            // An erasure finds the whole object by this field.
            let address = entity.address().filter(|_| raw.is_some());
            let fields = fields.into_iter().chain(raw).chain(address).collect();
            let fields = Selection::of(entity, fields).fields(entity);
            let named = fields.of(entity).filter(|field| !field.is_raw());
            self.show(variable, joined(named, ","));
            if chosen.contains(&entity) {
                selection = selection.with(entity, fields);
            }
        }
        self.show_list(VARIABLE, &selection.entities().map(|entity| entity.kind).collect::<Vec<_>>());
        for child in selection.entities() {
            for (_, parent) in child.parents().filter(|(_, parent)| !selection.has(parent)) {
                self.warnings.push(format!(
                    "{VARIABLE} names {} but not {parent}: rows that belong to a deleted {parent} stay until a reconcile \
                     finds that Clerk no longer has them",
                    child.kind,
                    parent = parent.kind
                ));
            }
        }
        selection
    }

    /// One of a few values; the default is that of its type.
    pub(super) fn one_of<T: Copy + Default>(
        &mut self,
        variable: &str,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> T {
        let names: Vec<&str> = all.iter().map(|value| name(*value)).collect();
        let allowed = match names.as_slice() {
            [one, other] => format!("{one} or {other}"),
            names => format!("one of {}", names.join(", ")),
        };
        let read = |text: &str| names.iter().copied().find(|name| *name == text);
        let chosen = self.value(variable, name(T::default()), &allowed, read);
        all.iter().copied().find(|value| name(*value) == chosen).unwrap_or_default()
    }

    pub(super) fn anonymize_columns(&mut self) -> Vec<String> {
        const VARIABLE: &str = "ANONYMIZE_COLUMNS";
        // clerk-sync's own columns are anonymised anyway.
        let allowed = "names of 1 to 63 bytes without quotes, except clerk-sync's own columns";
        let is_own = |name: &str| OWN_COLUMNS.contains(&name) || USER.named(name).is_some();
        let read = |name: &str| (is_name(name) && !is_own(name)).then(|| name.to_owned());
        let mut columns = Vec::new();
        let is_empty = self.settings.get(VARIABLE).is_none_or(|text| list(text).next().is_none());
        let names = if is_empty { None } else { self.list(VARIABLE, "no column", allowed, read) };
        for name in names.unwrap_or_default() {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        self.show_list(VARIABLE, &columns);
        columns
    }

    pub(super) fn allowed_addresses(&mut self) -> AllowedAddresses {
        const VARIABLE: &str = "WEBHOOK_ALLOWED_IPS";
        match self.settings.get(VARIABLE) {
            Some("svix") => {
                self.show(VARIABLE, "svix");
                AllowedAddresses::Svix
            }
            Some(_) => AllowedAddresses::Networks(self.networks(VARIABLE, ", or only svix")),
            None => {
                self.show(VARIABLE, "any");
                AllowedAddresses::Any
            }
        }
    }

    pub(super) fn networks(&mut self, variable: &str, or: &str) -> Vec<IpNet> {
        let allowed = format!("addresses and CIDRs, such as 203.0.113.7 or 10.0.0.0/8{or}");
        let networks = self.list(variable, "no address", &allowed, network).unwrap_or_default();
        self.show_list(variable, &networks);
        networks
    }

    pub(super) fn log_format(&mut self) -> Option<LogFormat> {
        let default = "pretty on a terminal, else json".to_owned();
        let text = self.value("LOG_FORMAT", default, "pretty or json", |text| {
            LogFormat::named(text).map(|_| text.to_owned())
        });
        LogFormat::named(&text)
    }

    pub(super) fn log_filter(&mut self) -> String {
        let allowed =
            "a level (error, warn, info, debug, trace, off) or a filter such as info,clerk_sync::http=debug";
        self.value("RUST_LOG", "info".to_owned(), allowed, |text| {
            telemetry::filter(text).map(|_| text.to_owned())
        })
    }

    /// The stream that queues webhooks.
    pub(super) fn stream(&mut self) -> Option<stream::Options> {
        const VARIABLE: &str = "QUEUE_URL";
        let replicas = self.number("QUEUE_REPLICAS", 0, 0..=100);
        let durability = self.one_of("QUEUE_DURABILITY", &Durability::ALL, Durability::name);
        let keys = self.sealing_keys();
        let url = self.secret(VARIABLE)?;
        if !cfg!(feature = "redis") {
            self.mistake(VARIABLE, "set, but this program was built without the feature redis");
        } else if !stream::is_url(&url) {
            self.mistake(
                VARIABLE,
                "found something that is not a Redis URL; allowed: the URL of a Redis or Valkey server, \
                 redis://HOST:PORT/DATABASE, or rediss://… for TLS; user and password come before the host, as in \
                 redis://USER:PASSWORD@HOST",
            );
        }
        let place = Url::parse(&url).ok();
        let place = place.as_ref().and_then(|url| Some((url.scheme(), url.host_str()?, url.port())));
        if let Some((scheme, host, port)) = place {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            self.show(VARIABLE, format!("{scheme}://{host}{port}"));
        }
        Some(stream::Options { url: url.into(), replicas, durability, keys })
    }

    /// The keys that seal bodies in the stream.
    fn sealing_keys(&mut self) -> Vec<stream::Key> {
        const VARIABLE: &str = "QUEUE_ENCRYPTION_KEY";
        let Some(text) = self.secret(VARIABLE) else { return Vec::new() };
        let keys: Vec<Option<stream::Key>> = list(&text).map(stream::Key::parse).collect();
        if keys.is_empty() || keys.iter().any(Option::is_none) {
            self.mistake(
                VARIABLE,
                "found something that is not a key; allowed: 32 bytes in base64, as `openssl rand -base64 32` prints them, \
                 several separated by commas",
            );
        }
        let plural = if keys.len() == 1 { "" } else { "s" };
        self.show(VARIABLE, format!("{} key{plural}", keys.len()));
        keys.into_iter().flatten().collect()
    }

    /// Where and how errors are reported.
    pub(super) fn sentry(&mut self) -> Option<Sentry> {
        const VARIABLE: &str = "SENTRY_DSN";
        let environment = self.label("SENTRY_ENVIRONMENT", 64);
        let release = self.label("SENTRY_RELEASE", 200);
        let Some(dsn) = self.secret(VARIABLE) else {
            // The other two are not used without a DSN.
            self.values.retain(|variable, _| !variable.starts_with("SENTRY_"));
            return None;
        };
        let is_dsn = Url::parse(&dsn).is_ok_and(|url| {
            matches!(url.scheme(), "https" | "http")
                && !url.username().is_empty()
                && !url.path().ends_with('/')
        });
        if !is_dsn {
            self.mistake(
                VARIABLE,
                "found something that is not a DSN; allowed: a DSN as Sentry shows it (Project Settings, Client Keys): \
                 https://KEY@HOST/PROJECT",
            );
        }
        self.show(VARIABLE, "set");
        Some(Sentry { dsn: dsn.into(), environment, release })
    }

    /// A name that Sentry uses as a label.
    fn label(&mut self, variable: &str, longest: usize) -> Option<String> {
        let allowed = format!("a name of up to {longest} visible characters without slashes");
        self.optional(variable, &allowed, |text| {
            text.len() <= longest && is_visible(text) && !text.contains(['/', '\\'])
        })
    }

    /// The file that lists the sinks, and the sinks.
    pub(super) fn sinks(
        &mut self,
        selection: &Selection,
        need_secrets: bool,
    ) -> (Option<PathBuf>, Vec<SinkConfig>) {
        const VARIABLE: &str = "CONFIG_FILE";
        let is_there = |file: &&str| !self.settings.no_default_config_file && Path::new(file).exists();
        let usual = Some(sinks::DEFAULT_FILE).filter(is_there);
        let Some(path) = self.settings.get(VARIABLE).or(usual) else { return (None, Vec::new()) };
        self.show(VARIABLE, path);
        let file = &sinks::shown_path(path);
        let sinks = match fs::read_to_string(path) {
            Ok(text) => {
                let variable = &|name: &str| env::var(name).ok();
                Source { file, selection, need_secrets, variable }.read(&text, &mut self.mistakes)
            }
            Err(error) => {
                self.mistake(VARIABLE, format!("the file {file} cannot be read: {}", unreadable(&error)));
                Vec::new()
            }
        };
        (Some(path.into()), sinks)
    }

    /// One value that may be shown, or its default.
    fn value<T: Display>(
        &mut self,
        variable: &str,
        default: T,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> T {
        let value = self.given(variable, allowed, read).unwrap_or(default);
        self.show(variable, &value);
        value
    }

    /// One value that may be shown and has no default.
    fn optional(
        &mut self,
        variable: &str,
        allowed: &str,
        is_allowed: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let text = self.given(variable, allowed, |text| is_allowed(text).then(|| text.to_owned()))?;
        self.show(variable, &text);
        Some(text)
    }

    fn given<T>(&mut self, variable: &str, allowed: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.settings.get(variable)?;
        let value = read(text);
        if value.is_none() {
            self.mistake(variable, format!("found {}; allowed: {allowed}", shown(text)));
        }
        value
    }

    /// The elements of a list, if it is set.
    fn list<T>(
        &mut self,
        variable: &str,
        nothing: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let (elements, refusal) = elements(list(self.settings.get(variable)?), nothing, allowed, read);
        if let Some(refusal) = refusal {
            self.mistake(variable, refusal);
        }
        Some(elements)
    }

    /// A secret, set directly or in a file. Quotes around it are an error: Docker and systemd do not read files of variables as a
    /// shell does, so the quotes would become part of the secret.
    fn secret(&mut self, variable: &str) -> Option<String> {
        let file_variable = format!("{variable}_FILE");
        let text = match (self.settings.get(variable), self.settings.get(&file_variable)) {
            (None, None) => return None,
            (Some(text), None) => Ok(text.to_owned()),
            (Some(_), Some(_)) => {
                Err(format!("{variable} is set too, but only one of the two is allowed; remove the other"))
            }
            // Any other text might be the secret itself.
            (None, Some(path)) if path.starts_with(['/', '.']) => secret_in(path, &shown(path)),
            (None, Some(path)) => secret_in(path, "(its path is not shown, because it might be the secret)"),
        };
        let is_quoted = |text: &str| {
            let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
            QUOTES.into_iter().any(|quote| inner(quote).is_some())
        };
        match text {
            Ok(text) if is_quoted(&text) => {
                self.mistake(variable, "it is in quotes, which would be part of it; remove the quotes");
                None
            }
            Ok(text) => Some(text),
            Err(explanation) => {
                self.mistake(&file_variable, explanation);
                None
            }
        }
    }

    /// Records the resulting value, for display.
    fn show(&mut self, variable: &str, value: impl Display) {
        self.values.insert(variable.to_owned(), value.to_string());
    }

    /// Like [`show`](Self::show) for a list. An empty list counts as not set.
    fn show_list<T: Display>(&mut self, variable: &str, values: &[T]) {
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(T::to_string).collect();
            self.show(variable, values.join(","));
        }
    }

    /// Whether a value is set, valid or not.
    fn is_given(&self, variable: &str) -> bool {
        self.settings.get(variable).is_some()
            || self.settings.get(&format!("{variable}_FILE")).is_some()
            || self.is_mistaken(variable)
    }

    fn is_mistaken(&self, variable: &str) -> bool {
        self.mistakes.iter().any(|mistake| mistake.is_about(variable))
    }

    fn mistake(&mut self, variable: &str, explanation: impl Into<String>) {
        self.mistakes.push(Mistake { variable: variable.to_owned(), explanation: explanation.into() });
    }
}
