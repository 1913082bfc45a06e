//! The metrics endpoint.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::header,
    response::IntoResponse,
};
use metrics_exporter_prometheus::PrometheusHandle;

use super::{
    App,
    address::peer,
    error::Problem,
    token::{self, Token},
};

/// Who may scrape: any caller, or callers with the metrics token. Then the token of the private API is also accepted,
/// because it gives access to more.
#[derive(Default)]
pub struct Scrapers {
    token: Option<Token>,
}

impl Scrapers {
    /// Callers with this token, or any caller.
    pub fn new(token: Option<&str>) -> Self {
        Self { token: token.map(Token::new) }
    }
}

/// `GET /metrics`, in Prometheus' text format.
pub(super) async fn show(
    State((app, prometheus)): State<(Arc<App>, PrometheusHandle)>,
    request: Request,
) -> Result<impl IntoResponse, Problem> {
    if let Some(token) = &app.scrapers.token {
        let tokens: Vec<&Token> = [token].into_iter().chain(&app.api.token).collect();
        let checked = token::check(&app, &tokens, request.headers(), peer(request.extensions())).await;
        checked.map_err(|_| Problem::MetricsUnauthorized)?;
    }
    app.gauges.refresh().await;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], prometheus.render()))
}
