//! From text to types, one variable at a time, collecting what is wrong instead of stopping at it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    time::Duration,
};

use ipnet::IpNet;
use secrecy::SecretString;
use url::{Host, Url};

use super::{
    AllowedAddresses, Dotenv, FieldsOfKinds,
    database::{self, Database, Understood},
    misspelt,
    mistake::{Mistake, flag, shown, unreadable},
};
use crate::{
    clerk::signature::{QUOTES, Secret},
    entity::{self, USER, user},
    model::{DeletionPolicy, Entity, Field, FieldSet, Idle, Processing, Selection},
    telemetry::{self, LogFormat},
};

const DEFAULT_DATABASE_URL: &str = "sqlite://clerk-sync.db";
const DEFAULT_SCHEMA: &str = "clerk";
const DEFAULT_CLERK_API_URL: &str = "https://api.clerk.com";
const DEFAULT_LOG_FILTER: &str = "info";

/// Where the image keeps its database unless told otherwise.
const IMAGE_DATABASE: &str = "/data/clerk-sync.db";

/// Names longer than this are cut by Postgres.
const MAX_NAME_BYTES: usize = 63;

/// Columns of `users` that are ours but no fields of Clerk's.
const OWN_COLUMNS: [&str; 7] =
    ["id", "clerk_id", "preferences", "created_at", "updated_at", "synced_at", "deleted_at"];

/// Reads variables and remembers what is wrong with them. What it returns for a mistaken one is only a stand-in.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
}

impl Reader {
    /// One that knows already what is wrong with the file and what is probably misspelt.
    pub(super) fn new(dotenv: &Dotenv) -> Self {
        Self { mistakes: dotenv.mistakes.clone(), warnings: misspelt::warnings(dotenv) }
    }

    pub(super) fn database(&mut self, given: Option<&str>, file: Option<&str>) -> Understood {
        let given = self.secret("DATABASE_URL", given, file);
        let understood = database::understand(given.as_deref().unwrap_or(DEFAULT_DATABASE_URL));
        understood.unwrap_or_else(|explanation| {
            self.mistake("DATABASE_URL", explanation);
            Understood {
                database: Database::Sqlite { path: DEFAULT_DATABASE_URL.into() },
                connection_limit: None,
                schema: None,
                warnings: Vec::new(),
            }
        })
    }

    /// Keep the warnings of a database URL; returns the rest of it.
    pub(super) fn finish_database(
        &mut self,
        understood: Understood,
        schema: &str,
    ) -> (Database, Option<u32>) {
        self.warnings.extend(understood.warnings);
        if understood.schema.is_some_and(|other| other != schema) {
            self.warnings.push(format!(
                "DATABASE_URL: the parameter schema is ignored; DATABASE_SCHEMA decides, and is {schema}"
            ));
        }
        if matches!(&understood.database, Database::Sqlite { path } if path == Path::new(IMAGE_DATABASE)) {
            self.warnings.push(format!(
                "DATABASE_URL: users are kept in {IMAGE_DATABASE}, which lasts only as long as the volume /data; \
                 set DATABASE_URL to keep them in your application's database"
            ));
        }
        (understood.database, understood.connection_limit)
    }

    pub(super) fn schema(&mut self, given: Option<&str>) -> String {
        let allowed = "a name of 1 to 63 bytes without quotes that does not begin with pg_";
        let read = |text: &str| (is_name(text) && !text.starts_with("pg_")).then(|| text.to_owned());
        self.value("DATABASE_SCHEMA", given, allowed, read).unwrap_or_else(|| DEFAULT_SCHEMA.to_owned())
    }

    pub(super) fn number(
        &mut self,
        variable: &str,
        given: Option<&str>,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.value(variable, given, &allowed, |text| {
            text.parse().ok().filter(|number| range.contains(number))
        })
    }

    pub(super) fn signing_secrets(&mut self, given: Option<&str>, file: Option<&str>) -> Vec<Secret> {
        const VARIABLE: &str = "CLERK_WEBHOOK_SIGNING_SECRET";
        let Some(text) = self.secret(VARIABLE, given, file) else { return Vec::new() };
        let parts: Vec<&str> = list(&text).collect();
        let mut secrets = Vec::new();
        for (place, part) in parts.iter().enumerate() {
            let refusal = match Secret::parse(part) {
                Ok(secret) if secret.is_weak() => {
                    "it has fewer than 16 bytes and can be guessed; Clerk's have 24".to_owned()
                }
                Ok(secret) => {
                    secrets.push(secret);
                    continue;
                }
                Err(error) => error.to_string(),
            };
            self.mistake(
                VARIABLE,
                format!(
                    "secret {} of {} cannot be used, {refusal}; allowed are secrets as Clerk's Dashboard shows them \
                     (Webhooks, your endpoint, Signing Secret): whsec_ and base64, several separated by commas or spaces",
                    place + 1,
                    parts.len(),
                ),
            );
        }
        if parts.is_empty() {
            self.mistake(VARIABLE, "found no secret between the commas".to_owned());
        }
        secrets
    }

    /// To be called after [`signing_secrets`](Self::signing_secrets). `other` is a name that is set, and that others give to
    /// this secret.
    pub(super) fn require_signing_secret(&mut self, secrets: &[Secret], other: Option<&str>) {
        const VARIABLE: &str = "CLERK_WEBHOOK_SIGNING_SECRET";
        if !secrets.is_empty() || self.mistakes.iter().any(|mistake| mistake.variable.starts_with(VARIABLE)) {
            return;
        }
        let explanation = match other {
            None => format!(
                "not set, but needed to tell genuine webhooks from forged ones; take it from Clerk's Dashboard \
                 (Webhooks, your endpoint, Signing Secret), or name a file that holds it in {VARIABLE}_FILE"
            ),
            Some(other) => format!(
                "not set, but needed to tell genuine webhooks from forged ones, while {other} is set, which clerk-sync does \
                 not read; if that is the endpoint's signing secret, give it under the name {VARIABLE} as well"
            ),
        };
        self.mistake(VARIABLE, explanation);
    }

    pub(super) fn clerk_secret_key(
        &mut self,
        given: Option<&str>,
        file: Option<&str>,
    ) -> Option<SecretString> {
        let key = self.secret("CLERK_SECRET_KEY", given, file)?;
        let prefixes = ["sk_test_", "sk_live_"];
        let rest = prefixes.iter().find_map(|prefix| key.strip_prefix(prefix));
        if !rest.is_some_and(is_visible) {
            self.mistake(
                "CLERK_SECRET_KEY",
                "found something that is not a secret key; allowed is one as Clerk's Dashboard shows it (API keys, \
                 Secret keys): it begins with sk_test_ or sk_live_"
                    .to_owned(),
            );
        }
        Some(key.into())
    }

    /// To be called after [`clerk_secret_key`](Self::clerk_secret_key).
    pub(super) fn require_secret_key(&mut self, is_set: bool) {
        const VARIABLE: &str = "CLERK_SECRET_KEY";
        if !is_set && !self.mistakes.iter().any(|mistake| mistake.variable.starts_with(VARIABLE)) {
            self.mistake(
                VARIABLE,
                format!(
                    "not set, but needed to ask Clerk's Backend API; take it from Clerk's Dashboard (API keys, Secret \
                     keys), or name a file that holds it in {VARIABLE}_FILE"
                ),
            );
        }
    }

    /// A length of time such as `90s` or `24h`, or `off`.
    pub(super) fn duration(
        &mut self,
        variable: &str,
        given: Option<&str>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        let allowed = "a length of time from 1s to 365d, such as 90s, 15m, 24h or 7d, or off";
        let range = Duration::from_secs(1)..=Duration::from_hours(365 * 24);
        let read = |text: &str| match text {
            "off" => Some(None),
            _ => humantime::parse_duration(text).ok().filter(|length| range.contains(length)).map(Some),
        };
        self.value(variable, given, allowed, read).unwrap_or(default)
    }

    pub(super) fn switch(&mut self, variable: &str, given: Option<&str>) -> bool {
        let read = |text: &str| match text {
            "on" | "true" | "1" => Some(true),
            "off" | "false" | "0" => Some(false),
            _ => None,
        };
        self.value(variable, given, "on or off", read).unwrap_or(false)
    }

    /// What makes no sense without the key of the Backend API.
    pub(super) fn check_key_for(&mut self, variable: &str, is_on: bool, has_key: bool) {
        let key_mistaken =
            self.mistakes.iter().any(|mistake| mistake.variable.starts_with("CLERK_SECRET_KEY"));
        if is_on && !has_key && !key_mistaken {
            self.mistake(variable, "it is on, and needs CLERK_SECRET_KEY, which is not set".to_owned());
        }
    }

    pub(super) fn clerk_api_url(&mut self, given: Option<&str>) -> Url {
        let allowed = "an address that begins with https:// or http://, without user, parameters or fragment";
        let read = |text: &str| {
            let url = Url::parse(text).ok()?;
            let plain = matches!(url.scheme(), "https" | "http")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none();
            plain.then_some(url)
        };
        let url = self
            .value("CLERK_API_URL", given, allowed, read)
            .unwrap_or_else(|| Url::parse(DEFAULT_CLERK_API_URL).expect("a URL"));
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
            None => false,
        };
        if url.scheme() == "http" && !loopback {
            self.warnings.push(
                "CLERK_API_URL: the key and the users go over http, where anybody on the way can read them; use https"
                    .to_owned(),
            );
        }
        url
    }

    pub(super) fn instance_id(&mut self, given: Option<&str>) -> Option<String> {
        let allowed = "an id as Clerk writes it, such as ins_2abc, which the address of the Dashboard shows behind \
                       /instances/; or any";
        self.value("CLERK_INSTANCE_ID", given, allowed, |text| is_instance(text).then(|| text.to_owned()))
    }

    pub(super) fn listener(
        &mut self,
        (host_variable, host): (&str, Option<&str>),
        (port_variable, port): (&str, Option<&str>),
        default_port: u16,
    ) -> SocketAddr {
        let allowed = "an IP address or localhost, such as 127.0.0.1, 0.0.0.0 or ::1";
        let host = self.value(host_variable, host, allowed, |text| match text {
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            _ => text.parse().ok(),
        });
        let port = self.value(
            port_variable,
            port,
            "a whole number from 0 to 65535, where 0 takes a free port",
            |text| text.parse().ok(),
        );
        SocketAddr::new(host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port.unwrap_or(default_port))
    }

    /// A bearer token.
    pub(super) fn token(
        &mut self,
        variable: &str,
        given: Option<&str>,
        file: Option<&str>,
    ) -> Option<SecretString> {
        let token = self.secret(variable, given, file)?;
        if !is_visible(&token) {
            self.mistake(
                variable,
                "found a token that no HTTP header can carry; allowed are visible ASCII characters without spaces"
                    .to_owned(),
            );
        }
        Some(token.into())
    }

    /// What the two listeners must be to each other and to the token.
    pub(super) fn check_listeners(&mut self, public: SocketAddr, admin: SocketAddr, has_token: bool) {
        let token_mistaken = self.mistakes.iter().any(|mistake| mistake.variable.starts_with("ADMIN_TOKEN"));
        if !admin.ip().to_canonical().is_loopback() && !has_token && !token_mistaken {
            self.mistake(
                "ADMIN_HOST",
                format!(
                    "found \"{}\", which other machines may reach, and no ADMIN_TOKEN; allowed without a token are \
                     only loopback addresses such as 127.0.0.1",
                    admin.ip()
                ),
            );
        }
        let overlap =
            public.ip() == admin.ip() || public.ip().is_unspecified() || admin.ip().is_unspecified();
        if public.port() == admin.port() && public.port() != 0 && overlap {
            self.mistake(
                "ADMIN_PORT",
                format!("found \"{}\", which is also PORT; allowed is another one", admin.port()),
            );
        }
    }

    /// The kinds to sync, and the allow-list of each.
    pub(super) fn selection(
        &mut self,
        kinds: Option<&str>,
        fields: Option<&str>,
        others: &FieldsOfKinds,
    ) -> Selection {
        const VARIABLE: &str = "SYNC_ENTITIES";
        let chosen: Vec<&str> = list(present(kinds).unwrap_or(USER.kind)).collect();
        let allowed = entity::ALL.iter().map(|entity| entity.kind).collect::<Vec<_>>().join(", ");
        let is_known = |name: &&str| *name == "all" || entity::named(name).is_some();
        let unknown: Vec<String> =
            chosen.iter().filter(|name| !is_known(name)).map(|name| shown(name)).collect();
        if chosen.is_empty() || !unknown.is_empty() {
            let found = if chosen.is_empty() { "no kind".to_owned() } else { unknown.join(", ") };
            self.mistake(VARIABLE, format!("found {found}; allowed are all, or out of {allowed}"));
        }
        let mut selection = Selection::default();
        for entity in entity::ALL {
            let (variable, given) = others.of(entity).unwrap_or(("SYNC_FIELDS", fields));
            // What is wrong is told of kinds that are not synced as well.
            let fields = self.fields_of(entity, variable, given);
            if chosen.contains(&"all") || chosen.contains(&entity.kind) {
                selection = selection.with(entity, fields);
            }
        }
        for child in selection.entities() {
            for (_, parent) in child.parents().filter(|(_, parent)| !selection.has(parent)) {
                self.warnings.push(format!(
                    "{VARIABLE} names {} and not {parent}: what belongs to a deleted {parent} stays here until a reconcile \
                     finds that it is not at Clerk",
                    child.kind,
                    parent = parent.kind
                ));
            }
        }
        selection
    }

    fn fields_of(&mut self, entity: &'static Entity, variable: &str, given: Option<&str>) -> FieldSet {
        let Some(text) = present(given) else {
            return entity.fields().filter(|field| field.by_default).collect();
        };
        let allowed = entity.fields().map(Field::name).collect::<Vec<_>>().join(", ");
        if list(text).next().is_none() {
            self.mistake(variable, format!("found no field; allowed are {allowed}"));
        }
        let unknown: Vec<String> =
            list(text).filter(|name| entity.named(name).is_none()).map(shown).collect();
        if !unknown.is_empty() {
            self.mistake(variable, format!("found {}; allowed are {allowed}", unknown.join(", ")));
        }
        list(text).filter_map(|name| entity.named(name)).collect()
    }

    pub(super) fn deletion_policy(&mut self, given: Option<&str>) -> DeletionPolicy {
        let allowed = DeletionPolicy::ALL.map(DeletionPolicy::name).join(", ");
        self.value("DELETION_POLICY", given, &format!("one of {allowed}"), DeletionPolicy::named)
            .unwrap_or_default()
    }

    /// Addresses that are not synced are not ours to take from anybody.
    pub(super) fn unique_email(&mut self, given: Option<&str>, fields: FieldSet) -> bool {
        const VARIABLE: &str = "UNIQUE_EMAIL";
        let is_on = self.switch(VARIABLE, given);
        if is_on && !fields.contains(user::EMAIL) {
            self.mistake(
                VARIABLE,
                "found on, and SYNC_FIELDS has no email; allowed is on only with it".to_owned(),
            );
        }
        is_on
    }

    pub(super) fn processing(&mut self, given: Option<&str>) -> Processing {
        let allowed = Processing::ALL.map(Processing::name).join(" or ");
        self.value("PROCESSING", given, &allowed, Processing::named).unwrap_or_default()
    }

    pub(super) fn idle(&mut self, given: Option<&str>) -> Idle {
        let allowed = Idle::ALL.map(Idle::name).join(" or ");
        self.value("IDLE", given, &allowed, Idle::named).unwrap_or_default()
    }

    pub(super) fn anonymize_columns(&mut self, given: Option<&str>) -> Vec<String> {
        const VARIABLE: &str = "ANONYMIZE_COLUMNS";
        let mut columns: Vec<String> = Vec::new();
        for name in list(present(given).unwrap_or_default()) {
            if OWN_COLUMNS.contains(&name) || USER.named(name).is_some() {
                self.mistake(
                    VARIABLE,
                    format!(
                        "found {name:?}, a column of clerk-sync's own, which anonymisation sees to anyway; allowed are \
                         columns that your application added to the table users"
                    ),
                );
            } else if !is_name(name) {
                self.mistake(
                    VARIABLE,
                    format!("found {}; allowed are names of 1 to 63 bytes without quotes", shown(name)),
                );
            } else if !columns.iter().any(|column| column == name) {
                columns.push(name.to_owned());
            }
        }
        columns
    }

    pub(super) fn allowed_addresses(&mut self, given: Option<&str>) -> AllowedAddresses {
        const VARIABLE: &str = "WEBHOOK_ALLOWED_IPS";
        match present(given) {
            None => AllowedAddresses::Any,
            Some("svix") => AllowedAddresses::Svix,
            Some(text) if list(text).any(|element| element == "svix") => {
                self.mistake(
                    VARIABLE,
                    "found svix beside other addresses; allowed is either svix alone, or addresses and CIDRs"
                        .to_owned(),
                );
                AllowedAddresses::Any
            }
            Some(_) => AllowedAddresses::Networks(self.networks(VARIABLE, given)),
        }
    }

    pub(super) fn networks(&mut self, variable: &str, given: Option<&str>) -> Vec<IpNet> {
        let Some(text) = present(given) else { return Vec::new() };
        let allowed = if variable == "WEBHOOK_ALLOWED_IPS" { ", or svix" } else { "" };
        let allowed = format!("allowed are addresses and CIDRs, such as 203.0.113.7 or 10.0.0.0/8{allowed}");
        let mut networks = Vec::new();
        let mut wrong = Vec::new();
        for element in list(text) {
            match network(element) {
                Some(network) => networks.push(network),
                None => wrong.push(shown(element)),
            }
        }
        if !wrong.is_empty() {
            self.mistake(variable, format!("found {}; {allowed}", wrong.join(", ")));
        } else if networks.is_empty() {
            self.mistake(variable, format!("found no address; {allowed}"));
        }
        networks
    }

    pub(super) fn log_format(&mut self, given: Option<&str>) -> Option<LogFormat> {
        self.value("LOG_FORMAT", given, "pretty or json", LogFormat::named)
    }

    pub(super) fn log_filter(&mut self, given: Option<&str>) -> String {
        let allowed =
            "a level (error, warn, info, debug, trace, off) or a filter such as info,clerk_sync::http=debug";
        let read = |text: &str| telemetry::filter(text).is_some().then(|| text.to_owned());
        self.value("RUST_LOG", given, allowed, read).unwrap_or_else(|| DEFAULT_LOG_FILTER.to_owned())
    }

    pub(super) fn sentry_dsn(&mut self, given: Option<&str>, file: Option<&str>) -> Option<SecretString> {
        const VARIABLE: &str = "SENTRY_DSN";
        let dsn = self.secret(VARIABLE, given, file)?;
        let is_dsn = Url::parse(&dsn).is_ok_and(|url| {
            let mut segments = url.path_segments().into_iter().flatten().rev();
            matches!(url.scheme(), "https" | "http")
                && url.has_host()
                && !url.username().is_empty()
                && segments.next().is_some_and(|project| !project.is_empty())
        });
        if !is_dsn {
            self.mistake(
                VARIABLE,
                "found something that is no DSN; allowed is one as Sentry shows it (Project Settings, Client Keys): \
                 https://KEY@HOST/PROJECT"
                    .to_owned(),
            );
        }
        Some(dsn.into())
    }

    /// A name of which Sentry makes a label.
    pub(super) fn label(&mut self, variable: &str, given: Option<&str>, longest: usize) -> Option<String> {
        let allowed = format!("a name of up to {longest} visible characters without slashes");
        let read = |text: &str| {
            let is_name = text.len() <= longest && is_visible(text) && !text.contains(['/', '\\']);
            is_name.then(|| text.to_owned())
        };
        self.value(variable, given, &allowed, read)
    }

    /// One value that may be shown.
    fn value<T>(
        &mut self,
        variable: &str,
        given: Option<&str>,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = present(given)?;
        let value = read(text);
        if value.is_none() {
            self.mistake(variable, format!("found {}; allowed is {allowed}", shown(text)));
        }
        value
    }

    /// A value that must not be shown, given directly or in a file. None may stand in quotes: files of variables for Docker or
    /// systemd are not read as a shell would, and then the quotes would be part of it.
    fn secret(&mut self, variable: &str, given: Option<&str>, file: Option<&str>) -> Option<String> {
        let text = self.secret_as_given(variable, given, file)?;
        if is_quoted(&text) {
            self.mistake(
                variable,
                "it is in quotes, which would count as part of it; leave the quotes out".to_owned(),
            );
            return None;
        }
        Some(text)
    }

    fn secret_as_given(&mut self, variable: &str, given: Option<&str>, file: Option<&str>) -> Option<String> {
        let file_variable = format!("{variable}_FILE");
        match (present(given), present(file)) {
            (None, None) => None,
            (Some(text), None) => Some(text.to_owned()),
            (Some(_), Some(_)) => {
                self.mistake(
                    &file_variable,
                    format!("{variable} is set as well, and only one of them can count; remove the other"),
                );
                None
            }
            (None, Some(path)) => match fs::read_to_string(path) {
                Ok(text) if text.trim().is_empty() => {
                    self.mistake(&file_variable, format!("the file {} is empty", shown_path(path)));
                    None
                }
                Ok(text) => Some(text.trim().to_owned()),
                Err(error) => {
                    self.mistake(
                        &file_variable,
                        format!("the file {} cannot be read: {}", shown_path(path), unreadable(&error)),
                    );
                    None
                }
            },
        }
    }

    fn mistake(&mut self, variable: &str, explanation: String) {
        debug_assert!(
            super::Settings::variables().iter().any(|known| known == variable),
            "{}",
            flag(variable)
        );
        self.mistakes.push(Mistake { variable: variable.to_owned(), explanation });
    }
}

/// An empty value counts as unset: compose files and CI systems cannot do otherwise.
fn present(given: Option<&str>) -> Option<&str> {
    given.map(str::trim).filter(|text| !text.is_empty())
}

/// The elements of a list, separated by commas or white space; empty ones do not count.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| character == ',' || character.is_whitespace())
        .filter(|element| !element.is_empty())
}

/// A network, or a single address.
fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().ok().or_else(|| text.parse().map(|address: IpAddr| address.into()).ok());
    network.map(|network: IpNet| network.trunc())
}

/// A name that a database can have and that we can quote.
fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && !text.contains(|character: char| matches!(character, '"' | '\'' | '`') || character.is_control())
}

pub(super) fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The id of an instance of Clerk, or the word for all of them.
fn is_instance(text: &str) -> bool {
    let id = text.strip_prefix("ins_").filter(|id| !id.is_empty());
    let fits = |id: &str| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    text == "any" || id.is_some_and(fits)
}

/// Whether something stands in quotes of one kind.
fn is_quoted(text: &str) -> bool {
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    QUOTES.into_iter().any(|quote| inner(quote).is_some())
}

/// A path, unless it might be the secret itself.
fn shown_path(path: &str) -> String {
    if path.starts_with(['/', '.']) {
        shown(path)
    } else {
        "(its path is not shown, it might be the secret)".to_owned()
    }
}
