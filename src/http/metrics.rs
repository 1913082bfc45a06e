//! The numbers of this room, and the page that shows all of them.

use axum::{extract::State, http::header, response::IntoResponse};
use metrics_exporter_prometheus::PrometheusHandle;

/// Counter: webhooks answered, by `event` (a known type or `other`) and `outcome` (a status, `rejected` or `failed`).
pub const WEBHOOKS: &str = "clerk_sync_webhooks_total";

/// Counter: webhooks refused for the sender's fault, by `reason`, the code of the answer.
pub const REJECTIONS: &str = "clerk_sync_rejections_total";

/// Histogram: seconds from the head of a webhook to its answer, by `outcome`.
pub const DURATION: &str = "clerk_sync_webhook_duration_seconds";

/// Gauge: unix time at which the last genuine event was accepted.
pub const LAST_EVENT: &str = "clerk_sync_last_event_timestamp_seconds";

/// `GET /metrics`, in Prometheus' text format.
pub(super) async fn show(State(prometheus): State<PrometheusHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], prometheus.render())
}
