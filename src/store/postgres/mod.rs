//! PostgreSQL, the primary backend.
//!
//! Sessions hold no state that a pooler could mix up, so PgBouncer works in transaction mode. Every statement runs inside a
//! transaction that opens with one simple query, which sets all that it needs. Statements are prepared under names only in
//! sessions that no other client shares (`sessions`).
//!
//! All statements that webhooks wait for look up rows by their ids. Scans of whole tables are off, so that no plan degrades as
//! tables grow. Only transactions that count or list for people may read whole tables, and they have a deadline.
//!
//! JIT compilation is off as well. To the planner, a table that must be scanned has an astronomical cost, so it would spend a
//! quarter of a second compiling the count of an empty queue.
//!
//! A transaction that is dropped before its end closes its connection, which is never reused.
//!
//! With `sslmode=prefer`, the default, loopback connections do not use TLS: no other machine can listen there, and
//! encryption costs a tenth of the throughput.

mod error;
mod facts;
mod foreign;
mod inspect;
mod literals;
mod others;
mod removal;
pub(super) mod seals;
mod sequences;
mod sessions;
mod shared;
mod sight;

use std::{
    borrow::Cow,
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection as _, Execute, Executor, PgPool, Postgres as Pg, Row as _,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow, PgSslMode},
    query::Query,
};
use tokio::time::{Instant, timeout};

use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

pub(super) use self::error::store_error;
use self::{
    error::{INSUFFICIENT_PRIVILEGE, connect_error},
    others::Others,
    removal::Removal,
    sequences::Sequences,
    sessions::Sessions,
};
use super::{
    Count, Database, ErrorKind, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Migration,
    MigrationStatus, Missing, Patience, Readiness, Result, Route, Space, Statistics, StoreError,
    migration::POSTGRES,
    relay::Relay,
    schema::{self, Column, ColumnType, quoted},
    sql::{Purpose, SqlDatabase, SqlTransaction, statistics, unique_email},
};
use crate::model::{Entity, Kinds};

/// Two lanes let a batch form while another commits. More would only wait for the same disk.
const WRITERS: usize = 2;

/// How long opening a transaction may take on a connection that was idle.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for a connection from the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// An arbitrary number that no other program is likely to use.
const MIGRATION_LOCK: i64 = 0x63_6c65_726b_7379;

/// The backend's configuration.
#[derive(Clone)]
pub struct Options {
    pub connect: PgConnectOptions,
    /// The schema of all clerk-sync tables; created if it is missing.
    pub schema: String,
    pub max_connections: u32,
    /// Columns that the application added to `users` and that anonymisation sets to NULL.
    pub anonymize_columns: Vec<String>,
    /// The kinds of objects that it stores.
    pub kinds: &'static [&'static Entity],
    /// Whether [`Database::migrate`] creates the index of `UNIQUE_EMAIL`; otherwise it drops it.
    pub unique_email: bool,
}

/// A pool of connections, and the texts that open transactions.
pub struct Postgres {
    pool: PgPool,
    schema: String,
    anonymize_columns: Vec<String>,
    unique_email: bool,
    /// The text that opens a transaction, built once for each purpose.
    beginnings: HashMap<Purpose, String>,
    removal: Arc<Removal>,
    kinds: Kinds,
    sequences: Arc<Sequences>,
    sessions: Arc<Sessions>,
    /// The options to use instead if the peer turns out to be a pooler, or requires TLS.
    otherwise: Mutex<Option<PgConnectOptions>>,
    last_trouble: LastTrouble,
    /// Whether the server has this setting, as PostgreSQL 17 does.
    has_transaction_timeout: Arc<AtomicBool>,
    others: Arc<Others>,
    _attending: AbortOnDropHandle<()>,
    _relay: Option<Relay>,
}

impl Postgres {
    /// Opens connections only when they are needed; nothing is sent yet. Must be called inside a runtime.
    pub fn new(options: Options) -> Self {
        // PgBouncer refuses start-up parameters that it does not track, and clerk-sync reads no floats.
        let connect = options.connect.extra_float_digits(None).disable_statement_logging();
        let (connect, relay) = by_way_of_a_relay(connect);
        let plain =
            relay.is_some() && matches!(connect.get_ssl_mode(), PgSslMode::Prefer) && is_loopback(&connect);
        let otherwise = connect.clone();
        let connect = if plain { connect.ssl_mode(PgSslMode::Disable) } else { connect };
        let sessions = Arc::new(Sessions::new(relay.as_ref().map(|relay| relay.paths.clone())));
        let meeting = Arc::clone(&sessions);
        let last_trouble = LastTrouble::default();
        let trouble = last_trouble.clone();
        let has_transaction_timeout = Arc::new(AtomicBool::new(false));
        let version = Arc::clone(&has_transaction_timeout);
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // The text that opens a transaction finds out whether the server is reachable, without an extra round trip.
            .test_before_acquire(false)
            .before_acquire(move |_, known| {
                let is_suspect = trouble.is_later_than(known.age);
                Box::pin(async move { Ok(!is_suspect) })
            })
            .after_connect(move |connection, _| {
                let known = connection.server_version_num().is_some_and(|version| version >= 17_00_00);
                version.store(known, Ordering::Relaxed);
                let sessions = Arc::clone(&meeting);
                Box::pin(async move { sessions.meet(connection).await })
            })
            .connect_lazy_with(connect);
        let others = Arc::new(Others::new(pool.clone(), options.schema.clone(), Arc::clone(&sessions)));
        let attending = Arc::clone(&others);
        Self {
            pool,
            beginnings: Purpose::ALL.map(|purpose| (purpose, beginning(&options.schema, purpose))).into(),
            removal: Arc::new(Removal::new(options.kinds, &options.anonymize_columns)),
            kinds: options.kinds,
            sequences: Arc::new(Sequences::new(
                options.schema.clone(),
                beginning(&options.schema, Purpose::WRITE),
            )),
            schema: options.schema,
            anonymize_columns: options.anonymize_columns,
            unique_email: options.unique_email,
            sessions,
            otherwise: Mutex::new(Some(otherwise)),
            last_trouble,
            has_transaction_timeout,
            others,
            _attending: AbortOnDropHandle::new(tokio::spawn(async move { attending.attend().await })),
            _relay: relay,
        }
    }

    /// Keep no connections while idle, at the price of opening new ones later.
    #[must_use]
    pub fn keep_no_idle_connections(self) -> Self {
        self.others.keeps_none.store(true, Ordering::Relaxed);
        self
    }

    /// A connection from the pool.
    async fn connection(&self) -> Result<PoolConnection<Pg>> {
        let acquired = self.pool.acquire().await.map_err(connect_error);
        let unfit = match &acquired {
            Ok(_) => self.sessions.are_indirect(),
            // Refused during connection, by the server or by a pooler.
            Err(error) => {
                error.code.as_deref().is_some_and(|code| code.starts_with("28") || code.starts_with("08"))
            }
        };
        if !unfit {
            return acquired;
        }
        let Some(otherwise) = self.otherwise.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return acquired;
        };
        drop(acquired.map(PoolConnection::detach));
        let marked = self.sessions.marked(&otherwise).await;
        let is_marked = marked.is_some();
        self.pool.set_connect_options(marked.unwrap_or(otherwise));
        let acquired = self.pool.acquire().await.map_err(connect_error)?;
        // A server that refuses this connection too says nothing about what is between us.
        if is_marked {
            tracing::info!(
                "the database server sees clerk-sync's connections from another address, as with address translation; no \
                 other client shares the sessions, so statements stay prepared"
            );
        } else {
            tracing::info!(
                "something sits between clerk-sync and the database server, probably a pooler: no statement stays \
                 prepared in its sessions, and the server plans each one every time"
            );
        }
        Ok(acquired)
    }

    async fn opened(&self, purpose: Purpose) -> Result<Session> {
        self.session(&self.beginnings[&purpose]).await
    }

    /// A transaction that opens with its first statement if that is worthwhile; otherwise one that is already open.
    async fn unopened(&self) -> Result<Session> {
        let begin = &self.beginnings[&Purpose::WRITE];
        if !self.sessions.is_worth_a_trip() {
            return self.session(begin).await;
        }
        let mut session = self.closed().await?;
        session.opening = Some(self.opening(begin).into_owned());
        Ok(session)
    }

    /// A transaction that this text opens.
    async fn session(&self, begin: &str) -> Result<Session> {
        match timeout(BEGIN_TIMEOUT, self.begun(begin)).await {
            Ok(Err(error)) if error.kind == ErrorKind::Unavailable && !error.is_closed_door() => {}
            Ok(result) => return result,
            Err(_) => {}
        }
        // The server may have closed idle connections or have been replaced. The old connections are closed now.
        self.begun(begin).await
    }

    async fn begun(&self, begin: &str) -> Result<Session> {
        let mut session = self.closed().await?;
        let begin = self.opening(begin);
        let start = Instant::now();
        let before = session.begins();
        let rows = session.connection().fetch_all(sqlx::raw_sql(AssertSqlSafe(&*begin))).await;
        let rows = session.ended(before, rows.map_err(store_error))?;
        self.sessions.took(start.elapsed());
        session.opened_in(&rows)?;
        Ok(session)
    }

    /// A connection without an open transaction.
    async fn closed(&self) -> Result<Session> {
        Ok(Session {
            connection: Some(self.connection().await?),
            kinds: self.kinds,
            removal: Arc::clone(&self.removal),
            sequences: Arc::clone(&self.sequences),
            route: Route::Shared,
            sessions: Arc::clone(&self.sessions),
            opening: None,
            ending: None,
            is_at_once: false,
            others: Arc::clone(&self.others),
            leaves_work: false,
            unfit: false,
            last_trouble: self.last_trouble.clone(),
        })
    }

    fn opening<'t>(&self, begin: &'t str) -> Cow<'t, str> {
        if self.has_transaction_timeout.load(Ordering::Relaxed) {
            // A value set for this role was not meant for clerk-sync, whose statements all have their own limits.
            Cow::Owned(format!("{begin}; SET LOCAL transaction_timeout = 0"))
        } else {
            Cow::Borrowed(begin)
        }
    }

    async fn applied(&self, session: &mut Session) -> Result<Vec<(i64, String)>> {
        if !session.has_table("_clerk_sync_migrations", &self.schema).await? {
            return Ok(Vec::new());
        }
        let rows = session
            .rows(sql("SELECT DISTINCT version, checksum FROM _clerk_sync_migrations ORDER BY version"))
            .await?;
        if rows.is_empty() {
            // The table is created together with its first row, so its rows may be hidden.
            let hidden = sight::hidden(session).await?;
            if !hidden.is_empty() {
                return Err(sight::explained(&hidden));
            }
        }
        rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
    }

    async fn migrate_all(&self) -> Result<Vec<Migration>> {
        let mut session = self.opened(Purpose::WriteMany).await?;
        // A second process waits for this lock, and then finds everything done.
        session.rows(sql("SELECT pg_advisory_xact_lock($1)::text").bind(MIGRATION_LOCK)).await?;
        if !session.has_schema(&self.schema).await? {
            session.run(&format!("CREATE SCHEMA {}", quoted(&self.schema))).await?;
        }
        let pending = Migration::pending(POSTGRES, &self.applied(&mut session).await?)?;
        if !pending.is_empty() {
            self.check_tables(&mut session, &pending).await?;
            session
                .run(
                    "CREATE TABLE IF NOT EXISTS _clerk_sync_migrations (
                         version bigint PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
                         applied_at timestamptz NOT NULL DEFAULT now()
                     )",
                )
                .await?;
        }
        for migration in &pending {
            session.run(migration.sql).await?;
            session
                .execute(
                    sql("INSERT INTO _clerk_sync_migrations (version, name, checksum) VALUES ($1, $2, $3)")
                        .bind(migration.version)
                        .bind(migration.name)
                        .bind(migration.checksum()),
                )
                .await?;
        }
        let columns = self.check_tables(&mut session, &[]).await?;
        self.sequences.set_forward(&mut session, None).await?;
        unique_email::set(&mut session, self.unique_email).await?;
        session.commit().await?;
        // After the migrations, because the application can add its columns only to existing tables.
        schema::check_anonymize_columns(&columns, &self.anonymize_columns)?;
        Ok(pending)
    }

    /// Explains the most likely mistake in production.
    fn explain_missing_privilege(&self, error: StoreError) -> StoreError {
        if error.code.as_deref() != Some(INSUFFICIENT_PRIVILEGE) {
            return error;
        }
        StoreError::schema(format!(
            "this database user may not create schema {schema} or the tables in it (42501): grant it CREATE ON DATABASE, or \
             make it the owner of schema {schema}",
            schema = self.schema
        ))
    }

    /// Refuse tables with clerk-sync's names that clerk-sync did not create, except where these migrations still change them.
    async fn check_tables(&self, session: &mut Session, pending: &[Migration]) -> Result<Vec<Column>> {
        let rows = session
            .rows(
                sql("SELECT table_name::text, column_name::text, data_type::text, is_nullable = 'NO'
                     FROM information_schema.columns WHERE table_schema = $1")
                .bind(&self.schema),
            )
            .await?;
        let column = |row| {
            Ok(Column {
                table: get(row, 0)?,
                name: get(row, 1)?,
                type_name: get(row, 2)?,
                not_null: get(row, 3)?,
            })
        };
        let columns: Vec<Column> = rows.iter().map(column).collect::<Result<_>>()?;
        let mistakes =
            schema::mistakes(&columns, pending, |kind, type_name| type_name == postgres_type(kind));
        if mistakes.is_empty() {
            return Ok(columns);
        }
        let remedy = self.way_round(session, mistakes.iter().any(|(table, _)| *table == "users")).await?;
        Err(schema::refused(&mistakes, &format!("schema {}", self.schema), &remedy))
    }

    /// What to do if the schema belongs to another application: commands that can be copied.
    async fn way_round(&self, session: &mut Session, users: bool) -> Result<String> {
        let mut free = "clerk_sync".to_owned();
        while session.has_schema(&free).await? {
            free.push_str("_1");
        }
        let adopt = if users {
            // Quoted for a shell.
            let table = if is_plain(&self.schema) {
                format!("{}.users", self.schema)
            } else {
                format!("'{}.users'", quoted(&self.schema))
            };
            format!(
                " To import its users, run `DATABASE_SCHEMA={free} clerk-sync migrate adopt --from {table} --dry-run`, and \
                 then run it again without --dry-run."
            )
        } else {
            String::new()
        };
        Ok(format!(
            "Leave this schema to its owner and give clerk-sync a separate one: set DATABASE_SCHEMA={free} for the \
             service and for every command. clerk-sync creates the schema itself.{adopt}"
        ))
    }
}

#[async_trait]
impl Database for Postgres {
    fn writers(&self) -> usize {
        WRITERS
    }

    async fn migrate(&self) -> Result<Vec<Migration>> {
        self.migrate_all().await.map_err(|error| self.explain_missing_privilege(error))
    }

    async fn migration_status(&self) -> Result<Vec<MigrationStatus>> {
        let mut session = self.opened(Purpose::WRITE).await?;
        let applied = self.applied(&mut session).await?;
        session.commit().await?;
        Ok(Migration::status(POSTGRES, &applied))
    }

    async fn ready(&self) -> Result<Readiness> {
        let mut session = self.opened(Purpose::WRITE).await?;
        let row = session.rows(sql("SELECT current_setting('transaction_read_only') = 'on'")).await?;
        if row.first().map_or(Ok(false), |row| get(row, 0))? {
            // The session is dropped, not reused: whether it is read-only is decided when it begins.
            return Ok(Readiness::ReadOnly);
        }
        let applied = self.applied(&mut session).await?;
        let current = Migration::status(POSTGRES, &applied).iter().all(|status| status.applied);
        let hidden = if current { sight::hidden(&mut session).await? } else { Vec::new() };
        session.commit().await?;
        Ok(match (current, hidden.is_empty()) {
            (false, _) => Readiness::SchemaNotCurrent,
            (true, true) => Readiness::Ready,
            (true, false) => Readiness::RowsHidden,
        })
    }

    async fn hidden(&self) -> Result<Vec<Missing>> {
        let mut session = self.opened(Purpose::WRITE).await?;
        let hidden = sight::hidden(&mut session).await?;
        session.commit().await?;
        Ok(hidden.into_iter().map(Missing::from).collect())
    }

    fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.others.bell)
    }

    async fn listen(&self) -> Result<Option<Box<dyn Listener>>> {
        // A small pool has no connection to spare for listening.
        if self.pool.options().get_max_connections() < 3 {
            return Ok(None);
        }
        self.others.listen().await
    }

    async fn space(&self) -> Result<Space> {
        let mut session = self.opened(Purpose::Write(Patience::Long)).await?;
        let rows = session.rows(sql("SELECT pg_database_size(current_database())")).await?;
        session.commit().await?;
        let taken = rows.first().map_or(Ok(0), |row| count(row, 0))?;
        // clerk-sync cannot see the server's disk.
        Ok(Space { taken, free: None })
    }

    async fn estimate_standing(&self) -> Result<Count> {
        inspect::estimate_standing(self).await
    }

    async fn foreign_table(&self, table: &str) -> Result<ForeignTable> {
        foreign::describe(self, table).await
    }

    async fn foreign_rows(
        &self,
        reading: &ForeignReading,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ForeignRow>> {
        foreign::read(self, reading, after, limit).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        inspect::inspect(self).await
    }

    async fn statistics(&self, since: DateTime<Utc>) -> Result<Statistics> {
        statistics::statistics(self, since).await
    }

    async fn close(&self) {
        self.others.tell_now().await;
        self.pool.close().await;
    }
}

#[async_trait]
impl SqlDatabase for Postgres {
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn SqlTransaction>> {
        Ok(Box::new(match purpose {
            Purpose::WriteAtOnce => self.unopened().await?,
            _ => self.opened(purpose).await?,
        }))
    }
}

/// The same server, through a relay where possible.
fn by_way_of_a_relay(connect: PgConnectOptions) -> (PgConnectOptions, Option<Relay>) {
    let (host, port) = (connect.get_host(), connect.get_port());
    let is_socket = connect.get_socket().is_some() || host.starts_with('/');
    let relay = if is_socket { None } else { Relay::to(host, port, &format!(".s.PGSQL.{port}")) };
    match relay {
        Some((folder, relay)) => (connect.socket(folder), Some(relay)),
        None => (connect, None),
    }
}

/// The text that opens a transaction for this purpose.
fn beginning(schema: &str, purpose: Purpose) -> String {
    let (lock_timeout, statement_timeout) = match purpose {
        Purpose::Write(Patience::Short) => ("50ms", "3s"),
        Purpose::Write(Patience::Long) => ("1500ms", "20s"),
        Purpose::Count => ("1500ms", "8s"),
        Purpose::Scan | Purpose::WriteMany => ("30s", "10min"),
        _ => ("1500ms", "3s"),
    };
    let (access, planner) = match purpose {
        Purpose::Count => (" READ ONLY", ""),
        Purpose::Page => (
            "",
            "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_sort = off; \
             SET LOCAL enable_incremental_sort = off; ",
        ),
        _ => ("", "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "),
    };
    let durability = if purpose == Purpose::WriteUnhurried {
        // Only the data of this transaction is lost if the server dies within the next second.
        "SET LOCAL synchronous_commit = off; "
    } else {
        ""
    };
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED{access}; SET LOCAL search_path = {}, public; \
         SET LOCAL lock_timeout = '{lock_timeout}'; SET LOCAL statement_timeout = '{statement_timeout}'; \
         SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL client_min_messages = error; \
         {planner}SET LOCAL enable_seqscan = off; SET LOCAL jit = off; {durability}SELECT pg_backend_pid()",
        quoted(schema)
    )
}

/// A connection in a transaction.
struct Session {
    /// Taken at the end of the transaction. If it is still set when the session is dropped, the transaction was abandoned,
    /// perhaps in the middle of a statement.
    connection: Option<PoolConnection<Pg>>,
    kinds: Kinds,
    removal: Arc<Removal>,
    sequences: Arc<Sequences>,
    /// How the session is reached; statements stay prepared unless it is shared.
    route: Route,
    sessions: Arc<Sessions>,
    /// The text that opens the transaction, if it is not sent yet.
    opening: Option<String>,
    /// A statement to send together with the commit.
    ending: Option<String>,
    /// Whether the first statement opened the transaction.
    is_at_once: bool,
    others: Arc<Others>,
    /// Whether to notify other processes after the commit.
    leaves_work: bool,
    /// Whether the connection must not be reused: it failed, or is in the middle of a statement.
    unfit: bool,
    last_trouble: LastTrouble,
}

impl Session {
    fn connection(&mut self) -> &mut PoolConnection<Pg> {
        self.connection.as_mut().expect("a session has its connection until it ends")
    }

    /// Note that the transaction is open, in the session that this row identifies.
    fn opened_in(&mut self, rows: &[PgRow]) -> Result<()> {
        let row = rows.first().ok_or_else(|| StoreError::new(ErrorKind::Broken))?;
        self.route = self.sessions.route(get(row, 0)?);
        if self.route == Route::Shared && self.connection().cached_statements_size() > 0 {
            // Statements were prepared when the session was exclusive, and it no longer is. They disappear with the session.
            return Err(StoreError::new(ErrorKind::Conflict));
        }
        Ok(())
    }

    /// The rows of a text that also opens the transaction.
    async fn opened_with(
        &mut self,
        opening: &str,
        text: &str,
        explain: impl FnOnce(sqlx::Error) -> StoreError,
    ) -> Result<Vec<PgRow>> {
        let fetched = self.fetched(sqlx::raw_sql(AssertSqlSafe(format!("{opening}; {text}"))), explain).await;
        let mut rows = fetched.map_err(|error| match error.kind {
            // The connection was closed while idle: the caller begins again with another one.
            ErrorKind::Unavailable if !error.is_closed_door() => StoreError::new(ErrorKind::Conflict),
            _ => error,
        })?;
        self.is_at_once = true;
        self.opened_in(&rows)?;
        self.sessions.answered();
        rows.remove(0);
        Ok(rows)
    }

    /// Run clerk-sync's own text, perhaps of several statements, as one simple query.
    async fn run(&mut self, text: &str) -> Result<()> {
        self.raw_rows(text).await.map(|_| ())
    }

    /// The rows that all statements of such a text return.
    async fn raw_rows(&mut self, text: &str) -> Result<Vec<PgRow>> {
        self.fetched(sqlx::raw_sql(AssertSqlSafe(text)), store_error).await
    }

    async fn rows(&mut self, query: Query<'_, Pg, PgArguments>) -> Result<Vec<PgRow>> {
        let query = query.persistent(self.route != Route::Shared);
        self.fetched(query, store_error).await
    }

    async fn fetched<'q>(
        &mut self,
        query: impl Execute<'q, Pg> + 'q,
        explain: impl FnOnce(sqlx::Error) -> StoreError,
    ) -> Result<Vec<PgRow>> {
        let before = self.begins();
        let fetched = self.connection().fetch_all(query).await;
        self.ended(before, fetched.map_err(explain))
    }

    async fn execute(&mut self, query: Query<'_, Pg, PgArguments>) -> Result<u64> {
        self.executed(query.persistent(self.route != Route::Shared)).await
    }

    async fn executed<'q>(&mut self, query: impl Execute<'q, Pg> + 'q) -> Result<u64> {
        let before = self.begins();
        let executed = self.connection().execute(query).await;
        self.ended(before, executed.map_err(store_error)).map(|done| done.rows_affected())
    }

    /// Note that a statement begins. Until it ends, a dropped session is in the middle of it.
    fn begins(&mut self) -> bool {
        std::mem::replace(&mut self.unfit, true)
    }

    /// Note that the statement has ended. An error of kind `Unavailable` makes the connection unfit. That includes a
    /// read-only session, because another session may be writable.
    fn ended<T>(&mut self, unfit_before: bool, result: Result<T>) -> Result<T> {
        let let_down = result.as_ref().is_err_and(|error| error.kind == ErrorKind::Unavailable);
        self.unfit = unfit_before || let_down;
        result
    }

    async fn has_schema(&mut self, schema: &str) -> Result<bool> {
        let query = sql("SELECT 1 FROM pg_namespace WHERE nspname = $1").bind(schema);
        Ok(!self.rows(query).await?.is_empty())
    }

    async fn has_table(&mut self, table: &str, schema: &str) -> Result<bool> {
        let query =
            sql("SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = $2").bind(schema).bind(table);
        Ok(!self.rows(query).await?.is_empty())
    }

    /// End the transaction. On failure the connection is closed.
    async fn end(mut self, how: &str) -> Result<()> {
        self.run(how).await?;
        if !self.unfit {
            self.connection.take();
        }
        self.others.used();
        Ok(())
    }

    async fn commit(mut self) -> Result<()> {
        let left = self.leaves_work.then(|| Arc::clone(&self.others));
        match self.ending.take() {
            Some(last) => self.end(&format!("{last}; COMMIT")).await?,
            None => self.end("COMMIT").await?,
        }
        if let Some(others) = left {
            others.left_work();
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Removed from the pool, and closed by being dropped.
            drop(connection.detach());
            if self.unfit {
                self.last_trouble.begins();
            }
        }
    }
}

/// When a connection last failed. Older connections probably lead to the same dead server. They are closed instead of being
/// tested one by one, which could take seconds each.
#[derive(Clone, Debug, Default)]
struct LastTrouble(Arc<Mutex<Option<Instant>>>);

impl LastTrouble {
    fn begins(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it happened during the life of a connection of this age.
    fn is_later_than(&self, age: Duration) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < age)
    }
}

fn sql<'q>(text: &'static str) -> Query<'q, Pg, PgArguments> {
    sqlx::query(text)
}

/// Whether SQL accepts this name without quotes.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn is_loopback(connect: &PgConnectOptions) -> bool {
    let host = connect.get_host().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn get<'r, T>(row: &'r PgRow, index: usize) -> Result<T>
where
    T: sqlx::Decode<'r, Pg> + sqlx::Type<Pg>,
{
    row.try_get(index).map_err(store_error)
}

fn count(row: &PgRow, index: usize) -> Result<u64> {
    Ok(get::<i64>(row, index)?.unsigned_abs())
}

fn postgres_type(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::BigInt => "bigint",
        ColumnType::Int => "integer",
        ColumnType::Text => "text",
        ColumnType::Bool => "boolean",
        ColumnType::Time => "timestamp with time zone",
        ColumnType::Json => "jsonb",
        ColumnType::Bytes => "bytea",
        ColumnType::TextArray => "ARRAY",
    }
}
