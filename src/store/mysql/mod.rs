//! MySQL and MariaDB.
//!
//! Transactions are READ COMMITTED: the server's default would also lock the gaps between the rows that are searched. Each
//! opens with one text that sets all that it needs. DDL commits implicitly, so migrations consist of steps that can be
//! repeated, and only one process runs them at a time. The server's messages contain values and never leave this module.

mod error;
mod foreign;
mod inspect;
mod migrations;
pub(in crate::store) mod render;
pub(in crate::store) mod seals;
mod session;
mod watch;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{
    ConnectOptions as _, Executor as _, MySqlPool, Row as _,
    mysql::{MySql, MySqlConnectOptions, MySqlPoolOptions},
    pool::PoolConnection,
};
use tokio::sync::Notify;

pub(super) use self::error::explain;
use self::{error::connect_error, session::MysqlSession, watch::Newest};
use super::{
    Count, Database, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Migration,
    MigrationStatus, Patience, Readiness, Result, Session as _, Space, Statistics,
    polling::Polling,
    relay::Relay,
    sql::{
        Dialect, Purpose, SqlDatabase, SqlTransaction, attempt::Attempts as _, removal::Removal, statistics,
        unique_email,
    },
};
use crate::model::{Entity, Kinds};

/// Two lanes let a batch form while another commits. More would only wait for the same disk.
const WRITERS: usize = 2;

/// How long to wait for a connection from the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// The backend's configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Includes the name of the database.
    pub connect: MySqlConnectOptions,
    pub max_connections: u32,
    /// Columns that the application added to `users` and that anonymisation sets to NULL.
    pub anonymize_columns: Vec<String>,
    /// The kinds of objects that it stores.
    pub kinds: &'static [&'static Entity],
    /// Whether [`Database::migrate`] creates the index of `UNIQUE_EMAIL`; otherwise it drops it.
    pub unique_email: bool,
    /// Whether to poll twice a second for work that other processes add.
    pub polls: bool,
}

/// A database of a MySQL or MariaDB server.
pub struct Mysql {
    pool: MySqlPool,
    /// MySQL or MariaDB, once that is known.
    dialect: OnceLock<Dialect>,
    anonymize_columns: Vec<String>,
    unique_email: bool,
    polls: bool,
    kinds: Kinds,
    removal: Arc<Removal>,
    bell: Arc<Notify>,
    _relay: Option<Relay>,
}

impl Mysql {
    /// Opens connections only when they are needed; nothing is sent yet. Must be called inside a runtime.
    pub fn new(options: Options) -> Self {
        let (connect, relay) = by_way_of_a_relay(options.connect.disable_statement_logging());
        let pool = MySqlPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    // Sets the complete mode, because the server's own may truncate values. Double quotes enclose names, as in
                    // the other databases. Indexes are used however small a table is: a scan would lock the rows that it
                    // passes, and wait for their locks. Messages are in one fixed language, because names of constraints are
                    // read from them. MariaDB 11.6.2 and newer would refuse a row that changed while this session waited for
                    // its lock (1020); decisions are based on values read under that lock.
                    let mode = "SET SESSION sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
                                lc_messages = 'en_US', max_seeks_for_key = 1 /*M!110602 , innodb_snapshot_isolation = OFF */";
                    connection.execute(sqlx::raw_sql(mode)).await.map(|_| ())
                })
            })
            .connect_lazy_with(connect);
        Self {
            pool,
            dialect: OnceLock::new(),
            removal: Arc::new(Removal::new(options.kinds, &options.anonymize_columns)),
            anonymize_columns: options.anonymize_columns,
            unique_email: options.unique_email,
            polls: options.polls,
            kinds: options.kinds,
            bell: Arc::default(),
            _relay: relay,
        }
    }

    async fn connection(&self) -> Result<PoolConnection<MySql>> {
        let mut connection = self.pool.acquire().await.map_err(connect_error)?;
        if self.dialect.get().is_none() {
            let row = connection.fetch_one(sqlx::raw_sql("SELECT version()")).await.map_err(explain)?;
            let version: String = row.try_get_unchecked(0).map_err(explain)?;
            let is_mariadb = version.to_ascii_lowercase().contains("mariadb");
            _ = self.dialect.set(if is_mariadb { Dialect::Mariadb } else { Dialect::Mysql });
        }
        Ok(connection)
    }

    fn dialect(&self) -> Dialect {
        self.dialect.get().copied().unwrap_or(Dialect::Mysql)
    }

    async fn opened(&self, purpose: Purpose) -> Result<MysqlSession> {
        let connection = self.connection().await?;
        let dialect = self.dialect();
        let bell = Arc::clone(&self.bell);
        // One second is the shortest lock wait, unless a statement uses NOWAIT. MariaDB accepts a limit of 0, but then `SKIP
        // LOCKED` fails with 1180.
        let is_hurried = purpose == Purpose::Write(Patience::Short);
        let removal = Arc::clone(&self.removal);
        let mut session = MysqlSession::new(connection, dialect, self.kinds, removal, bell, is_hurried);
        session.control(&beginning(dialect, purpose)).await?;
        Ok(session)
    }
}

#[async_trait]
impl Database for Mysql {
    fn writers(&self) -> usize {
        WRITERS
    }

    async fn migrate(&self) -> Result<Vec<Migration>> {
        // Drop it before the next step, because the pool may have no second connection.
        let mut connection = self.connection().await?;
        let applied = migrations::migrate(&mut connection, self.dialect()).await?;
        drop(connection);
        unique_email::settle(self, self.unique_email).await?;
        // After the migrations, because the application can add its columns only to existing tables.
        migrations::check_anonymize_columns(&mut *self.connection().await?, &self.anonymize_columns).await?;
        Ok(applied)
    }

    async fn migration_status(&self) -> Result<Vec<MigrationStatus>> {
        migrations::status(&mut *self.connection().await?).await
    }

    async fn ready(&self) -> Result<Readiness> {
        let mut connection = self.connection().await?;
        let row = connection.fetch_one(sqlx::raw_sql("SELECT @@read_only")).await.map_err(explain)?;
        if row.try_get_unchecked::<i64, _>(0).map_err(explain)? != 0 {
            return Ok(Readiness::ReadOnly);
        }
        let current = migrations::status(&mut connection).await?.iter().all(|status| status.applied);
        Ok(if current { Readiness::Ready } else { Readiness::SchemaNotCurrent })
    }

    fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.bell)
    }

    async fn listen(&self) -> Result<Option<Box<dyn Listener>>> {
        Ok(if self.polls { Some(Polling::of(Newest(self.pool.clone())).await?) } else { None })
    }

    async fn space(&self) -> Result<Space> {
        Ok(Space { taken: inspect::size(&mut *self.connection().await?).await?.database, free: None })
    }

    async fn estimate_standing(&self) -> Result<Count> {
        inspect::estimate_standing(&mut *self.connection().await?).await
    }

    async fn foreign_table(&self, table: &str) -> Result<ForeignTable> {
        foreign::describe(&mut *self.connection().await?, table).await
    }

    async fn foreign_rows(
        &self,
        reading: &ForeignReading,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ForeignRow>> {
        // A condition may call a function that writes. In this read-only transaction, that is refused.
        let mut session = Box::new(self.opened(Purpose::Scan).await?);
        let rows = foreign::read(session.connection()?, reading, after, limit).await;
        session.rollback().await;
        rows
    }

    async fn inspect(&self) -> Result<Inspection> {
        let lacks_index = !unique_email::is_settled(self, self.unique_email).await?;
        inspect::inspect(&mut *self.connection().await?, &self.anonymize_columns, lacks_index).await
    }

    async fn statistics(&self, since: DateTime<Utc>) -> Result<Statistics> {
        statistics::statistics(self, since).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

#[async_trait]
impl SqlDatabase for Mysql {
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn SqlTransaction>> {
        Ok(Box::new(self.opened(purpose).await?))
    }
}

/// The same server, through a relay where possible.
fn by_way_of_a_relay(connect: MySqlConnectOptions) -> (MySqlConnectOptions, Option<Relay>) {
    const NAME: &str = "mysql";
    let relay =
        connect.get_socket().is_none().then(|| Relay::to(connect.get_host(), connect.get_port(), NAME));
    match relay.flatten() {
        Some((folder, relay)) => (connect.socket(folder.join(NAME)), Some(relay)),
        None => (connect, None),
    }
}

/// The text that opens a transaction for this purpose.
fn beginning(dialect: Dialect, purpose: Purpose) -> String {
    let (locks, milliseconds) = match purpose {
        Purpose::Write(Patience::Long) => (2, 20_000),
        Purpose::Count => (2, 8_000),
        Purpose::Scan | Purpose::WriteMany => (30, 600_000),
        _ => (1, 3_000),
    };
    let limit = match dialect {
        Dialect::Mariadb => format!("max_statement_time = {}", milliseconds / 1000),
        // Only limits statements that read.
        _ => format!("max_execution_time = {milliseconds}"),
    };
    let access = if matches!(purpose, Purpose::Count | Purpose::Scan) { " READ ONLY" } else { "" };
    format!(
        "SET SESSION innodb_lock_wait_timeout = {locks}, lock_wait_timeout = {locks}, {limit}; \
         SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION{access}"
    )
}
