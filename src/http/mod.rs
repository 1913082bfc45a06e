//! HTTP: the routes of both listeners.
//!
//! The routes of the private API are in `v1`, the pages in `dashboard`. This module speaks HTTP/1.1 to senders, probes,
//! Prometheus and internal programs, and turns the results of other modules into answers. It guarantees that every request is
//! answered within 10 s, whatever the sender or the database does. It never reads configuration, never speaks SQL, and makes
//! no decisions about users.

mod address;
mod attempts;
mod body;
mod dashboard;
mod error;
mod head;
mod health;
mod listener;
mod metrics;
mod pace;
mod request_id;
mod resends;
mod socket;
mod token;
mod v1;
mod webhook;

#[cfg(test)]
mod tests;

use crate::model::Selection;
use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    BoxError, Router,
    body::{Body, HttpBody},
    extract::MatchedPath,
    http::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower_http::catch_panic::{CatchPanic, ResponseForPanic};

pub use address::Addresses;
pub use body::Bodies;
pub use dashboard::{Dashboard, grouped_by};
pub use error::Problem;
pub use health::Probe;
pub use listener::serve;
pub use metrics::Scrapers;
pub use pace::ConnectionLimits;
pub use resends::Resends;
pub use v1::{Api, parked_as_json, row_as_json};
pub use webhook::ANSWER_WITHIN;

use self::request_id::RequestId;
use crate::{
    clerk::signature::Verifier,
    sync::{Clock, Committer, instance::Gate},
    work::{Gauges, activity::Answers},
};

/// The state that handlers need.
pub struct App {
    pub verifier: Verifier,
    pub committer: Committer,
    pub probe: Probe,
    pub api: Api,
    pub dashboard: Dashboard,
    pub scrapers: Scrapers,
    pub bodies: Bodies,
    pub answers: Answers,
    pub gauges: Arc<Gauges>,
    pub resends: Resends,
    pub addresses: Addresses,
    /// The names of the configured sinks.
    pub sinks: Vec<String>,
    /// The synced kinds and fields.
    pub selection: Selection,
    pub gate: Arc<Gate>,
    /// Probes the stream, if webhooks are appended to one.
    pub stream: Option<Probe>,
    pub clock: Clock,
    /// Normally [`ANSWER_WITHIN`].
    pub answer_within: Duration,
    /// Once cancelled, readiness is refused.
    pub shutdown: CancellationToken,
}

/// The routes of the public listener.
pub fn public_routes(app: Arc<App>) -> Routes {
    let routes = Router::new()
        .route("/webhooks/clerk", post(webhook::receive))
        .route("/api/webhooks/clerk", post(webhook::receive))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/healthz", get(health::readyz))
        .route("/version", get(health::version))
        .fallback(async || Problem::NotFound)
        .with_state(app);
    Routes::new(routes)
}

/// The routes of the private listener.
pub fn private_routes(app: Arc<App>, prometheus: PrometheusHandle) -> Routes {
    let routes = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .with_state(Arc::clone(&app))
        .route("/metrics", get(metrics::show))
        .with_state((Arc::clone(&app), prometheus))
        .merge(v1::routes(Arc::clone(&app)))
        .merge(dashboard::routes(app))
        .layer(from_fn(name_work));
    Routes::new(routes)
}

/// Set the request's name and route for its work, so that the report of a panic contains them.
async fn name_work(request: axum::extract::Request, next: Next) -> Response {
    let extensions = request.extensions();
    match (extensions.get::<MatchedPath>(), extensions.get::<RequestId>()) {
        (Some(route), Some(id)) => id.work(route.as_str()).scope(next.run(request)).await,
        _ => next.run(request).await,
    }
}

/// The service of a listener. Common steps wrap the routes directly, because layers would be boxed and cloned for each
/// request.
#[derive(Clone, Debug)]
pub struct Routes(CatchPanic<Router, Wordless>);

impl Routes {
    fn new(routes: Router) -> Self {
        let routes = routes.method_not_allowed_fallback(async || Problem::MethodNotAllowed);
        Self(CatchPanic::custom(routes, Wordless))
    }

    /// Answer a request and name the answer, even if the head is too large or the handler panics.
    async fn answer<B>(self, mut request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let id = RequestId::of(request.headers());
        let mut response = if head::is_too_large(&request) {
            Problem::HeadTooLarge.into_response()
        } else {
            request.extensions_mut().insert(id.clone());
            let Ok(response) = self.0.oneshot(request).await;
            response.map(Body::new)
        };
        id.name(&mut response);
        response
    }
}

/// Discards the message of a panic, because it may quote data of the request.
#[derive(Clone, Debug)]
struct Wordless;

impl ResponseForPanic for Wordless {
    type ResponseBody = Body;

    fn response_for_panic(&mut self, _message: Box<dyn Any + Send>) -> Response {
        Problem::Internal.into_response()
    }
}
