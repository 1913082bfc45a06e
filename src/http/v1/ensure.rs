//! `POST /v1/<table>/{clerk_id}/ensure`: fetches an object for a page that loads before its webhook arrives.

use std::sync::Arc;

use axum::{Json, Router, extract::State, routing::post};
use tokio::time::{Instant, timeout_at};

use super::{
    Answer, Segment,
    objects::{self, Shown},
    read,
};
use crate::{
    clerk::api::ApiError,
    http::{App, error::Problem},
    model::{Entity, Kinds},
    sync::catch_up::CatchUpError,
};

/// The routes of this file, for those of these kinds whose single objects Clerk's API returns.
pub(super) fn routes(kinds: Kinds) -> Router<Arc<App>> {
    kinds.iter().copied().filter(|entity| entity.has_one).fold(Router::new(), |router, entity| {
        let path = format!("/v1/{}/{{clerk_id}}/ensure", entity.table);
        router.route(&path, post(move |app, path| ensure(app, path, entity)))
    })
}

/// Ensure one object. However many callers ask at the same time, Clerk is asked once.
async fn ensure(State(app): State<Arc<App>>, path: Segment, entity: &'static Entity) -> Answer<Shown> {
    let deadline = Instant::now() + app.answer_within;
    let id = objects::id(entity, path)?;
    if !app.selection.has(entity) {
        return Err(Problem::ObjectNotFound(entity));
    }
    let Some(ensure) = &app.api.ensure else {
        let row =
            read(&app, async move |store| store.row(&id).await).await?.ok_or(Problem::ClerkNotConfigured)?;
        let row = row.standing().ok_or(Problem::ObjectNotFound(entity))?;
        return Ok(Json(Shown::from(row)));
    };
    // The work continues if the caller hangs up.
    let row = timeout_at(deadline, ensure.ensure(&id)).await.map_err(|_| Problem::ClerkUnavailable)?;
    match row {
        Ok(Some(row)) => Ok(Json(Shown::from(row))),
        Ok(None) => Err(Problem::ObjectNotFound(entity)),
        Err(trouble) => {
            tracing::warn!(clerk_id = %id, error = %trouble, "an object could not be ensured");
            Err(match &*trouble {
                CatchUpError::Store(_) => Problem::DatabaseUnavailable,
                CatchUpError::Api(ApiError::Unreachable { .. })
                | CatchUpError::TakenOver
                | CatchUpError::UnderWay => Problem::ClerkUnavailable,
                CatchUpError::Api(_)
                | CatchUpError::NotThePinnedInstance { .. }
                | CatchUpError::OtherInstance { .. } => Problem::ClerkRefused,
                CatchUpError::Incomplete { .. } | CatchUpError::Abandoned => Problem::Internal,
            })
        }
    }
}
