//! Telling other processes that something was left to be worked on, and hearing it from them: NOTIFY and LISTEN.
//!
//! It is told after the commit, in a transaction of its own and at most twice a second, because a NOTIFY inside makes all
//! commits of a database wait for each other. Should a process die in between, the others find what it left when they look
//! the next time. It is heard only in a session that is ours alone: a pooler would give what is heard to somebody else.
//!
//! The same task sees to the connections that nobody uses any more.

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

/// The channel of all of us. The schema, of which a database may have several of ours, is what is told.
const CHANNEL: &str = "clerk_sync";

/// Between two times that something is told.
const REST: Duration = Duration::from_millis(500);

/// How long telling may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The server adds up what a connection did a second after the last time, or else ten seconds later. Who watches these sums
/// to let a database sleep must not see something happen long after it did.
const SETTLED: Duration = Duration::from_millis(1200);

/// After so long without a transaction we count as idle.
const IDLE: Duration = Duration::from_secs(3);

/// So many connections are kept while idle, for the next webhooks.
const KEPT: usize = 2;

/// What is left for others, and what is not needed any more.
pub(super) struct Others {
    pool: PgPool,
    pub(super) schema: String,
    sessions: Arc<Sessions>,
    /// Rung for those who work in this process.
    pub(super) bell: Arc<Notify>,
    /// Whether something was left that the others were not told of.
    untold: AtomicBool,
    tell: Notify,
    /// Rung when a transaction ends.
    used: Notify,
    /// How many ended since connections were last seen to.
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

    /// A transaction is over.
    pub(super) fn used(&self) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.used.notify_one();
    }

    /// Something was left to be worked on, and is committed.
    pub(super) fn left_work(&self) {
        self.untold.store(true, Ordering::Relaxed);
        self.tell.notify_one();
        self.bell.notify_one();
    }

    /// Tell the others, and see to idle connections, as long as this is polled.
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

    /// Tell the others what they were not told yet; `false` if that failed. They find it by themselves at last.
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
            tracing::debug!("other processes could not be told yet; they also look by themselves");
        }
        self.used();
        told
    }

    /// Close what is idle but for a few, on which one last transaction lets the server add up what they did.
    async fn tidy(&self) {
        // The server has added up a single one by itself.
        let alone = self.transactions.swap(0, Ordering::Relaxed) < 2;
        let kept = if self.keeps_none.load(Ordering::Relaxed) { 0 } else { KEPT };
        if alone && kept > 0 {
            return;
        }
        let mut idle = Vec::new();
        while let Some(connection) = self.pool.try_acquire() {
            idle.push(connection);
        }
        // Their places are free at once, however long the server takes.
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
