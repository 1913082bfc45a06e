//! `POST /v1/users/{clerk_id}/ensure`: a user for the page that loads before its webhook.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use tokio::time::{Instant, timeout_at};

use super::{
    UNAUTHORIZED,
    objects::{self, Shown},
    read,
};
use crate::{
    clerk::api::ApiError,
    entity::USER,
    http::{
        App,
        error::{ErrorBody, Problem},
    },
    sync::catch_up::Trouble,
};

/// One user, fetched from Clerk if need be
///
/// However many ask at the same time, Clerk is asked once.
#[utoipa::path(
    post,
    path = "/v1/users/{clerk_id}/ensure",
    operation_id = "ensure_user",
    params(
        ("clerk_id" = String, Path, description = "Clerk's id", example = "user_29w83sxmDNGwOuEthce5gg56FcC")
    ),
    responses(
        (status = 200, description = "The user", body = serde_json::Value),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
        (status = 404, description = "`user_not_found`: Clerk does not know it, or it was deleted", body = ErrorBody),
        (status = 502, description = "`clerk_refused`: Clerk does not accept CLERK_SECRET_KEY or the question", body = ErrorBody),
        (
            status = 503,
            description = "`clerk_unavailable`, `clerk_not_configured` or `database_unavailable`: see the message",
            body = ErrorBody
        ),
    )
)]
pub(super) async fn ensure(
    State(app): State<Arc<App>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Problem> {
    let deadline = Instant::now() + app.answer_within;
    let id = objects::id(&USER, path)?;
    let Some(ensure) = &app.api.ensure else {
        let row =
            read(&app, async move |store| store.row(&id).await).await?.ok_or(Problem::ClerkNotConfigured)?;
        let row = row.standing().ok_or(Problem::ObjectNotFound(&USER))?;
        return Ok(Json(Shown::from(row)));
    };
    // What is under way goes on without us.
    let row = timeout_at(deadline, ensure.ensure(&id)).await.map_err(|_| Problem::ClerkUnavailable)?;
    match row {
        Ok(Some(row)) => Ok(Json(Shown::from(row))),
        Ok(None) => Err(Problem::ObjectNotFound(&USER)),
        Err(trouble) => {
            tracing::warn!(clerk_id = %id, error = %trouble, "a user could not be ensured");
            Err(match &*trouble {
                Trouble::Store(_) => Problem::DatabaseUnavailable,
                Trouble::Api(ApiError::Unreachable { .. }) | Trouble::TakenOver | Trouble::UnderWay => {
                    Problem::ClerkUnavailable
                }
                Trouble::Api(_) | Trouble::NotThePinnedInstance { .. } | Trouble::OtherInstance { .. } => {
                    Problem::ClerkRefused
                }
                Trouble::Incomplete { .. } | Trouble::Abandoned => Problem::Internal,
            })
        }
    }
}
