//! The real binary, as its users run it. Each test starts the binary in its own directory on its own database, talks to
//! it over TCP, reads its log, and stops or kills it.
//!
//! A backend whose server is absent skips its tests with a printed line, unless `REQUIRE_STORES` names it. `attacks` and
//! `outages` repeat their attempts only a few times, unless `TEST_LOAD=full`.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    ffi::OsStr,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use chrono::Utc;
use mongodb::bson::{Document, doc};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection as _, MySqlConnection, PgConnection, Row, SqliteConnection,
    mysql::MySqlConnectOptions, postgres::PgConnectOptions, sqlite::SqliteConnectOptions,
};
use standardwebhooks::Webhook;
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub(crate) use crate::world::Keeper;
use crate::{
    mirror::Mirror,
    secantus,
    world::{SQL_MODE, without_zones},
};

/// The endpoint's secret, unless a test sets another one.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Another secret.
pub(crate) const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// The Clerk instance of events and users: that of the fake Clerk, unless a test sets another one.
pub(crate) const INSTANCE: &str = "ins_2fakefakefakefakefakefakefa";

/// The time limit for events that normally happen soon, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Make each of these functions a test for each backend; they take a `&mut` [`Host`].
macro_rules! on_each_keeper {
    ($($test:ident),+ $(,)?) => {
        mod postgres {
            $(#[test] fn $test() { $crate::service::on($crate::service::Keeper::Postgres, super::$test); })+
        }
        mod sqlite {
            $(#[test] fn $test() { $crate::service::on($crate::service::Keeper::Sqlite, super::$test); })+
        }
        mod mariadb {
            $(#[test] fn $test() { $crate::service::on($crate::service::Keeper::Mariadb, super::$test); })+
        }
        mod mysql {
            $(#[test] fn $test() { $crate::service::on($crate::service::Keeper::Mysql, super::$test); })+
        }
        mod mongodb {
            $(#[test] fn $test() { $crate::service::on_mongodb(stringify!($test), super::$test); })+
        }
    };
}
pub(crate) use on_each_keeper;

/// Run a test on a fresh database of this backend, if its server is available.
pub(crate) fn on(keeper: Keeper, test: fn(&mut Host)) {
    if let Some(mut host) = Host::with(keeper) {
        test(&mut host);
    }
}

/// The same on MongoDB, if the test applies there. A test that kills the service gets its own server.
pub(crate) fn on_mongodb(name: &str, test: fn(&mut Host)) {
    if !secantus::applies(name) {
        return;
    }
    let own = secantus::kills(name).then(secantus::Server::start).flatten();
    let server = own.as_ref().map_or_else(|| Keeper::Mongodb.server_url(), secantus::Server::url);
    if let Some(mut host) = Host::at(Keeper::Mongodb, server) {
        host.has_own_server = own.is_some();
        test(&mut host);
    }
}

/// A number of attempts: small, unless `TEST_LOAD=full`.
pub(crate) fn load(usual: usize, full: usize) -> usize {
    if env::var("TEST_LOAD").is_ok_and(|load| load == "full") { full } else { usual }
}

/// Let only one test at a time keep the machine busy, so that deadlines are meaningful.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static BUSY: Mutex<()> = Mutex::new(());
    BUSY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Report that a test is skipped because `name` is missing; fails if it is required.
pub(crate) fn skip(name: &str, why: &str) {
    let required = env::var("REQUIRE_STORES").unwrap_or_default();
    assert!(!required.split([',', ' ']).any(|store| store == name), "{name} is required: {why}");
    // Without a macro, because the test harness hides the output of macros when a test passes.
    _ = writeln!(io::stderr(), "skipped because {name} is missing: {why}");
}

/// A port of 127.0.0.1 on which no program listens.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A command for a program that refuses to run as root. For root it runs as `postgres`, in the process that is started.
pub(crate) fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
    command
}

/// Print the counts of a test, for `scripts/prove`.
pub(crate) fn measured(what: &str) {
    // Without a macro, as above.
    _ = writeln!(io::stderr(), "measured: {what}");
}

/// Wait for a condition; fails after [`SOON`] and names the condition.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < SOON, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Tells other threads to end, even when this one panics, because a scope waits for all its threads.
pub(crate) struct Until<'a>(pub(crate) &'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A unique name.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}{:08x}{:04}", rand::random::<u32>(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A machine to run the program on: a directory, an environment and a database.
pub(crate) struct Host {
    pub(crate) keeper: Keeper,
    pub(crate) directory: TempDir,
    pub(crate) schema: String,
    server: String,
    environment: BTreeMap<String, String>,
    /// A directory that the program does not see.
    aside: TempDir,
    /// Whether the server is used only by this test. Sessions that a killed process leaves open are then ended at once.
    pub(crate) has_own_server: bool,
}

impl Host {
    pub(crate) fn with(keeper: Keeper) -> Option<Self> {
        Self::at(keeper, keeper.server_url())
    }

    /// A host whose database is on this server.
    pub(crate) fn at(keeper: Keeper, server: String) -> Option<Self> {
        let name = keeper.name();
        let directory = tempfile::tempdir().expect("a directory");
        let mut host = Self {
            keeper,
            directory,
            schema: unique("it_"),
            server,
            environment: BTreeMap::new(),
            aside: tempfile::tempdir().expect("a directory"),
            has_own_server: false,
        };
        if keeper != Keeper::Sqlite
            && let Err(error) = host.try_connect("public", None)
        {
            skip(name, &format!("its server cannot be used: {error}"));
            return None;
        }
        let url = match keeper {
            Keeper::Postgres => host.postgres_url(&host.server),
            Keeper::Sqlite => format!("sqlite://{}", host.path("users.db")),
            Keeper::Mariadb | Keeper::Mysql => {
                let made = host
                    .try_connect("public", None)
                    .expect("a connection")
                    .run(&format!("CREATE DATABASE {}", host.schema));
                made.expect("a database");
                let mut url = url::Url::parse(&host.server).expect("a URL");
                url.set_path(&host.schema);
                url.to_string()
            }
            Keeper::Mongodb => secantus::url_of(&host.server, &host.schema),
        };
        if keeper == Keeper::Postgres {
            host.set("DATABASE_SCHEMA", &host.schema.clone());
        }
        for (name, value) in [
            ("DATABASE_URL", url.as_str()),
            ("CLERK_WEBHOOK_SIGNING_SECRET", SECRET),
            ("PORT", "0"),
            ("ADMIN_PORT", "0"),
            ("LOG_FORMAT", "json"),
        ] {
            host.set(name, value);
        }
        Some(host)
    }

    /// The URL of a server, with an application name that identifies the service's sessions.
    fn postgres_url(&self, server: &str) -> String {
        let separator = if server.contains('?') { '&' } else { '?' };
        format!("{server}{separator}application_name={}", self.schema)
    }

    /// The address of the PostgreSQL server.
    pub(crate) fn postgres_address(&self) -> (String, u16) {
        let url = url::Url::parse(&self.server).expect("TEST_POSTGRES_URL is a URL");
        (url.host_str().unwrap_or("127.0.0.1").to_owned(), url.port().unwrap_or(5432))
    }

    /// User and password of the PostgreSQL server, in the format of a connection string.
    pub(crate) fn postgres_credentials(&self) -> String {
        let url = url::Url::parse(&self.server).expect("TEST_POSTGRES_URL is a URL");
        let password = url.password().map(|password| format!(" password={password}")).unwrap_or_default();
        format!("user={}{password}", url.username())
    }

    /// Let the service reach its server at another address.
    pub(crate) fn reach_server_at(&mut self, address: SocketAddr) {
        if self.keeper == Keeper::Mongodb {
            let url = secantus::with_host(self.get("DATABASE_URL"), &address.to_string());
            return self.set("DATABASE_URL", &url);
        }
        let mut url = url::Url::parse(self.get("DATABASE_URL")).expect("a URL");
        url.set_host(Some(&address.ip().to_string())).expect("a host");
        url.set_port(Some(address.port())).expect("a port");
        self.set("DATABASE_URL", url.as_str());
    }

    /// Use a whole database instead of a schema, for tests that change settings of the database.
    pub(crate) fn use_own_database(&mut self) -> OwnDatabase {
        let name = unique("it_db_");
        let own = OwnDatabase { name: name.clone(), server: self.server.clone() };
        own.run_beside(&format!("CREATE DATABASE {name}"));
        let mut url = url::Url::parse(&self.server).expect("TEST_POSTGRES_URL is a URL");
        url.set_path(&name);
        self.server = url.to_string();
        let url = self.postgres_url(&self.server);
        self.set("DATABASE_URL", &url);
        own
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.environment.remove(name);
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        &self.environment[name]
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// The program with this environment, without the environment of the tests.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let program = env::var_os("TEST_PROGRAM").unwrap_or(env!("CARGO_BIN_EXE_clerk-sync").into());
        self.command_of(&program, arguments)
    }

    /// The same with another program, such as one of an earlier version.
    fn command_of(&self, program: &OsStr, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(&self.environment)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(path) = env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
    }

    /// Run a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        let mut child = self.command(arguments).spawn().expect("the program starts");
        let (out, err) = (gather(child.stdout.take()), gather(child.stderr.take()));
        let status = wait(&mut child, 2 * SOON);
        let read = |(text, reader): (Text, JoinHandle<()>)| {
            reader.join().expect("the reader");
            text.get()
        };
        Finished { code: status.code(), stdout: read(out), stderr: read(err) }
    }

    /// Run a command at a terminal where this text is typed. Output and errors arrive together there. `None` if no
    /// program can create a terminal.
    pub(crate) fn run_at_terminal(&self, arguments: &[&str], typed: &str) -> Option<Finished> {
        let plain = self.command(arguments);
        let words = [plain.get_program()].into_iter().chain(plain.get_args());
        let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"])
            .env_clear()
            .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                skip("script", &format!("the program script of util-linux cannot be run: {error}"));
                return None;
            }
        };
        // Keep the input open until the end, as a person at the terminal would.
        let mut keyboard = child.stdin.take().expect("a pipe");
        keyboard.write_all(typed.as_bytes()).expect("typed");
        let (text, reader) = gather(child.stdout.take());
        let status = wait(&mut child, 2 * SOON);
        drop(keyboard);
        reader.join().expect("the reader");
        Some(Finished { code: status.code(), stdout: text.get(), stderr: String::new() })
    }

    /// Start the service and wait until it is ready.
    pub(crate) fn serve(&self) -> Service {
        self.serve_with(&[])
    }

    /// The same with another program.
    pub(crate) fn serve_by(&self, program: &OsStr) -> Service {
        let service = self.kept(Service::start(self.command_of(program, &["serve"])));
        eventually("ready", || service.status("/readyz") == Some(200));
        service
    }

    pub(crate) fn serve_with(&self, arguments: &[&str]) -> Service {
        let service = self.begin(arguments);
        eventually("ready", || service.status("/readyz") == Some(200));
        service
    }

    /// Start a worker and wait until it is ready.
    pub(crate) fn work(&self) -> Service {
        let worker = self.kept(Service::start(self.command(&["worker"])));
        eventually("ready", || worker.status("/readyz") == Some(200));
        worker
    }

    /// Start the service and wait until it listens.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Service {
        let arguments: Vec<&str> = ["serve"].iter().chain(arguments).copied().collect();
        self.kept(Service::start(self.command(&arguments)))
    }

    /// Set the fields that the service needs at its end.
    fn kept(&self, mut service: Service) -> Service {
        service.server = self.has_own_server.then(|| self.server.clone());
        service.leaves_in_order = self.keeper == Keeper::Mongodb;
        service
    }

    /// End the sessions of a killed process, which may have been in the middle of a transaction.
    pub(crate) fn bury(&self) {
        if self.has_own_server {
            runtime().block_on(secantus::end_sessions(&self.server));
        }
    }

    /// A separate connection, as the application would have.
    pub(crate) fn connect(&self) -> Connection {
        self.try_connect(&self.schema, Some(&self.schema)).expect("a connection")
    }

    fn try_connect(&self, schema: &str, database: Option<&str>) -> Result<Connection, sqlx::Error> {
        match self.keeper {
            Keeper::Postgres => Connection::postgres(&self.server, schema),
            Keeper::Sqlite => Connection::sqlite(&self.path("users.db")),
            Keeper::Mariadb | Keeper::Mysql => Connection::mysql(&self.server, database),
            Keeper::Mongodb => {
                let prefix = self.environment.get("TABLE_PREFIX").map_or("", String::as_str);
                let file = self.aside.path().join("mirror.db");
                Connection::mongodb(&secantus::url_of(&self.server, &self.schema), &file, prefix)
            }
        }
    }

    /// The type of an application's column that is a key, or refers to clerk-sync's ids.
    pub(crate) fn key_type(&self) -> &'static str {
        match self.keeper {
            Keeper::Postgres | Keeper::Sqlite | Keeper::Mongodb => "text",
            Keeper::Mariadb => "varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin",
            Keeper::Mysql => "varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin",
        }
    }

    /// The value "true" in SQL.
    pub(crate) fn truth(&self) -> &'static str {
        if self.keeper == Keeper::Postgres { "true" } else { "1" }
    }

    /// The rows of a query, every value as text. A statement that loses a deadlock with the service is repeated.
    pub(crate) fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        loop {
            match self.connect().run(sql) {
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("40001") => {}
                result => return result.unwrap_or_else(|error| panic!("{sql}: {error}")),
            }
        }
    }

    /// The single value that a query returns.
    pub(crate) fn value(&self, sql: &str) -> String {
        let rows = self.sql(sql);
        assert!(rows.len() == 1 && rows[0].len() == 1, "{sql}: {rows:?}");
        rows[0][0].clone()
    }

    pub(crate) fn count(&self, from: &str) -> usize {
        self.value(&format!("SELECT count(*) FROM {from}")).parse().expect("a number")
    }

    /// Make the application refuse every user with this first name, by a trigger or a validator.
    pub(crate) fn refuse_first_name(&self, name: &str) {
        match self.keeper {
            Keeper::Postgres => self.sql(&format!(
                "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     RAISE NOTICE 'seen %', NEW;
                     RAISE WARNING 'seen %', NEW;
                     IF NEW.first_name = '{name}' THEN RAISE EXCEPTION 'refused %', NEW USING DETAIL = NEW::text; END IF;
                     RETURN NEW;
                 END $$;
                 CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION refuse()"
            )),
            Keeper::Sqlite => self.sql(&format!(
                "CREATE TRIGGER refuse BEFORE INSERT ON users WHEN NEW.first_name = '{name}'
                 BEGIN SELECT RAISE(ABORT, 'refused {name}'); END"
            )),
            Keeper::Mariadb | Keeper::Mysql => self.sql(&format!(
                "CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW
                 BEGIN IF NEW.first_name = '{name}' THEN
                     SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused {name}';
                 END IF; END"
            )),
            Keeper::Mongodb => {
                self.connect().validate(doc! { "profile.firstName": { "$ne": name } });
                Vec::new()
            }
        };
    }

    /// Remove that trigger or validator.
    pub(crate) fn allow_first_names(&self) {
        match self.keeper {
            Keeper::Postgres => self.sql("DROP TRIGGER refuse ON users"),
            Keeper::Sqlite | Keeper::Mariadb | Keeper::Mysql => self.sql("DROP TRIGGER refuse"),
            Keeper::Mongodb => {
                self.connect().validate(doc! {});
                Vec::new()
            }
        };
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.keeper == Keeper::Postgres
            && let Ok(mut connection) = Connection::postgres(&self.server, "public")
        {
            // Sessions that a failed test left behind must not delay the clean-up.
            let cleared = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{0}';
                 SET lock_timeout = '2s'; DROP SCHEMA IF EXISTS {0} CASCADE; DROP SCHEMA IF EXISTS {0}_app CASCADE",
                self.schema
            );
            _ = connection.run(&cleared);
        }
        if self.keeper.is_mysql()
            && let Ok(mut connection) = self.try_connect("public", None)
        {
            // A test that follows clerk-sync's advice creates the second one.
            let cleared = format!(
                "SET lock_wait_timeout = 5; DROP DATABASE IF EXISTS {0}; DROP DATABASE IF EXISTS {0}_clerk",
                self.schema
            );
            _ = connection.run(&cleared);
        }
        if self.keeper == Keeper::Mongodb {
            _ = runtime().block_on(secantus::dropped(&secantus::url_of(&self.server, &self.schema)));
        }
    }
}

/// A database that is dropped together with this value.
pub(crate) struct OwnDatabase {
    pub(crate) name: String,
    server: String,
}

impl OwnDatabase {
    /// Run statements on the same server, in another database.
    pub(crate) fn run_beside(&self, sql: &str) -> Vec<Vec<String>> {
        let mut connection = Connection::postgres(&self.server, "public").expect("a connection");
        connection.run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

impl Drop for OwnDatabase {
    fn drop(&mut self) {
        if let Ok(mut connection) = Connection::postgres(&self.server, "public") {
            _ = connection.run(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        }
    }
}

/// The exit code and the output of a command that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// The output of a command that succeeded.
    pub(crate) fn succeeded(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }
}

/// One connection to the database, kept open.
pub(crate) struct Connection {
    runtime: Runtime,
    inner: Inner,
}

enum Inner {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
    Mysql(MySqlConnection),
    Mongodb(Mirror),
}

impl Connection {
    pub(crate) fn postgres(url: &str, schema: &str) -> Result<Self, sqlx::Error> {
        let runtime = runtime();
        let options: PgConnectOptions = url.parse()?;
        let options = options.options([("search_path", schema)]).disable_statement_logging();
        let inner = runtime.block_on(PgConnection::connect_with(&options))?;
        Ok(Self { runtime, inner: Inner::Postgres(inner) })
    }

    pub(crate) fn sqlite(path: &str) -> Result<Self, sqlx::Error> {
        let runtime = runtime();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .busy_timeout(SOON)
            .disable_statement_logging();
        let inner = runtime.block_on(SqliteConnection::connect_with(&options))?;
        Ok(Self { runtime, inner: Inner::Sqlite(inner) })
    }

    fn mysql(url: &str, database: Option<&str>) -> Result<Self, sqlx::Error> {
        let runtime = runtime();
        let options: MySqlConnectOptions = url.parse()?;
        let options = options.disable_statement_logging();
        let options = database.iter().fold(options, |options, name| options.database(name));
        let inner = runtime.block_on(MySqlConnection::connect_with(&options))?;
        let mut connection = Self { runtime, inner: Inner::Mysql(inner) };
        connection.run(SQL_MODE)?;
        Ok(connection)
    }

    fn mongodb(url: &str, file: &Path, prefix: &str) -> Result<Self, sqlx::Error> {
        let runtime = runtime();
        let inner = runtime.block_on(async {
            let collections = secantus::collections(url).await.ok_or(sqlx::Error::PoolTimedOut)?;
            Mirror::open(file, collections, prefix).await
        })?;
        Ok(Self { runtime, inner: Inner::Mongodb(inner) })
    }

    /// MongoDB: set the validator for the documents of users.
    fn validate(&self, validator: Document) {
        let Inner::Mongodb(mirror) = &self.inner else { panic!("only MongoDB has validators") };
        self.runtime.block_on(mirror.validate("users", validator));
    }

    /// MongoDB: insert documents into a collection of the application.
    pub(crate) fn insert(&self, collection: &str, documents: &[Document]) {
        let Inner::Mongodb(mirror) = &self.inner else { panic!("only MongoDB has collections") };
        self.runtime.block_on(mirror.insert(collection, documents));
    }

    /// MongoDB: the names of the collections.
    pub(crate) fn collections(&self) -> Vec<String> {
        let Inner::Mongodb(mirror) = &self.inner else { panic!("only MongoDB has collections") };
        self.runtime.block_on(mirror.collections())
    }

    /// The rows that these statements return, every value as text; NULL becomes `NULL`.
    pub(crate) fn run(&mut self, sql: &str) -> Result<Vec<Vec<String>>, sqlx::Error> {
        fn text(value: Option<String>) -> String {
            value.unwrap_or_else(|| "NULL".to_owned())
        }
        let in_sqlite = |row: &sqlx::sqlite::SqliteRow| {
            (0..row.len()).map(|index| Ok(text(row.try_get_unchecked(index)?))).collect()
        };
        if let Inner::Mongodb(mirror) = &self.inner {
            return self.runtime.block_on(mirror.run(sql))?.iter().map(in_sqlite).collect();
        }
        let is_mysql = matches!(self.inner, Inner::Mysql(_));
        let sql = if is_mysql { without_zones(sql) } else { sql.to_owned() };
        let statements = sqlx::raw_sql(AssertSqlSafe(sql));
        match &mut self.inner {
            Inner::Postgres(connection) => {
                let rows = self.runtime.block_on(statements.fetch_all(connection))?;
                let values = |row: &sqlx::postgres::PgRow| {
                    (0..row.len()).map(|index| Ok(text(row.try_get_unchecked(index)?))).collect()
                };
                rows.iter().map(values).collect()
            }
            Inner::Mysql(connection) => {
                let rows = self.runtime.block_on(statements.fetch_all(connection))?;
                let values = |row: &sqlx::mysql::MySqlRow| {
                    (0..row.len()).map(|index| Ok(text(row.try_get_unchecked(index)?))).collect()
                };
                rows.iter().map(values).collect()
            }
            Inner::Sqlite(connection) => {
                self.runtime.block_on(statements.fetch_all(connection))?.iter().map(in_sqlite).collect()
            }
            Inner::Mongodb(_) => unreachable!("handled above"),
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Text that another thread continues to write.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<String>>);

impl Text {
    fn get(&self) -> String {
        self.0.lock().expect("not poisoned").clone()
    }
}

fn gather(stream: Option<impl Read + Send + 'static>) -> (Text, JoinHandle<()>) {
    let text = Text::default();
    let written = text.clone();
    let mut stream = BufReader::new(stream.expect("a pipe"));
    let reader = thread::spawn(move || {
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            written.0.lock().expect("not poisoned").push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
    (text, reader)
}

fn wait(child: &mut Child, patience: Duration) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if started.elapsed() > patience {
            _ = child.kill();
            panic!("the program did not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The running program. It is killed when this value is dropped, unless it has ended.
pub(crate) struct Service {
    child: Child,
    pub(crate) public: SocketAddr,
    pub(crate) private: SocketAddr,
    log: Text,
    out: Text,
    /// The URL of the test's own server, if there is one.
    server: Option<String>,
    /// Whether the program is asked to stop before it is killed at the end of a test.
    leaves_in_order: bool,
}

impl Service {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let (log, _) = gather(child.stderr.take());
        let (out, _) = gather(child.stdout.take());
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut service =
            Self { child, public: nowhere, private: nowhere, log, out, server: None, leaves_in_order: false };
        let started = Instant::now();
        let (public, private) = loop {
            if let Some(addresses) = service.addresses() {
                break addresses;
            }
            let ended = service.child.try_wait().expect("a child");
            assert!(ended.is_none() && started.elapsed() < SOON, "never listened: {}", service.log());
            thread::sleep(Duration::from_millis(10));
        };
        (service.public, service.private) = (public, private);
        service
    }

    /// The addresses of both listeners, from the log of `serve` or the output of `dev`.
    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let ready = self.lines().into_iter().find(|line| {
            line["message"].as_str().is_some_and(|state| state == "ready" || state.starts_with("listening"))
        });
        if let Some(ready) = ready {
            let private = address(ready["private"].as_str()?)?;
            // A worker has only a private listener.
            let public = ready["webhooks"].as_str().and_then(address);
            return Some((public.unwrap_or(private), private));
        }
        let out = self.out();
        let told = |name: &str| {
            let line = out.lines().find_map(|line| line.trim_start().strip_prefix(name))?;
            address(line.trim())
        };
        Some((told("webhooks ")?, told("private ")?))
    }

    /// Everything on standard error so far.
    pub(crate) fn log(&self) -> String {
        self.log.get()
    }

    /// Everything on standard output so far.
    pub(crate) fn out(&self) -> String {
        self.out.get()
    }

    /// The lines of a JSON log so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The lines of the log about one delivery.
    pub(crate) fn lines_about(&self, svix_id: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["svix_id"] == svix_id).collect()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.public).expect("a connection")
    }

    pub(crate) fn post(&self, post: &Post) -> Answer {
        self.ask(&post.bytes())
    }

    /// Send these bytes on a new connection, and read one answer.
    pub(crate) fn ask(&self, bytes: &[u8]) -> Answer {
        let mut client = self.client();
        client.send(bytes).expect("sent");
        client.answer().expect("an answer")
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(&get(path))
    }

    pub(crate) fn get_private(&self, path: &str) -> Answer {
        let mut client = Client::connect(self.private).expect("a connection");
        client.send(&get(path)).expect("sent");
        client.answer().expect("an answer")
    }

    /// Ask the private API, with this `authorization` header if it is given.
    pub(crate) fn get_api(&self, path: &str, authorization: Option<&str>) -> Answer {
        self.ask_api("GET", path, authorization)
    }

    pub(crate) fn ask_api(&self, method: &str, path: &str, authorization: Option<&str>) -> Answer {
        self.tell_api(method, path, authorization, "")
    }

    /// As [`ask_api`](Self::ask_api), with a body.
    pub(crate) fn tell_api(
        &self,
        method: &str,
        path: &str,
        authorization: Option<&str>,
        body: &str,
    ) -> Answer {
        let header = authorization.map(|value| format!("authorization: {value}\r\n")).unwrap_or_default();
        let length =
            if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let mut client = Client::connect(self.private).expect("a connection");
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{header}{length}\r\n{body}");
        client.send(request.as_bytes()).expect("sent");
        client.answer().expect("an answer")
    }

    /// The status of a probe, if it is answered.
    pub(crate) fn status(&self, path: &str) -> Option<u16> {
        let mut client = Client::connect(self.public).ok()?;
        client.send(&get(path)).ok()?;
        Some(client.answer().ok()?.status)
    }

    /// The value of a metric, with its labels as Prometheus writes them.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let page = self.get_private("/metrics").body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(value.parse().expect("a number"))
    }

    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn terminate(&self) {
        signal(&self.child, Signal::TERM);
    }

    /// Kill the program, as the kernel does when memory runs out.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("a child");
        if let Some(server) = &self.server {
            runtime().block_on(secantus::end_sessions(server));
        }
    }

    pub(crate) fn wait(&mut self, patience: Duration) -> ExitStatus {
        wait(&mut self.child, patience)
    }

    /// Ask the program to stop, and assert that it exits with 0.
    pub(crate) fn stop(mut self) {
        self.terminate();
        let status = self.wait(SOON);
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // On a shared MongoDB, other tests would wait for transactions that a killed program left open.
        if self.leaves_in_order && matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let asked = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && asked.elapsed() < SOON {
                thread::sleep(Duration::from_millis(10));
            }
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn address(url: &str) -> Option<SocketAddr> {
    url.strip_prefix("http://")?.split('/').next()?.parse().ok()
}

/// A sender, on one connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `status` of a success, or the `code` of an error.
    pub(crate) fn word(&self) -> String {
        let json = self.json();
        let word = json["status"].as_str().or(json["error"]["code"].as_str());
        word.unwrap_or_else(|| panic!("neither success nor error: {self:?}")).to_owned()
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub(crate) fn post(&mut self, post: &Post) -> io::Result<Answer> {
        self.send(&post.bytes())?;
        self.answer()
    }

    /// The next answer; an error of kind `UnexpectedEof` or a reset if there is none.
    pub(crate) fn answer(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        let mut next_line = |line: &mut String| {
            line.clear();
            match self.stream.read_line(line)? {
                0 => Err(io::Error::from(ErrorKind::UnexpectedEof)),
                _ => Ok(()),
            }
        };
        next_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not HTTP: {line:?}"));
        let mut headers = HashMap::new();
        loop {
            next_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a length"));
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, headers, body: String::from_utf8(body).expect("text") })
    }

    /// Whether the other side closes within this time; data that arrives before is discarded.
    pub(crate) fn is_closed_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stream().set_read_timeout(Some(left)).expect("a timeout");
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        }
    }
}

/// Send a signal to a child. Works even where the program `kill` is not installed.
pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("a child that runs");
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").into_bytes()
}

/// A delivery, signed by an independent implementation.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) path: &'static str,
    /// `svix` or `webhook`.
    pub(crate) family: &'static str,
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) timestamp: i64,
    pub(crate) body: String,
    pub(crate) secret: &'static str,
    pub(crate) more_headers: String,
}

impl Post {
    pub(crate) fn new(body: impl Into<String>) -> Self {
        Self {
            path: "/webhooks/clerk",
            family: "svix",
            id: unique("msg_"),
            timestamp: Utc::now().timestamp(),
            body: body.into(),
            secret: SECRET,
            more_headers: String::new(),
        }
    }

    pub(crate) fn signature(&self) -> String {
        let webhook = Webhook::new(self.secret).expect("a secret");
        webhook.sign(&self.id, self.timestamp, self.body.as_bytes()).expect("a signature")
    }

    pub(crate) fn head(&self) -> String {
        format!("{}content-length: {}\r\n\r\n", self.head_without_length(), self.body.len())
    }

    pub(crate) fn head_without_length(&self) -> String {
        let Self { path, family, id, timestamp, more_headers, .. } = self;
        format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{family}-id: {id}\r\n\
             {family}-timestamp: {timestamp}\r\n{family}-signature: {}\r\n{more_headers}",
            self.signature()
        )
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        format!("{}{}", self.head(), self.body).into_bytes()
    }
}

/// The current time in Clerk's unit.
pub(crate) fn milliseconds() -> i64 {
    Utc::now().timestamp_millis()
}

/// `user.created` or `user.updated`, with every field that is synced by default.
pub(crate) fn user(event_type: &str, id: &str, at: i64, first_name: &str) -> Value {
    json!({
        "data": {
            "id": id,
            "object": "user",
            "first_name": first_name,
            "last_name": "Lovelace",
            "image_url": "https://img.clerk.com/it",
            "primary_email_address_id": "idn_1",
            "email_addresses": [{ "id": "idn_1", "email_address": format!("{id}@example.com"), "verification": null }],
            "created_at": at,
            "updated_at": at,
        },
        "event_attributes": { "http_request": { "client_ip": "192.0.2.77", "user_agent": "Firefox" } },
        "instance_id": INSTANCE,
        "object": "event",
        "timestamp": at + 20,
        "type": event_type,
    })
}

pub(crate) fn deletion(id: &str, at: i64) -> Value {
    json!({
        "data": { "deleted": true, "id": id, "object": "user" },
        "instance_id": INSTANCE,
        "object": "event",
        "timestamp": at,
        "type": "user.deleted",
    })
}

/// A delivery of such an event.
pub(crate) fn post(event: &Value) -> Post {
    Post::new(event.to_string())
}

/// Whether this path is a file.
pub(crate) fn is_there(path: &str) -> bool {
    Path::new(path).is_file()
}
