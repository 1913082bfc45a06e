//! `/v1`: the private API, every route of it on one screen.
//!
//! It reads, fetches from Clerk what is not here yet, and retries or discards what waits. Every request shows the bearer token
//! of `ADMIN_TOKEN` first, also to learn that there is nothing there. Answers are JSON, never to be cached, and come within the
//! deadline of every other answer. Few read at a time, so that they cannot take the connections that webhooks need, and what
//! is asked goes into no log: e-mail addresses stand in it.

mod ensure;
pub(super) mod objects;
mod openapi;
mod outbox;
pub(super) mod query;
mod queue;
mod signups;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Request, rejection::PathRejection},
    http::{HeaderValue, header},
    middleware::{from_fn_with_state, map_response},
    response::Response,
    routing::{any, get, post},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use utoipa::OpenApi;

pub use self::{objects::row_as_json, queue::parked_as_json};
use super::{
    App, Bodies, address,
    attempts::Attempts,
    error::{ErrorBody, Problem},
    health::Probe,
    token::{self, Token},
};
use crate::{
    model::Kinds,
    store::{self, Deed, ErrorKind, Store, StoreError},
    sync::{
        ensure::Ensure,
        operator::{self, Entry, Tally, Which},
    },
    telemetry,
};

type Answer<T> = Result<Json<T>, Problem>;

/// The part of a path that stands for an id or a name, if it is text.
type Segment = Result<Path<String>, PathRejection>;

/// The most that a body may have: a thousand ids with room to spare.
const MAX_BODY_BYTES: usize = 512 * 1024;

/// How many ids a body may name.
const MAX_IDS: usize = 1000;

/// Wrong tokens in a row before answers to more of them take their time.
const FREE_ATTEMPTS: u32 = 30;

/// How many questions the database is asked at a time.
const READERS: usize = 2;

/// Everything at `/v1` and below.
pub(super) fn routes(app: Arc<App>) -> Router {
    Router::new()
        // What is kept of every kind: `/v1/users`, `/v1/users/{clerk_id}`.
        .merge(objects::routes(app.api.kinds))
        .merge(ensure::routes(app.api.kinds))
        .route("/v1/signups", get(signups::count))
        .route("/v1/outbox", get(outbox::list))
        .route("/v1/outbox/retry", post(outbox::retry))
        .route("/v1/outbox/discard", post(outbox::discard))
        .route("/v1/outbox/sinks/{sink}/pause", post(outbox::pause))
        .route("/v1/outbox/sinks/{sink}/resume", post(outbox::resume))
        .route("/v1/queue", get(queue::list))
        .route("/v1/queue/retry", post(queue::retry))
        .route("/v1/queue/discard", post(queue::discard))
        .route("/v1/queue/{svix_id}", get(queue::show))
        .route("/v1/openapi.json", get(openapi::show))
        // What is not there needs the token as well.
        .route("/v1", any(nothing))
        .route("/v1/", any(nothing))
        .route("/v1/{*elsewhere}", any(nothing))
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .layer(from_fn_with_state(Arc::clone(&app), token::require))
        .layer(map_response(forbid_caching))
        .with_state(app)
}

async fn nothing() -> Problem {
    Problem::NotFound
}

/// The same, for programs to read.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "clerk-sync: the private API",
        description = "Reads what clerk-sync keeps, and retries or discards what waits. Every request needs ADMIN_TOKEN."
    ),
    paths(
        signups::count,
        queue::list,
        queue::show,
        queue::retry,
        queue::discard,
        outbox::list,
        outbox::retry,
        outbox::discard,
        outbox::pause,
        outbox::resume,
        openapi::show
    ),
    components(schemas(ErrorBody)),
    security(("bearer" = []))
)]
struct Documentation;

/// What the private API needs.
pub struct Api {
    store: Arc<dyn Store>,
    pub(super) kinds: Kinds,
    /// `None`: nobody is let in.
    pub(super) token: Option<Token>,
    pub(super) attempts: Attempts,
    /// Room of its own, which webhooks do not fill.
    bodies: Bodies,
    places: Arc<Semaphore>,
    /// `None`: there is no key to Clerk's API.
    ensure: Option<Ensure>,
}

impl Api {
    /// Read objects of these kinds from this store, for callers with this token; without one, for nobody.
    pub fn new(store: Arc<dyn Store>, kinds: Kinds, token: Option<&str>, ensure: Option<Ensure>) -> Self {
        Self {
            store,
            kinds,
            token: token.map(Token::new),
            attempts: Attempts::new(FREE_ATTEMPTS),
            bodies: Bodies::new(MAX_BODY_BYTES),
            places: Arc::new(Semaphore::new(READERS)),
            ensure,
        }
    }
}

/// Ask the database, in a task of its own, so that a caller that hangs up cancels nothing there.
pub(super) async fn read<T, Answer>(
    app: &App,
    ask: impl FnOnce(Arc<dyn Store>) -> Answer,
) -> Result<T, Problem>
where
    T: Send + 'static,
    Answer: Future<Output = store::Result<T>> + Send + 'static,
{
    let now = Instant::now();
    let deadline = now + app.answer_within;
    // Whoever gets a place has time left to make use of it.
    let place = timeout_at(now + app.answer_within / 2, Arc::clone(&app.api.places).acquire_owned()).await;
    let Ok(Ok(place)) = place else { return Err(Problem::Overloaded) };
    let answer = ask(Arc::clone(&app.api.store));
    let probe = app.probe.clone();
    let reading = tokio::spawn(telemetry::Request::inherit(async move {
        let _place = place;
        let found = async move {
            match answer.await {
                Ok(found) => Ok(found),
                Err(error) => Err(cause(&error, probe).await),
            }
        };
        timeout_at(deadline, found).await.unwrap_or_else(|_| {
            tracing::warn!("the private API could not read in time");
            Err(Problem::DatabaseUnavailable)
        })
    }));
    // If it panicked, that is in the log.
    reading.await.unwrap_or(Err(Problem::Internal))
}

/// Why nothing was read. A statement of ours that the database refuses is most often one for tables of another version.
async fn cause(error: &StoreError, probe: Probe) -> Problem {
    tracing::warn!(%error, "the private API could not read");
    let is_refused = matches!(error.kind, ErrorKind::Broken | ErrorKind::Schema);
    if is_refused && probe.ask().await == Some(Problem::SchemaNotCurrent) {
        Problem::NotMigrated
    } else {
        Problem::DatabaseUnavailable
    }
}

/// Retry or discard entries of the queue or of the outbox; on a dry run only count them.
pub(super) async fn act<E: Entry + 'static>(
    app: &App,
    which: Which<E::Id>,
    deed: Deed,
    dry_run: bool,
) -> Result<Tally<E::Id>, Problem>
where
    E::Id: 'static,
{
    let now = (app.clock)();
    read(app, async move |store| operator::act::<E>(&*store, &which, deed, dry_run, now).await).await
}

/// The entries that a body names, if it does so in exactly one way.
fn which<Id>(ids: Option<Vec<Id>>, of: Option<String>, all: bool) -> Option<Which<Id>> {
    match (ids, of, all) {
        (Some(ids), None, false) if (1..=MAX_IDS).contains(&ids.len()) => Some(Which::These(ids)),
        (None, Some(of), false) => name(&of).map(Which::Of),
        (None, None, true) => Some(Which::All),
        _ => None,
    }
}

/// The name of a sink or of a type of event that every database can be asked for.
fn name(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= 255 && !text.contains('\0')).then(|| text.to_owned())
}

/// The body of a request that says which of many are meant. What is not allowed is told by `complaint`.
async fn body<T: DeserializeOwned>(
    app: &App,
    request: Request,
    complaint: &'static str,
) -> Result<T, Problem> {
    let peer = address::peer(request.extensions());
    let body = app.api.bodies.read(request.into_body(), peer, Instant::now()).await?;
    serde_json::from_slice(&body).map_err(|_| Problem::InvalidBody(complaint))
}

/// People's data stays nowhere on the way.
async fn forbid_caching(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
