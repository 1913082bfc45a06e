//! Logs, metrics, traces and error reports: their form and their names.
//!
//! Logs go to stderr. Other crates may log only warnings and errors, and the database driver may log nothing, because its
//! messages contain the values of rows. For the same reason a panic is logged with its place, not with its message.

pub mod plain;
mod process;
mod trace;

#[cfg(not(feature = "sentry"))]
#[path = "telemetry/no_sentry.rs"]
mod sentry;
#[cfg(feature = "sentry")]
mod sentry;

use std::{
    io::{self, IsTerminal},
    panic,
    sync::OnceLock,
    time::Duration,
};

use chrono::{DateTime, Utc};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use secrecy::SecretString;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use self::plain::Plain;

pub use trace::{Queue, Span, TRACEPARENT, TraceContext, begin_tracing, finish_tracing};

/// The label of [`WEBHOOKS`] for an unknown event type or kind.
pub const OTHER: &str = "other";

/// A metric. Its name contains its unit, as Prometheus recommends.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    /// Prometheus' type: `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The text of `# HELP`.
    pub help: &'static str,
}

impl Metric {
    pub fn unit(&self) -> Unit {
        match self.name {
            name if name.contains("_seconds") => Unit::Seconds,
            name if name.ends_with("_bytes") => Unit::Bytes,
            _ => Unit::Count,
        }
    }
}

/// Declares each metric once: its constant for the code, and its entry in [`METRICS`].
macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub const $constant: &str = $name;)*

        /// Every metric, in the order of `docs/metrics.md`; a test compares the two.
        pub static METRICS: &[Metric] = &[
            $(Metric { name: $name, kind: stringify!($kind), labels: &[$($label),*], help: $help },)*
        ];
    };
}

metrics! {
    WEBHOOKS: counter "clerk_sync_webhooks_total" ["event", "outcome", "kind"]
        "Webhooks answered, by event type, outcome and kind of object.";
    REJECTIONS: counter "clerk_sync_rejections_total" ["reason"]
        "Webhooks answered with 4xx, by reason.";
    WEBHOOK_DURATION: histogram "clerk_sync_webhook_duration_seconds" ["outcome"]
        "Time from the head of a webhook request to its answer, by outcome.";
    COMMIT_BATCH_SIZE: histogram "clerk_sync_commit_batch_size" []
        "Deliveries that shared one transaction.";
    COMMIT_DURATION: histogram "clerk_sync_commit_duration_seconds" []
        "Duration of the transaction of a batch.";
    LAST_EVENT_TIMESTAMP: gauge "clerk_sync_last_event_timestamp_seconds" []
        "When a genuine event was last received, in Unix time; absent until the first.";
    QUEUE_DEPTH: gauge "clerk_sync_queue_depth" ["state"]
        "Deliveries in webhook_queue, by state; counted at most every 2 seconds, less often if counting takes long.";
    QUEUE_OLDEST: gauge "clerk_sync_queue_oldest_seconds" []
        "How long the first waiting delivery in webhook_queue has been due; 0 if none is due.";
    QUEUE_PROCESSED: counter "clerk_sync_queue_processed_total" ["outcome", "kind"]
        "Deliveries from webhook_queue or the stream that a worker processed, by outcome and kind of object; parked: it failed.";
    STREAM_DEPTH: gauge "clerk_sync_stream_depth" []
        "Webhooks in the stream of QUEUE_URL that are not applied yet; absent without QUEUE_URL.";
    STREAM_OLDEST: gauge "clerk_sync_stream_oldest_seconds" []
        "How long the oldest webhook has been in the stream; 0 if it is empty.";
    STREAM_CONFIRM_DURATION: histogram "clerk_sync_stream_confirm_duration_seconds" []
        "How long the server of the stream took to accept webhooks and confirm that they are on disk.";
    STREAM_RECLAIMED: counter "clerk_sync_stream_reclaimed_total" []
        "Webhooks of the stream that were claimed again because a worker did not acknowledge them within 15 s.";
    OUTBOX_DEPTH: gauge "clerk_sync_outbox_depth" ["sink", "state"]
        "Messages in outbox that are pending or dead, by sink and state.";
    OUTBOX_OLDEST: gauge "clerk_sync_outbox_oldest_seconds" ["sink"]
        "Age of the oldest pending message, by sink; 0 if there are no pending messages.";
    DELIVERIES: counter "clerk_sync_deliveries_total" ["sink", "outcome"]
        "Attempts to deliver a message, by sink and outcome.";
    DELIVERY_DURATION: histogram "clerk_sync_delivery_duration_seconds" ["sink"]
        "How long a sink took per attempt, by sink.";
    SINK_UP: gauge "clerk_sync_sink_up" ["sink"]
        "1; 0 after five consecutive failures, while clerk-sync only probes the sink.";
    API_REQUESTS: counter "clerk_sync_api_requests_total" ["status"]
        "Requests to Clerk's Backend API, by HTTP status.";
    BACKFILL_USERS: counter "clerk_sync_backfill_users_total" ["outcome", "kind"]
        "Objects that a backfill processed, by outcome and kind.";
    RECONCILE_DRIFT: gauge "clerk_sync_reconcile_drift" ["kind", "entity"]
        "Differences from Clerk that the last complete reconcile found, by their kind and the kind of object; absent until the first.";
    RECONCILE_LAST_SUCCESS: gauge "clerk_sync_reconcile_last_success_timestamp_seconds" []
        "When a reconcile last completed, in Unix time; absent until the first.";
    CATCH_UP_FAILURES: counter "clerk_sync_catch_up_failures_total" []
        "Backfills and reconciles of the service that failed and will be retried.";
    ERASURES_OPEN: gauge "clerk_sync_erasures_open" ["destination"]
        "Erasures that the destination has not confirmed yet, by destination.";
    ERASURE_OLDEST: gauge "clerk_sync_erasure_oldest_open_seconds" []
        "Age of the oldest unconfirmed erasure, in seconds; 0 if all are confirmed.";
    ERASURE_FAILURES: counter "clerk_sync_erasure_failures_total" []
        "Attempts in which the database refused to delete or anonymise a user; they are retried.";
    AUDIT_UNSEALED: gauge "clerk_sync_audit_unsealed_lines" []
        "Lines of the audit trail that no seal covers yet, counted up to 100,000.";
    AUDIT_UNSEALED_OLDEST: gauge "clerk_sync_audit_unsealed_oldest_seconds" []
        "Age of the oldest line of the audit trail without a seal; 0 if all are sealed. More than two minutes: no process seals.";
    DATABASE_SIZE: gauge "clerk_sync_database_size_bytes" []
        "Size of the whole database; with SQLite, of the file and its log.";
    DISK_FREE: gauge "clerk_sync_disk_free_bytes" []
        "Free space on the volume of SQLite's file, or of MongoDB if its server reports it; absent with other databases.";
    BUILD_INFO: gauge "clerk_sync_build_info" ["version"]
        "Always 1; the version is in the label.";
    PROCESS_START: gauge "process_start_time_seconds" []
        "When the process started, in Unix time.";
    PROCESS_CPU: counter "process_cpu_seconds_total" []
        "CPU time of the process, in whole seconds.";
    PROCESS_MEMORY: gauge "process_resident_memory_bytes" []
        "Resident memory of the process; only on Linux.";
    PROCESS_OPEN_FDS: gauge "process_open_fds" []
        "Open file descriptors of the process.";
    PROCESS_MAX_FDS: gauge "process_max_fds" []
        "Maximum number of open file descriptors of the process.";
}

/// Every `reason` of [`REJECTIONS`].
pub const REJECTION_REASONS: [&str; 9] = [
    "missing_headers",
    "invalid_timestamp",
    "timestamp_out_of_tolerance",
    "invalid_signature",
    "address_not_allowed",
    "wrong_instance",
    "body_too_large",
    "incomplete_body",
    "body_timeout",
];

/// Every `state` of [`QUEUE_DEPTH`] and of [`OUTBOX_DEPTH`].
pub const QUEUE_STATES: [&str; 2] = ["pending", "dead"];

/// Every `outcome` of [`QUEUE_PROCESSED`].
pub const QUEUE_OUTCOMES: [&str; 6] = ["applied", "unchanged", "stale", "duplicate", "ignored", "parked"];

/// Every `outcome` of [`DELIVERIES`].
pub const DELIVERY_OUTCOMES: [&str; 3] = ["delivered", "again", "dead"];

const SECONDS_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BATCH_SIZE_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// How often the samples of histograms are sorted into buckets between scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line per event, for people.
    Pretty,
    /// One JSON object per line, with fields at the top level.
    Json,
}

impl LogFormat {
    /// The form with this public name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "pretty" => Some(Self::Pretty),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    /// Pretty on a terminal, otherwise JSON.
    pub fn of_stderr() -> Self {
        if io::stderr().is_terminal() { Self::Pretty } else { Self::Json }
    }
}

/// Parses a filter in the form of `RUST_LOG`; `None` if it is invalid.
pub fn filter(directives: &str) -> Option<EnvFilter> {
    EnvFilter::try_new(directives).ok()
}

/// Where errors are reported, in addition to the log.
#[derive(Clone, Debug)]
pub struct Sentry {
    /// Contains both the address and the key.
    pub dsn: SecretString,
    pub environment: Option<String>,
    /// `None`: the version of this program.
    pub release: Option<String>,
}

/// Starts logging to stderr, panics included. A log that is already set up stays.
///
/// # Panics
/// If `sentry` is given and the caller is outside a runtime.
pub fn init(format: LogFormat, filter: EnvFilter, sentry: Option<&Sentry>) {
    let layer = layer(format, filter, io::stderr, io::stderr().is_terminal());
    let reporter = sentry.map(sentry::reporter).transpose();
    let (reporter, mistake) = match reporter {
        // Without this filter, debug events would be evaluated too.
        Ok(reporter) => (reporter.map(|reporter| reporter.with_filter(LevelFilter::ERROR)), None),
        Err(mistake) => (None, Some(mistake)),
    };
    // Fails only if a log is already set up, as in tests that start the service twice in one process.
    let _ = tracing_subscriber::registry().with(reporter).with(layer).try_init();
    if let Some(mistake) = mistake {
        tracing::warn!("SENTRY_DSN is set, but nothing is reported: {mistake}");
    }
    tell_panics();
}

tokio::task_local! {
    /// The request that this task works on.
    static REQUEST: Request;
}

/// A request, as the report of a panic names it: by its route, never by the parameters in its address.
#[derive(Clone, Debug)]
pub struct Request {
    pub route: String,
    pub id: String,
}

impl Request {
    /// Runs work for this request.
    pub async fn scope<W: Future>(self, work: W) -> W::Output {
        REQUEST.scope(self, work).await
    }

    /// Wraps work for a separate task so that it belongs to the current request, if there is one.
    pub fn inherit<W: Future>(work: W) -> impl Future<Output = W::Output> {
        let request = REQUEST.try_with(Clone::clone).ok();
        async move {
            match request {
                Some(request) => request.scope(work).await,
                None => work.await,
            }
        }
    }
}

/// Logs panics from now on. A panic in a handler causes no other error in the log. For an abandoned batch or turn, another log
/// line says which one it was.
pub(crate) fn tell_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let request = REQUEST.try_with(Clone::clone).ok();
        tracing::error!(
            place,
            thread = thread.name(),
            route = request.as_ref().map(|request| request.route.as_str()),
            request_id = request.as_ref().map(|request| request.id.as_str()),
            "a task panicked: please report this"
        );
    }));
}

/// Sends the remaining reports, within this time.
pub async fn finish_reports(within: Duration) {
    sentry::finish(within).await;
}

fn layer<S, W>(format: LogFormat, filter: EnvFilter, writer: W, colours: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(Plain(writer)).with_ansi(colours);
    let layer = match format {
        LogFormat::Pretty => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
    };
    layer.with_filter(filter.and(filter_fn(may_speak)))
}

/// Whether a target may log at all, regardless of `RUST_LOG`.
fn may_speak(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    is_ours(target) || (*metadata.level() <= Level::WARN && !target.starts_with("sqlx"))
}

fn is_ours(target: &str) -> bool {
    target == "clerk_sync" || target.starts_with("clerk_sync::")
}

/// Starts collecting metrics. Later calls return the same handle. [`upkeep`] must run alongside.
///
/// # Panics
/// If another recorder is already installed.
pub fn install_metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let handle = recorder().install_recorder().expect("no other recorder is installed");
            describe();
            handle
        })
        .clone()
}

/// Keeps the memory of histograms bounded; never returns. Samples accumulate until a scrape or this function sorts them into
/// buckets. It also measures the resources of the process, which started at `started_at`.
pub async fn upkeep(metrics: PrometheusHandle, started_at: DateTime<Utc>) {
    gauge!(PROCESS_START).set(unix_seconds(started_at));
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        metrics.run_upkeep();
        process::look();
    }
}

/// A time in Prometheus' form: Unix seconds.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a float for 285,000 years")]
pub fn unix_seconds(at: DateTime<Utc>) -> f64 {
    at.timestamp_millis() as f64 / 1000.0
}

/// A number in Prometheus' form.
#[expect(clippy::cast_precision_loss, reason = "exact up to 9 quadrillions")]
pub fn number(number: u64) -> f64 {
    number as f64
}

fn recorder() -> PrometheusBuilder {
    let buckets = [
        (WEBHOOK_DURATION, SECONDS_BUCKETS.as_slice()),
        (COMMIT_DURATION, SECONDS_BUCKETS.as_slice()),
        (DELIVERY_DURATION, SECONDS_BUCKETS.as_slice()),
        (COMMIT_BATCH_SIZE, BATCH_SIZE_BUCKETS.as_slice()),
    ];
    buckets.into_iter().fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets).expect("there are buckets")
    })
}

/// Initialises the counters of failed webhooks and of processed deliveries of a kind to zero.
pub fn count_events(kind: &'static str, events: impl Iterator<Item = &'static str>) {
    for outcome in QUEUE_OUTCOMES {
        counter!(QUEUE_PROCESSED, "outcome" => outcome, "kind" => kind).absolute(0);
    }
    for event in events {
        counter!(WEBHOOKS, "event" => event, "outcome" => "failed", "kind" => kind).absolute(0);
    }
}

/// Describes the metrics and initialises those with known labels to zero. A counter that first appears with its first failure
/// has no rate to alert on.
fn describe() {
    for metric @ Metric { name, kind, help, .. } in METRICS {
        match *kind {
            "counter" => describe_counter!(*name, metric.unit(), *help),
            "gauge" => describe_gauge!(*name, metric.unit(), *help),
            _ => describe_histogram!(*name, metric.unit(), *help),
        }
    }
    for outcome in ["failed", "rejected"] {
        counter!(WEBHOOKS, "event" => OTHER, "outcome" => outcome, "kind" => OTHER).absolute(0);
    }
    for reason in REJECTION_REASONS {
        counter!(REJECTIONS, "reason" => reason).absolute(0);
    }
    for state in QUEUE_STATES {
        gauge!(QUEUE_DEPTH, "state" => state).set(0.0);
    }
    gauge!(QUEUE_OLDEST).set(0.0);
    count_events(OTHER, std::iter::empty());
    counter!(ERASURE_FAILURES).absolute(0);
    counter!(CATCH_UP_FAILURES).absolute(0);
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::clerk::signature::Rejection;

    /// The log output with this form and filter.
    pub(crate) fn logged(format: LogFormat, directives: &str, log: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Written(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Written {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("one thread").write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = Written::default();
        let writer = written.clone();
        let filter = filter(directives).expect("a filter");
        let layer = layer(format, filter, move || writer.clone(), false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = written.0.lock().expect("one thread").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn libraries_speak_only_of_trouble_and_the_driver_never() {
        for directives in ["trace", "info", "trace,sqlx=trace,hyper=trace"] {
            let log = logged(LogFormat::Pretty, directives, || {
                tracing::info!(target: "clerk_sync::http", "ours");
                tracing::info!(target: "hyper::proto", "chatter");
                tracing::warn!(target: "hyper::proto", "trouble");
                tracing::error!(target: "sqlx::postgres::notice", "row values");
                tracing::error!(target: "sqlx_core::pool", "row values");
                tracing::info!(target: "clerk_synchronised", "somebody else");
            });
            assert!(log.contains("ours") && log.contains("trouble"), "{log}");
            assert_eq!(log.lines().count(), 2, "{log}");
        }
    }

    #[test]
    fn our_own_log_obeys_the_filter() {
        let speak = || {
            tracing::debug!(target: "clerk_sync::http", "detail");
            tracing::debug!(target: "clerk_sync::sync", "detail");
        };
        assert_eq!(logged(LogFormat::Pretty, "info", speak).lines().count(), 0);
        assert_eq!(logged(LogFormat::Pretty, "info,clerk_sync::http=debug", speak).lines().count(), 1);
        assert_eq!(logged(LogFormat::Pretty, "debug", speak).lines().count(), 2);
    }

    #[test]
    fn json_is_one_object_a_line_with_fields_at_the_top() {
        let log = logged(LogFormat::Json, "info", || {
            tracing::info!(target: "clerk_sync::http", svix_id = "msg_1", "two\nlines");
        });
        assert_eq!(log.lines().count(), 1, "{log}");
        let event: serde_json::Value = serde_json::from_str(&log).expect("JSON");
        assert_eq!(event["svix_id"], "msg_1");
        assert_eq!(event["message"], "two\nlines");
        assert_eq!(event["level"], "INFO");
    }

    #[test]
    fn metrics_begin_at_zero_and_have_buckets() {
        let recorder = recorder().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::histogram!(COMMIT_BATCH_SIZE).record(3.0);
            metrics::histogram!(WEBHOOK_DURATION, "outcome" => "applied").record(0.002);
        });
        let text = recorder.handle().render();
        for line in [
            "clerk_sync_rejections_total{reason=\"invalid_signature\"} 0",
            "clerk_sync_queue_depth{state=\"dead\"} 0",
            "clerk_sync_erasure_failures_total 0",
            "clerk_sync_catch_up_failures_total 0",
            "clerk_sync_webhooks_total{event=\"other\",outcome=\"failed\",kind=\"other\"} 0",
            "clerk_sync_commit_batch_size_bucket{le=\"2\"} 0",
            "clerk_sync_commit_batch_size_bucket{le=\"4\"} 1",
            "clerk_sync_webhook_duration_seconds_bucket{outcome=\"applied\",le=\"0.0025\"} 1",
            "# TYPE clerk_sync_webhook_duration_seconds histogram",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn every_rejection_of_a_signature_is_a_known_reason() {
        for rejection in Rejection::ALL {
            assert!(REJECTION_REASONS.contains(&rejection.code()), "{}", rejection.code());
        }
    }
}
