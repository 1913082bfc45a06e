//! `POST /webhooks/clerk`: from raw bytes to a reliable answer.
//!
//! Nothing is parsed before the signature is verified, and 200 is sent only once the outcome is durable. Between the last
//! byte of the body and the hand-over to the committer there is no await, so a sender that hangs up cancels nothing. Logs
//! contain ids, types and reasons, never headers, bodies or personal data.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Json,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header},
};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{App, error::Problem, request_id::RequestId};
use crate::{
    clerk::{
        event::{self, kind, label},
        signature::{Rejection, SignatureHeaders},
    },
    model::{Outcome, SvixId},
    sync::{Refusal, instance::Stranger},
    telemetry::{self, Span},
};

/// The deadline of the answer, from the head. Svix gives up after 15 s.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(9500);

/// How long the database may take to name the instance of the users, where webhooks are also received without it.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// The answer to a genuine webhook.
#[derive(Serialize)]
pub(super) struct Answer {
    status: &'static str,
    event: Option<String>,
    id: String,
}

/// The facts about a request so far. Each request is counted and logged exactly once, even if its handler panics or is cut
/// off at shutdown.
struct Attempt {
    app: Arc<App>,
    started: Instant,
    peer: SocketAddr,
    /// The caller's address, which a trusted proxy may have reported.
    caller: Option<IpAddr>,
    request_id: RequestId,
    svix_id: Option<SvixId>,
    event_type: Option<String>,
    /// The event's instance and the expected one, if they differ.
    stranger: Option<Stranger>,
    is_finished: bool,
    span: Span,
    /// The number of earlier attempts, if known; counted only while tracing.
    resends: Option<u32>,
}

/// Receive a webhook.
pub(super) async fn receive(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
) -> Result<Json<Answer>, Problem> {
    let started = Instant::now();
    let mut attempt = Attempt {
        app: Arc::clone(&app),
        started,
        peer,
        caller: None,
        request_id,
        svix_id: None,
        event_type: None,
        stranger: None,
        is_finished: false,
        span: Span::server(request.uri().path(), version(request.version())),
        resends: None,
    };
    // These routes have no parameters, so the path is the route.
    let work = attempt.request_id.work(request.uri().path());
    let result = work.scope(process(&app, request, &mut attempt)).await;
    attempt.finish(result);
    let outcome = result?;
    let id = attempt.svix_id.as_ref().map(ToString::to_string).unwrap_or_default();
    Ok(Json(Answer { status: outcome.name(), event: attempt.event_type.take(), id }))
}

async fn process(app: &Arc<App>, request: Request, attempt: &mut Attempt) -> Result<Outcome, Problem> {
    let (head, body) = request.into_parts();
    attempt.caller = app.addresses.caller(attempt.peer.ip(), &head.headers);
    if !app.addresses.allows(attempt.caller) {
        return Err(Problem::AddressNotAllowed);
    }
    // Refuse what the head already shows before the body gets a share of the budget.
    app.bodies.admit(&body)?;
    let now = (app.clock)();
    let headers = SignatureHeaders::find(|name| head.headers.get(name).map(HeaderValue::as_bytes))?;
    let expected = app.verifier.expect(&headers, now)?;
    let sender = attempt.caller.unwrap_or_else(|| attempt.peer.ip());
    let body = app.bodies.read(body, sender, attempt.started).await?;

    // No await from here to the hand-over, unless the gate has to ask the database.
    let verified = expected.verify(body)?;
    attempt.svix_id = Some(verified.svix_id().clone());
    attempt.describe(&head.headers);
    let mut event = event::parse(&verified, &app.selection, now);
    event.delivery.trace = attempt.span.context();
    attempt.event_type.clone_from(&event.delivery.event_type);
    // If probes were recorded, a quiet time would look as if Clerk had sent something.
    if event.delivery.event_type.as_deref() == Some(event::PROBE) {
        return Ok(Outcome::Ignored);
    }
    if event.replaced_characters {
        tracing::warn!(
            svix_id = attempt.svix_id(),
            event = attempt.event_type(),
            request_id = attempt.request_id.as_str(),
            "characters that no database can store became U+FFFD"
        );
    }
    if !event.unread.is_empty() {
        tracing::warn!(
            svix_id = attempt.svix_id(),
            event = attempt.event_type(),
            request_id = attempt.request_id.as_str(),
            fields = event.unread.join(","),
            "fields that cannot be read or stored keep their stored values; the rest is applied"
        );
    }
    let instance = event.instance_id.as_deref();
    let opens = match app.stream {
        None => app.gate.opens_at_once(instance),
        Some(_) => app.gate.opens_for_the_stream(instance),
    };
    let answer = if opens {
        app.committer.submit(event.delivery, attempt.started)?
    } else {
        // A separate task asks the database, because a sender that hangs up must not cancel it.
        let (asking, started) = (Arc::clone(app), attempt.started);
        let submitted = tokio::spawn(async move {
            let instance = event.instance_id.as_deref().unwrap_or_default();
            let streams = asking.stream.is_some();
            let patience = if streams { ASK_WITHIN } else { asking.answer_within };
            match asking.gate.ask(instance, started + patience).await {
                Ok(Err(stranger)) => Ok(Err(stranger)),
                Err(_) if !streams => Err(Problem::DatabaseUnavailable),
                // A worker asks again later.
                Ok(Ok(())) | Err(_) => Ok(Ok(asking.committer.submit(event.delivery, started)?)),
            }
        });
        submitted.await.map_err(|_| Problem::Internal)??.map_err(|stranger| {
            attempt.stranger = Some(stranger);
            Problem::WrongInstance
        })?
    };

    // The lane continues even after this deadline; the next attempt is then a duplicate.
    let answered = timeout_at(attempt.started + app.answer_within, answer).await;
    let answered = answered.ok().and_then(Result::ok).unwrap_or(Err(app.committer.too_late()));
    if answered == Err(Refusal::Unavailable) {
        app.probe.doubt();
    }
    let outcome = answered?;
    metrics::gauge!(telemetry::LAST_EVENT_TIMESTAMP).set(telemetry::unix_seconds(now));
    Ok(outcome)
}

impl Attempt {
    /// Record the headers of the request in its trace. This comes after verification, because forged headers prove nothing.
    fn describe(&mut self, headers: &HeaderMap) {
        if !self.span.is_recording() {
            return;
        }
        let svix_id = self.svix_id.as_ref().map_or("", SvixId::as_str);
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let traceparent = text(HeaderName::from_static(telemetry::TRACEPARENT));
        self.span.describe(svix_id, text(header::USER_AGENT), text(header::HOST), traceparent);
        self.resends = Some(self.app.resends.count(svix_id));
    }

    /// Count the answer and log it.
    fn finish(&mut self, result: Result<Outcome, Problem>) {
        self.is_finished = true;
        let (status, outcome, reason) = match result {
            Ok(outcome) => (StatusCode::OK, outcome.name(), ""),
            Err(problem) if problem.status().is_server_error() => {
                (problem.status(), "failed", problem.code())
            }
            Err(problem) => (problem.status(), "rejected", problem.code()),
        };
        let is_rejected = outcome == "rejected";
        if is_rejected {
            metrics::counter!(telemetry::REJECTIONS, "reason" => reason).increment(1);
        }
        if result == Ok(Outcome::Duplicate) {
            // The delivery was processed before, though perhaps by another process.
            self.resends = self.resends.map(|resends| resends.max(1));
        }
        let (event, duration) = (label(self.event_type.as_deref()), self.started.elapsed());
        let kind = kind(event);
        metrics::counter!(telemetry::WEBHOOKS, "event" => event, "outcome" => outcome, "kind" => kind)
            .increment(1);
        metrics::histogram!(telemetry::WEBHOOK_DURATION, "outcome" => outcome).record(duration);
        self.app.answers.count((self.app.clock)(), event, outcome, reason, duration);
        // An unknown event type can be any text.
        let traced = self.event_type.as_ref().map(|_| event);
        std::mem::take(&mut self.span).answered(status.as_u16(), traced, outcome, reason, self.resends);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    svix_id = self.svix_id(),
                    event = self.event_type(),
                    outcome,
                    reason = result.is_err().then_some(reason),
                    peer = is_rejected.then(|| tracing::field::display(self.peer.ip())),
                    caller = self.caller.filter(|_| is_rejected).map(tracing::field::display),
                    instance = self.stranger.as_ref().map(|stranger| &*stranger.instance),
                    known_instance = self.stranger.as_ref().map(|stranger| &*stranger.known),
                    duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
                    request_id = self.request_id.as_str(),
                    "webhook"
                )
            };
        }
        match result {
            // Anyone can cause these errors, so they are not logged as warnings.
            Ok(_)
            | Err(
                Problem::Rejected(Rejection::MissingHeaders | Rejection::InvalidTimestamp)
                | Problem::IncompleteBody
                | Problem::BodyTimeout,
            ) => log!(info),
            // Other failures pass without intervention. A bug does not, but its panic is already logged as an error.
            Err(_) => log!(warn),
        }
    }

    fn svix_id(&self) -> Option<&str> {
        self.svix_id.as_ref().map(SvixId::as_str)
    }

    fn event_type(&self) -> Option<&str> {
        self.event_type.as_deref()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_finished {
            self.finish(Err(Problem::Internal));
        }
    }
}

/// The HTTP version in the format of traces.
fn version(version: Version) -> &'static str {
    if version == Version::HTTP_10 { "1.0" } else { "1.1" }
}
