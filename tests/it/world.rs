//! The environment of one test: a fresh store, a clock that the test moves, and a signer that signs like Svix.
//!
//! The environment variables `TEST_POSTGRES_URL`, `TEST_MARIADB_URL`, `TEST_MYSQL_URL` and `TEST_MONGODB_URL` name the servers.
//! Each world creates its own schema (PostgreSQL) or database (the others) and drops it at the end. SQL that a test runs on
//! MongoDB goes through a [`Mirror`]. If a server is absent, the test prints a line and is skipped. If `REQUIRE_STORES` (for
//! example `postgres,sqlite`) names that server, the test fails instead.

#![expect(unreachable_pub, reason = "items for the tests are `pub`, although no other crate sees them")]
#![expect(clippy::print_stderr, reason = "the output of a test must show that it was skipped")]

use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use clerk_sync::{
    clerk::{
        event,
        signature::{Secret, SignatureHeaders, Verifier},
    },
    entity::{self, USER},
    model::{ClerkId, DeletionPolicy, Delivery, Entity, Field, Object, Outcome},
    store::{
        self, Claimed, Store, StoreError,
        mongodb::Mongo,
        mysql::Mysql,
        postgres::Postgres,
        prefix,
        schema::TABLES,
        sql::{Dialect, SqlDatabase},
        sqlite::Sqlite,
    },
    sync::{self, Drained, Frontier, Pace, Rules},
    work::outbox::ending::{self, Ending},
};
use serde_json::{Map, Value as Json, json};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Executor, MySqlPool, PgPool, Row, SqlitePool,
    TypeInfo, ValueRef,
    mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode},
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{mirror::Mirror, secantus};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The time at which every world begins: 2026-01-01T00:00:00Z, in unix milliseconds.
pub const NOW: i64 = 1_767_225_600_000;

/// The time at which the test users signed up: the day before `NOW`, with milliseconds that must be preserved.
pub const SIGN_UP: i64 = NOW - 86_400_000 + 123;

/// Deadline for our work. It is longer than in the service, so that a busy machine does not look like a database failure.
const PATIENCE: Duration = Duration::from_mins(1);

/// A column in which MariaDB and MySQL mark the rows that a transaction has just inserted. It has no meaning after the commit.
const FRESH: &str = "token";

/// A database backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    Postgres,
    Sqlite,
    Mariadb,
    Mysql,
    Mongodb,
}

impl Keeper {
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Mariadb => "mariadb",
            Self::Mysql => "mysql",
            Self::Mongodb => "mongodb",
        }
    }

    /// The URL of the server; empty for SQLite, which needs no server.
    pub fn server_url(self) -> String {
        let (variable, usual) = match self {
            Self::Postgres => ("TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres"),
            Self::Sqlite => return String::new(),
            Self::Mariadb => ("TEST_MARIADB_URL", "mysql://root@127.0.0.1:3306/"),
            Self::Mysql => ("TEST_MYSQL_URL", "mysql://root@127.0.0.1:33306/"),
            Self::Mongodb => ("TEST_MONGODB_URL", "mongodb://127.0.0.1:37017/?directConnection=true"),
        };
        std::env::var(variable).unwrap_or_else(|_| usual.to_owned())
    }

    /// Whether this is MariaDB or MySQL.
    pub fn is_mysql(self) -> bool {
        matches!(self, Self::Mariadb | Self::Mysql)
    }
}

/// Makes MariaDB and MySQL accept the same SQL as the other backends.
pub const SQL_MODE: &str = "SET SESSION sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,STRICT_ALL_TABLES'";

/// Run a test in a fresh, migrated world on this backend, or skip it.
pub fn run<F: Future<Output = ()>>(keeper: Keeper, test: impl FnOnce(World) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let Some(world) = World::new(keeper).await else {
            let required = std::env::var("REQUIRE_STORES").unwrap_or_default();
            assert!(
                !required.split([',', ' ']).any(|name| name == keeper.name()),
                "{} is required but not available",
                keeper.name()
            );
            eprintln!("skipped: {} is not available", keeper.name());
            return;
        };
        world.store.migrate().await.unwrap();
        test(world).await;
    });
}

/// A database, and everything else that a test needs.
pub struct World {
    pub keeper: Keeper,
    pub store: Arc<dyn Store>,
    /// The same store, for SQL databases.
    sql_store: Option<Arc<dyn SqlDatabase>>,
    pub rules: Rules,
    /// The current time; a test moves it by hand.
    pub now: DateTime<Utc>,
    /// The kinds of objects in the store.
    kinds: &'static [&'static Entity],
    place: Place,
}

/// The place of the store's tables, for access from outside.
enum Place {
    Postgres { pool: PgPool, server: Box<PgConnectOptions>, schema: String },
    Sqlite { pool: SqlitePool, folder: TempDir },
    Mysql { pool: MySqlPool, server: Box<MySqlConnectOptions>, database: String },
    Mongodb { mirror: Mirror, url: String, database: String, _folder: TempDir },
}

/// SQL of a test, with our plain table names replaced by the real (prefixed) names.
fn named(sql: &str, dialect: Dialect) -> AssertSqlSafe<String> {
    AssertSqlSafe(prefix::in_text(sql, dialect).into_owned())
}

impl World {
    /// Open a store without tables. Returns `None` if the server is not available.
    pub async fn new(keeper: Keeper) -> Option<Self> {
        if let Ok(prefix) = env::var("TEST_TABLE_PREFIX") {
            prefix::set(&prefix);
        }
        let place = match keeper {
            Keeper::Postgres => Place::postgres().await?,
            Keeper::Sqlite => Place::sqlite().await,
            Keeper::Mariadb | Keeper::Mysql => Place::mysql(keeper).await?,
            Keeper::Mongodb => Place::mongodb(&keeper.server_url()).await?,
        };
        let (store, sql_store) = place.open(&[], false, entity::ALL).await;
        Some(Self {
            keeper,
            store,
            sql_store,
            rules: Rules::new(USER.selectable().collect(), DeletionPolicy::Auto),
            now: at(NOW),
            kinds: entity::ALL,
            place,
        })
    }

    /// Record how deliveries of messages ended. Returns how many were recorded.
    pub async fn finish(&self, ended: &[(Claimed, Ending)]) -> store::Result<u64> {
        ending::finish(&*self.store, ended, self.now).await
    }

    /// The store as an SQL database.
    pub fn sql_store(&self) -> Arc<dyn SqlDatabase> {
        Arc::clone(self.sql_store.as_ref().expect("a database that speaks SQL"))
    }

    /// Open the same database again, as another process would.
    pub async fn open(&self) -> Arc<dyn Store> {
        self.place.open(&[], self.rules.unique_email, self.kinds).await.0
    }

    /// MongoDB: open the same database through this address, as another process would.
    pub async fn open_at(&self, address: SocketAddr) -> Arc<dyn Store> {
        let Place::Mongodb { url, .. } = &self.place else {
            panic!("only MongoDB can be opened at an address")
        };
        let options = store::mongodb::Options {
            uri: secantus::with_host(url, &address.to_string()).into(),
            anonymize_columns: Vec::new(),
            kinds: self.kinds,
            max_connections: 8,
            unique_email: self.rules.unique_email,
            polls: true,
        };
        Arc::new(Mongo::connect(options).await.unwrap())
    }

    /// Reopen the store with other kinds of objects.
    pub async fn know(&mut self, kinds: &'static [&'static Entity]) {
        self.kinds = kinds;
        if let Place::Mongodb { mirror, .. } = &mut self.place {
            mirror.know(kinds);
        }
        self.store = self.open().await;
    }

    /// The SQL dialect of this backend. For MongoDB it is the dialect of the mirror.
    pub fn dialect(&self) -> Dialect {
        match self.keeper {
            Keeper::Postgres => Dialect::Postgres,
            Keeper::Sqlite | Keeper::Mongodb => Dialect::Sqlite,
            Keeper::Mariadb => Dialect::Mariadb,
            Keeper::Mysql => Dialect::Mysql,
        }
    }

    /// Whether the backend locks rows. SQLite locks the whole database for each transaction that writes.
    pub fn locks_rows(&self) -> bool {
        self.keeper != Keeper::Sqlite
    }

    /// The collation that compares strings byte by byte.
    pub fn collation(&self) -> &'static str {
        match self.keeper {
            Keeper::Postgres => "C",
            Keeper::Sqlite | Keeper::Mongodb => "BINARY",
            Keeper::Mariadb => "utf8mb4_nopad_bin",
            Keeper::Mysql => "utf8mb4_0900_bin",
        }
    }

    /// The type of an application's column that references our ids.
    pub fn id_type(&self) -> String {
        match self.keeper {
            Keeper::Postgres | Keeper::Sqlite | Keeper::Mongodb => "TEXT".to_owned(),
            Keeper::Mariadb | Keeper::Mysql => {
                format!("varchar(255) CHARACTER SET utf8mb4 COLLATE {}", self.collation())
            }
        }
    }

    /// Reopen the store with `UNIQUE_EMAIL` on or off, and migrate it.
    pub async fn unique_email(&mut self, on: bool) {
        self.rules.unique_email = on;
        self.store = self.open().await;
        self.store.migrate().await.unwrap();
    }

    /// Postgres: open the store as a role with fewer privileges.
    pub fn open_as(&self, role: &str) -> Arc<dyn Store> {
        let Place::Postgres { server, schema, .. } = &self.place else { panic!("only PostgreSQL has roles") };
        Arc::new(Postgres::new(store::postgres::Options {
            connect: PgConnectOptions::clone(server).options([("role", role)]),
            schema: schema.clone(),
            max_connections: 2,
            anonymize_columns: Vec::new(),
            kinds: entity::ALL,
            unique_email: false,
        }))
    }

    /// Open the store with `ANONYMIZE_COLUMNS`.
    pub async fn open_anonymizing(&self, columns: &[&str]) -> Arc<dyn Store> {
        self.place.open(columns, false, self.kinds).await.0
    }

    /// Advance the clock.
    pub fn pass(&mut self, time: TimeDelta) {
        self.now += time;
    }

    /// Sign, verify and parse this event.
    pub fn delivery(&self, event: &Event) -> Delivery {
        let secret = Secret::parse(SECRET).unwrap();
        let body = event.body();
        let timestamp = self.now.timestamp().to_string();
        let signature = secret.sign(&event.svix_id, self.now, &body);
        let headers = SignatureHeaders {
            id: event.svix_id.as_bytes(),
            timestamp: timestamp.as_bytes(),
            signature: signature.as_bytes(),
        };
        let ours = Verifier::new(vec![secret], 300);
        let verified = ours.expect(&headers, self.now).unwrap().verify(body).unwrap();
        event::parse(&verified, &self.rules.selection, self.now).delivery
    }

    /// Deliver a single event.
    pub async fn deliver(&self, event: &Event) -> Outcome {
        self.deliver_all(std::slice::from_ref(event)).await[0]
    }

    /// Deliver events as one batch.
    pub async fn deliver_all(&self, events: &[Event]) -> Vec<Outcome> {
        self.try_deliver_all(events).await.into_iter().collect::<Result<_, _>>().unwrap()
    }

    /// Deliver events as one batch; each result may be an error.
    pub async fn try_deliver_all(&self, events: &[Event]) -> Vec<Result<Outcome, StoreError>> {
        let batch: Vec<Delivery> = events.iter().map(|event| self.delivery(event)).collect();
        self.apply(&*self.store, &batch).await
    }

    /// Apply a batch.
    pub async fn apply(&self, store: &dyn Store, batch: &[Delivery]) -> Vec<Result<Outcome, StoreError>> {
        sync::apply(store, batch, &self.rules, self.now, Instant::now() + PATIENCE).await
    }

    /// Store events as one batch, to be processed later.
    pub async fn enqueue(&self, events: &[Event]) -> Vec<Outcome> {
        let batch: Vec<Delivery> = events.iter().map(|event| self.delivery(event)).collect();
        let deadline = Instant::now() + PATIENCE;
        let results = sync::enqueue(&*self.store, &batch, &self.rules, self.now, deadline).await;
        results.into_iter().collect::<Result<_, _>>().unwrap()
    }

    /// Run one turn of a worker.
    pub async fn drain_once(&self, store: &dyn Store) -> Drained {
        self.drain_from(store, &Frontier::default()).await
    }

    /// Run one turn of a worker that knows where the queue begins.
    pub async fn drain_from(&self, store: &dyn Store, frontier: &Frontier) -> Drained {
        let pace = Pace::new(sync::drain::BATCH);
        sync::drain(store, &self.rules, self.now, Instant::now() + PATIENCE, &pace, frontier).await
    }

    /// Run turns of a worker until nothing is due. Returns the outcomes in the order of processing.
    pub async fn drain(&self) -> Vec<(String, Outcome)> {
        let mut all = Vec::new();
        loop {
            let Drained { deliveries, trouble } = self.drain_once(&*self.store).await;
            assert_eq!(trouble, None);
            if deliveries.is_empty() {
                return all;
            }
            all.extend(deliveries.into_iter().map(|worked| (worked.svix_id.to_string(), worked.outcome)));
        }
    }

    /// A user's row, as the store contract returns it.
    pub async fn user(&self, id: &str) -> Option<Object> {
        self.store.row(&clerk_id(id)).await.unwrap().map(|row| row.object)
    }

    /// The text of one field of an existing user.
    pub async fn text(&self, id: &str, field: Field) -> Option<String> {
        self.user(id).await.unwrap().profile[field].text().map(ToOwned::to_owned)
    }

    /// Run SQL that every backend understands, as the application would. Times are written as `'2026-01-01T00:00:00.000Z'`.
    pub async fn sql(&self, statements: &str) {
        self.try_sql(statements).await.unwrap();
    }

    /// Run SQL that the database may refuse.
    pub async fn try_sql(&self, statements: &str) -> Result<(), sqlx::Error> {
        let text = |statements: &str, dialect| sqlx::raw_sql(named(statements, dialect));
        match &self.place {
            Place::Postgres { pool, .. } => {
                pool.execute(text(statements, Dialect::Postgres)).await.map(|_| ())
            }
            Place::Sqlite { pool, .. } => pool.execute(text(statements, Dialect::Sqlite)).await.map(|_| ()),
            Place::Mysql { pool, .. } => {
                pool.execute(text(&without_zones(statements), Dialect::Mysql)).await.map(|_| ())
            }
            Place::Mongodb { mirror, .. } => mirror.run(statements).await.map(|_| ()),
        }
    }

    /// Open a transaction with a current snapshot. While it is open, PostgreSQL cannot remove rows that are deleted later.
    pub async fn old_snapshot(&self) -> sqlx::Transaction<'static, sqlx::Postgres> {
        let Place::Postgres { pool, .. } = &self.place else { panic!("only PostgreSQL has snapshots") };
        let mut transaction = pool.begin().await.unwrap();
        transaction
            .execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM users")
            .await
            .unwrap();
        transaction
    }

    /// The mirror of a MongoDB.
    pub fn mirror(&self) -> &Mirror {
        let Place::Mongodb { mirror, .. } = &self.place else { panic!("only MongoDB has collections") };
        mirror
    }

    /// Whether an application's foreign keys and triggers can refuse a deletion.
    pub fn refuses_deletions(&self) -> bool {
        self.keeper != Keeper::Mongodb
    }

    /// Run the SQL for this backend. The mirror of a MongoDB uses the SQLite version.
    pub async fn sql_of(&self, postgres: &str, sqlite: &str, mysql: &str) {
        self.sql(match self.keeper {
            Keeper::Postgres => postgres,
            Keeper::Sqlite | Keeper::Mongodb => sqlite,
            Keeper::Mariadb | Keeper::Mysql => mysql,
        })
        .await;
    }

    /// Rows of a query as JSON, with bytes decoded as text.
    pub async fn rows(&self, query: &str) -> Vec<Map<String, Json>> {
        match &self.place {
            Place::Postgres { pool, .. } => {
                let query = format!("SELECT to_jsonb(q)::text FROM ({query}) AS q");
                let rows = sqlx::query(AssertSqlSafe(query)).persistent(false).fetch_all(pool).await.unwrap();
                rows.iter().map(|row| decoded(serde_json::from_str(row.get(0)).unwrap())).collect()
            }
            Place::Sqlite { pool, .. } => {
                let query = sqlx::query(named(query, Dialect::Sqlite)).persistent(false);
                let rows = query.fetch_all(pool).await.unwrap();
                rows.iter().map(sqlite_row).collect()
            }
            Place::Mysql { pool, .. } => {
                // Prepare the statement once: closing one gets no answer, so the next statement would wait 40 ms for Nagle.
                let query = sqlx::query(named(query, Dialect::Mysql));
                let rows = query.fetch_all(pool).await.unwrap();
                rows.iter().map(mysql_row).collect()
            }
            Place::Mongodb { mirror, .. } => {
                let rows = mirror.run(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
                rows.iter().map(sqlite_row).collect()
            }
        }
    }

    /// The first column of a query, as text.
    pub async fn column(&self, query: &str) -> Vec<String> {
        let rows = self.rows(query).await;
        rows.iter().map(|row| plain(row.values().next().unwrap())).collect()
    }

    /// The only value of a query, as text.
    pub async fn value(&self, query: &str) -> String {
        let column = self.column(query).await;
        assert_eq!(column.len(), 1, "{query} gives {column:?}");
        column.into_iter().next().unwrap()
    }

    /// The number of rows in a table.
    pub async fn count(&self, table: &str) -> u64 {
        self.value(&format!("SELECT count(*) AS n FROM {table}")).await.parse().unwrap()
    }

    /// The only row of `webhook_queue`.
    pub async fn parked(&self) -> Map<String, Json> {
        let mut rows = self.rows("SELECT * FROM webhook_queue").await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.remove(0)
    }

    /// `audit_log` in write order: action and clerk id.
    pub async fn audit(&self) -> Vec<String> {
        self.column("SELECT action || ' ' || clerk_id AS line FROM audit_log ORDER BY id").await
    }

    /// Names of our tables that have rows, found with one statement because most tables are empty.
    async fn tables_with_rows(&self) -> Vec<&'static str> {
        let looks = TABLES.iter().enumerate().map(|(place, table)| {
            format!("SELECT {place} AS place FROM (SELECT 1 AS one FROM {} LIMIT 1) AS t{place}", table.name)
        });
        let places = self.column(&looks.collect::<Vec<_>>().join(" UNION ALL ")).await;
        let mut places: Vec<usize> = places.iter().map(|place| place.parse().unwrap()).collect();
        places.sort_unstable();
        places.into_iter().map(|place| TABLES[place].name).collect()
    }

    /// Every row of all our tables, sorted, with bytes decoded.
    pub async fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for table in self.tables_with_rows().await {
            for mut row in self.rows(&format!("SELECT * FROM {table}")).await {
                row.remove(FRESH);
                lines.push(format!("{table}: {}", Json::Object(row)));
            }
        }
        lines.sort();
        lines
    }

    /// Like `dump`, but without database-generated numbers, which differ after a rollback: actors are identified by their
    /// delivery. Columns with these names are left out too.
    pub async fn dump_without(&self, columns: &[&str]) -> Vec<String> {
        let mut lines = Vec::new();
        for table in self.tables_with_rows().await {
            let query = match table {
                "audit_actors" => "SELECT l.svix_id, a.ip, a.user_agent
                                   FROM audit_actors AS a LEFT JOIN audit_log AS l ON l.id = a.audit_id"
                    .to_owned(),
                name => format!("SELECT * FROM {name}"),
            };
            for mut row in self.rows(&query).await {
                row.retain(|name, _| name != FRESH && !columns.contains(&name.as_str()));
                let id = row.remove("id").map(|id| plain(&id)).unwrap_or_default();
                let line = format!("{table}: {}", Json::Object(row));
                lines.push(line.replace(&format!("deleted-{id}@"), "deleted-ID@"));
            }
        }
        lines.sort();
        lines
    }

    /// Postgres: the schema of this world.
    pub fn schema(&self) -> &str {
        match &self.place {
            Place::Postgres { schema, .. } => schema,
            Place::Sqlite { .. } => "main",
            Place::Mysql { database, .. } | Place::Mongodb { database, .. } => database,
        }
    }

    /// Postgres: create the schema, as the application may have done.
    pub async fn create_schema(&self) {
        self.sql(&format!("CREATE SCHEMA {}", self.schema())).await;
    }

    /// Empty every table, which is faster than creating a new world.
    pub async fn empty(&self) {
        if let Place::Mongodb { mirror, .. } = &self.place {
            return mirror.empty().await;
        }
        let tables = self.tables_with_rows().await;
        let deletions = tables.iter().rev().map(|table| format!("DELETE FROM {table};"));
        let deletions = deletions.collect::<Vec<_>>().join(" ");
        let no_triggers =
            "DROP TRIGGER IF EXISTS audit_log_no_delete; DROP TRIGGER IF EXISTS audit_seals_no_delete;";
        self.sql_of(
            &format!("SET session_replication_role = replica; {deletions} RESET session_replication_role"),
            &format!("{no_triggers} {deletions}"),
            &format!("{no_triggers} START TRANSACTION; {deletions} COMMIT"),
        )
        .await;
    }

    /// Wait until no connection is in a transaction.
    pub async fn wait_until_idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        // MySQL and MariaDB show a transaction only after it has read something, so a statement on its way is not visible yet.
        // MongoDB does not show the inserts of a transaction that is being rolled back.
        let mut looks = if matches!(self.place, Place::Mysql { .. } | Place::Mongodb { .. }) { 2 } else { 1 };
        loop {
            let busy = match &self.place {
                Place::Postgres { schema, .. } => {
                    let query = format!(
                        "SELECT state FROM pg_stat_activity
                         WHERE application_name = '{schema}' AND pid <> pg_backend_pid()
                           AND (state <> 'idle' OR backend_xid IS NOT NULL)"
                    );
                    !self.rows(&query).await.is_empty()
                }
                // The first check fails while another connection writes; the second detects readers.
                Place::Sqlite { .. } => {
                    self.try_sql("BEGIN EXCLUSIVE; COMMIT").await.is_err()
                        || self.checkpoint().await != Some(0)
                }
                Place::Mysql { database, .. } => {
                    // Queries of the transaction tables return a cached result while they are queried often.
                    let sessions = format!(
                        "SELECT id FROM information_schema.processlist
                         WHERE db = '{database}' AND id <> connection_id()"
                    );
                    let ours = self.column(&sessions).await;
                    let status = self.rows("SHOW ENGINE INNODB STATUS").await;
                    let status = status[0]["Status"].as_str().unwrap();
                    let (_, transactions) =
                        status.split_once("LIST OF TRANSACTIONS FOR EACH SESSION").unwrap();
                    transactions.split("---TRANSACTION").any(|transaction| {
                        transaction.contains(", ACTIVE ")
                            && ours.iter().any(|id| transaction.contains(&format!("thread id {id},")))
                    })
                }
                Place::Mongodb { mirror, .. } => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    mirror.is_busy().await
                }
            };
            looks -= u8::from(!busy);
            if looks == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "a connection stays in a transaction");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn checkpoint(&self) -> Option<i64> {
        let Place::Sqlite { pool, .. } = &self.place else { return None };
        sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(pool).await.ok()
    }

    /// Postgres: a backup of our schema, if `pg_dump` exists and is not too old for this server.
    pub fn backup(&self) -> Option<String> {
        let Place::Postgres { schema, .. } = &self.place else { return None };
        let dumped = std::process::Command::new("pg_dump")
            .args(["--schema", schema, &self.keeper.server_url()])
            .output()
            .ok()?;
        dumped.status.success().then(|| String::from_utf8_lossy(&dumped.stdout).into_owned())
    }

    /// Whether any file of the database contains these bytes. Only SQLite's files can be read; for the others it is `false`.
    pub fn files_contain(&self, needle: &str) -> bool {
        let Place::Sqlite { folder, .. } = &self.place else { return false };
        std::fs::read_dir(folder.path()).unwrap().any(|file| {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
        })
    }
}

impl Place {
    async fn mysql(keeper: Keeper) -> Option<Self> {
        let database = format!("test_{:016x}", rand::random::<u64>());
        let server = MySqlConnectOptions::from_str(&keeper.server_url())
            .unwrap()
            .ssl_mode(MySqlSslMode::Disabled)
            .disable_statement_logging();
        let mut connection = server.connect().await.ok()?;
        let made = format!("CREATE DATABASE {database}");
        connection.execute(sqlx::raw_sql(AssertSqlSafe(made))).await.unwrap();
        connection.close().await.unwrap();
        let inside = server.clone().database(&database);
        let pool = MySqlPoolOptions::new()
            .max_connections(3)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(sqlx::raw_sql(SQL_MODE)).await.map(|_| ()) })
            })
            .connect_with(inside)
            .await
            .unwrap();
        Some(Self::Mysql { pool, server: Box::new(server), database })
    }

    async fn mongodb(server: &str) -> Option<Self> {
        let database = format!("test_{:016x}", rand::random::<u64>());
        let url = secantus::url_of(server, &database);
        let collections = secantus::collections(&url).await?;
        let folder = tempfile::tempdir().unwrap();
        let prefix = env::var("TEST_TABLE_PREFIX").unwrap_or_default();
        let mirror = Mirror::open(&folder.path().join("mirror.db"), collections, &prefix).await.unwrap();
        Some(Self::Mongodb { mirror, url, database, _folder: folder })
    }

    async fn postgres() -> Option<Self> {
        let url = Keeper::Postgres.server_url();
        let schema = format!("test_{:016x}", rand::random::<u64>());
        let server =
            PgConnectOptions::from_str(&url).unwrap().application_name(&schema).disable_statement_logging();
        // A pool would retry for a long time; a single connection fails at once if the server is not available.
        server.connect().await.ok()?.close().await.ok()?;
        let inside = server.clone().options([("search_path", schema.as_str()), ("timezone", "UTC")]);
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(inside)
            .await
            .ok()?;
        Some(Self::Postgres { pool, server: Box::new(server), schema })
    }

    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = SqliteConnectOptions::new()
            .filename(folder.path().join("test.db"))
            .create_if_missing(true)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        // An open statement would look like a reader, so use one connection, with one statement at a time.
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(file).await.unwrap();
        Self::Sqlite { pool, folder }
    }

    async fn open(
        &self,
        anonymize_columns: &[&str],
        unique_email: bool,
        kinds: &'static [&'static Entity],
    ) -> (Arc<dyn Store>, Option<Arc<dyn SqlDatabase>>) {
        let anonymize_columns = anonymize_columns.iter().map(|&name| name.to_owned()).collect();
        let store: Arc<dyn SqlDatabase> = match self {
            Self::Postgres { server, schema, .. } => Arc::new(Postgres::new(store::postgres::Options {
                connect: PgConnectOptions::clone(server),
                schema: schema.clone(),
                max_connections: 8,
                anonymize_columns,
                kinds,
                unique_email,
            })),
            Self::Sqlite { folder, .. } => {
                let path = folder.path().join("test.db");
                let options = store::sqlite::Options {
                    path,
                    anonymize_columns,
                    kinds,
                    max_connections: 4,
                    unique_email,
                };
                Arc::new(Sqlite::open(options).await.unwrap())
            }
            Self::Mysql { server, database, .. } => Arc::new(Mysql::new(store::mysql::Options {
                connect: MySqlConnectOptions::clone(server).database(database),
                max_connections: 8,
                anonymize_columns,
                kinds,
                unique_email,
                polls: true,
            })),
            Self::Mongodb { url, .. } => {
                let options = store::mongodb::Options {
                    uri: url.clone().into(),
                    anonymize_columns,
                    kinds,
                    max_connections: 8,
                    unique_email,
                    polls: true,
                };
                return (Arc::new(Mongo::connect(options).await.unwrap()), None);
            }
        };
        (Arc::clone(&store) as Arc<dyn Store>, Some(store))
    }
}

/// Whether this work succeeds in a separate runtime. Our runtime may be shutting down, and `drop` cannot await.
fn elsewhere(work: impl Future<Output = sqlx::Result<()>> + Send + 'static) -> bool {
    let worked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work)
    });
    matches!(worked.join(), Ok(Ok(())))
}

impl Drop for Place {
    fn drop(&mut self) {
        let (name, dropped) = match self {
            Self::Sqlite { .. } => return,
            Self::Postgres { server, schema, .. } => {
                let statement = format!("SET lock_timeout = '5s'; DROP SCHEMA IF EXISTS {schema} CASCADE");
                let server = server.clone();
                let dropped = elsewhere(async move {
                    let mut connection = sqlx::PgConnection::connect_with(&server).await?;
                    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await.map(|_| ())
                });
                (schema, dropped)
            }
            Self::Mysql { server, database, .. } => {
                let statement = format!("SET lock_wait_timeout = 5; DROP DATABASE IF EXISTS {database}");
                let server = server.clone();
                let dropped = elsewhere(async move {
                    let mut connection = server.connect().await?;
                    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await.map(|_| ())
                });
                (database, dropped)
            }
            Self::Mongodb { url, database, .. } => {
                let url = url.clone();
                let dropped = elsewhere(async move { secantus::dropped(&url).await });
                (database, dropped)
            }
        };
        if !dropped {
            eprintln!("{name} could not be dropped");
        }
    }
}

/// An event to deliver, which a test builds field by field.
#[derive(Clone, Debug)]
pub struct Event {
    pub svix_id: String,
    json: Json,
    raw: Option<Bytes>,
    replacements: Vec<(String, String)>,
}

impl Event {
    /// `user.created` with every field that can be synced, and others.
    pub fn created(id: &str) -> Self {
        Self::about("user.created", full_user(id), SIGN_UP)
    }

    /// `user.updated`, this many milliseconds after the sign-up.
    pub fn updated(id: &str, after: i64) -> Self {
        Self::about("user.updated", full_user(id), SIGN_UP).after(after)
    }

    /// `user.updated` with only the id and the time.
    pub fn minimal(id: &str, after: i64) -> Self {
        let data = json!({ "id": id, "object": "user", "updated_at": SIGN_UP });
        Self::about("user.updated", data, SIGN_UP).after(after)
    }

    /// `user.deleted`, this many milliseconds after the sign-up.
    pub fn deleted(id: &str, after: i64) -> Self {
        Self::about("user.deleted", json!({ "id": id, "object": "user", "deleted": true }), SIGN_UP + after)
    }

    /// An event of any type.
    pub fn about(event_type: &str, data: impl Into<Json>, timestamp: i64) -> Self {
        Self::json(json!({
            "data": data.into(),
            "event_attributes": { "http_request": { "client_ip": "203.0.113.7", "user_agent": "Engine/1.0" } },
            "instance_id": "ins_1",
            "object": "event",
            "timestamp": timestamp,
            "type": event_type,
        }))
    }

    /// An event with any JSON body.
    pub fn json(json: Json) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { svix_id: format!("msg_{number:08}"), json, raw: None, replacements: Vec::new() }
    }

    /// An event with any bytes as its body.
    pub fn raw(body: impl Into<Bytes>) -> Self {
        Self { raw: Some(body.into()), ..Self::json(Json::Null) }
    }

    /// Set the svix-id.
    pub fn svix(mut self, id: &str) -> Self {
        id.clone_into(&mut self.svix_id);
        self
    }

    /// The same body under another svix-id.
    pub fn again(&self) -> Self {
        Self { svix_id: Self::json(Json::Null).svix_id, ..self.clone() }
    }

    /// Set `updated_at` and the envelope's timestamp, in milliseconds after the sign-up.
    pub fn after(self, milliseconds: i64) -> Self {
        self.set("updated_at", json!(SIGN_UP + milliseconds))
            .envelope("timestamp", json!(SIGN_UP + milliseconds))
    }

    /// Set a field of `data`.
    pub fn set(mut self, name: &str, value: impl Into<Json>) -> Self {
        self.json["data"][name] = value.into();
        self
    }

    /// Remove a field of `data`.
    pub fn without(mut self, name: &str) -> Self {
        self.json["data"].as_object_mut().unwrap().remove(name);
        self
    }

    /// Set the primary email address, verified.
    pub fn email(self, address: &str) -> Self {
        self.set("primary_email_address_id", "idn_1").set("email_addresses", emails(address))
    }

    /// Set a field of the envelope.
    pub fn envelope(mut self, name: &str, value: impl Into<Json>) -> Self {
        self.json[name] = value.into();
        self
    }

    /// Remove a field of the envelope.
    pub fn without_envelope(mut self, name: &str) -> Self {
        self.json.as_object_mut().unwrap().remove(name);
        self
    }

    /// Replace text in the body, to produce JSON that no library would write.
    pub fn replacing(mut self, from: &str, to: &str) -> Self {
        self.replacements.push((from.to_owned(), to.to_owned()));
        self
    }

    /// The bytes on the wire.
    pub fn body(&self) -> Bytes {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut body = self.json.to_string();
        for (from, to) in &self.replacements {
            assert!(body.contains(from), "{from} is not in {body}");
            body = body.replace(from, to);
        }
        body.into()
    }
}

/// A list with this address as the primary one, preceded by another address.
pub fn emails(address: &str) -> Json {
    json!([
        {
            "id": "idn_0", "object": "email_address", "email_address": "other@example.com", "reserved": false,
            "verification": null, "linked_to": [],
        },
        {
            "id": "idn_1", "object": "email_address", "email_address": address, "reserved": false,
            "verification": { "status": "verified", "strategy": "email_code", "attempts": 1, "expire_at": null },
            "linked_to": [], "created_at": SIGN_UP, "updated_at": SIGN_UP,
        },
    ])
}

/// A user object as Clerk sends it, with a value in every field that can be synced.
fn full_user(id: &str) -> Json {
    json!({
        "id": id,
        "object": "user",
        "external_id": "ext-7",
        "username": "ada",
        "first_name": "Ada",
        "last_name": "Lovelace",
        "locale": "en-GB",
        "image_url": "https://img.clerk.com/ada",
        "profile_image_url": "https://img.clerk.com/ada",
        "has_image": true,
        "primary_email_address_id": "idn_1",
        "primary_phone_number_id": "idn_2",
        "primary_web3_wallet_id": null,
        "email_addresses": emails("ada@example.com"),
        "phone_numbers": [{ "id": "idn_2", "object": "phone_number", "phone_number": "+15555550100" }],
        "web3_wallets": [],
        "passkeys": [],
        "external_accounts": [],
        "enterprise_accounts": [],
        "public_metadata": { "plan": "pro" },
        "private_metadata": { "note": "likes engines" },
        "unsafe_metadata": { "theme": "dark" },
        "password_enabled": true,
        "two_factor_enabled": false,
        "totp_enabled": false,
        "backup_code_enabled": false,
        "banned": false,
        "locked": true,
        "lockout_expires_in_seconds": null,
        "delete_self_enabled": true,
        "create_organization_enabled": true,
        "last_sign_in_at": SIGN_UP + 1,
        "last_active_at": SIGN_UP + 2,
        "created_at": SIGN_UP,
        "updated_at": SIGN_UP,
    })
}

/// Convert unix milliseconds to a time.
pub fn at(milliseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(milliseconds).unwrap()
}

/// Convert milliseconds after the sign-up to a time.
pub fn after(milliseconds: i64) -> DateTime<Utc> {
    at(SIGN_UP + milliseconds)
}

pub fn clerk_id(id: &str) -> ClerkId {
    ClerkId::new(&USER, id).unwrap()
}

/// The same statements with times in the format of MariaDB and MySQL, which do not accept `Z`.
pub fn without_zones(statements: &str) -> String {
    let time =
        |text: &str| Some(DateTime::parse_from_rfc3339(text).ok()?.to_utc().format("%F %T%.3f").to_string());
    let parts = statements.split('\'').map(|part| time(part).unwrap_or_else(|| part.to_owned()));
    parts.collect::<Vec<_>>().join("'")
}

/// Parse a time as any backend returns it.
pub fn time(json: &Json) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(json.as_str().unwrap()).unwrap().to_utc()
}

/// Format a value in the same way for every backend: some return booleans, others numbers.
pub fn plain(json: &Json) -> String {
    match json {
        Json::String(text) => text.clone(),
        Json::Bool(truth) => u8::from(*truth).to_string(),
        other => other.to_string(),
    }
}

/// Count equal items.
pub fn tally<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut tally = BTreeMap::new();
    for item in items {
        *tally.entry(item).or_default() += 1;
    }
    tally
}

/// JSON shows bytes as `\x…`. Decode them as text, so that tests can find personal data in them.
fn decoded(mut row: Map<String, Json>) -> Map<String, Json> {
    for value in row.values_mut() {
        let hex = value.as_str().and_then(|text| text.strip_prefix("\\x")).map(ToOwned::to_owned);
        if let Some(hex) = hex {
            let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
            let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
            *value = String::from_utf8_lossy(&bytes.unwrap()).into();
        }
    }
    row
}

fn mysql_row(row: &sqlx::mysql::MySqlRow) -> Map<String, Json> {
    row.columns()
        .iter()
        .map(|column| {
            let place = column.ordinal();
            let raw = row.try_get_raw(place).unwrap();
            let value = match raw.type_info().name() {
                _ if raw.is_null() => Json::Null,
                "BOOLEAN" => (row.get_unchecked::<i64, _>(place) != 0).into(),
                name if name.contains("INT") => row.get_unchecked::<i64, _>(place).into(),
                "DATE" => row.get_unchecked::<chrono::NaiveDate, _>(place).to_string().into(),
                "DATETIME" => {
                    let at = row.get_unchecked::<chrono::NaiveDateTime, _>(place).and_utc();
                    at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true).into()
                }
                _ => String::from_utf8_lossy(&row.get_unchecked::<Vec<u8>, _>(place)).into(),
            };
            (column.name().to_owned(), value)
        })
        .collect()
}

fn sqlite_row(row: &sqlx::sqlite::SqliteRow) -> Map<String, Json> {
    row.columns()
        .iter()
        .map(|column| {
            let name = column.name();
            let raw = row.try_get_raw(name).unwrap();
            let value = if raw.is_null() {
                Json::Null
            } else if raw.type_info().name() == "INTEGER" {
                row.get_unchecked::<i64, _>(name).into()
            } else {
                String::from_utf8_lossy(&row.get_unchecked::<Vec<u8>, _>(name)).into()
            };
            (name.to_owned(), value)
        })
        .collect()
}
