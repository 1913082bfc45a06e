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
mod text;
mod watch;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{
    ConnectOptions as _, Executor as _, MySqlPool,
    mysql::{MySql, MySqlConnectOptions, MySqlPoolOptions},
    pool::PoolConnection,
};
use tokio::sync::Notify;

pub(super) use self::error::explain;
use self::{error::connect_error, inspect::Version, session::MysqlSession, watch::Newest};
use super::{
    Count, Database, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Migration,
    MigrationStatus, Patience, Readiness, Result, Session as _, Space, Statistics,
    polling::Polling,
    relay::Relay,
    schema,
    sql::{
        Dialect, Purpose, SqlDatabase, SqlTransaction, ask::Ask as _, attempt::Open, removal::Removal,
        statistics, unique_email, values,
    },
};
use crate::model::Kinds;

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
    pub kinds: Kinds,
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
    options: Options,
    removal: Arc<Removal>,
    bell: Arc<Notify>,
    _relay: Option<Relay>,
}

impl Mysql {
    /// Opens connections only when they are needed; nothing is sent yet. Must be called inside a runtime.
    pub fn new(options: Options) -> Self {
        let (connect, relay) = by_way_of_a_relay(options.connect.clone().disable_statement_logging());
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
            options,
            bell: Arc::default(),
            _relay: relay,
        }
    }

    async fn connection(&self) -> Result<PoolConnection<MySql>> {
        let mut connection = self.pool.acquire().await.map_err(connect_error)?;
        if self.dialect.get().is_none() {
            let version: String = connection.one("SELECT version()", values![]).await?.get(0)?;
            let is_mariadb = Version::of(&version).is_mariadb;
            _ = self.dialect.set(if is_mariadb { Dialect::Mariadb } else { Dialect::Mysql });
        }
        Ok(connection)
    }

    fn dialect(&self) -> Dialect {
        self.dialect.get().copied().unwrap_or(Dialect::Mysql)
    }

    async fn opened(&self, purpose: Purpose) -> Result<MysqlSession> {
        let mut session = MysqlSession {
            open: Open::new(self.connection().await?),
            dialect: self.dialect(),
            kinds: self.options.kinds,
            removal: Arc::clone(&self.removal),
            bell: Arc::clone(&self.bell),
            leaves_work: false,
            // One second is the shortest lock wait, unless a statement uses NOWAIT. MariaDB accepts a limit of 0, but then `SKIP
            // LOCKED` fails with 1180.
            is_hurried: purpose == Purpose::Write(Patience::Short),
        };
        session.open.connection()?.run(&beginning(session.dialect, purpose)).await?;
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
        unique_email::settle(self, self.options.unique_email).await?;
        // After the migrations, because the application can add its columns only to existing tables.
        let columns = migrations::columns(&mut *self.connection().await?).await?;
        schema::check_anonymize_columns(&columns, &self.options.anonymize_columns)?;
        Ok(applied)
    }

    async fn migration_status(&self) -> Result<Vec<MigrationStatus>> {
        self.connection().await?.status().await
    }

    async fn ready(&self) -> Result<Readiness> {
        let mut connection = self.connection().await?;
        if connection.one("SELECT @@read_only", values![]).await?.get(0)? {
            return Ok(Readiness::ReadOnly);
        }
        let current = connection.status().await?.iter().all(|status| status.applied);
        Ok(if current { Readiness::Ready } else { Readiness::SchemaNotCurrent })
    }

    fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.bell)
    }

    async fn listen(&self) -> Result<Option<Box<dyn Listener>>> {
        Ok(if self.options.polls { Some(Polling::of(Newest(self.pool.clone())).await?) } else { None })
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
        let rows = foreign::read(session.open.connection()?, reading, after, limit).await;
        session.rollback().await;
        rows
    }

    async fn inspect(&self) -> Result<Inspection> {
        let lacks_index = !unique_email::is_settled(self, self.options.unique_email).await?;
        inspect::inspect(&mut *self.connection().await?, &self.options.anonymize_columns, lacks_index).await
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
