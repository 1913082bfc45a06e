//! SQLite, the embedded backend: one file, many readers, one writer.
//!
//! It guarantees three things. Every commit is on the disk before it is answered (`synchronous = FULL`). Erased data is
//! overwritten (`secure_delete`) and also leaves the write-ahead log. The file can be shared, because no lock outlasts a
//! transaction.
//!
//! There is one exception. When SQLite moves a row to another page, it sometimes leaves a copy in the unused part of the
//! old page, which `secure_delete` does not overwrite. No statement can read that copy; only `VACUUM` removes it.
//!
//! Every write uses `BEGIN IMMEDIATE`, so what a transaction reads cannot change before it commits: the database's single write
//! lock is the lock on every register. Once the file is open, clerk-sync never creates it again. A file that was moved or
//! deleted while open counts as unavailable, because commits to it would be lost.

mod transaction;

mod others;
pub(super) mod seals;

mod error;
mod foreign;
mod inspect;
mod migrations;
mod permission;
mod statement;
mod text;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{
    ConnectOptions, Connection,
    pool::{PoolConnection, PoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous},
};

use tokio::sync::Notify;

pub use permission::check as check_permission;

pub(super) use self::error::explain;
use self::{
    others::Files,
    transaction::{Housekeeping, SqliteSession},
};
use super::{
    Count, Database, ErrorKind, ForeignReading, ForeignRow, ForeignTable, Inspection, Listener, Migration,
    MigrationStatus, Patience, Readiness, Result, Session as _, Space, Statistics, StoreError,
    polling::Polling,
    schema,
    sql::{
        Purpose, SqlDatabase, SqlTransaction, ask::Ask as _, removal::Removal, statistics, unique_email,
        values,
    },
};
use crate::model::{Entity, Kinds};

/// How long a statement waits for a lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a call waits for a connection from the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// After a transaction found no room on the disk: the free space from which another one is worth an attempt.
const ROOM: u64 = 1 << 20;
/// How long [`Sqlite::open`] retries while other processes open the same file.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The configuration for [`Sqlite::open`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file. It is created if it is missing, but its directory is not.
    pub path: PathBuf,
    /// Columns that the application added to `users`, set to NULL on anonymisation.
    pub anonymize_columns: Vec<String>,
    /// The kinds of objects that it stores.
    pub kinds: &'static [&'static Entity],
    /// The maximum number of connections, one of which writes.
    pub max_connections: u32,
    /// Whether [`Database::migrate`] creates the index of `UNIQUE_EMAIL`; otherwise it drops it.
    pub unique_email: bool,
}

/// A SQLite database.
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    file: File,
    anonymize_columns: Vec<String>,
    unique_email: bool,
    kinds: Kinds,
    housekeeping: Arc<Housekeeping>,
}

impl Sqlite {
    /// Open the file, and create it if it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if it cannot be opened; [`ErrorKind::Schema`] if its directory does not exist, if it is not a
    /// database, or if it may not be written to.
    pub async fn open(options: Options) -> Result<Self> {
        check_permission(&options.path)?;
        check_kind(&options.path)?;
        let connect = SqliteConnectOptions::new()
            .filename(&options.path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("secure_delete", "ON")
            .disable_statement_logging();
        let folder = options.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.exists()) {
            return Err(StoreError::schema(format!(
                "DATABASE_URL: there is no directory {}; create it first, and clerk-sync creates the file in it",
                folder.display()
            )));
        }
        create(&connect).await.map_err(|error| error.at(&options.path))?;
        Self::with(connect, options)
    }

    /// Open an existing file for inspection only: nothing is created or changed, and writes fail.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if there is no such file; [`ErrorKind::Schema`] if it is not a database.
    pub fn look(options: Options) -> Result<Self> {
        check_kind(&options.path)?;
        let connect = SqliteConnectOptions::new()
            .filename(&options.path)
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        Self::with(connect, options)
    }

    fn with(connect: SqliteConnectOptions, options: Options) -> Result<Self> {
        let file = File::identify(options.path)?;
        let pool = || {
            PoolOptions::new()
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        Ok(Self {
            writer: pool().max_connections(1).connect_lazy_with(connect.clone()),
            readers: pool()
                .max_connections(options.max_connections.saturating_sub(1).max(1))
                .connect_lazy_with(connect),
            file,
            housekeeping: Arc::new(Housekeeping::new(Removal::new(
                options.kinds,
                &options.anonymize_columns,
            ))),
            kinds: options.kinds,
            anonymize_columns: options.anonymize_columns,
            unique_email: options.unique_email,
        })
    }

    async fn write(&self, patience: Patience) -> Result<SqliteSession> {
        self.file.check()?;
        let connection = self.writer.acquire().await.map_err(explain)?;
        let mut session = SqliteSession::new(connection, self.kinds, false, Arc::clone(&self.housekeeping));
        session.begin(patience).await?;
        Ok(session)
    }

    async fn read(&self) -> Result<PoolConnection<sqlx::Sqlite>> {
        self.file.check()?;
        self.readers.acquire().await.map_err(explain)
    }
}

#[async_trait]
impl Database for Sqlite {
    fn writers(&self) -> usize {
        1
    }

    async fn migrate(&self) -> Result<Vec<Migration>> {
        let place = self.file.path.display();
        let mut reader = self.read().await?;
        // Usually there is nothing to do, which must not need the write lock.
        let mut applied = reader.pending().await?;
        if applied.is_empty() {
            migrations::check(&mut reader, &place, &[]).await?;
        } else {
            let mut transaction = self.write(Patience::Normal).await?;
            applied = migrations::apply(transaction.connection()?, &place).await?;
            Box::new(transaction).commit().await?;
        }
        drop(reader);
        unique_email::settle(self, self.unique_email).await?;
        // After the migrations, because the application can add its columns only to existing tables.
        let columns = migrations::columns(&mut *self.read().await?, "users").await?;
        schema::check_anonymize_columns(&columns, &self.anonymize_columns)?;
        Ok(applied)
    }

    async fn migration_status(&self) -> Result<Vec<MigrationStatus>> {
        self.read().await?.status().await
    }

    async fn ready(&self) -> Result<Readiness> {
        // Missing permissions may be restored, so this counts as unavailable.
        let away = |error| StoreError { kind: ErrorKind::Unavailable, ..error };
        check_permission(&self.file.path).map_err(away)?;
        // Without a webhook nothing writes, so the free space has to tell when the disk has room again.
        if self.housekeeping.disk_is_full.load(Ordering::Relaxed)
            && self.file.space()?.free.is_some_and(|free| free < ROOM)
        {
            return Err(error::full());
        }
        let current = self.migration_status().await?.iter().all(|status| status.applied);
        Ok(if current { Readiness::Ready } else { Readiness::SchemaNotCurrent })
    }

    fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.housekeeping.bell)
    }

    async fn listen(&self) -> Result<Option<Box<dyn Listener>>> {
        Polling::of(Files::of(&self.file.path)).await.map(Some)
    }

    async fn space(&self) -> Result<Space> {
        self.file.space()
    }

    async fn estimate_standing(&self) -> Result<Count> {
        inspect::count_standing(&mut *self.read().await?).await.map(Count::exact)
    }

    async fn compact(&self, at_most: u64, erased_since: Option<DateTime<Utc>>) -> Result<bool> {
        {
            let mut reader = self.read().await?;
            if inspect::size(&mut reader).await? > at_most {
                return Ok(false);
            }
            if let Some(at) = erased_since {
                let query = "SELECT EXISTS (
                    SELECT 1 FROM erasure_receipts WHERE destination = 'database' AND completed_at >= ?1
                )";
                if !reader.one(query, values![at]).await?.get::<bool>(0)? {
                    return Ok(false);
                }
            }
        }
        self.file.check()?;
        let mut writer = self.writer.acquire().await.map_err(explain)?;
        // Outside a transaction, with the usual wait for other writers.
        writer.run("PRAGMA busy_timeout = 3000; VACUUM").await?;
        // The new pages are in the log, while the file still holds the old ones.
        self.housekeeping.tidy(&mut writer, true).await;
        Ok(true)
    }

    async fn foreign_table(&self, table: &str) -> Result<ForeignTable> {
        foreign::describe(&mut *self.read().await?, table).await
    }

    async fn foreign_rows(
        &self,
        reading: &ForeignReading,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ForeignRow>> {
        foreign::read(&mut *self.read().await?, reading, after, limit).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        let place = self.file.path.display();
        inspect::inspect(&mut *self.read().await?, &place, &self.anonymize_columns).await
    }

    async fn statistics(&self, since: DateTime<Utc>) -> Result<Statistics> {
        statistics::statistics(self, since).await
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[async_trait]
impl SqlDatabase for Sqlite {
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn SqlTransaction>> {
        Ok(Box::new(match purpose {
            Purpose::Write(patience) => self.write(patience).await?,
            Purpose::WriteAtOnce | Purpose::WriteMany | Purpose::WriteUnhurried => {
                self.write(Patience::Normal).await?
            }
            Purpose::Read | Purpose::Page | Purpose::Count | Purpose::Scan => {
                SqliteSession::new(self.read().await?, self.kinds, true, Arc::clone(&self.housekeeping))
            }
        }))
    }
}

/// Refuse a path that can never become a database, for which SQLite would only report a number.
fn check_kind(path: &Path) -> Result<()> {
    // https://www.sqlite.org/fileformat2.html#the_database_header
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let refuse = |why: &str| Err(StoreError::schema(format!("DATABASE_URL: {} {why}", path.display())));
    if path.is_dir() {
        return refuse("is a directory; it must be a file");
    }
    let mut begin = Vec::new();
    match std::fs::File::open(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut begin)) {
        Ok(_) if !MAGIC.starts_with(&begin) => refuse("is not a SQLite database; name another file"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            check_permission(path)?;
            refuse("may not be read by this user")
        }
        // A missing file is created or reported by the caller.
        _ => Ok(()),
    }
}

/// Create the file, and switch it permanently to write-ahead logging.
///
/// The switch needs exclusive access to the file and does not wait for it (`busy_timeout` does not apply). Several processes
/// that start together therefore have to take turns.
async fn create(connect: &SqliteConnectOptions) -> Result<()> {
    let connect = connect.clone().create_if_missing(true);
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let error = match connect.connect().await {
            Ok(connection) => return connection.close().await.map_err(explain),
            Err(error) => error,
        };
        if !error::is_busy(&error) || start.elapsed() > OPEN_TIMEOUT {
            return Err(explain(error));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// The file that was opened. SQLite keeps a deleted file open and continues to write to it; clerk-sync must not.
struct File {
    path: PathBuf,
    /// Its device and inode.
    identity: (u64, u64),
}

impl File {
    fn identify(path: PathBuf) -> Result<Self> {
        let identity = identity(&path)?;
        Ok(Self { path, identity })
    }

    /// The size of the file and its log, and the free space on their volume.
    fn space(&self) -> Result<Space> {
        self.check()?;
        let unavailable = |_| StoreError::new(ErrorKind::Unavailable).at(&self.path);
        let file = std::fs::metadata(&self.path).map_err(unavailable)?.len();
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        // The log does not exist while no process has the file open.
        let log = std::fs::metadata(log).map_or(0, |metadata| metadata.len());
        let volume = rustix::fs::statvfs(&self.path).ok();
        let free = volume.map(|volume| volume.f_bavail.saturating_mul(volume.f_frsize));
        Ok(Space { taken: file + log, free })
    }

    /// [`ErrorKind::Unavailable`] if the path no longer leads to the same file.
    fn check(&self) -> Result<()> {
        if identity(&self.path)? == self.identity {
            return Ok(());
        }
        Err(StoreError {
            place: Some(format!(
                "{} was replaced; restart clerk-sync to use the new file",
                self.path.display()
            )),
            ..StoreError::new(ErrorKind::Unavailable)
        })
    }
}

fn identity(path: &Path) -> Result<(u64, u64)> {
    let metadata = std::fs::metadata(path).map_err(|_| StoreError::new(ErrorKind::Unavailable).at(path))?;
    Ok((metadata.dev(), metadata.ino()))
}

impl StoreError {
    /// Add the file's path, unless the place is already known.
    fn at(mut self, path: &Path) -> Self {
        self.place.get_or_insert_with(|| format!("file {}", path.display()));
        self
    }
}
