//! `POST /webhooks/clerk`: from raw bytes to an answer that can be relied on.
//!
//! Nothing is parsed before the signature is proven, and 200 goes out only once the outcome is durable. Between the
//! last byte of the body and the hand-over to the committer there is no await: a sender that hangs up cancels
//! nothing. Logs name ids, types and reasons, never headers, bodies or people.

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

/// When the answer goes out at the latest, after the head. Svix gives up after 15 s.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(9500);

/// How long the database may take to say which instance our users are of, where webhooks are taken in without it as well.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// The answer to a genuine webhook.
#[derive(Serialize)]
pub(super) struct Answer {
    status: &'static str,
    event: Option<String>,
    id: String,
}

/// What is known of a request so far. Each is counted and logged exactly once, even if its handler panics or is
/// cut off at shutdown.
struct Attempt {
    app: Arc<App>,
    started: Instant,
    peer: SocketAddr,
    /// Whom the peer speaks for, where it is trusted to say.
    caller: Option<IpAddr>,
    request_id: RequestId,
    svix_id: Option<SvixId>,
    event_type: Option<String>,
    /// Of which instance it is, and of which it should be, if these differ.
    stranger: Option<Stranger>,
    is_finished: bool,
    span: Span,
    /// How often it came before, as far as that is known; counted only where somebody traces.
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
    // Its routes have no parameters, so the path is the route.
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
    // What the head gives away costs no room for a body.
    app.bodies.admit(&body)?;
    let now = (app.clock)();
    let headers = SignatureHeaders::find(|name| head.headers.get(name).map(HeaderValue::as_bytes))?;
    let expected = app.verifier.expect(&headers, now)?;
    let sender = attempt.caller.unwrap_or_else(|| attempt.peer.ip());
    let body = app.bodies.read(body, sender, attempt.started).await?;

    // No await from here to the hand-over, unless the database is to be asked whether it may come in.
    let verified = expected.verify(body)?;
    attempt.svix_id = Some(verified.svix_id().clone());
    attempt.describe(&head.headers);
    let mut event = event::parse(&verified, &app.selection, now);
    event.delivery.trace = attempt.span.context();
    attempt.event_type.clone_from(&event.delivery.event_type);
    // Were it recorded, a quiet time would look as if Clerk had sent something.
    if event.delivery.event_type.as_deref() == Some(event::PROBE) {
        return Ok(Outcome::Ignored);
    }
    if event.replaced_characters {
        tracing::warn!(
            svix_id = attempt.svix_id(),
            event = attempt.event_type(),
            request_id = attempt.request_id.as_str(),
            "characters that no database can hold became U+FFFD"
        );
    }
    if !event.unread.is_empty() {
        tracing::warn!(
            svix_id = attempt.svix_id(),
            event = attempt.event_type(),
            request_id = attempt.request_id.as_str(),
            fields = event.unread.join(","),
            "fields that cannot be read or stored keep what is stored; the rest is applied"
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
        // The database is asked in a task of its own, because a sender that hangs up cancels nothing.
        let (asking, started) = (Arc::clone(app), attempt.started);
        let submitted = tokio::spawn(async move {
            let instance = event.instance_id.as_deref().unwrap_or_default();
            let streams = asking.stream.is_some();
            let patience = if streams { ASK_WITHIN } else { asking.answer_within };
            match asking.gate.ask(instance, started + patience).await {
                Ok(Err(stranger)) => Ok(Err(stranger)),
                Err(_) if !streams => Err(Problem::DatabaseUnavailable),
                // A worker asks again.
                Ok(Ok(())) | Err(_) => Ok(Ok(asking.committer.submit(event.delivery, started)?)),
            }
        });
        submitted.await.map_err(|_| Problem::Internal)??.map_err(|stranger| {
            attempt.stranger = Some(stranger);
            Problem::WrongInstance
        })?
    };

    // The lane goes on with it even if we stop waiting; the re-delivery will be a duplicate.
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
    /// What a genuine sender says of itself may be told.
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
            // It was processed before, if not by this process.
            self.resends = self.resends.map(|resends| resends.max(1));
        }
        let (event, duration) = (label(self.event_type.as_deref()), self.started.elapsed());
        let kind = kind(event);
        metrics::counter!(telemetry::WEBHOOKS, "event" => event, "outcome" => outcome, "kind" => kind)
            .increment(1);
        metrics::histogram!(telemetry::WEBHOOK_DURATION, "outcome" => outcome).record(duration);
        self.app.answers.count((self.app.clock)(), event, outcome, reason, duration);
        // Of a type that nobody knows anything may be the name.
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
            // The last four come from any passer-by.
            Ok(_)
            | Err(
                Problem::Rejected(Rejection::MissingHeaders | Rejection::InvalidTimestamp)
                | Problem::IncompleteBody
                | Problem::BodyTimeout,
            ) => log!(info),
            // What failed passes by itself; but for a bug, whose panic was logged as an error already.
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

/// As traces have it.
fn version(version: Version) -> &'static str {
    if version == Version::HTTP_10 { "1.0" } else { "1.1" }
}
