//! Logs and metrics: their form and their names.
//!
//! Logs go to stderr. Other people's crates are heard only when something is wrong, and the database driver never:
//! its messages carry the values of rows. A panic is told by its place, not by its message, for the same reason.

use std::{
    io::{self, IsTerminal},
    panic,
    sync::OnceLock,
    time::Duration,
};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// Counter by `event` and `outcome`: webhooks answered.
pub const WEBHOOKS: &str = "clerk_sync_webhooks_total";
/// Counter by `reason`: webhooks refused before they were believed.
pub const REJECTIONS: &str = "clerk_sync_rejections_total";
/// Histogram by `outcome`, in seconds: from the head of the request to the answer.
pub const WEBHOOK_DURATION: &str = "clerk_sync_webhook_duration_seconds";
/// Histogram: deliveries that shared a transaction.
pub const COMMIT_BATCH_SIZE: &str = "clerk_sync_commit_batch_size";
/// Histogram, in seconds: from the beginning of a batch's transaction to its end.
pub const COMMIT_DURATION: &str = "clerk_sync_commit_duration_seconds";
/// Gauge, in unix seconds: when a genuine event was last taken in, by our clock.
pub const LAST_EVENT_TIMESTAMP: &str = "clerk_sync_last_event_timestamp_seconds";
/// Gauge by `state`: deliveries in `webhook_queue`.
pub const QUEUE_DEPTH: &str = "clerk_sync_queue_depth";
/// Gauge, in seconds: how long the first of those that wait in `webhook_queue` has been due; 0 if none is.
pub const QUEUE_OLDEST: &str = "clerk_sync_queue_oldest_seconds";
/// Counter by `outcome`: deliveries of `webhook_queue` that were worked on, `parked` if it was in vain.
pub const QUEUE_PROCESSED: &str = "clerk_sync_queue_processed_total";
/// Counter: deletions that the database refused, to be tried again.
pub const ERASURE_FAILURES: &str = "clerk_sync_erasure_failures_total";
/// Gauge by `destination`: erasures that are not confirmed yet.
pub const ERASURES_OPEN: &str = "clerk_sync_erasures_open";
/// Gauge, in seconds: since when the oldest of them is asked for.
pub const ERASURE_OLDEST: &str = "clerk_sync_erasure_oldest_open_seconds";
/// Gauge: lines of `audit_log` that no seal covers yet, counted up to 100,000.
pub const AUDIT_UNSEALED: &str = "clerk_sync_audit_unsealed_lines";
/// Gauge, in seconds: how long the oldest of them waits for its seal; 0 if there is none.
pub const AUDIT_UNSEALED_OLDEST: &str = "clerk_sync_audit_unsealed_oldest_seconds";

/// Counter by `status`: requests to Clerk's Backend API, `unreachable` where there was no answer.
pub const API_REQUESTS: &str = "clerk_sync_api_requests_total";
/// Counter by `outcome`: users that a backfill went through.
pub const BACKFILL_USERS: &str = "clerk_sync_backfill_users_total";
/// Gauge by `kind`: differences that the last complete reconcile found.
pub const RECONCILE_DRIFT: &str = "clerk_sync_reconcile_drift";
/// Gauge, in unix seconds: when a reconcile last ran to its end.
pub const RECONCILE_LAST_SUCCESS: &str = "clerk_sync_reconcile_last_success_timestamp_seconds";
/// Counter: backfills and reconciles of the service that failed, to be tried again.
pub const CATCH_UP_FAILURES: &str = "clerk_sync_catch_up_failures_total";

/// Gauge by `sink` and `state`: messages in `outbox`, pending and dead.
pub const OUTBOX_DEPTH: &str = "clerk_sync_outbox_depth";
/// Gauge by `sink`, in seconds: how long the oldest pending message waits.
pub const OUTBOX_OLDEST: &str = "clerk_sync_outbox_oldest_seconds";
/// Counter by `sink` and `outcome`: attempts to deliver a message (`delivered`, `again`, `dead`).
pub const DELIVERIES: &str = "clerk_sync_deliveries_total";
/// Histogram by `sink`, in seconds: how long the sink took.
pub const DELIVERY_DURATION: &str = "clerk_sync_delivery_duration_seconds";

/// Every `reason` of [`REJECTIONS`].
pub const REJECTION_REASONS: [&str; 7] = [
    "missing_headers",
    "invalid_timestamp",
    "timestamp_out_of_tolerance",
    "invalid_signature",
    "address_not_allowed",
    "wrong_instance",
    "body_too_large",
];

/// Every `state` of [`QUEUE_DEPTH`].
pub const QUEUE_STATES: [&str; 2] = ["pending", "dead"];

/// Every `outcome` of [`QUEUE_PROCESSED`].
pub const QUEUE_OUTCOMES: [&str; 6] = ["applied", "unchanged", "stale", "duplicate", "ignored", "parked"];

const SECONDS_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BATCH_SIZE_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// How often the samples of histograms are put into their buckets if nobody asks for them.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line an event, for people.
    Pretty,
    /// One JSON object a line, fields at the top level.
    Json,
}

impl LogFormat {
    /// The form of this public name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "pretty" => Some(Self::Pretty),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    /// Pretty on a terminal, else JSON.
    pub fn of_stderr() -> Self {
        if io::stderr().is_terminal() { Self::Pretty } else { Self::Json }
    }
}

/// A filter as `RUST_LOG` gives it; `None` if it cannot be understood.
pub fn filter(directives: &str) -> Option<EnvFilter> {
    EnvFilter::try_new(directives).ok()
}

/// Log to stderr from now on, panics included. Where a log is set up already, that one stays.
pub fn init(format: LogFormat, filter: EnvFilter) {
    let layer = layer(format, filter, io::stderr, io::stderr().is_terminal());
    // Fails only if there is one already, as in tests that start the service twice in one process.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::error!(place, thread = thread.name(), "a task panicked: please report this");
    }));
}

fn layer<S, W>(format: LogFormat, filter: EnvFilter, writer: W, colours: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    let layer = match format {
        LogFormat::Pretty => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
    };
    layer.with_filter(filter.and(filter_fn(may_speak)))
}

/// Whatever `RUST_LOG` says.
fn may_speak(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let own = target == "clerk_sync" || target.starts_with("clerk_sync::");
    own || (*metadata.level() <= Level::WARN && !target.starts_with("sqlx"))
}

/// Collect metrics from now on. Called again, it returns the same handle. [`upkeep`] must run beside it.
///
/// # Panics
/// If another recorder than ours is installed.
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

/// Keep the memory of histograms bounded, for ever: samples wait one by one until somebody asks for the metrics, or
/// this puts them into their buckets.
pub async fn upkeep(metrics: PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        metrics.run_upkeep();
    }
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

/// Say what the metrics are, and begin at zero where the labels are known: a counter that appears with its first
/// failure has no rate to alert on.
fn describe() {
    describe_counter!(WEBHOOKS, Unit::Count, "Webhooks answered, by event type and outcome.");
    describe_counter!(REJECTIONS, Unit::Count, "Webhooks refused before they were believed, by reason.");
    describe_histogram!(WEBHOOK_DURATION, Unit::Seconds, "From the head of a webhook to its answer.");
    describe_histogram!(COMMIT_BATCH_SIZE, Unit::Count, "Deliveries that shared one transaction.");
    describe_histogram!(COMMIT_DURATION, Unit::Seconds, "How long the transaction of a batch took.");
    describe_gauge!(
        LAST_EVENT_TIMESTAMP,
        Unit::Seconds,
        "When a genuine event was last taken in, in unix time; absent until the first."
    );
    describe_gauge!(
        QUEUE_DEPTH,
        Unit::Count,
        "Deliveries kept in webhook_queue, by state; counted every 5 seconds, less often if that takes long."
    );
    describe_gauge!(
        QUEUE_OLDEST,
        Unit::Seconds,
        "How long the first of the deliveries that wait in webhook_queue has been due."
    );
    describe_counter!(
        QUEUE_PROCESSED,
        Unit::Count,
        "Deliveries of webhook_queue that were worked on, by outcome; parked if it was in vain."
    );
    describe_counter!(
        ERASURE_FAILURES,
        Unit::Count,
        "Deletions of users that the database refused; they are tried again."
    );
    describe_gauge!(ERASURES_OPEN, Unit::Count, "Erasures that are not confirmed yet, by destination.");
    describe_gauge!(
        ERASURE_OLDEST,
        Unit::Seconds,
        "Since when the oldest erasure that is not confirmed is asked for; 0 if there is none."
    );
    describe_gauge!(
        AUDIT_UNSEALED,
        Unit::Count,
        "Lines of the audit trail that no seal covers yet, counted up to 100,000."
    );
    describe_gauge!(
        AUDIT_UNSEALED_OLDEST,
        Unit::Seconds,
        "How long the oldest of them waits for its seal; 0 if there is none. More than a few seconds: nobody seals."
    );
    describe_counter!(API_REQUESTS, Unit::Count, "Requests to Clerk's Backend API, by HTTP status.");
    describe_counter!(BACKFILL_USERS, Unit::Count, "Users that a backfill went through, by outcome.");
    describe_gauge!(
        RECONCILE_DRIFT,
        Unit::Count,
        "Differences from Clerk that the last complete reconcile found, by kind; absent until the first."
    );
    describe_gauge!(
        RECONCILE_LAST_SUCCESS,
        Unit::Seconds,
        "When a reconcile last ran to its end, in unix time; absent until the first."
    );
    describe_counter!(
        CATCH_UP_FAILURES,
        Unit::Count,
        "Backfills and reconciles of the service that failed, to be tried again."
    );
    describe_gauge!(OUTBOX_DEPTH, Unit::Count, "Messages in outbox, by sink and state.");
    describe_gauge!(OUTBOX_OLDEST, Unit::Seconds, "How long the oldest pending message waits, by sink.");
    describe_counter!(DELIVERIES, Unit::Count, "Attempts to deliver a message, by sink and outcome.");
    describe_histogram!(DELIVERY_DURATION, Unit::Seconds, "How long a sink took for a message.");
    for reason in REJECTION_REASONS {
        counter!(REJECTIONS, "reason" => reason).absolute(0);
    }
    for state in QUEUE_STATES {
        gauge!(QUEUE_DEPTH, "state" => state).set(0.0);
    }
    gauge!(QUEUE_OLDEST).set(0.0);
    for outcome in QUEUE_OUTCOMES {
        counter!(QUEUE_PROCESSED, "outcome" => outcome).absolute(0);
    }
    counter!(ERASURE_FAILURES).absolute(0);
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::clerk::signature::Rejection;

    /// What is logged with this form and filter.
    fn logged(format: LogFormat, directives: &str, log: impl FnOnce()) -> String {
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
