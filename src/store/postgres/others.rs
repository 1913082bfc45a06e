//! Notifying other processes about new work, and receiving their notifications: NOTIFY and LISTEN.
//!
//! A notification is sent after the commit, in its own transaction and at most twice a second. A NOTIFY inside a
//! transaction would make all commits of the database wait for each other. If a process dies before it notifies, the
//! others find its work when they next poll. Listening requires a session that no other client shares: a pooler would
//! deliver the notifications to another client.
//!
//! The same task closes idle connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgPool, Row as _, pool::PoolConnection,
    postgres::PgListener,
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{error::store_error, sessions::Sessions};
use crate::store::{ErrorKind, Listener, Result, Route, StoreError};

/// The channel of all clerk-sync processes. The payload is the schema, because one database may have several.
const CHANNEL: &str = "clerk_sync";

/// The minimum time between two notifications.
const REST: Duration = Duration::from_millis(500);

/// How long sending a notification may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// At the end of a transaction, the server adds the connection's activity to its statistics, unless it did so less than a
/// second ago. In that case it does so up to ten seconds later. A monitor that uses these statistics to suspend an idle
/// database must not see activity long after it happened.
const SETTLED: Duration = Duration::from_millis(1200);

/// The time without a transaction after which the process counts as idle.
const IDLE: Duration = Duration::from_secs(3);

/// How many connections are kept while idle, for the next webhooks.
const KEPT: usize = 2;

/// Pending notifications to other processes, and connections that are no longer needed.
pub(super) struct Others {
    pool: PgPool,
    pub(super) schema: String,
    sessions: Arc<Sessions>,
    /// Notifies the workers in this process.
    pub(super) bell: Arc<Notify>,
    /// Whether there is new work that the other processes were not notified about.
    untold: AtomicBool,
    tell: Notify,
    /// Notified when a transaction ends.
    used: Notify,
    /// Number of transactions since idle connections were last handled.
    transactions: AtomicUsize,
    /// Whether no connection is kept while idle.
    pub(super) keeps_none: AtomicBool,
}

impl Others {
    pub(super) fn new(pool: PgPool, schema: String, sessions: Arc<Sessions>) -> Self {
        Self {
            pool,
            schema,
            sessions,
            bell: Arc::default(),
            untold: AtomicBool::new(false),
            tell: Notify::new(),
            used: Notify::new(),
            transactions: AtomicUsize::new(0),
            keeps_none: AtomicBool::new(false),
        }
    }

    /// Note that a transaction has ended.
    pub(super) fn used(&self) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.used.notify_one();
    }

    /// Note that new work was committed.
    pub(super) fn left_work(&self) {
        self.untold.store(true, Ordering::Relaxed);
        self.tell.notify_one();
        self.bell.notify_one();
    }

    /// Notify other processes and close idle connections, for as long as this future is polled.
    pub(super) async fn attend(&self) {
        let telling = async {
            loop {
                self.tell.notified().await;
                if !self.tell_now().await {
                    self.untold.store(true, Ordering::Relaxed);
                    self.tell.notify_one();
                }
                sleep(REST).await;
            }
        };
        let tidying = async {
            loop {
                self.used.notified().await;
                while timeout(IDLE, self.used.notified()).await.is_ok() {}
                self.tidy().await;
            }
        };
        tokio::join!(telling, tidying);
    }

    /// Send a pending notification; `false` if that failed. Other processes find the work later by polling.
    pub(super) async fn tell_now(&self) -> bool {
        if !self.untold.swap(false, Ordering::Relaxed) {
            return true;
        }
        let Ok(mut connection) = self.pool.acquire().await else { return false };
        let text = format!("SELECT pg_notify('{CHANNEL}', '{}')", self.schema.replace('\'', "''"));
        let told = timeout(PATIENCE, connection.execute(sqlx::raw_sql(AssertSqlSafe(text)))).await;
        let told = matches!(told, Ok(Ok(_)));
        if !told {
            drop(connection.detach());
            tracing::debug!("other processes could not be notified yet; they also poll");
        }
        self.used();
        told
    }

    /// Close idle connections except a few. One last transaction on those lets the server add their activity to its statistics.
    async fn tidy(&self) {
        // The server has already added the activity of a single transaction.
        let alone = self.transactions.swap(0, Ordering::Relaxed) < 2;
        let kept = if self.keeps_none.load(Ordering::Relaxed) { 0 } else { KEPT };
        if alone && kept > 0 {
            return;
        }
        let mut idle = Vec::new();
        while let Some(connection) = self.pool.try_acquire() {
            idle.push(connection);
        }
        // Detaching frees their places in the pool at once, however long the server takes.
        let surplus: Vec<_> =
            idle.split_off(kept.min(idle.len())).into_iter().map(PoolConnection::detach).collect();
        for mut connection in idle {
            let asked = timeout(PATIENCE, connection.execute(sqlx::raw_sql("SELECT 1"))).await;
            if !matches!(asked, Ok(Ok(_))) {
                drop(connection.detach());
            }
        }
        for connection in surplus {
            _ = timeout(PATIENCE, connection.close()).await;
        }
    }

    pub(super) async fn listen(&self) -> Result<Option<Box<dyn Listener>>> {
        let mut ear = PgListener::connect_with(&self.pool).await.map_err(store_error)?;
        ear.eager_reconnect(false);
        let pid = ear.fetch_one(sqlx::raw_sql("SELECT pg_backend_pid()")).await.map_err(store_error)?;
        if self.sessions.route(pid.try_get(0).map_err(store_error)?) == Route::Shared {
            return Ok(None);
        }
        sleep(SETTLED).await;
        ear.listen(CHANNEL).await.map_err(store_error)?;
        Ok(Some(Box::new(Ear { ear, schema: self.schema.clone() })))
    }
}

/// A session that listens.
struct Ear {
    ear: PgListener,
    schema: String,
}

#[async_trait]
impl Listener for Ear {
    async fn heard(&mut self) -> Result<()> {
        loop {
            match self.ear.try_recv().await {
                Ok(Some(told)) if told.payload() == self.schema => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) => return Err(StoreError::new(ErrorKind::Unavailable)),
                Err(error) => return Err(store_error(error)),
            }
        }
    }
}
