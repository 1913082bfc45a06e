//! Exports spans through OTLP over HTTP.
//!
//! The SDK reads the variables `OTEL_…` itself. It collects spans in bounded memory, drops the excess, and exports from a
//! separate thread. So a slow, unreachable or broken collector delays no other work. The log reports such a failure once, and
//! once more when it ends.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry::{KeyValue, global::BoxedTracer, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchSpanProcessor, SdkTracerProvider},
};
use tokio::runtime::Handle;
use url::Url;

use super::{TRACER, variable};
use crate::http_client::{self, beginning};

/// The time limit of an export, unless `OTEL_EXPORTER_OTLP_TIMEOUT` sets another.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of bytes read from a collector's answer.
const ANSWER_BYTES: usize = 64 * 1024;

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Returns the server that spans are exported to, if any; the error says why export was requested but is impossible.
pub(super) fn begin(endpoint: &str) -> Result<Option<String>, String> {
    if variable("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true") {
        return Ok(None);
    }
    match &*variable("OTEL_TRACES_EXPORTER") {
        "" | "otlp" => {}
        "none" => return Ok(None),
        _ => {
            return Err(
                "OTEL_TRACES_EXPORTER names an unsupported exporter; allowed are otlp and none".to_owned()
            );
        }
    }
    let protocol = match &*either("PROTOCOL") {
        "" | "http/protobuf" => Protocol::HttpBinary,
        "http/json" => Protocol::HttpJson,
        _ => {
            return Err(
                "OTEL_EXPORTER_OTLP_PROTOCOL names an unsupported protocol; allowed are http/protobuf and \
                        http/json, for which collectors listen on port 4318"
                    .to_owned(),
            );
        }
    };
    // With an invalid URL, the SDK would use the address of this machine.
    let url = Url::parse(&variable(endpoint)).ok();
    let url = url.filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
    let Some(url) = url else {
        return Err(format!("{endpoint} is not an address that begins with http:// or https://"));
    };
    if PROVIDER.get().is_none() {
        let provider = provider(protocol)?;
        let _ = TRACER.set(BoxedTracer::new(Box::new(provider.tracer("clerk-sync"))));
        let _ = PROVIDER.set(provider);
    }
    // The URL may contain a password before the host, and a key after it.
    Ok(Some(url.origin().ascii_serialization()))
}

fn provider(protocol: Protocol) -> Result<SdkTracerProvider, String> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(protocol)
        .with_http_client(Way::new()?)
        .build()
        // The error quotes the address, which may contain a password.
        .map_err(|_| {
            "the address or another variable OTEL_EXPORTER_OTLP_… has an invalid value".to_owned()
        })?;
    let processor = BatchSpanProcessor::builder(exporter).build();
    Ok(SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource()).build())
}

/// The resource attributes from the environment, completed with defaults.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let told = Resource::builder().with_attribute(version.clone()).build();
    let name = told.get(&"service.name".into());
    if name.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return told;
    }
    Resource::builder().with_attribute(version).with_service_name("clerk-sync").build()
}

/// A variable for traces only, or the one for all exports.
fn either(name: &str) -> String {
    let own = variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
    if own.is_empty() { variable(&format!("OTEL_EXPORTER_OTLP_{name}")) } else { own }
}

pub(super) async fn finish(within: Duration) {
    if let Some(provider) = PROVIDER.get() {
        let provider = provider.clone();
        let finishing = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(within));
        let _ = tokio::time::timeout(within, finishing).await;
    }
}

/// The HTTP client for the collector. The SDK's thread waits for it; clerk-sync's runtime does the work.
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
            .map_err(|_| "the HTTP client cannot be created".to_owned())?;
        Ok(Self { client, runtime: Handle::current(), is_blocked: AtomicBool::new(false) })
    }

    /// Log a failure and its end once each.
    fn tell(&self, trouble: Option<&str>) {
        match trouble {
            Some(trouble) if !self.is_blocked.swap(true, Relaxed) => {
                tracing::warn!(trouble, "traces cannot be exported, and are dropped until that is fixed");
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
                // The error's text quotes the address.
                Err(error.without_url().into())
            }
        }
    }
}
