//! `GET /v1/openapi.json`: the description of the API, generated from the code.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};
use utoipa::OpenApi as _;

use super::{Documentation, objects};
use crate::http::App;

/// This description
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    operation_id = "describe",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value, content_type = "application/json"))
)]
pub(super) async fn show(State(app): State<Arc<App>>) -> Json<Value> {
    let mut described = serde_json::to_value(Documentation::openapi()).unwrap_or_default();
    described["components"]["securitySchemes"]["bearer"] =
        json!({ "type": "http", "scheme": "bearer", "description": "The token in ADMIN_TOKEN." });
    let (paths, schemas) = objects::described(app.api.kinds);
    for (place, more) in [("/paths", paths), ("/components/schemas", schemas)] {
        if let Some(known) = described.pointer_mut(place).and_then(Value::as_object_mut) {
            known.extend(more);
        }
    }
    for (path, operations) in described["paths"].as_object_mut().into_iter().flatten() {
        for operation in operations.as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
            add_refusals(path, operation);
        }
    }
    Json(described)
}

/// Add the error answers of this kind of operation, unless the operation describes them itself.
fn add_refusals(path: &str, operation: &mut Value) {
    let takes_query =
        operation["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["in"] == "query"));
    let takes_body = operation["requestBody"].is_object();
    let refusals = [
        (takes_query, "400", "`invalid_parameter`: the message names the parameter and the allowed values"),
        (takes_body, "400", "`invalid_body`: the message says what is allowed"),
        (true, "401", "`unauthorized`: the token is missing or wrong, or none is set"),
        (
            path.starts_with("/v1/outbox"),
            "404",
            "`sink_not_found`: no sink of this name is configured, has messages, or is paused",
        ),
        (
            path != "/v1/openapi.json",
            "503",
            "`database_unavailable` or `overloaded`: try again after `Retry-After`",
        ),
    ];
    for (_, status, description) in refusals.into_iter().filter(|(is_possible, ..)| *is_possible) {
        let described = &mut operation["responses"][status]["description"];
        if described.is_null() {
            *described = description.into();
        }
    }
    for (_, refusal) in
        operation["responses"].as_object_mut().into_iter().flatten().filter(|(status, _)| *status != "200")
    {
        refusal["content"] =
            json!({ "application/json": { "schema": { "$ref": "#/components/schemas/ErrorBody" } } });
    }
}
