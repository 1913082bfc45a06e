//! `/v1/outbox`: lists and manages the messages for other systems. The contents of messages are never returned.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, RawQuery, Request, State},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Answer, Segment, act, body, name,
    query::{AFTER, Paging, Query, page},
    read, which,
};
use crate::{
    http::{App, error::Problem},
    model::rfc3339,
    store::{Deed, MessageFilter, MessageState, StoredMessage},
    sync::operator::{Which, known_sinks},
};

const LISTED: [&str; 4] = ["sink", "state", "after", "limit"];
const LISTED_KNOWN: &str = "allowed parameters are sink, state, after and limit, each at most once";
const SINK: &str = "sink: must be the name of a sink";
const STATE: &str = "state: must be pending, dead, delivered or discarded";
const BODY: &str = "the body must be a JSON object with exactly one of ids (1 to 1000 of them), sink or all (true), \
                    and optionally dry_run";

/// One page of messages.
#[derive(Serialize, ToSchema)]
pub(super) struct OutboxPage {
    messages: Vec<StoredMessage>,
    /// The value of `after` for the next page; null on the last one.
    #[schema(example = "42")]
    next: Option<String>,
    /// Sinks to which nothing is delivered.
    paused: Vec<PausedSink>,
}

/// A sink that an operator has paused.
#[derive(Serialize, ToSchema)]
pub(super) struct PausedSink {
    #[schema(example = "crm")]
    sink: String,
    #[schema(format = "date-time")]
    since: String,
}

/// The selected messages: exactly one of `ids`, `sink` and `all`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageSelection {
    /// These messages.
    #[schema(example = json!([41, 42]))]
    ids: Option<Vec<i64>>,
    /// All dead messages for this sink.
    sink: Option<String>,
    /// All dead messages.
    #[serde(default)]
    all: bool,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
}

/// The result for the selected messages.
#[derive(Serialize, ToSchema)]
pub(super) struct MessageTally {
    /// Selected and found.
    found: u64,
    /// Changed; 0 on a dry run.
    done: u64,
    /// Selected deletions of users that were kept, because deletions are never discarded.
    deletions_kept: u64,
}

/// The state of delivery to a sink.
#[derive(Serialize, ToSchema)]
pub(super) struct SinkState {
    #[schema(example = "crm")]
    sink: String,
    paused: bool,
}

/// Messages for other systems, in pages
///
/// In the order of `id`, oldest first.
#[utoipa::path(
    get,
    path = "/v1/outbox",
    operation_id = "list_messages",
    params(
        ("sink" = Option<String>, Query, description = "Only for this sink"),
        (
            "state" = Option<String>, Query, pattern = "^(pending|dead|delivered|discarded)$",
            description = "Only in this state"
        ),
        Paging,
    ),
    responses((status = 200, description = "A page", body = OutboxPage))
)]
pub(super) async fn list(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Answer<OutboxPage> {
    let query = Query::read(query.as_deref(), &LISTED, LISTED_KNOWN)?;
    let filter = MessageFilter {
        sink: query.value("sink", name, SINK)?,
        state: query.value("state", MessageState::named, STATE)?,
        after: query.value("after", |text| text.parse().ok(), AFTER)?,
        ids: None,
    };
    let limit = query.limit()?;
    let of_sink = filter.sink.clone().filter(|_| filter.after.is_none());
    let (messages, paused) = read(&app, async move |store| {
        Ok((store.messages(&filter, limit + 1).await?, store.paused_sinks().await?))
    })
    .await?;
    if messages.is_empty() {
        known(&app, of_sink).await?;
    }
    let (messages, next) = page(messages, limit, |last| last.id.to_string());
    Ok(Json(OutboxPage {
        next,
        messages,
        paused: paused.into_iter().map(|(sink, since)| PausedSink { sink, since: rfc3339(since) }).collect(),
    }))
}

/// Retry dead messages
///
/// A message stays dead if a later message about the same user was delivered since, because it is out of date.
#[utoipa::path(
    post,
    path = "/v1/outbox/retry",
    operation_id = "retry_messages",
    request_body = MessageSelection,
    responses((status = 200, description = "The result", body = MessageTally))
)]
pub(super) async fn retry(State(app): State<Arc<App>>, request: Request) -> Answer<MessageTally> {
    change(&app, request, Deed::Retry).await
}

/// Discard dead messages and delete their contents
///
/// Messages selected by `ids` may also be pending. Deletions, and messages being delivered, are kept.
#[utoipa::path(
    post,
    path = "/v1/outbox/discard",
    operation_id = "discard_messages",
    request_body = MessageSelection,
    responses((status = 200, description = "The result", body = MessageTally))
)]
pub(super) async fn discard(State(app): State<Arc<App>>, request: Request) -> Answer<MessageTally> {
    change(&app, request, Deed::Discard).await
}

async fn change(app: &App, request: Request, deed: Deed) -> Answer<MessageTally> {
    let (which, dry_run) = body::<MessageSelection>(app, request, BODY).await?.which()?;
    let of_sink = if let Which::Of(sink) = &which { Some(sink.clone()) } else { None };
    let tally = act::<StoredMessage>(app, which, deed, dry_run).await?;
    if tally.found == 0 {
        known(app, of_sink).await?;
    }
    Ok(Json(MessageTally { found: tally.found, done: tally.done, deletions_kept: tally.deletions }))
}

/// Stop delivering to a sink
///
/// Its messages wait. Deliveries in progress continue.
#[utoipa::path(
    post,
    path = "/v1/outbox/sinks/{sink}/pause",
    operation_id = "pause_sink",
    params(("sink" = String, Path, description = "The sink's name", example = "crm")),
    responses((status = 200, description = "The sink is paused", body = SinkState))
)]
pub(super) async fn pause(State(app): State<Arc<App>>, path: Segment) -> Answer<SinkState> {
    let now = (app.clock)();
    set_paused(&app, path, Some(now)).await
}

/// Deliver to a sink again
#[utoipa::path(
    post,
    path = "/v1/outbox/sinks/{sink}/resume",
    operation_id = "resume_sink",
    params(("sink" = String, Path, description = "The sink's name", example = "crm")),
    responses((status = 200, description = "The sink is not paused", body = SinkState))
)]
pub(super) async fn resume(State(app): State<Arc<App>>, path: Segment) -> Answer<SinkState> {
    set_paused(&app, path, None).await
}

async fn set_paused(app: &App, path: Segment, since: Option<DateTime<Utc>>) -> Answer<SinkState> {
    let sink = path.ok().and_then(|Path(sink)| name(&sink)).ok_or(Problem::SinkNotFound)?;
    known(app, Some(sink.clone())).await?;
    let named = sink.clone();
    read(app, async move |store| store.set_paused(&named, since).await).await?;
    Ok(Json(SinkState { sink, paused: since.is_some() }))
}

impl MessageSelection {
    /// The selected messages, and whether they are only counted.
    fn which(self) -> Result<(Which<i64>, bool), Problem> {
        let which = which(self.ids, self.sink, self.all);
        Ok((which.ok_or(Problem::InvalidBody(BODY))?, self.dry_run))
    }
}

/// Refuse an unknown sink, so that a typing error does not look like an answer. A sink that is no longer configured is known
/// as long as it has messages.
async fn known(app: &App, sink: Option<String>) -> Result<(), Problem> {
    let Some(sink) = sink.filter(|sink| !app.sinks.contains(sink)) else { return Ok(()) };
    let known = read(app, async |store| known_sinks(&*store, &[]).await).await?;
    if known.contains(&sink) { Ok(()) } else { Err(Problem::SinkNotFound) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_chosen_in_exactly_one_way() {
        let chosen = |body: &str| serde_json::from_str::<MessageSelection>(body).ok()?.which().ok();
        assert_eq!(chosen(r#"{"ids":[1,2]}"#), Some((Which::These(vec![1, 2]), false)));
        assert_eq!(chosen(r#"{"sink":"crm","dry_run":true}"#), Some((Which::Of("crm".to_owned()), true)));
        assert_eq!(chosen(r#"{"all":true}"#), Some((Which::All, false)));
        for body in [
            "{}",
            r#"{"all":false}"#,
            r#"{"dry_run":true}"#,
            r#"{"all":true,"sink":"crm"}"#,
            r#"{"ids":[]}"#,
            r#"{"ids":["x"]}"#,
            r#"{"sink":""}"#,
            r#"{"all":true,"force":true}"#,
        ] {
            assert_eq!(chosen(body), None, "{body}");
        }
    }
}
