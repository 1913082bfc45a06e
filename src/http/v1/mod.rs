//! `/v1`: the private API. [`routes`] lists its routes.
//!
//! The API reads objects, fetches missing objects from Clerk, and retries or discards entries of the queue and the outbox. Every
//! request needs the bearer token of `ADMIN_TOKEN`, even to learn that a path does not exist. Answers are JSON, are never
//! cached, and meet the same deadline as all other answers. The number of concurrent reads is small, so that they cannot take
//! the connections that webhooks need. Queries are not logged, because they contain e-mail addresses.

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

/// The part of a path that holds an id or a name, if it is text.
type Segment = Result<Path<String>, PathRejection>;

/// The maximum size of a body: a thousand ids with a margin.
const MAX_BODY_BYTES: usize = 512 * 1024;

/// The maximum number of ids in a body.
const MAX_IDS: usize = 1000;

/// Wrong tokens in a row before further answers are delayed.
const FREE_ATTEMPTS: u32 = 30;

/// The maximum number of concurrent queries.
const READERS: usize = 2;

/// Everything at `/v1` and below.
pub(super) fn routes(app: Arc<App>) -> Router {
    Router::new()
        // The routes of every kind: `/v1/users`, `/v1/users/{clerk_id}`.
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
        // Unknown paths need the token too.
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

/// The `OpenAPI` description of these routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "clerk-sync: the private API",
        description = "Reads stored objects, and retries or discards deliveries and messages. Every request needs ADMIN_TOKEN."
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

/// The state of the private API.
pub struct Api {
    store: Arc<dyn Store>,
    pub(super) kinds: Kinds,
    /// `None`: every request is refused.
    pub(super) token: Option<Token>,
    pub(super) attempts: Attempts,
    /// A budget of its own, which webhooks do not use.
    bodies: Bodies,
    places: Arc<Semaphore>,
    /// `None`: there is no key for Clerk's API.
    ensure: Option<Ensure>,
}

impl Api {
    /// Serves objects of these kinds from this store, to callers with this token; without a token, every request is refused.
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

/// Query the database in a separate task, so that a caller that hangs up cancels nothing there.
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
    // A query that gets a place has enough time left to use it.
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
            tracing::warn!("the private API could not read from the database in time");
            Err(Problem::DatabaseUnavailable)
        })
    }));
    // A panic is already in the log.
    reading.await.unwrap_or(Err(Problem::Internal))
}

/// Why a read failed. A query that the database refuses usually means that the tables belong to another version.
async fn cause(error: &StoreError, probe: Probe) -> Problem {
    tracing::warn!(%error, "the private API could not read from the database");
    let is_refused = matches!(error.kind, ErrorKind::Broken | ErrorKind::Schema);
    if is_refused && probe.ask().await == Some(Problem::SchemaNotCurrent) {
        Problem::NotMigrated
    } else {
        Problem::DatabaseUnavailable
    }
}

/// Retry or discard entries of the queue or of the outbox; a dry run only counts them.
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

/// The selected entries, if a body selects them in exactly one way.
fn which<Id>(ids: Option<Vec<Id>>, of: Option<String>, all: bool) -> Option<Which<Id>> {
    match (ids, of, all) {
        (Some(ids), None, false) if (1..=MAX_IDS).contains(&ids.len()) => Some(Which::These(ids)),
        (None, Some(of), false) => name(&of).map(Which::Of),
        (None, None, true) => Some(Which::All),
        _ => None,
    }
}

/// The name of a sink or an event type, if every database can store it.
fn name(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= 255 && !text.contains('\0')).then(|| text.to_owned())
}

/// The body of a request that selects entries. An invalid body is answered with `complaint`.
async fn body<T: DeserializeOwned>(
    app: &App,
    request: Request,
    complaint: &'static str,
) -> Result<T, Problem> {
    let peer = address::peer(request.extensions());
    let body = app.api.bodies.read(request.into_body(), peer, Instant::now()).await?;
    serde_json::from_slice(&body).map_err(|_| Problem::InvalidBody(complaint))
}

/// Personal data must not be cached on the way.
async fn forbid_caching(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
