//! `GET /v1/openapi.json`: the description of the API, made from the code.

use axum::Json;
use serde_json::Value;
use utoipa::{
    Modify, OpenApi as _,
    openapi::{
        OpenApi,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use super::{Documentation, UNAUTHORIZED, objects};
use crate::http::error::ErrorBody;

/// How a caller shows who they are, under the name by which the routes ask for it.
pub(super) struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut OpenApi) {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some("The token in ADMIN_TOKEN.".to_owned());
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// This description
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    operation_id = "describe",
    responses(
        (status = 200, description = "OpenAPI 3.1", body = serde_json::Value, content_type = "application/json"),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
    )
)]
pub(super) async fn show() -> Json<Value> {
    let mut described = serde_json::to_value(Documentation::openapi()).unwrap_or_default();
    let (paths, schemas) = objects::described();
    for (place, more) in [("/paths", paths), ("/components/schemas", schemas)] {
        if let Some(known) = described.pointer_mut(place).and_then(Value::as_object_mut) {
            known.extend(more);
        }
    }
    Json(described)
}
