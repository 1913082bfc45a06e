//! The probes: liveness, readiness and version.
//!
//! `livez` never touches the database, because a restart would not fix it. Readiness asks the database, and the stream if
//! there is one. However many callers there are, it asks at most four times a second, and waits at most 2 s for an
//! answer. With `IDLE=quiet` a good answer of the database is kept for an hour, or until a webhook meets a problem, so
//! that probes do not keep a database awake.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Json, extract::State};
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{App, error::Problem};
use crate::{
    model::Idle,
    store::{ErrorKind, Readiness, Store},
    stream::Stream,
};

/// How long the database or the stream may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long an answer is kept.
const FRESH: Duration = Duration::from_millis(250);

/// How long a good answer is kept where the database should stay idle.
const BELIEVED: Duration = Duration::from_hours(1);

/// Asks the database or the stream whether it is ready, with a limited rate.
#[derive(Clone)]
pub struct Probe {
    asked: Asked,
    /// Locked while asking, so that concurrent callers share the answer.
    last: Arc<Mutex<Option<(Instant, Finding)>>>,
    idle: Idle,
    /// Whether a problem contradicts the last answer.
    doubted: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Asked {
    Store(Arc<dyn Store>),
    Stream(Stream),
}

/// `None`: it is ready.
pub(super) type Finding = Option<Problem>;

impl Probe {
    /// Probes this store.
    pub fn new(store: Arc<dyn Store>, idle: Idle) -> Self {
        Self { asked: Asked::Store(store), last: Arc::default(), idle, doubted: Arc::default() }
    }

    /// Probes the server of this stream.
    pub fn of_stream(stream: Stream) -> Self {
        let asked = Asked::Stream(stream);
        Self { asked, last: Arc::default(), idle: Idle::Normal, doubted: Arc::default() }
    }

    /// Note that a caller met a problem with the database.
    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// How long such an answer is kept.
    fn lasts(&self, finding: Finding) -> Duration {
        let doubted = self.doubted.load(Ordering::Relaxed);
        if self.idle == Idle::Quiet && finding.is_none() && !doubted { BELIEVED } else { FRESH }
    }

    /// The current answer, or a recent one.
    pub(super) async fn ask(self) -> Finding {
        let mut last = self.last.lock().await;
        match *last {
            Some((at, finding)) if at.elapsed() < self.lasts(finding) => return finding,
            _ => {}
        }
        self.doubted.store(false, Ordering::Relaxed);
        let silence = || format!("no answer within {} s", PATIENCE.as_secs());
        let (finding, error) = match &self.asked {
            Asked::Store(store) => match timeout(PATIENCE, store.ready()).await {
                Ok(Ok(Readiness::Ready)) => (None, None),
                Ok(Ok(Readiness::ReadOnly)) => (Some(Problem::DatabaseReadOnly), None),
                Ok(Ok(Readiness::SchemaNotCurrent)) => (Some(Problem::SchemaNotCurrent), None),
                Ok(Ok(Readiness::RowsHidden)) => (Some(Problem::RowsHidden), None),
                Ok(Err(error)) if error.kind == ErrorKind::Schema => {
                    (Some(Problem::SchemaNotCurrent), Some(error.to_string()))
                }
                Ok(Err(error)) => (Some(Problem::DatabaseUnavailable), Some(error.to_string())),
                Err(_) => (Some(Problem::DatabaseUnavailable), Some(silence())),
            },
            Asked::Stream(stream) => match timeout(PATIENCE, stream.check()).await {
                Ok(Ok(())) => (None, None),
                Ok(Err(error)) => (Some(Problem::QueueUnavailable), Some(error.to_string())),
                Err(_) => (Some(Problem::QueueUnavailable), Some(silence())),
            },
        };
        let before = last.and_then(|(_, finding)| finding);
        match finding {
            Some(problem) if before != finding => {
                tracing::warn!(reason = problem.code(), error, "not ready");
            }
            None if before.is_some() => tracing::info!("ready again"),
            _ => {}
        }
        *last = Some((Instant::now(), finding));
        finding
    }
}

/// `GET /livez`
pub(super) async fn livez() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// `GET /readyz` and `GET /healthz`
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    if app.shutdown.is_cancelled() {
        return Err(Problem::ShuttingDown);
    }
    // In separate tasks, so that a caller that hangs up cancels nothing.
    let database = tokio::spawn(app.probe.clone().ask());
    if let Some(stream) = app.stream.clone()
        && let Some(problem) = tokio::spawn(stream.ask()).await.unwrap_or(Some(Problem::QueueUnavailable))
    {
        return Err(problem);
    }
    match database.await.unwrap_or(Some(Problem::DatabaseUnavailable)) {
        None => Ok(Json(json!({ "status": "ready" }))),
        // With a stream, webhooks are received without a database, so a database problem must not stop them.
        Some(problem) if app.stream.is_some() && app.committer.receives() => {
            Ok(Json(json!({ "status": "ready", "database": problem.code() })))
        }
        Some(problem) => Err(problem),
    }
}

/// `GET /version`
pub(super) async fn version() -> Json<Value> {
    Json(json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") }))
}
