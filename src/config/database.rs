//! Parses database URLs, including those written for other tools.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    str::FromStr,
};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{mysql::MySqlConnectOptions, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};
use url::Url;

/// The forms that `DATABASE_URL` may have.
const ALLOWED: &str = "allowed: postgres://…, postgresql://…, mysql://…, mariadb://…, mongodb://…, mongodb+srv://… and sqlite://…";

const ENCODE: &str = "percent-encode special characters in the user name and the password \
                      (# as %23, / as %2F, ? as %3F, @ as %40, % as %25)";

/// The place of a server without a network address, for people.
const SOCKET: &str = "a local socket";

const SEVERAL: &str = "found several hosts; clerk-sync connects to one: name the host that accepts writes, or a DNS name, a \
                       pooler or a proxy that leads to it";

/// The database that stores the users.
#[derive(Clone, Debug)]
pub enum Database {
    /// The URL contains only parameters that the driver knows.
    Postgres { url: SecretString },
    /// MySQL or MariaDB. The URL names a database, and contains only parameters that the driver knows.
    Mysql { url: SecretString },
    /// The URL as given, so that the driver can report parameters that it does not know. It names a database.
    Mongodb { url: SecretString },
    /// The file is created if it is missing.
    Sqlite { path: PathBuf },
}

impl Database {
    /// Host and port, if the server is reached over the network.
    pub fn address(&self) -> Option<(String, u16)> {
        self.server()?.address
    }

    /// Where the database is, for people: without user, password or parameters.
    pub fn place(&self) -> String {
        match (self, self.server()) {
            (Self::Sqlite { path }, _) => format!("SQLite in {}", path.display()),
            (_, Some(Server { product, hosts, database, .. })) => {
                format!("{product} on {hosts}, database {database}")
            }
            (_, None) => "the database of DATABASE_URL".to_owned(),
        }
    }

    /// The server, if there is one and its URL can be parsed.
    fn server(&self) -> Option<Server> {
        let (product, is_socket, host, port, database) = match self {
            Self::Postgres { url } => {
                let options = PgConnectOptions::from_str(url.expose_secret()).ok()?;
                let host = options.get_host().to_owned();
                let is_socket = options.get_socket().is_some() || host.starts_with('/');
                let database = options.get_database().unwrap_or_default().to_owned();
                ("PostgreSQL", is_socket, host, options.get_port(), database)
            }
            Self::Mysql { url } => {
                let options = mysql_options(url).ok()?;
                let is_mariadb = url.expose_secret().starts_with("mariadb:");
                let product = if is_mariadb { "MariaDB" } else { "MySQL or MariaDB" };
                let database = options.get_database().unwrap_or_default().to_owned();
                let host = options.get_host().to_owned();
                (product, options.get_socket().is_some(), host, options.get_port(), database)
            }
            Self::Mongodb { url } => return mongodb_server(url.expose_secret()),
            Self::Sqlite { .. } => return None,
        };
        let address = (!is_socket).then(|| (host.trim_matches(['[', ']']).to_owned(), port));
        let hosts = address.as_ref().map_or_else(|| SOCKET.to_owned(), |(host, _)| host.clone());
        Some(Server { product, hosts, address, database })
    }
}

/// A server, as a URL describes it.
struct Server {
    product: &'static str,
    /// For people.
    hosts: String,
    /// `None` if the server is reached through a socket, or if the URL alone does not determine the address.
    address: Option<(String, u16)>,
    database: String,
}

/// How to connect to MySQL or MariaDB.
///
/// # Errors
/// The driver cannot use the URL. The driver's own error is dropped, because it may quote the URL.
pub fn mysql_options(url: &SecretString) -> Result<MySqlConnectOptions, &'static str> {
    let options = MySqlConnectOptions::from_str(url.expose_secret());
    let options = options.map_err(|_| "DATABASE_URL: the driver cannot use this URL")?;
    // A URL puts an IPv6 address in brackets; the resolver expects none.
    let host = options.get_host().trim_matches(['[', ']']).to_owned();
    Ok(options.host(&host))
}

/// A parsed database URL.
#[derive(Debug)]
pub(super) struct Understood {
    pub(super) database: Database,
    /// `connection_limit`.
    pub(super) connection_limit: Option<u32>,
    /// `schema`; used only for a warning.
    pub(super) schema: Option<String>,
    /// Warnings about ignored parameters: names only, never values.
    pub(super) warnings: Vec<String>,
}

impl Understood {
    pub(super) fn of(database: Database) -> Self {
        Self { database, connection_limit: None, schema: None, warnings: Vec::new() }
    }

    fn limit(&mut self, value: &str) {
        match value.parse() {
            Ok(limit) if limit > 0 => self.connection_limit = Some(limit),
            _ => self.warnings.push(ignored("connection_limit")),
        }
    }
}

/// Parses a database URL. The error shows only the scheme.
pub(super) fn understand(text: &str) -> Result<Understood, String> {
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(format!("found something that is not a URL; {ALLOWED}"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "postgres" | "postgresql" => postgres(text),
        "mysql" | "mariadb" => mysql(text),
        "mongodb" => mongodb(rest, MongodbScheme::Hosts),
        "mongodb+srv" => mongodb(rest, MongodbScheme::Srv),
        "sqlite" => sqlite(rest),
        scheme if rest.starts_with("//") && is_plain(scheme) => {
            Err(format!("found a URL that begins with {scheme}://; {ALLOWED}"))
        }
        _ => Err(format!("found something that is not a URL; {ALLOWED}")),
    }
}

fn postgres(text: &str) -> Result<Understood, String> {
    if authority(text).is_some_and(|(_, host)| host.contains(',')) {
        return Err(SEVERAL.to_owned());
    }
    let (text, hoisted) = without_empty_host(text);
    let mut url = Url::parse(&text)
        .ok()
        .filter(|url| url.fragment().is_none() && !url.cannot_be_a_base())
        .ok_or_else(|| format!("found a postgres URL that cannot be parsed; {ENCODE}"))?;
    let mut understood = Understood::of(Database::Postgres { url: SecretString::default() });
    let mut passed_on = hoisted;
    for (name, value) in url.query_pairs().into_owned() {
        match name.as_str() {
            "host" | "hostaddr" | "port" if value.contains(',') => return Err(SEVERAL.to_owned()),
            "schema" => understood.schema = Some(value).filter(|schema| !schema.is_empty()),
            // Sessions hold no state, so a pooler is no problem.
            "pgbouncer" => {}
            "connection_limit" => understood.limit(&value),
            // libpq's name for the authorities of the system, which are the driver's default.
            "sslrootcert" if value == "system" => {}
            "sslrootcert" | "sslcert" | "sslkey" if !Path::new(&value).exists() => {
                return Err(format!("found a postgres URL whose {name} names a file that does not exist"));
            }
            // The driver understands these.
            "sslmode"
            | "ssl-mode"
            | "sslrootcert"
            | "ssl-root-cert"
            | "ssl-ca"
            | "sslcert"
            | "ssl-cert"
            | "sslkey"
            | "ssl-key"
            | "statement-cache-capacity"
            | "host"
            | "hostaddr"
            | "port"
            | "dbname"
            | "user"
            | "password"
            | "application_name"
            | "options" => passed_on.push((name, value)),
            option if option.starts_with("options[") => passed_on.push((name, value)),
            _ => understood.warnings.push(ignored(&name)),
        }
    }
    url.set_query(None);
    if !passed_on.is_empty() {
        url.query_pairs_mut().extend_pairs(passed_on);
    }
    // The driver's errors may quote the URL.
    PgConnectOptions::from_str(url.as_str()).map_err(|_| {
        format!(
            "found a postgres URL with an invalid parameter value \
             (sslmode is one of disable, allow, prefer, require, verify-ca, verify-full), or with characters that are not \
             encoded; {ENCODE}"
        )
    })?;
    understood.database = Database::Postgres { url: String::from(url).into() };
    Ok(understood)
}

fn mysql(text: &str) -> Result<Understood, String> {
    const NAMELESS: &str = "found a mysql URL without a database; allowed: a URL that ends with its name, \
                            such as mysql://user@host/shop";
    let (who, place) = authority(text).unwrap_or_default();
    if place.contains(',') {
        return Err(SEVERAL.to_owned());
    }
    // A user without a host, which the URL standard does not allow.
    let text = match who {
        Some(who) if place.is_empty() || place.starts_with(':') => {
            Cow::from(text.replacen(&format!("{who}@{place}"), &format!("{who}@localhost{place}"), 1))
        }
        _ => text.into(),
    };
    let mut url = Url::parse(&text)
        .ok()
        .filter(|url| url.fragment().is_none() && !url.cannot_be_a_base())
        .ok_or_else(|| format!("found a mysql URL that cannot be parsed; {ENCODE}"))?;
    let name = url.path().trim_start_matches('/').trim_end_matches('/');
    if name.is_empty() {
        return Err(NAMELESS.to_owned());
    }
    if name.contains('/') {
        return Err(format!(
            "found a mysql URL with more than the name of a database after its host, or with characters that are not \
             encoded; {ENCODE}"
        ));
    }
    let name = format!("/{name}");
    url.set_path(&name);
    let mut understood = Understood::of(Database::Mysql { url: SecretString::default() });
    let (mut passed_on, mut mode, mut wished, mut certificate) = (Vec::new(), None, None, None);
    let mut has_key = false;
    for (name, value) in url.query_pairs().into_owned() {
        let is_inline = value.trim_start().starts_with("-----BEGIN");
        match name.to_ascii_lowercase().as_str() {
            "connection_limit" => understood.limit(&value),
            "ssl-mode" | "sslmode" | "ssl_mode" => mode = Some(ssl_mode(&value)?),
            // How Prisma and JavaScript drivers request TLS or certificate checks.
            "sslaccept" if value == "strict" => wished = Some("VERIFY_IDENTITY"),
            "sslaccept" if value == "accept_invalid_certs" => wished = wished.or(Some("PREFERRED")),
            "ssl" if value.contains("\"rejectUnauthorized\":true") => wished = Some("VERIFY_IDENTITY"),
            "ssl" if matches!(value.as_str(), "true" | "1") => wished = wished.or(Some("REQUIRED")),
            "ssl-ca" | "sslca" | "ssl_ca" | "ssl-cert" | "sslcert" | "ssl_cert" | "ssl-key" | "sslkey"
            | "ssl_key"
                if !is_inline && !Path::new(&value).exists() =>
            {
                return Err(format!("found a mysql URL whose {name} names a file that does not exist"));
            }
            "ssl-ca" | "sslca" | "ssl_ca" => passed_on.push(("ssl-ca", value)),
            "ssl-cert" | "sslcert" | "ssl_cert" => certificate = Some(value),
            "ssl-key" | "sslkey" | "ssl_key" => {
                has_key = true;
                passed_on.push(("ssl-key", value));
            }
            "socket" | "unix_socket" | "unix-socket" => passed_on.push(("socket", value)),
            "statement-cache-capacity" => passed_on.push(("statement-cache-capacity", value)),
            // Parameters such as charset and timezone: clerk-sync always uses UTF-8 and UTC.
            _ => understood.warnings.push(ignored(&name)),
        }
    }
    // With a key, it is the client's certificate. Without a key, it is the authority's, as Prisma writes it.
    if let Some(certificate) = certificate {
        passed_on.push((if has_key { "ssl-cert" } else { "ssl-ca" }, certificate));
    }
    // Like MySQL's own clients: naming an authority turns verification on.
    let checks = passed_on.iter().any(|(name, _)| *name == "ssl-ca").then_some("VERIFY_CA");
    if let Some(mode) = mode.or(wished).or(checks) {
        passed_on.push(("ssl-mode", mode.to_owned()));
    }
    url.set_query(None);
    if !passed_on.is_empty() {
        url.query_pairs_mut().extend_pairs(passed_on);
    }
    let url = SecretString::from(String::from(url));
    mysql_options(&url)
        .map_err(|_| format!(
            "found a mysql URL with an invalid parameter value, or with characters that are not encoded; {ENCODE}"
        ))?;
    understood.database = Database::Mysql { url };
    Ok(understood)
}

/// The driver's name of the mode. Other tools spell it differently.
fn ssl_mode(value: &str) -> Result<&'static str, String> {
    Ok(match value.to_ascii_lowercase().replace('-', "_").as_str() {
        "disabled" | "disable" => "DISABLED",
        "preferred" | "prefer" => "PREFERRED",
        "required" | "require" => "REQUIRED",
        "verify_ca" => "VERIFY_CA",
        "verify_identity" | "verify_full" => "VERIFY_IDENTITY",
        _ => {
            let allowed = "DISABLED, PREFERRED, REQUIRED, VERIFY_CA, VERIFY_IDENTITY";
            return Err(format!("found a mysql URL with an invalid ssl-mode; allowed: {allowed}"));
        }
    })
}

/// How a MongoDB URL names its servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MongodbScheme {
    /// One by one.
    Hosts,
    /// By one name; DNS lists the hosts.
    Srv,
}

impl MongodbScheme {
    fn name(self) -> &'static str {
        match self {
            Self::Hosts => "mongodb",
            Self::Srv => "mongodb+srv",
        }
    }
}

/// Parsed by hand, because MongoDB URLs may name several hosts, which the URL standard does not allow. The driver reports
/// unknown parameters.
fn mongodb(rest: &str, scheme: MongodbScheme) -> Result<Understood, String> {
    const NAMELESS: &str = "found a mongodb URL without a database; allowed: a URL that names it after the hosts, such as \
                            mongodb://user@host/shop";
    let unreadable = || format!("found a mongodb URL that cannot be parsed; {ENCODE}");
    let rest = rest.strip_prefix("//").ok_or_else(unreadable)?;
    let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let (who, hosts) =
        authority.rsplit_once('@').map_or((None, authority), |(who, hosts)| (Some(who), hosts));
    // Unencoded characters in a password would shift the parts of the URL, and parts of the password would be shown as names.
    let is_encoded = |who: &str| who.matches(':').count() <= 1 && !who.contains(['@', '[', ']', '#', ' ']);
    if !who.is_none_or(is_encoded) || (who.is_none() && rest.contains('@')) || rest.contains('#') {
        return Err(unreadable());
    }
    let (hosts, named) = (hosts.split(',').map(host_and_port), hosts);
    let hosts: Vec<(String, Option<u16>)> = hosts.collect::<Option<_>>().ok_or_else(unreadable)?;
    if scheme == MongodbScheme::Srv && (hosts.len() > 1 || hosts[0].1.is_some()) {
        return Err(
            "found a mongodb+srv URL with several hosts or with a port; allowed: one name, for which DNS lists the \
             hosts"
                .to_owned(),
        );
    }
    let database = database.trim_end_matches('/');
    if database.is_empty() {
        return Err(NAMELESS.to_owned());
    }
    if database.contains(['/', '\\', '.', '"', '$', ' ', '@', ':']) {
        return Err(format!(
            "found a mongodb URL with more than the name of a database after its hosts, or with characters that are not \
             encoded; {ENCODE}"
        ));
    }
    let mut understood = Understood::of(Database::Mongodb { url: SecretString::default() });
    for (name, value) in url::form_urlencoded::parse(parameters.as_bytes()) {
        match name.to_ascii_lowercase().as_str() {
            "tlscafile" | "tlscertificatekeyfile" if !Path::new(&*value).exists() => {
                return Err(format!("found a mongodb URL whose {name} names a file that does not exist"));
            }
            // Means the same as connection_limit. The driver receives the resulting number.
            "maxpoolsize" => understood.connection_limit = value.parse().ok().filter(|limit| *limit > 0),
            _ => {}
        }
    }
    let (scheme, who) = (scheme.name(), who.map(|who| format!("{who}@")).unwrap_or_default());
    let parameters = if parameters.is_empty() { String::new() } else { format!("?{parameters}") };
    let url = format!("{scheme}://{who}{named}/{database}{parameters}");
    understood.database = Database::Mongodb { url: url.into() };
    Ok(understood)
}

/// The servers that a MongoDB URL names.
fn mongodb_server(url: &str) -> Option<Server> {
    const PORT: u16 = 27017;
    let (_, hosts) = authority(url)?;
    let hosts: Vec<(String, Option<u16>)> = hosts.split(',').map(host_and_port).collect::<Option<_>>()?;
    let is_socket = |host: &str| host.starts_with('/');
    let shown = |host: &str| if is_socket(host) { SOCKET.to_owned() } else { host.to_owned() };
    let database = url.split_once("://")?.1.split_once('/')?.1;
    let database = database.split_once('?').map_or(database, |(name, _)| name);
    let address = match hosts.as_slice() {
        // With several hosts any of them may answer, and for an SRV name only DNS knows the hosts.
        [(host, port)] if !is_socket(host) && !url.starts_with("mongodb+srv") => {
            Some((host.clone(), port.unwrap_or(PORT)))
        }
        _ => None,
    };
    Some(Server {
        product: "MongoDB",
        hosts: hosts.iter().map(|(host, _)| shown(host)).collect::<Vec<_>>().join(", "),
        address,
        database: decoded(database)?,
    })
}

/// A MongoDB host or the path of a socket, and the port if there is one.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(inside) => {
            let (host, rest) = inside?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
            (host, port)
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0)?),
    };
    let host = decoded(host)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let is_host = host.starts_with('/') || host.chars().all(is_name);
    (!host.is_empty() && is_host).then_some((host, port))
}

/// Decodes percent-encoding. A plus stays a plus.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (code, others) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(str::from_utf8(code).ok()?, 16).ok()?);
        rest = others;
    }
    String::from_utf8(bytes).ok()
}

/// User and password as written, if there are any, and the rest of the authority.
fn authority(text: &str) -> Option<(Option<&str>, &str)> {
    let (_, rest) = text.split_once("://")?;
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    Some(authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host)))
}

/// `postgres://user@/shop?host=…` names a user without a host, which the URL standard does not allow. User, password and port
/// become parameters.
fn without_empty_host(text: &str) -> (Cow<'_, str>, Vec<(String, String)>) {
    let Some((Some(who), place)) = authority(text) else { return (text.into(), Vec::new()) };
    let port = place.strip_prefix(':');
    if !place.is_empty() && port.is_none() {
        return (text.into(), Vec::new());
    }
    let (user, password) = who.split_once(':').map_or((who, None), |(user, password)| (user, Some(password)));
    let given = [("user", Some(user)), ("password", password), ("port", port)];
    let given =
        given.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    // In this part of a URL a plus is a plus; in parameters it would be a space.
    let given =
        given.map(|(name, value)| format!("{name}={}", value.replace('+', "%2B").replace('&', "%26")));
    let hoisted =
        url::form_urlencoded::parse(given.collect::<Vec<_>>().join("&").as_bytes()).into_owned().collect();
    (text.replacen(&format!("{who}@{place}"), "", 1).into(), hoisted)
}

fn sqlite(rest: &str) -> Result<Understood, String> {
    let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let mut path = path.strip_prefix("//").unwrap_or(path);
    // Some tools write an absolute path with four slashes; the driver would treat two of them as part of the scheme.
    while path.starts_with("//") {
        path = &path[1..];
    }
    let parameters: Vec<_> = url::form_urlencoded::parse(parameters.as_bytes()).collect();
    let has = |name: &str, value: &str| parameters.iter().any(|(n, v)| n == name && v == value);
    if path == ":memory:" || path.starts_with("file:") || has("mode", "memory") {
        return Err(
            "found a database in memory, which would lose every user and every processed webhook at a restart; \
             allowed: a file, such as sqlite://clerk-sync.db"
                .to_owned(),
        );
    }
    if has("mode", "ro") || has("immutable", "1") || has("immutable", "true") {
        return Err("found a read-only database; allowed: a database that can be written to".to_owned());
    }
    if path.is_empty() {
        return Err("found no path after sqlite:; allowed: a file, such as sqlite://clerk-sync.db".to_owned());
    }
    // The driver decodes percent-encoding.
    let path = SqliteConnectOptions::from_str(&format!("sqlite:{path}"))
        .map_err(|_| "found a path that cannot be parsed; allowed: a file, such as sqlite://clerk-sync.db")?
        .get_filename()
        .to_owned();
    let mut understood = Understood::of(Database::Sqlite { path });
    let others = parameters.iter().filter(|(name, _)| name != "mode");
    understood.warnings = others.map(|(name, _)| ignored(name)).collect();
    Ok(understood)
}

fn ignored(name: &str) -> String {
    // Part of a password that was not percent-encoded can end up as a parameter name.
    let name = if is_plain(name) { name } else { "(not shown)" };
    format!("DATABASE_URL: the parameter {name} is ignored")
}

fn is_plain(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn url(text: &str) -> String {
        match understand(text).expect("understood").database {
            Database::Postgres { url } | Database::Mysql { url } | Database::Mongodb { url } => {
                url.expose_secret().to_owned()
            }
            Database::Sqlite { path } => panic!("a file: {}", path.display()),
        }
    }

    fn path(text: &str) -> String {
        match understand(text).expect("understood").database {
            Database::Postgres { .. } | Database::Mysql { .. } | Database::Mongodb { .. } => {
                panic!("a server")
            }
            Database::Sqlite { path } => path.display().to_string(),
        }
    }

    #[test]
    fn a_prisma_url_is_cleaned_of_what_the_driver_does_not_know() {
        let text = "postgresql://app:s%40fe@db.example:6543/shop?schema=public&pgbouncer=true&connection_limit=5\
                    &pool_timeout=10&sslmode=require&sslaccept=strict&channel_binding=require";
        let understood = understand(text).expect("understood");
        assert_eq!(url(text), "postgresql://app:s%40fe@db.example:6543/shop?sslmode=require");
        assert_eq!(understood.connection_limit, Some(5));
        assert_eq!(understood.schema.as_deref(), Some("public"));
        assert_eq!(
            understood.warnings,
            [
                "DATABASE_URL: the parameter pool_timeout is ignored",
                "DATABASE_URL: the parameter sslaccept is ignored",
                "DATABASE_URL: the parameter channel_binding is ignored",
            ]
        );
    }

    #[test]
    fn a_server_has_an_address_if_the_url_itself_names_it() {
        let address = |text: &str| understand(text).expect("understood").database.address();
        let at = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(address("postgres://app:hunter2@db.example/app"), at("db.example", 5432));
        assert_eq!(address("postgres://[::1]:6543/app"), at("::1", 6543));
        assert_eq!(address("postgres:///shop?host=db.example&port=6543"), at("db.example", 6543));
        assert_eq!(address("postgres://u@/shop?hostaddr=10.0.0.1"), at("10.0.0.1", 5432));
        for text in ["sqlite://x.db", "postgres:///shop?host=%2Frun", "postgres://%2Frun/shop"] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[test]
    fn what_the_driver_knows_is_passed_on() {
        for text in [
            "postgres://localhost/shop",
            "postgres:///shop?host=%2Fvar%2Frun%2Fpostgresql",
            "postgres://app@localhost/shop?application_name=users&options=-c+geqo%3Doff",
        ] {
            assert_eq!(url(text), text);
            assert_eq!(understand(text).expect("understood").warnings, [""; 0]);
        }
    }

    #[test]
    fn a_user_without_a_host_is_understood() {
        for (text, expected) in [
            ("postgres://app@/shop?host=db.example", "postgres:///shop?user=app&host=db.example"),
            (
                "postgres://app:s%40fe@/shop?host=%2Frun",
                "postgres:///shop?user=app&password=s%40fe&host=%2Frun",
            ),
            ("postgres://app@:6543/shop", "postgres:///shop?user=app&port=6543"),
        ] {
            assert_eq!(url(text), expected, "{text}");
        }
        let place = understand("postgres://app@/shop?host=db.example").expect("understood").database.place();
        assert_eq!(place, "PostgreSQL on db.example, database shop");
    }

    #[test]
    fn several_hosts_are_refused_in_words_that_say_so() {
        for text in [
            "postgres://u:hunter2@a.example:5432,b.example:5432/d?target_session_attrs=read-write",
            "postgres://a.example,b.example/d",
            "postgres://u:hunter2@/d?host=a.example,b.example&port=5432,5433",
            "postgres://a.example/d?port=5432,5433",
        ] {
            let explanation = understand(text).expect_err(text);
            assert!(
                explanation.contains("several hosts") && !explanation.contains("hunter2"),
                "{explanation}"
            );
        }
        assert_eq!(url("postgres://u:a,b@db.example/d"), "postgres://u:a,b@db.example/d");
    }

    #[test]
    fn a_mysql_url_is_cleaned_of_what_the_driver_does_not_know() {
        let text = "mysql://app:s%40fe@db.example:3307/shop?connection_limit=5&pool_timeout=10&sslaccept=strict\
                    &charset=latin1&timezone=Europe%2FBerlin&allowPublicKeyRetrieval=true";
        let understood = understand(text).expect("understood");
        assert_eq!(url(text), "mysql://app:s%40fe@db.example:3307/shop?ssl-mode=VERIFY_IDENTITY");
        assert_eq!(understood.connection_limit, Some(5));
        assert_eq!(understood.database.place(), "MySQL or MariaDB on db.example, database shop");
        assert_eq!(
            understood.warnings,
            [
                "DATABASE_URL: the parameter pool_timeout is ignored",
                "DATABASE_URL: the parameter charset is ignored",
                "DATABASE_URL: the parameter timezone is ignored",
                "DATABASE_URL: the parameter (not shown) is ignored",
            ]
        );
    }

    #[test]
    fn what_is_said_of_tls_is_passed_on_as_the_driver_knows_it() {
        for (given, passed_on) in [
            ("", ""),
            ("?ssl-mode=REQUIRED", "?ssl-mode=REQUIRED"),
            ("?sslmode=verify-full", "?ssl-mode=VERIFY_IDENTITY"),
            ("?sslMode=VERIFY_CA", "?ssl-mode=VERIFY_CA"),
            ("?ssl=true", "?ssl-mode=REQUIRED"),
            ("?ssl={%22rejectUnauthorized%22:true}", "?ssl-mode=VERIFY_IDENTITY"),
            ("?ssl-mode=DISABLED&sslaccept=strict", "?ssl-mode=DISABLED"),
            ("?sslcert=Cargo.toml", "?ssl-ca=Cargo.toml&ssl-mode=VERIFY_CA"),
            ("?sslaccept=accept_invalid_certs&sslcert=Cargo.toml", "?ssl-ca=Cargo.toml&ssl-mode=PREFERRED"),
            ("?sslcert=Cargo.toml&sslkey=Cargo.lock", "?ssl-key=Cargo.lock&ssl-cert=Cargo.toml"),
        ] {
            assert_eq!(url(&format!("mysql://h/d{given}")), format!("mysql://h/d{passed_on}"), "{given}");
        }
    }

    #[test]
    fn a_mysql_server_has_an_address_or_a_socket() {
        let address = |text: &str| understand(text).expect("understood").database.address();
        let at = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(address("mysql://app:hunter2@db.example/app"), at("db.example", 3306));
        assert_eq!(address("mariadb://[::1]:3307/app"), at("::1", 3307));
        assert_eq!(address("mysql://app@/shop"), at("localhost", 3306));
        assert_eq!(address("mysql://app@:3307/shop"), at("localhost", 3307));
        for socket in ["socket=%2Frun%2Fmysqld%2Fmysqld.sock", "unix_socket=/run/mysqld/mysqld.sock"] {
            let database = understand(&format!("mariadb://app@/shop?{socket}")).expect("understood").database;
            assert_eq!(database.address(), None);
            assert_eq!(database.place(), "MariaDB on a local socket, database shop");
        }
        let Database::Mysql { url } = understand("mysql://[::1]/app").expect("understood").database else {
            panic!("another database")
        };
        assert_eq!(mysql_options(&url).expect("options").get_host(), "::1");
    }

    #[test]
    fn a_mysql_url_names_one_server_and_a_database() {
        for text in ["mysql://u@h", "mysql://u@h/", "mariadb://h:3306?ssl-mode=REQUIRED"] {
            assert!(understand(text).expect_err(text).contains("without a database"), "{text}");
        }
        assert!(understand("mysql://a.example,b.example/d").expect_err("refused").contains("several hosts"));
    }

    #[test]
    fn a_mongodb_url_is_passed_on_as_it_is() {
        for text in [
            "mongodb://localhost/shop",
            "mongodb://app:s%40fe@a.example:27018,b.example/shop?replicaSet=rs0&authSource=admin",
            "mongodb+srv://app:s%40fe@cluster0.example/shop?retryWrites=true&w=majority",
            "mongodb://%2Ftmp%2Fmongodb-27017.sock/shop",
            "mongodb://app@[::1]:27018/shop?appName=with%20blanks",
        ] {
            assert_eq!(url(text), text);
            assert_eq!(understand(text).expect("understood").warnings, [""; 0]);
        }
        assert_eq!(url("MongoDB://localhost/shop/"), "mongodb://localhost/shop");
        assert_eq!(understand("mongodb://h/d?maxPoolSize=4").expect("understood").connection_limit, Some(4));
        assert_eq!(understand("mongodb://h/d?maxPoolSize=0").expect("understood").connection_limit, None);
    }

    #[test]
    fn a_mongodb_has_an_address_if_its_url_names_one_server() {
        let database = |text: &str| understand(text).expect("understood").database;
        for (text, address, place) in [
            (
                "mongodb://app:hunter2@db.example/app",
                Some(("db.example", 27017)),
                "MongoDB on db.example, database app",
            ),
            ("mongodb://[::1]:27018/app", Some(("::1", 27018)), "MongoDB on ::1, database app"),
            (
                "mongodb://u:p@a.example:27018,b.example/app?replicaSet=rs0",
                None,
                "MongoDB on a.example, b.example, database app",
            ),
            (
                "mongodb+srv://u:p@cluster0.example/my%2Dapp",
                None,
                "MongoDB on cluster0.example, database my-app",
            ),
            ("mongodb://%2Ftmp%2Fmongodb-27017.sock/app", None, "MongoDB on a local socket, database app"),
        ] {
            let address = address.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(
                (database(text).address(), database(text).place().as_str()),
                (address, place),
                "{text}"
            );
        }
    }

    #[test]
    fn a_mongodb_url_names_a_database() {
        for text in
            ["mongodb://u@h", "mongodb://u@h/", "mongodb+srv://h?w=majority", "mongodb://a,b/?replicaSet=r"]
        {
            assert!(understand(text).expect_err(text).contains("without a database"), "{text}");
        }
        for text in ["mongodb+srv://a.example,b.example/d", "mongodb+srv://a.example:27017/d"] {
            assert!(understand(text).expect_err(text).contains("one name"), "{text}");
        }
    }

    #[test]
    fn a_sqlite_url_names_a_file_in_any_of_its_spellings() {
        assert_eq!(path("sqlite://clerk-sync.db"), "clerk-sync.db");
        assert_eq!(path("sqlite:///data/x.db"), "/data/x.db");
        assert_eq!(path("sqlite:////data/x.db"), "/data/x.db");
        assert_eq!(path("sqlite:x.db"), "x.db");
        assert_eq!(path("sqlite:./a/x.db?mode=rwc"), "./a/x.db");
        assert_eq!(path("sqlite:my%20users.db"), "my users.db");
    }

    #[test]
    fn a_database_that_cannot_keep_anything_is_refused() {
        for text in ["sqlite::memory:", "sqlite://:memory:", "sqlite:x.db?mode=memory"] {
            assert!(understand(text).expect_err("refused").contains("in memory"), "{text}");
        }
        assert!(understand("sqlite:x.db?mode=ro").expect_err("refused").contains("written"));
        assert!(understand("sqlite://").expect_err("refused").contains("no path"));
    }

    #[test]
    fn no_more_than_the_scheme_is_shown_of_a_url_that_cannot_be_used() {
        for text in [
            "hunter2",
            "hunter2:hunter2",
            "mssql://u:hunter2@h/d",
            "mysql://u:hunter2@h",
            "mysql://u:hunter2/x@h/d",
            "mysql://u:hunter2#x@h/d",
            "mysql://u:p@h/hunter2/d",
            "mysql://u:p@h:hunter2/d",
            "mysql://u:p@h/d?ssl-mode=hunter2",
            "mysql://u:p@h/d?ssl-ca=hunter2",
            "mysql://u:p@h/d?statement-cache-capacity=hunter2",
            "mariadb:hunter2",
            "mongodb:hunter2",
            "mongodb://u:hunter2@h",
            "mongodb://u:hunter2@h/",
            "mongodb://u:hunter2@/d",
            "mongodb://u:hunter2/x@h/d",
            "mongodb://u:1/hunter2@h/d",
            "mongodb://u:1/hunter2?x@h/d",
            "mongodb://u:1?hunter2@h/d",
            "mongodb://u:hunter2#x@h/d",
            "mongodb://u:hunter2@x@h/d",
            "mongodb://u:hunter2:x@h/d",
            "mongodb://u:p@h:hunter2/d",
            "mongodb://u:p@h:0/d?x=hunter2",
            "mongodb://u:p@h%hunter2/d",
            "mongodb://u:p@h/hunter2/d",
            "mongodb://u:p@h/d?tlsCAFile=hunter2",
            "mongodb+srv://u:hunter2@a,b/d",
            "hunter2:x://h",
            "postgres://u:hunter2#x@h/d",
            "postgres://u:hunter2/x@h/d",
            "postgres://u:1#hunter2@h/d",
            "postgres:hunter2",
            "postgres://u:p@h/d?sslmode=hunter2",
            "postgres://u:p@h:hunter2/d",
        ] {
            let explanation = understand(text).expect_err(text);
            assert!(!explanation.contains("hunter2"), "{explanation}");
        }
        assert!(understand("mssql://u:p@h/d").expect_err("refused").contains("mssql://"));
        let warnings = understand("postgres://h/d?hunter2=1&Hunter%23=2").expect("understood").warnings;
        assert!(!format!("{warnings:?}").contains("unter2"), "{warnings:?}");
    }
}
