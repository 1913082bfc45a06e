//! Spans for trace collectors: how long a piece of work took, and which larger piece it belongs to.
//!
//! A webhook is a trace: its request, the rows that it puts into the queue and the outbox, the work on them, and the requests to
//! other systems. Waiting rows store their trace context, so a trace continues in another process. Names and attributes follow
//! OpenTelemetry's semantic conventions; attributes without a conventional name start with `clerk.` or `clerk_sync.`. Spans
//! contain ids and types of deliveries and messages. They never contain people, secrets, bodies or paths at other systems, or
//! text from a sender that is not verified yet.
//!
//! Spans use OpenTelemetry's API. Without an exporter, as without the feature `otel`, no spans are created.

#[cfg(feature = "otel")]
mod otel;
#[cfg(not(feature = "otel"))]
#[path = "trace/no_otel.rs"]
mod otel;

use std::{fmt, sync::OnceLock, time::Duration};

use opentelemetry::{
    Context, KeyValue,
    context::FutureExt,
    global::{BoxedSpan, BoxedTracer},
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        Tracer,
    },
};
use url::Url;

/// The header with a request's trace context.
pub const TRACEPARENT: &str = "traceparent";

/// The variables that set the export endpoint.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Creates spans once an exporter exists.
static TRACER: OnceLock<BoxedTracer> = OnceLock::new();

/// The trace context of a piece of work: a W3C `traceparent`, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext(Option<Box<str>>);

impl TraceContext {
    /// From a stored row.
    pub fn kept(text: Option<String>) -> Self {
        Self(text.map(String::into_boxed_str))
    }

    /// The form that a row stores.
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// A queue in which work waits.
#[derive(Clone, Copy, Debug)]
pub enum Queue<'a> {
    /// `webhook_queue`.
    Webhooks,
    /// The stream of `QUEUE_URL`.
    Stream,
    /// `outbox`, for the sink with this name.
    Outbox(&'a str),
}

impl fmt::Display for Queue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhooks => f.write_str("webhook_queue"),
            Self::Stream => f.write_str("webhook_stream"),
            Self::Outbox(sink) => write!(f, "outbox/{sink}"),
        }
    }
}

/// The number of earlier attempts of the current work.
#[derive(Clone, Copy, Debug, Default)]
struct Tries(u32);

/// A piece of work in progress. A span that is dropped before it ends was cancelled, and reports that.
#[derive(Debug, Default)]
pub struct Span {
    recording: Option<BoxedSpan>,
    /// Stored for requests that are part of it.
    tries: Tries,
}

impl Span {
    /// A webhook request at this path, with this version of HTTP.
    pub fn server(path: &str, version: &'static str) -> Self {
        let mut span = Self::start(SpanKind::Server, None, || format!("POST {path}"));
        span.text("http.request.method", "POST");
        span.text("http.route", path);
        span.text("url.path", path);
        // TLS, if any, ends at a proxy in front of clerk-sync.
        span.text("url.scheme", "http");
        span.text("network.protocol.version", version);
        span
    }

    /// Add what a verified sender says: the requested host, with the port if it is not the default one, and the sender's own
    /// trace context. The span links to that context but does not continue it, because other systems must not decide whether
    /// clerk-sync is traced.
    pub fn describe(
        &mut self,
        svix_id: &str,
        user_agent: Option<&str>,
        host: Option<&str>,
        traceparent: Option<&str>,
    ) {
        self.text("messaging.message.id", svix_id);
        self.text("user_agent.original", user_agent);
        // The scheme does not matter: the port is reported only if the host named one.
        if let Some(url) = host.and_then(|host| Url::parse(&format!("http://{host}")).ok()) {
            self.host(&url, url.port());
        }
        self.link(traceparent);
    }

    /// End the span of a webhook with its answer.
    pub fn answered(
        mut self,
        status: u16,
        event_type: Option<&str>,
        outcome: &str,
        reason: &str,
        resends: Option<u32>,
    ) {
        self.number("http.response.status_code", status);
        self.text("clerk.event.type", event_type);
        self.text("clerk_sync.outcome", outcome);
        self.text("clerk_sync.reason", Some(reason).filter(|reason| !reason.is_empty()));
        self.resent(resends);
        // A client error is not an error of clerk-sync.
        self.end((status >= 500).then_some(reason));
    }

    /// A message is put into a queue; `cause` is the context of the work that caused it.
    pub fn send(queue: Queue<'_>, id: &str, event_type: Option<&str>, cause: &TraceContext) -> Self {
        Self::message(SpanKind::Producer, "send", queue, id, event_type, cause)
    }

    /// A message is taken from a queue and processed after `before` failed attempts. The span belongs to the trace that put it
    /// there.
    pub fn process(
        queue: Queue<'_>,
        id: &str,
        event_type: Option<&str>,
        kept: &TraceContext,
        before: u32,
    ) -> Self {
        let mut span = Self::message(SpanKind::Consumer, "process", queue, id, event_type, kept);
        span.number("clerk_sync.attempt", before.saturating_add(1));
        span.tries = Tries(before);
        span.link(kept.as_str());
        span
    }

    /// A request to another system that was sent this often before. With `None`, the attempts of the current work count instead;
    /// without current work, there is no span. Only the host of the address is recorded: paths may contain secrets and names.
    pub fn client(method: &str, url: &Url, resends: Option<u32>) -> Self {
        let resends = resends.or_else(|| Context::current().get::<Tries>().map(|tries| tries.0));
        if resends.is_none() {
            return Self::default();
        }
        let mut span = Self::start(SpanKind::Client, None, || method.to_owned());
        span.text("http.request.method", method);
        span.text("url.scheme", url.scheme());
        span.host(url, url.port_or_known_default());
        span.resent(resends);
        span
    }

    /// End with the status of the other side's answer.
    pub fn answer(mut self, status: u16) {
        self.number("http.response.status_code", status);
        let error = (status >= 400).then(|| status.to_string());
        self.end(error.as_deref());
    }

    /// End with this outcome.
    pub fn done(mut self, outcome: &str) {
        self.text("clerk_sync.outcome", outcome);
        self.end(None);
    }

    /// End with this failure.
    pub fn failed(mut self, why: &str) {
        self.end(Some(why));
    }

    /// The context for work that this span causes.
    pub fn context(&self) -> TraceContext {
        TraceContext(self.recording.as_ref().map(|recording| {
            let context = recording.span_context();
            let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
            format!("00-{trace}-{span}-{flags:02x}").into_boxed_str()
        }))
    }

    /// Whether the span will be exported.
    pub fn is_recording(&self) -> bool {
        self.recording.as_ref().is_some_and(BoxedSpan::is_recording)
    }

    /// Run work as part of this span, so that its requests to other systems belong to it.
    pub fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        let mut context = Context::new();
        if let Some(recording) = &self.recording {
            let span = recording.span_context().clone();
            context = context.with_remote_span_context(span).with_value(self.tries);
        }
        work.with_context(context)
    }

    fn message(
        kind: SpanKind,
        operation: &'static str,
        queue: Queue<'_>,
        id: &str,
        event_type: Option<&str>,
        parent: &TraceContext,
    ) -> Self {
        // Messages that no webhook caused get no trace: a backfill would create one per user and sink.
        if matches!(queue, Queue::Outbox(_)) && parent.as_str().is_none() {
            return Self::default();
        }
        let mut span = Self::start(kind, parent.as_str(), || format!("{operation} {queue}"));
        if span.is_recording() {
            span.text("messaging.system", "clerk_sync");
            span.text("messaging.operation.name", operation);
            span.text("messaging.operation.type", operation);
            span.text("messaging.destination.name", &*queue.to_string());
            span.text("messaging.message.id", id);
            span.text("clerk.event.type", event_type);
        }
        span
    }

    fn start(kind: SpanKind, parent: Option<&str>, name: impl FnOnce() -> String) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        let context = match parent.and_then(read) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None if kind == SpanKind::Client => Context::current(),
            None => Context::new(),
        };
        let builder = tracer.span_builder(name()).with_kind(kind);
        Self { recording: Some(tracer.build_with_context(builder, &context)), tries: Tries::default() }
    }

    fn link(&mut self, traceparent: Option<&str>) {
        if let (Some(recording), Some(other)) = (&mut self.recording, traceparent.and_then(read)) {
            recording.add_link(other, Vec::new());
        }
    }

    fn resent(&mut self, resends: Option<u32>) {
        if let Some(resends) = resends.filter(|resends| *resends > 0) {
            self.number("http.request.resend_count", resends);
        }
    }

    fn host(&mut self, url: &Url, port: Option<u16>) {
        self.text("server.address", url.host_str());
        if let Some(port) = port {
            self.number("server.port", port);
        }
    }

    fn text<'a>(&mut self, name: &'static str, value: impl Into<Option<&'a str>>) {
        let recording = self.recording.as_mut().filter(|recording| recording.is_recording());
        if let (Some(recording), Some(value)) = (recording, value.into()) {
            recording.set_attribute(KeyValue::new(name, value.to_owned()));
        }
    }

    fn number(&mut self, name: &'static str, value: impl Into<i64>) {
        if let Some(recording) = &mut self.recording {
            recording.set_attribute(KeyValue::new(name, value.into()));
        }
    }

    fn end(&mut self, error: Option<&str>) {
        self.text("error.type", error);
        if let Some(mut recording) = self.recording.take() {
            if error.is_some() {
                recording.set_status(Status::error(""));
            }
            recording.end();
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.end(Some("cancelled"));
    }
}

/// The span that a `traceparent` names.
fn read(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let mut part = |length| {
        let part = parts.next().filter(|part| part.len() == length)?;
        part.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f')).then_some(part)
    };
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    (version != "ff" && context.is_valid()).then_some(context)
}

/// Collect spans from now on, if the environment sets an endpoint. Call it inside a runtime.
pub fn begin_tracing() {
    let endpoint = ENDPOINTS.into_iter().find(|name| !variable(name).is_empty());
    let Some(endpoint) = endpoint else { return };
    match otel::begin(endpoint) {
        Ok(Some(collector)) => tracing::info!(endpoint, collector, "traces are exported"),
        Ok(None) => {}
        Err(why) => tracing::warn!("nothing is traced: {why}"),
    }
}

/// Export the remaining spans within this time.
pub async fn finish_tracing(within: Duration) {
    otel::finish(within).await;
}

/// An environment variable; empty if it is not set.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_traceparent_is_read_as_w3c_writes_it_and_nothing_else_is() {
        for (flags, is_sampled) in [("00", false), ("01", true), ("03", true)] {
            let context = read(&format!("00-{TRACE}-{SPAN}-{flags}")).expect("well formed");
            assert_eq!(
                (context.trace_id().to_string(), context.span_id().to_string()),
                (TRACE.into(), SPAN.into())
            );
            assert_eq!((context.is_sampled(), context.is_remote()), (is_sampled, true));
        }
        // The start of a future version has the same meaning.
        assert!(read(&format!("cc-{TRACE}-{SPAN}-01-more")).is_some());
        for wrong in [
            String::new(),
            "nonsense".to_owned(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}x-{SPAN}-01"),
        ] {
            assert!(read(&wrong).is_none(), "{wrong}");
        }
    }
}
