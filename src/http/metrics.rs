//! The page that shows all numbers.

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

/// Who may see the page: everybody, or whoever has the token for it. Then the one of the private API, which opens
/// more, opens it too.
#[derive(Default)]
pub struct Scrapers {
    token: Option<Token>,
}

impl Scrapers {
    /// Those with this token, or everybody.
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
