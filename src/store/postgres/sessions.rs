//! Whether a session of the server is exclusive to clerk-sync, so that statements can stay prepared in it.
//!
//! A pooler hands one session to many clients, and would mix up their statements. Address translation, such as that of a
//! container or a Kubernetes service, does not. Either of two signs shows that no other client shares a session. The
//! first: the server sees the same two addresses of the connection as clerk-sync. The second: the session has
//! clerk-sync's mark. Then clerk-sync's own start-up packet began it, because no pooler passes on a setting that it does
//! not know. The session of each transaction is identified when the transaction begins, without an extra round trip. If
//! one connection changes, the others are not affected.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::time::timeout;

use crate::store::{Route, relay::Paths, token};

/// The setting that holds the mark.
const MARK: &str = "clerk_sync.session";

/// How long testing a marked connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// If opening a transaction takes longer than this, a round trip costs more than planning a batch's statements.
const FAR: Duration = Duration::from_micros(800);

/// How long an answer proves that the server is reachable.
const FRESH: Duration = Duration::from_secs(2);

/// What is known about the sessions that clerk-sync's connections reached.
pub(super) struct Sessions {
    /// Both addresses of clerk-sync's connections; `None` if they are unknown.
    paths: Option<Paths>,
    /// Unique to this process.
    mark: String,
    /// How each session is reached, by the process number of the server.
    met: Mutex<HashMap<i32, Route>>,
    /// Whether the server saw other addresses of any connection.
    indirect: AtomicBool,
    /// The quickest opening of a transaction so far, in microseconds. `last` is the time of the last answer, in milliseconds
    /// since the start.
    quickest: AtomicU64,
    last: AtomicU64,
    start: Instant,
}

impl Sessions {
    pub(super) fn new(paths: Option<Paths>) -> Self {
        Self {
            paths,
            mark: token(),
            met: Mutex::default(),
            indirect: AtomicBool::new(false),
            quickest: AtomicU64::new(u64::MAX),
            last: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Identify the session of a new connection, with a simple query that any pooler passes on as a whole.
    pub(super) async fn meet(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let asked = sqlx::raw_sql(
            "SELECT pg_backend_pid(), current_setting('clerk_sync.session', true),
                    host(inet_client_addr()), inet_client_port()::text, host(inet_server_addr()), inet_server_port()::text",
        );
        let session = connection.fetch_one(asked).await?;
        let mark: Option<String> = session.try_get(1)?;
        let straight = self.paths.as_ref().is_some_and(|paths| is_one_of(paths, &session));
        let route = match (straight, mark.as_deref() == Some(&self.mark)) {
            (true, _) => Route::Straight,
            (false, true) => Route::Translated,
            (false, false) => Route::Shared,
        };
        if !straight {
            self.indirect.store(true, Ordering::Relaxed);
        }
        self.met().insert(session.try_get(0)?, route);
        Ok(())
    }

    /// Note that a transaction was opened in this time.
    pub(super) fn took(&self, time: Duration) {
        self.quickest.fetch_min(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.answered();
    }

    /// Note that the server answered.
    pub(super) fn answered(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// Whether one message may open a transaction and do its first work. The server must be so far away that a round trip costs
    /// more than planning a statement. It must also have answered recently: only an opening that is sent alone has a deadline
    /// short enough to find a dead connection quickly.
    pub(super) fn is_worth_a_trip(&self) -> bool {
        let quickest = self.quickest.load(Ordering::Relaxed);
        let is_far = quickest < u64::MAX && Duration::from_micros(quickest) > FAR;
        let ago = self.now().saturating_sub(self.last.load(Ordering::Relaxed));
        is_far && Duration::from_millis(ago) < FRESH
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How a session was reached. A session that none of clerk-sync's connections began is shared.
    pub(super) fn route(&self, pid: i32) -> Route {
        self.met().get(&pid).copied().unwrap_or(Route::Shared)
    }

    /// Whether the server ever saw other addresses of a connection than clerk-sync does.
    pub(super) fn are_indirect(&self) -> bool {
        self.indirect.load(Ordering::Relaxed)
    }

    /// The same options with the mark, if a connection with it reaches a session that has it.
    pub(super) async fn marked(&self, connect: &PgConnectOptions) -> Option<PgConnectOptions> {
        let marked = connect.clone().options([(MARK, &self.mark)]);
        let tried = timeout(PATIENCE, async {
            let mut connection = marked.connect().await.ok()?;
            let asked = sqlx::raw_sql("SELECT current_setting('clerk_sync.session', true)");
            let found: Option<String> = connection.fetch_one(asked).await.ok()?.try_get(0).ok()?;
            _ = connection.close().await;
            (found.as_ref() == Some(&self.mark)).then_some(())
        });
        tried.await.ok()??;
        Some(marked)
    }

    fn met(&self) -> std::sync::MutexGuard<'_, HashMap<i32, Route>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the server sees the two addresses of one of clerk-sync's connections.
fn is_one_of(paths: &Paths, row: &PgRow) -> bool {
    let end = |address: usize, port: usize| {
        let address: IpAddr = row.try_get::<Option<String>, _>(address).ok()??.parse().ok()?;
        Some(SocketAddr::new(address, row.try_get::<Option<String>, _>(port).ok()??.parse().ok()?))
    };
    end(2, 3).zip(end(4, 5)).is_some_and(|(near, far)| paths.contain(near, far))
}
