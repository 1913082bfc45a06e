//! Spans: of what a piece of work was part, and how long it took, for whoever collects traces.
//!
//! A webhook is a trace: its request, what it puts into the queue and the outbox, who works on that, and which other
//! systems are asked. Rows that wait keep where they belong, so that a trace goes on in another process. Names and
//! attributes are those of OpenTelemetry's semantic conventions; what those have no name for is `clerk.…` and
//! `clerk_sync.…`. Ids of deliveries and messages are told, and types; never people, secrets, bodies or paths at other
//! systems, and nothing that a sender wrote before it was proven genuine.
//!
//! Built without the feature `otel` all of this is nothing, and so it is as long as nobody collects.

#[cfg(feature = "otel")]
mod otel;
#[cfg(not(feature = "otel"))]
#[path = "trace/no_otel.rs"]
mod otel;

use std::{fmt, time::Duration};

use url::Url;

use self::otel::Recording;

/// The header that says where a request stands in a trace.
pub const TRACEPARENT: &str = "traceparent";

/// What the names of the variables begin with that say where to export to.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

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
    /// `outbox`, for the sink of this name.
    Outbox(&'a str),
}

impl fmt::Display for Queue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhooks => f.write_str("webhook_queue"),
            Self::Outbox(sink) => write!(f, "outbox/{sink}"),
        }
    }
}

/// What a sender that is proven genuine says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sender<'a> {
    pub svix_id: &'a str,
    pub user_agent: Option<&'a str>,
    /// The host that it meant, with the port if it is not the usual one.
    pub host: Option<&'a str>,
    /// Where it stands in a trace of its own.
    pub traceparent: Option<&'a str>,
}

/// The role of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Server,
    Client,
    Producer,
    Consumer,
}

/// A piece of work while it lasts. Dropped before it is ended it was cut off, and says so.
#[derive(Debug, Default)]
pub struct Span(Option<Recording>);

impl Span {
    /// A webhook comes in at this path, by HTTP in this version.
    pub fn server(path: &str, version: &'static str) -> Self {
        let mut span = Self::start(Kind::Server, None, || format!("POST {path}"));
        span.text("http.request.method", "POST");
        span.text("http.route", path);
        span.text("url.path", path);
        // Whoever ends TLS stands before us.
        span.text("url.scheme", "http");
        span.text("network.protocol.version", version);
        span
    }

    /// Tell what a genuine sender says. A trace of its own is linked to and not gone on with: whether we are traced is not
    /// for others to say.
    pub fn describe(&mut self, sender: &Sender<'_>) {
        self.text("messaging.message.id", sender.svix_id);
        if let Some(user_agent) = sender.user_agent {
            self.text("user_agent.original", user_agent);
        }
        // The scheme does not matter: the port is told only where it was.
        if let Some(host) = sender.host
            && let Ok(url) = Url::parse(&format!("http://{host}"))
        {
            self.host(&url, url.port());
        }
        if let (Some(recording), Some(traceparent)) = (&mut self.0, sender.traceparent) {
            recording.link(traceparent);
        }
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
        if let Some(event_type) = event_type {
            self.text("clerk.event.type", event_type);
        }
        self.text("clerk_sync.outcome", outcome);
        if !reason.is_empty() {
            self.text("clerk_sync.reason", reason);
        }
        self.resent(resends);
        // What is wrong with the request is not our error.
        self.end((status >= 500).then_some(reason));
    }

    /// Something is put into a queue, because of what happened there.
    pub fn send(queue: Queue<'_>, id: &str, event_type: Option<&str>, cause: &TraceContext) -> Self {
        let mut span = Self::of(Kind::Producer, "send", queue, cause);
        span.message("send", queue, id, event_type);
        span
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
        let mut span = Self::of(Kind::Consumer, "process", queue, kept);
        span.message("process", queue, id, event_type);
        span.number("clerk_sync.attempt", before.saturating_add(1));
        if let Some(recording) = &mut span.0 {
            recording.tried_before(before);
            if let Some(kept) = kept.as_str() {
                recording.link(kept);
            }
        }
        span
    }

    /// A request to somebody else, which was sent so many times before; `None`: as often as the work was tried that it is
    /// part of, and nothing if it is part of none. Of the address only the host is told: paths can hold secrets and name people.
    pub fn client(method: &str, url: &Url, resends: Option<u32>) -> Self {
        let resends = resends.or_else(otel::tries_before);
        if resends.is_none() {
            return Self::default();
        }
        let mut span = Self::start(Kind::Client, None, || method.to_owned());
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

    /// Where whatever this work causes belongs.
    pub fn context(&self) -> TraceContext {
        TraceContext(self.0.as_ref().map(|recording| recording.context().into_boxed_str()))
    }

    /// Whether anybody will ever see it.
    pub fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(Recording::is_recording)
    }

    /// Do this as part of it: requests to others belong to it.
    pub fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        otel::around(self.0.as_ref(), work)
    }

    /// What no webhook caused is no trace: a backfill would be one for every user and sink.
    fn of(kind: Kind, operation: &str, queue: Queue<'_>, parent: &TraceContext) -> Self {
        match (queue, parent.as_str()) {
            (Queue::Outbox(_), None) => Self::default(),
            (_, parent) => Self::start(kind, parent, || format!("{operation} {queue}")),
        }
    }

    fn start(kind: Kind, parent: Option<&str>, name: impl FnOnce() -> String) -> Self {
        Self(otel::is_on().then(|| Recording::start(kind, name(), parent)))
    }

    fn message(&mut self, operation: &'static str, queue: Queue<'_>, id: &str, event_type: Option<&str>) {
        if !self.is_recording() {
            return;
        }
        self.text("messaging.system", "clerk_sync");
        self.text("messaging.operation.name", operation);
        self.text("messaging.operation.type", operation);
        self.text("messaging.destination.name", &queue.to_string());
        self.text("messaging.message.id", id);
        if let Some(event_type) = event_type {
            self.text("clerk.event.type", event_type);
        }
    }

    fn resent(&mut self, resends: Option<u32>) {
        if let Some(resends) = resends.filter(|resends| *resends > 0) {
            self.number("http.request.resend_count", resends);
        }
    }

    fn host(&mut self, url: &Url, port: Option<u16>) {
        self.text("server.address", url.host_str().unwrap_or_default());
        if let Some(port) = port {
            self.number("server.port", port);
        }
    }

    fn text(&mut self, name: &'static str, value: &str) {
        if let Some(recording) = &mut self.0 {
            recording.text(name, value);
        }
    }

    fn number(&mut self, name: &'static str, value: impl Into<i64>) {
        if let Some(recording) = &mut self.0 {
            recording.number(name, value.into());
        }
    }

    fn end(&mut self, error: Option<&str>) {
        if let Some(recording) = self.0.take() {
            recording.end(error);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.end(Some("cancelled"));
    }
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
