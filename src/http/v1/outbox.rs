//! `/v1/outbox`: the messages for other systems, and what an operator does with them. What they say is never shown here.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    INVALID_BODY, INVALID_PARAMETER, MAX_IDS, UNAUTHORIZED, UNAVAILABLE, body,
    query::{AFTER, Query, page},
    read,
};
use crate::{
    http::{
        App,
        error::{ErrorBody, Problem},
    },
    model::rfc3339,
    store::{MessageFilter, MessageState, StoredMessage},
    work::outbox::{self as work, Selection},
};

const LISTED: [&str; 4] = ["sink", "state", "after", "limit"];
const LISTED_KNOWN: &str = "the parameters are sink, state, after and limit, each at most once";
const SINK: &str = "sink: allowed is the name of a sink";
const STATE: &str = "state: allowed are pending, dead, delivered and discarded";
const SINK_NOT_FOUND: &str =
    "`sink_not_found`: none of this name is configured, nothing waits for one, and none is paused";
const BODY: &str =
    "the body is a JSON object with one of ids (1 to 1000 of them), sink and all (true), and perhaps dry_run";

/// One page of messages.
#[derive(Serialize, ToSchema)]
pub(super) struct OutboxPage {
    messages: Vec<OutboxMessage>,
    /// What to give as `after` for the next page; null on the last one.
    #[schema(example = "42")]
    next: Option<String>,
    /// Sinks that are handed nothing.
    paused: Vec<PausedSink>,
}

/// A sink that an operator has stopped.
#[derive(Serialize, ToSchema)]
pub(super) struct PausedSink {
    #[schema(example = "crm")]
    sink: String,
    #[schema(format = "date-time")]
    since: String,
}

/// A message for one sink, without what it says.
#[derive(Serialize, ToSchema)]
pub(super) struct OutboxMessage {
    #[schema(example = 42)]
    id: i64,
    /// What the receiver sees.
    #[schema(example = "msg_5f3c0a1e9b7d4c2f8e6a0b1c2d3e4f50")]
    message_id: String,
    #[schema(example = "crm")]
    sink: String,
    #[schema(example = "user_29w83sxmDNGwOuEthce5gg56FcC")]
    clerk_id: String,
    #[serde(rename = "type")]
    #[schema(example = "user.updated")]
    kind: String,
    #[schema(example = "pending")]
    state: &'static str,
    attempts: u32,
    /// Null unless it is pending and the oldest of its user; while it is under way, when whoever has it counts as dead.
    #[schema(format = "date-time")]
    next_attempt_at: Option<String>,
    under_way: bool,
    #[schema(format = "date-time")]
    created_at: String,
    #[schema(format = "date-time")]
    finished_at: Option<String>,
    #[schema(example = "status 500")]
    last_error: Option<String>,
}

/// Which messages are meant: exactly one of `ids`, `sink` and `all`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageSelection {
    /// These.
    #[schema(example = json!([41, 42]))]
    ids: Option<Vec<i64>>,
    /// All dead ones for this sink.
    sink: Option<String>,
    /// All dead ones.
    #[serde(default)]
    all: bool,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
}

/// What became of the messages that were chosen.
#[derive(Serialize, ToSchema)]
pub(super) struct MessageTally {
    /// Chosen, and there.
    found: u64,
    /// Changed; none on a dry run.
    done: u64,
    /// Deletions of users that were to be given up, and stay.
    deletions_kept: u64,
}

/// Whether a sink is handed messages.
#[derive(Serialize, ToSchema)]
pub(super) struct SinkState {
    #[schema(example = "crm")]
    sink: String,
    paused: bool,
}

/// Messages for other systems, a page at a time
///
/// In the order of their `id`, the oldest first.
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
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        (
            "limit" = Option<u32>, Query, minimum = 1, maximum = 500,
            description = "How many messages a page has at most; 100 if nothing is said"
        ),
    ),
    responses(
        (status = 200, description = "A page", body = OutboxPage),
        (status = 400, description = INVALID_PARAMETER, body = ErrorBody),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
        (status = 404, description = SINK_NOT_FOUND, body = ErrorBody),
        (status = 503, description = UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Json<OutboxPage>, Problem> {
    let query = Query::read(query.as_deref(), &LISTED, LISTED_KNOWN)?;
    let filter = MessageFilter {
        sink: query.value("sink", sink, SINK)?,
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
    let (messages, more) = page(messages, limit);
    Ok(Json(OutboxPage {
        next: messages.last().filter(|_| more).map(|message| message.id.to_string()),
        messages: messages.into_iter().map(OutboxMessage::from).collect(),
        paused: paused.into_iter().map(|(sink, since)| PausedSink { sink, since: rfc3339(since) }).collect(),
    }))
}

/// Try dead messages again
///
/// Those stay dead whose users have had later messages delivered since: what they say is out of date.
#[utoipa::path(
    post,
    path = "/v1/outbox/retry",
    operation_id = "retry_messages",
    request_body = MessageSelection,
    responses(
        (status = 200, description = "What was done", body = MessageTally),
        (status = 400, description = INVALID_BODY, body = ErrorBody),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
        (status = 404, description = SINK_NOT_FOUND, body = ErrorBody),
        (status = 503, description = UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn retry(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<MessageTally>, Problem> {
    let (which, dry_run) = body::<MessageSelection>(&app, request, BODY).await?.which()?;
    let (now, of_sink) = ((app.clock)(), which.sink().map(ToOwned::to_owned));
    let tally = read(&app, async move |store| work::retry(&*store, &which, dry_run, now).await).await?;
    if tally.found == 0 {
        known(&app, of_sink).await?;
    }
    Ok(Json(tally.into()))
}

/// Give up dead messages, and forget what they say
///
/// Of those named by `ids` also what still waits. Deletions and what is under way stay.
#[utoipa::path(
    post,
    path = "/v1/outbox/discard",
    operation_id = "discard_messages",
    request_body = MessageSelection,
    responses(
        (status = 200, description = "What was done", body = MessageTally),
        (status = 400, description = INVALID_BODY, body = ErrorBody),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
        (status = 404, description = SINK_NOT_FOUND, body = ErrorBody),
        (status = 503, description = UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn discard(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<MessageTally>, Problem> {
    let (which, dry_run) = body::<MessageSelection>(&app, request, BODY).await?.which()?;
    let (now, of_sink) = ((app.clock)(), which.sink().map(ToOwned::to_owned));
    let tally = read(&app, async move |store| work::discard(&*store, &which, dry_run, now).await).await?;
    if tally.found == 0 {
        known(&app, of_sink).await?;
    }
    Ok(Json(tally.into()))
}

/// Stop delivering to a sink
///
/// Its messages wait. What is under way is not held up.
#[utoipa::path(
    post,
    path = "/v1/outbox/sinks/{sink}/pause",
    operation_id = "pause_sink",
    params(("sink" = String, Path, description = "The sink's name", example = "crm")),
    responses(
        (status = 200, description = "It is paused", body = SinkState),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
        (status = 404, description = SINK_NOT_FOUND, body = ErrorBody),
        (status = 503, description = UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<SinkState>, Problem> {
    let name = path.ok().and_then(|Path(name)| sink(&name)).ok_or(Problem::SinkNotFound)?;
    known(&app, Some(name.clone())).await?;
    let (paused, now) = (name.clone(), (app.clock)());
    read(&app, async move |store| store.set_paused(&paused, Some(now)).await).await?;
    Ok(Json(SinkState { sink: name, paused: true }))
}

/// Deliver to a sink again
#[utoipa::path(
    post,
    path = "/v1/outbox/sinks/{sink}/resume",
    operation_id = "resume_sink",
    params(("sink" = String, Path, description = "The sink's name", example = "crm")),
    responses(
        (status = 200, description = "It is not paused", body = SinkState),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
        (status = 404, description = SINK_NOT_FOUND, body = ErrorBody),
        (status = 503, description = UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<SinkState>, Problem> {
    let name = path.ok().and_then(|Path(name)| sink(&name)).ok_or(Problem::SinkNotFound)?;
    known(&app, Some(name.clone())).await?;
    let resumed = name.clone();
    read(&app, async move |store| store.set_paused(&resumed, None).await).await?;
    Ok(Json(SinkState { sink: name, paused: false }))
}

impl MessageSelection {
    /// The one way to choose, and whether only to count.
    fn which(self) -> Result<(Selection, bool), Problem> {
        let dry_run = self.dry_run;
        let which = match self {
            Self { ids: Some(ids), sink: None, all: false, .. } if (1..=MAX_IDS).contains(&ids.len()) => {
                Some(Selection::Ids(ids))
            }
            Self { ids: None, sink: Some(name), all: false, .. } => sink(&name).map(Selection::Sink),
            Self { ids: None, sink: None, all: true, .. } => Some(Selection::All),
            _ => None,
        };
        Ok((which.ok_or(Problem::InvalidBody(BODY))?, dry_run))
    }
}

/// Refuse the name of a sink that there is not, and never was as far as anything shows: a typing error must not look like an
/// answer. One that is configured no more is known as long as anything waits for it.
async fn known(app: &App, sink: Option<String>) -> Result<(), Problem> {
    let Some(sink) = sink.filter(|sink| !app.sinks.contains(sink)) else { return Ok(()) };
    let known = read(app, async |store| work::known_sinks(&*store, &[]).await).await?;
    if known.contains(&sink) { Ok(()) } else { Err(Problem::SinkNotFound) }
}

/// What every database can be asked for.
fn sink(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= 255 && !text.contains('\0')).then(|| text.to_owned())
}

/// A message as the API shows it.
pub fn message_as_json(message: StoredMessage) -> serde_json::Value {
    serde_json::to_value(OutboxMessage::from(message)).unwrap_or_default()
}

impl From<StoredMessage> for OutboxMessage {
    fn from(message: StoredMessage) -> Self {
        Self {
            id: message.id,
            message_id: message.message_id,
            sink: message.sink,
            clerk_id: message.clerk_id.to_string(),
            kind: message.kind.name(),
            state: message.state.name(),
            attempts: message.attempts,
            next_attempt_at: message.next_attempt_at.map(rfc3339),
            under_way: message.taken,
            created_at: rfc3339(message.created_at),
            finished_at: message.finished_at.map(rfc3339),
            last_error: message.last_error,
        }
    }
}

impl From<work::Tally> for MessageTally {
    fn from(work::Tally { found, done, deletions }: work::Tally) -> Self {
        Self { found, done, deletions_kept: deletions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_chosen_in_exactly_one_way() {
        let chosen = |body: &str| serde_json::from_str::<MessageSelection>(body).ok()?.which().ok();
        assert_eq!(chosen(r#"{"ids":[1,2]}"#), Some((Selection::Ids(vec![1, 2]), false)));
        assert_eq!(
            chosen(r#"{"sink":"crm","dry_run":true}"#),
            Some((Selection::Sink("crm".to_owned()), true))
        );
        assert_eq!(chosen(r#"{"all":true}"#), Some((Selection::All, false)));
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
