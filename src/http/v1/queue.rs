//! `/v1/queue`: lists, shows, retries and discards deliveries that are pending or dead.
//!
//! The bodies of deliveries are personal data. They are shown only on explicit request, and the request is recorded first.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, RawQuery, Request, State},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Answer, Segment, act, body, name,
    query::{AFTER, Paging, Query, page},
    read, which,
};
use crate::{
    http::{App, error::Problem},
    model::{ClerkId, Source, SvixId},
    store::{Deed, Parked, QueueFilter, QueueState, Queued},
    sync::reveal::reveal_delivery,
};

const PARAMETERS: [&str; 5] = ["state", "type", "user", "after", "limit"];
const KNOWN: &str = "allowed parameters are state, type, user, after and limit, each at most once";
const STATE: &str = "state: must be pending or dead";
const TYPE: &str = "type: must be the name of an event, for example user.updated";
const USER: &str = "user: must be Clerk's id of a user";
const REVEAL: &str = "the only allowed parameter is reveal, at most once: true or false";
const BODY: &str = "the body must be a JSON object with exactly one of ids (1 to 1000 of them), type or all (true), \
                    and optionally dry_run";

/// One page of the queue.
#[derive(Serialize, ToSchema)]
pub(super) struct Entries {
    entries: Vec<Queued>,
    /// The value of `after` for the next page; null on the last one.
    #[schema(example = "msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw")]
    next: Option<String>,
}

/// One delivery, with its body if requested.
#[derive(Serialize, ToSchema)]
pub(super) struct WholeEntry {
    entry: Queued,
    /// As it arrived, except for bytes that are not text; null unless `reveal=true`.
    payload: Option<String>,
}

/// The selected deliveries: exactly one of `ids`, `type` and `all`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Selection {
    /// These deliveries.
    #[schema(example = json!(["msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw"]))]
    ids: Option<Vec<String>>,
    /// Those of this event type.
    #[serde(rename = "type")]
    event_type: Option<String>,
    /// All of them.
    #[serde(default)]
    all: bool,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
}

/// What was done, or with `dry_run` would be done.
#[derive(Serialize, ToSchema)]
pub(super) struct Report {
    /// The number of deliveries.
    #[schema(example = 3)]
    deliveries: u64,
    /// The number of selected deletions of users that were kept, because deletions are never discarded.
    #[schema(example = 0)]
    deletions_kept: u64,
    /// Those of `ids` that are not in the queue.
    #[schema(value_type = Vec<String>)]
    missing: Vec<SvixId>,
    dry_run: bool,
}

/// Deliveries that are pending or dead, in pages
///
/// In the order of their ids.
#[utoipa::path(
    get,
    path = "/v1/queue",
    operation_id = "list_queue",
    params(
        ("state" = Option<String>, Query, pattern = "^(pending|dead)$", description = "Only deliveries in this state"),
        ("type" = Option<String>, Query, example = "user.updated", description = "Only events of this type"),
        ("user" = Option<String>, Query, description = "Only deliveries about this user"),
        Paging,
    ),
    responses((status = 200, description = "A page", body = Entries))
)]
pub(super) async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Answer<Entries> {
    let query = Query::read(query.as_deref(), &PARAMETERS, KNOWN)?;
    let filter = QueueFilter {
        state: query.value("state", QueueState::named, STATE)?,
        event_type: query.value("type", name, TYPE)?,
        clerk_id: query.value("user", |text| ClerkId::new(&crate::entity::USER, text), USER)?,
        after: query.value("after", |text| SvixId::new(text), AFTER)?,
        ..QueueFilter::default()
    };
    let limit = query.limit()?;

    let found = read(&app, async move |store| store.queued(&filter, limit + 1).await).await?;
    let (entries, next) = page(found, limit, |last| last.svix_id.to_string());
    Ok(Json(Entries { entries, next }))
}

/// One delivery that is pending or dead
#[utoipa::path(
    get,
    path = "/v1/queue/{svix_id}",
    operation_id = "show_queued",
    params(
        ("svix_id" = String, Path, description = "Svix's id", example = "msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw"),
        (
            "reveal" = Option<bool>, Query,
            description = "`true` shows the body, which is personal data; the audit trail records this"
        ),
    ),
    responses(
        (status = 200, description = "The delivery", body = WholeEntry),
        (status = 404, description = "`delivery_not_found`: it was processed, or never arrived"),
    )
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    path: Segment,
    RawQuery(query): RawQuery,
) -> Answer<WholeEntry> {
    let query = Query::read(query.as_deref(), &["reveal"], REVEAL)?;
    let reveal = query.value("reveal", |text| text.parse().ok(), REVEAL)?.unwrap_or(false);
    let id = path.ok().and_then(|Path(id)| SvixId::new(id)).ok_or(Problem::DeliveryNotFound)?;
    let now = (app.clock)();
    let parked = read(&app, async move |store| {
        let parked = store.parked(&id).await?;
        if let Some(parked) = parked.as_ref().filter(|_| reveal) {
            reveal_delivery(&*store, parked, Source::Api, now).await?;
        }
        Ok(parked)
    })
    .await?;
    Ok(Json(whole(&parked.ok_or(Problem::DeliveryNotFound)?, reveal)))
}

/// Retry deliveries now
///
/// Dead deliveries get a new count of attempts, and pending ones do not wait for their next attempt. Their signatures are not
/// verified again.
#[utoipa::path(
    post,
    path = "/v1/queue/retry",
    operation_id = "retry_queued",
    request_body = Selection,
    responses((status = 200, description = "The result", body = Report))
)]
pub(super) async fn retry(State(app): State<Arc<App>>, request: Request) -> Answer<Report> {
    let report = change(&app, request, Deed::Retry).await?;
    app.committer.bell().notify_one();
    Ok(report)
}

/// Discard deliveries
///
/// Those selected by `ids`, or the dead ones of a type, or all dead ones. They are recorded as `discarded`, so Svix's later
/// attempts have no effect. Deletions of users are kept.
#[utoipa::path(
    post,
    path = "/v1/queue/discard",
    operation_id = "discard_queued",
    request_body = Selection,
    responses((status = 200, description = "The result", body = Report))
)]
pub(super) async fn discard(State(app): State<Arc<App>>, request: Request) -> Answer<Report> {
    change(&app, request, Deed::Discard).await
}

async fn change(app: &App, request: Request, deed: Deed) -> Answer<Report> {
    let Selection { ids, event_type, all, dry_run } = body(app, request, BODY).await?;
    let invalid = Problem::InvalidBody(BODY);
    let ids = ids.map(|ids| ids.into_iter().map(SvixId::new).collect::<Option<_>>().ok_or(invalid));
    let which = which(ids.transpose()?, event_type, all).ok_or(invalid)?;
    let tally = act::<Queued>(app, which, deed, dry_run).await?;
    Ok(Json(Report {
        deliveries: tally.number(dry_run),
        deletions_kept: tally.deletions,
        missing: tally.missing,
        dry_run,
    }))
}

/// One delivery as the API shows it.
pub fn parked_as_json(parked: &Parked, reveal: bool) -> String {
    serde_json::to_string_pretty(&whole(parked, reveal)).unwrap_or_default()
}

fn whole(parked: &Parked, reveal: bool) -> WholeEntry {
    WholeEntry {
        entry: Queued::from(parked),
        payload: reveal.then(|| String::from_utf8_lossy(&parked.payload).into_owned()),
    }
}
