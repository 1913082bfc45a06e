//! Spans by OpenTelemetry, exported by OTLP over HTTP.
//!
//! The SDK reads the variables `OTEL_…` itself. It collects in memory that is bounded, drops what is too much, and
//! exports from a thread of its own, so that a collector that is slow, away or wrong holds up nobody; the log says so
//! once, and once when it is well again.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry::{
    Context, KeyValue,
    context::FutureExt,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        Tracer, TracerProvider,
    },
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span},
};
use tokio::runtime::Handle;
use url::Url;

use super::{Kind, variable};
use crate::http_client::{self, beginning};

/// How long an export may take, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The most of a collector's answer that is looked at.
const ANSWER_BYTES: usize = 64 * 1024;

static TRACING: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// A span of the SDK.
#[derive(Debug)]
pub(super) struct Recording {
    span: Box<Span>,
    /// Kept for requests that are part of it.
    before: u32,
}

/// How often the work was tried before that a request is part of.
#[derive(Clone, Copy)]
struct Tries(u32);

impl Recording {
    pub(super) fn start(kind: Kind, name: String, parent: Option<&str>) -> Self {
        let (_, tracer) = TRACING.get().expect("it is on");
        let kind = match kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
        };
        let context = match parent.and_then(read) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None if kind == SpanKind::Client => Context::current(),
            None => Context::new(),
        };
        let builder = tracer.span_builder(name).with_kind(kind);
        Self { span: Box::new(tracer.build_with_context(builder, &context)), before: 0 }
    }

    pub(super) fn context(&self) -> String {
        let context = self.span.span_context();
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
    }

    pub(super) fn is_recording(&self) -> bool {
        self.span.is_recording()
    }

    pub(super) fn tried_before(&mut self, before: u32) {
        self.before = before;
    }

    pub(super) fn link(&mut self, traceparent: &str) {
        if let Some(other) = read(traceparent) {
            self.span.add_link(other, Vec::new());
        }
    }

    pub(super) fn text(&mut self, name: &'static str, value: &str) {
        if self.span.is_recording() {
            self.span.set_attribute(KeyValue::new(name, value.to_owned()));
        }
    }

    pub(super) fn number(&mut self, name: &'static str, value: i64) {
        self.span.set_attribute(KeyValue::new(name, value));
    }

    pub(super) fn end(mut self, error: Option<&str>) {
        if let Some(error) = error {
            self.text("error.type", error);
            self.span.set_status(Status::error(""));
        }
        self.span.end();
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

pub(super) fn is_on() -> bool {
    TRACING.get().is_some()
}

pub(super) fn tries_before() -> Option<u32> {
    Context::current().get::<Tries>().map(|tries| tries.0)
}

pub(super) fn around<F: Future>(
    recording: Option<&Recording>,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    let context = recording.map_or_else(Context::new, |recording| {
        Context::new()
            .with_remote_span_context(recording.span.span_context().clone())
            .with_value(Tries(recording.before))
    });
    work.with_context(context)
}

/// Which server it exports to now, if any; if it does not though it was asked to, why.
pub(super) fn begin(endpoint: &str) -> Result<Option<String>, String> {
    if variable("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true") {
        return Ok(None);
    }
    match &*variable("OTEL_TRACES_EXPORTER") {
        "" | "otlp" => {}
        "none" => return Ok(None),
        _ => {
            return Err(
                "OTEL_TRACES_EXPORTER names an exporter that is not built in; otlp and none are".to_owned()
            );
        }
    }
    let protocol = match &*either("PROTOCOL") {
        "" | "http/protobuf" => Protocol::HttpBinary,
        "http/json" => Protocol::HttpJson,
        _ => {
            return Err(
                "OTEL_EXPORTER_OTLP_PROTOCOL names a protocol that is not built in; http/protobuf and \
                        http/json are, to which collectors listen on port 4318"
                    .to_owned(),
            );
        }
    };
    // The SDK would take the address of this machine in its place.
    let url = Url::parse(&variable(endpoint)).ok();
    let url = url.filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
    let Some(url) = url else {
        return Err(format!("{endpoint} is no address that begins with http:// or https://"));
    };
    if TRACING.get().is_none() {
        let provider = provider(protocol)?;
        let tracer = provider.tracer("clerk-sync");
        let _ = TRACING.set((provider, tracer));
    }
    // Before the host a password may stand, and behind it a key.
    Ok(Some(url.origin().ascii_serialization()))
}

fn provider(protocol: Protocol) -> Result<SdkTracerProvider, String> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(protocol)
        .with_http_client(Way::new()?)
        .build()
        // The error quotes the address, in which a password may stand.
        .map_err(|_| {
            "the address or another of the variables OTEL_EXPORTER_OTLP_… cannot be used".to_owned()
        })?;
    let processor = BatchSpanProcessor::builder(exporter).build();
    Ok(SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource()).build())
}

/// What the environment says of us, and what it leaves open.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let told = Resource::builder().with_attribute(version.clone()).build();
    let name = told.get(&"service.name".into());
    if name.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return told;
    }
    Resource::builder().with_attribute(version).with_service_name("clerk-sync").build()
}

/// A variable for traces only, or for all that is exported.
fn either(name: &str) -> String {
    let own = variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
    if own.is_empty() { variable(&format!("OTEL_EXPORTER_OTLP_{name}")) } else { own }
}

pub(super) async fn finish(within: Duration) {
    if let Some((provider, _)) = TRACING.get() {
        let provider = provider.clone();
        let finishing = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(within));
        let _ = tokio::time::timeout(within, finishing).await;
    }
}

/// The way to the collector. The SDK's thread waits for it; the work is done by our runtime.
#[derive(Debug)]
struct Way {
    client: reqwest::Client,
    runtime: Handle,
    is_blocked: AtomicBool,
}

impl Way {
    fn new() -> Result<Self, String> {
        let timeout = either("TIMEOUT").parse().map_or(TIMEOUT, Duration::from_millis);
        let client = http_client::builder()
            .timeout(timeout)
            .build()
            .map_err(|_| "the HTTP client cannot be made".to_owned())?;
        Ok(Self { client, runtime: Handle::current(), is_blocked: AtomicBool::new(false) })
    }

    /// Say it once, however often it happens.
    fn tell(&self, trouble: Option<&str>) {
        match trouble {
            Some(trouble) if !self.is_blocked.swap(true, Relaxed) => {
                tracing::warn!(trouble, "traces cannot be exported, and are dropped until that is mended");
            }
            None if self.is_blocked.swap(false, Relaxed) => tracing::info!("traces are exported again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Way {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let request = reqwest::Request::try_from(request)?;
        let exchange = self.runtime.spawn(async move {
            let answer = client.execute(request).await?;
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.clone_from(answer.headers());
            }
            Ok::<_, reqwest::Error>((response, Bytes::from(beginning(answer, ANSWER_BYTES).await)))
        });
        match exchange.await? {
            Ok((response, body)) => {
                let response = response.body(body)?;
                let status = response.status();
                let refusal = format!("the collector answers {status}");
                self.tell((!status.is_success()).then_some(&refusal));
                Ok(response)
            }
            Err(error) => {
                self.tell(Some(if error.is_timeout() { "no answer in time" } else { "no connection" }));
                // Its words quote the address.
                Err(error.without_url().into())
            }
        }
    }
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
