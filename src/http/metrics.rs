//! The page that shows all numbers.

use axum::{extract::State, http::header, response::IntoResponse};
use metrics_exporter_prometheus::PrometheusHandle;

/// `GET /metrics`, in Prometheus' text format.
pub(super) async fn show(State(prometheus): State<PrometheusHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], prometheus.render())
}
