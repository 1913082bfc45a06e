//! Is it alive, can it work, what is it?
//!
//! `livez` never touches the database: a restart would not mend it. Readiness asks the database at most four times a
//! second, however many ask us, and never waits for it longer than 2 s. With `IDLE=quiet` the answer that all is well is good
//! for an hour, or until a webhook meets trouble, so that probes do not keep a database awake.

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
};

/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long its answer is good for.
const FRESH: Duration = Duration::from_millis(250);

/// How long the answer is good that all is well, where the database is to be left alone.
const BELIEVED: Duration = Duration::from_hours(1);

/// Asks the database whether it can work, sparingly.
#[derive(Clone)]
pub struct Probe {
    store: Arc<dyn Store>,
    /// Held while asking, so that those who come meanwhile share the answer.
    last: Arc<Mutex<Option<(Instant, Finding)>>>,
    idle: Idle,
    /// Whether something spoke against what it last said.
    doubted: Arc<AtomicBool>,
}

/// `None`: all is well.
pub(super) type Finding = Option<Problem>;

impl Probe {
    /// Ask this store.
    pub fn new(store: Arc<dyn Store>, idle: Idle) -> Self {
        Self { store, last: Arc::default(), idle, doubted: Arc::default() }
    }

    /// Somebody met trouble with the database.
    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// How long such an answer is good.
    fn lasts(&self, finding: Finding) -> Duration {
        let doubted = self.doubted.load(Ordering::Relaxed);
        if self.idle == Idle::Quiet && finding.is_none() && !doubted { BELIEVED } else { FRESH }
    }

    /// Ask, unless that was done a moment ago.
    pub(super) async fn ask(self) -> Finding {
        let mut last = self.last.lock().await;
        match *last {
            Some((at, finding)) if at.elapsed() < self.lasts(finding) => return finding,
            _ => {}
        }
        self.doubted.store(false, Ordering::Relaxed);
        let (finding, error) = match timeout(PATIENCE, self.store.ready()).await {
            Ok(Ok(Readiness::Ready)) => (None, None),
            Ok(Ok(Readiness::ReadOnly)) => (Some(Problem::DatabaseReadOnly), None),
            Ok(Ok(Readiness::SchemaNotCurrent)) => (Some(Problem::SchemaNotCurrent), None),
            Ok(Ok(Readiness::RowsHidden)) => (Some(Problem::RowsHidden), None),
            Ok(Err(error)) if error.kind == ErrorKind::Schema => {
                (Some(Problem::SchemaNotCurrent), Some(error.to_string()))
            }
            Ok(Err(error)) => (Some(Problem::DatabaseUnavailable), Some(error.to_string())),
            Err(_) => {
                let error = format!("no answer within {} s", PATIENCE.as_secs());
                (Some(Problem::DatabaseUnavailable), Some(error))
            }
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
    let stream = app.stream.clone();
    let looked = async move {
        match stream {
            Some(stream) => matches!(timeout(PATIENCE, stream.look()).await, Ok(Ok(()))),
            None => true,
        }
    };
    // In tasks of their own, so that a caller that hangs up cancels nothing.
    let (finding, looked) = tokio::join!(tokio::spawn(app.probe.clone().ask()), tokio::spawn(looked));
    let finding = finding.unwrap_or(Some(Problem::DatabaseUnavailable));
    if !looked.unwrap_or(false) {
        return Err(Problem::QueueUnavailable);
    }
    match finding {
        None => Ok(Json(json!({ "status": "ready" }))),
        // Webhooks are taken in without a database, and are not to be kept away because of it.
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
