//! Spans: of what a piece of work was part, and how long it took, for whoever collects traces.
//!
//! A webhook is a trace: its request, what it puts into the queue and the outbox, who works on that, and which other
//! systems are asked. Rows that wait keep where they belong, so that a trace goes on in another process. Names and
//! attributes are those of OpenTelemetry's semantic conventions; what those have no name for is `clerk.…` and
//! `clerk_sync.…`. Ids of deliveries and messages are told, and types; never people, secrets, bodies or paths at other
//! systems, and nothing that a sender wrote before it was proven genuine.
//!
//! Spans are made by OpenTelemetry's API. As long as nothing exports them, as without the feature `otel`, there are none.

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

/// The header that says where a request stands in a trace.
pub const TRACEPARENT: &str = "traceparent";

/// What the names of the variables begin with that say where to export to.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Makes spans, once something exports them.
static TRACER: OnceLock<BoxedTracer> = OnceLock::new();

/// Where a piece of work stands in a trace: a W3C `traceparent`, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext(Option<Box<str>>);

impl TraceContext {
    /// As a row kept it.
    pub fn kept(text: Option<String>) -> Self {
        Self(text.map(String::into_boxed_str))
    }

    /// As a row keeps it.
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// What work is handed over by, and waits in.
#[derive(Clone, Copy, Debug)]
pub enum Queue<'a> {
    /// `webhook_queue`.
    Webhooks,
    /// The stream of `QUEUE_URL`.
    Stream,
    /// `outbox`, for the sink of this name.
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

/// How often the work was tried before that a request is part of.
#[derive(Clone, Copy, Debug, Default)]
struct Tries(u32);

/// A piece of work while it lasts. Dropped before it is ended it was cut off, and says so.
#[derive(Debug, Default)]
pub struct Span {
    recording: Option<BoxedSpan>,
    /// Kept for requests that are part of it.
    tries: Tries,
}

impl Span {
    /// A webhook comes in at this path, by HTTP in this version.
    pub fn server(path: &str, version: &'static str) -> Self {
        let mut span = Self::start(SpanKind::Server, None, || format!("POST {path}"));
        span.text("http.request.method", "POST");
        span.text("http.route", path);
        span.text("url.path", path);
        // Whoever ends TLS stands before us.
        span.text("url.scheme", "http");
        span.text("network.protocol.version", version);
        span
    }

    /// Tell what a genuine sender says of itself: the host that it meant, with the port if it is not the usual one, and
    /// where it stands in a trace of its own. That is linked to and not gone on with: whether we are traced is not for
    /// others to say.
    pub fn describe(
        &mut self,
        svix_id: &str,
        user_agent: Option<&str>,
        host: Option<&str>,
        traceparent: Option<&str>,
    ) {
        self.text("messaging.message.id", svix_id);
        self.text("user_agent.original", user_agent);
        // The scheme does not matter: the port is told only where it was.
        if let Some(url) = host.and_then(|host| Url::parse(&format!("http://{host}")).ok()) {
            self.host(&url, url.port());
        }
        self.link(traceparent);
    }

    /// The webhook is answered.
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
        // What is wrong with the request is not our error.
        self.end((status >= 500).then_some(reason));
    }

    /// Something is put into a queue, because of what happened there.
    pub fn send(queue: Queue<'_>, id: &str, event_type: Option<&str>, cause: &TraceContext) -> Self {
        Self::message(SpanKind::Producer, "send", queue, id, event_type, cause)
    }

    /// Something is taken from a queue and worked on, for so many times before this one in vain. It is part of the trace in
    /// which it was put there.
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

    /// A request to somebody else, which was sent so many times before; `None`: as often as the work was tried that it is
    /// part of, and nothing if it is part of none. Of the address only the host is told: paths can hold secrets and name people.
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

    /// The other side answered with this status.
    pub fn answer(mut self, status: u16) {
        self.number("http.response.status_code", status);
        let error = (status >= 400).then(|| status.to_string());
        self.end(error.as_deref());
    }

    /// It is done, and this came of it.
    pub fn done(mut self, outcome: &str) {
        self.text("clerk_sync.outcome", outcome);
        self.end(None);
    }

    /// It failed, in this way.
    pub fn failed(mut self, why: &str) {
        self.end(Some(why));
    }

    /// Where anything that this work causes belongs.
    pub fn context(&self) -> TraceContext {
        TraceContext(self.recording.as_ref().map(|recording| {
            let context = recording.span_context();
            let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
            format!("00-{trace}-{span}-{flags:02x}").into_boxed_str()
        }))
    }

    /// Whether anybody will ever see it.
    pub fn is_recording(&self) -> bool {
        self.recording.as_ref().is_some_and(BoxedSpan::is_recording)
    }

    /// Do this as part of it: requests to others belong to it.
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
        // What no webhook caused is no trace: a backfill would be one for every user and sink.
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

/// Collect spans from now on, if the environment says where they are to go. To be called inside a runtime.
pub fn begin_tracing() {
    let endpoint = ENDPOINTS.into_iter().find(|name| !variable(name).is_empty());
    let Some(endpoint) = endpoint else { return };
    match otel::begin(endpoint) {
        Ok(Some(collector)) => tracing::info!(endpoint, collector, "traces are exported"),
        Ok(None) => {}
        Err(why) => tracing::warn!("nothing is traced: {why}"),
    }
}

/// Hand over what is still here, within this time.
pub async fn finish_tracing(within: Duration) {
    otel::finish(within).await;
}

/// A variable of the environment; what is not set is empty.
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
        // Of a version to come the beginning means the same.
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
